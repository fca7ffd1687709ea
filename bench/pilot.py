"""What a pilot costs with many proxies on it: `python -m bench.pilot [--clients N …] [--protocol NAME …] [--smoke]`.

A pilot is started on a directory of rules: 1,000 services with 10 endpoints each, one rule for each tenth of them. The
clients are cheap ones, in another process (bench.pilot_clients), each on a connection of its own. They share the
machine's cores with the pilot, so times are theirs too; CPU and memory are the pilot's alone. A change is a file that
is written: its time counts from there until the last client has the response, and so has the look at the directory in
it, and the debounce. The result is a table in Markdown on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final

from bench.cpu import tree_cpu_us, tree_rss_kib

_SERVICES: Final = 1000
_ENDPOINTS: Final = 10
_PER_FILE: Final = 10
_CHANGES: Final = 5
_START_S: Final = 60.0
_STEADY_S: Final = 2.0
_HEADINGS: Final = (
    "| clients | protocol | all have everything | CPU | a client | memory a client | resident "
    "| one endpoint: last / p99 | CPU | bytes | one rule: last / p99 | CPU | bytes |"
)
_WHAT: Final = {"endpoint": "endpoints", "rule": "routes"}


@dataclass(frozen=True, slots=True)
class Phase:
    """What one thing cost. `when` is how long each client had to wait."""

    when: Sequence[float]
    cpu_s: float
    bytes: int

    def after(self, share: float) -> float:
        """When this share of the clients had it."""
        ordered = sorted(self.when)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def last(self) -> float:
        """When the last one had it."""
        return max(self.when)


@dataclass(frozen=True, slots=True)
class Result:
    """One run."""

    protocol: str
    clients: int
    first: Phase  # one client alone: its snapshot is built
    all: Phase
    kib_a_client: float
    rss_mib: float
    endpoint: Sequence[Phase]
    rule: Sequence[Phase]


class Rules:
    """The directory."""

    def __init__(self, folder: Path, services: int) -> None:
        self._folder = folder
        self._services = services
        self._changes = 0
        for number in range(0, services, _PER_FILE):
            self._write(number, 0)
        self._write_rule(0)

    def change(self, what: str) -> None:
        """One endpoint of one service, or one rule."""
        self._changes += 1
        if what == "endpoint":
            self._write(0, self._changes)
        else:
            self._write_rule(self._changes)

    def _write(self, first: int, change: int) -> None:
        last = min(first + _PER_FILE, self._services)
        text = "---\n".join(_service(number, change if number == first else 0) for number in range(first, last))
        self._replace(f"services-{first}.yaml", text)

    def _write_rule(self, change: int) -> None:
        self._replace("rules.yaml", "---\n".join(_rule(number, change) for number in range(0, self._services, 10)))

    def _replace(self, name: str, text: str) -> None:
        path = self._folder / f".{name}"
        path.write_text(text)
        path.replace(self._folder / name)


def _service(number: int, change: int) -> str:
    rows = [f"    - address: 10.{10 + number // 250}.{number % 250}.{index}\n" for index in range(_ENDPOINTS)]
    if change:
        rows[0] = f"    - address: 10.99.{change // 250}.{change % 250}\n"
    return f"""\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: service-{number}, namespace: default}}
spec:
  hosts: [service-{number}.default.svc.cluster.local]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints:
{"".join(rows)}"""


def _rule(number: int, change: int) -> str:
    timeout = 5 + change if number == 0 else 5
    return f"""\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: service-{number}, namespace: default}}
spec:
  hosts: [service-{number}]
  http:
    - timeout: {timeout}s
      route: [{{destination: {{host: service-{number}}}}}]
"""


class Pilot:
    """The process."""

    def __init__(self, rules: Path, folder: Path) -> None:
        address_path = folder / "addresses"
        listen = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--address-path", str(address_path)]
        command = [sys.executable, "-m", "meshproxy", "pilot", "--rules", str(rules), *listen, "-l", "warning"]
        self.process = subprocess.Popen([*command, "--drain-time-s", "0"])
        addresses = self._until(lambda: json.loads(address_path.read_text()) if address_path.exists() else None)
        self.target: str = addresses["xds"][0]
        self._http: str = addresses["http"]
        self._until(lambda: self.page("/ready") == "ready\n")

    def _until(self, look: Callable[[], Any]) -> Any:
        end = time.monotonic() + _START_S
        while not (found := look()):
            if time.monotonic() > end or self.process.poll() is not None:
                raise RuntimeError("the pilot has not started")
            time.sleep(0.05)
        return found

    def page(self, path: str) -> str:
        """What it says; empty as long as it is not ready."""
        try:
            with urllib.request.urlopen(f"http://{self._http}{path}", timeout=60) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        return tree_cpu_us(self.process.pid) / 1e6

    def rss_kib(self) -> int:
        """Resident memory."""
        return tree_rss_kib(self.process.pid)

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self.process.terminate()
        self.process.wait()


class Clients:
    """Their process."""

    def __init__(self, target: str, protocol: str, settle_s: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.pilot_clients", target, protocol, str(settle_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self, line: str) -> None:
        """A command."""
        _pipe(self.process.stdin).write(line + "\n")
        _pipe(self.process.stdin).flush()

    def hear(self) -> Any:
        """The next answer. Raises RuntimeError when there is none."""
        line = _pipe(self.process.stdout).readline()
        if not line:
            raise RuntimeError("the clients have failed")
        return json.loads(line)

    def stop(self) -> None:
        """Close the connections."""
        _pipe(self.process.stdin).close()
        self.process.wait()


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise RuntimeError("there is no pipe")
    return stream


@contextmanager
def _running(rules: Path, protocol: str, settle_s: float) -> Iterator[tuple[Pilot, Clients]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="pilot-")))
        pilot = Pilot(rules, folder)
        stack.callback(pilot.stop)
        clients = Clients(pilot.target, protocol, settle_s)
        stack.callback(clients.stop)
        yield pilot, clients


def measure(protocol: str, clients: int, services: int, changes: int, steady_s: float) -> Result:
    """One run, with a pilot of its own; for `steady_s` before and after each change nothing else happens."""
    with TemporaryDirectory(prefix="rules-") as folder:
        rules = Rules(Path(folder), services)
        with _running(Path(folder), protocol, steady_s) as (pilot, crowd):
            first = _connect(pilot, crowd, 1)
            before_kib = pilot.rss_kib()
            everybody = _connect(pilot, crowd, clients - 1)
            kib_a_client = (pilot.rss_kib() - before_kib) / (clients - 1)
            found: dict[str, list[Phase]] = {what: [] for what in _WHAT}
            for what, phases in found.items():
                for _ in range(changes):
                    phases.append(_change(pilot, crowd, rules, what, steady_s))
            rss_mib = pilot.rss_kib() / 1024
        return Result(protocol, clients, first, everybody, kib_a_client, rss_mib, found["endpoint"], found["rule"])


def _connect(pilot: Pilot, crowd: Clients, count: int) -> Phase:
    cpu_s, began = pilot.cpu_s(), time.monotonic()
    crowd.say(f"connect {count}")
    answer = crowd.hear()
    return Phase([at - began for at in answer["when"]], pilot.cpu_s() - cpu_s, answer["bytes"])


def _change(pilot: Pilot, crowd: Clients, rules: Rules, what: str, steady_s: float) -> Phase:
    crowd.say(f"expect {_WHAT[what]}")
    crowd.hear()
    idle_s = _idle_cpu_s(pilot, steady_s)
    cpu_s, began = pilot.cpu_s(), time.monotonic()
    rules.change(what)
    answer = crowd.hear()
    took_s = time.monotonic() - began
    cpu_s = pilot.cpu_s() - cpu_s - idle_s * took_s  # what it does anyway, as looking at the directory
    return Phase([at - began for at in answer["when"]], max(cpu_s, 0.0), answer["bytes"])


def _idle_cpu_s(pilot: Pilot, steady_s: float) -> float:
    """What a second costs in which nothing happens."""
    cpu_s = pilot.cpu_s()
    time.sleep(steady_s)
    return (pilot.cpu_s() - cpu_s) / steady_s


def table(results: Iterable[Result]) -> str:
    """In Markdown."""
    rows = [_HEADINGS, "|" + "---:|" * _HEADINGS.count(" |")]
    for result in results:
        endpoint, rule = _typical(result.endpoint), _typical(result.rule)
        rows.append(
            f"| {result.clients} | {result.protocol} | {result.all.last:.2f} s | {result.all.cpu_s:.2f} s "
            f"| {1000 * result.all.cpu_s / result.clients:.1f} ms | {result.kib_a_client:.0f} KiB "
            f"| {result.rss_mib:.0f} MiB | {_change_cells(endpoint)} | {_change_cells(rule)} |"
        )
    return "\n".join(rows)


def _typical(phases: Sequence[Phase]) -> Phase:
    """The median one, by when the last client had it."""
    return sorted(phases, key=lambda phase: phase.last)[len(phases) // 2]


def _change_cells(phase: Phase) -> str:
    return f"{phase.last:.2f} s / {phase.after(0.99):.2f} s | {phase.cpu_s:.2f} s | {phase.bytes / 1e6:.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[400, 1000, 5000])
    parser.add_argument("--protocol", nargs="+", choices=("sotw", "delta"), default=["sotw", "delta"])
    parser.add_argument("--services", type=int, default=_SERVICES)
    parser.add_argument("--changes", type=int, default=_CHANGES, help="of each kind; the median one is shown")
    parser.add_argument("--smoke", action="store_true", help="a handful of everything: does it run?")
    options = parser.parse_args()
    if options.smoke:
        options.clients, options.services, options.changes = [5], 20, 1
    steady_s = 0.1 if options.smoke else _STEADY_S
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    results = []
    for clients in options.clients:
        for protocol in options.protocol:
            print(f"{clients} clients, {protocol} …", file=sys.stderr, flush=True)
            results.append(measure(protocol, clients, options.services, options.changes, steady_s))
    print(table(results))


if __name__ == "__main__":
    main()
