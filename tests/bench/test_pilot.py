"""The benchmark of the pilot: one short run of it, and its table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.pilot import Phase, Result, table

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_short_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.pilot", "--smoke", "--protocol", "delta"],
        cwd=ROOT,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in done.stdout.splitlines()[2:]]
    assert rows == [["5", "delta"]]


def test_the_table_shows_the_median_change() -> None:
    changes = [Phase([0.1, last], 0.5, 2_000_000) for last in (0.2, 0.9, 0.3)]
    everybody = Phase([1.0, 2.0], 4.0, 1)
    row = table([Result("delta", 2, everybody, everybody, 100.0, 60.0, changes, changes)]).splitlines()[-1]
    assert row == (
        "| 2 | delta | 2.00 s | 4.00 s | 2000.0 ms | 100 KiB | 60 MiB "
        "| 0.30 s / 0.30 s | 0.50 s | 2.0 MB | 0.30 s / 0.30 s | 0.50 s | 2.0 MB |"
    )
