"""Scale, by the benchmarks themselves: what many clients are told, and how long large state holds the loop."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.long

_HELD = re.compile(r"^(.+?) +took +\d+ ms +longest holds \(ms\): ([\d. ]+?) +over 5 ms:", re.MULTILINE)
# A full garbage collection, or all of it in one go, takes 200 ms and more; what is known to be done in one go, less.
_LONGEST_HOLD_MS = 100.0
_OF_ONE_CLUSTER_MS = 200.0  # /clusters writes one with 10,000 hosts in one go


def run(*arguments: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, stdin=subprocess.DEVNULL, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("protocol", ["sotw", "delta"])
def test_a_pilot_with_400_clients(protocol: str) -> None:
    """All of them have everything, and every change: the benchmark ends only then."""
    printed = run("bench.pilot", "--clients", "400", "--protocol", protocol, "--changes", "2")
    (row,) = printed.splitlines()[2:]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:2] == ["400", protocol]
    everything_s, *_ = numbers(cells[2])
    endpoint_s, rule_s = numbers(cells[7])[0], numbers(cells[10])[0]
    assert everything_s < 120.0
    assert max(endpoint_s, rule_s) < 60.0
    endpoint_mb, rule_mb = numbers(cells[9])[0], numbers(cells[12])[0]
    assert endpoint_mb > 0.0
    assert rule_mb > endpoint_mb


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+", cell)]


def test_1_000_clusters_with_10_000_endpoints_hold_nobody_up() -> None:
    """State of the world; with delta the benchmark cannot tell which work is whose."""
    printed = run("bench.xds_lag", "1000", "10")
    holds = {what: max(map(float, worst.split())) for what, worst in _HELD.findall(printed)}
    assert set(holds) == {
        "full state",
        *(f"endpoints: {what}" for what in ("all", "one", "large")),
        "/stats/prometheus",
        "/clusters",
        "/config_dump?include_eds",
    }
    assert holds.pop("/clusters") < _OF_ONE_CLUSTER_MS, printed
    assert max(holds.values()) < _LONGEST_HOLD_MS, printed
