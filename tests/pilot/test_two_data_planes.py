"""The real Envoy and meshproxy under one running pilot, each in both variants of the protocol: neither refuses anything
of any sample rule, and the same requests get the same answers, also after the rules have changed."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.differential.cases import Case
from tests.pilot.processes import DEADLINE_S, PilotProcess, bootstrap, pilot
from tests.pilot.resources.golden import SAMPLES, SERVICES
from tests.pilot.resources.support import sample
from tests.pilot.test_same_routing import EXPECTED, REVIEWS, ROWS
from tests.support.downstream import exchange
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.upstream import OK
from tests.support.wire import Message
from tests.tls.certificates import issue

PROXIES = [(name, kind) for name in ("envoy", "meshproxy") for kind in ("GRPC", "DELTA_GRPC")]
PORTS = {"9080": 0, "80": 0}
# What depends on when it was said, or on which of several connections.
VOLATILE = {b"date", b"x-envoy-upstream-service-time", b"server"}
# Requests of the table that one answer of an echo is enough for.
CASES = [
    case
    for case, _ in ROWS
    if isinstance(case.request, bytes) and tuple(case.upstream) == (OK,) and case.listener.startswith("127.0.0.1_")
]
TYPES = {"Cluster", "ClusterLoadAssignment", "Listener", "RouteConfiguration"}


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers with the name of the server and what it was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        length = int(self.headers.get("content-length", 0))
        self.rfile.read(length)
        names = sorted(
            name.lower() for name in self.headers if name.lower().startswith(("x-set", "x-added", "x-number"))
        )
        body = " ".join([self.server.name, self.command, self.path, self.headers["host"], *names])  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    do_POST = do_DELETE = do_OPTIONS = do_GET

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


class EchoServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, name: str) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.name = name
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


@dataclass
class World:
    """A pilot on a directory of rules, and the proxies under it by name and variant."""

    pilot: PilotProcess
    rules: Path
    proxies: dict[tuple[str, str], ProxyProcess]
    ports: dict[tuple[str, str], dict[str, int]]

    def put(self, name: str, text: str) -> None:
        """A file of rules, whole at once."""
        temporary = self.rules / f".{name}"
        temporary.write_text(text)
        temporary.rename(self.rules / f"{name}.yaml")

    def settle(self) -> list[Any]:
        """Wait until every client has all that there is; returns what they say."""
        return wait_for(self._settled, "every client to have everything", DEADLINE_S)

    def _settled(self) -> list[Any]:
        clients: list[Any] = self.pilot.json("/debug/clients")
        there = len(clients) == len(PROXIES) and all(each["types"].keys() >= TYPES for each in clients)
        states = {one["state"] for each in clients for one in each["types"].values()}
        return clients if there and states <= {"accepted", "rejected"} else []

    def refused(self) -> Any:
        found = self.pilot.json("/debug/rejections")
        return found["clients"], found["rules"]["refused"]

    def ask(self, which: tuple[str, str], case: Case) -> list[str]:
        assert isinstance(case.request, bytes)
        answer = shown(exchange(self.ports[which][case.listener], case.request, DEADLINE_S))
        if REVIEWS in EXPECTED[case.name]:  # any of its versions
            answer[-1] = re.sub(r"^v\d ", "v? ", answer[-1])
        return answer


def shown(message: Message) -> list[str]:
    headers = sorted((name, value) for name, value in message.headers if name not in VOLATILE)
    lines = [f"{name.decode()}: {value.decode('latin-1')}" for name, value in headers]
    return [str(message.status), *lines, message.body.decode("latin-1")]


def played(text: str, ports: dict[str, int], authority: Path) -> str:
    """The samples with endpoints that there are: workloads are told apart by their addresses there."""
    text = text.replace("/etc/ssl/certs/ca-certificates.crt", str(authority))
    text = re.sub(r"  resolution: DNS$", "  resolution: DNS\n  endpoints: [{address: 127.0.0.1}]", text, flags=re.M)
    for address in sorted(set(re.findall(r"address: (10\.1\.0\.\d+)", text)), reverse=True):
        port = ports.get(address, ports[""])
        by_name = f"ports: {{http: {port}, http-web: {port}, grpc: {port}}}"
        text = re.sub(rf"^  address: {address}$", f"  address: 127.0.0.1\n  {by_name}", text, flags=re.M)
        text = re.sub(rf"{{address: {address}, labels: {{app: mysql", "{address: 127.0.0.1, labels: {app: mysql", text)
        text = text.replace(f"{{address: {address},", f"{{address: 127.0.0.1, ports: {{http: {port}}},")
    return text


def configuration(port: int, kind: str) -> str:
    tree = yaml.safe_load(bootstrap(port, api_type=kind))
    tree["node"]["id"] = "sidecar~127.0.0.9~page.shop~shop.svc.cluster.local"  # not where the upstreams are
    tree["node"]["metadata"] |= {"meshproxy.io/ports": PORTS, "LABELS": {"app": "productpage", "version": "v1"}}
    tree["node"]["locality"] = {"region": "eu", "zone": "eu-1"}
    return yaml.safe_dump(tree)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("pilot")
    rules = folder / "rules"
    rules.mkdir()
    authority = folder / "authority.pem"
    authority.write_bytes(issue("authority", ca=True).pem)
    with ExitStack() as stack:
        servers = {
            address: EchoServer(name)
            for address, name in (
                ("", "rest"),
                ("10.1.0.31", "v1"),
                ("10.1.0.32", "v2"),
                ("10.1.0.33", "v3"),
            )
        }
        for server in servers.values():
            stack.callback(server.close)
        ports = {address: server.server_port for address, server in servers.items()}
        for name in (SERVICES, *SAMPLES):
            (rules / f"{name}.yaml").write_text(played(sample(name), ports, authority))
        running = stack.enter_context(pilot(rules, folder, "one"))
        start = {"envoy": start_envoy, "meshproxy": start_meshproxy}
        proxies = {
            (name, kind): stack.enter_context(start[name](configuration(running.port, kind))) for name, kind in PROXIES
        }
        listening = {which: wait_for(proxy.listener_ports, "listeners", DEADLINE_S) for which, proxy in proxies.items()}
        yield World(running, rules, proxies, listening)


def test_every_sample_rule_is_taken_by_all(world: World) -> None:
    clients = world.settle()
    assert world.refused() == ([], [])
    (scopes,) = {tuple(sorted((name, one["has"]) for name, one in each["types"].items())) for each in clients}
    assert dict(scopes)["Cluster"] >= 10
    for proxy in world.proxies.values():
        stats = proxy.stats("(cluster_manager.cds|listener_manager.lds).update_rejected|warming_clusters")
        assert set(stats.values()) == {0}, stats


def test_the_table_of_requests(world: World) -> None:
    """In one test, since the rules of the table are there only for it: the samples stand in its way, and come back."""
    kept = {
        name: (world.rules / f"{name}.yaml").read_text() for name in ("gateway-api", "fault", "rate-limit", "sidecar")
    }
    for name in kept:
        world.put(name, "# nothing\n")
    world.put("routing", (Path(__file__).parent / "routing.yaml").read_text())
    for which in world.proxies:
        wait_for(lambda which=which: world.ask(which, MARK)[0] == "418", "the rules of the table", DEADLINE_S)  # type: ignore[misc]
    world.settle()
    assert world.refused() == ([], [])
    differing = {}
    for case in CASES:
        answers = {which: world.ask(which, case) for which in world.proxies}
        if any(answer != answers["envoy", "GRPC"] for answer in answers.values()):
            differing[case.name] = answers
    assert differing == {}


MARK = next(case for case in CASES if case.name == "direct-response")
