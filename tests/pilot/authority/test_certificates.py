"""What certificates say, judged by openssl and by the rules of X509-SVID and RFC 5280."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.pilot.authority.certificates import (
    MAX_CSR_BYTES,
    BadRequestError,
    Signer,
    Validity,
    check_chain,
    leaf_validity,
    make_crl,
    make_leaf,
    make_root,
    new_serial,
    read_certificates,
    read_csr,
    to_pem,
)
from meshproxy.pilot.authority.keys import make_key
from meshproxy.pilot.authority.settings import KEY_TYPES, AuthorityError
from meshproxy.tls.spiffe import parse_identity
from tests.pilot.authority.support import CART, START, common_name, csr, openssl, uri, verify

_VALIDITY: Final = Validity(int(START) - 60, int(START) + 3600)
_SEGMENTS: Final = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True).filter(lambda text: text not in (".", ".."))


@pytest.fixture(scope="module")
def signer() -> Signer:
    return root_signer("P-256")


def root_signer(kind: str) -> Signer:
    key = make_key(kind)
    return Signer(make_root(key, "cluster.local", Validity(int(START) - 60, int(START) + 86400)), key, b"")


def leaf(signer: Signer, *names: str, validity: Validity = _VALIDITY) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    return make_leaf(signer, key.public_key(), names or (CART.uri,), validity, new_serial())


# -- leaves and roots


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_openssl_believes_a_leaf_of_every_kind_of_root(tmp_path: Path, kind: str) -> None:
    authority = root_signer(kind)
    roots = to_pem([authority.certificate])
    for purpose in ("sslserver", "sslclient"):
        assert verify(tmp_path, to_pem([leaf(authority)]), roots, "-purpose", purpose) == "OK"


def test_a_leaf_is_an_svid_to_the_letter(signer: Signer) -> None:
    code, text = openssl("x509", "-noout", "-text", data=to_pem([leaf(signer)]))
    assert code == 0
    assert f"Subject Alternative Name: critical\n                URI:{CART.uri}\n" in text
    assert "Basic Constraints: critical\n                CA:FALSE\n" in text
    assert "Key Usage: critical\n                Digital Signature\n" in text
    assert "TLS Web Server Authentication, TLS Web Client Authentication\n" in text
    assert "Subject: \n" in text
    key_identifier = openssl("x509", "-noout", "-ext", "subjectKeyIdentifier", data=to_pem([signer.certificate]))[1]
    assert f"Authority Key Identifier: \n                {key_identifier.splitlines()[1].strip()}" in text


def test_a_root_signs_leaves_only_and_says_its_trust_domain(signer: Signer) -> None:
    text = openssl("x509", "-noout", "-text", data=to_pem([signer.certificate]))[1]
    assert "CA:TRUE, pathlen:0\n" in text
    assert "Key Usage: critical\n                Certificate Sign, CRL Sign\n" in text
    assert "URI:spiffe://cluster.local\n" in text


def test_a_leaf_may_not_sign(tmp_path: Path, signer: Signer) -> None:
    key = make_key("P-256")
    below = make_leaf(signer, key.public_key(), (CART.uri,), _VALIDITY, new_serial())
    forged = leaf(Signer(below, key, b""))
    assert "invalid CA" in verify(tmp_path, to_pem([forged, below]), to_pem([signer.certificate]))


def test_a_servers_hosts_stand_beside_its_identity(signer: Signer) -> None:
    found = leaf(signer, CART.uri, "pilot.mesh", "10.0.0.1", "::1")
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [CART.uri]
    assert names.get_values_for_type(x509.DNSName) == ["pilot.mesh"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("::1")]


@given(namespace=_SEGMENTS, account=_SEGMENTS)
def test_every_identity_comes_out_as_it_went_in(namespace: str, account: str) -> None:
    identity = parse_identity(f"spiffe://cluster.local/ns/{namespace}/sa/{account}")
    assert identity is not None
    names = leaf(_SIGNER, identity.uri).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [identity.uri]


_SIGNER: Final = root_signer("P-256")


@given(
    now=st.floats(1e9, 4e9),
    lifetime=st.floats(1.0, 1e8),
    skew=st.floats(0.0, 1e5),
    left=st.floats(0.0, 1e9),
)
def test_no_lifetime_exceeds_what_is_asked_or_left(now: float, lifetime: float, skew: float, left: float) -> None:
    made = leaf_validity(now, lifetime, skew, now + left)
    assert made.not_after <= now + lifetime
    assert made.not_after <= now + left
    assert made.not_before <= now
    # A second is lost to rounding, each way.
    assert now - made.not_before <= min(skew, lifetime / 10) + 1
    assert made.not_after > min(now + lifetime, now + left) - 1


def test_serials_have_128_bits_of_chance() -> None:
    found = [new_serial() for _ in range(200)]
    assert len(set(found)) == 200
    assert min(found) > 0
    assert 120 < max(found).bit_length() <= 128


# -- CSRs

_GOOD: Final[dict[str, Callable[[], ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA-2048": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
}


@pytest.mark.parametrize("kind", _GOOD)
def test_keys_that_envoy_takes_are_taken(kind: str) -> None:
    key = _GOOD[kind]()
    assert read_csr(csr(key), CART.uri) == key.public_key()


def test_a_csr_may_be_der_and_may_name_its_own_identity() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = csr(key, uri(CART.uri))
    der = x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER)
    assert read_csr(pem, CART.uri) == read_csr(der, CART.uri) == key.public_key()


def test_a_csr_of_openssl_is_read(tmp_path: Path) -> None:
    arguments = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/O=any"]
    names = ["-addext", f"subjectAltName=URI:{CART.uri}"]
    openssl(*arguments, *names, "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "csr"))
    key = serialization.load_pem_private_key((tmp_path / "key").read_bytes(), None)
    assert read_csr((tmp_path / "csr").read_bytes(), CART.uri) == key.public_key()


@pytest.mark.parametrize(
    ("name", "made", "reason"),
    [
        ("short RSA", lambda: csr(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "1024 bits"),
        ("P-224", lambda: csr(ec.generate_private_key(ec.SECP224R1())), "secp224r1"),
        ("secp256k1", lambda: csr(ec.generate_private_key(ec.SECP256K1())), "secp256k1"),
        ("Ed25519", lambda: csr(ed25519.Ed25519PrivateKey.generate(), algorithm=None), "ECDSA"),
        ("DSA", lambda: csr(dsa.generate_private_key(2048)), "ECDSA"),
        ("empty", lambda: b"", "malformed"),
        (
            "text",
            lambda: b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "malformed",
        ),
        ("certificate", lambda: to_pem([_SIGNER.certificate]), "malformed"),
        ("huge", lambda: csr() + b"\n" * MAX_CSR_BYTES, "bytes at most"),
    ],
)
def test_what_is_no_csr_for_us_is_refused(name: str, made: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(BadRequestError, match=reason) as error:
        read_csr(made(), CART.uri)
    assert not error.value.foreign, name


def test_a_csr_must_be_signed_by_its_own_key() -> None:
    der = bytearray(x509.load_pem_x509_csr(csr()).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(BadRequestError, match="not signed by its own key"):
        read_csr(bytes(der), CART.uri)


def test_a_csr_signed_with_sha1_is_refused(tmp_path: Path) -> None:
    key, made = str(tmp_path / "key"), str(tmp_path / "csr")
    openssl("req", "-new", "-newkey", "rsa:2048", "-sha1", "-nodes", "-subj", "/O=any", "-keyout", key, "-out", made)
    with pytest.raises(BadRequestError, match="SHA-256"):
        read_csr(Path(made).read_bytes(), CART.uri)


@pytest.mark.parametrize(
    "name",
    [
        uri("spiffe://cluster.local/ns/shop/sa/root"),
        uri("spiffe://other/ns/shop/sa/cart"),
        uri("https://a.example"),
        x509.DNSName("a.example"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.DirectoryName(common_name("cart")),
    ],
    ids=str,
)
def test_a_csr_for_another_name_is_refused(name: x509.GeneralName) -> None:
    for names in ([name], [uri(CART.uri), name]):
        with pytest.raises(BadRequestError, match="another identity") as error:
            read_csr(csr(None, *names), CART.uri)
        assert error.value.foreign


_DER: Final = x509.load_pem_x509_csr(csr(None, uri(CART.uri))).public_bytes(serialization.Encoding.DER)


@given(st.lists(st.tuples(st.integers(0, len(_DER) - 1), st.integers(1, 255)), min_size=1, max_size=6))
def test_a_damaged_csr_gets_a_refusal_or_its_own_key(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(_DER)
    for at, bits in changes:
        damaged[at] ^= bits
    try:
        found = read_csr(bytes(damaged), CART.uri)
    except BadRequestError:
        return
    assert found == x509.load_der_x509_csr(_DER).public_key()


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_else(data: bytes) -> None:
    with pytest.raises(BadRequestError):
        read_csr(data, CART.uri)


# -- CRLs


def test_openssl_refuses_what_is_revoked_and_only_that(tmp_path: Path, signer: Signer) -> None:
    bad, good = leaf(signer), leaf(signer)
    crl = make_crl(signer, [(bad.serial_number, START)], 7, START - 60, START + 3600)
    roots = to_pem([signer.certificate])
    assert "certificate revoked" in verify(tmp_path, to_pem([bad]), roots, crl=crl)
    assert verify(tmp_path, to_pem([good]), roots, crl=crl) == "OK"
    late = leaf(signer, validity=Validity(int(START), int(START) + 7200))
    assert "CRL has expired" in verify(tmp_path, to_pem([late]), roots, crl=crl, at=START + 3700)
    text = openssl("crl", "-noout", "-text", data=crl)[1]
    assert "X509v3 CRL Number: \n                7\n" in text
    assert "X509v3 Authority Key Identifier" in text


# -- chains of outside authorities


def outside(
    name: str,
    issuer: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None,
    *,
    constraints: x509.BasicConstraints | None = None,
    usage: x509.KeyUsage | None = None,
    hours: float = 24.0,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.fromtimestamp(START, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(common_name(name))
        .issuer_name(issuer[0].subject if issuer else common_name(name))
        .public_key(key.public_key())
        .serial_number(new_serial())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=hours))
        .add_extension(constraints or x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    return builder.sign(issuer[1] if issuer else key, hashes.SHA256()), key


def usage(*, key_cert_sign: bool, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def test_a_chain_goes_from_ours_to_the_root() -> None:
    root = outside("root", None)
    middle = outside("middle", root)
    ours = outside("ours", middle, constraints=x509.BasicConstraints(ca=True, path_length=0))
    check_chain([ours[0], middle[0], root[0]], START)
    check_chain([middle[0], root[0]], START)


@pytest.mark.parametrize("case", ["order", "gap", "alone", "ended", "leaf", "usage", "crl", "path", "foreign"])
def test_a_chain_that_would_not_verify_is_refused(case: str) -> None:
    root = outside("root", None, constraints=x509.BasicConstraints(ca=True, path_length=1 if case != "path" else 0))
    middle = outside("middle", root)
    kinds: dict[str, tuple[x509.Certificate, ec.EllipticCurvePrivateKey]] = {
        "ended": outside("ours", middle, hours=-0.5),
        "leaf": outside("ours", middle, constraints=x509.BasicConstraints(ca=False, path_length=None)),
        "usage": outside("ours", middle, usage=usage(key_cert_sign=False, crl_sign=True)),
        "crl": outside("ours", middle, usage=usage(key_cert_sign=True, crl_sign=False)),
        "foreign": outside("ours", outside("middle", root)),  # another key, under the same name
    }
    ours = kinds.get(case, outside("ours", middle))
    chains = {"order": [root, middle, ours], "gap": [ours, root], "alone": [ours], "short": [ours, middle]}
    with pytest.raises(AuthorityError):
        check_chain([each[0] for each in chains.get(case, [ours, middle, root])], START)


def test_what_is_no_certificate_is_told_by_its_file() -> None:
    with pytest.raises(AuthorityError, match=r"^chain\.pem: "):
        read_certificates(b"nothing", "chain.pem")
