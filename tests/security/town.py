"""An authority whose first root is past, and what those have whom nobody should speak to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.pilot.authority.test_services import KEY
from tests.pilot.authority_mesh import Caller, Mesh, key_pem
from tests.pilot.processes import PilotProcess
from tests.pilot.test_authority_ends import serial
from tests.security.sidecars import PREFIX
from tests.security.thief import stolen_root
from tests.security.workloads import DEADLINE_S, token
from tests.support.polling import wait_for
from tests.tls.certificates import Issued, issue, uri

Pair = tuple[bytes, bytes]  # a chain and its key, PEM
CLIENT: Final = f"{PREFIX}client"


@dataclass
class Town:
    """`callers` are all called CLIENT where they have an identity of the mesh; `roots` is a file of who is trusted."""

    mesh: Mesh
    pilot: PilotProcess
    callers: dict[str, Pair | None]
    roots: Path


def of_the_authority(mesh: Mesh, account: str) -> Pair:
    """By a token."""
    with Caller(f"unix:{mesh.sockets}", b"", token=token(mesh, account)) as caller:
        return caller.certificate()[0], key_pem(KEY)


def made(issuer: Issued, *names: str, days: tuple[int, int] = (-1, 30)) -> Pair:
    issued = issue("caller", issuer, names=[name for each in names for name in uri(each)], days=days)
    return issued.pem, issued.key_pem


@contextmanager
def open_town(folder: Path) -> Iterator[Town]:
    """Until the end of the block."""
    mesh = Mesh(folder)
    with mesh.pilot() as running:
        old = of_the_authority(mesh, "client")
        for arguments in ((), ("--now",), ("--now",)):
            mesh.command("rotate", *arguments)
        root = stolen_root(mesh)
        mesh.roots = root.pem
        wait_for(lambda: len(running.json("/debug/authority")["issuers"]) == 1, "one root", DEADLINE_S)
        callers = {
            "of the mesh": of_the_authority(mesh, "client"),
            "no certificate": None,
            "another trust domain": made(root, "spiffe://other.test/ns/shop/sa/client"),
            "no identity": made(root),
            "another authority": made(issue("other", ca=True), CLIENT),
            "expired": made(root, CLIENT, days=(-10, -1)),
            "not yet valid": made(root, CLIENT, days=(5, 10)),
            "revoked": of_the_authority(mesh, "client"),
            "of a root after its time": old,
        }
        revoked = callers["revoked"]
        assert revoked is not None
        mesh.command("revoke", serial(revoked))
        roots = mesh.folder / "now.pem"
        roots.write_bytes(mesh.roots)
        yield Town(mesh, running, callers, roots)
