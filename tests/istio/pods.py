"""Two pods in network namespaces of their own, joined by a cable, each with the interception rules of the examples.

A pod has its application, which is Python, and its proxy, which is started as Istio's agent starts one: with Istio's
flags, in a directory where the agent's Unix sockets are. The proxy runs under a group of its own, by which the rules
know it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.support.proxy import envoy_binary

ROOT: Final = Path(__file__).resolve().parents[2]
INTERCEPT: Final = ROOT / "examples" / "kubernetes" / "intercept.sh"
PROXY_GID: Final = "1337"
CLIENT_IP: Final = "10.50.0.1"
SERVER_IP: Final = "10.50.0.2"
# As pilot-agent calls Envoy.
FLAGS: Final = (
    *("--drain-time-s", "45", "--drain-strategy", "immediate", "--local-address-ip-version", "v4"),
    *("--file-flush-interval-msec", "1000", "--disable-hot-restart", "--allow-unknown-static-fields"),
    *("-l", "warning", "--component-log-level", "misc:error", "--skip-deprecated-logs"),
    *("--parent-shutdown-time-s", "60"),
)
_DEADLINE_S: Final = 30.0

# Answers HTTP with what it was asked, and anything else with who asked.
_APPLICATION: Final = """
import json, socket, sys, threading
def serve(port):
    listening = socket.create_server(("0.0.0.0", port))
    def answer(sock, peer):
        with sock:
            data = sock.recv(65536)
            if not data.startswith((b"GET ", b"POST ")):
                sock.sendall(b"bytes from " + peer[0].encode() + b" at %d: " % port + data)
                return
            while data:
                lines = data.split(b"\\r\\n\\r\\n")[0].decode().split("\\r\\n")
                seen = {"line": lines[0], "peer": peer[0], "port": port,
                        "headers": dict(line.split(": ", 1) for line in lines[1:])}
                body = json.dumps(seen).encode()
                sock.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n%s" % (len(body), body))
                data = sock.recv(65536)
    def accept():
        while True:
            threading.Thread(target=answer, args=listening.accept(), daemon=True).start()
    threading.Thread(target=accept, daemon=True).start()
for port in map(int, sys.argv[1:]):
    serve(port)
print("ready", flush=True)
sys.stdin.read()
"""


def needed(tool: str) -> str:
    """The set-up installs it: raises FileNotFoundError."""
    found = shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(f"no {tool}: `make test` installs it (on Debian: iptables, iproute2, util-linux)")
    return found


class Pod:
    """A network namespace, which lasts as long as the process that holds it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []
        command = [needed("unshare"), "--net", "sh", "-c", "echo ready && exec cat"]
        self._holder = self._start(command)

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """A process that says when it is ready, and ends with its standard input."""
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return process

    @property
    def pid(self) -> int:
        """Of the process that holds the namespace."""
        return self._holder.pid

    def inside(self, *command: str) -> list[str]:
        """The command, run in the pod's network."""
        return [needed("nsenter"), f"--net=/proc/{self.pid}/ns/net", *command]

    def do(self, *command: str, **environment: str) -> str:
        """Run it to its end; what it printed."""
        done = subprocess.run(
            self.inside(*command),
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
            env=os.environ | environment,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def serve(self, *ports: int) -> None:
        """Its application listens."""
        self._start(self.inside(sys.executable, "-c", _APPLICATION, *map(str, ports)))

    def close(self) -> None:
        """The last goes first: the namespace goes with its holder."""
        for process in reversed(self._processes):
            process.terminate()
            process.communicate()


@asynccontextmanager
async def pods(directory: Path) -> AsyncIterator[tuple[Pod, Pod]]:
    """A client and a server, whose interfaces are each other's ends; their rules are in place."""
    made: list[Pod] = []
    try:
        made.append(client := Pod(directory / "client"))
        made.append(server := Pod(directory / "server"))
        ip = needed("ip")
        client.do(ip, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(server.pid))
        for pod, own, other in ((client, CLIENT_IP, SERVER_IP), (server, SERVER_IP, CLIENT_IP)):
            pod.do(ip, "link", "set", "lo", "up")
            pod.do(ip, "address", "add", f"{own}/24", "dev", "eth0")
            pod.do(ip, "link", "set", "eth0", "up")
            pod.do(ip, "route", "add", "default", "via", other)
            pod.do("sh", str(INTERCEPT), PROXY_UID="1337", PROXY_GID=PROXY_GID)
        yield client, server
    finally:
        for pod in reversed(made):
            await asyncio.to_thread(pod.close)


class SidecarProxy:
    """A proxy in a pod, ours or Envoy. Its admin listens in there, so it is asked from there."""

    def __init__(self, who: str, pod: Pod, bootstrap: Path) -> None:
        self._pod = pod
        self._log = pod.directory / "proxy.log"
        setpriv = [needed("setpriv"), "--regid", PROXY_GID, "--clear-groups"]
        program = [envoy_binary()] if who == "envoy" else [sys.executable, "-m", "meshproxy"]
        arguments = ["-c", str(bootstrap), *FLAGS, "--concurrency", "2"]
        if who == "meshproxy":
            arguments += ["--shutdown-delay-s", "0"]  # so that the test is over at once
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                pod.inside(*setpriv, *program, *arguments),
                cwd=pod.directory,
                env={"PYTHONPATH": str(ROOT)} | os.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def admin(self, path: str, method: str = "GET") -> str:
        """The body; "" while nobody answers."""
        curl = self._pod.inside(needed("curl"), "-s", "--max-time", "10", "-X", method, f"http://127.0.0.1:15000{path}")
        done = subprocess.run(curl, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
        assert self._process.poll() is None, self.output()
        return done.stdout

    def stats(self, query: str = "") -> dict[str, str]:
        """All, or those of a query."""
        lines = self.admin(f"/stats{query}").splitlines()
        return dict(line.split(": ", 1) for line in lines if ": " in line)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return self._process.wait(_DEADLINE_S)

    def close(self) -> None:
        """SIGTERM; and SIGKILL for one that does not go. It stands for all that it started."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def ask(pod: Pod, url: str, *arguments: str) -> tuple[int, dict[str, str], Any]:
    """What curl gets in a pod: status, headers, and the body as JSON where it is that."""
    curl = (needed("curl"), "-s", "--max-time", "20", "-D", "-", url, *arguments)
    head, _, body = pod.do(*curl).partition("\n\n")
    lines = head.splitlines()
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, json.loads(body) if body.startswith("{") else body


_ASK_BYTES: Final = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as sock:
    sock.sendall(sys.argv[3].encode())
    answer = b""
    try:
        while piece := sock.recv(65536):
            answer += piece
    except ConnectionResetError:
        answer = b""
print(answer.decode(), end="")
"""


def ask_bytes(pod: Pod, host: str, port: int, data: str) -> str:
    """What comes back for bytes that are no HTTP."""
    return pod.do(sys.executable, "-c", _ASK_BYTES, host, str(port), data)
