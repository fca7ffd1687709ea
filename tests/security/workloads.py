"""What runs beside the sidecars: agents as processes, and an application that answers with what it was told of its
caller."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.pilot.authority.fakes import TRUST_DOMAIN
from tests.pilot.authority_mesh import NAME, Mesh, own_port
from tests.pilot.processes import PilotProcess
from tests.pilot.test_peer_authentication import Application, Threads
from tests.support.polling import wait_for

DEADLINE_S = 30.0


def token(mesh: Mesh, account: str) -> str:
    return mesh.signer.token(sub=f"system:serviceaccount:shop:{account}")


def agent_flags(mesh: Mesh, running: PilotProcess, folder: Path, account: str) -> list[str]:
    """Of an agent that has a token; its files are in `folder`."""
    roots, proof = folder / "roots.pem", folder / f"{account}.token"
    roots.write_bytes(mesh.roots)
    proof.write_text(token(mesh, account))
    return [
        "--ca", own_port(running), "--ca-name", NAME, "--ca-root-file", str(roots), "--token-file", str(proof),
        "--trust-domain", TRUST_DOMAIN, "--namespace", "shop", "--service-account", account,
        "--sds-socket", str(folder / f"{account}.sock"), "--http", "127.0.0.1:0", "--drain-time-s", "0",
    ]  # fmt: skip


class AgentProcess:
    """`meshproxy agent`. `wait` for it."""

    def __init__(self, flags: list[str], folder: Path, account: str) -> None:
        self._address = folder / f"{account}.agent"
        self._http = ""
        self.socket = str(folder / f"{account}.sock")
        self.log = folder / f"{account}.agent.log"
        command = [sys.executable, "-m", "meshproxy", "agent", *flags, "--address-path", str(self._address)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self) -> None:
        """Until it has one."""
        wait_for(lambda: self._address.exists() or self.process.poll() is not None, "an agent", DEADLINE_S)
        assert self.process.poll() is None, self.log.read_text()
        self._http = json.loads(self._address.read_text())["http"]
        wait_for(lambda: self.metric("ready") == 1.0, "a certificate", DEADLINE_S)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self._http}/metrics", timeout=DEADLINE_S) as answer:
            rows = answer.read().decode().splitlines()
        return next(float(row.split()[1]) for row in rows if row.startswith(f"meshproxy_agent_{name} "))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def agents(
    mesh: Mesh, running: PilotProcess, folder: Path, *accounts: str, more: Sequence[str] = ()
) -> Iterator[list[AgentProcess]]:
    """One for each service account."""
    with ExitStack() as stack:
        made = []
        for account in accounts:
            made.append(AgentProcess([*agent_flags(mesh, running, folder, account), *more], folder, account))
            stack.callback(made[-1].stop)
        for each in made:
            each.wait()
        yield made


@contextmanager
def application() -> Iterator[int]:
    """Its port. It answers with the x-forwarded-client-cert that it got."""
    made = Threads(("127.0.0.1", 0), Application)
    thread = threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made.server_address[1]
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def lines(path: Path) -> list[dict[str, Any]]:
    """Of a log, as far as they are whole."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def logged(log: Path, **fields: Any) -> dict[str, Any]:
    """The last line of a log in which these fields are so, as soon as there is one."""

    def last() -> dict[str, Any] | None:
        found = [line for line in lines(log) if fields.items() <= line.items()]
        return found[-1] if found else None

    line = wait_for(last, f"{fields} in {log.name}", DEADLINE_S)
    assert line is not None
    return line
