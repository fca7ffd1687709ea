"""The layers of the runtime, as a bootstrap has them, and RTDS: those that a control plane fills."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from google.protobuf import json_format

from meshproxy.config.config_source import build_config_source
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, item
from meshproxy.config.runtime import Layer, Runtime, Value, read_fraction
from meshproxy.config.subscription import (
    RUNTIME_TYPE,
    InitTarget,
    ResourceWatcher,
    Subscription,
    Subscriptions,
    SubscriptionStats,
)
from meshproxy.observe.stats import StatsRegistry


def build_layers(message: Any, path: str, errors: ConfigErrors) -> list[Layer]:
    """The layers of a bootstrap's `layered_runtime`; a lone admin layer where there are none, as in Envoy."""
    layers: list[Layer] = []
    names: set[str] = set()
    context = BuildContext(errors, Runtime(), StatsRegistry())
    for index, layer in enumerate(message.layers):
        at = item(path, "layers", index)
        kind = layer.WhichOneof("layer_specifier")
        if layer.name in names:
            errors.add(f"{at}.name", f"the name {layer.name!r} is used twice")
        names.add(layer.name)
        if kind == "static_layer":
            tree = json_format.MessageToDict(layer.static_layer)
            layers.append(Layer(layer.name, flatten(tree, f"{at}.{kind}", errors)))
        elif kind == "admin_layer":
            if any(each.is_admin for each in layers):
                errors.add(f"{at}.admin_layer", "there can be only one admin layer")
            layers.append(Layer(layer.name, is_admin=True))
        elif kind == "rtds_layer":
            source = build_config_source(layer.rtds_layer.rtds_config, f"{at}.{kind}.rtds_config", context)
            if source is not None:
                layers.append(Layer(layer.name, resource=layer.rtds_layer.name, source=source))
        elif kind is not None:
            errors.add(f"{at}.{kind}", "this kind of runtime layer is not supported yet")
    return layers or [Layer("", is_admin=True)]


def flatten(tree: dict[str, Any], path: str, errors: ConfigErrors, prefix: str = "") -> dict[str, Value]:
    """A layer's values by dotted key; a FractionalPercent stays whole. Lists and null are no runtime values."""
    flat: dict[str, Value] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and read_fraction(value) is None:
            flat.update(flatten(value, path, errors, f"{key}."))
        elif value is None or isinstance(value, list):
            errors.add(f"{path}.{key}", "a runtime value is a boolean, a number, a string or a fraction")
        else:
            flat[key] = value
    return flat


class RuntimeDiscoveryStats(SubscriptionStats):
    """`runtime.`, of all layers that a control plane fills."""

    COUNTERS: ClassVar = tuple(name for name in SubscriptionStats.COUNTERS if name != "config_reload")


class RuntimeDiscovery(InitTarget, ResourceWatcher):
    """Keeps one layer what the control plane says; while it says nothing, the layer is empty."""

    def __init__(
        self, layer: Layer, runtime: Runtime, subscriptions: Subscriptions, stats: RuntimeDiscoveryStats
    ) -> None:
        super().__init__(f"RTDS {layer.resource}")
        self.stats = stats
        self._layer = layer
        self._runtime = runtime
        self._subscriptions = subscriptions
        self._subscription: Subscription | None = None
        self._has_values = False

    def begin(self) -> None:
        source = self._layer.source
        assert source is not None
        self._subscription = self._subscriptions.watch(source, RUNTIME_TYPE, self._layer.resource, self)

    def update(self, message: Any, version: str, errors: ConfigErrors) -> Iterator[None]:
        values = flatten(json_format.MessageToDict(message.layer), "layer", errors)
        yield
        if not errors:
            self._set(values)
        self.set_ready()  # a first answer that is refused ends the waiting too, as in Envoy

    def refused(self) -> None:
        """An answer broke the API's rules: a first one ends the waiting."""
        self.set_ready()

    def missing(self) -> None:
        """It did not come in time, or was removed."""
        if self._has_values:
            self._set({})
        self.set_ready()

    def stop(self) -> None:
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    def _set(self, values: dict[str, Value]) -> None:
        if self._subscription is not None:
            self._has_values = bool(values)
            self._runtime.set_discovered(self._layer.key(), values)


class RuntimeDiscoveries:
    """All layers of one runtime that a control plane fills."""

    def __init__(self, runtime: Runtime, subscriptions: Subscriptions, registry: StatsRegistry) -> None:
        self._runtime = runtime
        self._subscriptions = subscriptions
        self._registry = registry
        self._stats: RuntimeDiscoveryStats | None = None
        self._running: dict[tuple[str, bytes], RuntimeDiscovery] = {}

    def follow(self, layers: list[Layer]) -> list[InitTarget]:
        """The runtime has these layers now. Returns the targets of those that are new, for the caller to start."""
        wanted = {layer.key(): layer for layer in layers if layer.is_discovered}
        for key in self._running.keys() - wanted.keys():
            self._running.pop(key).stop()
        new = [self._discovery(layer) for key, layer in wanted.items() if key not in self._running]
        return list(new)

    def close(self) -> None:
        """Watch nothing any more."""
        self.follow([])

    def _discovery(self, layer: Layer) -> RuntimeDiscovery:
        if self._stats is None:
            self._stats = self._registry.acquire("runtime.", RuntimeDiscoveryStats)
        made = self._running[layer.key()] = RuntimeDiscovery(layer, self._runtime, self._subscriptions, self._stats)
        return made
