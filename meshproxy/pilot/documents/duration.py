"""Durations as Go writes them, which is how Istio's and the Gateway API's documents do: `1h`, `1m30s`, `250ms`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

_UNITS_US: Final = {"h": 3_600_000_000.0, "m": 60_000_000.0, "s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "µs": 1.0}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(h|ms|m|s|us|µs|ns)")
_WHOLE: Final = re.compile(rf"(?:{_PART.pattern})+")


def parse_duration(text: str) -> timedelta | None:
    """The duration, to the microsecond; None when `text` is none."""
    if text == "0":
        return timedelta()
    if not _WHOLE.fullmatch(text):
        return None
    microseconds = sum(float(number) * _UNITS_US.get(unit, 0.001) for number, unit in _PART.findall(text))
    try:
        return timedelta(microseconds=microseconds)
    except OverflowError:
        return None


def duration_text(value: timedelta) -> str:
    """The shortest way to write it in whole units: `90s`, `1500ms`."""
    microseconds = value // timedelta(microseconds=1)
    for unit, size in (("s", 1_000_000), ("ms", 1_000)):
        if microseconds % size == 0:
            return f"{microseconds // size}{unit}"
    return f"{microseconds}us"
