"""The authority: what it signs and refuses, what it says of whom to believe, and how it goes with the time."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshproxy.pilot.authority.audit import Audit
from meshproxy.pilot.authority.ca import CertificateAuthority
from meshproxy.pilot.authority.contract import Authority, Caller, Issued, Refused
from meshproxy.pilot.authority.directory_store import DirectoryStore
from meshproxy.pilot.authority.etcd_store import EtcdStore
from meshproxy.pilot.authority.limits import Bucket
from meshproxy.pilot.authority.memory import Memory
from meshproxy.pilot.authority.metrics import AuthorityMetrics
from meshproxy.pilot.authority.settings import AuthorityError, AuthoritySettings
from meshproxy.pilot.authority.state import RETIRING, SIGNING, TRUSTED, Revoked
from meshproxy.pilot.sources.etcd_client import EtcdSettings
from meshproxy.tls.spiffe import Identity
from tests.pilot.authority.support import (
    CALLER,
    CART,
    DEADLINE_S,
    PASSPHRASE,
    START,
    Clock,
    Running,
    csr,
    opened,
    seconds,
    split,
    uri,
    verify,
)
from tests.pilot.sources.etcd import Etcd

INVALID_ARGUMENT: Final = 3
PERMISSION_DENIED: Final = 7
RESOURCE_EXHAUSTED: Final = 8
UNAVAILABLE: Final = 14


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with opened(tmp_path) as found:
        yield found


def leaf(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(split(issued.chain)[0])


async def refused(
    running: Running, status: int, data: bytes = b"", caller: Caller = CALLER, lifetime: float = 0.0
) -> str:
    """The reason; with `data`, of a CSR."""
    with pytest.raises(Refused) as error:
        await (running.authority.sign(data, caller, lifetime) if data else running.authority.issue(caller, lifetime))
    assert error.value.status == status
    last = running.audit()[-1]
    assert (last["event"], last["reason"], last["identity"]) == ("refused", error.value.reason, caller.identity.uri)
    assert running.counted("refused_total", reason=last["code"]) >= 1
    return error.value.reason


# -- issuing


async def test_it_is_what_the_contract_says(running: Running) -> None:
    authority: Authority = running.authority
    assert authority.trust_domain == "cluster.local"


async def test_a_csr_gets_a_certificate_for_its_key(running: Running, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issued = await running.authority.sign(csr(key, uri(CART.uri)), CALLER, 600.0)
    assert verify(tmp_path, issued.chain, running.authority.bundle().roots) == "OK"
    found = leaf(issued)
    assert found.public_key() == key.public_key()
    assert issued.key == b""
    assert issued.serial == found.serial_number
    assert issued.not_before == found.not_valid_before_utc.timestamp() == START - 60
    assert issued.not_after == found.not_valid_after_utc.timestamp() == START + 600


async def test_who_has_no_key_gets_one(running: Running) -> None:
    issued = await running.authority.issue(CALLER, 0)
    key = serialization.load_pem_private_key(issued.key, None)
    assert key.public_key() == leaf(issued).public_key()
    assert len(split(issued.chain)) == 1  # the root is not sent
    other = await running.authority.issue(CALLER, 0)
    assert other.key != issued.key
    assert other.serial != issued.serial


async def test_the_line_in_the_audit_says_what_was_issued_and_holds_no_key(running: Running) -> None:
    issued = await running.authority.issue(CALLER, 600.0)
    line = running.audit()[-1]
    assert line["event"] == "issued"
    assert line["identity"] == CART.uri
    assert (line["proof"], line["address"]) == ("jwt", "10.0.0.7:4711")
    assert line["serial"] == f"{issued.serial:x}"
    assert line["lifetime_s"] == 660.0
    assert running.counted("issued_total", proof="jwt") == 1
    assert "PRIVATE" not in repr(issued)
    for path in running.folder.rglob("*"):
        if path.is_file():
            assert issued.key.splitlines()[1] not in path.read_bytes(), path
            assert b"BEGIN PRIVATE" not in path.read_bytes(), path


@pytest.mark.parametrize(("asked", "given"), [(0.0, 100.0), (50.0, 50.0), (150.0, 150.0), (1e9, 200.0), (1.0, 1.0)])
async def test_a_lifetime_is_at_most_what_is_asked_and_what_is_allowed(
    tmp_path: Path, asked: float, given: float
) -> None:
    async with opened(tmp_path, AuthoritySettings(lifetime_s=100.0, longest_lifetime_s=200.0)) as running:
        assert (await running.authority.issue(CALLER, asked)).not_after == START + given


@pytest.mark.parametrize("asked", [-1.0, 0.5, float("nan"), float("inf"), -float("inf")])
async def test_a_lifetime_that_is_none_is_refused(running: Running, asked: float) -> None:
    assert "a second at least" in await refused(running, INVALID_ARGUMENT, lifetime=asked)


async def test_nothing_outlives_its_issuer(tmp_path: Path) -> None:
    settings = seconds(root_lifetime_s=40.0, overlap_s=10.0)
    async with opened(tmp_path, settings) as running:
        running.clock.now += 35
        assert (await running.authority.issue(CALLER, 10.0)).not_after == START + 40
        running.clock.now += 4.5
        assert "has ended" in await refused(running, UNAVAILABLE)


@pytest.mark.parametrize(
    "identity", [Identity("other", "shop", "cart"), Identity("cluster.local", "a/b", "cart"), Identity("", "", "")]
)
async def test_only_identities_of_the_mesh_get_anything(running: Running, identity: Identity) -> None:
    assert "trust domain" in await refused(running, PERMISSION_DENIED, caller=Caller(identity, "jwt"))


async def test_csrs_that_ask_for_too_much_or_are_none_are_refused(running: Running) -> None:
    foreign = csr(None, uri("spiffe://cluster.local/ns/shop/sa/admin"))
    assert "another identity" in await refused(running, PERMISSION_DENIED, foreign)
    assert running.counted("refused_total", reason="foreign") == 1
    assert "malformed" in await refused(running, INVALID_ARGUMENT, b"junk")
    assert running.counted("refused_total", reason="csr") == 1
    assert "malformed" in (await refused_by(running, b""))


async def refused_by(running: Running, data: bytes) -> str:
    with pytest.raises(Refused) as error:
        await running.authority.sign(data, CALLER, 0)
    return error.value.reason


async def test_a_host_name_that_is_none_is_refused(running: Running) -> None:
    with pytest.raises(Refused, match="a host name is ASCII"):
        await running.authority.issue(CALLER, 0, ("pilot.test", "pilöt.test"))


async def test_rates_are_limited_for_each_identity(tmp_path: Path) -> None:
    async with opened(tmp_path, AuthoritySettings(identity_rate=0.001, identity_burst=2.0)) as running:
        for _ in range(2):
            await running.authority.issue(CALLER, 0)
        assert "too many" in await refused(running, RESOURCE_EXHAUSTED)
        assert running.counted("refused_total", reason="rate") == 1
        await running.authority.issue(Caller(Identity("cluster.local", "shop", "other"), "jwt"), 0)


async def test_who_asks_too_often_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full one would end the authority for all. What is not told is counted."""
    monkeypatch.setattr("meshproxy.pilot.authority.ca._LINES_A_SECOND", 1e-9)
    monkeypatch.setattr("meshproxy.pilot.authority.ca._LINES_AT_ONCE", 2.0)
    async with opened(tmp_path, AuthoritySettings(identity_rate=1e-9, identity_burst=1.0)) as running:
        await running.authority.issue(CALLER, 0)
        for _ in range(5):
            with pytest.raises(Refused, match=r"^too many certificates for this identity$"):
                await running.authority.issue(CALLER, 0)
        assert running.counted("refused_total", reason="rate") == 5
        assert [line["event"] for line in running.audit()].count("refused") == 2
        running.authority._lines = Bucket(1.0, 1.0, time.monotonic())
        with pytest.raises(Refused, match=r"^too many certificates for this identity$"):
            await running.authority.issue(CALLER, 0)
        reason = "too many certificates for this identity (and 3 refusals before it that are not told)"
        assert running.audit()[-1]["reason"] == reason


async def test_no_certificate_without_a_line_in_the_audit(tmp_path: Path) -> None:
    authority = await CertificateAuthority.open(
        DirectoryStore(str(tmp_path / "ca")), PASSPHRASE, AuthoritySettings(), Audit(str(tmp_path / "log")),
        AuthorityMetrics(), Clock(),
    )  # fmt: skip
    try:
        authority.audit = Audit("/dev/full")
        with pytest.raises(Refused) as error:
            await authority.issue(CALLER, 0)
        assert error.value.status == UNAVAILABLE
        assert "/dev/full" not in error.value.reason
    finally:
        await authority.close()


async def test_no_certificate_that_cannot_be_remembered(running: Running) -> None:
    (running.folder / "ca").chmod(0o755)
    reason = await refused(running, UNAVAILABLE)
    assert str(running.folder) not in reason
    assert running.counted("store_failures_total") == 1
    (running.folder / "ca").chmod(0o700)
    await running.authority.issue(CALLER, 0)


async def test_pythons_ssl_talks_mutual_tls_with_what_it_issues(tmp_path: Path) -> None:
    async with opened(tmp_path, clock=Clock(time.time())) as running:
        roots = running.authority.bundle().roots.decode()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for name, context in (("server", server), ("client", client)):
            issued = await running.authority.issue(CALLER, 0)
            (tmp_path / name).write_bytes(issued.chain + issued.key)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_REQUIRED
            context.verify_flags |= ssl.VERIFY_X509_STRICT
            context.load_cert_chain(tmp_path / name)
            context.load_verify_locations(cadata=roots)
        for peer in shake_hands(server, client):
            assert peer["subjectAltName"] == (("URI", CART.uri),)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> list[dict[str, Any]]:
    """What each side has seen of the other."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [server.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up)]
    for _ in range(4):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return [dict(side.getpeercert() or {}) for side in sides]


# -- whom to believe


async def test_the_bundle_is_the_same_object_until_it_is_another(running: Running) -> None:
    bundle = running.authority.bundle()
    await running.authority.tend()
    assert running.authority.bundle() is bundle
    assert bundle.crl == b""
    assert bundle.federated == ()


async def test_federated_domains_are_read_again(tmp_path: Path, running: Running) -> None:
    path = tmp_path / "other.pem"
    path.write_bytes(running.authority.bundle().roots)
    (tmp_path / "two").mkdir()
    settings = AuthoritySettings(federated=(("other.example", str(path)),))
    async with opened(tmp_path / "two", settings) as two:
        assert two.authority.bundle().federated == (("other.example", path.read_bytes()),)
        told = count(two)
        path.write_bytes(two.authority.bundle().roots)
        await two.authority.tend()
        assert two.authority.bundle().federated == (("other.example", two.authority.bundle().roots),)
        assert len(told) == 1


async def test_a_federated_domain_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    settings = AuthoritySettings(federated=(("other.example", str(tmp_path / "no")),))
    with pytest.raises(AuthorityError, match="No such file"):
        async with opened(tmp_path, settings):
            pass


def count(running: Running) -> list[int]:
    """Grows by one whenever the bundle is said to be another."""
    told: list[int] = []
    running.authority.watch(lambda: told.append(1))
    return told


async def test_who_does_not_want_to_be_told_any_more_is_not(running: Running) -> None:
    told: list[str] = []
    running.authority.watch(lambda: told.append("a"))
    end = running.authority.watch(lambda: told.append("b"))
    end()
    await revoke(running, [await running.authority.issue(CALLER, 0)])
    assert told == ["a"]


# -- revocation


async def revoke(running: Running, issued: list[Issued]) -> None:
    """As `meshproxy authority revoke`, and what follows of it."""
    memory = Memory(DirectoryStore(str(running.folder / "ca")), PASSPHRASE)
    records = await memory.store.records(running.clock.now)
    serials = {each.serial for each in issued}
    more = [Revoked(each.serial, each.issuer, running.clock.now, each.not_after) for each in records]
    _, found = await memory.change(
        lambda state, _: state.with_revoked([each for each in more if each.serial in serials])
    )
    await running.authority._take(found)


async def test_openssl_refuses_what_was_revoked(running: Running, tmp_path: Path) -> None:
    bad, good = await running.authority.issue(CALLER, 0), await running.authority.issue(CALLER, 0)
    await revoke(running, [bad])
    bundle = running.authority.bundle()
    assert "certificate revoked" in verify(tmp_path, bad.chain, bundle.roots, crl=bundle.crl)
    assert verify(tmp_path, good.chain, bundle.roots, crl=bundle.crl) == "OK"
    assert running.authority.revoked_serials == {bad.serial}
    assert running.counted("revoked") == 1


async def test_a_certificate_stands_until_it_or_its_issuer_is_taken_back(tmp_path: Path) -> None:
    async with opened(tmp_path, seconds(rotate_after_s=5.0)) as running:
        old, bad = await running.authority.issue(CALLER, 20), await running.authority.issue(CALLER, 20)
        await revoke(running, [bad])
        assert running.authority.stands(old)
        assert not running.authority.stands(bad)
        for passed in (5, 30):  # the next root is trusted, then signs
            running.clock.now += passed
            await running.authority.tend()
            assert running.authority.stands(old)
        running.clock.now += 30
        await running.authority.tend()
        assert not running.authority.stands(old)
        assert running.authority.stands(await running.authority.issue(CALLER, 20))


async def test_every_issuer_that_is_trusted_has_a_list(tmp_path: Path) -> None:
    async with opened(tmp_path, seconds(rotate_after_s=5.0)) as running:
        old = await running.authority.issue(CALLER, 20)
        running.clock.now += 5
        await running.authority.tend()
        await revoke(running, [old])
        assert running.authority.bundle().crl.count(b"BEGIN X509 CRL") == 2
        running.clock.now += 30
        await running.authority.tend()
        new = await running.authority.issue(CALLER, 20)
        bundle = running.authority.bundle()
        at = running.clock.now
        assert verify(tmp_path, new.chain, bundle.roots, crl=bundle.crl, at=at) == "OK"


async def test_a_list_is_renewed_long_before_it_ends(tmp_path: Path) -> None:
    async with opened(tmp_path, seconds(crl_lifetime_s=60.0)) as running:
        bad = await running.authority.issue(CALLER, 20)
        await revoke(running, [bad])
        first, told = running.authority.bundle(), count(running)
        for passed, renewed in ((29.0, False), (1.0, True), (29.0, False), (1.0, True)):
            before = running.authority.bundle()
            running.clock.now += passed
            await running.authority.tend()
            assert (running.authority.bundle() is not before) == renewed
        assert len(told) == 2
        old, new = crl(first.crl), crl(running.authority.bundle().crl)
        assert new.next_update_utc is not None
        assert new.next_update_utc.timestamp() == running.clock.now + 60.0
        assert number(new) > number(old)


def crl(pem: bytes) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl(pem)


def number(found: x509.CertificateRevocationList) -> int:
    return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


async def test_what_has_ended_leaves_the_list_and_the_list_stays(tmp_path: Path) -> None:
    async with opened(tmp_path, seconds()) as running:
        await revoke(running, [await running.authority.issue(CALLER, 20)])
        running.clock.now += 400
        await running.authority.tend()
        assert len(crl(running.authority.bundle().crl)) == 0
        assert running.authority.revoked_serials == frozenset()


async def test_an_identity_that_is_barred_gets_nothing(running: Running) -> None:
    memory = Memory(DirectoryStore(str(running.folder / "ca")), PASSPHRASE)
    await memory.change(lambda state, _: replace(state, barred=(CART.uri,)))
    # Nobody has told the authority: it finds out, since what it signs cannot be remembered.
    assert "gets no certificates" in await refused(running, PERMISSION_DENIED)
    assert running.authority.is_barred(CART.uri)
    assert await memory.store.records(START) == []
    await running.authority.issue(Caller(Identity("cluster.local", "shop", "other"), "jwt"), 0)


# -- roots that follow one another


async def test_a_root_is_followed_by_another_and_everything_verifies_meanwhile(tmp_path: Path) -> None:
    settings = seconds(rotate_after_s=60.0, overlap_s=30.0, lifetime_s=10.0, longest_lifetime_s=20.0, skew_s=1.0)
    async with opened(tmp_path, settings) as running:
        first = running.authority.bundle().roots
        seen: list[list[str]] = []
        out: list[Issued] = []
        for _ in range(130):
            running.clock.now += 1
            await running.authority.tend()
            out = [each for each in out if each.not_after > running.clock.now]
            out.append(await running.authority.issue(CALLER, 20))
            phases = sorted(each["phase"] for each in running.authority.view()["issuers"])
            if not seen or seen[-1] != phases:
                seen.append(phases)
                for each in (out[0], out[-1]):
                    roots = running.authority.bundle().roots
                    assert verify(tmp_path, each.chain, roots, at=running.clock.now) == "OK"
        assert seen == [[SIGNING], [SIGNING, TRUSTED], [RETIRING, SIGNING], [SIGNING]]
        assert "unable to get" in verify(tmp_path, out[-1].chain, first, at=running.clock.now)
        assert running.counted("bundle_changes_total") == 2  # two roots, then one
        events = [line["event"] for line in running.audit() if line["event"] not in ("issued", "refused")]
        ways = ["issuer_signing", "issuer_trusted", "issuer_retiring", "issuer_signing", "issuer_forgotten"]
        assert sorted(events) == sorted(ways)


async def test_a_mesh_that_slept_too_long_has_a_root_that_signs_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path, seconds()) as running:
        running.clock.now += 10_000
        for _ in range(2):
            await running.authority.tend()
        issued = await running.authority.issue(CALLER, 0)
        assert verify(tmp_path, issued.chain, running.authority.bundle().roots, at=running.clock.now) == "OK"


async def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    clock, settings = Clock(), seconds(rotate_after_s=60.0)
    async with opened(tmp_path, settings, clock) as running:
        clock.now += 60
        await running.authority.tend()
        bundle = running.authority.bundle()
    async with opened(tmp_path, settings, clock) as running:
        assert running.authority.bundle() == bundle
        clock.now += settings.overlap_s
        await running.authority.tend()
        assert sorted(each["phase"] for each in running.authority.view()["issuers"]) == [RETIRING, SIGNING]


# -- several pilots


async def test_two_that_begin_at_once_agree_on_one_root(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        made = [stack.enter_async_context(opened(tmp_path)) for _ in range(4)]
        several = await asyncio.gather(*made)
        assert len({each.authority.bundle().roots for each in several}) == 1


async def test_what_one_changes_the_other_follows(tmp_path: Path) -> None:
    clock, settings = Clock(), seconds(rotate_after_s=60.0)
    async with opened(tmp_path, settings, clock) as one, opened(tmp_path, settings, clock) as other:
        told = asyncio.Event()
        other.authority.watch(told.set)
        other.authority.start()
        clock.now += 60
        await one.authority.tend()
        await asyncio.wait_for(told.wait(), DEADLINE_S)
        assert other.authority.bundle() == one.authority.bundle()


async def test_two_on_etcd_are_one_authority(tmp_path: Path) -> None:
    clock, config = Clock(), seconds(rotate_after_s=60.0)
    (tmp_path / "etcd").mkdir()
    with Etcd(tmp_path / "etcd") as etcd:
        stores = [EtcdStore(EtcdSettings((etcd.endpoint,), "/authority")) for _ in range(2)]
        several = [opened(tmp_path, config, clock, store) for store in stores]
        async with several[0] as one, several[1] as other:
            first = one.authority.bundle()
            assert other.authority.bundle() == first
            changed = asyncio.Event()
            other.authority.watch(changed.set)
            other.authority.start()
            clock.now += 60
            await one.authority.tend()
            await asyncio.wait_for(changed.wait(), DEADLINE_S)
            assert other.authority.bundle() == one.authority.bundle() != first
            issued = await other.authority.issue(CALLER, 10)
            assert [each.serial for each in await stores[0].records(clock.now)] == [issued.serial]
            assert verify(tmp_path, issued.chain, one.authority.bundle().roots, at=clock.now) == "OK"
            # Gone for a while: nothing is issued that could not be revoked, and what is known stays.
            await asyncio.to_thread(etcd.stop)
            assert "cannot do its work" in await refused(one, UNAVAILABLE)
            assert one.authority.bundle().roots == other.authority.bundle().roots


async def test_who_missed_that_a_root_retired_does_not_sign_by_it(tmp_path: Path) -> None:
    clock, settings = Clock(), seconds(rotate_after_s=60.0)
    async with opened(tmp_path, settings, clock) as one, opened(tmp_path, settings, clock) as other:
        for _ in range(2):
            clock.now += 60
            await one.authority.tend()
        expected = leaf(await one.authority.issue(CALLER, 0)).issuer
        assert leaf(await other.authority.issue(CALLER, 0)).issuer == expected


async def test_an_older_state_is_passed_over(running: Running) -> None:
    state = running.folder / "ca" / "state.json"
    before = state.read_bytes()
    issued = await running.authority.issue(CALLER, 0)
    await revoke(running, [issued])
    state.write_bytes(before)  # somebody who can write files, but does not know the passphrase
    memory = Memory(DirectoryStore(str(running.folder / "ca")), PASSPHRASE)
    found = await memory.read()
    assert found is not None
    await running.authority._take(found)
    assert running.authority.revoked_serials == {issued.serial}
    assert "being changed" in await refused(running, UNAVAILABLE)


async def test_what_somebody_forged_is_passed_over(running: Running) -> None:
    roots = running.authority.bundle().roots
    state = running.folder / "ca" / "state.json"
    state.write_bytes(state.read_bytes().replace(b"cluster.local", b"evil.example!"))
    assert "cannot do its work" in await refused(running, UNAVAILABLE)
    assert running.authority.bundle().roots == roots


# -- opening it


async def test_another_trust_domain_is_refused(tmp_path: Path, running: Running) -> None:
    with pytest.raises(AuthorityError, match=r"is the authority of cluster\.local, not of other\.example"):
        async with opened(tmp_path, AuthoritySettings(trust_domain="other.example")):
            pass


async def test_another_passphrase_is_refused(running: Running) -> None:
    store = DirectoryStore(str(running.folder / "ca"))
    with pytest.raises(AuthorityError, match="the passphrase is another one") as error:
        await CertificateAuthority.open(store, b"x" * 16, AuthoritySettings(), Audit(), AuthorityMetrics())
    assert "xxxx" not in str(error.value)


async def test_the_view_holds_no_key(running: Running) -> None:
    text = str(running.authority.view())
    assert "PRIVATE" not in text
    assert running.authority.view()["issuers"][0]["phase"] == SIGNING


async def test_what_is_counted_says_how_long_it_lasts(tmp_path: Path) -> None:
    async with opened(tmp_path, seconds(root_lifetime_s=600.0)) as running:
        assert running.counted("signing_expiry_seconds") == running.counted("root_expiry_seconds") == 600.0
        assert running.counted("issuers", phase=SIGNING) == 1
        running.clock.now += 100
        await running.authority.tend()
        assert running.counted("signing_expiry_seconds") == 500.0


async def test_records_of_the_past_are_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path, seconds()) as running:
        await running.authority.issue(CALLER, 10)
        running.clock.now += 2 * 3600
        await running.authority.tend()
        assert await DirectoryStore(str(tmp_path / "ca")).records(START) == []
