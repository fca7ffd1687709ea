"""The benchmark of large clusters: one short run of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench.endpoints import CLUSTERS

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_short_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.endpoints", "--smoke"],
        cwd=ROOT,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = [line for line in done.stdout.splitlines() if not line.startswith(" ")][1:-1]
    assert names == [name + weights for name in CLUSTERS for weights in ("", ", weights")]
    assert done.stdout.splitlines()[-1].startswith("longest step: ")
