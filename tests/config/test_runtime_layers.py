"""Layers of the runtime that a control plane fills (as Envoy 1.40 takes them)."""

from __future__ import annotations

from typing import Any

from envoy.config.bootstrap.v3.bootstrap_pb2 import LayeredRuntime
from envoy.service.runtime.v3 import rtds_pb2
from google.protobuf import json_format

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Layer, Runtime
from meshproxy.config.runtime_layers import RuntimeDiscoveries, build_layers
from meshproxy.config.subscription import RUNTIME_TYPE, InitManager
from meshproxy.observe.stats import StatsRegistry
from tests.support.subscriptions import FakeSubscriptions

BELOW: dict[str, Any] = {"name": "static", "static_layer": {"a": 1, "share": {"numerator": 0}}}
ADMIN: dict[str, Any] = {"name": "admin", "admin_layer": {}}


def rtds(name: str = "rt") -> dict[str, Any]:
    return {"name": f"layer-{name}", "rtds_layer": {"name": name, "rtds_config": {"ads": {}}}}


def layers(*specifications: dict[str, Any]) -> list[Layer]:
    errors = ConfigErrors()
    message = json_format.ParseDict({"layers": [*specifications]}, LayeredRuntime())
    built = build_layers(message, "layered_runtime", errors)
    assert not errors, str(errors)
    return built


def message(**layer: Any) -> Any:
    return json_format.ParseDict({"name": "rt", "layer": layer}, rtds_pb2.Runtime())


class Process:
    """A runtime with layers of a control plane."""

    def __init__(self) -> None:
        self.registry = StatsRegistry()
        self.runtime = Runtime(stats=self.registry)
        self.subscriptions = FakeSubscriptions()
        self._discoveries = RuntimeDiscoveries(self.runtime, self.subscriptions, self.registry)

    def take(self, *specifications: dict[str, Any]) -> list[str]:
        """A new bootstrap. The list grows when its new targets are ready."""
        found = layers(*specifications)
        self.runtime.replace_layers(found)
        warm: list[str] = []
        InitManager(self._discoveries.follow(found)).start(lambda: warm.append("warm"))
        return warm

    def deliver(self, **layer: Any) -> ConfigErrors:
        return self.subscriptions.deliver(RUNTIME_TYPE, "rt", message(**layer))


def test_a_layer_overrides_those_below_as_soon_as_it_comes() -> None:
    process = Process()
    warm = process.take(BELOW, rtds(), ADMIN)
    share = process.runtime.share("share", 50)
    assert (warm, share.numerator) == ([], 0)
    assert not process.deliver(share={"numerator": 100, "denominator": "HUNDRED"}, x={"y": 1})
    assert (warm, share.numerator) == (["warm"], 100)
    assert process.runtime.entries()["x.y"] == ["", "1", ""]
    process.runtime.modify({"share": "7"})
    assert share.numerator == 7


def test_an_update_replaces_the_whole_layer() -> None:
    process = Process()
    process.take(BELOW, rtds())
    process.deliver(a=2, b=3)
    process.deliver(b=4)
    assert process.runtime.snapshot() == {"a": 1, "b": 4, "share": {"numerator": 0}}


def test_a_layer_that_is_removed_is_empty() -> None:
    process = Process()
    process.take(BELOW, rtds())
    process.deliver(a=2)
    process.subscriptions.miss(RUNTIME_TYPE, "rt")
    assert process.runtime.get_int("a", 0) == 1


def test_a_layer_that_does_not_come_is_empty() -> None:
    process = Process()
    warm = process.take(BELOW, rtds())
    loads = process.runtime.stats.load_success
    process.subscriptions.miss(RUNTIME_TYPE, "rt")
    assert (warm, process.runtime.get_int("a", 0)) == (["warm"], 1)
    assert process.runtime.stats.load_success == loads


def test_a_layer_that_is_refused_leaves_the_one_in_force() -> None:
    process = Process()
    warm = process.take(BELOW, rtds())
    errors = process.deliver(a=[1])
    assert [error.path for error in errors.items] == ["layer.a"]
    assert warm == ["warm"]  # as Envoy, which goes on without
    process.deliver(a=2)
    assert process.deliver(a=[1])
    assert process.runtime.get_int("a", 0) == 2


def test_statistics_of_the_subscription_stand_beside_those_of_the_runtime() -> None:
    process = Process()
    process.take(BELOW, rtds())
    process.deliver(a=2)
    counters = process.registry.snapshot().counters
    assert counters["runtime.update_success"] == 1
    assert "runtime.config_reload" not in counters


def test_another_bootstrap_keeps_what_is_still_asked_for() -> None:
    process = Process()
    process.take(BELOW, rtds())
    process.deliver(a=2)
    assert process.take(rtds(), ADMIN) == ["warm"]  # nothing new is to be waited for
    assert process.runtime.get_int("a", 0) == 2
    process.deliver(a=3)
    assert process.runtime.get_int("a", 0) == 3


def test_a_layer_that_is_gone_is_not_watched_any_more() -> None:
    process = Process()
    process.take(BELOW, rtds(), rtds("other"))
    assert process.subscriptions.names(RUNTIME_TYPE) == ["other", "rt"]
    process.take(BELOW, rtds("other"))
    assert process.subscriptions.names(RUNTIME_TYPE) == ["other"]
    process.take(BELOW)
    assert process.subscriptions.watches == []
