"""The two proxies on one configuration, and the run and comparison of a case on both."""

import difflib
import itertools
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.differential.cases import (
    AwaitEnded,
    AwaitUpstream,
    AwaitWhole,
    Case,
    Close,
    Connect,
    Expect,
    Fire,
    HalfClose,
    Receive,
    ReceiveInterim,
    Reset,
    Step,
)
from tests.differential.outcome import Outcome
from tests.differential.topic import PROBE_DOMAIN, SERVERS, Topic
from tests.support.downstream import RawDownstream, exchange
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.upstream import Script, ScriptedUpstream
from tests.support.wire import ConnectionEnded, Message

DEADLINE_S = 4.0
OPEN_S = 0.3
PROBE = f"GET /__probe HTTP/1.1\r\nhost: {PROBE_DOMAIN}\r\n\r\n".encode()
SUBJECT_IS_ENVOY = os.environ.get("MESHPROXY_DIFF_SUBJECT") == "envoy"


class Side:
    """One proxy with an upstream and an access log of its own."""

    def __init__(self, name: str, topic: Topic, start: Callable[[str], ProxyProcess]) -> None:
        self.name = name
        self.upstream = ScriptedUpstream(SERVERS)
        self.dead = socket.socket()
        self.dead.bind(("127.0.0.1", 0))  # Never listens, so connections to it are refused.
        ports = self.upstream.ports | {"dead": self.dead.getsockname()[1]}
        self.directory = Path(tempfile.mkdtemp(prefix="differential-"))
        self.log_path = self.directory / "access.log"
        self._log_read = 0
        self._tokens = itertools.count(1)
        try:
            self.proxy = start(topic.bootstrap_yaml(ports, str(self.log_path)))
        except BaseException:
            self._clean()
            raise
        self.ports = self.proxy.listener_ports()
        self.port_names = {port: f"<{name}>" for name, port in (ports | self.ports).items()}

    def run(self, case: Case) -> Outcome:
        """Run one case from a fresh connection to its access log line."""
        script = self.upstream.play(case.upstream, case.by_server)
        run = CaseRun(self, case)
        try:
            run.play()
            run.outcome.connection = run.connection_state()
        except ConnectionEnded:
            run.outcome.connection = "closed"
        except TimeoutError:
            run.outcome.connection = "stalled"
        finally:
            run.downstream.close()
        return self._finish(case, run.outcome, script)

    def _finish(self, case: Case, outcome: Outcome, script: Script) -> Outcome:
        self.upstream.settle()
        outcome.seen = list(script.seen)
        if case.by_name:
            outcome.seen.sort(key=lambda seen: (seen.server, seen.message.get(b"host")))
        outcome.ports |= self.port_names
        lines = self.log_lines(case.listener)
        outcome.log = lines if case.log_bytes else [line.split(" rx=")[0] for line in lines]
        return outcome

    def log_lines(self, listener: str) -> list[str]:
        """Lines written since the last call, up to a request that marks the end of the case."""
        token = f"/__probe/{next(self._tokens)}"
        exchange(self.ports[listener], PROBE.replace(b"/__probe", token.encode()), DEADLINE_S)
        text = wait_for(lambda: self._log_until(token), f"the access log line of {token}", DEADLINE_S)
        self._log_read += len(text.encode("latin-1"))
        return [line for line in text.splitlines() if "/__probe" not in line]

    def _log_until(self, token: str) -> str:
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as file:
            file.seek(self._log_read)
            text = file.read().decode("latin-1")
        at = text.find(f" path={token} ")
        end = text.find("\n", at)
        return text[: end + 1] if at >= 0 and end >= 0 else ""

    def close(self) -> None:
        """Stop the proxy and its upstream."""
        self.proxy.stop()
        self._clean()
        assert not self.upstream.errors, self.upstream.errors

    def _clean(self) -> None:
        self.upstream.close()
        self.dead.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class CaseRun:
    """A case on one side, step by step."""

    def __init__(self, side: Side, case: Case) -> None:
        self.side = side
        self.case = case
        self.outcome = Outcome(given=b"".join(step for step in case.steps if isinstance(step, bytes)))
        self.methods: list[bytes] = list(case.methods)
        self.left = False
        self.connect()

    def connect(self) -> None:
        """A fresh downstream connection."""
        self.downstream = RawDownstream(self.side.ports[self.case.listener], timeout_s=DEADLINE_S)
        self.outcome.ports[self.downstream.local_port] = "<downstream>"

    def play(self) -> None:
        """Every step in turn."""
        for step in self.case.steps:
            self.step(step)

    def step(self, step: Step) -> None:
        """One step of the script."""
        match step:
            case bytes():
                data = step.replace(b"$HOST", self.case.domain.encode())
                if not self.methods:
                    self.methods = [data.lstrip(b"\r\n").split(b" ", 1)[0]]
                self.downstream.send(data)
            case Receive(count):
                for _ in range(count):
                    self.receive_final()
            case ReceiveInterim():
                self.receive()
            case AwaitUpstream(count):
                self.side.upstream.wait_seen(count)
            case AwaitWhole(count):
                self.side.upstream.wait_whole(count)
            case AwaitEnded(count):
                self.side.upstream.wait_ended(count)
            case Fire(event):
                self.side.upstream.fire(event)
            case HalfClose():
                self.downstream.half_close()
            case Connect():
                self.downstream.close()
                self.connect()
            case Close() | Reset():
                self.left = True
                self.downstream.reset() if isinstance(step, Reset) else self.downstream.close()

    def receive_final(self) -> None:
        """One final response and the interim ones before it."""
        while (status := self.receive().status) < 200 and status != 101:
            pass
        if len(self.methods) > 1:
            self.methods.pop(0)

    def receive(self) -> Message:
        """One response of any status."""
        message = self.downstream.receive(self.methods[0] if self.methods else b"GET")
        self.outcome.responses.append(message)
        return message

    def connection_state(self) -> str:
        """Whether the connection still answers another request."""
        if self.left:
            return "left"
        last = self.outcome.responses[-1] if self.outcome.responses else None
        if last is not None and b"close" in (last.get(b"connection") or b""):
            return "closed" if self.downstream.wait_end() else ""
        if not self.case.probe:
            return self._still_open()
        self.downstream.send(PROBE)
        while (message := self.downstream.receive()).status != 204 or message.body:
            self.outcome.responses.append(message)
        return "kept"

    def _still_open(self) -> str:
        self.downstream.sock.settimeout(OPEN_S)
        try:
            self.downstream.reader.fill()
        except TimeoutError:
            return "kept"
        return "more bytes"


@dataclass
class Pair:
    """The reference (the real Envoy) and the subject (meshproxy, or Envoy again to try the suite itself)."""

    reference: Side
    subject: Side
    pool: ThreadPoolExecutor

    def __post_init__(self) -> None:
        self.order_differences: dict[str, str] = {}

    def check(self, case: Case) -> None:
        """Run a case on both and assert that they agree, or differ exactly as it is declared."""
        expected, actual = self.run(case)
        if case.differs is not None:
            ours = case.differs.envoy if SUBJECT_IS_ENVOY else case.differs.ours
            check_expectation("Envoy", case, expected, case.differs.envoy)
            check_expectation("the subject", case, actual, ours)
            return
        difference = self._difference(case, expected, actual, ordered=False)
        assert not difference, f"{case.name}: Envoy (-) and the subject (+) differ\n{difference}"
        if order := self._difference(case, expected, actual, ordered=True):
            self.order_differences[case.name] = order

    def run(self, case: Case) -> tuple[Outcome, Outcome]:
        """Both outcomes, Envoy's first."""
        runs = [self.pool.submit(side.run, case) for side in (self.reference, self.subject)]
        return runs[0].result(), runs[1].result()

    def check_order(self) -> None:
        """Assert that headers stood in the same order too in every case that agreed."""
        assert not self.order_differences, "header order differs:\n" + "\n".join(
            f"{name}\n{difference}" for name, difference in self.order_differences.items()
        )

    def _difference(self, case: Case, expected: Outcome, actual: Outcome, *, ordered: bool) -> str:
        sides = [
            [
                line
                for line in outcome.lines(
                    ordered=ordered, log=case.log, connections=case.connections, upstream=case.compare_upstream
                )
                if not line.strip().startswith(case.ignore)
            ]
            for outcome in (expected, actual)
        ]
        return "" if sides[0] == sides[1] else "\n".join(difflib.ndiff(sides[0], sides[1]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.pool.shutdown()
        self.reference.close()
        self.subject.close()


def check_expectation(who: str, case: Case, outcome: Outcome, expect: Expect) -> None:
    """Assert one side's recorded answer to a case where the two differ."""
    upstream = None if expect.upstream is None else outcome.request_lines
    found = Expect(outcome.statuses, outcome.connection, upstream, expect.contains)
    text = "\n".join(outcome.lines())
    assert found == expect, f"{case.name}: {who} answered otherwise than recorded\n{found}\n{expect}\n{text}"
    for part in expect.contains:
        assert part in text, f"{case.name}: {who} lacks {part!r}\n{text}"


def start_pair(topic: Topic) -> Pair:
    """Start both proxies on a topic's configuration."""
    pool = ThreadPoolExecutor(2)
    subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    reference = pool.submit(Side, "envoy", topic, start_envoy)
    other = pool.submit(Side, "subject", topic, subject)
    failures = [future.exception() for future in (reference, other)]
    if any(failures):
        for future in (reference, other):
            if future.exception() is None:
                future.result().close()
        pool.shutdown()
        raise RuntimeError("\n".join(str(failure) for failure in failures if failure))
    return Pair(reference.result(), other.result(), pool)
