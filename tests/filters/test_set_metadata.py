"""The set_metadata filter. What is expected was recorded from Envoy 1.40 on the same configuration."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.set_metadata.v3.set_metadata_pb2 import Config

from meshproxy.filters.http import set_metadata
from meshproxy.filters.http.set_metadata import SetMetadataStats, merge
from tests.http.harness import TO_A, Harness, get, parse

KIND = "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config"


def entry(value: Any, over: bool = False, namespace: str = "ns") -> dict[str, Any]:
    return {"metadata_namespace": namespace, "value": value, "allow_overwrite": over}


class Setting(Harness):
    """A chain with a set_metadata filter of this configuration, and another one on route /r."""

    def __init__(self, config: dict[str, Any], route: dict[str, Any] | None = None) -> None:
        overrides = {"typed_per_filter_config": {"set": {"@type": KIND, **(route or {})}}}
        special = {"match": {"prefix": "/r"}, "route": {"cluster": "a"}, **overrides}
        super().__init__({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [special, TO_A]}]})
        self.add(set_metadata.build_set_metadata(parse(config, Config()), "s", self.context), "set")

    def metadata(self, path: str = "/") -> dict[str, Any]:
        """What a request has."""
        self.exchange(get(path))
        found = self.upstream.streams[-1].info.dynamic_metadata
        assert found is not None
        return found

    def denied(self, prefix: str = "http.test.") -> int:
        return self.registry.acquire(f"{prefix}set_metadata.", SetMetadataStats).overwrite_denied


def test_values_of_all_kinds() -> None:
    value = {"a": "text", "b": 5.0, "c": True, "d": None, "e": [1.0, "two"], "f": {"g": {}}}
    assert Setting({"metadata": [entry(value)]}).metadata() == {"ns": value}


def test_the_first_to_set_wins() -> None:
    made = Setting({"metadata": [entry({"a": "first"}), entry({"a": "second", "b": "new"})]})
    assert made.metadata() == {"ns": {"a": "first"}}
    assert made.denied() == 1


def test_but_for_one_that_may_overwrite() -> None:
    made = Setting({"metadata": [entry({"a": "first"}), entry({"a": "second", "b": "new"}, over=True)]})
    assert made.metadata() == {"ns": {"a": "second", "b": "new"}}
    assert made.denied() == 0


def test_the_deprecated_fields_come_first_and_may_overwrite() -> None:
    legacy = {"metadata_namespace": "ns", "value": {"a": "legacy"}}
    made = Setting({**legacy, "metadata": [entry({"a": "new"}), entry({"b": 1.0}, over=True)]})
    assert made.metadata() == {"ns": {"a": "legacy", "b": 1.0}}
    assert made.denied() == 1


@pytest.mark.parametrize("config", [{}, {"metadata": [{"metadata_namespace": "ns"}]}, {"value": {"a": 1}}])
def test_nothing_to_set(config: dict[str, Any]) -> None:
    assert Setting(config).metadata() == {}


def test_a_route_adds_to_the_filter() -> None:
    route = {"metadata": [entry({"a": "route"}, over=True), entry({"b": 1.0}, namespace="other")]}
    made = Setting({"metadata": [entry({"a": "filter", "c": "filter"})]}, route)
    assert made.metadata("/") == {"ns": {"a": "filter", "c": "filter"}}
    assert made.metadata("/r") == {"ns": {"a": "route", "c": "filter"}, "other": {"b": 1.0}}


def test_what_a_route_may_not_overwrite_is_counted_apart() -> None:
    made = Setting({"metadata": [entry({"a": "filter"})]}, {"metadata": [entry({"a": "route"})]})
    assert made.metadata("/r") == {"ns": {"a": "filter"}}
    assert (made.denied(), made.denied("")) == (0, 1)


def test_requests_share_nothing() -> None:
    config = {"metadata": [entry({"a": {"x": [1.0]}}), entry({"a": {"x": [2.0]}}, over=True)]}
    made = Setting(config)
    first = made.metadata()
    first["ns"]["a"]["x"].append("mine")
    first["ns"]["a"]["y"] = "mine"
    assert made.metadata() == {"ns": {"a": {"x": [1.0, 2.0]}}}


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        ("text", "other", "other"),
        ("text", [1], [1]),
        ([1], [2, 3], [1, 2, 3]),
        ([1], {"x": 1}, {"x": 1}),
        ({"x": 1}, False, False),
        ({"x": 1, "y": [1]}, {"x": 2, "y": [2], "z": 3}, {"x": 2, "y": [1, 2], "z": 3}),
        ({"x": {"y": 1}}, {"x": {"z": 2}}, {"x": {"y": 1, "z": 2}}),
        (1, None, None),
    ],
)
def test_a_merge(old: Any, new: Any, merged: Any) -> None:
    into = {"k": old}
    merge(into, {"k": new})
    assert into == {"k": merged}
