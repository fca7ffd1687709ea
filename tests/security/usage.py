"""What a proxy holds: memory, and descriptors."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tests.integration.proxy import children, rss_kib
from tests.support.proxy import ProxyProcess


@dataclass(frozen=True)
class Usage:
    """Of a proxy's processes together. It must have been started so that others may look into it."""

    rss_mib: float
    descriptors: int


def usage(proxy: ProxyProcess) -> Usage:
    pids = [proxy.pid, *children(proxy.pid)]
    rss = sum(rss_kib(pid) for pid in pids) / 1024
    return Usage(rss, sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids))
