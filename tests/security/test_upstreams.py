"""What a sidecar says to servers: whoever is not who should be there hears nothing of a request, and that is counted
and written down. The real Envoy under the same secrets says the same."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.pilot.test_peer_authentication import Application, Threads
from tests.security.sidecars import START, Outbound, Secrets, Way
from tests.security.town import Town
from tests.security.workloads import DEADLINE_S, agents, logged
from tests.support.downstream import exchange
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess

# What the server shows: the statistic of the cluster, and words of %UPSTREAM_TRANSPORT_FAILURE_REASON%.
REFUSED: Final = {
    "another trust domain": ("fail_verify_san", "SAN_matcher"),
    "no identity": ("fail_verify_san", "SAN_matcher"),
    "another authority": ("fail_verify_error", "unable_to_get_local_issuer_certificate"),
    "expired": ("fail_verify_error", "certificate_has_expired"),
    "not yet valid": ("fail_verify_error", "certificate_is_not_yet_valid"),
    "revoked": ("fail_verify_error", "certificate_revoked"),
    "of a root after its time": ("fail_verify_error", "unable_to_get_local_issuer_certificate"),
    "no certificate": ("connection_error", "WRONG_VERSION_NUMBER"),  # a downgrade: it answers in the clear
}
NAMES: Final = {case: case.replace(" ", "-") for case in ("of the mesh", *REFUSED)}  # of clusters


class Heard(Application):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.requests += 1
        super().do_GET()


class Server(Threads):
    """Behind TLS where it has a certificate. `requests` are those that it has heard."""

    def __init__(self, certificate: Path | None) -> None:
        self.requests = 0
        self._context = None if certificate is None else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self._context is not None and certificate is not None:
            self._context.load_cert_chain(certificate)
        super().__init__(("127.0.0.1", 0), Heard)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._context is None:
            super().finish_request(request, client_address)
            return
        with self._context.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)


@contextmanager
def serving(certificate: Path | None) -> Iterator[Server]:
    made = Server(certificate)
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


@dataclass
class World:
    client: ProxyProcess
    outbound: Outbound
    servers: dict[str, Server]

    def ask(self, case: str) -> int:
        """The status of the sidecar's answer."""
        request = f"GET /{NAMES[case]}/ HTTP/1.1\r\nhost: web\r\n\r\n"
        return exchange(self.client.listener_ports()["out"], request.encode(), DEADLINE_S).status


@pytest.fixture(scope="module", params=START)
def world(request: pytest.FixtureRequest, town: Town, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with ExitStack() as stack:
        (agent,) = stack.enter_context(agents(town.mesh, town.pilot, folder, "web"))
        wait_for(lambda: agent.metric("bundles_total"), "the bundle", DEADLINE_S)
        servers = {}
        for case, name in NAMES.items():
            shown = town.callers[case]
            file = folder / f"{name}.pem"
            if shown is not None:
                file.write_bytes(b"".join(shown))
            servers[case] = stack.enter_context(serving(None if shown is None else file))
        ways = [Way(name, "client", port=servers[case].server_address[1]) for case, name in NAMES.items()]
        outbound = Outbound(Secrets(agent.socket), folder, ways)
        client = stack.enter_context(START[request.param](outbound.text()))
        yield World(client, outbound, servers)


def test_who_is_of_the_mesh_is_spoken_to(world: World) -> None:
    wait_for(lambda: world.ask("of the mesh") == 200, "an answer", DEADLINE_S)
    assert world.servers["of the mesh"].requests >= 1


@pytest.mark.parametrize("case", REFUSED)
def test_who_is_not_hears_nothing(world: World, case: str) -> None:
    wait_for(lambda: world.ask("of the mesh") == 200, "the secrets", DEADLINE_S)
    name, (stat, reason) = NAMES[case], REFUSED[case]
    full = f"cluster.{name}.ssl.{stat}"
    before = world.client.stats(rf"^cluster\.{name}\.ssl")[full]
    assert world.ask(case) == 503
    assert world.client.stats(rf"^cluster\.{name}\.ssl")[full] > before
    assert reason in logged(world.outbound.requests, path=f"/{name}/", status=503)["upstream_failure"]
    assert world.servers[case].requests == 0
