"""What a proxy's memory holds stays there: no core dumps, and no reading by others of the same user."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.differential.test_secrets import Files, server
from tests.differential.tls import Client, TlsChain, TlsListener, TlsSide, World
from tests.integration.proxy import children
from tests.support.polling import wait_for
from tests.support.proxy import MESHPROXY_ARGUMENTS, ProxyProcess
from tests.tls.certificates import world

READ = "import sys; open('/proc/' + sys.argv[1] + '/maps', 'rb').read(16)"
# Root without any capability: whom the kernel asks as it asks anybody.
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


def start(*arguments: str) -> Callable[[str], ProxyProcess]:
    """A proxy with two workers."""
    command = [*UNPRIVILEGED, sys.executable, "-m", "meshproxy", "run", "--concurrency", "2", *MESHPROXY_ARGUMENTS]
    return lambda config: ProxyProcess([*command, *arguments], config)


def may_be_read(pid: int) -> bool:
    """Whether another process of its user can see its memory."""
    command = [*UNPRIVILEGED, sys.executable, "-c", READ, str(pid)]
    reader = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert reader.returncode == 0 or "PermissionError" in reader.stderr, reader.stderr
    return reader.returncode == 0


def core_limit(pid: int) -> str:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[4] for line in lines if line.startswith("Max core file size"))


@pytest.mark.parametrize(
    "arguments", [(), pytest.param(("--enable-core-dump",), marks=pytest.mark.long)], ids=["private", "debugged"]
)
def test_memory_is_private(arguments: tuple[str, ...]) -> None:
    """Of the supervisor and of each worker, also of one that takes the place of another; and keys are still loaded."""
    with Files() as files:
        files.certificate("server", world().server)
        made = World({"one": TlsListener({"one": TlsChain(server(files.secret("server")))})})
        with TlsSide(made, start(*arguments)) as side:
            pid = side.proxy.pid
            workers = wait_for(lambda: both(pid), "two workers")
            os.kill(workers[0], 9)
            wait_for(lambda: workers[0] not in children(pid) and both(pid), "another worker")
            for _ in range(4):
                assert side.run("one", Client())["answer"] == "200 one"
            assert side.proxy.admin("/memory")[0] == 200  # of its own it may still read
            for each in (pid, *children(pid)):
                wait_for(lambda: may_be_read(each) == bool(arguments), "a process that has begun")  # noqa: B023
                assert arguments or core_limit(each) == "0"


def both(pid: int) -> list[int]:
    found = children(pid)
    return found if len(found) == 2 else []
