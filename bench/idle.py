"""What connections that do nothing cost in memory: a thousand of each kind, on a proxy started for the purpose."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Final

from bench.cpu import tree_rss_kib
from bench.goals import AtMost, Goal, Verdict
from bench.handshakes import client_context
from bench.http2 import END_STREAM, HEADERS, Connection, RepeatedHead, is_200
from bench.load import LoadError
from bench.peers import LISTENER, NGINX, PEERS, Running, application, start_peer
from bench.run import Record, Run
from bench.samples import Sample, names, ratio, typical

CONNECTIONS: Final = 1000
BASELINE: Final = "envoy"
_MOST_ROUNDS: Final = 3  # memory varies little
_WARM_UP_CONNECTIONS: Final = 10
_REQUEST: Final = b"GET / HTTP/1.1\r\nhost: bench.test\r\n\r\n"
_ANSWER_END: Final = b"0123456789abcdef"
_HTTP2_HEAD: Final = RepeatedHead(
    [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "bench.test")]
)

_INTRODUCTION: Final = f"""\
{CONNECTIONS} connections are opened one after the other; each has one request answered and then stays. Measured is the
resident memory (RSS) of all processes of a proxy that was started for this and has served
{_WARM_UP_CONNECTIONS} connections before. The whole is what a machine must have; what one connection adds to it stands
beside."""


@dataclass(frozen=True, slots=True)
class Idle:
    """One kind of connection; `config` names the file of bench/configs, `listener` one of its listeners, and `server`
    who stands behind the proxies."""

    name: str
    title: str
    config: str
    listener: str = LISTENER
    server: str = NGINX
    tls: bool = False
    http2: bool = False
    who: Sequence[str] = ("envoy", "meshproxy")
    goal: Goal = field(default=AtMost("meshproxy", 1.0, value="held"))

    def measure(self, run: Run) -> list[Sample]:
        """A proxy is started anew each time, since memory does not come back. Raises what Run.attempt catches."""
        samples = []
        wanted = [peer for peer in self.who if run.wants(peer)]
        with application(self.server) as port:
            for number, peer in Run(min(run.rounds, _MOST_ROUNDS), run.seconds).in_turn(wanted):
                samples.append(self._sample(peer, number, port))
                values = samples[-1].values
                memory = f"{values['before'] / 1024:7.1f} MiB, then {values['held'] / 1024:.1f}"
                run.say(f"round {number + 1}  {peer:24}{memory}: {values['each']:.1f} KiB each")
        return samples

    def _sample(self, peer: str, number: int, port: int) -> Sample:
        """Start the peer, measure, stop it."""
        running = start_peer(peer, self.config, port)
        try:
            with self._connections(running, _WARM_UP_CONNECTIONS):
                pass
            before = tree_rss_kib(*running.pids)
            with self._connections(running, CONNECTIONS):
                held = tree_rss_kib(*running.pids)
        finally:
            running.stop()
        return Sample(peer, number, {"before": before, "held": held, "each": (held - before) / CONNECTIONS})

    @contextmanager
    def _connections(self, running: Running, count: int) -> Iterator[None]:
        """So many of them while it lasts, each having had its answer."""
        context = client_context() if self.tls else None
        with ExitStack() as stack:
            for _ in range(count):
                connection = stack.enter_context(closing(_connect(running.ports[self.listener], context)))
                if self.http2:
                    _ask_http2(connection)
                else:
                    _ask_http1(connection)
            yield

    def verdicts(self, samples: Sequence[Sample]) -> list[Verdict]:
        """See Scenario."""
        found = self.goal.judge(samples)
        return [found] if found else []

    def section(self, record: Record) -> str:
        """See Scenario."""
        lines = [
            f"{_INTRODUCTION} {record.rounds} round{'s' * (record.rounds > 1)}; configuration `{self.config}`.",
            "",
            f"| | RSS before MiB | RSS with {CONNECTIONS} MiB | × {BASELINE} (lowest–highest) | KiB per connection |",
            "|---|--:|--:|--:|--:|",
            *(f"| {' | '.join(_row(peer, record.samples))} |" for peer in names(record.samples)),
        ]
        return "\n".join(lines)


def _row(peer: str, samples: Sequence[Sample]) -> list[str]:
    has_baseline = BASELINE in names(samples)
    against = "1" if peer == BASELINE else str(ratio(samples, peer, BASELINE, "held")) if has_baseline else "–"
    return [
        PEERS[peer].words,
        f"{typical(samples, peer, 'before') / 1024:.1f}",
        f"{typical(samples, peer, 'held') / 1024:.1f}",
        against,
        f"{typical(samples, peer, 'each'):.1f}",
    ]


def _connect(port: int, context: ssl.SSLContext | None) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    if context is not None:
        connection = context.wrap_socket(connection, server_hostname="bench.test")
    return connection


def _ask_http1(connection: socket.socket) -> None:
    connection.sendall(_REQUEST)
    answer = b""
    while not answer.endswith(_ANSWER_END):
        received = connection.recv(4096)
        if not received:
            raise LoadError(f"an idle connection was closed after {answer[:60]!r}")
        answer += received


def _ask_http2(connected: socket.socket) -> None:
    connection = Connection(connected, is_client=True)
    connected.sendall(_HTTP2_HEAD.frame(1, END_STREAM))
    while True:
        for found in connection.receive():
            if found.kind == HEADERS and not is_200(found.payload):
                raise LoadError(f"answered something else than 200: {found.payload!r}")
            if found.ends:
                return
