"""TLS through the whole proxy, the real Envoy and meshproxy on one configuration: what clients, upstreams and the
access log see."""

import base64
import functools
import hashlib
import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.tls import (
    Client,
    TlsChain,
    TlsCluster,
    TlsListener,
    TlsSide,
    Upstream,
    World,
    client_tls,
    server_tls,
    trusts,
)
from tests.support.polling import wait_for
from tests.support.proxy import start_envoy, start_meshproxy
from tests.tls.certificates import dns, issue, uri, world

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
ONE = issue("one", world().ca, names=dns("one.test"))
WILD = issue("wild", world().ca, names=dns("*.wild.test"))
AWKWARD = issue(
    'say "hi", you; \\', world().ca, names=[*uri("spiffe://a=b"), *uri("spiffe://c"), *dns("x.test", "y.test")]
)
NAMELESS = issue("nobody", world().ca)
TRUSTED = trusts(world().ca)
SAN_OK = 'match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "spiffe://mesh/server"}}]'
SAN_BAD = 'match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: "other.test"}}]'
NAMES = {  # of the server's certificate, what is looked for in which
    "dns": "{san_type: DNS, matcher: {exact: a.test}}",
    "dns_wildcard": "{san_type: DNS, matcher: {exact: x.w.test}}",
    "dns_below_wildcard": "{san_type: DNS, matcher: {exact: y.x.w.test}}",
    "dns_suffix": "{san_type: DNS, matcher: {suffix: .test}}",
    "dns_case": "{san_type: DNS, matcher: {exact: A.TEST, ignore_case: true}}",
    "ip": "{san_type: IP_ADDRESS, matcher: {exact: 127.0.0.1}}",
    "ip_v6": "{san_type: IP_ADDRESS, matcher: {exact: '2001:db8::1'}}",
    "ip_prefix": "{san_type: IP_ADDRESS, matcher: {prefix: '127.'}}",
    "ip_other": "{san_type: IP_ADDRESS, matcher: {exact: 127.0.0.2}}",
    "email": "{san_type: EMAIL, matcher: {exact: ops@a.test}}",
    "email_regex": "{san_type: EMAIL, matcher: {safe_regex: {regex: '[a-z]+@a[.]test'}}}",
    "email_regex_part": "{san_type: EMAIL, matcher: {safe_regex: {regex: 'ops'}}}",
    "uri_prefix": "{san_type: URI, matcher: {prefix: 'spiffe://mesh/'}}",
    "uri_contains": "{san_type: URI, matcher: {contains: mesh}}",
    "other_kind": "{san_type: EMAIL, matcher: {suffix: .test}}, {san_type: URI, matcher: {exact: a.test}}",
    "one_of_two": "{san_type: DNS, matcher: {exact: no.test}}, {san_type: URI, matcher: {suffix: server}}",
}
SPKI = world().server.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
PINS = {
    "spki": f"verify_certificate_spki: ['{base64.b64encode(hashlib.sha256(SPKI).digest()).decode()}']",
    "spki_other": f"verify_certificate_spki: ['{base64.b64encode(bytes(32)).decode()}']",
    "hash": f"verify_certificate_hash: ['{hashlib.sha256(world().server.der).hexdigest()}']",
    "either": f"{{verify_certificate_hash: ['{'ab' * 32}'], "
    f"verify_certificate_spki: ['{base64.b64encode(hashlib.sha256(SPKI).digest()).decode()}']}}",
}
AUTHORITY = "TEST_TLS_AUTHORITY"  # an environment variable
PIN = f"verify_certificate_hash: ['{'ab' * 32}']"
CIPHER = "ECDHE-ECDSA-AES256-GCM-SHA384"
REQUIRED = "require_client_certificate: true"
DETAILS = "{subject: true, cert: true, chain: true, dns: true, uri: true}"
MODES = ("SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY")


def xfcc(mode: str, details: str = DETAILS) -> str:
    """YAML of a connection manager's fields."""
    current = f", set_current_client_cert_details: {details}" if details else ""
    return f"{{forward_client_cert_details: {mode}{current}}}"


def to(cluster: str) -> TlsListener:
    """A plain listener before a cluster."""
    return TlsListener({"plain": TlsChain(cluster=cluster)})


LISTENERS = {
    "names": TlsListener(
        {
            "one": TlsChain(server_tls(ONE), "{server_names: [one.test]}"),
            "wild": TlsChain(server_tls(WILD), "{server_names: ['*.wild.test']}"),
            "other": TlsChain(server_tls()),
        },
        inspects=True,
    ),
    "named_only": TlsListener({"one": TlsChain(server_tls(ONE), "{server_names: [one.test]}")}, inspects=True),
    "mixed": TlsListener(
        {
            "tls": TlsChain(server_tls(), "{transport_protocol: tls}"),
            "plain": TlsChain(match="{transport_protocol: raw_buffer}"),
        },
        inspects=True,
    ),
    "many": TlsListener({"many": TlsChain(server_tls(ONE, WILD, world().server))}),
    "ciphers": TlsListener({"ciphers": TlsChain(server_tls(common=f"{{tls_params: {{cipher_suites: [{CIPHER}]}}}}"))}),
    "curves": TlsListener(
        {"curves": TlsChain(server_tls(world().rsa_server, common="{tls_params: {ecdh_curves: [P-384]}}"))}
    ),
    "alpn": TlsListener({"alpn": TlsChain(server_tls(common="{alpn_protocols: [http/1.1]}"))}),
    "v12": TlsListener({"v12": TlsChain(server_tls(common="{tls_params: {tls_maximum_protocol_version: TLSv1_2}}"))}),
    "v13": TlsListener({"v13": TlsChain(server_tls(common="{tls_params: {tls_minimum_protocol_version: TLSv1_3}}"))}),
    "optional": TlsListener({"optional": TlsChain(server_tls(common=TRUSTED))}),
    "required": TlsListener({"required": TlsChain(server_tls(common=TRUSTED, fields=REQUIRED))}),
    "client_pinned": TlsListener({"client_pinned": TlsChain(server_tls(common=trusts(world().ca, PIN)))}),
    "slow": TlsListener({"slow": TlsChain(server_tls(), fields="{transport_socket_connect_timeout: 0.3s}")}),
    "tcp": TlsListener({"tcp": TlsChain(server_tls(), cluster="echo", tcp=True)}),
    **{
        f"xfcc_{mode.lower()}": TlsListener(
            {"tls": TlsChain(server_tls(common=TRUSTED), cluster="plain", manager=xfcc(mode))}
        )
        for mode in MODES
    },
    "xfcc_brief": TlsListener(
        {"tls": TlsChain(server_tls(common=TRUSTED), cluster="plain", manager=xfcc("SANITIZE_SET", ""))}
    ),
    **{
        f"xfcc_plain_{mode.lower()}": TlsListener({"plain": TlsChain(cluster="plain", manager=xfcc(mode))})
        for mode in MODES
    },
    **{
        name: to(name)
        for name in (
            *("plain", "to_tls", "trusted", "good_san", "bad_san", "wrong_ca", "to_plain", "cut", "silent"),
            *("mtls", "mtls_without", "sni", "host_sni", "up_alpn", "too_old", "pinned", "by_environment"),
            *(f"san_{name}" for name in NAMES),
            *(f"pin_{name}" for name in PINS),
        )
    },
}
CLUSTERS = {
    "plain": TlsCluster("plain"),
    "to_tls": TlsCluster("tls", client_tls()),
    "trusted": TlsCluster("tls", client_tls(TRUSTED)),
    "good_san": TlsCluster("tls", client_tls(trusts(world().ca, SAN_OK))),
    "bad_san": TlsCluster("tls", client_tls(trusts(world().ca, SAN_BAD))),
    "wrong_ca": TlsCluster("tls", client_tls(trusts(world().other_ca))),
    "to_plain": TlsCluster("plain", client_tls()),
    "cut": TlsCluster("cut", client_tls()),
    "silent": TlsCluster("silent", client_tls()),
    "mtls": TlsCluster("mtls", client_tls(TRUSTED, issued=world().client)),
    "mtls_without": TlsCluster("mtls", client_tls(TRUSTED)),
    "sni": TlsCluster("tls", client_tls(fields="{sni: up.test}")),
    "host_sni": TlsCluster("tls", client_tls(fields="{auto_host_sni: true}")),
    "up_alpn": TlsCluster("alpn", client_tls("{alpn_protocols: [http/1.1]}")),
    "too_old": TlsCluster(
        "v12",
        client_tls("{tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}}"),
    ),
    "pinned": TlsCluster("tls", client_tls(trusts(world().ca, PIN))),
    "by_environment": TlsCluster(
        "tls", client_tls(f"{{validation_context: {{trusted_ca: {{environment_variable: {AUTHORITY}}}}}}}")
    ),
    **{
        f"san_{name}": TlsCluster("tls", client_tls(trusts(world().ca, f"match_typed_subject_alt_names: [{matchers}]")))
        for name, matchers in NAMES.items()
    },
    **{f"pin_{name}": TlsCluster("tls", client_tls(trusts(world().ca, pins))) for name, pins in PINS.items()},
    "echo": TlsCluster("echo", client_tls(TRUSTED)),
}
UPSTREAMS = {
    "plain": Upstream("plain"),
    "tls": Upstream(),
    "alpn": Upstream(alpn=("http/1.1",)),
    "v12": Upstream(version=V12),
    "mtls": Upstream(client_ca=world().ca, version=V12),
    "cut": Upstream("cut"),
    "silent": Upstream("silent"),
    "echo": Upstream("echo"),
}
WORLD = World(LISTENERS, CLUSTERS, UPSTREAMS)
PROTOCOL_VERSION_ALERT = "\x15\x03\x01\x00\x02\x02F"
FAILED = "failed-handshake-facts"
XFCC_NAMES = "xfcc-names"
SESSION = ("connection.version", "connection.local", "connection.subject", "connection.uri")
CLIENT = Client()
FORWARDED = b"x-forwarded-client-cert: By=spiffe://other;Hash=00\r\n"


@dataclass(frozen=True)
class TlsCase:
    """A client at a listener. With `fails` its handshake does, and the row FAILED of docs/envoy-differences.md holds.
    `differs` names other parts of the outcome: (key of a row, part, ours, Envoy's)."""

    name: str
    listener: str
    client: Client = CLIENT
    fails: bool = False
    differs: tuple[tuple[str, str, str, str], ...] = ()


PLAIN = Client(plain=True)
WITH_CERTIFICATE = Client(certificate=world().client)
CASES = (
    *(
        TlsCase(f"names_{name or 'none'}", "names", Client(server_name=name))
        for name in ("one.test", "x.wild.test", "y.x.wild.test", "wild.test", "unknown.test", "")
    ),
    TlsCase("named_only_known", "named_only", Client(server_name="one.test")),
    TlsCase("named_only_unknown", "named_only", Client(server_name="two.test")),
    TlsCase("mixed_tls", "mixed"),
    TlsCase("mixed_plain", "mixed", PLAIN),
    TlsCase("many_one", "many", Client(server_name="one.test")),
    TlsCase("many_wild", "many", Client(server_name="x.wild.test")),
    TlsCase("many_unknown", "many", Client(server_name="unknown.test")),
    TlsCase("many_no_name", "many", Client(server_name="")),
    TlsCase(
        "many_case",
        "many",
        Client(server_name="X.Wild.TEST", version=V12),
        differs=(
            ("server-name-case", "handshake", "TLSv1.2 alpn=None server=wild", "TLSv1.2 alpn=None server=one"),
            ("server-name-case", "connection.local", "*.wild.test", "one.test"),
        ),
    ),
    TlsCase("cipher", "alpn", Client(shows_cipher=True)),
    TlsCase("ciphers_v12", "ciphers", Client(version=V12, shows_cipher=True)),
    TlsCase("ciphers_v13", "ciphers", Client(version=V13, shows_cipher=True)),
    *(
        TlsCase(
            f"curve_{curve}_{version.name}", "curves", Client(version=version, curve=curve), fails=curve != "secp384r1"
        )
        for version in (V12, V13)
        for curve in ("secp384r1", "prime256v1")
    ),
    *(
        TlsCase(
            f"client_pinned_{version.name}",
            "client_pinned",
            replace(WITH_CERTIFICATE, version=version),
            fails=True,
            differs=(
                ("pin-alert", part, shown % "SSLV3_ALERT_BAD_CERTIFICATE", shown % "TLSV1_BAD_CERTIFICATE_HASH_VALUE"),
            ),
        )
        for version, part, shown in ((V12, "handshake", "%s"), (V13, "answer", "<%s>"))
    ),
    TlsCase("alpn_common", "alpn", Client(alpn=("h2", "http/1.1"))),
    TlsCase("alpn_none", "alpn"),
    TlsCase("alpn_disjoint", "alpn", Client(alpn=("h2", "foo"))),
    *(
        TlsCase(f"{name}_{each.name}", name, Client(version=each), fails=each is not only)
        for name, only in (("v12", V12), ("v13", V13))
        for each in (V12, V13)
    ),
    *(
        TlsCase(
            f"{name}_{who}_{version.name}",
            name,
            Client(certificate=issued, version=version),
            fails=who in ("stranger", "expired") or (name, who) == ("required", "without"),
        )
        for name in ("optional", "required")
        for version in (V12, V13)
        for who, issued in (
            ("without", None),
            ("client", world().client),
            ("stranger", world().stranger),
            ("expired", world().expired),
        )
    ),
    TlsCase("plain_on_tls", "many", PLAIN, fails=True),
    TlsCase(
        "garbage_on_tls",
        "many",
        Client(raw=b"hello, nobody speaks TLS here"),
        fails=True,
        differs=(("alert-to-garbage", "answer", "closed", PROTOCOL_VERSION_ALERT),),
    ),
    TlsCase("end_at_once", "slow", Client(raw_end=True), fails=True),
    TlsCase("handshake_cut", "slow", Client(raw=b"\x16\x03\x01", raw_end=True), fails=True),
    TlsCase("handshake_too_slow", "slow", Client(raw=b"\x16\x03\x01"), fails=True),
    TlsCase("untrusting_client", "alpn", Client(ca=world().other_ca, version=V12), fails=True),
    *(TlsCase(f"upstream_{name}", name, PLAIN) for name in CLUSTERS if name != "echo"),
    TlsCase("tcp_half_close", "tcp", Client(body=b"to and fro", version=V12)),
    *(
        TlsCase(f"xfcc_{mode.lower()}_{who}", f"xfcc_{mode.lower()}", Client(certificate=issued, headers=headers))
        for mode in MODES
        for who, issued, headers in (
            ("client", world().client, FORWARDED),
            ("client_first", world().client, b""),
            ("nobody", None, FORWARDED),
        )
    ),
    TlsCase("xfcc_brief", "xfcc_brief", WITH_CERTIFICATE),
    TlsCase("xfcc_awkward", "xfcc_sanitize_set", Client(certificate=AWKWARD)),
    TlsCase("xfcc_nameless", "xfcc_sanitize_set", Client(certificate=NAMELESS)),
    *(
        TlsCase(f"xfcc_plain_{mode.lower()}", f"xfcc_plain_{mode.lower()}", Client(plain=True, headers=FORWARDED))
        for mode in MODES
    ),
)
assert len({case.name for case in CASES}) == len(CASES)


@pytest.fixture(scope="module")
def sides() -> Iterator[tuple[TlsSide, TlsSide]]:
    """Envoy and the subject."""
    start_subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(AUTHORITY, world().ca.pem.decode())
        with TlsSide(WORLD, start_envoy) as envoy, TlsSide(WORLD, start_subject) as subject:
            yield envoy, subject


@pytest.mark.parametrize("row", CASES, ids=[case.name for case in CASES])
def test_as_envoy(row: TlsCase, sides: tuple[TlsSide, TlsSide]) -> None:
    envoy, subject = (flat(side.run(row.listener, row.client)) for side in sides)
    for _, part, ours, theirs in row.differs:
        assert (envoy.pop(part, None), subject.pop(part, None)) == (theirs, theirs if SUBJECT_IS_ENVOY else ours), part
    for part in SESSION if row.fails else ():
        envoy.pop(part, None)
        if SUBJECT_IS_ENVOY:
            subject.pop(part, None)
    assert subject == envoy


def test_a_name_with_a_comma(sides: tuple[TlsSide, TlsSide]) -> None:
    """The row `xfcc-names` of docs/envoy-differences.md."""
    client = Client(certificate=issue("comma", world().ca, names=uri("spiffe://a/b,URI=spiffe://c")))
    told = [flat(side.run("xfcc_sanitize_set", client))["answer"] for side in sides]
    assert "URI=spiffe://a/b,URI=spiffe://c" in told[0]
    assert ("URI=spiffe://a/b,URI" if SUBJECT_IS_ENVOY else "URI=spiffe://a/b%2CURI=spiffe://c") in told[1]


def flat(found: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """`connection.flags` …"""
    parts: dict[str, str] = {}
    for name, value in found.items():
        if name in ("kind", "listener"):
            continue
        parts |= flat(value, f"{name}.") if isinstance(value, dict) else {prefix + name: value}
    return parts


def test_certs_as_envoy(sides: tuple[TlsSide, TlsSide]) -> None:
    """/certs has the same certificates; Envoy lists its contexts in the order of a hash table."""
    envoy, subject = (sorted(json.dumps(each) for each in certificates(side)) for side in sides)
    assert subject == envoy
    days = [side.proxy.stats("days_until_first_cert_expiring") for side in sides]
    assert days[0] == days[1]


def has_no_connection(side: TlsSide) -> bool:
    return not any(side.proxy.stats("_cx_ssl_active").values())


NOT_OURS = re.compile(r"^http\.admin\.")
"""Of the admin interface's connections."""


def test_stats_as_envoy(sides: tuple[TlsSide, TlsSide]) -> None:
    """What both count of TLS after all of the above; the subject has no other names either."""
    for side in sides:
        wait_for(functools.partial(has_no_connection, side), f"{side.directory}'s connections to end")
    envoy, subject = (side.proxy.stats("ssl") for side in sides)
    expected = {name: value for name, value in envoy.items() if SUBJECT_IS_ENVOY or not NOT_OURS.search(name)}
    assert subject == expected


def certificates(side: TlsSide) -> list[dict[str, Any]]:
    status, text = side.proxy.admin("/certs")
    assert status == 200
    found: list[dict[str, Any]] = json.loads(text)["certificates"]
    return found
