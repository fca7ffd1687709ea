"""What the authority takes back is refused by proxies that have their roots of it: a certificate that was revoked, and
one of a root whose time is over. Others go on, without a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from tests.pilot.authority.fakes import TRUST_DOMAIN
from tests.pilot.authority.test_services import KEY
from tests.pilot.authority_mesh import Caller, Mesh, answered, bare_proxy, key_pem, own_port
from tests.pilot.processes import DEADLINE_S
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

_DEADLINE_S = 60.0
START = {"envoy": start_envoy, "meshproxy": start_meshproxy}


class World:
    """A pilot with an authority, a proxy that asks clients for certificates of it, and clients."""

    def __init__(self, mesh: Mesh, pilot: Any, proxy: ProxyProcess, folder: Path) -> None:
        self.mesh = mesh
        self._pilot = pilot
        self._proxy = proxy
        self._folder = folder
        self._roots = mesh.roots
        self._port = proxy.listener_ports()["in"]

    def command(self, *arguments: str) -> None:
        """`meshproxy authority …`. Clients believe every root that there ever was: it is the proxy that refuses."""
        self.mesh.command(*arguments)
        self._roots += self.mesh.command("roots")

    def client(self, account: str) -> tuple[bytes, bytes]:
        """A chain and its key."""
        token = self.mesh.signer.token(sub=f"system:serviceaccount:shop:{account}")
        with Caller(own_port(self._pilot), self._roots, token=token) as agent:
            return agent.certificate()[0], key_pem(KEY)

    def answers(self, client: tuple[bytes, bytes]) -> bool:
        return bool(answered(self._port, self._roots, self._folder, client))

    def becomes(self, client: tuple[bytes, bytes], *, answered: bool) -> None:
        what = "answered" if answered else "refused"
        wait_for(lambda: self.answers(client) == answered, f"a client to be {what}", _DEADLINE_S, 0.05)

    def refusals(self) -> int:
        """Handshakes that failed for what the client showed."""
        return sum(self._proxy.stats("ssl.fail_verify_error").values())

    def issuers(self) -> int:
        """That the pilot knows of."""
        return len(json.loads(self._pilot.page("/debug/authority"))["issuers"])


@pytest.fixture(scope="module", params=START)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    mesh = Mesh(folder)
    with mesh.pilot() as running, START[request.param](bare_proxy(mesh, f"unix:{mesh.sockets}", "")) as proxy:
        found = World(mesh, running, proxy, folder)
        found.becomes(found.client("anybody"), answered=True)
        yield found


def serial(client: tuple[bytes, bytes]) -> str:
    return f"{x509.load_pem_x509_certificate(client[0]).serial_number:x}"


def test_a_revoked_certificate_is_refused(world: World) -> None:
    bad, good = world.client("bad"), world.client("good")
    assert world.answers(bad)
    before = world.refusals()
    world.command("revoke", serial(bad))
    world.becomes(bad, answered=False)
    assert world.refusals() > before
    assert world.answers(good)
    assert world.answers(world.client("bad"))  # it was the certificate, not who has it


def test_a_barred_identity_is_out(world: World) -> None:
    bad, good = world.client("bad"), world.client("good")
    world.command("revoke", "--identity", f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/bad")
    world.becomes(bad, answered=False)
    assert world.answers(good)
    with pytest.raises(grpc.RpcError, match="no valid proof of identity"):
        world.client("bad")


def test_an_old_root_is_refused_after_its_time(world: World) -> None:
    old = world.client("old")
    for command in (("rotate",), ("rotate", "--now")):
        world.command(*command)
        wait_for(lambda: world.issuers() == 2, "the pilot to know both roots", DEADLINE_S)
    # Both roots are trusted: what the old one signed is good while it lasts, and so is what the new one signs.
    world.becomes(world.client("new"), answered=True)
    assert world.answers(old)
    before = world.refusals()
    world.command("rotate", "--now")
    world.becomes(old, answered=False)
    assert world.refusals() > before
    world.becomes(world.client("new"), answered=True)


@pytest.mark.long
def test_without_the_pilot_the_proxy_goes_on(tmp_path: Path) -> None:
    """And takes up what has changed when there is one again."""
    mesh = Mesh(tmp_path)
    with mesh.pilot() as running, start_meshproxy(bare_proxy(mesh, f"unix:{mesh.sockets}", "")) as proxy:
        first = World(mesh, running, proxy, tmp_path)
        client, bad = first.client("anybody"), first.client("bad")
        first.becomes(client, answered=True)
        running.stop()
        (tmp_path / "pilot").unlink()  # its addresses
        assert first.answers(client)
        mesh.command("revoke", serial(bad))
        assert first.answers(bad)  # nobody could tell the proxy
        with mesh.pilot() as again:
            second = World(mesh, again, proxy, tmp_path)
            second.becomes(bad, answered=False)
            assert second.answers(client)
