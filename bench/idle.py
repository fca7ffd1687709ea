"""What connections that do nothing cost in memory: a thousand of each kind, on a proxy started for the purpose."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench.cpu import tree_rss_kib
from bench.handshakes import client_context
from bench.load import LoadError
from bench.peers import LISTENER, PEERS, Running
from bench.report import ratio

CONNECTIONS: Final = 1000
GOAL: Final = 1.0
BASELINE: Final = "envoy"
PROXIES: Final = ("envoy", "meshproxy")
_WARM_UP_CONNECTIONS: Final = 10
_REQUEST: Final = b"GET / HTTP/1.1\r\nhost: bench.test\r\n\r\n"
_ANSWER_END: Final = b"0123456789abcdef"

_INTRODUCTION: Final = f"""\
{CONNECTIONS} connections are opened one after the other; each has one request answered and then stays. Measured is the
resident memory (RSS) of all processes of a proxy that was started for this and has served
{_WARM_UP_CONNECTIONS} connections before. The goal is for the whole, which a machine must have; what one connection
adds to it stands beside."""


@dataclass(frozen=True, slots=True)
class IdleScenario:
    """One kind of connection; `config` names the file of bench/configs, `listener` one of its listeners."""

    name: str
    title: str
    config: str
    listener: str = LISTENER
    tls: bool = False


IDLE: Final = (
    IdleScenario("idle-http", "HTTP/1.1", "http1"),
    IdleScenario("idle-tcp", "TCP, each with its upstream connection", "tcp"),
    IdleScenario("idle-tls", "HTTP/1.1 over TLS", "tls", "ecdsa", tls=True),
)


@dataclass(frozen=True, slots=True)
class Held:
    """One proxy's memory in one round, before and with the connections."""

    scenario: str
    peer: str
    round: int
    before_kib: int
    with_kib: int

    @property
    def cost(self) -> float:
        """What the goal is for."""
        return self.with_kib

    @property
    def kib_per_connection(self) -> float:
        """What one of them added."""
        return (self.with_kib - self.before_kib) / CONNECTIONS


def measure_idle(scenario: IdleScenario, peer: str, number: int, upstream_port: int) -> Held:
    """Start the peer, measure, stop it. Raises LoadError, PeerError, and what starting a process raises."""
    running = PEERS[peer].start(scenario.config, upstream_port)
    try:
        with _connections(scenario, running, _WARM_UP_CONNECTIONS):
            pass
        before_kib = tree_rss_kib(running.pid)
        with _connections(scenario, running, CONNECTIONS):
            return Held(scenario.name, peer, number, before_kib, tree_rss_kib(running.pid))
    finally:
        running.stop()


def section(samples: Sequence[Held]) -> str:
    """The report's part; the samples of all scenarios."""
    rounds = len({held.round for held in samples})
    lines = [
        "## Memory of idle connections (`idle-http`, `idle-tcp`, `idle-tls`)",
        "",
        f"{_INTRODUCTION} {rounds} rounds.",
        "",
        f"| | | RSS before MiB | RSS with {CONNECTIONS} MiB | × {BASELINE} (lowest–highest) | KiB per connection |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for scenario in IDLE:
        own = [held for held in samples if held.scenario == scenario.name]
        lines += [_row(scenario, peer, own) for peer in PROXIES if any(held.peer == peer for held in own)]
    verdicts = [f"- {scenario.name}: {said}." for scenario in IDLE if (said := idle_verdict(scenario, samples))]
    return "\n".join([*lines, "", *verdicts])


def idle_verdict(scenario: IdleScenario, samples: Sequence[Held]) -> str | None:
    """The goal beside what was measured; None when somebody was left out."""
    own = [held for held in samples if held.scenario == scenario.name]
    if not set(PROXIES) <= {held.peer for held in own}:
        return None
    found = ratio(own, "meshproxy", BASELINE)
    said = "met" if found.median <= GOAL else "missed"
    return f"goal: meshproxy ≤ {GOAL} × {BASELINE}'s RSS with {CONNECTIONS} connections; measured {found}: **{said}**"


def _row(scenario: IdleScenario, peer: str, samples: Sequence[Held]) -> str:
    own = [held for held in samples if held.peer == peer]
    has_baseline = any(held.peer == BASELINE for held in samples)
    against = "1" if peer == BASELINE else str(ratio(samples, peer, BASELINE)) if has_baseline else "–"
    cells = [
        scenario.title,
        PEERS[peer].words,
        f"{median(held.before_kib for held in own) / 1024:.1f}",
        f"{median(held.with_kib for held in own) / 1024:.1f}",
        against,
        f"{median(held.kib_per_connection for held in own):.1f}",
    ]
    return f"| {' | '.join(cells)} |"


@contextmanager
def _connections(scenario: IdleScenario, running: Running, count: int) -> Iterator[None]:
    """So many of them while it lasts, each having had its answer."""
    context = client_context() if scenario.tls else None
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(closing(_connect(running.ports[scenario.listener], context)))
        yield


def _connect(port: int, context: ssl.SSLContext | None) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    if context is not None:
        connection = context.wrap_socket(connection, server_hostname="bench.test")
    connection.sendall(_REQUEST)
    answer = b""
    while not answer.endswith(_ANSWER_END):
        received = connection.recv(4096)
        if not received:
            raise LoadError(f"an idle connection was closed after {answer[:60]!r}")
        answer += received
    return connection
