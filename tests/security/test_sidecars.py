"""A sidecar of ours and the real Envoy talk mutual TLS, each way round, with certificates of our authority: by SDS from
`meshproxy agent`, and from the pilot itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.pilot.authority_mesh import Mesh
from tests.pilot.processes import PilotProcess
from tests.security.sidecars import PREFIX, START, Inbound, Outbound, Secrets, Way
from tests.security.workloads import DEADLINE_S, agents, application, lines, logged, token
from tests.support.downstream import exchange
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess
from tests.support.wire import Message

PAIRS = [("meshproxy", "envoy"), ("envoy", "meshproxy")]
WORLDS = [(*pair, by) for pair in PAIRS for by in ("agent", "pilot")]
WAYS = (Way("http1", "web", version="TLSv1_2"), Way("http2", "web", http2=True), Way("bank", "bank"))


@dataclass
class World:
    client: ProxyProcess
    server: ProxyProcess
    outbound: Outbound
    inbound: Inbound

    def ask(self, way: str) -> Message:
        port = self.client.listener_ports()["out"]
        return exchange(port, f"GET /{way}/ HTTP/1.1\r\nhost: web\r\n\r\n".encode(), DEADLINE_S)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(scope="module")
def pilot(mesh: Mesh) -> Iterator[PilotProcess]:
    with mesh.pilot() as found:
        yield found


@pytest.fixture(scope="module", params=WORLDS, ids="-".join)
def world(
    request: pytest.FixtureRequest, mesh: Mesh, pilot: PilotProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    client, server, by = request.param
    folder = tmp_path_factory.mktemp("world")
    with ExitStack() as stack:
        secrets = [Secrets(str(mesh.sockets), token(mesh, account)) for account in ("client", "web")]
        if by == "agent":
            made = stack.enter_context(agents(mesh, pilot, folder, "client", "web"))
            secrets = [Secrets(each.socket) for each in made]
        inbound = Inbound(secrets[1], folder, stack.enter_context(application()))
        receiving = stack.enter_context(START[server](inbound.text()))
        outbound = Outbound(secrets[0], folder, WAYS, receiving.listener_ports()["http"])
        sending = stack.enter_context(START[client](outbound.text()))
        yield World(sending, receiving, outbound, inbound)


def answered(world: World, way: str) -> Message | None:
    answer = world.ask(way)
    return answer if answer.status == 200 else None


@pytest.mark.parametrize(("way", "version"), [("http1", "TLSv1.2"), ("http2", "TLSv1.3")])
def test_each_knows_who_the_other_is(world: World, way: str, version: str) -> None:
    answer = wait_for(lambda: answered(world, way), "an answer", DEADLINE_S)
    assert answer is not None
    told = answer.body.decode()
    assert told.startswith(f"By={PREFIX}web;")
    assert told.endswith(f";URI={PREFIX}client")
    sent = logged(world.outbound.requests, path=f"/{way}/", upstream_peer=f"{PREFIX}web")
    assert sent["status"] == 200
    received = logged(world.inbound.requests, path=f"/{way}/", peer=f"{PREFIX}client", xfcc=told)
    assert received["version"] == version
    assert sum(world.client.stats(rf"^cluster\.{way}\.ssl\.handshake").values()) >= 1
    assert sum(world.server.stats(r"^listener\.http\.ssl\.handshake").values()) >= 1


def test_a_server_of_another_identity_is_not_spoken_to(world: World) -> None:
    """It is of the mesh, and is not who it should be."""
    before = len(lines(world.inbound.requests))
    wait_for(lambda: world.ask("http1").status == 200, "the secrets", DEADLINE_S)
    answer = world.ask("bank")
    assert answer.status == 503
    assert world.client.stats("fail_verify")["cluster.bank.ssl.fail_verify_san"] >= 1
    assert logged(world.outbound.requests, path="/bank/", status=503)["upstream_failure"].find("SAN") >= 0
    assert not [line for line in lines(world.inbound.requests)[before:] if line["path"] == "/bank/"]
