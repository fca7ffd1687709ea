"""What drives requests through a proxy, and what it says of them: wrk and h2load as fast as it goes, and clients of our
own for what they cannot do: a fixed rate, timed from when each request was due, a TLS handshake for each request, and
streams of gRPC's messages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Protocol

from bench.configuration import certificates
from bench.peers import GRPC_MESSAGE, ROOT, installed, start_between

_REPORT: Final = Path(__file__).with_name("report.lua")
_MARGIN_S: Final = 30.0


class LoadError(Exception):
    """The load generator failed, or a request did: such a measurement counts for nothing."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one run saw: answered requests, and their latency in µs."""

    requests: int
    seconds: float
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float


class Load(Protocol):
    """A way to ask. The programs count whole seconds."""

    @property
    def words(self) -> str: ...

    def run(self, port: int, seconds: int) -> Traffic: ...


@dataclass(frozen=True, slots=True)
class Closed:
    """Closed loop: every connection asks again as soon as it is answered, so the proxy is as busy as it can be.

    `upload_bytes` go with every request; `mutual` is mutual TLS, for which an nginx with a client certificate stands
    between wrk, which can have none, and the proxy.
    """

    connections: int = 32
    path: str = "/"
    headers: tuple[str, ...] = ()
    upload_bytes: int = 0
    tls: bool = False
    mutual: bool = False

    @property
    def words(self) -> str:
        """How it reads in the report."""
        what = "wrk"
        if self.tls:
            what = "wrk, TLS 1.3"
        elif self.mutual:
            what = "wrk through an nginx that presents a client certificate, TLS 1.3"
        sent = f", {self.upload_bytes // 1024} KiB sent with each request" if self.upload_bytes else ""
        where = "" if self.path == "/" else f" for {self.path}"
        connections = "1 connection" if self.connections == 1 else f"{self.connections} connections"
        return f"{what}, {connections}, as fast as they are answered{where}{sent}"

    def run(self, port: int, seconds: int) -> Traffic:
        """Raises LoadError."""
        with self._entrance(port) as entrance:
            scheme = "https" if self.tls else "http"
            command = ["wrk", "-t1", f"-c{self.connections}", f"-d{seconds}s", "-s", str(_REPORT)]
            headers = [argument for header in self.headers for argument in ("-H", header)]
            url = f"{scheme}://127.0.0.1:{entrance}{self.path}"
            output = _run([*command, *headers, url, "--", str(self.upload_bytes)], seconds)
        result = json.loads(output.strip().splitlines()[-1])
        if result["errors"] or not result["requests"]:
            raise LoadError(f"wrk: {result['errors']} of {result['requests']} requests failed")
        return Traffic(
            requests=result["requests"],
            seconds=result["duration_us"] / 1e6,
            p50_us=result["p50_us"],
            p90_us=result["p90_us"],
            p99_us=result["p99_us"],
            p999_us=result["p999_us"],
        )

    @contextmanager
    def _entrance(self, port: int) -> Iterator[int]:
        """The port that wrk speaks to."""
        if not self.mutual:
            yield port
            return
        between = start_between("nginx", "mtls-client", port)
        try:
            yield between.port
        finally:
            between.stop()


@dataclass(frozen=True, slots=True)
class Streams:
    """HTTP/2 in a closed loop: every connection has so many streams at a time, and begins another as soon as one ends.

    `upload_bytes` go with every request; `grpc` is a call of one message; `mutual` is mutual TLS, for which an HAProxy
    with a client certificate stands between h2load, which can have none, and the proxy.
    """

    connections: int
    streams: int
    path: str = "/"
    upload_bytes: int = 0
    grpc: bool = False
    mutual: bool = False

    @property
    def words(self) -> str:
        """How it reads in the report."""
        what = "h2load through an HAProxy that presents a client certificate, TLS 1.3" if self.mutual else "h2load"
        sent = f", {self.upload_bytes // 1024} KiB sent with each request" if self.upload_bytes else ""
        sent = f", gRPC calls of one message of {len(GRPC_MESSAGE) - 5} bytes each way" if self.grpc else sent
        where = "" if self.path == "/" or self.grpc else f" for {self.path}"
        connections = "1 connection" if self.connections == 1 else f"{self.connections} connections"
        streams = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return f"{what}, {connections} of {streams}, as fast as they are answered{where}{sent}"

    def run(self, port: int, seconds: int) -> Traffic:
        """Raises LoadError."""
        with self._entrance(port) as entrance, TemporaryDirectory(prefix="bench-") as folder:
            log = Path(folder, "requests.tsv")
            command = [installed("h2load"), "--threads=1", f"--clients={self.connections}", f"--duration={seconds}"]
            command += [f"--max-concurrent-streams={self.streams}", f"--log-file={log}", *self._body(Path(folder))]
            output = _run([*command, f"http://127.0.0.1:{entrance}{self.path}"], seconds)
            rows = [line.split("\t") for line in log.read_text(encoding="ascii").splitlines()]
        failed = [status for _, status, _ in rows if status != "200"]
        if failed or not rows:
            raise LoadError(f"h2load: {len(failed)} of {len(rows)} requests failed: {output.strip()[-500:]}")
        return _traffic([float(took_us) for _, _, took_us in rows], seconds)

    def _body(self, folder: Path) -> list[str]:
        """The arguments for what is sent with each request."""
        if not self.grpc and not self.upload_bytes:
            return []
        file = folder / "body"
        file.write_bytes(GRPC_MESSAGE if self.grpc else b"0" * self.upload_bytes)
        headers = ["--header=te: trailers", "--header=content-type: application/grpc"] if self.grpc else []
        return [f"--data={file}", *headers]

    @contextmanager
    def _entrance(self, port: int) -> Iterator[int]:
        """The port that h2load speaks to."""
        if not self.mutual:
            yield port
            return
        between = start_between("haproxy", "mtls-client", port)
        try:
            yield between.port
        finally:
            between.stop()


@dataclass(frozen=True, slots=True)
class Messages:
    """Streams of a thousand messages of gRPC, one at a time on each connection: see bench.grpc_calls. `requests` are
    the messages that were answered."""

    connections: int
    echoes: bool = False

    @property
    def words(self) -> str:
        """How it reads in the report."""
        kind = (
            "a thousand messages there and back, each when the one before is answered"
            if self.echoes
            else "one message, answered with a thousand (latency is that of the whole stream)"
        )
        return f"{self.connections} connections of 1 gRPC stream: {kind}; all are compared"

    def run(self, port: int, seconds: int) -> Traffic:
        """Raises LoadError."""
        kind = "echo" if self.echoes else "answers"
        command = [sys.executable, "-m", "bench.grpc_calls", str(port), str(seconds), str(self.connections), kind]
        result = json.loads(_run(command, seconds))
        return _traffic(result["took_us"], result["seconds"], result["messages"])


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Connections of one request each; every one with a full handshake, or every one resumes the session before it.
    With `mutual` the client shows a certificate, too."""

    resumes: bool = False
    mutual: bool = False
    clients: int = 3

    @property
    def words(self) -> str:
        """How it reads in the report."""
        kind = "resumed" if self.resumes else "full"
        shown = ", a certificate on both sides" if self.mutual else ""
        return f"{self.clients} clients; TLS 1.3, X25519{shown}, {kind} handshake, one request, close, and again"

    def run(self, port: int, seconds: int) -> Traffic:
        """Raises LoadError."""
        kind = "resumed" if self.resumes else "full"
        command = [sys.executable, "-m", "bench.handshakes", str(port), str(seconds), kind]
        if self.mutual:
            command.append(f"{certificates().name}/client-with-key.pem")
        clients = [
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
            for _ in range(self.clients)
        ]
        outputs = [client.communicate(timeout=seconds + _MARGIN_S)[0] for client in clients]
        if any(client.returncode for client in clients):
            raise LoadError("bench.handshakes: a connection failed, see above")
        return _traffic([took for output in outputs for took in json.loads(output)], seconds)


@dataclass(frozen=True, slots=True)
class FixedRate:
    """Requests at a rate that does not depend on the answers, each timed from when it was due: see bench.open_loop."""

    per_second: int
    connections: int = 32
    headers: tuple[str, ...] = ()
    protocol: str = "http1"

    @property
    def words(self) -> str:
        """How it reads in the report."""
        return f"{self.per_second} requests/s over {self.connections} connections, timed from when each was due"

    def run(self, port: int, seconds: int) -> Traffic:
        """Raises LoadError."""
        numbers = (port, seconds, self.per_second, self.connections)
        command = [sys.executable, "-m", "bench.open_loop", *map(str, numbers), self.protocol, *self.headers]
        return _traffic(json.loads(_run(command, seconds)), seconds)


def quantile(ordered: list[float], share: float) -> float:
    """The value below which `share` of the `ordered` values lie (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _traffic(took_us: list[float], seconds: float, requests: int = 0) -> Traffic:
    """`requests` is their number, where it is not that of the latencies."""
    took_us.sort()
    return Traffic(requests or len(took_us), seconds, *(quantile(took_us, share) for share in (0.5, 0.9, 0.99, 0.999)))


def _run(command: list[str], seconds: float) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + _MARGIN_S,
        check=False,
    )
    if done.returncode != 0:
        raise LoadError(f"{command[0]} exited with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout
