"""Resources of a control plane: what is left out of them, and for what they are refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

import meshproxy.filters.builtin  # noqa: F401  the filters' messages and tables
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import UNKNOWN_FIELD, check_fields, check_steps
from meshproxy.config.fields.access import guards, rules
from meshproxy.config.fields.check import TABLES
from meshproxy.config.json_message import MessageParser
from meshproxy.config.messages import find_descriptor, find_message
from meshproxy.config.validate import validate_message, validate_steps

TYPE = "type.googleapis.com/"
CLUSTER = "envoy.config.cluster.v3.Cluster"
LISTENER = "envoy.config.listener.v3.Listener"
ROUTES = "envoy.config.route.v3.RouteConfiguration"
HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
TCP_PROXY = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
ROUTER = {"name": "router", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}
EXT_PROC = {"@type": TYPE + "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"}
TYPED_STRUCT = TYPE + "udpa.type.v1.TypedStruct"


def parse(name: str, value: dict[str, Any]) -> Any:
    kind = find_message(name)
    assert kind is not None
    errors, message = ConfigErrors(), kind()
    MessageParser(errors).fill(message, value, "")
    assert not errors, str(errors)
    return message


def check(message: Message) -> tuple[list[str], list[tuple[str, str]]]:
    """(paths of errors, what is not done) of a resource of a control plane."""
    errors = ConfigErrors()
    not_yet = check_fields(message, "", errors, lenient=True)
    return [error.path for error in errors.items], not_yet


def hcm(**fields: Any) -> Any:
    return parse(HCM, {"stat_prefix": "x", "http_filters": [ROUTER], **fields})


def listener_of(manager: Message) -> Any:
    listener = parse(LISTENER, {"name": "l", "filter_chains": [{"filters": [{"name": "hcm"}]}]})
    listener.filter_chains[0].filters[0].typed_config.Pack(manager)
    return listener


def unpacked(listener: Any) -> Any:
    kind = find_message(HCM)
    assert kind is not None
    return kind.FromString(listener.filter_chains[0].filters[0].typed_config.value)


MANAGER_PATH = "filter_chains[0].filters[0].typed_config"

# message, what it has besides, the field that is left out of it
LEFT_OUT: dict[str, tuple[str, dict[str, Any], str]] = {
    "health checks": (CLUSTER, {"health_checks": [{"timeout": "1s"}]}, "health_checks"),
    "a limit": (HCM, {"proxy_status_config": {}}, "proxy_status_config"),
    "a value": (LISTENER, {"transparent": True}, "transparent"),
    "a retry priority": (
        "envoy.config.route.v3.RetryPolicy",
        {"retry_priority": {"name": "previous_priorities"}},
        "retry_priority",
    ),
    "a share of the local cluster": (
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        {"local_cluster_rate_limit": {}},
        "local_cluster_rate_limit",
    ),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_cannot_be_done_is_left_out_and_told(what: str) -> None:
    name, fields, field = LEFT_OUT[what]
    message = parse(name, fields)
    errors, not_yet = check(message)
    assert errors == []
    assert [path for path, _ in not_yet] == [field]
    assert all(note for _, note in not_yet)
    assert message.ListFields() == []
    strict = ConfigErrors()
    check_fields(parse(name, fields), "", strict)
    assert [error.path for error in strict.items] == [field], "a file is refused for the same"


GUARDING: dict[str, tuple[str, dict[str, Any], str]] = {
    "a matcher of filter chains": (LISTENER, {"filter_chain_matcher": {}}, "filter_chain_matcher"),
    "a matcher of headers": (
        ROUTES,
        {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {
            "prefix": "/", "headers": [{"name": "a", "string_match": {"custom": {"name": "x"}}}]}}]}]},
        "virtual_hosts[0].routes[0].match.headers[0].string_match.custom",
    ),
    "a matcher of virtual hosts": (
        ROUTES, {"virtual_hosts": [{"name": "v", "matcher": {}}]}, "virtual_hosts[0].matcher"),
    "who the client is": (HCM, {"original_ip_detection_extensions": [{"name": "x"}]},
                          "original_ip_detection_extensions"),
    "how paths are read": (HCM, {"path_normalization_options": {}}, "path_normalization_options"),
    "a filter that is not supported": (HCM, {"http_filters": [{"name": "ext_proc", "typed_config": EXT_PROC}]},
                                       "http_filters[0].typed_config"),
    "what TLS demands": ("envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", {"require_sni": True},
                         "require_sni"),
    "a validator": ("envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
                    {"custom_validator_config": {"name": "x", "typed_config": EXT_PROC}},
                    "custom_validator_config.typed_config"),
    "which transport socket": (CLUSTER, {"transport_socket_matcher": {}}, "transport_socket_matcher"),
    "an upstream of another kind": (CLUSTER, {"upstream_config": {"name": "x"}}, "upstream_config"),
    "an action": (ROUTES, {"virtual_hosts": [{"name": "v", "routes": [{"filter_action": {}}]}]},
                  "virtual_hosts[0].routes[0].filter_action"),
}  # fmt: skip


@pytest.mark.parametrize("what", GUARDING)
def test_what_guards_access_is_an_error(what: str) -> None:
    name, fields, path = GUARDING[what]
    errors, not_yet = check(parse(name, fields))
    assert errors == [path]
    assert not_yet == []


def test_what_is_left_out_of_an_any_is_left_out_of_its_bytes() -> None:
    listener = listener_of(hcm(proxy_status_config={}, server_name="istio-envoy"))
    assert check(listener) == ([], [(f"{MANAGER_PATH}.proxy_status_config", "is not supported yet")])
    manager = unpacked(listener)
    assert not manager.HasField("proxy_status_config")
    assert manager.server_name == "istio-envoy"


def test_an_access_log_of_another_kind_goes_and_the_others_stay() -> None:
    stdout = {
        "name": "a",
        "typed_config": {"@type": TYPE + "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"},
    }
    wasm = {"name": "b", "typed_config": {"@type": TYPE + "envoy.extensions.access_loggers.wasm.v3.WasmAccessLog"}}
    message = hcm(access_log=[wasm, stdout, wasm])
    errors, not_yet = check(message)
    assert errors == []
    assert [path for path, _ in not_yet] == ["access_log[0].typed_config", "access_log[2].typed_config"]
    assert [log.name for log in message.access_log] == ["a"]


def test_the_filter_of_an_access_log_goes_alone() -> None:
    message = parse("envoy.config.accesslog.v3.AccessLog", {"name": "a", "filter": {"extension_filter": {"name": "x"}}})
    errors, not_yet = check(message)
    assert errors == []
    assert [path for path, _ in not_yet] == ["filter.extension_filter"]
    assert message.name == "a"
    assert not message.HasField("filter")


def test_a_format_of_header_names_goes_with_all_that_is_about_it() -> None:
    message = parse(
        "envoy.config.core.v3.Http1ProtocolOptions",
        {"accept_http_10": True, "header_key_format": {"stateful_formatter": {"name": "preserve_case"}}},
    )
    assert [path for path, _ in check(message)[1]] == ["header_key_format.stateful_formatter"]
    assert not message.HasField("header_key_format")
    assert message.accept_http_10


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_optional_filter_of_an_unknown_kind_goes(wrapped: bool) -> None:
    message = hcm()
    optional = message.http_filters.add(name="new", is_optional=True)
    optional.typed_config.type_url = TYPE + "envoy.extensions.filters.http.new.v3.New"
    if wrapped:
        optional.typed_config.Pack(
            parse("udpa.type.v1.TypedStruct", {"type_url": TYPE + "envoy.extensions.filters.http.new.v3.New"})
        )
    errors, not_yet = check(message)
    assert errors == []
    assert [path for path, _ in not_yet] == ["http_filters[1]"]
    assert [each.name for each in message.http_filters] == ["router"]


@pytest.mark.parametrize("name", ["ext_authz.v3.ExtAuthz", "ext_proc.v3.ExternalProcessor", "oauth2.v3.OAuth2"])
def test_an_optional_filter_that_envoy_has_is_an_error(name: str) -> None:
    """Envoy would run it: what it keeps out there must not come in here."""
    message = hcm()
    typed_config = message.http_filters.add(name="guard", is_optional=True).typed_config
    typed_config.type_url = f"{TYPE}envoy.extensions.filters.http.{name}"
    assert check(message) == (["http_filters[1].typed_config"], [])


def test_an_optional_filter_that_is_discovered_stays() -> None:
    message = hcm()
    message.http_filters.add(name="later", is_optional=True).config_discovery.type_urls.append(TYPE + "x.Y")
    check(message)
    assert [each.name for each in message.http_filters] == ["router", "later"]


def test_an_optional_filter_that_cannot_be_read_is_an_error() -> None:
    message = hcm()
    broken = message.http_filters.add(name="broken", is_optional=True).typed_config
    broken.type_url, broken.value = TYPED_STRUCT, b"\xff"
    assert check(message) == (["http_filters[1].typed_config"], [])


def test_an_override_for_an_optional_filter_goes_with_it() -> None:
    unknown = AnyMessage(type_url=TYPE + "envoy.extensions.filters.http.new.v3.New")
    host = parse("envoy.config.route.v3.VirtualHost", {"name": "v", "domains": ["*"]})
    for name, is_optional in (("may", True), ("must", False)):
        wrapper = parse("envoy.config.route.v3.FilterConfig", {"is_optional": is_optional})
        wrapper.config.CopyFrom(unknown)
        host.typed_per_filter_config[name].Pack(wrapper)
    errors, not_yet = check(host)
    assert errors == ["typed_per_filter_config[must].config"]
    assert [path for path, _ in not_yet] == ["typed_per_filter_config[may]"]
    assert list(host.typed_per_filter_config) == ["must"]


def test_a_typed_struct_in_a_map_becomes_its_message() -> None:
    name = "envoy.extensions.filters.http.buffer.v3.BufferPerRoute"
    host = parse("envoy.config.route.v3.VirtualHost", {"name": "v", "domains": ["*"]})
    host.typed_per_filter_config["buffer"].CopyFrom(typed_struct(name, {"disabled": True}))
    assert check(host) == ([], [])
    assert host.typed_per_filter_config["buffer"].type_url == TYPE + name


def test_extensions_within_each_other_have_an_end() -> None:
    message = parse("envoy.config.core.v3.TypedExtensionConfig", {"name": "x"})
    for _ in range(1000):
        outer = parse("envoy.config.core.v3.TypedExtensionConfig", {"name": "x"})
        outer.typed_config.Pack(message)
        message = outer
    errors, _ = check(message)
    assert [path.count("typed_config") for path in errors] == [21]
    found = ConfigErrors()
    validate_message(message, "", found)
    assert not found


def test_a_filter_of_an_unknown_kind_is_an_error() -> None:
    message = hcm()
    message.http_filters.add(name="new").typed_config.type_url = TYPE + "envoy.extensions.filters.http.new.v3.New"
    assert check(message) == (["http_filters[1].typed_config"], [])


def with_unknown_field(name: str) -> Any:
    kind = find_message(name)
    assert kind is not None
    return kind.FromString(b"\xf8\x7f\x01")  # field 2047, a varint


def test_a_field_newer_than_ours_is_counted() -> None:
    errors, not_yet = check(with_unknown_field(CLUSTER))
    assert errors == []
    assert [(path, note.startswith(UNKNOWN_FIELD)) for path, note in not_yet] == [("", True)]
    assert "2047" in not_yet[0][1]


@pytest.mark.parametrize(
    "name",
    [
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "envoy.config.route.v3.RouteMatch",
        "envoy.config.listener.v3.FilterChainMatch",
        "envoy.extensions.filters.http.cors.v3.CorsPolicy",
    ],
)
def test_a_field_newer_than_ours_is_an_error_where_access_is_guarded(name: str) -> None:
    assert check(with_unknown_field(name)) == ([""], [])


def typed_struct(name: str, value: dict[str, Any]) -> AnyMessage:
    struct = parse("udpa.type.v1.TypedStruct", {"type_url": TYPE + name, "value": value})
    message = AnyMessage()
    message.Pack(struct)
    return message


def test_a_typed_struct_becomes_its_message() -> None:
    message = typed_struct(TCP_PROXY, {"stat_prefix": "s", "cluster": "c", "of_tomorrow": True})
    errors, not_yet = check(message)
    assert (errors, not_yet) == ([], [("value.of_tomorrow", UNKNOWN_FIELD)])
    assert message.type_url == TYPE + TCP_PROXY
    assert message.value == parse(TCP_PROXY, {"stat_prefix": "s", "cluster": "c"}).SerializeToString()


def test_an_unknown_field_of_a_typed_struct_that_guards_is_an_error() -> None:
    assert check(typed_struct("envoy.extensions.filters.http.buffer.v3.Buffer", {"of_tomorrow": True}))[0] == [
        "value.of_tomorrow"
    ]


def test_what_nobody_named_guards() -> None:
    assert guards("envoy.extensions.filters.http.of_tomorrow.v3.Filter", "field")


@pytest.mark.parametrize("name", sorted(rules()))
def test_the_rules_name_what_exists(name: str) -> None:
    descriptor = find_descriptor(name)
    assert descriptor is not None
    assert set(rules()[name].split()) <= {field.name for field in descriptor.fields}
    assert name in TABLES


def large() -> Any:
    routes = parse(ROUTES, {"name": "r"})
    for index in range(200):
        host = routes.virtual_hosts.add(name=f"v{index}", domains=[f"a{index}"])
        host.routes.add(name="x" * 10).match.prefix = "/"
        host.matcher.SetInParent()
    return routes


def test_a_large_resource_is_checked_in_steps() -> None:
    errors, at_once = ConfigErrors(), ConfigErrors()
    assert len(list(check_steps(large(), "", errors, lenient=True))) > 4
    check_fields(large(), "", at_once, lenient=True)
    assert len(errors) == 200
    assert str(errors) == str(at_once)


def test_a_large_resource_is_validated_in_steps() -> None:
    errors, at_once = ConfigErrors(), ConfigErrors()
    assert len(list(validate_steps(large(), "", errors))) > 4
    validate_message(large(), "", at_once)
    assert len(errors) == 200
    assert str(errors) == str(at_once)
