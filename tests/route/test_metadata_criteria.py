"""`metadata_match`: what is compared, and how the levels of a configuration are merged."""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3.base_pb2 import Metadata

from meshproxy.route.metadata_criteria import MetadataCriteria, build_criteria, frozen


def metadata(**fields: Any) -> Metadata:
    message = Metadata()
    message.filter_metadata["envoy.lb"].update(fields)
    return message


def test_values_are_the_same_when_the_protobuf_values_are() -> None:
    assert frozen(1) == frozen(1.0)
    assert frozen(True) != frozen(1)
    assert frozen(None) != frozen(False)
    assert frozen("1") != frozen(1)
    assert frozen({"a": [1, {"b": None}]}) == frozen({"a": [1.0, {"b": None}]})
    assert frozen([1, 2]) != frozen([2, 1])
    assert len({frozen({"a": 1}), frozen([["a", 1]]), frozen("a")}) == 3


def test_the_key_goes_by_the_order_of_names() -> None:
    assert MetadataCriteria({"b": 1, "a": 2}).key == MetadataCriteria({"a": 2, "b": 1}).key
    assert MetadataCriteria({"b": 1, "a": 2}).names == ("a", "b")


def test_a_weighted_cluster_adds_to_its_route() -> None:
    route = build_criteria(metadata(stage="prod", version="1"), None)
    assert route is not None
    merged = build_criteria(metadata(version="2", zone="a"), route)
    assert merged is not None
    assert merged.fields == {"stage": "prod", "version": "2", "zone": "a"}
    assert route.fields == {"stage": "prod", "version": "1"}
    assert build_criteria(Metadata(), route) is route


def test_other_metadata_asks_for_nothing() -> None:
    message = Metadata()
    message.filter_metadata["com.example"].update({"stage": "prod"})
    assert build_criteria(message, None) is None
    empty = Metadata()
    empty.filter_metadata["envoy.lb"].Clear()
    assert build_criteria(empty, None) is not None  # which no subset has


def test_fields_can_be_left_out() -> None:
    assert MetadataCriteria({"a": 1, "b": 2}).only(frozenset(("b", "c"))).fields == {"b": 2}
