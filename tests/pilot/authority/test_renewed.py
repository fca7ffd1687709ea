"""When certificates are renewed, and what happens when they cannot be."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from meshproxy.codec import grpc as codes
from meshproxy.pilot.authority.contract import Caller, Refused, TrustBundle
from meshproxy.pilot.authority.renewed import RenewedCertificate, renewal_delay_s, retry_delay_s
from meshproxy.tls.spiffe import Identity
from tests.pilot.authority.fakes import TRUST_DOMAIN, FakeAuthority

WEB = Caller(Identity(TRUST_DOMAIN, "shop", "web"), "jwt")


def test_a_thousand_who_came_together_come_back_apart() -> None:
    chance = random.Random(6)
    delays = [renewal_delay_s(3600.0, chance.uniform) for _ in range(1000)]
    assert 0.6 * 3600.0 <= min(delays) < max(delays) <= 0.73 * 3600.0
    assert sum(delays) / 1000 == pytest.approx(3600.0 * 2 / 3, rel=0.01)
    # In no tenth of the time that it takes are there many more than a tenth of them.
    tenth = 0.13 * 3600.0 / 10
    counts = [
        sum(0.6 * 3600.0 + n * tenth <= each < 0.6 * 3600.0 + (n + 1) * tenth for each in delays) for n in range(10)
    ]
    assert max(counts) < 150
    assert renewal_delay_s(-5.0, chance.uniform) == 0.0


def test_failures_are_further_and_further_apart_within_bounds() -> None:
    most = [retry_delay_s(n, 36000.0, lambda _, high: high) for n in range(1, 10)]
    assert most == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert retry_delay_s(1000, 36000.0, lambda _, high: high) == 60.0
    assert retry_delay_s(5, 10.0, lambda _, high: high) == 1.0  # a short life waits for nobody
    assert retry_delay_s(3, 36000.0, lambda low, _: low) == pytest.approx(0.4)


async def until(condition: Callable[[], bool], changed: asyncio.Event) -> None:
    async with asyncio.timeout(20.0):
        while not condition():
            await changed.wait()
            changed.clear()


async def test_each_follows_the_one_before() -> None:
    authority = FakeAuthority(lifetime_s=0.2)
    changed = asyncio.Event()
    certificate = RenewedCertificate(authority, WEB, changed.set, dns_names=("a",))
    await certificate.start()
    first = certificate.current
    assert first is not None
    assert not changed.is_set()
    await until(lambda: len(authority.calls) >= 4, changed)
    assert certificate.current not in (None, first)
    certificate.close()


async def test_what_is_there_stays_while_there_is_no_other() -> None:
    authority = FakeAuthority(lifetime_s=0.2)
    changed = asyncio.Event()
    certificate = RenewedCertificate(authority, WEB, changed.set)
    await certificate.start()
    first = certificate.current
    authority.refusal = Refused(codes.UNAVAILABLE, "the store is gone")
    async with asyncio.timeout(20.0):
        while len(authority.calls) < 4:
            await asyncio.sleep(0.005)
    assert certificate.current is first
    assert not changed.is_set()
    authority.refusal = None
    await until(lambda: certificate.current is not first, changed)
    certificate.close()


async def test_the_first_may_take_its_time() -> None:
    authority = FakeAuthority()
    authority.refusal = Refused(codes.UNAVAILABLE, "not yet")
    changed = asyncio.Event()
    certificate = RenewedCertificate(authority, WEB, changed.set)
    with pytest.raises(Refused):
        await certificate.start()
    certificate.begin()
    async with asyncio.timeout(20.0):
        while len(authority.calls) < 2:
            await asyncio.sleep(0.005)
    assert certificate.current is None
    authority.refusal = None
    await until(lambda: certificate.current is not None, changed)
    certificate.close()
    certificate.close()


async def test_one_that_is_revoked_is_renewed_soon() -> None:
    authority = FakeAuthority()
    changed = asyncio.Event()
    certificate = RenewedCertificate(authority, WEB, changed.set)
    await certificate.start()
    first = certificate.current
    assert first is not None
    authority.set_bundle(TrustBundle(authority.root.pem, b""))  # that changes nothing
    authority.revoked_serials = frozenset({first.serial})
    authority.set_bundle(TrustBundle(authority.root.pem, b""))
    await until(lambda: certificate.current is not first, changed)
    assert len(authority.calls) == 2
    certificate.close()
    assert authority.watched == 0
