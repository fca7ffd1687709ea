"""The header_to_metadata filter. What is expected was recorded from Envoy 1.40 on the same values."""

from __future__ import annotations

import math
from typing import Any

import pytest
from envoy.extensions.filters.http.header_to_metadata.v3.header_to_metadata_pb2 import Config
from google.protobuf.struct_pb2 import Value

from meshproxy.filters.http import header_to_metadata
from meshproxy.filters.http.header_to_metadata import decode_base64, parse_number, parse_value
from tests.http.harness import TO_A, Harness, ScriptedUpstream, get, parse

KIND = "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config"
OWN = "envoy.filters.http.header_to_metadata"


class Mapping(Harness):
    """A chain with these rules, and others on route /r."""

    def __init__(
        self, *rules: dict[str, Any], responses: list[dict[str, Any]] | None = None, route: dict[str, Any] | None = None
    ) -> None:
        special: dict[str, Any] = {"match": {"prefix": "/r"}, "route": {"cluster": "a"}}
        if route is not None:
            special["typed_per_filter_config"] = {"h2m": {"@type": KIND, "request_rules": [route]}}
        answer = ScriptedUpstream([(b":status", b"201"), (b"x-answer", b"yes")])
        super().__init__(
            {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [special, TO_A]}]}, upstream=answer
        )
        config = {"request_rules": list(rules), "response_rules": responses or [], "stat_prefix": "m"}
        self.filter = header_to_metadata.build_header_to_metadata(parse(config, Config()), "h", self.context)
        self.add(self.filter, "h2m")

    def metadata(self, *headers: tuple[str, str], path: str = "/") -> dict[str, Any] | None:
        """What a request with these headers has in the end."""
        self.exchange(get(path, *headers))
        return self.upstream.streams[-1].info.dynamic_metadata

    def counted(self) -> dict[str, int]:
        stats = self.filter.rules.stats
        return {name: getattr(stats, name) for name in stats.COUNTERS if getattr(stats, name)}


def header(name: str, present: dict[str, Any] | None = None, missing: str = "", **more: Any) -> dict[str, Any]:
    rule = {"header": name, **more}
    if present is not None:
        rule["on_header_present"] = {"metadata_namespace": "ns", "key": "k", **present}
    if missing:
        rule["on_header_missing"] = {"metadata_namespace": "ns", "key": "k", "value": missing}
    return rule


def test_a_header() -> None:
    made = Mapping(header("X-A", {}))
    assert made.metadata(("x-a", "b")) == {"ns": {"k": "b"}}
    assert made.metadata(("x-a", "b"), ("x-a", "c")) == {"ns": {"k": "b,c"}}
    assert made.metadata() is None
    assert made.metadata(("x-a", "")) is None


def test_its_own_namespace_where_none_is_named() -> None:
    assert Mapping({"header": "x-a", "on_header_present": {"key": "k"}}).metadata(("x-a", "b")) == {OWN: {"k": "b"}}


def test_a_value_of_the_configuration() -> None:
    made = Mapping(header("x-a", {"value": "there"}, "not there"))
    assert made.metadata(("x-a", "")) == {"ns": {"k": "there"}}
    assert made.metadata() == {"ns": {"k": "not there"}}
    assert made.counted() == {"request_rules_processed": 2, "request_metadata_added": 2, "request_header_not_found": 1}


def test_a_header_that_is_removed() -> None:
    made = Mapping(header("x-a", missing="none", remove=True))
    assert made.metadata(("x-a", "b"), ("x-a", "c")) is None
    assert b"x-a" not in dict(made.upstream.seen[-1])


@pytest.mark.parametrize(
    ("sent", "expected"), [("c=1; s=abc", "abc"), ('s="a b"', "a b"), ("s=", "none"), ("", "none")]
)
def test_a_cookie(sent: str, expected: str) -> None:
    rule = {**header("", {}, "none"), "cookie": "s"}
    assert Mapping(rule).metadata(("cookie", sent)) == {"ns": {"k": expected}}


@pytest.mark.parametrize(("sent", "expected"), [("/one/two", "one"), ("other", "other")])
def test_a_rewrite(sent: str, expected: str) -> None:
    rewrite = {"regex_value_rewrite": {"pattern": {"regex": "^/([a-z]+)/.*$"}, "substitution": "\\1"}}
    assert Mapping(header("x-a", rewrite)).metadata(("x-a", sent)) == {"ns": {"k": expected}}


def test_a_rewrite_to_nothing() -> None:
    rewrite = {"regex_value_rewrite": {"pattern": {"regex": ".*"}, "substitution": ""}}
    made = Mapping(header("x-a", rewrite))
    assert made.metadata(("x-a", "b")) is None
    assert made.counted() == {"request_rules_processed": 1, "regex_substitution_failed": 1}


def test_the_length_of_a_value() -> None:
    made = Mapping(header("x-a", {}))
    assert made.metadata(("x-a", "b" * 8191)) == {"ns": {"k": "b" * 8191}}
    assert made.metadata(("x-a", "b" * 8192)) is None
    assert made.counted()["header_value_too_long"] == 1


def test_text_that_is_no_utf_8() -> None:
    assert Mapping(header("x-a", {})).metadata(("x-a", "\xe4")) == {"ns": {"k": b"\xe4"}}


def test_types() -> None:
    made = Mapping(header("x-a", {"type": "NUMBER"}), header("x-b", {"encode": "BASE64"}))
    assert made.metadata(("x-a", "5")) == {"ns": {"k": 5.0}}
    assert made.metadata(("x-a", "five")) is None
    assert made.metadata(("x-b", "aGVsbG8=")) == {"ns": {"k": "hello"}}
    assert made.metadata(("x-b", "!")) is None
    assert made.counted()["base64_decode_failed"] == 1


def test_a_response() -> None:
    made = Mapping(responses=[header("x-answer", {}, remove=True), header("x-none", missing="none")])
    made.filter.rules.response[1].missing.key = "other"  # type: ignore[union-attr]
    answer = made.exchange(get("/"))
    assert b"x-answer" not in answer
    assert made.upstream.streams[-1].info.dynamic_metadata == {"ns": {"k": "yes", "other": "none"}}
    assert made.counted() == {
        "response_rules_processed": 2,
        "response_metadata_added": 2,
        "response_header_not_found": 1,
    }


def test_the_rules_of_a_route_stand_for_the_filters() -> None:
    made = Mapping(header("x-a", {}), responses=[header("x-answer", {})], route=header("x-b", {}))
    assert made.metadata(("x-a", "1"), ("x-b", "2")) == {"ns": {"k": "yes"}}
    assert made.metadata(("x-a", "1"), ("x-b", "2"), path="/r") == {"ns": {"k": "2"}}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", 5.0),
        (" 5.5 ", 5.5),
        ("-1e3", -1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+3", 3.0),
        ("00012", 12.0),
        ("1e400", math.inf),
        ("1e-400", 0.0),
        ("INF", math.inf),
        ("-infinity", -math.inf),
        ("0x10", 16.0),
        ("-0X1F", -31.0),
        ("0x1.8p3", 12.0),
        ("0x1p5000", math.inf),
        ("-0x1p5000", -math.inf),
    ],
)
def test_a_number(text: str, number: float) -> None:
    assert parse_number(text.encode()) == number


@pytest.mark.parametrize("text", ["nan", "-NaN", "nan(1)"])
def test_no_number_that_is_one(text: str) -> None:
    assert math.isnan(parse_number(text.encode()))


@pytest.mark.parametrize("text", ["", "five", "1_000", "--3", "+-3", "1e", "1,5", "1 2", "0x", "10h", "\xb2", "nan("])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError):
        parse_number(text.encode("latin-1"))


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("aGVsbG8=", b"hello"),
        ("aGVsbG8", b"hello"),
        ("aGVsbG8==", b"hello"),
        ("aGVsbA=", b"hell"),
        ("aGVsbG8A", b"hello\0"),
        ("//8=", b"\xff\xff"),
    ],
)
def test_base64(text: str, decoded: bytes) -> None:
    assert decode_base64(text.encode()) == decoded


@pytest.mark.parametrize(
    "text", ["", "=", "a", "aG=", "aH", "_-8=", "aGVs bG8=", "aGV=sbG8=", "aGVsbG9", "aGVsbG8=====", "not base64!"]
)
def test_no_base64(text: str) -> None:
    assert decode_base64(text.encode()) == b""


@pytest.mark.parametrize("value", ["text", 5.5, True, None, [1.0, "two", [False]], {"a": {"b": 1.0}}])
def test_a_serialised_value(value: Any) -> None:
    message = parse(value, Value()) if value is not None else Value(null_value=0)  # type: ignore[arg-type]
    assert parse_value(message.SerializeToString()) == value


def test_no_serialised_value() -> None:
    assert parse_value(Value().SerializeToString()) is None
    with pytest.raises(ValueError):
        parse_value(b"\xff\xff")


REWRITE = {"pattern": {"regex": "a"}, "substitution": "b"}


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ({"on_header_present": {"key": "k"}}, "c.request_rules[0]"),
        ({"header": "a", "cookie": "b", "on_header_present": {"key": "k"}}, "c.request_rules[0]"),
        ({"header": "a"}, "c.request_rules[0]"),
        ({"cookie": "a", "remove": True, "on_header_present": {"key": "k"}}, "c.request_rules[0].remove"),
        ({"header": "a", "on_header_missing": {"key": "k"}}, "c.request_rules[0].on_header_missing.value"),
        (
            {"header": "a", "on_header_present": {"key": "k", "value": "v", "regex_value_rewrite": REWRITE}},
            "c.request_rules[0].on_header_present.regex_value_rewrite",
        ),
    ],
)
def test_a_rule_in_error(rule: dict[str, Any], path: str) -> None:
    made = Harness()
    header_to_metadata.build_header_to_metadata(parse({"request_rules": [rule]}, Config()), "c", made.context)
    assert [error.path for error in made.errors.items] == [path]


def test_a_route_without_rules() -> None:
    made = Harness()
    header_to_metadata.build_per_route(Config(), "r", made.context)
    assert [error.path for error in made.errors.items] == ["r"]
