"""Two pods under Istio's rules: what their applications say to each other goes through both proxies.

Bootstrap, flags, resources, sockets and iptables rules are those of an Istio pod; the control plane and the agent's
secrets are the test's. Network namespaces and iptables are root's.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE, SECRET_TYPE
from tests.istio.golden import resources, without_istio
from tests.istio.pods import SERVER_IP, Pod, SidecarProxy, ask, ask_bytes, pods
from tests.support.control_plane import ControlPlane
from tests.tls.certificates import Issued, issue, uri

BOOTSTRAP = Path(__file__).parent / "bootstrap.json"
TYPES = {"clusters": CLUSTER_TYPE, "listeners": LISTENER_TYPE, "routes": ROUTE_TYPE, "endpoints": ENDPOINT_TYPE}
SERVICE = "http://details.shop.svc.cluster.local:9080"
TO_SERVICE = ("--resolve", "details.shop.svc.cluster.local:9080:10.96.0.10")
NODE_ID = json.loads(BOOTSTRAP.read_text())["node"]["id"]
NEEDS_DNS = "outbound|80||httpbin.example.org"  # which a pod of the test's has not
SPIFFE = "spiffe://cluster.local/ns/shop/sa/"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and iptables are root's"),
    pytest.mark.asyncio(loop_scope="module"),
]


class Sidecar:
    """A pod's proxy, with the control plane and the agent that it talks to."""

    def __init__(self, proxy: SidecarProxy, plane: ControlPlane, agent: ControlPlane) -> None:
        self.proxy = proxy
        self.plane = plane
        self.agent = agent


class Mesh:
    """Both pods; `who` is the server's proxy."""

    def __init__(self, who: str, client_pod: Pod, server_pod: Pod) -> None:
        self.who = who
        self.client_pod = client_pod
        self.server_pod = server_pod
        self.client: Sidecar
        self.server: Sidecar


async def eventually(probe: Callable[[], Any], what: str) -> Any:
    """The first true value of a probe that may block."""
    async with asyncio.timeout(30.0):
        while not (value := await asyncio.to_thread(probe)):
            await asyncio.sleep(0.02)
    assert value, what
    return value


def secrets(own: Issued, authority: Issued) -> dict[str, Any]:
    """As the agent gives them."""
    certificate = Secret(name="default")
    certificate.tls_certificate.certificate_chain.inline_bytes = own.pem + authority.pem
    certificate.tls_certificate.private_key.inline_bytes = own.key_pem
    root = Secret(name="ROOTCA")
    root.validation_context.trusted_ca.inline_bytes = authority.pem
    return {"default": certificate, "ROOTCA": root}


async def start(stack: AsyncExitStack, who: str, pod: Pod, name: str, held: dict[str, Any]) -> Sidecar:
    """The agent's sockets are there, then the proxy starts; it is ready when the control plane has told it all."""
    places = [pod.directory / "etc/istio/proxy/XDS", pod.directory / "var/run/secrets/workload-spiffe-uds/socket"]
    for place in places:
        place.parent.mkdir(parents=True)
    plane, agent = [await stack.enter_async_context(ControlPlane.start(uds=str(place))) for place in places]
    for kind, type_url in TYPES.items():
        if name == "client" or kind in ("clusters", "listeners"):
            told = resources(name, kind)
            told.pop(NEEDS_DNS, None)
            if who == "envoy":
                told = {each: without_istio(message) for each, message in told.items()}
            plane.set(type_url, told)
    agent.set(SECRET_TYPE, held)
    proxy = SidecarProxy(who, pod, BOOTSTRAP)
    stack.push_async_callback(asyncio.to_thread, proxy.close)
    return Sidecar(proxy, plane, agent)


def is_ready(proxy: SidecarProxy) -> bool:
    """As pilot-agent finds out."""
    stats = proxy.stats("?usedonly&filter=^(server\\.state|listener_manager\\.workers_started)")
    taken = proxy.stats("?usedonly&filter=update_success|update_rejected")
    return (
        stats.get("server.state") == "0"
        and stats.get("listener_manager.workers_started") == "1"
        and int(taken.get("cluster_manager.cds.update_success", "0")) > 0
        and int(taken.get("listener_manager.lds.update_success", "0")) > 0
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["meshproxy", "envoy"])
async def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """The client's proxy is ours; the server's ours too, or Envoy, without the filters that only Istio's Envoy has."""
    authority = issue("authority", ca=True)
    async with AsyncExitStack() as stack:
        client_pod, server_pod = await stack.enter_async_context(pods(tmp_path_factory.mktemp("pods")))
        made = Mesh(request.param, client_pod, server_pod)
        server_pod.serve(9080, 3306, 9999)
        identities = {name: issue(name, authority, names=uri(SPIFFE + name)) for name in ("reviews", "details")}
        made.client = await start(stack, "meshproxy", client_pod, "client", secrets(identities["reviews"], authority))
        made.server = await start(stack, request.param, server_pod, "server", secrets(identities["details"], authority))
        for sidecar in (made.client, made.server):
            try:
                await eventually(lambda proxy=sidecar.proxy: is_ready(proxy), "a proxy that is ready")  # type: ignore[misc]
            except BaseException:
                print(sidecar.proxy.output())
                raise
        yield made


async def test_nothing_is_refused(mesh: Mesh) -> None:
    for sidecar in (mesh.client, mesh.server):
        for type_url in (*TYPES.values(), SECRET_TYPE):
            assert not sidecar.plane.nacks(type_url)
            assert not sidecar.agent.nacks(type_url)


async def test_http_between_two_sidecars(mesh: Mesh) -> None:
    """By name, over TLS that both sides verify, to the application, which sees who asked."""
    status, headers, seen = await asyncio.to_thread(ask, mesh.client_pod, SERVICE + "/a?b=c", *TO_SERVICE)
    assert status == 200
    assert headers["server"] == "envoy", "the client's own proxy"
    assert seen["line"] == "GET /a?b=c HTTP/1.1"
    assert (seen["peer"], seen["port"]) == ("127.0.0.6", 9080)
    got = seen["headers"]
    assert got["host"] == "details.shop.svc.cluster.local:9080"
    assert f"URI={SPIFFE}reviews" in got["x-forwarded-client-cert"]
    assert f"By={SPIFFE}details" in got["x-forwarded-client-cert"]
    assert got["x-envoy-attempt-count"] == "1"
    told = {name for name in got if "peer-metadata" in name}
    # Istio's filter takes them from the request; an Envoy without it shows what it is that we say.
    assert told == (set() if mesh.who == "meshproxy" else {"x-envoy-peer-metadata-id", "x-envoy-peer-metadata"})
    assert got.get("x-envoy-peer-metadata-id", NODE_ID) == NODE_ID
    assert not [name for name in headers if "peer-metadata" in name]


async def test_a_canary(mesh: Mesh) -> None:
    """The subset's cluster speaks HTTP/2 over the same TLS."""
    _, headers, seen = await asyncio.to_thread(
        ask, mesh.client_pod, SERVICE + "/", *TO_SERVICE, "-H", "user-agent: Firefox"
    )
    assert headers["x-canary"] == "yes"
    assert seen["headers"]["x-forwarded-host"] == "details.shop.svc.cluster.local:9080"
    clusters = mesh.client.proxy.admin("/clusters").splitlines()
    assert f"outbound|9080|v2|details.shop.svc.cluster.local::{SERVER_IP}:9080::rq_success::1" in clusters


async def test_answers_of_the_proxy_itself(mesh: Mesh) -> None:
    teapot = await asyncio.to_thread(ask, mesh.client_pod, SERVICE + "/fixed", *TO_SERVICE)
    assert (teapot[0], teapot[2]) == (418, "teapot")
    moved = await asyncio.to_thread(ask, mesh.client_pod, SERVICE + "/old/x", *TO_SERVICE)
    assert (moved[0], moved[1]["location"]) == (301, "http://details.shop.svc.cluster.local:9080/new")


async def test_tcp_between_two_sidecars(mesh: Mesh) -> None:
    """To a service's address, over TLS: the server's filter chain is the one of TCP in the mesh."""
    answer = await asyncio.to_thread(ask_bytes, mesh.client_pod, "10.96.0.10", 3306, "hello\n")
    assert answer == "bytes from 127.0.0.6 at 3306: hello\n"


async def test_an_address_that_nobody_knows_is_passed_through(mesh: Mesh) -> None:
    """Both proxies: the client's as TCP or HTTP, the server's by its chains for ports that no service has."""
    answer = await asyncio.to_thread(ask_bytes, mesh.client_pod, SERVER_IP, 9999, "hello\n")
    assert answer == "bytes from 127.0.0.6 at 9999: hello\n"
    _, headers, seen = await asyncio.to_thread(ask, mesh.client_pod, f"http://{SERVER_IP}:9999/")
    assert (seen["peer"], seen["port"]) == ("127.0.0.6", 9999)
    assert headers["server"] == "istio-envoy"
    assert "x-forwarded-client-cert" not in seen["headers"]


async def test_a_host_that_nobody_knows_is_passed_through(mesh: Mesh) -> None:
    """`allow_any`: by HTTP, on a port that has listeners; the server takes plain text too (PERMISSIVE)."""
    status, _, seen = await asyncio.to_thread(
        ask, mesh.client_pod, f"http://{SERVER_IP}:9080/", "-H", "host: unknown.test"
    )
    assert (status, seen["headers"]["host"]) == (200, "unknown.test")
    assert "x-envoy-peer-metadata" not in seen["headers"]


async def test_an_unknown_host_is_blocked_where_only_the_registry_counts(mesh: Mesh) -> None:
    assert (await asyncio.to_thread(ask, mesh.client_pod, "http://10.96.9.9/"))[0] == 502


async def test_the_proxys_own_ports_lead_nowhere(mesh: Mesh) -> None:
    """Or a connection there would be sent to itself for ever."""
    for pod, host, port in (
        (mesh.client_pod, "127.0.0.1", 15001),
        (mesh.client_pod, SERVER_IP, 15006),
        (mesh.server_pod, "127.0.0.1", 15006),
    ):
        assert await asyncio.to_thread(ask_bytes, pod, host, port, "hello\n") == ""


async def test_an_application_that_calls_itself(mesh: Mesh) -> None:
    """By its pod's address it goes directly, through loopback."""
    _, headers, seen = await asyncio.to_thread(ask, mesh.server_pod, f"http://{SERVER_IP}:9080/")
    assert "server" not in headers
    assert seen["peer"] == SERVER_IP


async def test_the_ports_of_the_bootstrap(mesh: Mesh) -> None:
    """Metrics are taken from without, past the rules; the agent, which answers for readiness, is not here."""
    status, _, body = await asyncio.to_thread(ask, mesh.client_pod, f"http://{SERVER_IP}:15090/stats/prometheus")
    assert status == 200
    assert "envoy_server_live" in body
    assert (await asyncio.to_thread(ask, mesh.client_pod, f"http://{SERVER_IP}:15021/healthz/ready"))[0] == 503


async def test_endpoints_that_change(mesh: Mesh) -> None:
    """Without its label for TLS, the endpoint is reached in plain text."""
    plain = resources("client", "endpoints")
    for assignment in plain.values():
        for group in assignment.endpoints:
            for endpoint in group.lb_endpoints:
                endpoint.ClearField("metadata")
    mesh.client.plane.set(ENDPOINT_TYPE, plain, "2")
    try:

        def certificate() -> str | None:
            seen = ask(mesh.client_pod, SERVICE + "/", *TO_SERVICE)[2]
            found: str | None = seen["headers"].get("x-forwarded-client-cert")
            return found

        await eventually(lambda: certificate() is None, "plain text")
    finally:
        mesh.client.plane.set(ENDPOINT_TYPE, resources("client", "endpoints"), "3")
    await eventually(lambda: certificate() is not None, "TLS again")


async def test_what_istioctl_asks(mesh: Mesh) -> None:
    proxy = mesh.client.proxy
    dump = json.loads(proxy.admin("/config_dump?include_eds"))["configs"]
    kinds = {section["@type"].rpartition(".")[2]: section for section in dump}
    assert {"BootstrapConfigDump", "ClustersConfigDump", "ListenersConfigDump", "RoutesConfigDump"} <= set(kinds)
    assert {"EndpointsConfigDump", "SecretsConfigDump"} <= set(kinds)
    dynamic = {each["name"]: each for each in kinds["ListenersConfigDump"]["dynamic_listeners"]}
    assert set(dynamic) == set(resources("client", "listeners"))
    shown = json.dumps(dynamic["0.0.0.0_9080"])
    assert "stats.PluginConfig" in shown, "as it came"
    clusters = json.loads(proxy.admin("/clusters?format=json"))["cluster_statuses"]
    found = next(each for each in clusters if each["name"].startswith("outbound|9080||details"))
    assert found["added_via_api"] is True
    assert found["host_statuses"][0]["address"]["socket_address"]["address"] == SERVER_IP
    assert "http: debug" in proxy.admin("/logging?http=debug", "POST")
    assert "http: warning" in proxy.admin("/logging?http=warning", "POST")


async def test_drain(mesh: Mesh) -> None:
    """The last: what pilot-agent does before it ends the proxy. Outbound listeners go on."""
    proxy = mesh.server.proxy
    assert proxy.admin("/drain_listeners?inboundonly&graceful&skip_exit", "POST").strip() == "OK"
    _, headers, _ = await asyncio.to_thread(ask, mesh.client_pod, f"http://{SERVER_IP}:9999/")
    assert headers.get("connection") == "close"
