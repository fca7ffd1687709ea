"""Mutual TLS by rules: its secrets are those of the proxy's own agent. A proxy without one starts and serves everything
else, and nothing leaves it in the clear; one with an agent proves who it is."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from meshproxy.config.subscription import SECRET_TYPE
from tests.differential.cases import get
from tests.pilot.processes import DEADLINE_S, PilotProcess, bootstrap, pilot
from tests.pilot.test_two_data_planes import EchoServer
from tests.support.control_plane import ControlPlane
from tests.support.downstream import exchange
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.tls.certificates import Issued, issue

START = {"envoy": start_envoy, "meshproxy": start_meshproxy}
KINDS = [(name, kind) for name in START for kind in ("GRPC", "DELTA_GRPC")]
LISTENER = "127.0.0.1_8000"
RULES = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %(name)s, namespace: shop}
spec:
  hosts: [%(name)s.shop.svc.cluster.local]
  ports: [{number: 8000, name: http, protocol: HTTP}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints: [{address: 127.0.0.1, ports: {http: %(port)d}, labels: {%(labels)s}}]
---
"""
MUTUAL = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ruled, namespace: shop}
spec: {host: ruled, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}
"""


class SecureEchoServer(EchoServer):
    """Behind TLS, for clients with a certificate of the authority; `seen` counts connections of those."""

    def __init__(self, folder: Path, authority: Issued, shown: Issued, *, asks: bool) -> None:
        self.seen = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files = {"c.pem": shown.pem, "k.pem": shown.key_pem, "ca.pem": authority.pem}
        for name, data in files.items():
            (folder / name).write_bytes(data)
        self._context.load_cert_chain(folder / "c.pem", folder / "k.pem")
        if asks:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(folder / "ca.pem")
        super().__init__("secure")

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        secured = self._context.wrap_socket(connection, server_side=True)  # an OSError: the connection is not taken
        self.seen += 1
        return secured, address


@pytest.fixture(scope="module")
def authority() -> Issued:
    return issue("authority", ca=True)


@pytest.fixture(scope="module")
def shown(authority: Issued) -> Issued:
    return issue("shop", authority)


@pytest.fixture(scope="module")
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def secure(
    stack: ExitStack, tmp_path_factory: pytest.TempPathFactory, authority: Issued, shown: Issued
) -> dict[bool, SecureEchoServer]:
    """One that asks for a certificate, and one that lets everybody in."""
    found = {}
    for asks in (True, False):
        found[asks] = SecureEchoServer(tmp_path_factory.mktemp("tls"), authority, shown, asks=asks)
        stack.callback(found[asks].close)
    return found


@pytest.fixture(scope="module")
def running(
    stack: ExitStack, tmp_path_factory: pytest.TempPathFactory, secure: dict[bool, SecureEchoServer]
) -> PilotProcess:
    """`ruled` and `labelled` ask for mutual TLS; `plain` is as ever."""
    folder = tmp_path_factory.mktemp("pilot")
    plain = EchoServer("plain")
    stack.callback(plain.close)
    ports = {"plain": plain.server_port, "ruled": secure[False].server_port, "labelled": secure[False].server_port}
    ports["strict"] = secure[True].server_port
    istio = "security.istio.io/tlsMode: istio"
    labels = {"labelled": istio, "strict": istio}
    rules = folder / "rules"
    rules.mkdir()
    text = "".join(RULES % {"name": name, "port": port, "labels": labels.get(name, "")} for name, port in ports.items())
    (rules / "all.yaml").write_text(text + MUTUAL)
    return stack.enter_context(pilot(rules, folder, "one"))


def configuration(port: int, kind: str, sds_port: int = 0) -> str:
    tree = yaml.safe_load(bootstrap(port, api_type=kind))
    tree["node"]["metadata"]["meshproxy.io/ports"] = {"8000": 0}
    if sds_port:
        tree["node"]["metadata"]["ISTIO_VERSION"] = "1.29.0"
        agent = yaml.safe_load(bootstrap(sds_port))["static_resources"]["clusters"][0]
        tree["static_resources"]["clusters"].append(agent | {"name": "sds-grpc"})
    return yaml.safe_dump(tree)


def ask(proxy: ProxyProcess, host: str) -> tuple[int, str]:
    wait_for(lambda: LISTENER in proxy.listener_ports(), "the listener", DEADLINE_S)
    answer = exchange(proxy.listener_ports()[LISTENER], get("/", host=host), DEADLINE_S)
    return answer.status, answer.body.decode("latin-1")


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_without_an_agent(name: str, kind: str, running: PilotProcess, secure: dict[bool, SecureEchoServer]) -> None:
    before = {asks: server.seen for asks, server in secure.items()}
    with START[name](configuration(running.port, kind)) as proxy:
        wait_for(lambda: ask(proxy, "plain") == (200, "plain GET / plain"), "the service without TLS", DEADLINE_S)
        for host in ("ruled", "labelled", "strict"):
            assert ask(proxy, host)[0] == 503
        assert proxy.stats(r"cluster_manager.warming_clusters|update_rejected")["cluster_manager.warming_clusters"] == 0
        stats = proxy.stats("ssl.fail_verify_cert_hash")
        assert sum(stats.values()) >= 3, stats
    assert {asks: server.seen for asks, server in secure.items()} == before


@pytest.mark.parametrize(("name", "kind"), KINDS)
async def test_with_an_agent(name: str, kind: str, running: PilotProcess, authority: Issued, shown: Issued) -> None:
    identity, roots = Secret(name="default"), Secret(name="ROOTCA")
    identity.tls_certificate.certificate_chain.inline_bytes = shown.pem
    identity.tls_certificate.private_key.inline_bytes = shown.key_pem
    roots.validation_context.trusted_ca.inline_bytes = authority.pem
    async with ControlPlane.start() as agent:
        agent.set(SECRET_TYPE, {"default": identity, "ROOTCA": roots})
        text = configuration(running.port, kind, agent.port)
        with await asyncio.to_thread(START[name], text) as proxy:
            for host in ("plain", "ruled", "labelled", "strict"):
                status, body = await asyncio.to_thread(ask, proxy, host)
                assert (status, body.partition(" ")[0]) == (200, "plain" if host == "plain" else "secure")


def test_that_it_needs_secrets_is_no_reason_to_warn(running: PilotProcess) -> None:
    assert running.rules()["warnings"] == []
