"""Who may do what, in the whole proxy: identities of mutual TLS in rules, routes, filters and logs; rules that change;
rules of a control plane that we cannot do."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener

from meshproxy.config.subscription import LISTENER_TYPE, ROUTE_TYPE
from tests.integration.config import Json, bootstrap, cluster, direct, listener, tcp_listener
from tests.integration.dynamic import ads_bootstrap, message, rds_listener, route_configuration
from tests.integration.load import EchoUpstream
from tests.integration.proxy import Proxy, eventually
from tests.integration.test_control_plane import get
from tests.support.control_plane import ControlPlane
from tests.tls.certificates import Issued, issue, uri, world
from tests.tls.harness import python_client

_FILTERS = "type.googleapis.com/envoy.extensions.filters."
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_FILE_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
REQUEST = b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n"
FOREIGN = issue("foreign", world().ca, names=uri("spiffe://elsewhere/client"))
ANY: Json = {"any": True}
OF_THE_MESH: Json = {"authenticated": {"principal_name": {"prefix": "spiffe://mesh/"}}}
VALIDATED: Json = {
    "custom": {
        "name": "envoy.rbac.principals.mtls_authenticated",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.rbac.principals.mtls_authenticated.v3.Config",
            "any_validated_client_certificate": True,
        },
    }
}
_TELLS = """
from meshproxy import HttpFilter

class Tells(HttpFilter):
    def on_response_headers(self, stream, headers, end):
        headers[b"x-peer"] = ",".join(stream.info.connection.peer_uris).encode()
"""


def rules(action: str = "ALLOW", permission: Json = ANY, principal: Json = ANY) -> Json:
    return {"action": action, "policies": {"p": {"permissions": [permission], "principals": [principal]}}}


def rbac(**fields: Any) -> Json:
    return {"name": "rbac", "typed_config": {"@type": _FILTERS + "http.rbac.v3.RBAC"} | fields}


def on_route(route: Json, **fields: Any) -> Json:
    config = {"@type": _FILTERS + "http.rbac.v3.RBACPerRoute", "rbac": fields}
    return route | {"typed_per_filter_config": {"rbac": config}}


def secured(made: Json, *, required: bool = True) -> Json:
    """With a certificate, and clients verified."""
    ca, server = world().ca, world().server
    common = {
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": server.pem.decode()},
                "private_key": {"inline_string": server.key_pem.decode()},
            }
        ],
        "validation_context": {"trusted_ca": {"inline_string": ca.pem.decode()}},
    }
    config = {"@type": _TLS, "common_tls_context": common, "require_client_certificate": required}
    made["filter_chains"][0]["transport_socket"] = {"name": "tls", "typed_config": config}
    return made


async def ask(port: int, certificate: Issued | None, *, whole: bool = True) -> bytes:
    """All that comes back, over TLS; or the first line of it."""
    context: ssl.SSLContext = python_client(certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(REQUEST)
    try:
        async with asyncio.timeout(20):
            return await (reader.read() if whole else reader.readline())
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_the_identity_of_a_peer_reaches_rules_routes_filters_and_logs(tmp_path: Path) -> None:
    (tmp_path / "tells.py").write_text(_TELLS)
    log = tmp_path / "access.log"
    told = {"peer": "%DOWNSTREAM_PEER_URI_SAN%", "details": "%RESPONSE_CODE_DETAILS%"}
    access_log = {"@type": _FILE_LOG, "path": str(log), "log_format": {"json_format": told}}
    python = {
        "@type": "type.googleapis.com/meshproxy.filters.http.python.v1.Python",
        "file": str(tmp_path / "tells.py"),
    }
    validated = direct("/", "validated") | {"match": {"prefix": "/", "tls_context": {"validated": True}}}
    made = listener(
        "main",
        [validated, direct("/", "somebody")],
        filters=[{"name": "tells", "typed_config": python}, rbac(rules=rules(principal=OF_THE_MESH))],
        manager={"access_log": [{"name": "file", "typed_config": access_log}]},
    )
    async with Proxy(bootstrap([secured(made, required=False)])) as proxy:
        port = proxy.ports["main"]
        mine = await ask(port, world().client)
        assert mine.startswith(b"HTTP/1.1 200 ")
        assert mine.endswith(b"\r\n\r\nvalidated")
        assert b"\r\nx-peer: spiffe://mesh/client\r\n" in mine
        for other, shown in ((FOREIGN, b"spiffe://elsewhere/client"), (None, b"")):
            answer = await ask(port, other)
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert answer.endswith(b"\r\n\r\nRBAC: access denied")
            assert b"\r\nx-peer: %s\r\n" % shown in answer
        lines = await eventually(lambda: _lines(log, 3), "the log")
        assert [(line["peer"], line["details"]) for line in lines] == [
            ("spiffe://mesh/client", "direct_response"),
            ("spiffe://elsewhere/client", "rbac_access_denied_matched_policy[none]"),
            (None, "rbac_access_denied_matched_policy[none]"),
        ]
        assert await proxy.stat("http.main.rbac.allowed") == 1
        assert await proxy.stat("http.main.rbac.denied") == 2


def _lines(log: Path, count: int) -> list[Json]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines] if len(lines) >= count else []


@pytest.fixture
async def upstream() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("up") as server:
        yield server


async def test_connections_of_others_do_not_reach_the_server(upstream: EchoUpstream) -> None:
    made = secured(tcp_listener("raw", "up"))
    config = {"@type": _FILTERS + "network.rbac.v3.RBAC", "stat_prefix": "raw", "rules": rules(principal=OF_THE_MESH)}
    made["filter_chains"][0]["filters"].insert(0, {"name": "rbac", "typed_config": config})
    async with Proxy(bootstrap([made], [cluster("up", upstream.port)])) as proxy:
        assert (await ask(proxy.ports["raw"], world().client, whole=False)).startswith(b"HTTP/1.1 200 ")
        assert await ask(proxy.ports["raw"], FOREIGN, whole=False) == b""
        assert await proxy.stat("raw.rbac.allowed") == 1
        assert await proxy.stat("raw.rbac.denied") == 1


# -- rules of a control plane


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.start() as plane:
        yield plane


DENIES = rbac(rules=rules("DENY"))
CONDITION: Json = {"expr": {"const_expr": {"bool_value": True}}}


def with_condition() -> Json:
    made = rules("DENY")
    made["policies"]["p"]["checked_condition"] = CONDITION
    return made


BAD: dict[str, Json] = {
    "checked_condition": rbac(rules=with_condition()),
    "matcher": rbac(matcher={"on_no_match": {"matcher": {"matcher_list": {"matchers": []}}}}),
    "source_ip": rbac(rules=rules(principal={"source_ip": {"address_prefix": "nowhere"}})),
    "custom": rbac(rules=rules(permission={"url_path": {"path": {"custom": {"name": "x"}}}})),
}


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.long)])
async def test_a_listener_whose_rules_we_cannot_do_is_refused(plane: ControlPlane, workers: str) -> None:
    def set_filters(version: str, *filters: Json) -> None:
        made = listener("main", [direct("/", "in")], filters=filters)
        plane.set(LISTENER_TYPE, {"main": message(Listener, made)}, version)

    set_filters("1", DENIES)
    async with Proxy(ads_bootstrap(plane.port), "--concurrency", workers) as proxy:
        assert await get(proxy.ports["main"]) == (403, "RBAC: access denied")
        for path, bad in BAD.items():
            before = len(plane.nacks(LISTENER_TYPE))
            set_filters(path, bad)
            await plane.until(partial(_has_more, plane, before))
            assert path in plane.nacks(LISTENER_TYPE)[-1]
            assert await get(proxy.ports["main"]) == (403, "RBAC: access denied")
        set_filters("good", rbac(rules=rules()))
        await plane.acked(LISTENER_TYPE, "good")
        assert await get(proxy.ports["main"]) == (200, "in")


def _has_more(plane: ControlPlane, before: int) -> bool:
    return len(plane.nacks(LISTENER_TYPE)) > before


async def test_rules_of_routes_change_under_an_open_connection(plane: ControlPlane) -> None:
    def set_rules(version: str, given: Json) -> None:
        routes = route_configuration("routes", on_route(direct("/", "in"), rules=given))
        plane.set(ROUTE_TYPE, {"routes": routes}, version)

    plane.set(LISTENER_TYPE, {"main": rds_listener("main", manager={"http_filters": [rbac(), _router()]})})
    set_rules("1", rules("DENY"))
    async with Proxy(ads_bootstrap(plane.port)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.ports["main"])

        async def status() -> int:
            writer.write(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
            await reader.readexactly(int(length.split()[1]))
            return int(head.split()[1])

        assert await status() == 403
        set_rules("2", with_condition())
        await plane.until(lambda: plane.nacks(ROUTE_TYPE))
        assert "checked_condition" in plane.nacks(ROUTE_TYPE)[0]
        assert await status() == 403
        set_rules("3", rules())
        await plane.acked(ROUTE_TYPE, "3")
        assert await status() == 200
        set_rules("4", rules("DENY"))
        await plane.acked(ROUTE_TYPE, "4")
        assert await status() == 403
        writer.close()


def _router() -> Json:
    return {"name": "router", "typed_config": {"@type": _FILTERS + "http.router.v3.Router"}}


# -- sessions that are taken up again


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def test_a_resumed_session_has_the_identity_of_before(version: ssl.TLSVersion) -> None:
    guard = rbac(rules=rules(principal={"and_ids": {"ids": [OF_THE_MESH, VALIDATED]}}))
    made = secured(listener("main", [direct("/", "in")], filters=[guard]))
    async with Proxy(bootstrap([made])) as proxy:
        port = proxy.ports["main"]
        for certificate, status in ((world().client, b"200"), (FOREIGN, b"403")):
            answers = await asyncio.to_thread(resumed, port, certificate, version)
            assert answers == [(False, status), (True, status)]


def resumed(port: int, certificate: Issued, version: ssl.TLSVersion) -> list[tuple[bool, bytes]]:
    """Of two connections, whether the session is one of before, and the status."""
    context = python_client(certificate, version)
    answers: list[tuple[bool, bytes]] = []
    session: ssl.SSLSession | None = None
    for _ in range(2):
        sock = socket.create_connection(("127.0.0.1", port), 20)
        with context.wrap_socket(sock, server_hostname="a.test", session=session) as tls:
            tls.sendall(REQUEST)
            answer = b""
            while piece := tls.recv(4096):
                answer += piece
            answers.append((bool(tls.session_reused), answer.split()[1]))
            session = tls.session
    return answers
