"""One table of policies and of those who ask: the real Envoy and we let in whom the policies mean, by what Istio says
of them, over HTTP and over TCP, in plaintext and with certificates."""

from __future__ import annotations

import json
import socket
import ssl
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.echo.v3.echo_pb2 import Echo
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf.json_format import MessageToJson, ParseDict

from meshproxy.pilot.mesh.model import MeshConfig
from meshproxy.pilot.resources.authorization import Authorization, authorization
from meshproxy.pilot.resources.http_manager import manager_filter
from meshproxy.pilot.resources.listeners import TLS_INSPECTOR
from meshproxy.pilot.resources.messages import address, pack
from tests.differential.tls import load, server_tls, trusts
from tests.differential.topic import ROUTER
from tests.pilot.processes import DEADLINE_S
from tests.pilot.resources.support import mesh_of
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.wire import WireReader
from tests.tls.certificates import Issued, issue, uri, world

CONFIG = MeshConfig(trust_domain="mesh.example", trust_domain_aliases=("old.example",))
WEB, JOB, OTHER = "mesh.example/ns/shop/sa/web", "mesh.example/ns/shop/sa/job", "mesh.example/ns/other/sa/web"
OLD, FOREIGN = "old.example/ns/shop/sa/web", "foreign.example/ns/shop/sa/web"
HELLO = b"hello\n"


@dataclass(frozen=True)
class Ask:
    """Who asks for what. `caller`: an identity; "" for plaintext, "-" for TLS without a certificate. `tcp`: to a port
    where nobody reads requests."""

    caller: str = ""
    method: str = "GET"
    path: str = "/"
    host: str = "a.example"
    headers: tuple[tuple[str, str], ...] = ()
    source: str = "127.0.0.1"
    sni: str = "a.example"
    tcp: bool = False


def tcp(caller: str = "", **fields: Any) -> Ask:
    return Ask(caller, tcp=True, **fields)


def header(*headers: tuple[str, str], caller: str = "") -> Ask:
    return Ask(caller, headers=headers)


# By name: the policies, whom they let in, whom they do not.
TABLE: dict[str, tuple[str, list[Ask], list[Ask]]] = {
    "none": ("", [Ask(), Ask(WEB), tcp(), tcp(WEB)], []),
    "allow-nothing": ("{}", [], [Ask(), Ask(WEB), tcp(), tcp(WEB)]),
    "allow-all": ("rules: [{}]", [Ask(), Ask(WEB), tcp(), tcp(WEB)], []),
    "deny-all": ("action: DENY\nrules: [{}]", [], [Ask(), Ask(WEB), tcp(), tcp(WEB)]),
    "audit-all": ("action: AUDIT\nrules: [{}]", [Ask(), Ask(WEB), tcp(), tcp(WEB)], []),
    "deny-before-allow": (
        """
        rules: [{}]
        ---
        action: DENY
        rules: [{to: [{operation: {methods: [POST]}}]}]
        """,
        [Ask(), Ask(WEB)],
        [Ask(method="POST"), Ask(WEB, method="POST"), tcp()],
    ),
    "any-of-several-allows": (
        """
        rules: [{to: [{operation: {paths: [/a]}}]}]
        ---
        rules: [{to: [{operation: {paths: [/b]}}]}, {to: [{operation: {paths: [/c]}}]}]
        """,
        [Ask(path="/a"), Ask(path="/b"), Ask(path="/c")],
        [Ask(path="/d"), tcp()],
    ),
    "principals": (
        f"rules: [{{from: [{{source: {{principals: [{WEB}]}}}}]}}]",
        [Ask(WEB), Ask(OLD), tcp(WEB), tcp(OLD)],
        [Ask(), Ask("-"), Ask(JOB), Ask(OTHER), Ask(FOREIGN), tcp(), tcp("-"), tcp(JOB), tcp(FOREIGN)],
    ),
    "principals-of-the-local-domain": (
        "rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]",
        [Ask(WEB), Ask(OLD)],
        [Ask(JOB), Ask(FOREIGN), Ask("-")],
    ),
    "principals-by-their-beginning": (
        "rules: [{from: [{source: {principals: ['mesh.example/ns/shop/*']}}]}]",
        [Ask(WEB), Ask(JOB), Ask(OLD)],
        [Ask(OTHER), Ask(FOREIGN), Ask()],
    ),
    "principals-by-their-end": (
        "rules: [{from: [{source: {principals: ['*/sa/web']}}]}]",
        [Ask(WEB), Ask(OTHER), Ask(FOREIGN)],
        [Ask(JOB), Ask(), Ask("-")],
    ),
    "any-principal": (
        "rules: [{from: [{source: {principals: ['*']}}]}]",
        [Ask(WEB), Ask(FOREIGN), tcp(JOB)],
        [Ask(), Ask("-"), tcp(), tcp("-")],
    ),
    "deny-other-principals": (
        f"action: DENY\nrules: [{{from: [{{source: {{notPrincipals: [{WEB}]}}}}]}}]",
        [Ask(WEB), Ask(OLD), tcp(WEB)],
        [Ask(), Ask("-"), Ask(JOB), Ask(FOREIGN), tcp(), tcp(JOB)],
    ),
    "namespaces": (
        "rules: [{from: [{source: {namespaces: [shop]}}]}]",
        [Ask(WEB), Ask(JOB), tcp(WEB)],
        [Ask(), Ask(OTHER), tcp(OTHER), tcp()],
    ),
    "namespaces-by-their-end": (
        "rules: [{from: [{source: {namespaces: ['*op']}}]}]",
        [Ask(WEB)],
        [Ask(OTHER), Ask()],
    ),
    "deny-other-namespaces": (
        "action: DENY\nrules: [{from: [{source: {notNamespaces: [shop]}}]}]",
        [Ask(WEB)],
        [Ask(OTHER), Ask(), tcp(OTHER)],
    ),
    "service-accounts": (
        "rules: [{from: [{source: {serviceAccounts: [other/web, job]}}]}]",
        [Ask(OTHER), Ask(JOB), tcp(JOB)],
        [Ask(WEB), Ask(), tcp(WEB)],
    ),
    "deny-a-service-account": (
        "action: DENY\nrules: [{from: [{source: {serviceAccounts: [web]}}]}]",
        [Ask(JOB), Ask(OTHER), Ask()],
        [Ask(WEB), tcp(OLD)],
    ),
    "ip-blocks": (
        "rules: [{from: [{source: {ipBlocks: [127.0.0.2/31], notIpBlocks: [127.0.0.3]}}]}]",
        [Ask(source="127.0.0.2"), tcp(source="127.0.0.2")],
        [Ask(), Ask(source="127.0.0.3"), tcp(), tcp(source="127.0.0.3")],
    ),
    "remote-ip-blocks": (
        "rules: [{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}]",
        [header(("x-forwarded-for", "203.0.113.9"))],
        [Ask(), header(("x-forwarded-for", "203.0.114.9")), tcp()],
    ),
    "one-of-several-sources": (
        f"rules: [{{from: [{{source: {{principals: [{WEB}]}}}}, {{source: {{ipBlocks: [127.0.0.2]}}}}]}}]",
        [Ask(WEB), Ask(source="127.0.0.2")],
        [Ask(JOB), Ask()],
    ),
    "all-of-one-source": (
        f"rules: [{{from: [{{source: {{principals: [{WEB}], ipBlocks: [127.0.0.2]}}}}]}}]",
        [Ask(WEB, source="127.0.0.2")],
        [Ask(WEB), Ask(source="127.0.0.2"), Ask(JOB, source="127.0.0.2")],
    ),
    "hosts": (
        "rules: [{to: [{operation: {hosts: [a.example, '*.b.example', 'c.*'], notHosts: [bad.b.example]}}]}]",
        [Ask(), Ask(host="A.Example"), Ask(host="x.b.example"), Ask(host="c.anything")],
        [Ask(host="a.example:80"), Ask(host="b.example"), Ask(host="bad.b.example"), tcp()],
    ),
    "hosts-with-ports": (
        "action: DENY\nrules: [{to: [{operation: {hosts: [a.example, 'a.example:*']}}]}]",
        [Ask(host="b.example")],
        [Ask(), Ask(host="a.example:80"), Ask(host="A.EXAMPLE:1"), tcp()],
    ),
    "methods": (
        "rules: [{to: [{operation: {methods: [GET, 'P*']}}]}]",
        [Ask(), Ask(method="POST"), Ask(method="PUT")],
        [Ask(method="DELETE"), tcp()],
    ),
    "paths": (
        "rules: [{to: [{operation: {paths: [/a, '/b/*', '*.html'], notPaths: [/b/no]}}]}]",
        [Ask(path="/a"), Ask(path="/a?q=/x"), Ask(path="/b/"), Ask(path="/b/x/y"), Ask(path="/x/i.html?a")],
        [Ask(path="/a/"), Ask(path="/b"), Ask(path="/b/no"), Ask(path="/A"), Ask(path="/?/a"), tcp()],
    ),
    "path-templates": (
        "rules: [{to: [{operation: {paths: ['/a/{*}', '/b/{*}/c/{**}']}}]}]",
        [Ask(path="/a/x"), Ask(path="/b/x/c/"), Ask(path="/b/x/c/y"), Ask(path="/b/x/c/y/z")],
        [Ask(path="/a"), Ask(path="/a/x/y"), Ask(path="/b/x/y/c/z"), Ask(path="/b/x/c"), tcp()],
    ),
    "any-path": ("rules: [{to: [{operation: {paths: ['*']}}]}]", [Ask(), Ask(path="/x")], [tcp()]),
    "another-port": ("rules: [{to: [{operation: {ports: ['1']}}]}]", [], [Ask(), Ask(WEB), tcp()]),
    "deny-other-ports": ("action: DENY\nrules: [{to: [{operation: {notPorts: ['1']}}]}]", [], [Ask(), tcp()]),
    "deny-another-port": ("action: DENY\nrules: [{to: [{operation: {ports: ['1']}}]}]", [Ask(), tcp()], []),
    "deny-a-path": (
        "action: DENY\nrules: [{to: [{operation: {paths: [/admin]}}]}]",
        [Ask(), Ask(path="/adminx")],
        [Ask(path="/admin"), Ask(WEB, path="/admin?x"), tcp(), tcp(WEB)],
    ),
    "deny-a-path-to-others": (
        f"""
        action: DENY
        rules: [{{from: [{{source: {{notPrincipals: [{WEB}]}}}}], to: [{{operation: {{paths: [/x]}}}}]}}]
        """,
        [Ask(WEB, path="/x"), Ask(JOB), Ask(), tcp(WEB)],
        [Ask(JOB, path="/x"), Ask(path="/x"), tcp(JOB), tcp()],
    ),
    "all-of-one-operation": (
        "rules: [{to: [{operation: {methods: [GET], paths: [/a]}}, {operation: {methods: [POST], paths: [/b]}}]}]",
        [Ask(path="/a"), Ask(method="POST", path="/b")],
        [Ask(path="/b"), Ask(method="POST", path="/a")],
    ),
    "headers": (
        """
        rules:
        - when:
          - {key: 'request.headers[x-tenant]', values: [gold, 'sil*', '*ze'], notValues: [silly]}
        """,
        [header(("x-tenant", "gold")), header(("x-tenant", "silver")), header(("x-tenant", "bronze"))],
        [Ask(), header(("x-tenant", "Gold")), header(("x-tenant", "silly")), header(("x-tenant", "tin")), tcp()],
    ),
    "any-header": (
        "rules: [{when: [{key: 'request.headers[x-any]', values: ['*']}]}]",
        [header(("x-any", "1")), header(("x-any", ""))],
        [Ask(), tcp()],
    ),
    "deny-without-a-header": (
        "action: DENY\nrules: [{when: [{key: 'request.headers[x-any]', notValues: ['*']}]}]",
        [header(("x-any", "1"))],
        [Ask(), tcp()],
    ),
    "all-conditions": (
        """
        rules:
        - when:
          - {key: source.principal, values: ['*/sa/web']}
          - {key: source.namespace, notValues: [other]}
          - {key: 'request.headers[x-a]', values: [b]}
        """,
        [header(("x-a", "b"), caller=WEB)],
        [Ask(WEB), header(("x-a", "b"), caller=OTHER), header(("x-a", "b"), caller=JOB), header(("x-a", "b"))],
    ),
    "addresses": (
        """
        rules:
        - when:
          - {key: source.ip, values: [127.0.0.0/8]}
          - {key: remote.ip, notValues: [203.0.113.9]}
          - {key: destination.ip, values: [127.0.0.1]}
          - {key: destination.port, notValues: ['1']}
        """,
        [Ask(), tcp(), Ask(source="127.0.0.2")],
        [header(("x-forwarded-for", "203.0.113.9"))],
    ),
    "another-destination": ("rules: [{when: [{key: destination.ip, values: [127.0.0.9]}]}]", [], [Ask(), tcp()]),
    "accounts-as-a-condition": (
        "rules: [{when: [{key: source.serviceAccount, values: [web], notValues: [job]}]}]",
        [Ask(WEB), tcp(OLD)],
        [Ask(JOB), Ask(OTHER), Ask()],
    ),
    "server-names": (
        "rules: [{when: [{key: connection.sni, values: ['*.example'], notValues: [b.example]}]}]",
        [Ask("-"), Ask(WEB), tcp("-")],
        [Ask(), Ask("-", sni="b.example"), Ask("-", sni="a.test"), tcp(), tcp("-", sni="b.example")],
    ),
    "metadata-of-filters": (
        "rules: [{when: [{key: 'experimental.envoy.filters.http.x[k]', values: [v, '[w]']}]}]",
        [],
        [Ask(), tcp()],
    ),
    "tokens": (
        "rules: [{from: [{source: {requestPrincipals: ['*']}}]}, {when: [{key: request.auth.presenter, values: [a]}]}]",
        [],
        [Ask(), Ask(WEB), header(("authorization", "Bearer a.b.c")), tcp()],
    ),
    "deny-without-a-token": (
        "action: DENY\nrules: [{from: [{source: {notRequestPrincipals: ['*']}}]}]",
        [],
        [Ask(), Ask(WEB), header(("authorization", "Bearer a.b.c")), tcp()],
    ),
    "claims": (
        "rules: [{when: [{key: 'request.auth.claims[a][b]', notValues: [c]}]}]",
        [Ask(), Ask(WEB)],
        [tcp()],
    ),
    "dry-run-denial": ("@dry-run\naction: DENY\nrules: [{}]", [Ask(), tcp()], []),
    "dry-run-permission": ("@dry-run\nrules: []", [Ask(), tcp()], []),
    "dry-run-beside": (
        "@dry-run\naction: DENY\nrules: [{}]\n---\naction: DENY\nrules: [{to: [{operation: {paths: [/a]}}]}]",
        [Ask()],
        [Ask(path="/a"), tcp()],
    ),
}
ROWS = [
    pytest.param(name, ask, allowed, id=f"{name}-{'in' if allowed else 'out'}-{number}")
    for name, (_, inside, outside) in TABLE.items()
    for allowed, asks in ((True, inside), (False, outside))
    for number, ask in enumerate(asks)
]


def filters_of(specs: str) -> Authorization:
    """Of policies whose specs are given; `@dry-run` marks one."""
    parts = textwrap.dedent(specs).split("---\n") if specs else []
    texts = []
    for number, spec in enumerate(parts):
        dry_run = ', annotations: {istio.io/dry-run: "true"}' if "@dry-run\n" in spec else ""
        body = "\n".join(f"  {line}" for line in spec.replace("@dry-run\n", "").strip().splitlines())
        head = f"metadata: {{name: p{number}, namespace: shop{dry_run}}}\nspec:\n{body}\n"
        texts.append(f"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n{head}")
    mesh = mesh_of("---\n".join(texts), CONFIG)
    return authorization(mesh.authorization_policies("shop", {}), CONFIG.trust_domains)


def requests_chain(made: Authorization) -> list[Filter]:
    routes = {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [ROUTE]}]}
    message = ParseDict({"stat_prefix": "x", "route_config": routes, "http_filters": [ROUTER]}, HttpConnectionManager())
    router = message.http_filters[0]
    del message.http_filters[:]
    message.http_filters.extend([*made.http, router])
    return [manager_filter(message)]


ROUTE = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}


def listener(name: str, filters: list[Filter]) -> Listener:
    """TLS and plaintext on one port, as where mutual TLS is PERMISSIVE."""
    message = Listener(name=name, address=address("127.0.0.1", 0), listener_filters=[TLS_INSPECTOR])
    for transport in ("tls", "raw_buffer"):
        chain = FilterChain(name=transport, filters=filters)
        chain.filter_chain_match.transport_protocol = transport
        if transport == "tls":
            ParseDict(server_tls(world().server, common=trusts(world().ca)), chain.transport_socket)
        message.filter_chains.append(chain)
    return message


def bootstrap() -> str:
    message = Bootstrap()
    message.admin.address.CopyFrom(address("127.0.0.1", 0))
    for name, (specs, _, _) in TABLE.items():
        made = filters_of(specs)
        echo = Filter(name="envoy.filters.network.echo", typed_config=pack(Echo()))
        message.static_resources.listeners.append(listener(f"{name}-http", requests_chain(made)))
        message.static_resources.listeners.append(listener(f"{name}-tcp", [*made.network, echo]))
    return json.dumps(json.loads(MessageToJson(message, preserving_proto_field_name=True)))


class Sides:
    """Both data planes on one configuration, and the callers' certificates."""

    def __init__(self, stack: ExitStack) -> None:
        text = bootstrap()
        self.proxies: dict[str, ProxyProcess] = {
            name: stack.enter_context(start(text))
            for name, start in (("envoy", start_envoy), ("meshproxy", start_meshproxy))
        }
        self.ports = {name: proxy.listener_ports() for name, proxy in self.proxies.items()}
        self._certificates: dict[str, Issued] = {}

    def certificate(self, caller: str) -> Issued:
        if caller not in self._certificates:
            self._certificates[caller] = issue("caller", world().ca, names=uri(f"spiffe://{caller}"))
        return self._certificates[caller]

    def lets_in(self, side: str, policies: str, ask: Ask) -> bool:
        port = self.ports[side][f"{policies}-{'tcp' if ask.tcp else 'http'}"]
        with self._connect(port, ask) as sock:
            if ask.tcp:
                return is_echoed(sock)
            headers = "".join(f"{name}: {value}\r\n" for name, value in ask.headers)
            head = f"{ask.method} {ask.path} HTTP/1.1\r\nhost: {ask.host}\r\n{headers}content-length: 0\r\n\r\n"
            sock.sendall(head.encode())
            reader = WireReader(sock)
            answer = reader.read_head()
            reader.read_body(answer, to_end=True)
        assert answer.status in (200, 403), answer
        assert answer.status == 200 or answer.body == b"RBAC: access denied"
        return answer.status == 200

    def _connect(self, port: int, ask: Ask) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", port), DEADLINE_S, (ask.source, 0))
        if not ask.caller:
            return sock
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=world().ca.pem.decode())
        if ask.caller != "-":
            load(context, self.certificate(ask.caller))
        return context.wrap_socket(sock, server_hostname=ask.sni)


def is_echoed(sock: socket.socket) -> bool:
    """Whether the other side takes what is sent; it ends the connection where it does not."""
    sock.sendall(HELLO)
    got = b""
    try:
        while len(got) < len(HELLO):
            data = sock.recv(len(HELLO) - len(got))
            if not data:
                return False
            got += data
    except ConnectionError:
        return False
    assert got == HELLO
    return True


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    with ExitStack() as stack:
        yield Sides(stack)


@pytest.mark.parametrize(("policies", "ask", "allowed"), ROWS)
def test_both_let_in_whom_the_policies_mean(sides: Sides, policies: str, ask: Ask, allowed: bool) -> None:
    assert {side: sides.lets_in(side, policies, ask) for side in sides.proxies} == dict.fromkeys(sides.proxies, allowed)


def test_what_they_do_is_counted_under_the_names_that_istio_gave(sides: Sides) -> None:
    for side, proxy in sides.proxies.items():
        assert sides.lets_in(side, "dry-run-denial", Ask())
        assert not sides.lets_in(side, "deny-all", tcp())
        stats = proxy.stats(r"rbac")
        assert stats["http.x.rbac.istio_dry_run_deny_.shadow_denied"] >= 1, stats
        assert stats["tcp.rbac.denied"] >= 1, stats
