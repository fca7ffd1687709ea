"""What of a cluster's configuration is honoured, and what is refused by its path."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from meshproxy.config.runtime import Layer, Runtime
from meshproxy.upstream.config import LEAST_REQUEST, MAGLEV, RANDOM, RING_HASH, ROUND_ROBIN, STRICT_DNS
from tests.upstream.harness import LB, any_of, build, cluster_dict, endpoint, errors_of, with_policy

HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def with_http(**fields: Any) -> dict[str, Any]:
    return cluster_dict(endpoint("10.0.0.1"), typed_extension_protocol_options={HTTP: any_of(HTTP, **fields)})


def test_defaults_are_envoys() -> None:
    config = build(cluster_dict(endpoint("10.0.0.1")))
    assert config.connect_timeout_ms == 5000.0
    assert config.per_connection_buffer_limit_bytes == 1024 * 1024
    assert config.idle_timeout_ms == 3_600_000.0
    assert config.max_requests_per_connection == 0
    assert config.lb.policy == ROUND_ROBIN
    assert config.lb.panic_threshold.value == 50
    assert config.lb.overprovisioning_factor == 140
    assert config.outlier is None
    assert [limits.max_retries for limits in config.thresholds] == [3, 3]
    assert config.thresholds[0].max_connections == 1024
    assert config.http1.max_headers_bytes == 80 * 1024


def test_http_options() -> None:
    common = {
        "idle_timeout": "2s",
        "max_connection_duration": "3s",
        "max_requests_per_connection": 4,
        "max_headers_count": 5,
        "max_response_headers_kb": 6,
    }
    http1 = {"enable_trailers": True, "header_key_format": {"proper_case_words": {}}}
    config = build(
        with_http(common_http_protocol_options=common, explicit_http_config={"http_protocol_options": http1})
    )
    assert config.idle_timeout_ms == 2000.0
    assert config.max_connection_duration_ms == 3000.0
    assert config.max_requests_per_connection == 4
    assert config.http1.max_headers_count == 5
    assert config.http1.max_headers_bytes == 6 * 1024
    assert config.http1.enable_trailers
    assert config.http1.proper_case


def test_deprecated_places_of_http_options() -> None:
    config = build(
        cluster_dict(
            endpoint("10.0.0.1"),
            common_http_protocol_options={"idle_timeout": "0s"},
            max_requests_per_connection=9,
        )
    )
    assert config.idle_timeout_ms == 0.0
    assert config.max_requests_per_connection == 9


def test_http3_is_refused_by_its_path() -> None:
    where = f"c.typed_extension_protocol_options[{HTTP}].explicit_http_config.http3_protocol_options"
    assert errors_of(with_http(explicit_http_config={"http3_protocol_options": {}})) == {
        where: "HTTP/3 is not supported"
    }


def test_every_error_is_told() -> None:
    fields = cluster_dict(
        endpoint("not an address"),
        endpoint("10.0.0.1", endpoint={"additional_addresses": [{}]}),
        lb_policy="CLUSTER_PROVIDED",
        health_checks=[{}],
        transport_socket={"name": "envoy.transport_sockets.tls"},
        upstream_bind_config={},
        outlier_detection={"base_ejection_time": "2s", "max_ejection_time": "1s"},
    )
    group = "c.load_assignment.endpoints[0]"
    assert set(errors_of(fields)) == {
        f"{group}.lb_endpoints[0].endpoint.address",
        f"{group}.lb_endpoints[1].endpoint.additional_addresses[0].address",
        "c.lb_policy",
        "c.health_checks",
        "c.transport_socket.typed_config",
        "c.outlier_detection.max_ejection_time",
    }


@pytest.mark.parametrize(
    ("policy", "expected"), [("ROUND_ROBIN", ROUND_ROBIN), ("LEAST_REQUEST", LEAST_REQUEST), ("RANDOM", RANDOM)]
)
def test_lb_policy(policy: str, expected: int) -> None:
    assert build(cluster_dict(lb_policy=policy)).lb.policy == expected


def test_least_request_options() -> None:
    options = {"choice_count": 5, "active_request_bias": {"default_value": 0.5, "runtime_key": "k"}}
    config = build(cluster_dict(lb_policy="LEAST_REQUEST", least_request_lb_config=options))
    assert config.lb.choice_count == 5
    assert config.lb.active_request_bias.value == 0.5


def test_the_first_known_typed_policy_is_taken() -> None:
    prefix = "envoy.extensions.load_balancing_policies"
    unknown = any_of(f"{prefix}.override_host.v3.OverrideHost")
    least = any_of(f"{prefix}.least_request.v3.LeastRequest", choice_count=3, selection_method="FULL_SCAN")
    random = any_of(f"{prefix}.random.v3.Random")
    config = build(with_policy(unknown, least, random))
    assert config.lb.policy == LEAST_REQUEST
    assert config.lb.full_scan
    assert set(errors_of(with_policy(unknown))) == {"c.load_balancing_policy"}


def test_tcp_keepalive() -> None:
    keepalive = {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 5}
    config = build(cluster_dict(upstream_connection_options={"tcp_keepalive": keepalive}))
    assert config.socket_options == (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    )


def test_circuit_breakers() -> None:
    thresholds = [
        {"max_connections": 1, "max_pending_requests": 2, "max_requests": 3, "max_retries": 4},
        {"priority": "HIGH", "max_requests": 5},
        {"max_requests": 99},
    ]
    per_host = [{"max_connections": 7}]
    config = build(cluster_dict(circuit_breakers={"thresholds": thresholds, "per_host_thresholds": per_host}))
    default, high = config.thresholds
    assert (default.max_connections, default.max_pending_requests) == (1, 2)
    assert (default.max_requests, default.max_retries) == (3, 4)
    assert default.max_connections_per_host == 7
    assert (high.max_requests, high.max_connections) == (5, 1024)


def test_endpoints() -> None:
    config = build(
        cluster_dict(
            endpoint("10.0.0.1", 8080, load_balancing_weight=5, health_status="DEGRADED", endpoint={"hostname": "h"}),
            endpoint("::1", 1),
        )
    )
    first, second = config.endpoints
    assert (first.address.text, first.weight, first.hostname) == ("10.0.0.1:8080", 5, "h")
    assert second.address.text == "[::1]:1"


def test_unix_sockets() -> None:
    pipe = {"endpoint": {"address": {"pipe": {"path": "/tmp/socket"}}}}
    assert build(cluster_dict(pipe)).endpoints[0].address.path == "/tmp/socket"
    assert set(errors_of(cluster_dict(pipe, type="STRICT_DNS"))) == {
        "c.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address"
    }


def test_priorities_without_gaps() -> None:
    fields = cluster_dict(endpoint("10.0.0.1"), priority=2)
    assert "c.load_assignment" in errors_of(fields)


def test_dns() -> None:
    config = build(
        cluster_dict(
            endpoint("name", 1),
            type="STRICT_DNS",
            dns_refresh_rate="7s",
            dns_failure_refresh_rate={"base_interval": "2s"},
            dns_lookup_family="V6_ONLY",
        )
    )
    assert config.discovery == STRICT_DNS
    assert config.endpoints[0].dns_name == "name"
    assert (config.dns.refresh_ms, config.dns.failure_base_ms, config.dns.failure_max_ms) == (7000.0, 2000.0, 20000.0)
    assert config.dns.family == 2


def test_the_fingerprint_leaves_out_the_endpoints_only() -> None:
    one = build(cluster_dict(endpoint("10.0.0.1")))
    assert build(cluster_dict(endpoint("10.0.0.2"))).fingerprint == one.fingerprint
    assert build(cluster_dict(endpoint("10.0.0.1"), lb_policy="RANDOM")).fingerprint != one.fingerprint


def test_ring_hash_options() -> None:
    options = {"minimum_ring_size": 10, "maximum_ring_size": 20, "hash_function": "MURMUR_HASH_2"}
    lb = build(cluster_dict(lb_policy="RING_HASH", ring_hash_lb_config=options)).lb
    assert (lb.policy, lb.minimum_ring_size, lb.maximum_ring_size, lb.murmur) == (RING_HASH, 10, 20, True)
    lb = build(with_policy(any_of(f"{LB}.ring_hash.v3.RingHash", use_hostname_for_hashing=True))).lb
    assert (lb.policy, lb.minimum_ring_size, lb.maximum_ring_size, lb.murmur) == (RING_HASH, 1024, 8388608, False)
    assert lb.use_hostname_for_hashing
    options = {"minimum_ring_size": 21, "maximum_ring_size": 20}
    assert errors_of(cluster_dict(lb_policy="RING_HASH", ring_hash_lb_config=options)) == {
        "c.ring_hash_lb_config": "minimum_ring_size (21) exceeds maximum_ring_size (20)"
    }


def test_maglev_options() -> None:
    lb = build(cluster_dict(lb_policy="MAGLEV", maglev_lb_config={"table_size": 251})).lb
    assert (lb.policy, lb.table_size) == (MAGLEV, 251)
    policy = {"query_parameter": {"name": "q"}}
    hashing = {"use_hostname_for_hashing": True, "hash_policy": [policy]}
    lb = build(with_policy(any_of(f"{LB}.maglev.v3.Maglev", consistent_hashing_lb_config=hashing))).lb
    assert (lb.policy, lb.table_size, lb.use_hostname_for_hashing) == (MAGLEV, 65537, True)
    assert lb.hash_policy is not None
    assert errors_of(cluster_dict(lb_policy="MAGLEV", maglev_lb_config={"table_size": 250})) == {
        "c.maglev_lb_config.table_size": "must be a prime number"
    }


def test_what_hashing_refuses() -> None:
    hashing = {"use_hostname_for_hashing": True}
    fields = cluster_dict(lb_policy="MAGLEV", common_lb_config={"consistent_hashing_lb_config": hashing})
    where = "c.common_lb_config.consistent_hashing_lb_config"
    assert set(errors_of(fields)) == {f"{where}.use_hostname_for_hashing"}


def test_typed_policies_within_policies() -> None:
    least = any_of(f"{LB}.least_request.v3.LeastRequest", choice_count=3)
    entry = {"typed_extension_config": {"name": "p", "typed_config": least}}
    locality = any_of(f"{LB}.wrr_locality.v3.WrrLocality", endpoint_picking_policy={"policies": [entry]})
    lb = build(with_policy(locality)).lb
    assert (lb.policy, lb.choice_count, lb.locality_weighted) == (LEAST_REQUEST, 3, True)
    entry = {"typed_extension_config": {"name": "p", "typed_config": locality}}
    subset = any_of(
        f"{LB}.subset.v3.Subset", subset_selectors=[{"keys": ["a"]}], subset_lb_policy={"policies": [entry]}
    )
    lb = build(with_policy(subset)).lb
    assert (lb.policy, lb.locality_weighted, lb.needs_context) == (LEAST_REQUEST, True, True)
    assert lb.subsets is not None
    assert [selector.keys for selector in lb.subsets.selectors] == [{"a"}]


def test_policies_that_do_not_go_together() -> None:
    at = "c.load_balancing_policy.policies[0].typed_extension_config.typed_config"
    provided = any_of(f"{LB}.cluster_provided.v3.ClusterProvided")
    inner = {"policies": [{"typed_extension_config": {"name": "p", "typed_config": provided}}]}
    where = "policies[0].typed_extension_config.typed_config"
    fields = with_policy(any_of(f"{LB}.subset.v3.Subset", subset_lb_policy=inner))
    assert f"{at}.subset_lb_policy.{where}" in errors_of(fields)
    nested = any_of(f"{LB}.subset.v3.Subset", subset_lb_policy=inner)
    inner = {"policies": [{"typed_extension_config": {"name": "p", "typed_config": nested}}]}
    fields = with_policy(any_of(f"{LB}.subset.v3.Subset", subset_lb_policy=inner))
    assert set(errors_of(fields)) == {f"{at}.subset_lb_policy.{where}"}
    assert set(errors_of(with_policy(any_of(f"{LB}.subset.v3.Subset")))) == {f"{at}.subset_lb_policy"}
    random = any_of(f"{LB}.random.v3.Random")
    fields = {
        **with_policy(random),
        "lb_subset_config": {"subset_selectors": [{"keys": ["a"]}]},
        "common_lb_config": {"locality_weighted_lb_config": {}},
    }
    assert set(errors_of(fields)) == {"c.lb_subset_config", "c.common_lb_config.locality_weighted_lb_config"}


@pytest.mark.parametrize(
    "fields",
    [cluster_dict(lb_policy="CLUSTER_PROVIDED"), with_policy(any_of(f"{LB}.cluster_provided.v3.ClusterProvided"))],
)
def test_only_some_clusters_provide_a_balancer(fields: dict[str, Any]) -> None:
    assert set(errors_of(fields)) == {"c.lb_policy"}


def test_drop_overloads() -> None:
    def policy(*entries: dict[str, Any]) -> dict[str, Any]:
        fields = cluster_dict(endpoint("10.0.0.1"))
        fields["load_assignment"]["policy"] = {"drop_overloads": list(entries)}
        return fields

    half = {"category": "a", "drop_percentage": {"numerator": 5000, "denominator": "TEN_THOUSAND"}}
    share = build(policy(half)).drop_overload
    assert share is not None
    assert (share.numerator, share.denominator) == (5000, 10_000)
    limited = Runtime([Layer("static", {"load_balancing_policy.drop_overload_limit": 30})])
    share = build(policy(half), limited).drop_overload
    assert share is not None
    assert (share.numerator, share.denominator) == (30, 100)
    assert build(policy({"category": "a", "drop_percentage": {}})).drop_overload is None
    where = "c.load_assignment.policy.drop_overloads"
    assert set(errors_of(policy(half, half))) == {where}
    assert set(errors_of(policy({"category": "a", "drop_percentage": {"numerator": 101}}))) == {
        f"{where}[0].drop_percentage"
    }
