"""How long a proxy takes from its `exec` to the first answer of the application that comes through it."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench.cpu import tree_cpu_us
from bench.goals import Verdict
from bench.peers import PEERS, Peer, PeerError, application, free_port
from bench.run import Record, Run
from bench.samples import Sample, names, ratio, typical

BASELINE: Final = "envoy"
_REQUEST: Final = b"GET / HTTP/1.1\r\nhost: bench.test\r\n\r\n"
_LIMIT_S: Final = 60.0
_INTRODUCTION: Final = """\
From `exec` to the first bytes of an answer that came through the proxy; a client tries every ms. Each proxy has run
once before, so that its files are in the page cache."""
_INTERVAL_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class StartUp:
    """`config` names files of bench/configs that have one listener, on a port that can be given."""

    name: str
    title: str
    config: str
    who: Sequence[str]

    def measure(self, run: Run) -> list[Sample]:
        """Each proxy once before the first round, so that its files are in the page cache."""
        with application() as application_port:
            begin = partial(_sample, self.config, application_port)
            wanted = [peer for peer in self.who if run.wants(peer)]
            there = [peer for peer in wanted if run.attempt(peer, partial(begin, PEERS[peer], 0))]
            samples = []
            for number, peer in run.in_turn(there):
                samples.append(begin(PEERS[peer], number))
                values = samples[-1].values
                run.say(f"round {number + 1}/{run.rounds}  {peer:24}{values['ms']:7.0f} ms, CPU {values['cpu']:.0f} ms")
        return samples

    def verdicts(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Nothing was promised."""
        return []

    def section(self, record: Record) -> str:
        """See Scenario."""
        samples = record.samples
        has_baseline = BASELINE in names(samples)
        lines = [
            f"{_INTRODUCTION} {record.rounds} round{'s' * (record.rounds > 1)}; configuration `{self.config}`.",
            "",
            f"| | ms | × {BASELINE} (lowest–highest) | CPU ms until then |",
            "|---|--:|--:|--:|",
        ]
        for peer in names(samples):
            against = "1" if peer == BASELINE else str(ratio(samples, peer, BASELINE, "ms")) if has_baseline else "–"
            times = f"{typical(samples, peer, 'ms'):.0f} | {against} | {typical(samples, peer, 'cpu'):.0f}"
            lines.append(f"| {PEERS[peer].words} | {times} |")
        return "\n".join(lines)


def _sample(config: str, application_port: int, peer: Peer, number: int) -> Sample:
    """Raises PeerError."""
    port = free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
        folder.chmod(0o755)  # nginx's workers are another user
        path = folder / peer.file
        path.write_text(peer.configuration(config, {"port": port, "upstream_port": application_port, "folder": folder}))
        command = peer.argv(path)
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stack.callback(process.wait, 15)
        stack.callback(process.terminate)
        while not _is_answered(port):
            if process.poll() is not None or time.perf_counter() > began + _LIMIT_S:
                raise PeerError(f"{peer.name} did not start")
            time.sleep(_INTERVAL_S)
        took_s = time.perf_counter() - began
        return Sample(peer.name, number, {"ms": took_s * 1e3, "cpu": tree_cpu_us(process.pid) / 1e3})


def _is_answered(port: int) -> bool:
    """Whether a request succeeds; a refused connection, or one that is cut, is not an answer yet."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(_REQUEST)
            return connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False
