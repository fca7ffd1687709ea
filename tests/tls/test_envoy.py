"""The same peers before the real Envoy and before our transport socket: what is served, refused, known and counted."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509 as cx509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from meshproxy.observe.tls_stats import TlsCounter, TlsStats
from meshproxy.tls.context import TlsContext
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy
from tests.tls.certificates import Issued, dns, issue, key_usage, revocation_list, uri, world
from tests.tls.harness import BOTH, V12, V13, Socket, client, converse, pair, server, validation
from tests.tls.relay import RelayedServer, connect

TYPE = "type.googleapis.com/envoy.extensions."
TLS = TYPE + "transport_sockets.tls.v3."
REQUEST = b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi"
SESSION_OPERATORS = ("TLS_VERSION", "TLS_CIPHER")
PEER_OPERATORS = (
    *("PEER_SUBJECT", "PEER_ISSUER", "PEER_SERIAL", "PEER_FINGERPRINT_256", "PEER_FINGERPRINT_1", "PEER_CERT"),
    *("PEER_CERT_V_START", "PEER_CERT_V_END", "PEER_URI_SAN", "PEER_DNS_SAN", "PEER_IP_SAN", "PEER_EMAIL_SAN"),
    *("LOCAL_SUBJECT", "LOCAL_URI_SAN", "LOCAL_DNS_SAN", "LOCAL_IP_SAN", "LOCAL_EMAIL_SAN"),
)
CHAIN_OPERATORS = ("PEER_CHAIN_FINGERPRINTS_256", "PEER_CHAIN_FINGERPRINTS_1", "PEER_CHAIN_SERIALS")
DOWNSTREAM_OPERATORS = (*SESSION_OPERATORS, *PEER_OPERATORS, *CHAIN_OPERATORS)
FACTS = "\n".join(f"%DOWNSTREAM_{name}%" for name in DOWNSTREAM_OPERATORS)

Yaml = dict[str, Any]


def inline(data: bytes) -> Yaml:
    return {"inline_string": data.decode()}


def certificate(issued: Issued) -> Yaml:
    return {"certificate_chain": inline(issued.pem), "private_key": inline(issued.key_pem)}


def awkward_client() -> Issued:
    """A subject that needs every escape that RFC 2253 has, and names of every kind."""
    subject = cx509.Name(
        [
            cx509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            cx509.NameAttribute(NameOID.ORGANIZATION_NAME, ' #a, "b" + <c>; \\d= '),
            cx509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "#Ünïcödé"),
            cx509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.test"),
            cx509.NameAttribute(NameOID.DOMAIN_COMPONENT, "test"),
            cx509.NameAttribute(NameOID.USER_ID, "me"),
            cx509.NameAttribute(ObjectIdentifier("1.2.3.4.5"), "unknown"),
            cx509.NameAttribute(NameOID.COMMON_NAME, "client\x01"),
        ]
    )
    names = [
        *uri("spiffe://mesh/a,b"),
        *uri("spiffe://mesh/c"),
        *dns("x.test", "*.y.test"),
        cx509.RFC822Name("m@x.test"),
    ]
    return issue("awkward", world().ca, names=names, subject=subject)


class Listener:
    """One of Envoy's, and our context for the same."""

    def __init__(self, name: str, ours: TlsContext, tls: Yaml, *certificates: Issued) -> None:
        self.name = name
        self.ours = ours
        common = {"tls_certificates": [certificate(each) for each in certificates or (world().server,)]}
        common |= tls.pop("common_tls_context", {})
        self.tls = {"@type": TLS + "DownstreamTlsContext", "common_tls_context": common, **tls}

    def envoys(self, logs: Path) -> Yaml:
        failure = "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%\n"
        log = {
            "@type": TYPE + "access_loggers.file.v3.FileAccessLog",
            "path": str(logs / self.name),
            "log_format": {"text_format_source": {"inline_string": failure}},
        }
        return {
            "name": self.name,
            "stat_prefix": self.name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "access_log": [{"name": "log", "typed_config": log}],
            "filter_chains": [
                {
                    "transport_socket": {"name": "tls", "typed_config": self.tls},
                    "filters": [http_manager({"direct_response": {"status": 200, "body": {"inline_string": "ok"}}})],
                }
            ],
        }


def http_manager(action: Yaml) -> Yaml:
    body = {"text_format_source": {"inline_string": FACTS}}
    routes = {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **action}]}]}
    manager = {
        "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "http",
        "route_config": routes,
        "http_filters": [{"name": "router", "typed_config": {"@type": TYPE + "filters.http.router.v3.Router"}}],
    }
    if "direct_response" in action:
        manager["local_reply_config"] = {"body_format": body}
    return {"name": "http", "typed_config": manager}


def ours_mtls(**more: Any) -> TlsContext:
    return server(require_client_certificate=True, validation=validation(**more))


def envoys_mtls(**more: Any) -> Yaml:
    validation = {"trusted_ca": inline(world().ca.pem)} | more
    return {"require_client_certificate": True, "common_tls_context": {"validation_context": validation}}


TRUSTED = {"trusted_ca": inline(world().ca.pem)}
CRL = revocation_list(world().ca, world().revoked)
OTHER_CRL = revocation_list(world().other_ca)
MANY = (
    issue("first", world().ca, names=dns("one.test")),
    issue("second", world().ca, names=dns("two.test", "*.wild.test")),
    issue("third", world().ca, names=dns("two.test", "x.wild.test"), key=world().rsa_server.key),
    issue("fourth.test", world().ca, key=world().rsa_server.key),
    issue("fifth", world().ca, names=dns("rsa.test", "two.test"), key=world().rsa_server.key),
)
LISTENERS = (
    Listener("plain", server(), {}),
    Listener("mtls", ours_mtls(), envoys_mtls()),
    Listener("optional", server(validation=ours_mtls().options.validation), {
        "common_tls_context": {"validation_context": {"trusted_ca": inline(world().ca.pem)}}}),
    Listener("untrusted", ours_mtls(accept_untrusted=True), envoys_mtls(trust_chain_verification="ACCEPT_UNTRUSTED")),
    Listener("crl", ours_mtls(crl=CRL), envoys_mtls(crl=inline(CRL))),
    Listener("stale", ours_mtls(crl=OTHER_CRL), envoys_mtls(crl=inline(OTHER_CRL))),
    Listener("expired", ours_mtls(ignore_times=True), envoys_mtls(allow_expired_certificate=True)),
    Listener("pins", ours_mtls(trusted_ca=b"", hashes=frozenset({b"x" * 32})),
             {"require_client_certificate": True,
              "common_tls_context": {"validation_context": {"verify_certificate_hash": ["78" * 32]}}}),
    Listener("many", server(*MANY), {}, *MANY),
    Listener("scan", server(*MANY, full_scan_on_sni_mismatch=True), {"full_scan_certs_on_sni_mismatch": True}, *MANY),
    Listener("alpn", server(application_protocols=("http/1.1",)),
             {"common_tls_context": {"alpn_protocols": ["http/1.1"]}}),
    Listener("alpn_h2", server(application_protocols=("h2", "http/1.1")),
             {"common_tls_context": {"alpn_protocols": ["h2", "http/1.1"]}}),
)  # fmt: skip
BY_NAME = {each.name: each for each in LISTENERS}


class Envoy:
    """The running one, and what its logs have told so far."""

    def __init__(self, process: ProxyProcess, logs: Path) -> None:
        self.process = process
        self.ports = process.listener_ports()
        self._logs = logs
        self._read: dict[str, int] = {}

    def failure(self, listener: str) -> str:
        """The next line of a listener's log."""
        path = self._logs / listener
        at = self._read.get(listener, 0)
        text = wait_for(lambda: path.exists() and path.read_text()[at:], "a line in the log", 5.0)
        line = str(text).split("\n", 1)[0]
        self._read[listener] = at + len(line) + 1
        return line


@pytest.fixture(scope="module")
def envoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    logs = tmp_path_factory.mktemp("logs")
    bootstrap = {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": [each.envoys(logs) for each in LISTENERS]},
    }
    with start_envoy(yaml.dump(bootstrap)) as process:
        yield Envoy(process, logs)


def before_envoy(envoy: Envoy, listener: str, context: TlsContext, name: str = "") -> tuple[Socket, str]:
    """Our client's connection to Envoy, and why it failed in Envoy's words (`-` for not at all)."""
    sock = connect(envoy.ports[listener], context, REQUEST, name)
    return sock, envoy.failure(listener)


def before_us(listener: str, context: TlsContext, name: str = "") -> tuple[Socket, Socket]:
    """(our server, our client)."""
    one, other = Socket(BY_NAME[listener].ours), Socket(context, name)
    converse(one, other)
    return one, other


CLIENTS = ("none", "client", "stranger", "expired", "revoked")


@pytest.mark.parametrize("version", BOTH, ids=["1.2", "1.3"])
@pytest.mark.parametrize("who", CLIENTS)
@pytest.mark.parametrize("listener", ["plain", "mtls", "optional", "untrusted", "crl", "stale", "expired", "pins"])
def test_who_gets_in_and_why_not(envoy: Envoy, listener: str, who: str, version: ssl.TLSVersion) -> None:
    issued = None if who == "none" else getattr(world(), who)
    theirs, failure = before_envoy(envoy, listener, client(issued, max_version=version))
    ours, _ = before_us(listener, client(issued, max_version=version))
    assert (ours.failure.replace(" ", "_") or "-") == failure
    assert (b"200 OK" in theirs.text) == (not ours.failure)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\x00garbage\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_what_is_no_tls(envoy: Envoy, data: bytes) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", envoy.ports["plain"]), 5.0) as connection:
        connection.sendall(data)
        while connection.recv(4096):
            continue
    ours = Socket(server())
    ours.take(data)
    assert ours.failure.replace(" ", "_") == envoy.failure("plain")


RSA_ONLY = {
    V12: {"ciphers": ("ECDHE-RSA-AES128-GCM-SHA256",)},
    V13: {"signature_algorithms": ("rsa_pss_rsae_sha256",)},
}
ANY_NAME = (
    "one.test",
    "two.test",
    "y.wild.test",
    "x.wild.test",
    "z.y.wild.test",
    "fourth.test",
    "rsa.test",
)


@pytest.mark.parametrize("version", BOTH, ids=["1.2", "1.3"])
@pytest.mark.parametrize("listener", ["many", "scan"])
@pytest.mark.parametrize("name", [*ANY_NAME, "unknown.test", ""])
def test_which_certificate_a_client_gets(envoy: Envoy, listener: str, name: str, version: ssl.TLSVersion) -> None:
    for more in ({}, RSA_ONLY[version]):
        given: dict[str, Any] = {"max_version": version, "min_version": version} | more
        theirs, failure = before_envoy(envoy, listener, client(**given), name)
        _, ours = before_us(listener, client(**given), name)
        subjects = [each.facts.operator("PEER_SUBJECT") if each.established else "" for each in (theirs, ours)]
        assert subjects[0] == subjects[1], (more, failure, ours.failure)


@pytest.mark.parametrize("version", BOTH, ids=["1.2", "1.3"])
def test_whom_a_server_trusts_is_no_part_of_the_chain_that_it_presents(envoy: Envoy, version: ssl.TLSVersion) -> None:
    context = client(world().client, max_version=version)
    theirs, _ = before_envoy(envoy, "mtls", context)
    _, ours = before_us("mtls", context)
    assert ours.facts.peer_chain() == theirs.facts.peer_chain()


@pytest.mark.parametrize("version", BOTH, ids=["1.2", "1.3"])
@pytest.mark.parametrize("who", ["client", "awkward"])
def test_what_is_known_of_a_session(envoy: Envoy, who: str, version: ssl.TLSVersion) -> None:
    issued = awkward_client() if who == "awkward" else world().client
    context = client(issued, max_version=version)
    theirs, _ = before_envoy(envoy, "mtls", context, "a.test")
    ours, _ = before_us("mtls", context, "a.test")
    known = theirs.text.partition(b"\r\n\r\n")[2].decode().split("\n")
    expected = dict(zip(DOWNSTREAM_OPERATORS, known, strict=True))
    found = {name: ours.facts.operator(name) or "-" for name in DOWNSTREAM_OPERATORS}
    if version == V13:
        # Both pick by their own order here: OpenSSL by its server's, BoringSSL by the client's.
        expected.pop("TLS_CIPHER"), found.pop("TLS_CIPHER")
    assert found == expected


@pytest.mark.parametrize("listener", ["alpn", "alpn_h2"])
def test_application_protocols(envoy: Envoy, listener: str) -> None:
    for offered in (("http/1.1",), ("h2",), ("h2", "http/1.1"), ("http/1.1", "h2"), ("x",), ()):
        theirs, failure = before_envoy(envoy, listener, client(application_protocols=offered))
        _, ours = before_us(listener, client(application_protocols=offered))
        assert (theirs.established, theirs.application_protocol) == (ours.established, ours.application_protocol), (
            failure
        )


def test_what_is_counted(envoy: Envoy) -> None:
    """The same connections, and the stats that came of them."""
    before = ssl_stats(envoy, "mtls")
    counter = TlsCounter(TlsStats())
    for issued, version in ((world().client, V12), (world().client, V13), (None, V13), (world().stranger, V12)):
        before_envoy(envoy, "mtls", client(issued, max_version=version, ciphers=("ECDHE-ECDSA-AES128-GCM-SHA256",)))
        sock = Socket(BY_NAME["mtls"].ours)
        sock.tls._events = counter
        converse(sock, Socket(client(issued, max_version=version, ciphers=("ECDHE-ECDSA-AES128-GCM-SHA256",))))
    after = wait_for(lambda: changed(ssl_stats(envoy, "mtls"), before, 4), "the stats", 5.0)
    stats = counter.stats
    ours = {name: getattr(stats, name) for name in stats.COUNTERS} | stats.dynamic
    assert {name: count for name, count in ours.items() if count and "TLS_AES" not in name} == {
        name: count for name, count in after.items() if "TLS_AES" not in name
    }


def changed(now: dict[str, int], before: dict[str, int], connections: int) -> dict[str, int]:
    """What was added; nothing while not all connections are counted."""
    added = {name: count - before.get(name, 0) for name, count in now.items() if count != before.get(name, 0)}
    total = sum(added.get(name, 0) for name in ("handshake", "fail_verify_no_cert", "fail_verify_error"))
    return added if total >= connections else {}


def ssl_stats(envoy: Envoy, listener: str) -> dict[str, int]:
    found = envoy.process.stats(rf"listener\.{listener}\.ssl\.")
    return {re.sub(r"^.*?\.ssl\.", "", name): count for name, count in found.items() if ".certificate." not in name}


# -- Envoy as a client of ours


UPSTREAM = (
    *("TLS_VERSION", "TLS_CIPHER", "PEER_SUBJECT", "PEER_ISSUER", "PEER_CERT", "PEER_CERT_V_START", "PEER_CERT_V_END"),
    *("PEER_URI_SAN", "PEER_DNS_SAN", "PEER_IP_SAN", "LOCAL_URI_SAN", "LOCAL_DNS_SAN", "LOCAL_IP_SAN"),
)


def upstream_config(port: int, tls: Yaml) -> str:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    failure = {"header": {"key": "x-failure", "value": "%UPSTREAM_TRANSPORT_FAILURE_REASON%"}}
    facts = [
        {
            "header": {"key": f"x-{name.lower().replace('_', '-')}", "value": f"%UPSTREAM_{name}%"},
            "keep_empty_value": True,
        }
        for name in UPSTREAM
    ]
    bootstrap = {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [
                {
                    "name": "in",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
                    "filter_chains": [
                        {
                            "filters": [
                                http_manager({"route": {"cluster": "up"}, "response_headers_to_add": [failure, *facts]})
                            ]
                        }
                    ],
                }
            ],
            "clusters": [
                {
                    "name": "up",
                    "load_assignment": {
                        "cluster_name": "up",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                    "transport_socket": {
                        "name": "tls",
                        "typed_config": {"@type": TLS + "UpstreamTlsContext", **tls},
                    },
                }
            ],
        },
    }
    return yaml.dump(bootstrap)


def answer(received: bytes) -> bytes:
    """One response for each request; the relay asks after every read."""
    return RESPONSE if received.endswith(b"\r\n\r\n") else b""


def get(port: int) -> bytes:
    import socket

    with socket.create_connection(("127.0.0.1", port), 5.0) as connection:
        connection.sendall(REQUEST)
        received = b""
        while data := connection.recv(65536):
            received += data
    return received


@pytest.fixture
def ours_upstream() -> Iterator[Callable[[TlsContext, Yaml], tuple[RelayedServer, ProxyProcess]]]:
    with ExitStack() as stack:

        def start(context: TlsContext, tls: Yaml) -> tuple[RelayedServer, ProxyProcess]:
            relay = stack.enter_context(RelayedServer(context, answer))
            return relay, stack.enter_context(start_envoy(upstream_config(relay.port, tls)))

        yield start


def test_envoy_as_our_client(ours_upstream: Callable[[TlsContext, Yaml], tuple[RelayedServer, ProxyProcess]]) -> None:
    """mTLS both ways, with what each side knows of the other; the second connection resumes the first one's session."""
    tls = {
        "sni": "a.test",
        "common_tls_context": {
            "tls_certificates": [certificate(world().client)],
            "validation_context": {
                "trusted_ca": inline(world().ca.pem),
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://mesh/"}}],
            },
        },
    }
    relay, envoy = ours_upstream(ours_mtls(), tls)
    for turn in range(2):
        received = get(envoy.listener_ports()["in"]).decode()
        assert received.startswith("HTTP/1.1 200")
        head = received.partition("\r\n\r\n")[0]
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        _, ours = before_us("mtls", client(world().client, max_version=V12), "a.test")  # Envoy's default
        for name in UPSTREAM:
            if name != "TLS_CIPHER":
                assert headers.get(f"x-{name.lower().replace('_', '-')}", "") == (ours.facts.operator(name) or ""), name
        relay.join()
        facts = relay.sockets[turn].facts
        assert facts.server_name == "a.test"
        assert facts.peer.subject == "CN=client,O=Acme\\, Inc"
        assert facts.peer_certificate_validated
    assert [sock.facts.resumed for sock in relay.sockets] == [False, True]


def test_envoy_refuses_us_and_we_hear_why(
    ours_upstream: Callable[[TlsContext, Yaml], tuple[RelayedServer, ProxyProcess]],
) -> None:
    validation = {"validation_context": {"trusted_ca": inline(world().other_ca.pem)}}
    relay, envoy = ours_upstream(server(), {"common_tls_context": validation})
    assert get(envoy.listener_ports()["in"]).startswith(b"HTTP/1.1 503")
    relay.join()
    assert "ALERT_UNKNOWN_CA" in relay.socket.failure


def test_envoy_and_we_judge_the_key_usage_alike(
    ours_upstream: Callable[[TlsContext, Yaml], tuple[RelayedServer, ProxyProcess]],
) -> None:
    odd = issue("rsa", world().ca, key=world().rsa_server.key, key_usage=key_usage(signs=False))
    _, envoy = ours_upstream(server(odd), {"common_tls_context": {"validation_context": TRUSTED}})
    head = get(envoy.listener_ports()["in"]).decode()
    _, ours = pair(server(odd), client(validation=validation(), max_version=V12))
    assert f"x-failure: {ours.failure.replace(' ', '_')}" in head
