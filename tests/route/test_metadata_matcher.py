"""Conditions on dynamic metadata and filter state, which no request can set by itself."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.route.support import build_routes, new_headers, new_info

METADATA = {"f": {"text": "abc", "number": 3.5, "flag": True, "null": None, "list": [1, "x"], "deep": {"er": "y"}}}
METADATA["f"]["raw"] = b"ab\xff"  # text that is no UTF-8


def holds(condition: str) -> bool:
    """Whether a route with the RouteMatch fields of the YAML text matches."""
    match = {"prefix": "/"} | yaml.safe_load(condition)
    headers = new_headers()
    info = new_info(headers)
    info.dynamic_metadata = METADATA
    info.filter_state = {"key": "value", "raw": b"bytes"}
    return (
        build_routes(yaml.safe_dump([{"match": match, "direct_response": {"status": 200}}])).match(headers, info, 0)
        is not None
    )


@pytest.mark.parametrize(
    ("keys", "value", "expected"),
    [
        ("text", "{string_match: {prefix: ab}}", True),
        ("text", "{string_match: {exact: ab}}", False),
        ("raw", "{string_match: {prefix: ab}}", True),
        ("raw", "{string_match: {suffix: b}}", False),
        ("number", "{string_match: {prefix: '3'}}", False),
        ("number", "{double_match: {exact: 3.5}}", True),
        ("number", "{double_match: {range: {start: 3, end: 3.5}}}", False),
        ("number", "{double_match: {range: {start: 3.5, end: 4}}}", True),
        ("flag", "{double_match: {exact: 1}}", False),
        ("flag", "{bool_match: true}", True),
        ("flag", "{bool_match: false}", False),
        ("null", "{null_match: {}}", True),
        ("text", "{null_match: {}}", False),
        ("none", "{null_match: {}}", False),
        ("list", "{list_match: {one_of: {string_match: {exact: x}}}}", True),
        ("list", "{list_match: {one_of: {string_match: {exact: z}}}}", False),
        ("text", "{list_match: {one_of: {string_match: {exact: abc}}}}", False),
        ("deep er", "{string_match: {exact: 'y'}}", True),
        ("deep none", "{present_match: true}", False),
        ("text er", "{present_match: true}", False),
        ("text", "{or_match: {value_matchers: [{bool_match: true}, {string_match: {exact: abc}}]}}", True),
        ("text", "{or_match: {value_matchers: [{bool_match: true}, {string_match: {exact: z}}]}}", False),
    ],
)
@pytest.mark.parametrize("invert", [False, True])
def test_dynamic_metadata(keys: str, value: str, expected: bool, invert: bool) -> None:
    path: list[Any] = [{"key": key} for key in keys.split()]
    matcher = {"filter": "f", "path": path, "value": yaml.safe_load(value), "invert": invert}
    assert holds(yaml.safe_dump({"dynamic_metadata": [matcher]})) == (expected != invert)


@pytest.mark.parametrize(("key", "expected"), [("key", True), ("raw", False), ("none", False)])
def test_filter_state(key: str, expected: bool) -> None:
    assert holds(f"filter_state: [{{key: {key}, string_match: {{exact: value}}}}]") == expected
