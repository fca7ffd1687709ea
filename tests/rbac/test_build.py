"""What rules may not say: each error with its path. Nothing is left out of rules: they are whole, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC, RBACPerRoute
from envoy.extensions.filters.network.rbac.v3.rbac_pb2 import RBAC as NetworkRBAC
from google.protobuf import json_format
from google.protobuf.message import Message

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields.check import check_fields
from meshproxy.config.validate import validate_message
from tests.rbac.support import ANY, TYPE, Yaml, policy, try_build

P = "f.rules.policies[p]"
MTLS = TYPE + "rbac.principals.mtls_authenticated.v3.Config"
TEMPLATE = TYPE + "path.match.uri_template.v3.UriTemplateMatchConfig"
ACTION = "type.googleapis.com/envoy.config.rbac.v3.Action"
ROUTER = TYPE + "filters.http.router.v3.Router"


def extension(kind: str, **fields: Any) -> Yaml:
    return {"name": "x", "typed_config": {"@type": kind} | fields}


@pytest.mark.parametrize(
    ("permission", "where", "reason"),
    [
        ({"destination_ip": {"address_prefix": "10.0.0"}}, "destination_ip", "10.0.0"),
        ({"destination_ip": {"address_prefix": "::1", "prefix_len": 129}}, "destination_ip", "129"),
        ({"destination_port_range": {"start": 5, "end": 5}}, "destination_port_range", "start 5"),
        ({"destination_port_range": {"start": -1, "end": 5}}, "destination_port_range.start", "out of bounds"),
        ({"destination_port_range": {"start": 1, "end": 65537}}, "destination_port_range.end", "out of bounds"),
        ({"url_path": {"path": {"safe_regex": {"regex": "("}}}}, "url_path.path.safe_regex.regex", "missing"),
        ({"url_path": {}}, "url_path.path", "required"),
        ({"header": {"name": "a", "string_match": {}}}, "header.string_match", "required"),
        ({"requested_server_name": {}}, "requested_server_name", "required"),
        ({"metadata": {"filter": "f", "path": [{"key": "k"}]}}, "metadata.value", "required"),
        ({"sourced_metadata": {"metadata_matcher": {"filter": "f", "path": [{"key": "k"}]}}},
         "sourced_metadata.metadata_matcher.value", "required"),
        ({"uri_template": extension(TEMPLATE, path_template="a")}, "uri_template.typed_config.path_template", "begins"),
        ({"uri_template": extension(ROUTER)}, "uri_template.typed_config", "not supported"),
        ({"matcher": extension(ROUTER)}, "matcher", "not supported"),
        ({"and_rules": {"rules": [ANY, {}]}}, "and_rules.rules[1].rule", "required"),
        ({"or_rules": {"rules": [{"not_rule": {}}]}}, "or_rules.rules[0].not_rule.rule", "required"),
        ({}, "rule", "required"),
    ],
)  # fmt: skip
def test_permissions(permission: Yaml, where: str, reason: str) -> None:
    _, errors = try_build({"policies": {"p": policy(permission)}})
    assert [path for path, _ in errors] == [f"{P}.permissions[0].{where}"]
    assert reason in errors[0][1]


@pytest.mark.parametrize(
    ("principal", "where", "reason"),
    [
        ({"source_ip": {"address_prefix": "a"}}, "source_ip", "'a"),
        ({"remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 33}}, "remote_ip", "33"),
        ({"authenticated": {"principal_name": {}}}, "authenticated.principal_name", "required"),
        ({"filter_state": {"key": "k"}}, "filter_state", "string_match"),
        ({"custom": extension(MTLS)}, "custom.typed_config", "must be set"),
        ({"custom": extension(MTLS, san_matcher={"san_type": "OTHER_NAME", "matcher": {"exact": "a"}})},
         "custom.typed_config.san_matcher.san_type", "supported"),
        ({"custom": extension(MTLS, san_matcher={"san_type": "URI", "matcher": {}})},
         "custom.typed_config.san_matcher.matcher", "required"),
        ({"custom": extension(ROUTER)}, "custom.typed_config", "not supported"),
        ({"and_ids": {"ids": [{}]}}, "and_ids.ids[0].identifier", "required"),
        ({"or_ids": {"ids": [ANY, {}]}}, "or_ids.ids[1].identifier", "required"),
        ({"not_id": {}}, "not_id.identifier", "required"),
        ({}, "identifier", "required"),
    ],
)  # fmt: skip
def test_principals(principal: Yaml, where: str, reason: str) -> None:
    _, errors = try_build({"policies": {"p": policy(principal=principal)}})
    assert [path for path, _ in errors] == [f"{P}.principals[0].{where}"]
    assert reason in errors[0][1]


def test_all_errors_are_told_at_once() -> None:
    bad = policy({"url_path": {}}, {"not_id": {}})
    _, errors = try_build({"policies": {"a": bad, "b": policy(), "c": bad}})
    assert [path for path, _ in errors] == [
        f"f.rules.policies[{name}].{where}"
        for name in ("a", "c")
        for where in ("permissions[0].url_path.path", "principals[0].not_id.identifier")
    ]


@pytest.mark.parametrize("where", ["permissions", "principals"])
def test_a_connection_has_no_headers(where: str) -> None:
    header = {"header": {"name": "a", "present_match": True}}
    asked = policy(header) if where == "permissions" else policy(principal={"not_id": header})
    _, errors = try_build({"policies": {"p": asked}}, http=False)
    inner = "header" if where == "permissions" else "not_id.header"
    assert errors == [(f"{P}.{where}[0].{inner}", "Found header(a) rule,not supported by RBAC network filter")]


# -- what the tables of fields say


def check(kind: type[Message], config: Yaml, *, lenient: bool = False) -> list[str]:
    """The paths of what is refused."""
    errors = ConfigErrors()
    check_fields(json_format.ParseDict(config, kind()), "f", errors, lenient=lenient)
    return [error.path for error in errors.items]


EXPRESSION = {"const_expr": {"bool_value": True}}
TREE = {"on_no_match": {"action": extension(ACTION, name="a"), "keep_matching": True}}
MAP = {"matcher_tree": {"exact_match_map": {"map": {"x": {"action": extension(ACTION), "keep_matching": True}}}}}


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    ("kind", "config", "path"),
    [
        (RBAC, {"matcher": TREE}, "f.matcher.on_no_match.keep_matching"),
        (RBAC, {"shadow_matcher": MAP}, "f.shadow_matcher.matcher_tree.exact_match_map.map[x].keep_matching"),
        (RBACPerRoute, {"rbac": {"matcher": TREE}}, "f.rbac.matcher.on_no_match.keep_matching"),
        (NetworkRBAC, {"matcher": MAP}, "f.matcher.matcher_tree.exact_match_map.map[x].keep_matching"),
        (NetworkRBAC, {"shadow_matcher": TREE}, "f.shadow_matcher.on_no_match.keep_matching"),
        (RBAC, {"shadow_rules": {"policies": {"p": policy() | {"checked_condition": {"expr": EXPRESSION}}}}},
         "f.shadow_rules.policies[p].checked_condition"),
        (RBAC, {"rules": {"policies": {"p": policy({"matcher": extension(ROUTER)})}}}, f"{P}.permissions[0].matcher"),
        (RBAC, {"rules": {"policies": {"p": policy({"not_rule": {"url_path": {"path": {"custom": {"name": "x"}}}}})}}},
         f"{P}.permissions[0].not_rule.url_path.path.custom"),
        (RBAC, {"rules": {"policies": {"p": policy(principal={"filter_state": {"key": "k", "address_match": {}}})}}},
         f"{P}.principals[0].filter_state.address_match"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_from_a_control_plane_too(
    kind: type[Message], config: Yaml, path: str, lenient: bool
) -> None:
    assert check(kind, config, lenient=lenient) == [path]


def test_what_a_newer_api_adds_is_refused_from_a_control_plane() -> None:
    """A permission of a kind that we do not know."""
    rules = json_format.ParseDict({"rules": {"policies": {"p": policy()}}}, RBAC())
    rules.rules.policies["p"].permissions[0].MergeFromString(b"\xf8\x3f\x01")  # field 1023: 1
    errors = ConfigErrors()
    check_fields(rules, "f", errors, lenient=True)
    assert [error.path for error in errors.items] == [f"{P}.permissions[0]"]


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"permissions": [], "principals": [ANY]}, "permissions"),
        ({"permissions": [ANY], "principals": []}, "principals"),
        ({"permissions": [{"any": False}], "principals": [ANY]}, "permissions[0].any"),
        ({"permissions": [{"and_rules": {}}], "principals": [ANY]}, "permissions[0].and_rules.rules"),
        ({"permissions": [{"destination_port": 70000}], "principals": [ANY]}, "permissions[0].destination_port"),
        ({"permissions": [ANY], "principals": [{"or_ids": {}}]}, "principals[0].or_ids.ids"),
        ({"permissions": [ANY], "principals": [{}]}, "principals[0].identifier"),
    ],
)
def test_the_rules_of_the_api(config: Yaml, path: str) -> None:
    errors = ConfigErrors()
    validate_message(json_format.ParseDict({"rules": {"policies": {"p": config}}}, RBAC()), "f", errors)
    assert [error.path for error in errors.items] == [f"{P}.{path}"]
