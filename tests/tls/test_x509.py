"""The DER reader against the cryptography package, and against noise."""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import Any

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.tls.x509 import (
    DNS,
    EMAIL,
    IP_ADDRESS,
    OTHER_NAME,
    URI,
    Certificate,
    DerError,
    certificates_of_pem,
    to_pem,
    url_encoded_pem,
)
from tests.tls.certificates import Issued, issue, world

NAMES: list[tuple[cx509.GeneralName, int, str]] = [
    (cx509.DNSName("*.a.test"), DNS, "*.a.test"),
    (cx509.UniformResourceIdentifier("spiffe://a/b"), URI, "spiffe://a/b"),
    (cx509.RFC822Name("a@b.test"), EMAIL, "a@b.test"),
    (cx509.IPAddress(ipaddress.ip_address("10.0.0.1")), IP_ADDRESS, "10.0.0.1"),
    (cx509.IPAddress(ipaddress.ip_address("2001:db8::1")), IP_ADDRESS, "2001:db8::1"),
    (cx509.OtherName(ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x02me"), OTHER_NAME, "me"),
]


@pytest.mark.parametrize("who", ["ca", "server", "rsa_server", "client", "expired"])
def test_the_fields_are_what_cryptography_reads(who: str) -> None:
    issued: Issued = getattr(world(), who)
    theirs, ours = issued.certificate, Certificate(issued.der)
    assert int(ours.serial, 16) == theirs.serial_number
    assert (ours.not_before, ours.not_after) == (theirs.not_valid_before_utc, theirs.not_valid_after_utc)
    assert ours.fingerprint_sha256() == theirs.fingerprint(hashes.SHA256()).hex()
    assert ours.fingerprint_sha1() == theirs.fingerprint(hashes.SHA1()).hex()
    assert ours.key_type == ("RSA" if who == "rsa_server" else "ECDSA")
    assert ours.subject == theirs.subject.rfc4514_string()
    assert ours.issuer == theirs.issuer.rfc4514_string()


def test_alternative_names() -> None:
    ours = Certificate(issue("names", names=[name for name, _, _ in NAMES]).der)
    assert ours.alt_names() == [(kind, text) for _, kind, text in NAMES]
    assert ours.alt_names_of(IP_ADDRESS) == ["10.0.0.1", "2001:db8::1"]
    assert (ours.has_alt_names, Certificate(issue("none").der).has_alt_names) == (True, False)


def test_keys() -> None:
    assert Certificate(world().rsa_server.der).rsa_bits == 2048
    assert Certificate(issue("k", key=ec.generate_private_key(ec.SECP384R1())).der).ec_curve == "1.3.132.0.34"


def test_dates_of_both_kinds() -> None:
    """UTCTime until 2049, GeneralizedTime from 2050 on (RFC 5280 section 4.1.2.5)."""
    now = dt.datetime.now(dt.UTC)
    ours = Certificate(issue("long", days=(-20 * 365, 40 * 365)).der)
    assert ours.not_before.year == (now - dt.timedelta(days=20 * 365)).year
    assert ours.not_after.year == (now + dt.timedelta(days=40 * 365)).year > 2049


def test_pem() -> None:
    pair = world().ca.pem + b"\nbetween\n" + world().server.pem
    assert [each.common_name for each in certificates_of_pem(pair)] == ["ca", "server"]
    assert to_pem(world().ca.der).encode() == world().ca.pem
    assert certificates_of_pem(b"no certificate") == []
    for bad in (b"-----BEGIN CERTIFICATE-----\nAA", b"-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----"):
        with pytest.raises(DerError):
            certificates_of_pem(bad)
    encoded = url_encoded_pem(world().ca.der)
    assert encoded.startswith("-----BEGIN%20CERTIFICATE-----%0AMII")
    assert not set("+/=\n ") & set(encoded)


def test_a_multi_valued_name_is_joined_with_plus() -> None:
    relative = cx509.RelativeDistinguishedName(
        [cx509.NameAttribute(NameOID.COMMON_NAME, "a"), cx509.NameAttribute(NameOID.USER_ID, "b")]
    )
    ours = Certificate(issue("x", subject=cx509.Name([relative])).der)
    assert set(ours.subject.split("+")) == {"CN=a", "UID=b"}


@given(st.data())
def test_noise_is_an_error_and_nothing_else(data: Any) -> None:
    der = bytearray(world().server.der)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    read_all(bytes(der[: data.draw(st.integers(0, len(der)))]))
    read_all(bytes(der))


def read_all(der: bytes) -> None:
    try:
        ours = Certificate(der)
        for name in (
            "subject",
            "issuer",
            "common_name",
            "serial",
            "not_before",
            "not_after",
            "key_type",
            "must_staple",
        ):
            getattr(ours, name)
        ours.alt_names()
        ours.allows_key_usage(0)
        ours.public_key_sha256()
    except DerError:
        return
