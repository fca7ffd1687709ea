"""Keys, requests and answers, by openssl's and the authority's measure."""

from __future__ import annotations

import ssl
import subprocess
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from meshproxy.agent.flags import KEY_TYPES
from meshproxy.agent.material import (
    KeyPair,
    MaterialError,
    certificate_request,
    merged,
    new_key,
    read_answer,
    revocation_lists,
    stands,
)
from tests.agent.fake_authority import ROOT, URI, FakeAuthority
from tests.tls.certificates import Issued, issue, revocation_list

KEY = new_key("ecdsa-p256")
CSR = certificate_request(KEY, URI).decode()


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_a_request_that_openssl_reads(kind: str) -> None:
    request = certificate_request(new_key(kind), URI)
    command = ["openssl", "req", "-in", "-", "-noout", "-verify", "-text"]
    found = subprocess.run(command, input=request, capture_output=True, check=True, timeout=30)
    text = found.stdout.decode()
    assert "verify OK" in found.stderr.decode() + text
    assert f"URI:{URI}" in text
    assert ("prime256v1" in text) == (kind == "ecdsa-p256")
    assert ("2048 bit" in text) == (kind == "rsa-2048")


def test_an_answer_is_the_chain_and_the_roots() -> None:
    middle = issue("middle", ROOT, ca=True)
    authority = FakeAuthority()
    leaf = authority.sign(CSR, 60.0)
    answer = [pem(leaf).rstrip(), middle.pem.decode(), ROOT.pem.decode() + middle.pem.decode()]
    pair, roots = read_answer(answer, KEY, URI, time.time())
    assert pair.chain == pem(leaf).encode() + middle.pem
    assert roots == ROOT.pem + middle.pem
    assert pair.not_after == leaf.not_valid_after_utc.timestamp()
    assert serialization.load_pem_private_key(pair.key, None).public_key() == KEY.public_key()


def test_an_answer_of_the_leaf_alone_tells_no_roots() -> None:
    leaf = pem(FakeAuthority().sign(CSR, 60.0))
    pair, roots = read_answer([leaf], KEY, URI, time.time())
    assert (pair.chain.decode(), roots) == (leaf, b"")


def test_a_pair_does_not_show_its_key() -> None:
    pair, _ = read_answer([pem(FakeAuthority().sign(CSR, 60.0))], KEY, URI, time.time())
    assert "PRIVATE" not in repr(pair)
    assert pair.key.decode().splitlines()[1] not in repr(pair)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda _: [], "empty"),
        (lambda _: ["", ""], "no certificate in PEM"),
        (lambda _: ["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"], "no certificate in PEM"),
        (lambda authority: [pem(authority.sign(CSR, -1.0))], "has expired"),
        (lambda authority: [pem(authority.sign(CSR, 60.0)), "rubbish"], "no certificate in PEM"),
        (
            lambda authority: [pem(authority.sign(certificate_request(new_key("ecdsa-p256"), URI).decode(), 60.0))],
            "key",
        ),
    ],
)
def test_an_answer_that_is_of_no_use(answer: object, reason: str) -> None:
    with pytest.raises(MaterialError, match=reason):
        read_answer(answer(FakeAuthority()), KEY, URI, time.time())  # type: ignore[operator]


def test_a_certificate_of_a_version_that_there_is_not() -> None:
    der = FakeAuthority().sign(CSR, 60.0).public_bytes(serialization.Encoding.DER)
    version_8 = ssl.DER_cert_to_PEM_cert(der.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", 1))
    with pytest.raises(MaterialError, match="no certificate in PEM"):
        read_answer([version_8], KEY, URI, time.time())


@pytest.mark.parametrize("names", [[x509.UniformResourceIdentifier(URI + "x")], [x509.DNSName("web")]])
def test_a_certificate_of_somebody_else(names: list[x509.GeneralName]) -> None:
    authority = FakeAuthority()
    authority.names = names
    with pytest.raises(MaterialError, match="not for spiffe://mesh"):
        read_answer([pem(authority.sign(CSR, 60.0))], KEY, URI, time.time())


def test_what_the_mesh_takes() -> None:
    """By its roots, over intermediates too; and by the list of each issuer."""
    other = issue("other", ca=True)
    middle = issue("middle", ROOT, ca=True)
    authority = FakeAuthority()
    leaf = authority.sign(CSR, 60.0)
    authority.root = middle
    below = authority.sign(CSR, 60.0)
    direct, chained = KeyPair(pem(leaf).encode(), b""), KeyPair(pem(below).encode() + middle.pem, b"")
    for pair in (direct, chained):
        assert stands(pair, other.pem + ROOT.pem, b"")
        assert not stands(pair, other.pem, b"")
    lists = revocation_list(other, Issued(leaf, other.key)) + revocation_list(ROOT, Issued(leaf, ROOT.key))
    assert not stands(direct, ROOT.pem, lists)
    assert stands(direct, ROOT.pem, revocation_list(other, Issued(leaf, other.key)))  # another's serial
    assert stands(chained, ROOT.pem, lists)
    assert len(revocation_lists(lists)) == 2
    with pytest.raises(MaterialError):
        revocation_lists(b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n")


def test_roots_of_several_files_stand_there_once() -> None:
    other = issue("other", ca=True)
    assert merged(ROOT.pem, b" \n", other.pem + ROOT.pem) == ROOT.pem + other.pem
    with pytest.raises(MaterialError):
        merged(ROOT.pem, b"rubbish")
