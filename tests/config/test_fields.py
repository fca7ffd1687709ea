"""The tables: they fit the API, they are closed, and the walk they drive refuses what it must."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from meshproxy.config.docs import generate
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import MessageTable, Verdict, check_fields, register_table
from meshproxy.config.fields.check import TABLES
from meshproxy.config.loader import load_bootstrap
from meshproxy.config.messages import find_descriptor, is_map, map_entry
from tests.config.bootstraps import CLUSTER_PATH, HCM_PATH, ROUTE_PATH, good, hcm, spoil

ROOT = Path(__file__).resolve().parents[2]
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."


def check(value: dict[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(errors, not yet done) of a bootstrap."""
    errors = ConfigErrors()
    bootstrap = load_bootstrap(json.dumps(value), errors=errors)
    assert bootstrap is not None, str(errors)
    not_yet = check_fields(bootstrap, "", errors)
    return [(each.path, each.reason) for each in errors.items], not_yet


def test_the_good_one_is_honoured_whole() -> None:
    assert check(good()) == ([], [])


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_names_every_field_and_no_other(name: str) -> None:
    descriptor = find_descriptor(name)
    assert descriptor is not None
    table = TABLES[name]
    names = {field.name for field in descriptor.fields}
    assert set(table.fields) <= names
    unlisted = {each for each in names - set(table.fields) if table.entry(each).verdict is Verdict.REFUSED}
    assert not unlisted or table.refused_whole


@pytest.mark.parametrize("name", sorted(TABLES))
def test_what_an_honoured_field_holds_has_a_table(name: str) -> None:
    descriptor = find_descriptor(name)
    assert descriptor is not None
    for field in descriptor.fields:
        entry = TABLES[name].entry(field.name)
        if entry.verdict is not Verdict.HONOURED or entry.only or field.message_type is None:
            continue
        held = map_entry(field)[1].message_type if is_map(field) else field.message_type
        if held is not None and not held.full_name.startswith("google.protobuf."):
            assert held.full_name in TABLES, field.name


@pytest.mark.parametrize(
    ("where", "field", "value", "path", "reason"),
    [
        ("root", "hds_config", {}, "hds_config", "health is not checked for a control plane"),
        ("root", "cluster_manager", {"local_cluster_name": "a"}, "cluster_manager.local_cluster_name", "by zone"),
        ("hcm", "add_proxy_protocol_connection_state", False, f"{HCM_PATH}.add_proxy_protocol_connection_state",
         "false is not supported yet (supported: true)"),
        ("root", "header_prefix", "x-mesh", "header_prefix", "x-envoy"),
        ("root", "layered_runtime.layers", [{"name": "a", "disk_layer": {"symlink_root": "/x"}}],
         "layered_runtime.layers[0].disk_layer", "directory"),
        ("listener", "transparent", True, "static_resources.listeners[0].transparent",
         "true is not supported yet (supported: false)"),
        ("chain", "filter_chain_match", {"address_suffix": "127.0.0.1"},
         "static_resources.listeners[0].filter_chains[0].filter_chain_match.address_suffix", "not implemented"),
        ("chain", "transport_socket", {"name": "envoy.transport_sockets.tls"},
         "static_resources.listeners[0].filter_chains[0].transport_socket.typed_config", "value is required"),
        ("hcm", "tracing", {"provider": {"name": "p", "typed_config": {
            "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
            "grpc_service": {"envoy_grpc": {"cluster_name": "c"},
                             "retry_policy": {"host_selection_retry_max_attempts": 2}}}}},
         f"{HCM_PATH}.tracing.provider.typed_config.grpc_service.retry_policy.host_selection_retry_max_attempts",
         "takes any host"),
        ("hcm", "codec_type", "HTTP3", f"{HCM_PATH}.codec_type",
         "HTTP3 is not supported yet (supported: AUTO, HTTP1, HTTP2)"),
        ("hcm", "http2_protocol_options", {"allow_metadata": True}, f"{HCM_PATH}.http2_protocol_options.allow_metadata",
         "true is not supported yet"),
        ("route", "match.headers", [{"name": "a", "string_match": {"custom": {"name": "x"}}}],
         f"{ROUTE_PATH}.match.headers[0].string_match.custom", "custom"),
        ("route", "typed_per_filter_config",
         {"x": {"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute"}},
         f"{ROUTE_PATH}.typed_per_filter_config[x]", "ExtAuthzPerRoute is not supported yet"),
        ("listener", "drain_type", "MODIFY_ONLY", "static_resources.listeners[0].drain_type",
         "MODIFY_ONLY is not supported yet (supported: DEFAULT)"),
        ("cluster", "health_checks", [{}], f"{CLUSTER_PATH}.health_checks", "health checks"),
        ("cluster", "outlier_detection.monitors", [{"name": "x"}], f"{CLUSTER_PATH}.outlier_detection.monitors",
         "extensions are not supported"),
        ("cluster", "typed_extension_protocol_options",
         {"h": {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http3_protocol_options": {}}}},
         f"{CLUSTER_PATH}.typed_extension_protocol_options[h].explicit_http_config.http3_protocol_options", "HTTP/3"),
    ],
)  # fmt: skip
def test_what_we_cannot_do_is_refused(where: str, field: str, value: Any, path: str, reason: str) -> None:
    errors, _ = check(spoil(where, field, value))
    assert [each[0] for each in errors] == [path]
    assert reason in errors[0][1]


def test_a_filter_that_guards_access_is_refused_though_it_is_empty() -> None:
    bootstrap = good()
    authz = {"@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"}
    hcm(bootstrap)["http_filters"].insert(0, {"name": "authz", "typed_config": authz})
    errors, _ = check(bootstrap)
    kind = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"
    assert errors == [(f"{HCM_PATH}.http_filters[0].typed_config", f"{kind}: is not supported yet")]


def test_what_a_typed_struct_stands_for_is_walked() -> None:
    wrapped = {
        "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
        "value": {"strict_check_headers": ["x-envoy-max-retries"]},
    }
    bootstrap = good()
    hcm(bootstrap)["http_filters"][-1]["typed_config"] = wrapped
    errors, _ = check(bootstrap)
    assert [path for path, _ in errors] == [f"{HCM_PATH}.http_filters[2].typed_config.strict_check_headers"]


def test_an_any_of_an_unknown_type_is_an_error() -> None:
    errors = ConfigErrors()
    check_fields(AnyMessage(type_url="type.googleapis.com/no.Such"), "a.b", errors)
    assert [(each.path, each.reason) for each in errors.items] == [
        ("a.b", "unknown type 'type.googleapis.com/no.Such'")
    ]


def test_what_is_not_done_yet_is_listed() -> None:
    bootstrap = good()
    bootstrap["overload_manager"] = {"refresh_interval": "1s"}
    bootstrap["deferred_stat_options"] = {"enable_deferred_creation_stats": True}
    errors, not_yet = check(bootstrap)
    assert errors == []
    assert {path for path, _ in not_yet} == {"overload_manager", "deferred_stat_options"}
    assert all(note for _, note in not_yet)


def test_of_extensions_that_are_not_started_those_are_told_that_may_be_missed() -> None:
    """An internal listener's is not: what it is for is refused where it is asked for."""
    package = "type.googleapis.com/envoy.extensions"
    internal = {"@type": f"{package}.bootstrap.internal_listener.v3.InternalListener", "buffer_size_kb": 64}
    struct = {
        "@type": "type.googleapis.com/xds.type.v3.TypedStruct",
        "type_url": internal["@type"],
        "value": {"buffer_size_kb": 64},
    }
    wasm = {"@type": f"{package}.wasm.v3.WasmService", "singleton": True}
    bootstrap = good()
    bootstrap["bootstrap_extensions"] = [{"name": "x", "typed_config": each} for each in (internal, wasm, struct)]
    assert check(bootstrap) == ([], [("bootstrap_extensions[1]", "the extension is not started")])


def test_harmless_fields_are_passed_over() -> None:
    bootstrap = spoil("listener", "connection_balance_config", {"exact_balance": {}})
    bootstrap["stats_flush_interval"] = "5s"
    assert check(bootstrap) == ([], [])


def test_an_extension_brings_its_own_table() -> None:
    name = "google.rpc.Status"
    errors = ConfigErrors()
    message = AnyMessage()
    descriptor = find_descriptor(name)
    assert descriptor is not None
    message.type_url = f"type.googleapis.com/{name}"
    check_fields(message, "p", errors)
    assert [each.reason for each in errors.items] == [f"{name} is not supported yet"]
    register_table(name, MessageTable("code"))
    try:
        errors = ConfigErrors()
        check_fields(message, "p", errors)
        assert not errors
    finally:
        del TABLES[name]


def test_a_table_gives_each_field_one_verdict() -> None:
    with pytest.raises(ValueError, match="a has two verdicts"):
        MessageTable("a b", refused={"a": "no"})


def test_the_page_is_up_to_date() -> None:
    """After a change of a table: python -m meshproxy.config.docs > docs/configuration.md"""
    assert (ROOT / "docs" / "configuration.md").read_text() == generate()
