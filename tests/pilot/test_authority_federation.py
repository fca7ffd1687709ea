"""Whom proxies believe that have their roots of a pilot's authority: members of federated domains, each by the roots of
their own domain and no others, and members whose certificates an intermediate of an outside authority has signed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from tests.pilot.authority.fakes import TRUST_DOMAIN
from tests.pilot.authority.test_authority_command import Outside
from tests.pilot.authority.test_services import KEY
from tests.pilot.authority_mesh import Caller, Mesh, answered, bare_proxy, key_pem
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.tls.certificates import Issued, issue, key_usage, uri

START = {"envoy": start_envoy, "meshproxy": start_meshproxy}
PARTNER = "partner.test"
DEADLINE_S = 60.0
# So that files are looked at every half a second.
QUICK = ("--root-overlap", "10s")

Pair = tuple[bytes, bytes]  # a chain and its key


class Server:
    """A proxy that asks for certificates, and who may be answered by it."""

    def __init__(self, mesh: Mesh, proxy: ProxyProcess) -> None:
        self.mesh = mesh
        self._proxy = proxy
        self._port = proxy.listener_ports()["in"]

    def becomes(self, client: Pair, *, answered: bool) -> None:
        what = "answered" if answered else "refused"
        wait_for(lambda: self.answers(client) == answered, f"a client to be {what}", DEADLINE_S, 0.05)

    def answers(self, client: Pair) -> bool:
        return bool(answered(self._port, self.mesh.roots, self.mesh.folder, client))

    def refuses(self, client: Pair) -> bool:
        """With its stat."""
        before = sum(self._proxy.stats("ssl.fail_verify_error").values())
        return not self.answers(client) and sum(self._proxy.stats("ssl.fail_verify_error").values()) > before


@contextmanager
def serving(mesh: Mesh, kind: str, *flags: str) -> Iterator[Server]:
    with mesh.pilot(*flags), START[kind](bare_proxy(mesh, f"unix:{mesh.sockets}", "")) as proxy:
        yield Server(mesh, proxy)


def local(mesh: Mesh) -> Pair:
    """Of our own authority, with what stands between."""
    with Caller(f"unix:{mesh.sockets}", b"") as agent:
        return b"".join(agent.certificate()[:-1]), key_pem(KEY)


def serial(pair: Pair) -> str:
    return f"{x509.load_pem_x509_certificates(pair[0])[0].serial_number:x}"


def member(domain: str, authority: Issued) -> Pair:
    names = uri(f"spiffe://{domain}/ns/shop/sa/web")
    made = issue("web", authority, names=names, key_usage=key_usage(signs=True))
    return made.pem, made.key_pem


@pytest.mark.long
@pytest.mark.parametrize("kind", START)
def test_each_domain_s_roots_are_believed_about_that_domain(kind: str, tmp_path: Path) -> None:
    mesh, partner, successor = Mesh(tmp_path), issue("partner", ca=True), issue("successor", ca=True)
    file = tmp_path / "partner.pem"
    file.write_bytes(partner.pem)
    with serving(mesh, kind, *QUICK, "--federate", f"{PARTNER}={file}") as server:
        ours, theirs = local(mesh), member(PARTNER, partner)
        server.becomes(ours, answered=True)
        assert server.answers(theirs)
        assert server.refuses(member(TRUST_DOMAIN, partner))
        assert server.refuses(member("third.test", partner))
        assert server.refuses(member(PARTNER, issue("stranger", ca=True)))
        file.write_bytes(successor.pem)
        server.becomes(member(PARTNER, successor), answered=True)
        assert server.refuses(theirs)
        mesh.command("revoke", serial(ours))
        if kind == "meshproxy":  # Envoy's validator looks at no lists: docs/security.md
            server.becomes(ours, answered=False)
        assert server.answers(local(mesh))


class IntermediateMesh(Mesh):
    """What signs is signed by an outside authority."""

    def command(self, *arguments: str) -> bytes:
        if arguments == ("init",):
            return super().command(
                "import", Outside(self.folder).sign(super().command("init", "--intermediate").decode())
            )
        return super().command(*arguments)


@pytest.mark.long
@pytest.mark.parametrize("kind", START)
def test_an_outside_authority_is_the_root_of_all(kind: str, tmp_path: Path) -> None:
    mesh = IntermediateMesh(tmp_path)
    assert mesh.roots == (tmp_path / "root.pem").read_bytes()
    with serving(mesh, kind) as server:
        bad, good = local(mesh), local(mesh)
        assert len(x509.load_pem_x509_certificates(bad[0])) == 2
        server.becomes(bad, answered=True)
        mesh.command("revoke", serial(bad))
        server.becomes(bad, answered=False)
        assert server.refuses(bad)
        assert server.answers(good)
