"""protoc-gen-validate's rules: every violation with its path, and no rule of the API unknown to us."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from typing import Any

import envoy
import pytest
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from validate import validate_pb2

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.loader import load_bootstrap
from meshproxy.config.validate import validate_message
from tests.config.bootstraps import CLUSTER_PATH, HCM_PATH, ROUTE_PATH, VHOST_PATH, good, spoil


def violations(value: dict[str, Any]) -> list[tuple[str, str]]:
    errors = ConfigErrors()
    bootstrap = load_bootstrap(json.dumps(value), errors=errors)
    assert bootstrap is not None, str(errors)
    validate_message(bootstrap, "", errors)
    return [(each.path, each.reason) for each in errors.items]


def test_the_good_one_breaks_no_rule() -> None:
    assert violations(good()) == []


def test_an_empty_bootstrap_breaks_no_rule() -> None:
    errors = ConfigErrors()
    validate_message(Bootstrap(), "", errors)
    assert not errors


CASES = [
    # one of each kind of rule
    ("hcm", "stat_prefix", "", f"{HCM_PATH}.stat_prefix", "value length must be at least 1 characters"),
    ("hcm", "max_request_headers_kb", 99999, f"{HCM_PATH}.max_request_headers_kb", "less than or equal to 8192"),
    ("hcm", "max_request_headers_kb", 0, f"{HCM_PATH}.max_request_headers_kb", "greater than 0"),
    ("hcm", "codec_type", 9, f"{HCM_PATH}.codec_type", "one of the defined enum values"),
    ("hcm", "server_name", "a\nb", f"{HCM_PATH}.server_name", "valid HTTP header value"),
    ("hcm", "http_filters", [{}], f"{HCM_PATH}.http_filters[0].name", "at least 1"),
    ("vhost", "domains", [], f"{VHOST_PATH}.domains", "at least 1 item"),
    ("vhost", "name", "", f"{VHOST_PATH}.name", "at least 1"),
    ("vhost", "request_headers_to_remove", ["a\nb"], f"{VHOST_PATH}.request_headers_to_remove[0]", "HTTP header name"),
    ("route", "match", {}, f"{ROUTE_PATH}.match.path_specifier", "value is required (one of prefix, path"),
    ("route", "match", None, f"{ROUTE_PATH}.match", "value is required"),
    ("route", "match", {"prefix": "/", "headers": [{"present_match": True}]},
     f"{ROUTE_PATH}.match.headers[0].name", "at least 1"),
    ("route", "route.retry_policy.retry_back_off", {"base_interval": "0s"},
     f"{ROUTE_PATH}.route.retry_policy.retry_back_off.base_interval", "greater than 0s"),
    ("route", "route.weighted_clusters.clusters", [], f"{ROUTE_PATH}.route.weighted_clusters.clusters", "at least 1"),
    ("cluster", "name", "", f"{CLUSTER_PATH}.name", "at least 1"),
    ("cluster", "connect_timeout", "0s", f"{CLUSTER_PATH}.connect_timeout", "greater than 0s"),
    ("cluster", "common_lb_config.healthy_panic_threshold.value", 100.5,
     f"{CLUSTER_PATH}.common_lb_config.healthy_panic_threshold.value", "less than or equal to 100"),
    ("cluster", "outlier_detection.max_ejection_percent", 101,
     f"{CLUSTER_PATH}.outlier_detection.max_ejection_percent", "less than or equal to 100"),
    ("listener", "address", {}, "static_resources.listeners[0].address.address", "value is required"),
    ("listener", "address.socket_address.port_value", 65536,
     "static_resources.listeners[0].address.socket_address.port_value", "less than or equal to 65535"),
    ("root", "stats_flush_interval", "0.0001s", "stats_flush_interval", "greater than or equal to 0.001s"),
    ("root", "layered_runtime.layers", [{"name": "a"}], "layered_runtime.layers[0].layer_specifier", "required"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "field", "value", "path", "reason"), CASES)
def test_a_violation_stands_at_its_path(where: str, field: str, value: Any, path: str, reason: str) -> None:
    found = violations(spoil(where, field, value))
    assert [each[0] for each in found] == [path]
    assert reason in found[0][1]


def test_all_violations_are_told() -> None:
    bad = spoil("hcm", "stat_prefix", "")
    bad["static_resources"]["clusters"][0]["name"] = ""
    bad["static_resources"]["clusters"][0]["connect_timeout"] = "-1s"
    assert {path for path, _ in violations(bad)} == {
        f"{HCM_PATH}.stat_prefix",
        f"{CLUSTER_PATH}.name",
        f"{CLUSTER_PATH}.connect_timeout",
    }


def test_map_values_are_entered() -> None:
    policy = {"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
              "abort": {"http_status": 100, "percentage": {}}}  # fmt: skip
    found = violations(spoil("route", "typed_per_filter_config", {"fault": policy}))
    assert [path for path, _ in found] == [f"{ROUTE_PATH}.typed_per_filter_config[fault].abort.http_status"]


# Every kind of rule that some field of the Envoy API has; a new one would have to be written.
KNOWN = {
    "any.required", "bool.const", "bytes.max_len", "bytes.min_len", "double.gt", "double.gte", "double.lte",
    "duration.gt", "duration.gte", "duration.lt", "duration.lte", "duration.required", "enum.defined_only",
    "enum.not_in", "float.gte", "int32.gt", "int32.gte", "int32.lte", "int64.gt", "map.keys", "map.min_pairs",
    "map.values", "repeated.items", "repeated.max_items", "repeated.min_items", "repeated.unique",
    "string.ignore_empty", "string.in", "string.max_bytes", "string.max_len", "string.min_bytes", "string.min_len",
    "string.pattern", "string.prefix", "string.strict", "string.suffix", "string.well_known_regex", "uint32.gt",
    "uint32.gte", "uint32.lt", "uint32.lte", "uint64.gt", "uint64.gte", "uint64.lt", "uint64.lte",
}  # fmt: skip


def test_every_kind_of_rule_in_the_api_is_known() -> None:
    found: set[str] = set()
    for module in pkgutil.walk_packages(envoy.__path__, "envoy."):
        if module.name.endswith("_pb2"):
            for descriptor in importlib.import_module(module.name).DESCRIPTOR.message_types_by_name.values():
                found.update(kinds_of_message(descriptor))
    assert found - KNOWN == set()


def kinds_of_message(descriptor: Any) -> Iterator[str]:
    for field in descriptor.fields:
        yield from kinds(field.GetOptions().Extensions[validate_pb2.rules])
    for nested in descriptor.nested_types:
        yield from kinds_of_message(nested)


def kinds(rules: Any) -> Iterator[str]:
    kind = rules.WhichOneof("type")
    if kind is not None:
        for field, value in getattr(rules, kind).ListFields():
            yield f"{kind}.{field.name}"
            if field.name in ("items", "keys", "values"):
                yield from kinds(value)
