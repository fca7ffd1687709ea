"""What the pilot's own ports show, and whom they believe."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography import x509

from meshproxy.codec import grpc as codes
from meshproxy.errors import ConfigError
from meshproxy.pilot.authority.contract import Refused, TrustBundle
from meshproxy.pilot.authority.serving import FilePair, MeshCredentials, MeshTls, OwnPair
from meshproxy.tls.spiffe import Identity
from tests.pilot.authority.fakes import TRUST_DOMAIN, FakeAuthority
from tests.tls.certificates import dns, issue, revocation_list

PILOT = Identity(TRUST_DOMAIN, "istio-system", "meshproxy-pilot")


def nobody(*_: str) -> None:
    """Is told."""


def write(folder: Path, authority: FakeAuthority, name: str) -> FilePair:
    mine = issue(name, authority.root, names=dns(name))
    (folder / "cert.pem").write_bytes(mine.pem)
    (folder / "key.pem").write_bytes(mine.key_pem)
    return FilePair(str(folder / "cert.pem"), str(folder / "key.pem"))


def test_files_are_read_again_and_bad_ones_change_nothing(tmp_path: Path) -> None:
    authority = FakeAuthority()
    pair = write(tmp_path, authority, "one.test")
    tls = MeshTls(authority, pair, nobody)
    first = tls.current()
    assert tls() is first
    (tmp_path / "key.pem").unlink()
    assert tls() is first
    write(tmp_path, authority, "two.test")
    second = tls()
    assert second is not None
    assert second is not first
    (tmp_path / "cert.pem").write_bytes(b"nonsense")
    assert tls() is second
    write(tmp_path, authority, "three.test")
    assert tls() not in (None, first, second)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        FilePair(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))


def test_roots_and_revocations_are_those_of_the_bundle(tmp_path: Path) -> None:
    authority = FakeAuthority()
    tls = MeshTls(authority, write(tmp_path, authority, "pilot.test"), nobody)
    first = tls.current()
    assert [info.certificate.der for info in first.context.ca_certificates] == [authority.root.der]
    other = issue("next", ca=True)
    both = authority.root.pem + other.pem
    authority.set_bundle(TrustBundle(both, revocation_list(authority.root) + revocation_list(other)))
    second = tls.current()
    assert [info.certificate.der for info in second.context.ca_certificates] == [authority.root.der, other.der]
    stores = [identity.ssl_context.cert_store_stats() for identity in second.context.identities]
    assert [store["crl"] for store in stores] == [2]


async def test_its_own_certificate_is_renewed(tmp_path: Path) -> None:
    authority = FakeAuthority(lifetime_s=1.0)
    pair = OwnPair(authority, PILOT, ("pilot.test", "other.test"))
    await pair.start()
    credentials = MeshCredentials(authority, pair)
    tls = MeshTls(authority, pair, nobody)
    first, factory = pair.pair(), tls.current()
    assert credentials.fetch() is not None
    leaf = x509.load_pem_x509_certificate(first[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["pilot.test", "other.test"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [PILOT.uri]
    async with asyncio.timeout(20.0):
        while pair.pair() is first:
            await asyncio.sleep(0.005)
    pair.close()
    assert tls.current() is not factory
    assert credentials.fetch() is not None
    assert credentials.fetch() is None  # it is the same
    authority.set_bundle(TrustBundle(issue("next", ca=True).pem, b""))
    assert credentials.fetch() is not None


async def test_an_authority_that_refuses_its_pilot() -> None:
    authority = FakeAuthority()
    authority.refusal = Refused(codes.UNAVAILABLE, "the store is gone")
    with pytest.raises(ConfigError, match="--tls-from-authority: the store is gone"):
        await OwnPair(authority, PILOT, ("pilot.test",)).start()
