"""The two clocks: durations are measured on the monotonic one, and shown as wall time."""

from __future__ import annotations

import time
from typing import Final

monotonic: Final = time.monotonic


def wall_time(at: float) -> float:
    """The Unix time, in seconds, of a reading of the monotonic clock (taken in this process)."""
    return time.time() - (time.monotonic() - at)
