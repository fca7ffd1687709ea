"""A Gateway whose server has the mesh's own certificate (ISTIO_MUTUAL), and a sidecar that has none where only mutual
TLS is taken: meshproxy and the real Envoy under a running pilot."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pilot.processes import DEADLINE_S, bootstrap, free_port, pilot
from tests.pilot.test_peer_authentication import HOST, PEER, RULES, SPIFFE, START, Agent, configuration
from tests.pilot.test_two_data_planes import EchoServer
from tests.support.control_plane import ControlPlane
from tests.support.downstream import ConnectionEnded, exchange
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess
from tests.tls.certificates import Issued, issue, uri

EDGE = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge, namespace: shop}}
spec:
  selector: {{app: edge}}
  servers:
    - port: {{number: {port}, name: https, protocol: HTTPS}}
      bind: 127.0.0.1
      hosts: [{host}]
      tls: {{mode: ISTIO_MUTUAL}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edge, namespace: shop}}
spec:
  hosts: [{host}]
  gateways: [edge]
  http: [{{route: [{{destination: {{host: web, port: {{number: 8000}}}}}}]}}]
---
"""


def ask_edge(port: int, authority: Issued, shown: Issued | None, folder: Path) -> bytes:
    """The answer to a caller that shows this certificate; nothing where it is sent away."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=authority.pem.decode())
    if shown is not None:
        (folder / "shown.pem").write_bytes(shown.pem + shown.key_pem)
        context.load_cert_chain(folder / "shown.pem")
    try:
        raw = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
        with closing(raw), context.wrap_socket(raw, server_hostname=HOST) as secured:
            secured.sendall(f"GET /at-the-edge HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n".encode())
            answer = b""
            while data := secured.recv(4096):
                answer += data
            return answer
    except OSError:
        return b""


@pytest.mark.parametrize("kind", START)
async def test_the_edge_of_the_mesh(kind: str, tmp_path: Path) -> None:
    authority, port = issue("authority", ca=True), free_port()
    rules = tmp_path / "rules"
    rules.mkdir()
    with ExitStack() as stack:
        application = EchoServer("application")
        stack.callback(application.close)
        plain = RULES.format(host=HOST, http=application.server_port, tcp=1).replace(", serviceAccount: web", "")
        (rules / "all.yaml").write_text(EDGE.format(port=port, host=HOST) + plain)
        running = stack.enter_context(pilot(rules, tmp_path, "one"))
        async with ControlPlane.start() as plane:
            Agent(plane, authority).show("edge")
            tree: Any = yaml.safe_load(configuration(running.port, plane.port, "edge"))
            tree["node"]["id"] = tree["node"]["id"].replace("sidecar~", "router~")
            with await asyncio.to_thread(START[kind], yaml.safe_dump(tree)) as proxy:
                await asyncio.to_thread(_edge_is_guarded, proxy, port, authority, tmp_path)
        assert running.json("/debug/rejections")["clients"] == []


def _edge_is_guarded(proxy: ProxyProcess, port: int, authority: Issued, folder: Path) -> None:
    caller = issue("caller", authority, names=uri(f"{SPIFFE}caller"))
    answer = wait_for(lambda: ask_edge(port, authority, caller, folder), "the edge", DEADLINE_S)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b"application GET /at-the-edge" in answer
    foreign = issue("caller", issue("foreign", ca=True), names=uri(f"{SPIFFE}caller"))
    for shown, stat in ((None, "fail_verify_no_cert"), (foreign, "fail_verify_error")):
        assert ask_edge(port, authority, shown, folder) == b""
        name = f"listener.127.0.0.1_{port}.ssl.{stat}"
        wait_for(lambda name=name: proxy.stats("ssl.fail_verify").get(name) == 1, name, DEADLINE_S)  # type: ignore[misc]


@pytest.mark.parametrize("kind", START)
def test_a_sidecar_without_certificates_takes_plaintext_or_nothing(kind: str, tmp_path: Path) -> None:
    rules, port = tmp_path / "rules", free_port()
    rules.mkdir()
    (rules / "web.yaml").write_text(RULES.format(host=HOST, http=port, tcp=free_port()))
    with ExitStack() as stack:
        application = EchoServer("application")
        stack.callback(application.close)
        running = stack.enter_context(pilot(rules, tmp_path, "one"))
        tree = yaml.safe_load(bootstrap(running.port))
        tree["node"]["id"] = "sidecar~127.0.0.1~web.shop~shop.svc.cluster.local"
        at = {str(port): f"127.0.0.1:{application.server_port}"}
        facts = {"LABELS": {"app": "web"}, "meshproxy.io/ports": {"8000": 0}, "meshproxy.io/applications": at}
        tree["node"]["metadata"] |= facts
        proxy = stack.enter_context(START[kind](yaml.safe_dump(tree)))
        wait_for(lambda: _answer(port) == 200, "plaintext", DEADLINE_S)
        (rules / "peer.yaml").write_text(PEER % "STRICT")
        wait_for(lambda: _answer(port) == 0, "nothing", DEADLINE_S)
        assert proxy.stats("BlackHoleCluster.upstream_cx_none_healthy")[
            "cluster.BlackHoleCluster.upstream_cx_none_healthy"
        ]
        (rules / "peer.yaml").write_text(PEER % "PERMISSIVE")
        wait_for(lambda: _answer(port) == 200, "plaintext again", DEADLINE_S)


def _answer(port: int) -> int:
    """The status of a plaintext request; 0: nobody answers it."""
    try:
        return exchange(port, f"GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode(), DEADLINE_S).status
    except (ConnectionEnded, OSError):
        return 0
