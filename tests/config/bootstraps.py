"""A realistic bootstrap, and ways to spoil it."""

from __future__ import annotations

import copy
from typing import Any

import yaml

HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
HCM_PATH = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config"
VHOST_PATH = f"{HCM_PATH}.route_config.virtual_hosts[0]"
ROUTE_PATH = f"{VHOST_PATH}.routes[0]"
CLUSTER_PATH = "static_resources.clusters[0]"

GOOD = """
node: {id: sidecar-1, cluster: shop, metadata: {role: edge}}
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 0}}
layered_runtime:
  layers:
  - {name: base, static_layer: {fault.http.abort.abort_percent: 0}}
  - {name: admin, admin_layer: {}}
static_resources:
  listeners:
  - name: ingress
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    per_connection_buffer_limit_bytes: 65536
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": HCM
          stat_prefix: ingress
          stream_idle_timeout: 5s
          access_log:
          - name: stdout
            typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog}
          route_config:
            name: local
            virtual_hosts:
            - name: shop
              domains: ["*"]
              routes:
              - match:
                  prefix: /
                  headers: [{name: user-agent, string_match: {safe_regex: {regex: ".*iPhone.*"}}}]
                route:
                  weighted_clusters: {clusters: [{name: v1, weight: 95}, {name: v1, weight: 5}]}
                  retry_policy: {retry_on: "5xx,reset", num_retries: 2, per_try_timeout: 0.5s}
              - match: {prefix: /}
                route: {cluster: v1, timeout: 1.5s}
                typed_per_filter_config:
                  cors:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy
                    allow_origin_string_match: [{exact: "https://shop.example"}]
          http_filters:
          - name: cors
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
          - name: fault
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
              abort: {http_status: 503, percentage: {numerator: 0}}
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: v1
    connect_timeout: 0.25s
    type: STATIC
    lb_policy: LEAST_REQUEST
    circuit_breakers: {thresholds: [{max_connections: 100, max_retries: 3}]}
    outlier_detection: {consecutive_5xx: 5, enforcing_success_rate: 0}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {idle_timeout: 60s}
        explicit_http_config: {http_protocol_options: {}}
    load_assignment:
      cluster_name: v1
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8001}}}
""".replace("HCM", HCM)


def good() -> dict[str, Any]:
    """The bootstrap as plain values, free to be changed."""
    value: dict[str, Any] = yaml.safe_load(GOOD)
    return value


def hcm(bootstrap: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]
    inner: dict[str, Any] = config["typed_config"]
    return inner


def spoil(where: str, field: str, value: Any) -> dict[str, Any]:
    """The good bootstrap with one field set: in the connection manager, virtual host, route, cluster, listener or root.

    A `field` with dots reaches deeper.
    """
    bootstrap = good()
    manager = hcm(bootstrap)
    vhost = manager["route_config"]["virtual_hosts"][0]
    places: dict[str, dict[str, Any]] = {
        "root": bootstrap,
        "listener": bootstrap["static_resources"]["listeners"][0],
        "chain": bootstrap["static_resources"]["listeners"][0]["filter_chains"][0],
        "hcm": manager,
        "vhost": vhost,
        "route": vhost["routes"][0],
        "cluster": bootstrap["static_resources"]["clusters"][0],
    }
    place = places[where]
    *parents, last = field.split(".")
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = copy.deepcopy(value)
    return bootstrap
