"""Two pods behind real interception rules under a running pilot: what their applications say to each other goes through
both proxies, as the rules have it, by mutual TLS. Network namespaces and iptables are root's."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from meshproxy.config.subscription import SECRET_TYPE
from tests.istio.pods import CLIENT_IP, SERVER_IP, Pod, SidecarProxy, ask, ask_bytes, pods
from tests.istio.test_interception import eventually, secrets
from tests.pilot.processes import PilotProcess, bootstrap, pilot
from tests.support.control_plane import ControlPlane
from tests.tls.certificates import issue, uri

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and iptables are root's"),
    pytest.mark.asyncio(loop_scope="module"),
]

RULES = f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: details, namespace: shop}}
spec:
  hosts: [details.shop.svc.cluster.local]
  addresses: [10.96.0.10]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9080, name: http, protocol: HTTP}}, {{number: 3306, name: tcp, protocol: TCP}}]
  endpoints: [{{address: {SERVER_IP}, labels: {{app: details}}, serviceAccount: details}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: details, namespace: shop}}
spec:
  hosts: [details]
  http:
    - match: [{{uri: {{prefix: /closed}}}}]
      directResponse: {{status: 403, body: {{string: closed}}}}
    - headers: {{request: {{set: {{x-rule: details}}}}}}
      route: [{{destination: {{host: details, port: {{number: 9080}}}}}}]
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: open, namespace: shop}
spec:
  selector: {matchLabels: {app: details}}
  portLevelMtls: {9998: {mode: DISABLE}}
"""
SPIFFE = "spiffe://cluster.local/ns/shop/sa/"
URL = "http://details.shop.svc.cluster.local:9080"
RESOLVED = ("--resolve", "details.shop.svc.cluster.local:9080:10.96.0.10")
READY = "?filter=^listener_manager.workers_started"


@dataclass
class Mesh:
    """Both pods, their proxies, and the pilot of both."""

    client_pod: Pod
    server_pod: Pod
    client: SidecarProxy
    server: SidecarProxy
    pilot: PilotProcess
    rules: Path


def pipe(path: Path) -> dict[str, Any]:
    return {
        "cluster_name": "pipe",
        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(path)}}}}]}],
    }


def configuration(socket: Path, agent: Path, name: str, address: str) -> str:
    tree = yaml.safe_load(bootstrap(1))
    tree["admin"]["address"]["socket_address"]["port_value"] = 15000
    tree["node"]["id"] = f"sidecar~{address}~{name}-1.shop~shop.svc.cluster.local"
    tree["node"]["metadata"] = {"NAMESPACE": "shop", "LABELS": {"app": name}, "meshproxy.io/sds-cluster": "agent"}
    (cluster,) = tree["static_resources"]["clusters"]
    clusters = [
        cluster | {"load_assignment": pipe(socket)},
        cluster | {"name": "agent", "load_assignment": pipe(agent)},
    ]
    tree["static_resources"]["clusters"] = clusters
    return yaml.safe_dump(tree)


def started(proxy: SidecarProxy) -> bool:
    return proxy.stats(READY).get("listener_manager.workers_started") == "1"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["meshproxy", "envoy"])
async def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """The client's proxy is ours; the server's ours too, or Envoy."""
    folder = tmp_path_factory.mktemp("mesh")
    rules = folder / "rules"
    rules.mkdir()
    (rules / "details.yaml").write_text(RULES)
    socket = folder / "xds"
    async with AsyncExitStack() as stack:
        # A Unix socket is reached from every network.
        running = stack.enter_context(pilot(rules, folder, "one", "--listen", f"unix:{socket}"))
        client_pod, server_pod = await stack.enter_async_context(pods(folder))
        server_pod.serve(9080, 3306, 9998, 9999)
        proxies, authority = [], issue("authority", ca=True)
        for who, pod, name, address in (
            ("meshproxy", client_pod, "client", CLIENT_IP),
            (request.param, server_pod, "details", SERVER_IP),
        ):
            path = pod.directory / "bootstrap.yaml"
            agent = await stack.enter_async_context(ControlPlane.start(uds=str(pod.directory / "agent")))
            agent.set(SECRET_TYPE, secrets(issue(name, authority, names=uri(SPIFFE + name)), authority))
            path.write_text(configuration(socket, pod.directory / "agent", name, address))
            proxy = SidecarProxy(who, pod, path)
            stack.push_async_callback(asyncio.to_thread, proxy.close)
            proxies.append(proxy)
        for proxy in proxies:
            await eventually(functools.partial(started, proxy), "a proxy that has started")
        yield Mesh(client_pod, server_pod, proxies[0], proxies[1], running, rules)


async def test_nothing_is_refused(mesh: Mesh) -> None:
    assert mesh.pilot.json("/debug/rejections")["clients"] == []
    for proxy in (mesh.client, mesh.server):
        rejected = {name: value for name, value in proxy.stats("?filter=update_rejected").items() if value != "0"}
        assert rejected == {}


async def test_http_goes_through_both_as_the_rules_have_it(mesh: Mesh) -> None:
    status, _, seen = await asyncio.to_thread(ask, mesh.client_pod, f"{URL}/a?b=c", *RESOLVED)
    assert status == 200
    assert seen["line"] == "GET /a?b=c HTTP/1.1"
    assert (seen["peer"], seen["port"]) == ("127.0.0.6", 9080)
    assert seen["headers"]["x-rule"] == "details"
    assert seen["headers"]["host"] == "details.shop.svc.cluster.local:9080"
    told = seen["headers"]["x-forwarded-client-cert"]
    assert f"By={SPIFFE}details;" in told
    assert told.endswith(f"URI={SPIFFE}client")


async def test_an_answer_of_the_rules(mesh: Mesh) -> None:
    status, _, body = await asyncio.to_thread(ask, mesh.client_pod, f"{URL}/closed", *RESOLVED)
    assert (status, body) == (403, "closed")


async def test_tcp_goes_by_its_address(mesh: Mesh) -> None:
    answer = await asyncio.to_thread(ask_bytes, mesh.client_pod, "10.96.0.10", 3306, "hello")
    assert answer == "bytes from 127.0.0.6 at 3306: hello"


async def test_what_is_no_service_is_passed_through(mesh: Mesh) -> None:
    answer = await asyncio.to_thread(ask_bytes, mesh.client_pod, SERVER_IP, 9999, "hello")
    assert answer == "bytes from 127.0.0.6 at 9999: hello"
    status, _, seen = await asyncio.to_thread(ask, mesh.client_pod, f"http://{SERVER_IP}:9999/x")
    assert (status, seen["line"]) == (200, "GET /x HTTP/1.1")


async def test_a_rule_changes(mesh: Mesh) -> None:
    text = RULES.replace("{prefix: /closed}", "{prefix: /shut}")
    (mesh.rules / ".details").write_text(text)
    (mesh.rules / ".details").rename(mesh.rules / "details.yaml")
    await eventually(lambda: ask(mesh.client_pod, f"{URL}/shut", *RESOLVED)[0] == 403, "the new rule")
    assert (await asyncio.to_thread(ask, mesh.client_pod, f"{URL}/closed", *RESOLVED))[0] == 200


@pytest.mark.long
async def test_where_only_mutual_tls_is_taken_nothing_else_gets_in(mesh: Mesh) -> None:
    """Ports of services, and ports that nobody knows of; but for the one that a rule leaves open."""
    direct = f"http://{SERVER_IP}"
    assert (await asyncio.to_thread(ask, mesh.client_pod, f"{direct}:9080/"))[0] == 200
    for port in (3306, 9998, 9999):
        assert await asyncio.to_thread(ask_bytes, mesh.client_pod, SERVER_IP, port, "hello"), port
    (mesh.rules / "strict.yaml").write_text(STRICT)
    try:
        await _only_mutual(mesh, direct)
    finally:
        (mesh.rules / "strict.yaml").unlink()
    await eventually(lambda: ask_bytes(mesh.client_pod, SERVER_IP, 9999, "hello"), "the rule to be gone")


async def _only_mutual(mesh: Mesh, direct: str) -> None:
    await eventually(lambda: not ask_bytes(mesh.client_pod, SERVER_IP, 9999, "hello"), "the new rule")
    # The client's own proxy says that nobody answers; the connection that it has must drain before.
    await eventually(lambda: ask(mesh.client_pod, f"{direct}:9080/")[0] == 503, "no plaintext any more")
    request = "GET / HTTP/1.1\r\n\r\n"
    assert await asyncio.to_thread(ask_bytes, mesh.client_pod, SERVER_IP, 9999, request) == ""
    assert await asyncio.to_thread(ask_bytes, mesh.client_pod, SERVER_IP, 3306, "hello") == ""
    assert await asyncio.to_thread(ask_bytes, mesh.client_pod, SERVER_IP, 9998, "hello")
    stats = await asyncio.to_thread(mesh.server.stats, "?filter=no_filter_chain_match")
    assert int(stats["listener.0.0.0.0_15006.no_filter_chain_match"]) >= 4
    status, _, seen = await asyncio.to_thread(ask, mesh.client_pod, f"{URL}/a", *RESOLVED)
    assert (status, seen["line"]) == (200, "GET /a HTTP/1.1")
    answer = await asyncio.to_thread(ask_bytes, mesh.client_pod, "10.96.0.10", 3306, "hello")
    assert answer == "bytes from 127.0.0.6 at 3306: hello"
