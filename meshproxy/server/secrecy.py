"""Keys in memory stay there: no core dump has them, and no other process of the same user reads them."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
from typing import Final

_log: Final = logging.getLogger("meshproxy.main")

_PR_SET_DUMPABLE: Final = 4  # prctl(2)


def keep_memory_private() -> None:
    """For this process: those that it starts inherit the limit of core dumps, and say the rest for themselves, since
    exec(2) forgets it. A debugger needs `--enable-core-dump`, or CAP_SYS_PTRACE."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None or prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        reason = os.strerror(ctypes.get_errno()) if prctl is not None else "there is no prctl"
        _log.warning("other processes of this user can read the memory of this one: %s", reason)
