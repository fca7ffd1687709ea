"""Sorting in steps: that of a large table would hold the event loop for too long."""

from __future__ import annotations

from collections.abc import Generator
from heapq import merge
from itertools import islice
from typing import Any, Final

_RUN: Final = 4096  # elements that are sorted in one go
_MERGED: Final = 1024


def sort_in_steps(elements: list[Any]) -> Generator[None, None, list[Any]]:
    """The elements in order: they are sorted in parts, which are merged then."""
    if len(elements) <= _RUN:
        return sorted(elements)
    runs: list[list[Any]] = []
    for start in range(0, len(elements), _RUN):
        runs.append(sorted(elements[start : start + _RUN]))
        yield
    merged = merge(*runs)
    ordered: list[Any] = []
    while len(ordered) < len(elements):
        ordered.extend(islice(merged, _MERGED))
        yield
    return ordered
