"""Two sidecars under a running pilot, each with an agent that serves its secrets: what PeerAuthentication lets in, who
proves to be whom, and what the application is told of it. Each is meshproxy, or the real Envoy."""

from __future__ import annotations

import asyncio
import http.server
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
import yaml
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from meshproxy.config.subscription import SECRET_TYPE
from tests.pilot.processes import DEADLINE_S, PilotProcess, bootstrap, free_port, pilot
from tests.support.control_plane import ControlPlane
from tests.support.downstream import ConnectionEnded, exchange
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.tls.certificates import Issued, issue, uri

pytestmark = pytest.mark.asyncio(loop_scope="module")

START = {"envoy": start_envoy, "meshproxy": start_meshproxy}
PAIRS = [("meshproxy", "meshproxy"), ("meshproxy", "envoy"), ("envoy", "meshproxy")]
HOST = "web.shop.svc.cluster.local"
SPIFFE = "spiffe://cluster.local/ns/shop/sa/"
FORGED = "URI=spiffe://cluster.local/ns/shop/sa/forged"
RULES = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web, namespace: shop}}
spec:
  hosts: [{host}]
  ports: [{{number: 8000, name: http, protocol: HTTP}}, {{number: 9000, name: tcp, protocol: TCP}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints: [{{address: 127.0.0.1, ports: {{http: {http}, tcp: {tcp}}}, labels: {{app: web}}, serviceAccount: web}}]
"""
PEER = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: %s}}
"""
POOL = """apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: pool, namespace: shop}
spec: {host: web, trafficPolicy: {connectionPool: {http: {%s}}}}
"""
T = TypeVar("T")


class Application(http.server.BaseHTTPRequestHandler):
    """Answers with what it was told of its caller's certificate."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = str(self.headers.get("x-forwarded-client-cert", "")).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class Echo(socketserver.BaseRequestHandler):
    """Speaks first, as databases do, and then says again what it hears."""

    def handle(self) -> None:
        self.request.sendall(b"hello ")
        while data := self.request.recv(4096):
            self.request.sendall(data)


class Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_arguments: object) -> None:
        """A caller that resets its connection is none of the test's."""


class Agent:
    """Serves the secrets of one sidecar."""

    def __init__(self, plane: ControlPlane, authority: Issued) -> None:
        self.plane = plane
        self._authority = authority
        self._version = 0

    def show(self, account: str, trust_domain: str = "cluster.local") -> None:
        """A certificate of that identity."""
        self._version += 1
        issued = issue(account, self._authority, names=uri(f"spiffe://{trust_domain}/ns/shop/sa/{account}"))
        identity, roots = Secret(name="default"), Secret(name="ROOTCA")
        identity.tls_certificate.certificate_chain.inline_bytes = issued.pem
        identity.tls_certificate.private_key.inline_bytes = issued.key_pem
        roots.validation_context.trusted_ca.inline_bytes = self._authority.pem
        self.plane.set(SECRET_TYPE, {"default": identity, "ROOTCA": roots}, str(self._version))


@dataclass
class World:
    """`http` and `tcp` are where the server's sidecar listens."""

    authority: Issued
    rules: Path
    pilot: PilotProcess
    client: ProxyProcess
    server: ProxyProcess
    agents: dict[str, Agent]
    http: int
    tcp: int

    def rule(self, mode: str) -> None:
        self.put("peer", PEER % mode)

    def put(self, name: str, text: str) -> None:
        """A file of rules, whole at once."""
        temporary = self.rules / f".{name}"
        temporary.write_text(text)
        temporary.rename(self.rules / f"{name}.yaml")

    def connections(self, version: int) -> int:
        """Of HTTP/1 or HTTP/2, that the server's sidecar was called by."""
        name = f"http.inbound_0.0.0.0_{self.http}.downstream_cx_http{version}_total"
        return self.server.stats("downstream_cx_http").get(name, 0)

    def get(self, *arguments: str) -> tuple[int, str]:
        """Status and body that curl gets from the client's sidecar."""
        url = f"http://127.0.0.1:{listener_port(self.client, '127.0.0.1_8000')}/"
        command = ("curl", "-s", "--max-time", "20", "-w", "%{http_code}", "-H", f"host: {HOST}", url, *arguments)
        body = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(body[-3:]), body[:-3]

    async def takes(self, mode: str) -> None:
        """The rule, once the server's sidecar obeys it."""
        self.rule(mode)
        plain, mutual = mode != "STRICT", mode != "DISABLE"
        await eventually(lambda: (self.plain() is not None) is plain, f"plaintext under {mode}")
        await eventually(lambda: self.by_sidecar()[0] == 200, f"the sidecar's requests under {mode}")
        await eventually(lambda: bool(self.by_sidecar()[1]) is mutual, f"the sidecar's way under {mode}")

    async def takes_again(self) -> None:
        """The server is who it is."""
        self.rule("DISABLE")
        await eventually(lambda: self.by_sidecar() == (200, ""), "plaintext")
        self.agents["web"].show("web")
        await self.takes("STRICT")

    def plain(self, *headers: str) -> str | None:
        """What the application says to a plaintext request to its sidecar; None: nobody answers."""
        lines = ["GET / HTTP/1.1", f"host: {HOST}", "connection: close", *headers]
        try:
            answer = exchange(self.http, "\r\n".join([*lines, "", ""]).encode(), DEADLINE_S)
        except (ConnectionEnded, OSError):
            return None
        assert answer.status == 200
        return answer.body.decode()

    def by_sidecar(self) -> tuple[int, str]:
        """Status and answer of a request that the client's sidecar takes there."""
        port = listener_port(self.client, "127.0.0.1_8000")
        answer = exchange(port, f"GET / HTTP/1.1\r\nhost: {HOST}\r\nx-forwarded-client-cert: {FORGED}\r\n\r\n".encode())
        return answer.status, answer.body.decode()

    def bytes_by_sidecar(self) -> str:
        return talk(listener_port(self.client, f"127.0.0.1_{HOST}_9000"))

    def stat(self, name: str, *, of: str = "http") -> int:
        """Of the listener of the server's sidecar."""
        full = f"listener.127.0.0.1_{getattr(self, of)}.{name}"
        stats = self.server.stats(name)
        return stats.get(full, 0)

    def handshake(self, shown: Issued | None) -> bool:
        """Whether a caller with this certificate is answered."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=self.authority.pem.decode())
        context.set_alpn_protocols(["istio-http/1.1", "istio", "http/1.1"])
        if shown is not None:
            path = self.rules.parent / "shown.pem"
            path.write_bytes(shown.pem + shown.key_pem)
            context.load_cert_chain(path)
        try:
            raw = socket.create_connection(("127.0.0.1", self.http), DEADLINE_S)
            with raw, context.wrap_socket(raw) as secured:
                secured.sendall(f"GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode())
                return secured.recv(4096).startswith(b"HTTP/1.1 200")
        except OSError:
            return False


def listener_port(proxy: ProxyProcess, name: str) -> int:
    wait_for(lambda: name in proxy.listener_ports(), "the listener", DEADLINE_S)
    return proxy.listener_ports()[name]


def talk(port: int) -> str:
    """What is heard from there; "" from who hangs up."""
    try:
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock:
            sock.sendall(b"again")
            heard = b""
            while len(heard) < len(b"hello again") and (data := sock.recv(4096)):
                heard += data
            return heard.decode()
    except ConnectionError:
        return ""


async def eventually(probe: Callable[[], T], what: str) -> T:
    return await asyncio.to_thread(wait_for, probe, what, DEADLINE_S)


def configuration(xds: int, sds: int, name: str, **metadata: Any) -> str:
    tree = yaml.safe_load(bootstrap(xds))
    node = tree["node"]
    node["id"] = f"sidecar~127.0.0.1~{name}.shop~shop.svc.cluster.local"
    node["metadata"] |= {"LABELS": {"app": name}, "meshproxy.io/sds-cluster": "agent", **metadata}
    agent = yaml.safe_load(bootstrap(sds))["static_resources"]["clusters"][0]
    tree["static_resources"]["clusters"].append(agent | {"name": "agent"})
    return yaml.safe_dump(tree)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PAIRS, ids="-".join)
async def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("world")
    rules = folder / "rules"
    rules.mkdir()
    authority = issue("authority", ca=True)
    of_http, of_tcp = free_port(), free_port()
    (rules / "web.yaml").write_text(RULES.format(host=HOST, http=of_http, tcp=of_tcp))
    async with AsyncExitStack() as stack:
        applications = {}
        for port, handler in ((of_http, Application), (of_tcp, Echo)):
            application = stack.enter_context(Threads(("127.0.0.1", 0), handler))
            threading.Thread(target=application.serve_forever, args=(0.02,), daemon=True).start()
            stack.callback(application.shutdown)
            applications[str(port)] = f"127.0.0.1:{application.server_address[1]}"
        running = stack.enter_context(pilot(rules, folder, "one"))
        agents, proxies = {}, {}
        for kind, name in zip(request.param, ("client", "web"), strict=True):
            agents[name] = Agent(await stack.enter_async_context(ControlPlane.start()), authority)
            agents[name].show(name)
            ports = {"8000": 0, f"{HOST}:9000": 0}
            facts = {"meshproxy.io/ports": ports, "meshproxy.io/applications": applications if name == "web" else {}}
            text = configuration(running.port, agents[name].plane.port, name, **facts)
            proxies[name] = stack.enter_context(await asyncio.to_thread(START[kind], text))
        yield World(authority, rules, running, proxies["client"], proxies["web"], agents, of_http, of_tcp)


async def test_permissive_takes_both(world: World) -> None:
    await world.takes("PERMISSIVE")
    assert await asyncio.to_thread(world.plain, f"x-forwarded-client-cert: {FORGED}") == ""
    before = await asyncio.to_thread(world.stat, "ssl.handshake", of="tcp")
    assert await asyncio.to_thread(talk, world.tcp) == "hello again"
    assert await asyncio.to_thread(world.stat, "ssl.handshake", of="tcp") == before
    assert await asyncio.to_thread(world.bytes_by_sidecar) == "hello again"
    assert await asyncio.to_thread(world.stat, "ssl.handshake", of="tcp") == before + 1


async def test_the_application_is_told_who_calls(world: World) -> None:
    await world.takes("PERMISSIVE")
    status, told = await asyncio.to_thread(world.by_sidecar)
    assert status == 200
    parts = dict(part.split("=", 1) for part in told.split(";"))
    assert (parts["By"], parts["URI"]) == (f"{SPIFFE}web", f"{SPIFFE}client")
    assert "forged" not in told


async def test_strict_takes_mutual_tls_alone(world: World) -> None:
    await world.takes("STRICT")
    before = {of: await asyncio.to_thread(world.stat, "no_filter_chain_match", of=of) for of in ("http", "tcp")}
    assert await asyncio.to_thread(world.plain) is None
    assert await asyncio.to_thread(talk, world.tcp) == ""
    for of, count in before.items():
        await eventually(lambda of=of, count=count: world.stat("no_filter_chain_match", of=of) > count, of)  # type: ignore[misc]
    assert await asyncio.to_thread(world.bytes_by_sidecar) == "hello again"
    assert (await asyncio.to_thread(world.by_sidecar))[0] == 200


REFUSED = {
    "another trust domain": ("fail_verify_san", "spiffe://other/ns/shop/sa/client", False),
    "no identity": ("fail_verify_san", "", False),
    "another authority": ("fail_verify_error", f"{SPIFFE}client", True),
    "no certificate": ("fail_verify_no_cert", None, False),
}


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE"])
@pytest.mark.parametrize("case", REFUSED)
async def test_who_cannot_prove_to_be_of_the_mesh(world: World, mode: str, case: str) -> None:
    await world.takes(mode)
    stat, identity, is_foreign = REFUSED[case]
    issuer = issue("foreign", ca=True) if is_foreign else world.authority
    shown = None if identity is None else issue("caller", issuer, names=uri(identity) if identity else ())
    before = await asyncio.to_thread(world.stat, f"ssl.{stat}")
    assert not await asyncio.to_thread(world.handshake, shown)
    await eventually(lambda: world.stat(f"ssl.{stat}") == before + 1, stat)
    fine = issue("caller", world.authority, names=uri(f"{SPIFFE}client"))
    assert await asyncio.to_thread(world.handshake, fine)


@pytest.mark.parametrize(
    ("pool", "arguments", "version"),
    [
        ("maxRetries: 1, maxRequestsPerConnection: 1001", ("--http2-prior-knowledge",), 1),
        ("h2UpgradePolicy: UPGRADE, maxRequestsPerConnection: 1002", (), 2),
        ("useClientProtocol: true, maxRequestsPerConnection: 1003", ("--http2-prior-knowledge",), 2),
        ("useClientProtocol: true, maxRequestsPerConnection: 1004", (), 1),
    ],
)
async def test_every_version_of_http_goes_by_mutual_tls(
    world: World, pool: str, arguments: tuple[str, ...], version: int
) -> None:
    """What is offered (ALPN), what is agreed on, and what is then spoken have to be one.

    No two pools are the same: else connections of the test before would be good for this one, too."""
    await world.takes("STRICT")
    before = await asyncio.to_thread(world.connections, version)
    world.put("pool", POOL % pool)
    try:
        await eventually(
            lambda: world.get(*arguments)[0] == 200 and world.connections(version) > before, f"HTTP/{version}"
        )
        status, told = await asyncio.to_thread(world.get, *arguments)
        assert (status, told.rpartition("URI=")[2]) == (200, f"{SPIFFE}client")
    finally:
        (world.rules / "pool.yaml").unlink()


async def test_a_server_of_another_identity_is_not_spoken_to(world: World) -> None:
    await world.takes("DISABLE")  # so that none of the connections before is used again
    world.agents["web"].show("impostor")
    world.rule("STRICT")
    name = f"cluster.outbound|8000||{HOST};.ssl.fail_verify_san"
    await eventually(lambda: world.by_sidecar()[0] == 503, "a refusal")
    await eventually(lambda: world.client.stats("fail_verify_san").get(name), name)
    assert (await asyncio.to_thread(world.by_sidecar))[0] == 503
    await world.takes_again()


async def test_disable_takes_plaintext(world: World) -> None:
    await world.takes("DISABLE")
    assert await asyncio.to_thread(world.plain) == ""
    assert await asyncio.to_thread(world.by_sidecar) == (200, "")
    fine = issue("caller", world.authority, names=uri(f"{SPIFFE}client"))
    assert not await asyncio.to_thread(world.handshake, fine)


async def test_nothing_is_refused(world: World) -> None:
    assert world.pilot.json("/debug/rejections")["clients"] == []
