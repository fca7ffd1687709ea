"""How long control work holds the event loop that serves requests: a big configuration, its reload, and a scrape.

    python -m bench.loop_lag [CLUSTERS [ENDPOINTS_PER_CLUSTER]]

One process is supervisor and worker; a probe wakes up every millisecond and takes down how much CPU time the thread has
spent meanwhile. Printed are the longest holds of each kind of work, and how long it took in all.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

import meshproxy.filters.builtin  # noqa: F401  registers the filters
from meshproxy.server.options import Options
from meshproxy.server.supervisor import Supervisor

_INTERVAL_S = 0.001
_WORST = 5
_LIMIT_MS = 5.0
_ROUTER = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
_MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def config(clusters: int, endpoints: int, weight: int) -> str:
    """A bootstrap with so many clusters, a route to each, and endpoints of this weight."""
    names = [f"outbound|80||service-{number}.default.svc.cluster.local" for number in range(clusters)]
    manager: dict[str, Any] = {
        "@type": _MANAGER,
        "stat_prefix": "main",
        "route_config": {"name": "routes", "virtual_hosts": [_virtual_host(name) for name in names]},
        "http_filters": [{"name": "router", "typed_config": _ROUTER}],
    }
    listener = {
        "name": "main",
        "address": _address(0),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    static = {"listeners": [listener], "clusters": [_cluster(name, endpoints, weight) for name in names]}
    return _yaml({"admin": {"address": _address(0)}, "static_resources": static})


def _virtual_host(name: str) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}}
    return {"name": name, "domains": [name.rpartition("|")[2]], "routes": [route]}


def _cluster(name: str, endpoints: int, weight: int) -> dict[str, Any]:
    hosts = [
        {"endpoint": {"address": _address(1024 + number)}, "load_balancing_weight": weight}
        for number in range(endpoints)
    ]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _yaml(tree: dict[str, Any]) -> str:
    """Block style at the top, as people and generators write it; JSON below."""
    lines = [f"admin: {json.dumps(tree['admin'])}", "static_resources:"]
    for field, resources in tree["static_resources"].items():
        lines.append(f"  {field}:")
        lines.extend(f"  - {json.dumps(resource)}" for resource in resources)
    return "\n".join(lines) + "\n"


class Probe:
    """Wakes up every millisecond; `held_ms` is the CPU time that the loop's thread spent from one time to the next."""

    def __init__(self) -> None:
        self.held_ms: list[float] = []

    async def run(self) -> None:
        """Until it is cancelled."""
        before = time.thread_time()
        while True:
            await asyncio.sleep(_INTERVAL_S)
            now = time.thread_time()
            self.held_ms.append((now - before) * 1000.0)
            before = now


@asynccontextmanager
async def probed(what: str) -> AsyncIterator[None]:
    """Print how long the work in the block took, and its longest holds."""
    probe = Probe()
    task = asyncio.create_task(probe.run())
    await asyncio.sleep(0.05)
    probe.held_ms.clear()
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    await asyncio.sleep(0.01)
    task.cancel()
    worst = " ".join(f"{held:.1f}" for held in sorted(probe.held_ms, reverse=True)[:_WORST])
    over = sum(held > _LIMIT_MS for held in probe.held_ms)
    print(f"{what:28} took {took * 1000:7.0f} ms   longest holds (ms): {worst}   over 5 ms: {over}", flush=True)


async def scrape(address: str, target: str) -> int:
    """Bytes of an admin answer, read to the end by another process: its work must not be ours."""
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{size_download}", f"http://{address}{target}"]
    done = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, check=True)
    return int(done.stdout)


async def measure(path: Path, address: Path, changed: str) -> None:
    """Start on one configuration, reload to another, and ask the admin."""
    supervisor = Supervisor(Options(config_path=str(path), admin_address_path=str(address), log_level="error"))
    running = asyncio.create_task(supervisor.run())
    while not supervisor.server_stats.uptime and not running.done():
        supervisor.refresh_stats()
        await asyncio.sleep(0.05)
    async with probed("nothing"):
        await asyncio.sleep(0.5)
    await asyncio.to_thread(path.write_text, changed)
    async with probed("reload, all changed"):
        await supervisor.reload()
    async with probed("reload, nothing changed"):
        await supervisor.reload()
    for target in ("/stats/prometheus", "/stats/prometheus", "/stats", "/clusters", "/config_dump?include_eds"):
        async with probed(target):
            size = await scrape(await asyncio.to_thread(address.read_text), target)
        print(f"{'':28} {size / 1e6:.1f} MB")
    supervisor.quit()
    await running


def main(clusters: int, endpoints: int) -> None:
    """Write the configurations and measure."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "envoy.yaml")
        path.write_text(config(clusters, endpoints, 1))
        print(f"{clusters} clusters, {clusters * endpoints} endpoints, {path.stat().st_size / 1e6:.1f} MB of YAML")
        uvloop.run(measure(path, Path(directory, "admin"), config(clusters, endpoints, 2)))


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [1000, 10][len(numbers) :]))
