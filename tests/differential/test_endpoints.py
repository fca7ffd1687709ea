"""`/config_dump?include_eds`: the endpoints that are in use, resolved, with their health."""

import json
from typing import Any

from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

CONFIG = """
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  clusters:
  - name: static
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: other
      policy: {overprovisioning_factor: 150}
      endpoints:
      - locality: {region: z, zone: b}
        lb_endpoints:
        - {endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9}}}, health_status: UNHEALTHY}
        - endpoint: {hostname: h, address: {socket_address: {address: 127.0.0.1, port_value: 10}}}
          health_status: DEGRADED
          metadata: {filter_metadata: {envoy.lb: {canary: true, n: 1.5}}}
      - locality: {region: a, zone: b, sub_zone: c}
        lb_endpoints:
        - {endpoint: {address: {pipe: {path: /tmp/x}}}}
        - endpoint:
            address: {socket_address: {address: 127.0.0.1, port_value: 13}}
            additional_addresses:
            - {address: {socket_address: {address: "::1", port_value: 14}}}
            - {address: {pipe: {path: /tmp/y}}}
      - locality: {region: z, zone: b}
        priority: 1
        lb_endpoints:
        - endpoint: {address: {socket_address: {address: "::1", port_value: 11}}}
          health_status: DRAINING
          load_balancing_weight: 5
      - locality: {region: z, zone: b}
        lb_endpoints:
        - {endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 12}}}, health_status: TIMEOUT}
  - name: dns
    type: STRICT_DNS
    connect_timeout: 1s
    dns_lookup_family: V4_ONLY
    load_assignment:
      cluster_name: names
      endpoints:
      - lb_endpoints:
        - {endpoint: {address: {socket_address: {address: localhost, port_value: 9}}}}
        - {endpoint: {hostname: named, address: {socket_address: {address: localhost, port_value: 10}}}}
        - {endpoint: {address: {socket_address: {address: 127.0.0.3, port_value: 10}}}}
  - {name: none, type: STATIC, connect_timeout: 1s}
"""


def dump(proxy: ProxyProcess, query: str = "") -> list[dict[str, Any]]:
    """The load assignments that are shown."""
    configs = json.loads(proxy.admin(f"/config_dump?include_eds{query}")[1])["configs"]
    section = next(config for config in configs if config["@type"].endswith("EndpointsConfigDump"))
    return [one["endpoint_config"] for one in section["static_endpoint_configs"]]


def without_empty_metadata(assignments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Envoy gives resolved endpoints metadata, empty as it is."""
    for assignment in assignments:
        for locality in assignment.get("endpoints", ()):
            for endpoint in locality["lb_endpoints"]:
                if not endpoint.get("metadata", True):
                    del endpoint["metadata"]
    return assignments


def test_endpoints_are_those_in_use() -> None:
    with start_envoy(CONFIG) as envoy, start_meshproxy(CONFIG) as ours:
        assert without_empty_metadata(dump(ours)) == without_empty_metadata(dump(envoy))
        assert [one["cluster_name"] for one in dump(ours, "&name_regex=no.*")] == ["none"]


def test_with_two_workers() -> None:
    with start_meshproxy(CONFIG, "--concurrency", "2") as two, start_meshproxy(CONFIG) as one:
        assert dump(two) == dump(one)
