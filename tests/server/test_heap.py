"""Bulk data comes and goes without the kernel: freed memory is there for the next pieces."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import meshproxy

ROOT = Path(meshproxy.__file__).parent.parent  # of the build that is tested

# Pieces as large as what is read at once; after a few turns none should need pages that it has to ask the kernel for.
PROGRAM = """
import resource
from meshproxy.server.heap import keep_freed_memory
{call}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(25):
    if turn == 5:
        before = faults()
    pieces = [b"x" * 250_000 for _ in range(8)]
    del pieces
print(faults() - before)
"""


def faults(call: str, environment: dict[str, str]) -> int:
    """Page faults of twenty turns in a process of its own."""
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    return int(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_not_asked_for_again() -> None:
    assert faults("", {}) > 1000
    assert faults("keep_freed_memory()", {}) < 100


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize(
    "environment",
    [
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=131072"},
        {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TOP_PAD_": "0", "MALLOC_TRIM_THRESHOLD_": "131072"},
    ],
)
def test_who_says_otherwise_is_heard(environment: dict[str, str]) -> None:
    assert faults("keep_freed_memory()", environment) > 1000
