"""Contexts: what is verified and how it fails, certificates by name and key, sessions, bad material."""

from __future__ import annotations

import gc
import os
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshproxy.config.string_matcher import literal_matcher
from meshproxy.tls import openssl, x509
from meshproxy.tls.context import TlsContext
from meshproxy.tls.material import TlsConfigError
from meshproxy.tls.options import TlsOptions
from meshproxy.tls.verify import (
    CONNECTION_ERROR,
    NO_CERTIFICATE,
    VERIFY_ERROR,
    VERIFY_HASH,
    VERIFY_SAN,
    SanMatcher,
    dns_name_matches,
)
from tests.tls.certificates import Issued, dns, issue, key_usage, revocation_list, world
from tests.tls.harness import (
    BOTH,
    V12,
    V13,
    PythonPeer,
    Socket,
    client,
    converse,
    identity,
    pair,
    python_client,
    server,
    validation,
)

VERIFY_FAILED = (
    "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify cert failed: {}:TLS_error_end"
)
CHAIN = "X509_verify_cert: certificate verification error at depth {}: {}"
REVOKED = "certificate revocation check against provided CRLs failed: "
NO_ISSUER = CHAIN.format(0, "unable to get local issuer certificate")


def mtls(**more: Any) -> TlsContext:
    return server(require_client_certificate=True, validation=validation(**more))


def san(kind: int, text: str, how: str = "exact") -> SanMatcher:
    exact = text if kind == x509.DNS and how == "exact" else ""
    return SanMatcher(kind, literal_matcher(how, text.encode()), exact)


def outcome(
    server_context: TlsContext, certificate: Issued | None, version: ssl.TLSVersion
) -> tuple[str, list[int], str]:
    """(failure, what was counted, the peer's failure)."""
    one, other = pair(server_context, client(certificate, max_version=version))
    return one.failure, one.told.failures, other.failure


def test_the_capabilities_are_there() -> None:
    """Everything below stands on them; on a build without, the fields are refused (test_without_ctypes)."""
    assert openssl.AVAILABLE


# -- a server and its client's certificate


@pytest.mark.parametrize("version", BOTH)
def test_a_good_certificate_is_validated(version: ssl.TLSVersion) -> None:
    one, other = pair(mtls(), client(world().client, max_version=version))
    assert (one.failure, other.failure, one.established) == ("", "", True)
    assert (one.facts.peer_certificate_presented, one.facts.peer_certificate_validated) == (True, True)
    assert not other.facts.peer_certificate_validated  # the client had no rules


@pytest.mark.parametrize("version", BOTH)
@pytest.mark.parametrize(
    ("who", "reason", "alert"),
    [
        ("stranger", NO_ISSUER, "UNKNOWN_CA"),
        ("expired", CHAIN.format(0, "certificate has expired"), "CERTIFICATE_EXPIRED"),
    ],
)
def test_a_bad_chain_fails(who: str, reason: str, alert: str, version: ssl.TLSVersion) -> None:
    failure, counted, told = outcome(mtls(), getattr(world(), who), version)
    assert failure == VERIFY_FAILED.format(reason)
    assert counted == [VERIFY_ERROR]
    assert f"ALERT_{alert}" in told


@pytest.mark.parametrize("version", BOTH)
def test_a_certificate_may_be_required(version: ssl.TLSVersion) -> None:
    failure, counted, told = outcome(mtls(), None, version)
    assert failure == (
        "TLS_error:|268435648:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE:"
        "peer did not provide required client certificate:TLS_error_end"
    )
    assert counted == [NO_CERTIFICATE]
    assert "ALERT" in told


def test_a_certificate_may_be_optional() -> None:
    context = server(validation=validation())
    one, _ = pair(context, client())
    assert (one.established, one.facts.peer_certificate_presented) == (True, False)
    assert outcome(context, world().stranger, V13)[0] == VERIFY_FAILED.format(NO_ISSUER)


def test_without_rules_a_required_certificate_may_be_anybodys() -> None:
    one, _ = pair(server(require_client_certificate=True), client(world().stranger))
    assert (one.established, one.facts.peer_certificate_validated) == (True, False)


def test_an_intermediate_certificate_can_be_the_trusted_one() -> None:
    issued = issue("below", world().intermediate)
    one, _ = pair(mtls(trusted_ca=world().intermediate.pem), client(issued))
    assert one.established


def test_the_chain_that_the_peer_sends_is_used() -> None:
    issued = issue("below", world().intermediate)
    sent = identity(issued, chain=issued.pem + world().intermediate.pem)
    one, _ = pair(mtls(), TlsContext(TlsOptions(is_server=False, certificates=(sent,))))
    assert one.established
    assert one.facts.peer_chain() == [issued.der, world().intermediate.der]
    assert outcome(mtls(max_verify_depth=0), issued, V13)[1] == [VERIFY_ERROR]


@pytest.mark.parametrize(("depth", "fits"), [(0, False), (1, True)])
def test_the_depth_of_a_chain_is_bounded(depth: int, fits: bool) -> None:
    issued = issue("below", world().intermediate)
    sent = identity(issued, chain=issued.pem + world().intermediate.pem)
    one, _ = pair(mtls(max_verify_depth=depth), TlsContext(TlsOptions(is_server=False, certificates=(sent,))))
    assert one.established == fits


def test_expired_certificates_can_be_allowed_but_not_strangers() -> None:
    context = mtls(ignore_times=True)
    assert pair(context, client(world().expired))[0].established
    assert outcome(context, world().stranger, V13)[0] == VERIFY_FAILED.format(NO_ISSUER)


@pytest.mark.parametrize("version", BOTH)
def test_accept_untrusted_lets_through_counts_and_says_so(version: ssl.TLSVersion) -> None:
    one, _ = pair(mtls(accept_untrusted=True), client(world().stranger, max_version=version))
    assert (one.established, one.told.failures) == (True, [VERIFY_ERROR])
    assert (one.facts.peer_certificate_presented, one.facts.peer_certificate_validated) == (True, False)
    one, _ = pair(mtls(accept_untrusted=True), client(world().client, max_version=version))
    assert (one.told.failures, one.facts.peer_certificate_validated) == ([], True)


# -- revocation


def test_a_revoked_certificate_fails() -> None:
    crl = revocation_list(world().ca, world().revoked)
    assert outcome(mtls(crl=crl), world().revoked, V13)[0] == VERIFY_FAILED.format(
        CHAIN.format(0, f"{REVOKED}certificate revoked")
    )
    assert outcome(mtls(crl=crl), world().client, V13)[0] == ""


def test_the_whole_chain_needs_a_crl_or_the_leaf_alone() -> None:
    """With a CRL of the intermediate only: its own issuer has none."""
    below = issue("below", world().intermediate)
    sent = identity(below, chain=below.pem + world().intermediate.pem)
    chain = TlsContext(TlsOptions(is_server=False, certificates=(sent,)))
    crl = revocation_list(world().intermediate)
    one, _ = pair(mtls(crl=crl), chain)
    assert one.failure == VERIFY_FAILED.format(CHAIN.format(1, f"{REVOKED}unable to get certificate CRL"))
    one, _ = pair(mtls(crl=crl, only_leaf_crl=True), chain)
    assert one.established


# -- names and pins


@pytest.mark.parametrize(
    ("matcher", "passes"),
    [
        (san(x509.URI, "spiffe://mesh/client"), True),
        (san(x509.URI, "spiffe://mesh/", "prefix"), True),
        (san(x509.URI, "/client", "suffix"), True),
        (san(x509.URI, "client.test"), False),  # a DNS name
        (san(x509.DNS, "client.test"), True),
        (san(x509.DNS, "CLIENT.test"), True),
        (san(x509.DNS, "lient", "contains"), True),
        (san(x509.EMAIL, "client.test"), False),
    ],
)
def test_names_are_matched_by_their_kind(matcher: SanMatcher, passes: bool) -> None:
    failure, counted, told = outcome(mtls(san_matchers=(matcher,)), world().client, V12)
    if passes:
        assert (failure, counted, told) == ("", [], "")
        return
    assert failure == VERIFY_FAILED.format("SAN matcher, certificate SANs are [spiffe://mesh/client, client.test]")
    assert counted == [VERIFY_SAN]
    assert "ALERT_CERTIFICATE_UNKNOWN" in told


@pytest.mark.parametrize(
    ("name", "pattern", "matches"),
    [
        ("a.test", "A.TEST", True),
        ("x.w.test", "*.w.test", True),
        ("x.y.w.test", "*.w.test", False),
        ("w.test", "*.w.test", False),
        (".w.test", "*.w.test", False),
        ("baz1.example.net", "baz*.example.net", True),
        ("foobaz.example.net", "*baz.example.net", True),
        ("buzz.example.net", "b*z.example.net", True),
        ("xn--abc.example.net", "xn--*.example.net", False),
        ("www.example.net", "www.*.net", False),
        ("a.b.test", "*.*.test", False),
        ("test", "*", False),
    ],
)
def test_wildcards_stand_for_one_label(name: str, pattern: str, matches: bool) -> None:
    assert dns_name_matches(name, pattern) == matches


def test_pins_need_no_authority() -> None:
    certificate = world().stranger.certificate
    digest = bytes.fromhex(x509.Certificate(world().stranger.der).fingerprint_sha256())
    assert digest == certificate.fingerprint(hashes.SHA256())
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    hashing = hashes.Hash(hashes.SHA256())
    hashing.update(key)
    for pins in ({"hashes": frozenset({digest})}, {"public_key_hashes": frozenset({hashing.finalize()})}):
        context = mtls(trusted_ca=b"", **pins)
        assert pair(context, client(world().stranger))[0].facts.peer_certificate_validated
        failure, counted, told = outcome(context, world().client, V12)
        assert failure == VERIFY_FAILED.format("cert hash and spki")
        assert counted == [VERIFY_HASH]
        assert "ALERT_BAD_CERTIFICATE" in told


# -- a client and its server's certificate


@pytest.mark.parametrize("version", BOTH)
def test_a_client_verifies_its_server(version: ssl.TLSVersion) -> None:
    context = client(validation=validation(), max_version=version)
    assert pair(server(), context)[1].facts.peer_certificate_validated
    one, other = pair(server(world().stranger), context)
    assert (other.failure, other.told.failures) == (VERIFY_FAILED.format(NO_ISSUER), [VERIFY_ERROR])
    assert "UNKNOWN_CA" in one.failure


def test_a_client_expects_the_name_that_it_asked_for() -> None:
    context = client(validation=validation(), expects_server_name=True)
    assert pair(server(), context, "x.w.test")[1].established
    assert pair(server(), context, "other.test")[1].told.failures == [VERIFY_SAN]
    assert pair(server(), client(validation=validation()), "x", expected="a.test")[1].established
    assert pair(server(), client(validation=validation()), "a.test", expected="b.test")[1].told.failures == [VERIFY_SAN]


def test_the_key_usage_of_a_server_must_fit() -> None:
    usage = key_usage(signs=False)
    odd = issue("rsa", world().ca, key=world().rsa_server.key, key_usage=usage)
    for version in BOTH:
        _, other = pair(server(odd), client(validation=validation(), max_version=version))
        assert "268435758:SSL routines:OPENSSL_internal:KEY_USAGE_BIT_INCORRECT" in other.failure
        assert other.told.failures == [CONNECTION_ERROR]
        assert pair(server(world().rsa_server), client(validation=validation(), max_version=version))[1].established
    # where the key decrypts, and never signs:
    plain: dict[str, Any] = {"max_version": V12, "ciphers": ("AES128-GCM-SHA256",)}
    assert pair(server(odd, **plain), client(validation=validation(), **plain))[1].established
    signing = issue("rsa", world().ca, key=world().rsa_server.key, key_usage=key_usage(signs=True))
    assert not pair(server(signing, **plain), client(validation=validation(), **plain))[1].established
    assert pair(server(signing), client(validation=validation()))[1].established


# -- parameters


@pytest.mark.parametrize(
    ("given", "cipher"),
    [
        (("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256"), "ECDHE-ECDSA-AES256-GCM-SHA384"),
        (("ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA",), "ECDHE-ECDSA-AES128-SHA"),
    ],
)
def test_the_servers_order_of_ciphers_counts(given: tuple[str, ...], cipher: str) -> None:
    wishes = client(max_version=V12, ciphers=tuple(reversed(":".join(given).split(":"))))
    assert pair(server(ciphers=given), wishes)[0].facts.cipher == cipher
    one, _ = pair(server(ciphers=given, prefer_client_ciphers=True), wishes)
    assert one.facts.cipher != cipher


def test_among_equals_a_client_without_aes_gets_chacha() -> None:
    group = ("[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",)
    wishes = client(max_version=V12, ciphers=("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-GCM-SHA256"))
    assert pair(server(ciphers=group), wishes)[0].facts.cipher == "ECDHE-ECDSA-CHACHA20-POLY1305"
    wishes = client(max_version=V12, ciphers=("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"))
    assert pair(server(ciphers=group), wishes)[0].facts.cipher == "ECDHE-ECDSA-AES128-GCM-SHA256"


def test_curves_and_signature_algorithms() -> None:
    one, _ = pair(
        server(world().rsa_server, curves=("P-384", "X25519"), max_version=V12), client(curves=("X25519", "P-384"))
    )
    assert one.facts.group == "P-384"
    one, other = pair(server(), client(curves=("P-256",)))
    assert (one.facts.group, other.facts.peer_signature_algorithm) == ("P-256", "ecdsa_secp256r1_sha256")
    one, other = pair(server(world().rsa_server), client(signature_algorithms=("rsa_pss_rsae_sha384",)))
    assert (other.facts.peer_signature_algorithm, one.facts.peer_signature_algorithm) == ("rsa_pss_rsae_sha384", "")


def test_versions() -> None:
    assert pair(server(min_version=V13), client(max_version=V12))[0].failure
    assert pair(server(max_version=V12), client())[0].facts.version == "TLSv1.2"
    legacy: dict[str, Any] = {
        "min_version": ssl.TLSVersion.TLSv1,
        "max_version": ssl.TLSVersion.TLSv1,
        "ciphers": ("ECDHE-ECDSA-AES128-SHA",),
    }
    assert pair(server(**legacy), client(**legacy))[0].facts.version == "TLSv1"


def test_application_protocols_go_by_the_servers_order() -> None:
    one, other = pair(
        server(application_protocols=("h2", "http/1.1")), client(application_protocols=("http/1.1", "h2"))
    )
    assert (one.application_protocol, other.application_protocol) == ("h2", "h2")
    one, other = pair(server(application_protocols=("h2",)), client(application_protocols=("x",)))
    assert (one.established, one.application_protocol) == (True, "")


def test_keys_are_logged_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    pair(server(keylog_path=str(path)), client())
    assert "CLIENT_TRAFFIC_SECRET_0" in path.read_text()


# -- which certificate


def test_a_certificate_is_picked_by_name() -> None:
    names = {
        "first": dns("one.test"),
        "second": dns("two.test", "*.wild.test"),
        "third": dns("two.test", "x.wild.test"),
    }
    first, second, third = (issue(cn, names=given) for cn, given in names.items())
    fourth = issue("plain.test")
    context = server(first, second, third, fourth)
    for name, expected in (
        ("one.test", "first"),
        ("TWO.test", "second"),  # the earlier of two with the same name
        ("y.wild.test", "second"),
        ("x.wild.test", "third"),  # exact before wildcard
        ("y.x.wild.test", "first"),  # one label only
        ("plain.test", "plain.test"),  # the common name, without alternative names
        ("unknown.test", "first"),
        ("", "first"),
    ):
        _, other = pair(context, client(), name)
        assert other.facts.peer.common_name == expected, name


@pytest.mark.parametrize("version", BOTH)
def test_ecdsa_goes_before_rsa_where_the_client_can(version: ssl.TLSVersion) -> None:
    context = server(world().rsa_server, issue("ec", names=dns("a.test")))
    _, other = pair(context, client(max_version=version), "a.test")
    assert other.facts.peer.key_type == "ECDSA"
    wishes: dict[str, Any] = (
        {"signature_algorithms": ("rsa_pss_rsae_sha256",)}
        if version == V13
        else {"ciphers": ("ECDHE-RSA-AES128-GCM-SHA256",)}
    )
    _, other = pair(context, client(max_version=version, **wishes), "a.test")
    assert other.facts.peer.key_type == "RSA"


def test_an_unknown_name_gets_the_first_certificate_or_any_that_fits() -> None:
    certificates = (issue("ec", names=dns("a.test")), world().rsa_server)
    wishes = client(max_version=V12, ciphers=("ECDHE-RSA-AES128-GCM-SHA256",))
    assert "NO_SHARED_CIPHER" in pair(server(*certificates), wishes, "unknown.test")[0].failure
    _, other = pair(server(*certificates, full_scan_on_sni_mismatch=True), wishes, "unknown.test")
    assert other.facts.peer.key_type == "RSA"
    assert pair(server(*certificates), wishes, "")[0].established  # without a name all are looked at


def test_a_hello_that_cannot_be_read_gets_openssls_opinion() -> None:
    context = server(world().server, world().rsa_server)
    for data, reason in (
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP_REQUEST"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "UNEXPECTED_MESSAGE"),
    ):
        one = Socket(context)
        one.take(data)
        assert reason in one.failure


# -- sessions


@pytest.mark.parametrize("version", BOTH)
def test_a_client_resumes(version: ssl.TLSVersion) -> None:
    serving, context = server(), client(max_version=version, validation=validation())
    first, second = resume(serving, context)
    assert (first, second) == (False, True)


def resume(serving: TlsContext, context: TlsContext, name: str = "a.test", other: str = "") -> tuple[bool, bool]:
    """Whether the first and the second of two connections were resumed."""
    found = []
    for asked in (name, other or name):
        one, two = pair(serving, context, asked)
        one.send(b"x")
        converse(one, two)
        assert one.established, one.failure
        found.append(one.facts.resumed)
    return found[0], found[1]


@pytest.mark.parametrize("version", BOTH)
def test_the_name_is_known_of_a_resumed_session(version: ssl.TLSVersion) -> None:
    serving, context = server(), python_client(version=version)
    session, resumed = None, []
    for name in ("a.test", "a.test"):
        ours, peer = Socket(serving), PythonPeer(context, name=name, session=session)
        converse(ours, peer)
        ours.send(b"x")
        converse(ours, peer)
        session = peer.tls.session
        resumed.append(ours.facts.resumed)
        assert ours.facts.server_name == name
    assert resumed == [False, True]


def test_sessions_are_kept_by_name_and_bounded() -> None:
    assert resume(server(), client(max_sessions=5), "a.test", "x.w.test") == (False, False)
    assert resume(server(), client(max_sessions=0)) == (False, False)
    context = client(max_sessions=2)
    for name in ("a", "b", "c"):
        resume(server(), context, name)
    assert len(context._sessions) <= 2


@pytest.mark.parametrize("version", BOTH)
def test_a_server_can_refuse_to_resume(version: ssl.TLSVersion) -> None:
    without = server(tickets=False, session_cache=False)
    assert resume(without, client(max_version=version)) == (False, False)


def test_sessions_of_tls_12_can_be_kept_by_the_server() -> None:
    assert resume(server(tickets=False), client(max_version=V12)) == (False, True)
    assert resume(server(tickets=False), client(max_version=V13)) == (False, False)


@pytest.mark.parametrize("version", BOTH)
def test_ticket_keys_resume_across_contexts_where_the_same_is_demanded(version: ssl.TLSVersion) -> None:
    key = os.urandom(80)
    alike = [server(ticket_keys=(key,), session_id_context=b"x") for _ in range(2)]
    context = client(max_version=version)
    assert tickets_across(alike[0], alike[1], context)


@pytest.mark.parametrize("version", BOTH)
def test_a_session_without_a_certificate_does_not_resume_where_one_is_required(version: ssl.TLSVersion) -> None:
    """Two contexts that share ticket keys: it must be a full handshake, which fails."""
    key = os.urandom(80)
    lax = server(ticket_keys=(key,), session_id_context=b"lax")
    strict = server(
        ticket_keys=(key,), session_id_context=b"strict", require_client_certificate=True, validation=validation()
    )
    assert tickets_across(lax, lax, client(max_version=version))
    assert not tickets_across(lax, strict, client(max_version=version))


@pytest.mark.parametrize("version", BOTH)
def test_a_seed_makes_ticket_keys(version: ssl.TLSVersion) -> None:
    """Of its own for each session id context; keys that are configured go before it."""
    seed, key = os.urandom(32), os.urandom(80)
    context = client(max_version=version)
    one, alike = (server(ticket_seed=seed, session_id_context=b"x") for _ in range(2))
    assert tickets_across(one, alike, context)
    for other in (
        server(ticket_seed=seed, session_id_context=b"y"),
        server(ticket_seed=os.urandom(32), session_id_context=b"x"),
        server(ticket_seed=seed, session_id_context=b"x", ticket_keys=(key,)),
    ):
        assert not tickets_across(one, other, context)


def tickets_across(first: TlsContext, second: TlsContext, context: TlsContext) -> bool:
    """Whether a session made with one context is resumed by the other."""
    one, two = pair(first, context, "a.test")
    one.send(b"x")
    converse(one, two)
    one, two = pair(second, context, "a.test")
    return bool(one.established and one.facts.resumed)


def test_several_ticket_keys_all_decrypt() -> None:
    keys = [os.urandom(80) for _ in range(3)]
    old, rotated = server(ticket_keys=(keys[0],)), server(ticket_keys=(keys[1], keys[0], keys[2]))
    newer = server(ticket_keys=(keys[1],))
    for version in BOTH:
        assert tickets_across(old, rotated, client(max_version=version))
        assert tickets_across(rotated, newer, client(max_version=version))
        assert not tickets_across(rotated, old, client(max_version=version))


def test_the_verification_is_known_of_a_resumed_session() -> None:
    for version in BOTH:
        context, serving = client(world().client, max_version=version), mtls()
        for resumed in (False, True):
            one, two = pair(serving, context, "a.test")
            one.send(b"x")
            converse(one, two)
            assert one.facts.resumed == resumed
            assert (one.facts.peer.common_name, one.facts.peer_certificate_validated) == ("client", True)


# -- bad material


def problems(**more: Any) -> list[tuple[str, str]]:
    with pytest.raises(TlsConfigError) as caught:
        TlsContext(TlsOptions(**({"is_server": True} | more)))
    return caught.value.problems


CERTIFICATE = "common_tls_context.tls_certificates[0]"
PARAMS = "common_tls_context.tls_params"


@pytest.mark.parametrize(
    ("chain", "key", "field", "reason"),
    [
        (None, "other", "private_key", "KEY_VALUES_MISMATCH"),
        (None, "rsa", "private_key", "Failed to load private key from <inline>"),
        (b"nonsense", None, "certificate_chain", "Failed to load certificate chain from <inline>"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", None, "certificate_chain", "malformed"),
        (None, b"nonsense", "private_key", "Failed to load private key from <inline>"),
        ("weak", None, "certificate_chain", "only RSA certificates with 2048-bit or larger keys are supported"),
        ("curve", None, "certificate_chain", "only P-256, P-384 or P-521 ECDSA certificates are supported"),
    ],
)
def test_a_certificate_that_is_no_good(chain: Any, key: Any, field: str, reason: str) -> None:
    made = {
        "weak": lambda: issue("weak", key=rsa.generate_private_key(65537, 1024)).pem,
        "curve": lambda: issue("curve", key=ec.generate_private_key(ec.SECP256K1())).pem,
    }
    pem = made[chain]() if isinstance(chain, str) else chain or world().server.pem
    keys = {"rsa": world().rsa_server.key_pem, "other": world().client.key_pem, None: world().server.key_pem}
    key_pem = keys.get(key, key)
    found = problems(certificates=(identity(world().server, chain=pem, key=key_pem),))
    assert [each[0] for each in found] == [f"{CERTIFICATE}.{field}"]
    assert reason in found[0][1]


def test_an_encrypted_key_needs_its_password() -> None:
    locked = {"key": world().server.encrypted_key_pem(b"secret")}
    TlsContext(TlsOptions(is_server=True, certificates=(identity(world().server, password=b"secret", **locked),)))
    for password in (None, b"wrong"):
        found = problems(certificates=(identity(world().server, password=password, **locked),))
        assert [each[0] for each in found] == [f"{CERTIFICATE}.private_key"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"certificates": ()}, "common_tls_context"),
        ({"ciphers": ("NO-SUCH-CIPHER",)}, f"{PARAMS}.cipher_suites"),
        ({"ciphers": ("[ECDHE-RSA-AES128-SHA|AES128-SHA]",)}, f"{PARAMS}.cipher_suites"),
        ({"ciphers": ("@SECLEVEL=0",)}, f"{PARAMS}.cipher_suites"),
        ({"curves": ("P-255",)}, f"{PARAMS}.ecdh_curves"),
        ({"signature_algorithms": ("nonsense",)}, f"{PARAMS}.signature_algorithms"),
        ({"min_version": V13, "max_version": V12}, f"{PARAMS}.tls_minimum_protocol_version"),
        ({"validation": validation(trusted_ca=b"nonsense")}, "common_tls_context.validation_context.trusted_ca"),
        ({"validation": validation(crl=b"nonsense")}, "common_tls_context.validation_context.crl"),
        ({"ticket_keys": (b"short",)}, "session_ticket_keys.keys[0]"),
        ({"keylog_path": "/no/such/directory/at/all"}, "common_tls_context.key_log.path"),
    ],
)
def test_options_that_are_no_good(given: dict[str, Any], field: str) -> None:
    found = problems(**({"certificates": (identity(world().server),)} | given))
    assert {each[0] for each in found} == {field}


def test_a_client_has_one_certificate() -> None:
    two = (identity(world().client), identity(world().client))
    assert problems(is_server=False, certificates=two)[0][0] == "common_tls_context.tls_certificates"


def test_without_ctypes_what_guards_access_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "AVAILABLE", False)
    given = validation(san_matchers=(san(x509.URI, "a"),), hashes=frozenset({b"x"}))
    found = problems(certificates=(identity(world().server),), validation=given)
    assert {each[0].rpartition(".")[2] for each in found} == {
        "match_typed_subject_alt_names",
        "verify_certificate_hash",
        "trusted_ca",
    }
    assert pair(server(), client(validation=validation()))[1].established  # what ssl does by itself still works


def test_keys_are_in_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = ssl.SSLContext.load_cert_chain

    def watch(self: ssl.SSLContext, chain: str, key: str, password: Any) -> None:
        opened.extend((os.readlink(chain), os.readlink(key)))
        real(self, chain, key, password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watch)
    server()
    assert len(opened) == 2
    assert all(name.startswith("/memfd:") for name in opened)


def test_a_python_client_sees_whom_the_server_asks_for() -> None:
    """The certificate request names the trusted authorities, so that a client can pick."""
    peer = PythonPeer(python_client(world().client, V12))
    ours = Socket(mtls())
    ours.take(peer.take_output())
    name = world().ca.certificate.subject.public_bytes()
    assert name in ours.take_output()


# -- sessions that outlive a certificate


def aging(*, lenient: bool, tickets: bool = True) -> TlsContext:
    """A server that demands certificates, which resumes the tickets of others like it; a `lenient` one lets expired
    ones in."""
    return server(
        require_client_certificate=True,
        validation=validation(ignore_times=lenient),
        ticket_keys=(bytes(range(80)),) if tickets else (),
        session_id_context=b"x",
        tickets=tickets,
    )


@pytest.mark.parametrize("version", BOTH)
def test_a_ticket_is_good_as_long_as_its_client_s_certificate(version: ssl.TLSVersion) -> None:
    """OpenSSL would not look again: who had got in once would stay in, ticket after ticket."""
    for issued, expected in ((world().client, ""), (world().expired, "certificate has expired")):
        context = client(issued, max_version=version)
        assert tickets_across(aging(lenient=True), aging(lenient=True), context)
        resume(aging(lenient=True), context)
        one, _ = pair(aging(lenient=False), context, "a.test")
        assert (one.established, expected in one.failure) == (not expected, True)
        assert expected or one.facts.resumed


def test_a_session_of_the_cache_is_good_as_long_as_its_client_s_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    serving, context = aging(lenient=False, tickets=False), client(world().client, max_version=V12)
    first, second = pair(serving, context), pair(serving, context)  # while they are open, the session is kept
    assert [each.facts.resumed for each, _ in (first, second)] == [False, True]
    monkeypatch.setattr(openssl, "resumed_expired_peer", lambda _: True)
    one, _ = pair(serving, context)
    assert "certificate of the resumed session has expired" in one.failure
    assert one.told.failures == [VERIFY_ERROR]
    assert not one.established


@pytest.mark.parametrize("version", BOTH)
def test_a_client_offers_no_session_of_a_server_whose_certificate_has_expired(version: ssl.TLSVersion) -> None:
    old, fresh = (server(each) for each in (issue("old", world().ca, days=(-9, -1)), world().server))
    lenient = client(validation=validation(ignore_times=True), max_version=version)
    resume(old, lenient)
    (kept,) = lenient._sessions
    strict = client(validation=validation(), max_version=version)
    strict.keep_session(kept[0], kept[1], single_use=kept[2])
    assert strict.take_session(kept[0]) is None
    assert strict._sessions == []
    resume(fresh, strict)
    assert strict.take_session(kept[0]) is not None


def test_sessions_do_not_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each copy that a client makes of a session is freed once."""
    gc.collect()  # those of before
    made: list[int] = []
    freed: list[int] = []
    library = openssl._lib

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def SSL_SESSION_dup(self, session: int) -> int:
            made.append(int(library.SSL_SESSION_dup(session)))
            return made[-1]

        def SSL_SESSION_free(self, session: int) -> None:
            freed.append(session)
            library.SSL_SESSION_free(session)

    monkeypatch.setattr(openssl, "_lib", Counting())
    serving, context = server(), client(max_version=V12)
    for _ in range(3):
        resume(serving, context)
    del context
    gc.collect()
    assert len(made) >= 6
    assert sorted(made) == sorted(freed)
