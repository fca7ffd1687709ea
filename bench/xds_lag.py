"""How long a control plane's pushes hold the loop that serves requests: full state, one endpoint, one large cluster.

    python -m bench.xds_lag [--delta] [CLUSTERS [ENDPOINTS_PER_CLUSTER]]

As `bench.loop_lag`, with everything from a control plane, which is a process of its own: clusters with endpoints of
their own, a listener, a route configuration with a virtual host for each cluster, and one cluster with as many
endpoints as all the others together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.route.v3.route_pb2 import RouteConfiguration

import meshproxy.filters.builtin  # noqa: F401  registers the filters
from bench.loop_lag import probed, scrape
from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from meshproxy.server.dynamic import DynamicResources
from meshproxy.server.options import Options
from meshproxy.server.supervisor import Supervisor
from tests.integration.config import cluster, forward
from tests.integration.dynamic import ads_bootstrap, eds_cluster, message, rds_listener
from tests.support.control_plane import ControlPlane

_LARGE = "outbound|80||large.default.svc.cluster.local"


# -- the control plane


async def serve(clusters: int, endpoints: int, application: int) -> None:
    """Print the port, then do what stdin says: `all N` (weights are N), `one N`, `large N`. With the port of an
    application, requests to any other host than those of the clusters go there."""
    async with ControlPlane.start() as plane:
        names = [f"outbound|80||service-{number}.default.svc.cluster.local" for number in range(clusters)]
        plane.set(ENDPOINT_TYPE, _endpoints(names, endpoints, 1), "1")
        hosts = [
            {"name": name, "domains": [name.rpartition("|")[2]], "routes": [forward("/", name, timeout="0s")]}
            for name in names
        ]
        fixed: dict[str, Any] = {}
        if application:
            fixed = {"application": message(Cluster, cluster("application", application))}
            hosts.append({"name": "application", "domains": ["*"], "routes": [forward("/", "application")]})
        plane.set(CLUSTER_TYPE, {**fixed, **{name: eds_cluster(name) for name in [*names, _LARGE]}}, "1")
        plane.set(ROUTE_TYPE, {"80": message(RouteConfiguration, {"name": "80", "virtual_hosts": hosts})}, "1")
        plane.set(LISTENER_TYPE, {"main": rds_listener("main", "80")}, "1")
        print(plane.port, flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            what, weight = line.split()
            changed = _endpoints(names, endpoints, 1)
            if what == "all":
                changed = _endpoints(names, endpoints, int(weight))
            elif what == "one":
                changed |= _endpoints(names[:1], endpoints, int(weight), last_only=True)
            else:
                changed[_LARGE] = _assignment(_LARGE, clusters * endpoints, int(weight), last_only=True)
            plane.set(ENDPOINT_TYPE, changed, weight)


def _endpoints(names: list[str], endpoints: int, weight: int, *, last_only: bool = False) -> dict[str, Any]:
    made = {name: _assignment(name, endpoints, weight, last_only=last_only) for name in names}
    if not last_only:
        made[_LARGE] = _assignment(_LARGE, len(names) * endpoints, weight)
    return made


def _assignment(name: str, endpoints: int, weight: int, *, last_only: bool = False) -> Any:
    """Addresses of a net that nobody asks; the weight is that of the last endpoint, or of all."""
    assignment = ClusterLoadAssignment(cluster_name=name)
    locality = assignment.endpoints.add()
    for number in range(endpoints):
        endpoint = locality.lb_endpoints.add()
        address = endpoint.endpoint.address.socket_address
        address.address, address.port_value = f"10.{number >> 14}.{number >> 7 & 127}.{number & 127}", 8080
        endpoint.load_balancing_weight.value = weight if not last_only or number == endpoints - 1 else 1
    return assignment


# -- the proxy


class _Has:
    """Whether the endpoints of a version are in force (with delta, versions are the resources' own: it is waited)."""

    def __init__(self, records: DynamicResources, version: str, delta: bool) -> None:
        self._records = records
        self._version = version
        self._delta = delta

    def __call__(self) -> bool:
        return self._delta or self._records.versions.get(ENDPOINT_TYPE) == self._version


async def measure(directory: Path, control: asyncio.subprocess.Process, *, delta: bool) -> None:
    assert control.stdin is not None
    assert control.stdout is not None
    stdin = control.stdin
    port = int(await control.stdout.readline())
    config, address = directory / "envoy.json", directory / "admin"
    bootstrap = json.loads(ads_bootstrap(port, delta=delta))
    config.write_text(json.dumps(bootstrap))
    supervisor = Supervisor(Options(config_path=str(config), admin_address_path=str(address), log_level="error"))
    records = supervisor.control_plane.resources

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)

    async with probed("full state"):
        running = asyncio.create_task(supervisor.run())
        await until(lambda: supervisor.state == 0 or running.done())
    version = 1
    for what in ("all", "one", "large", "all", "one", "large"):
        version += 1
        stdin.write(f"{what} {version}\n".encode())
        wanted = str(version)
        async with probed(f"endpoints: {what}"):
            await until(_Has(records, wanted, delta))
            await asyncio.sleep(1.0 if delta else 0.1)
    for target in ("/stats/prometheus", "/clusters", "/config_dump?include_eds"):
        async with probed(target):
            size = await scrape(await asyncio.to_thread(address.read_text), target)
        print(f"{'':28} {size / 1e6:.1f} MB")
    supervisor.quit()
    await running


async def start_control_plane(clusters: int, endpoints: int, application: int = 0) -> asyncio.subprocess.Process:
    """See `serve`."""
    numbers = [str(clusters), str(endpoints), "--serve", "--application", str(application)]
    command = [sys.executable, "-m", "bench.xds_lag", *numbers]
    return await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)


async def run(arguments: argparse.Namespace) -> None:
    """Both processes."""
    control = await start_control_plane(arguments.clusters, arguments.endpoints)
    with tempfile.TemporaryDirectory() as directory:
        try:
            await measure(Path(directory), control, delta=arguments.delta)
        finally:
            control.kill()
            await control.wait()


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clusters", type=int, nargs="?", default=1000)
    parser.add_argument("endpoints", type=int, nargs="?", default=10)
    parser.add_argument("--delta", action="store_true", help="incremental xDS")
    parser.add_argument("--serve", action="store_true", help="be the control plane")
    parser.add_argument("--application", type=int, default=0, metavar="PORT", help="where other requests go")
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve(arguments.clusters, arguments.endpoints, arguments.application))
    else:
        uvloop.run(run(arguments))


if __name__ == "__main__":
    main()
