"""Memory that was freed is kept for the next read.

Bulk data comes in pieces of 256 KiB, which are freed as soon as they are sent. glibc gives the top of its heap back to
the kernel at 128 KiB, or takes pieces of that size from the kernel each time: 64 page faults for every piece that comes
next, as much as reading it costs. What is kept is bounded.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

# mallopt(3): the parameter, and the environment variable by which a user may say otherwise.
_TRIM_THRESHOLD: Final = (-1, 16 * 1024 * 1024, "MALLOC_TRIM_THRESHOLD_")
_TOP_PAD: Final = (-2, 4 * 1024 * 1024, "MALLOC_TOP_PAD_")
_MMAP_THRESHOLD: Final = (-3, 1024 * 1024, "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> None:
    """Up to 16 MiB at the top of the heap. Where the C library is another one than glibc, nothing is done."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return
    for parameter, value, variable in (_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD):
        if variable not in os.environ:
            mallopt(parameter, value)
