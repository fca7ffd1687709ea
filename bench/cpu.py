"""CPU time and memory of a process and everything under it, as the kernel accounts for them in /proc/<pid>."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

_TICK_US: Final = 1e6 / os.sysconf("SC_CLK_TCK")
_PAGE_KIB: Final = os.sysconf("SC_PAGE_SIZE") // 1024
# Positions after the command's closing parenthesis (proc(5) counts the state as field 3).
_PARENT: Final = 4 - 3
_TIMES: Final = slice(14 - 3, 18 - 3)  # utime, stime, and cutime, cstime of children that were waited for


class ProcessTimes(NamedTuple):
    """One process: its parent, and the CPU ticks of it and of its reaped children."""

    parent: int
    ticks: int


def tree_cpu_us(*roots: int) -> float:
    """User and system µs that `roots`, their living descendants and reaped children have used so far."""
    processes = _processes()
    return sum(processes[pid].ticks for root in roots for pid in tree_of(root, processes)) * _TICK_US


def tree_rss_kib(*roots: int) -> int:
    """Resident memory of `roots` and their living descendants; pages that several of them share count for each."""
    return sum(_rss_kib(pid) for root in roots for pid in tree_of(root))


def tree_of(root: int, processes: dict[int, ProcessTimes] | None = None) -> list[int]:
    """`root` and its living descendants."""
    processes = _processes() if processes is None else processes
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found = [root]
    for pid in found:  # grows while it is walked
        found += children.get(pid, ())
    return found


def _rss_kib(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/statm").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it ended since it was listed
    return int(text.split()[1]) * _PAGE_KIB


def _processes() -> dict[int, ProcessTimes]:
    found: dict[int, ProcessTimes] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended between the listing and the reading
        fields = text.rpartition(")")[2].split()
        found[int(folder.name)] = ProcessTimes(int(fields[_PARENT]), sum(map(int, fields[_TIMES])))
    return found
