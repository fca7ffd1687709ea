"""Layered runtime: what overrides what, and the objects that follow (values as Envoy 1.40 showed them)."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from envoy.config.bootstrap.v3.bootstrap_pb2 import LayeredRuntime
from envoy.config.core.v3 import base_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf import json_format

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Layer, Runtime
from meshproxy.config.runtime_layers import build_layers
from meshproxy.errors import ConfigError
from meshproxy.observe.stats import StatsRegistry

STATIC = {"a": 5, "b": True, "c": {"d": "x", "e": 1.5}, "f": {"numerator": 5, "denominator": "TEN_THOUSAND"},
          "g": "12", "h": -3}  # fmt: skip


def layers(*specifications: dict[str, Any]) -> tuple[list[Layer], list[tuple[str, str]]]:
    errors = ConfigErrors()
    message = json_format.ParseDict({"layers": list(specifications)}, LayeredRuntime())
    return build_layers(message, "layered_runtime", errors), [(each.path, each.reason) for each in errors.items]


def runtime(stats: StatsRegistry | None = None) -> Runtime:
    built, errors = layers({"name": "base", "static_layer": STATIC}, {"name": "adm", "admin_layer": {}})
    assert errors == []
    return Runtime(built, stats)


def test_entries_as_the_admin_shows_them() -> None:
    subject = runtime()
    assert subject.layer_names() == ["base", "adm"]
    assert subject.entries() == {
        "a": ["5", ""],
        "b": ["true", ""],
        "c.d": ["x", ""],
        "c.e": ["1.5", ""],
        "f": ['{"numerator":5,"denominator":"TEN_THOUSAND"}', ""],
        "g": ["12", ""],
        "h": ["-3", ""],
    }
    subject.modify({"a": "7", "n.m": "hello"})
    assert subject.entries()["a"] == ["5", "7"]
    assert (subject.final_value("a"), subject.final_value("n.m")) == ("7", "hello")
    subject.modify({"a": "", "n.m": ""})
    assert subject.final_value("a") == "5"
    assert "n.m" not in subject.snapshot()


def test_values_by_type() -> None:
    subject = runtime()
    assert subject.get_int("a", 1) == 5
    assert subject.get_int("g", 1) == 12
    assert subject.get_int("h", 1) == 1  # not negative
    assert subject.get_int("c.e", 1) == 1  # not whole
    assert subject.get_int("b", 1) == 1
    assert subject.get_int("nowhere", 9) == 9
    assert subject.get_double("c.e", 0.0) == 1.5
    assert subject.get_double("h", 0.0) == -3
    assert subject.get_bool("b", False) is True
    assert subject.get_bool("a", False) is False
    assert subject.get_fraction("f", 1) == (5, 10_000)
    assert subject.get_fraction("a", 1) == (5, 100)
    assert subject.get_fraction("c.d", 1, 1_000_000) == (1, 1_000_000)


def test_feature_enabled_is_a_share_of_the_random_numbers() -> None:
    subject = runtime()
    assert [random for random in range(200) if subject.feature_enabled("a", 0, random)] == [
        *range(5),
        *range(100, 105),
    ]
    assert not subject.feature_enabled("nowhere", 0, 0)
    assert subject.feature_enabled("nowhere", 100, 99)


def test_a_fraction_follows_its_key() -> None:
    subject = runtime()
    message = base_pb2.RuntimeFractionalPercent(
        runtime_key="canary", default_value=percent_pb2.FractionalPercent(numerator=5, denominator=1)
    )
    fraction = subject.fraction(message)
    assert [fraction.sample(random) for random in (4, 5, 9_999, 10_004)] == [True, False, False, True]
    subject.modify({"canary": "50"})
    assert [fraction.sample(random) for random in (49, 50, 149)] == [True, False, True]
    subject.modify({"canary": '{"numerator": 1, "denominator": "MILLION"}'})
    assert [fraction.sample(random) for random in (0, 1, 1_000_000)] == [True, False, True]
    subject.modify({"canary": ""})
    assert (fraction.numerator, fraction.denominator) == (5, 10_000)


def test_fractions_without_a_key() -> None:
    subject = runtime()
    plain = subject.fraction(percent_pb2.FractionalPercent(numerator=100))
    assert all(plain.sample(random) for random in range(100))
    assert not subject.fraction(None, 0).sample(0)
    assert subject.fraction(None).sample(99)
    assert not subject.fraction(percent_pb2.FractionalPercent()).sample(0)


def test_numbers_and_switches_follow() -> None:
    subject = runtime()
    limit = subject.integer("max", 3)
    share = subject.double("share", 0.5)
    switch = subject.boolean(base_pb2.RuntimeFeatureFlag(runtime_key="on", default_value={"value": True}))
    subject.modify({"max": "10", "share": "0.25", "on": "false"})
    assert (limit.value, share.value, switch.value) == (10, 0.25, False)
    subject.modify({"max": "junk", "share": "junk", "on": "junk"})
    assert (limit.value, share.value, switch.value) == (3, 0.5, True)


def test_new_layers_keep_what_the_operator_set() -> None:
    subject = runtime()
    limit = subject.integer("a", 1)
    subject.modify({"z": "1"})
    subject.replace_layers([Layer("base", {"a": 6}), Layer("adm", is_admin=True)])
    assert limit.value == 6
    assert subject.snapshot() == {"a": 6, "z": "1"}


def test_objects_that_nobody_holds_are_forgotten() -> None:
    subject = runtime()
    kept = subject.integer("a", 1)
    for _ in range(100):
        subject.integer("a", 1)
    gc.collect()
    assert len(subject._followers) == 1
    assert kept.value == 5


def test_without_layers_there_is_an_admin_layer() -> None:
    built, errors = layers()
    assert errors == []
    subject = Runtime(built)
    subject.modify({"a": "1"})
    assert subject.get_int("a", 0) == 1


def test_without_an_admin_layer_nothing_can_be_set() -> None:
    built, _ = layers({"name": "base", "static_layer": {}})
    with pytest.raises(ConfigError, match="No admin layer specified"):
        Runtime(built).modify({"a": "1"})


@pytest.mark.parametrize(
    ("specifications", "path"),
    [
        ([{"name": "a", "static_layer": {}}, {"name": "a", "admin_layer": {}}], "layered_runtime.layers[1].name"),
        ([{"name": "a", "admin_layer": {}}, {"name": "b", "admin_layer": {}}], "layered_runtime.layers[1].admin_layer"),
        ([{"name": "a", "disk_layer": {"symlink_root": "x"}}], "layered_runtime.layers[0].disk_layer"),
        ([{"name": "a", "rtds_layer": {"name": "x"}}], "layered_runtime.layers[0].rtds_layer.rtds_config"),
        ([{"name": "a", "static_layer": {"l": {"m": [1]}}}], "layered_runtime.layers[0].static_layer.l.m"),
    ],
)
def test_bad_layers(specifications: list[dict[str, Any]], path: str) -> None:
    _, errors = layers(*specifications)
    assert [each[0] for each in errors] == [path]


def test_stats() -> None:
    registry = StatsRegistry()
    subject = runtime(registry)
    stats = subject.stats
    assert registry.scopes() == [("runtime.", stats)]
    assert (stats.num_layers, stats.num_keys, stats.admin_overrides_active, stats.load_success) == (2, 7, 0, 1)
    subject.modify({"n": "1", "m": "2"})
    assert (stats.num_keys, stats.admin_overrides_active, stats.load_success) == (9, 1, 2)
    subject.modify({"n": "", "m": ""})
    assert (stats.num_keys, stats.admin_overrides_active) == (7, 0)
