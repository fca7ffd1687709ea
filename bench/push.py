"""What requests notice of control work: latency at a fixed rate under pushes of a control plane, and under scrapes.

    python -m bench.push [--clusters N] [--endpoints N] [--seconds S] [--rate N]

meshproxy and Envoy follow the same control plane (a process of its own), one after the other: 1,000 clusters with ten
endpoints each and one with 10,000. Every second of a push all of them change; every second of a scrape Prometheus asks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from bench.peers import application
from bench.xds_lag import start_control_plane
from tests.integration.dynamic import ads_bootstrap
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

_CONNECTIONS = 16
_PHASES = ("quiet", "push", "scrape")


async def measure(start: Callable[[str], ProxyProcess], arguments: argparse.Namespace, port: int) -> dict[str, str]:
    """A line of each phase."""
    control = await start_control_plane(arguments.clusters, arguments.endpoints, port)
    assert control.stdout is not None
    try:
        xds_port = int(await control.stdout.readline())
        proxy = await asyncio.to_thread(start, ads_bootstrap(xds_port))
        try:
            listener = (await asyncio.to_thread(proxy.listener_ports))["main"]
            return {phase: await _phase(phase, control, proxy, listener, arguments) for phase in _PHASES}
        finally:
            await asyncio.to_thread(proxy.stop)
    finally:
        control.kill()
        await control.wait()


async def _phase(
    phase: str, control: asyncio.subprocess.Process, proxy: ProxyProcess, port: int, arguments: argparse.Namespace
) -> str:
    work = asyncio.create_task(_work(phase, control, proxy))
    command = [sys.executable, "-m", "bench.open_loop", str(port), str(arguments.seconds), str(arguments.rate)]
    load = await asyncio.create_subprocess_exec(*command, str(_CONNECTIONS), "http1", stdout=asyncio.subprocess.PIPE)
    output, _ = await load.communicate()
    work.cancel()
    with suppress(asyncio.CancelledError):
        await work
    times = sorted(json.loads(output))
    shares = (0.5, 0.99, 0.999)
    quantiles = [times[min(int(len(times) * share), len(times) - 1)] / 1000.0 for share in shares]
    return " ".join(f"{value:8.2f}" for value in [*quantiles, times[-1] / 1000.0])


async def _work(phase: str, control: asyncio.subprocess.Process, proxy: ProxyProcess) -> None:
    """What goes on meanwhile."""
    assert control.stdin is not None
    while phase == "push":
        control.stdin.write(f"all {int(time.monotonic() * 10) % 100 + 2}\n".encode())
        await asyncio.sleep(1.0)
    while phase == "scrape":
        await asyncio.to_thread(proxy.admin, "/stats/prometheus")
        await asyncio.sleep(1.0)


async def run(arguments: argparse.Namespace) -> None:
    """Both proxies."""
    print(f"{arguments.clusters} clusters; latency in ms at {arguments.rate} requests a second")
    print(f"{'':22} {'p50':>8} {'p99':>8} {'p99.9':>8} {'longest':>8}")
    with application() as port:
        for name, start in (("meshproxy", start_meshproxy), ("envoy", start_envoy)):
            for phase, line in (await measure(start, arguments, port)).items():
                print(f"{name:10} {phase:10}  {line}", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rate", type=int, default=500)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
