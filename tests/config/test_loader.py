"""Text to message: the types of YAML and JSON, and every error at its path."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.api.expr.v1alpha1.syntax_pb2 import Expr
from google.protobuf import json_format

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.loader import load_bootstrap, load_message, load_value, scalar
from meshproxy.config.messages import find_message, type_name
from tests.config.bootstraps import CLUSTER_PATH, GOOD, HCM_PATH, ROUTE_PATH, VHOST_PATH, good, hcm, spoil


def import_types(value: Any) -> None:
    """Protobuf's own parser resolves only messages whose module is imported."""
    if isinstance(value, dict):
        if "@type" in value:
            find_message(type_name(value["@type"]))
        for each in value.values():
            import_types(each)
    elif isinstance(value, list):
        for each in value:
            import_types(each)


import_types(good())


def load(value: Any, **options: Any) -> tuple[Any, list[tuple[str, str]]]:
    errors = ConfigErrors()
    text = value if isinstance(value, (str, bytes)) else json.dumps(value)
    return load_bootstrap(text, errors=errors, **options), [(each.path, each.reason) for each in errors.items]


def test_yaml_and_json_give_what_protobuf_s_own_parser_gives() -> None:
    expected = json_format.ParseDict(good(), Bootstrap())
    from_yaml, errors = load(GOOD)
    assert errors == []
    assert from_yaml == expected
    assert load(json.dumps(good())) == (expected, [])
    assert load(GOOD.encode()) == (expected, [])


def test_camel_case_and_snake_case_are_the_same() -> None:
    camel = json_format.MessageToDict(json_format.ParseDict(good(), Bootstrap()))
    assert "staticResources" in camel
    assert load(camel) == (json_format.ParseDict(good(), Bootstrap()), [])


def test_the_overlay_is_merged_over_the_file() -> None:
    overlay = "node: {id: other}\nstatic_resources: {clusters: [{name: extra}]}"
    bootstrap, errors = load(GOOD, overlay=overlay)
    assert errors == []
    assert (bootstrap.node.id, bootstrap.node.cluster) == ("other", "shop")
    assert [cluster.name for cluster in bootstrap.static_resources.clusters] == ["v1", "extra"]


def test_an_overlay_alone_is_a_configuration() -> None:
    bootstrap, errors = load("", overlay="node: {id: a}")
    assert (bootstrap.node.id, errors) == ("a", [])


@pytest.mark.parametrize(
    ("where", "field", "value", "path", "reason"),
    [
        ("root", "foo", 1, "foo", "unknown field of envoy.config.bootstrap.v3.Bootstrap"),
        ("hcm", "stat_prefixx", "a", f"{HCM_PATH}.stat_prefixx", "unknown field"),
        ("hcm", "stat_prefix", 5, f"{HCM_PATH}.stat_prefix", "expected a string, got the number 5"),
        ("hcm", "merge_slashes", 1, f"{HCM_PATH}.merge_slashes", "expected true or false"),
        ("hcm", "normalize_path", "maybe", f"{HCM_PATH}.normalize_path", "expected true or false"),
        ("hcm", "codec_type", "HTTP9", f"{HCM_PATH}.codec_type", "unknown value 'HTTP9' of CodecType"),
        ("hcm", "codec_type", True, f"{HCM_PATH}.codec_type", "expected a value of CodecType"),
        ("hcm", "request_timeout", "250ms", f"{HCM_PATH}.request_timeout", "expected a duration"),
        ("hcm", "request_timeout", 5, f"{HCM_PATH}.request_timeout", "expected a duration"),
        ("hcm", "request_timeout", "999999999999s", f"{HCM_PATH}.request_timeout", "out of range"),
        ("hcm", "xff_num_trusted_hops", -1, f"{HCM_PATH}.xff_num_trusted_hops", "-1 is out of range, 0 to 4294967295"),
        ("hcm", "xff_num_trusted_hops", 1.5, f"{HCM_PATH}.xff_num_trusted_hops", "expected an integer"),
        ("hcm", "http_filters", [{"name": "x", "typed_config": {"a": 1}}], f"{HCM_PATH}.http_filters[0].typed_config",
         "the @type is missing"),
        ("hcm", "http_filters", [{"name": "x", "typed_config": {"@type": "type.googleapis.com/no.Such"}}],
         f"{HCM_PATH}.http_filters[0].typed_config.@type", "unknown type 'type.googleapis.com/no.Such'"),
        ("hcm", "http_filters", [{"name": "x", "typed_config": {"@type": "os.path"}}],
         f"{HCM_PATH}.http_filters[0].typed_config.@type", "unknown type"),
        ("vhost", "domains", {"a": 1}, f"{VHOST_PATH}.domains[0]", "expected a string, got an object"),
        ("vhost", "domains", ["a", None], f"{VHOST_PATH}.domains[1]", "null is no element of a list"),
        ("route", "match", {"prefix": "/", "path": "/a"}, f"{ROUTE_PATH}.match.path",
         "only one field of path_specifier may be set, and prefix is"),
        ("route", "match", [1], f"{ROUTE_PATH}.match", "expected an object (RouteMatch), got a list"),
        ("route", "metadata", {"filter_metadata": {"a": 5}}, f"{ROUTE_PATH}.metadata.filter_metadata[a]",
         "expected an object"),
        ("cluster", "connectTimeout", "1s", f"{CLUSTER_PATH}.connect_timeout", "given twice"),
        ("cluster", "common_lb_config.healthy_panic_threshold.value", "much",
         f"{CLUSTER_PATH}.common_lb_config.healthy_panic_threshold.value", "expected a number"),
    ],
)  # fmt: skip
def test_an_error_stands_at_its_path(where: str, field: str, value: Any, path: str, reason: str) -> None:
    bootstrap, errors = load(spoil(where, field, value))
    assert bootstrap is not None  # the rest of it can be looked at
    assert [each[0] for each in errors] == [path]
    assert reason in errors[0][1]


def test_all_errors_are_told_at_once() -> None:
    bootstrap = spoil("hcm", "stat_prefix", 5)
    bootstrap["static_resources"]["clusters"][0]["foo"] = 1
    bootstrap["admin"]["address"]["socket_address"]["port_value"] = "http"
    assert [path for path, _ in load(bootstrap)[1]] == [
        "admin.address.socket_address.port_value",
        f"{HCM_PATH}.stat_prefix",
        f"{CLUSTER_PATH}.foo",
    ]


def test_unknown_fields_are_warnings_where_the_flag_says_so() -> None:
    errors = ConfigErrors()
    bootstrap = spoil("cluster", "foo", 1)
    hcm(bootstrap)["bar"] = {"deep": 1}
    loaded = load_bootstrap(json.dumps(bootstrap), allow_unknown_fields=True, errors=errors)
    assert loaded == json_format.ParseDict(good(), Bootstrap())
    assert not errors
    assert {(each.path, each.reason) for each in errors.warnings} == {
        (f"{CLUSTER_PATH}.foo", "unknown field"),
        (f"{HCM_PATH}.bar", "unknown field"),
    }


def test_values_as_envoy_reads_them() -> None:
    bootstrap = spoil("hcm", "merge_slashes", "true")
    manager = hcm(bootstrap)
    manager["normalize_path"] = {"value": "false"}
    manager["codec_type"] = "http1"
    manager["xff_num_trusted_hops"] = "2"
    manager["request_timeout"] = {"seconds": 2}
    manager["via"] = None
    manager["route_config"]["virtual_hosts"][0]["domains"] = "*"
    loaded, errors = load(bootstrap)
    assert errors == []
    read = http_connection_manager_pb2.HttpConnectionManager()
    loaded.static_resources.listeners[0].filter_chains[0].filters[0].typed_config.Unpack(read)
    assert read.merge_slashes is True
    assert read.normalize_path.value is False
    assert read.codec_type == 1
    assert read.xff_num_trusted_hops == 2
    assert read.request_timeout.seconds == 2
    assert read.route_config.virtual_hosts[0].domains == ["*"]


# What /server_info of Envoy 1.40 showed as node metadata for the same plain scalars.
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5", "1.5"), ("08", "08"), ("1e3", "1e3"), ("5", 5), (".inf", ".inf"), ("on", True), ("Off", False),
        ("9007199254740993", "9007199254740993"), ("99999999999999999999", "99999999999999999999"),
        ("y", True), ("tRue", "tRue"), ("010", 8), ("0x1f", 31), ("+5", 5), ("-3", -3), ("~", None), ("", None),
        ("1:30", "1:30"), ("1_000", "1_000"), ("2026-01-01", "2026-01-01"), ("0b1", "0b1"), ("0o7", "0o7"),
    ],
)  # fmt: skip
def test_plain_scalars_have_envoy_s_types(text: str, value: Any) -> None:
    read = scalar(text)
    assert (read, type(read)) == (value, type(value))


def test_quoted_scalars_are_strings() -> None:
    errors = ConfigErrors()
    assert load_value("a: '5'\nb: \"on\"\nc: |\n  7\n", errors) == {"a": "5", "b": "on", "c": "7\n"}
    assert not errors


def test_anchors_and_ignored_keys() -> None:
    errors = ConfigErrors()
    text = "!ignore base: &b {x: 1}\nfirst: *b\n1: {true: y}\n"
    assert load_value(text, errors) == {"first": {"x": 1}, "1": {"true": True}}
    assert not errors


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "line 5: the key 'c' is given twice in one mapping"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' is given twice in one object"),
        ("a: [1\nb: 2\n", "line 2"),
        ("a: 1\n\tb: 2\n", "line 2"),
        ("{'a': 1, ]", "line 1"),
        ("? [a, b]\n: 1\n", "line 1: a key must be a string"),
        ("&a [*a]", "nested too deeply"),
        ('{"a": NaN}', "NaN is not JSON"),
        (b"a: \xff\xfe", "the text is not UTF-8 (byte 3)"),
        ("[" * 5000, ""),
        ('{"a":' * 5000, ""),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ('a: "\\UFFFFFFFF"', ""),
    ],
)
def test_text_that_is_neither_yaml_nor_json(text: str | bytes, reason: str) -> None:
    errors = ConfigErrors()
    assert load_value(text, errors) is None
    assert len(errors) == 1
    assert reason in errors.items[0].reason


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_an_empty_configuration_is_refused(text: str) -> None:
    assert load(text) == (None, [("", "the configuration is empty")])


def test_the_good_bootstrap_means_the_same_to_plain_yaml() -> None:
    """It holds nothing on which YAML 1.1 and Envoy differ."""
    errors = ConfigErrors()
    assert load_value(GOOD, errors) == yaml.safe_load(GOOD)


def test_null_is_the_value_of_what_has_no_other() -> None:
    errors = ConfigErrors()
    message = load_message("{const_expr: {null_value: null}}", Expr, errors=errors)
    assert message is not None
    assert message.const_expr.WhichOneof("constant_kind") == "null_value"
    assert errors.items == []
