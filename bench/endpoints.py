"""How long the endpoints of one large cluster hold the event loop when they change, step by step.

    python -m bench.endpoints [--smoke] [ENDPOINTS]

Every step of the work is timed. The server runs steps for 2 ms at a time, so what counts is the longest of them.
Printed are, for each policy and change, the longest step, the CPU time in all, and the number of steps. The garbage
collector pauses meanwhile, as it does in the server.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import time
from collections.abc import Iterator
from typing import Any, Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster as ClusterMessage
from envoy.config.core.v3.health_check_pb2 import DRAINING
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from google.protobuf import json_format

from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.config.subscription import ResourceWatcher, Subscription, Subscriptions
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.stats import StatsRegistry
from meshproxy.upstream.build import build_cluster
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.manager import ClusterManager

_LIMIT_MS: Final = 5.0
_LOCALITIES: Final = 3
_SELECTORS: Final = [{"keys": ["version"]}, {"keys": ["stage"]}, {"keys": ["stage", "version"]}]

# What is measured: the fields of the cluster.
CLUSTERS: Final[dict[str, dict[str, Any]]] = {
    "ROUND_ROBIN": {},
    "LEAST_REQUEST": {"lb_policy": "LEAST_REQUEST"},
    "RANDOM": {"lb_policy": "RANDOM"},
    "ROUND_ROBIN, locality weights": {"common_lb_config": {"locality_weighted_lb_config": {}}},
    "RING_HASH, 100,000 places": {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": 100_000}},
    "MAGLEV": {"lb_policy": "MAGLEV"},
    "three subset selectors": {"lb_subset_config": {"fallback_policy": "ANY_ENDPOINT", "subset_selectors": _SELECTORS}},
}


class _Pushed(Subscriptions):
    """Remembers who watches."""

    def __init__(self) -> None:
        self.watchers: list[ResourceWatcher] = []

    def watch(self, source: Any, type_url: str, name: str, watcher: ResourceWatcher) -> Subscription:
        self.watchers.append(watcher)
        return _Watch()


class _Watch(Subscription):
    def close(self) -> None:
        """Nobody is told."""


class Steps:
    """Times of the steps of one piece of work."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self.total_ms = 0.0
        self.count = 0

    def run(self, steps: Iterator[None]) -> None:
        ended = False
        while not ended:
            began = time.thread_time()
            ended = next(steps, steps) is steps
            took_ms = (time.thread_time() - began) * 1000.0
            self.longest_ms = max(self.longest_ms, took_ms)
            self.total_ms += took_ms
            self.count += 1


def assignment(count: int, weights: bool, offset: int = 0) -> Any:
    """So many endpoints in three localities, with metadata; `offset` makes other addresses."""
    message = ClusterLoadAssignment(cluster_name="c")
    for place in range(_LOCALITIES):
        group = message.endpoints.add()
        group.locality.region = f"region-{place}"
        group.load_balancing_weight.value = place + 1
        for number in range(place, count, _LOCALITIES):
            entry = group.lb_endpoints.add()
            address = entry.endpoint.address.socket_address
            address.address = f"10.{offset}.{number // 256}.{number % 256}"
            address.port_value = 8080
            entry.load_balancing_weight.value = 1 + number % 5 if weights else 1
            labels = {"version": f"v{number % 3}", "stage": f"s{number % 2}"}
            entry.metadata.filter_metadata["envoy.lb"].update(labels)
    return message


class Bench:
    """One cluster, in a manager of its own."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._pushed = _Pushed()
        runtime, registry = Runtime(), StatsRegistry()
        self._dispatcher = Dispatcher(asyncio.get_running_loop())
        self._manager = ClusterManager(self._dispatcher, registry, runtime, None, random.Random(1).getrandbits)
        context = BuildContext(ConfigErrors(), runtime, registry)
        context.services = Services(self._dispatcher, self._manager, None, self._pushed)
        message = json_format.ParseDict(
            {"name": "c", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}, **fields}, ClusterMessage()
        )
        config = build_cluster(message, "", context)
        assert config is not None, str(context.errors)
        self._manager.add_or_update(config)

    @property
    def cluster(self) -> Cluster:
        cluster = self._manager.get("c")
        assert cluster is not None
        return cluster

    def push(self, message: Any) -> Steps:
        errors, steps = ConfigErrors(), Steps()
        steps.run(self._pushed.watchers[0].update(message, "1", errors))
        assert not errors, str(errors)
        return steps

    async def close(self) -> None:
        await self._manager.close()
        await self._dispatcher.close()


async def measure(fields: dict[str, Any], count: int, weights: bool) -> dict[str, Steps]:
    """What each change costs."""
    bench = Bench(fields)
    found: dict[str, Steps] = {}
    message = assignment(count, weights)
    found["first"] = bench.push(message)
    assert len(bench.cluster.hosts) == count
    found["same"] = bench.push(message)
    message.endpoints[1].lb_endpoints[1].health_status = DRAINING
    found["one drains"] = bench.push(message)
    del message.endpoints[1].lb_endpoints[1]
    found["one leaves"] = bench.push(message)
    found["all others"] = bench.push(assignment(count, weights, 1))
    found["none left"] = bench.push(ClusterLoadAssignment(cluster_name="c"))
    await bench.close()
    gc.collect()
    return found


async def main(count: int) -> None:
    print(f"{count} endpoints: longest step / CPU time in all, ms (steps)")
    gc.disable()
    longest = 0.0
    for name, fields in CLUSTERS.items():
        for weights in (False, True):
            found = await measure(fields, count, weights)
            longest = max(longest, *(steps.longest_ms for steps in found.values()))
            print(f"{name}{', weights' if weights else ''}")
            for change, steps in found.items():
                print(f"  {change:<12}{steps.longest_ms:8.2f} /{steps.total_ms:8.1f} ({steps.count})")
    print(f"longest step: {longest:.2f} ms (the limit is {_LIMIT_MS:g})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("endpoints", nargs="?", type=int, default=10_000)
    parser.add_argument("--smoke", action="store_true", help="few endpoints: only to see that it runs")
    arguments = parser.parse_args()
    asyncio.run(main(100 if arguments.smoke else arguments.endpoints))
