"""Envoy's layered runtime: values that an operator may change while traffic runs.

Whoever depends on a runtime key asks once, when its configuration is built, for an object with a swappable value
(`Fraction`, `RuntimeInt`, `RuntimeBool`); the request path reads plain attributes. A change of a layer swaps the values
of all objects that are still in use; the runtime holds them weakly, so replaced configurations leave nothing behind.
"""

from __future__ import annotations

import json
import math
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from meshproxy.errors import ConfigError
from meshproxy.observe.stats import StatsRegistry, StatsScope

if TYPE_CHECKING:
    from meshproxy.config.config_source import ConfigSource

HUNDRED: Final = 100
TEN_THOUSAND: Final = 10_000
MILLION: Final = 1_000_000

# FractionalPercent.DenominatorType by its number
_DENOMINATORS: Final = (HUNDRED, TEN_THOUSAND, MILLION)
_DENOMINATOR_NAMES: Final = {"HUNDRED": HUNDRED, "TEN_THOUSAND": TEN_THOUSAND, "MILLION": MILLION}
_NAMES: Final = {whole: name for name, whole in _DENOMINATOR_NAMES.items()}

# A runtime value as it was given: JSON's scalars, and a FractionalPercent as a dict.
Value: TypeAlias = Any


class RuntimeStats(StatsScope):
    """Envoy's `runtime.*`."""

    COUNTERS = (
        "deprecated_feature_use",
        "load_error",
        "load_success",
        "override_dir_exists",
        "override_dir_not_exists",
    )
    GAUGES = ("admin_overrides_active", "deprecated_feature_seen_since_process_start", "num_keys", "num_layers")
    SET_AT_START = ("num_keys", "num_layers")

    def __init__(self) -> None:
        super().__init__()
        self.deprecated_feature_use = 0
        self.load_error = 0
        self.load_success = 0
        self.override_dir_exists = 0
        self.override_dir_not_exists = 0
        self.admin_overrides_active = 0
        self.deprecated_feature_seen_since_process_start = 0
        self.num_keys = 0
        self.num_layers = 0


class Fraction:
    """A share of the traffic: `sample(random)` is true for `numerator` out of `denominator` random numbers."""

    def __init__(self, key: str, default_numerator: int, default_denominator: int) -> None:
        self.key = key
        self.default_numerator = default_numerator
        self.default_denominator = default_denominator
        self.numerator = default_numerator
        self.denominator = default_denominator

    def sample(self, random: int) -> bool:
        """Whether a request that drew `random` (evenly distributed, at least 0) is in."""
        return random % self.denominator < self.numerator


class RuntimeInt:
    """An integer that a runtime key may override; `value` is the one in force."""

    def __init__(self, key: str, default: int) -> None:
        self.key = key
        self.default = default
        self.value = default


class RuntimeDouble:
    """A number that a runtime key may override; `value` is the one in force."""

    def __init__(self, key: str, default: float) -> None:
        self.key = key
        self.default = default
        self.value = default


class RuntimeBool:
    """A switch that a runtime key may override; `value` is the one in force."""

    def __init__(self, key: str, default: bool) -> None:
        self.key = key
        self.default = default
        self.value = default


class Layer:
    """One layer: its name, and its values by dotted key. The admin layer is the one that `modify` writes; one with a
    `source` has the values of its `resource`, from a control plane."""

    def __init__(
        self,
        name: str,
        values: dict[str, Value] | None = None,
        *,
        is_admin: bool = False,
        resource: str = "",
        source: ConfigSource | None = None,
    ) -> None:
        self.name = name
        self.values: dict[str, Value] = {} if values is None else values
        self.is_admin = is_admin
        self.resource = resource
        self.source = source

    @property
    def is_discovered(self) -> bool:
        return self.source is not None

    def key(self) -> tuple[str, bytes]:
        """What tells discovered layers apart."""
        return self.resource, b"" if self.source is None else self.source.key


class Runtime:
    """All layers, the values that come of them, and the objects that follow those values."""

    def __init__(self, layers: list[Layer] | None = None, stats: StatsRegistry | None = None) -> None:
        self.stats = RuntimeStats() if stats is None else stats.acquire("runtime.", RuntimeStats)
        self.layers: list[Layer] = []
        self._values: dict[str, Value] = {}
        self._followers: weakref.WeakSet[Fraction | RuntimeInt | RuntimeDouble | RuntimeBool] = weakref.WeakSet()
        self.replace_layers([Layer("", is_admin=True)] if layers is None else layers)

    # -- reading by key ------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Value]:
        """Every key with the value of the topmost layer that has it."""
        return dict(self._values)

    def get_int(self, key: str, default: int) -> int:
        """The key's value when it is a whole number that is not negative, else `default`."""
        number = _number(self._values.get(key))
        return int(number) if number is not None and number >= 0 and number == int(number) else default

    def get_double(self, key: str, default: float) -> float:
        """The key's value when it is a number, else `default`."""
        number = _number(self._values.get(key))
        return default if number is None else number

    def get_bool(self, key: str, default: bool) -> bool:
        """The key's value when it is a boolean, else `default`."""
        value = _scalar(self._values.get(key))
        return value if isinstance(value, bool) else default

    def get_fraction(self, key: str, numerator: int, denominator: int = HUNDRED) -> tuple[int, int]:
        """(numerator, denominator) by a FractionalPercent or a whole number of percent, else the defaults."""
        value = _scalar(self._values.get(key))
        fraction = read_fraction(value)
        if fraction is not None:
            return fraction
        percent = self.get_int(key, -1)
        return (numerator, denominator) if percent < 0 else (percent, HUNDRED)

    def feature_enabled(self, key: str, numerator: int, random: int, denominator: int = HUNDRED) -> bool:
        """Whether a request that drew `random` is in the key's share. For rare paths: elsewhere hold a `Fraction`."""
        share, whole = self.get_fraction(key, numerator, denominator)
        return random % whole < share

    # -- objects that follow -------------------------------------------------------------------------------------------

    def fraction(self, message: Any, default_numerator: int = 100, default_denominator: int = HUNDRED) -> Fraction:
        """The share of a `RuntimeFractionalPercent` or `FractionalPercent`; of the default when `message` is None."""
        key = ""
        numerator, denominator = default_numerator, default_denominator
        if message is not None and message.DESCRIPTOR.name == "RuntimeFractionalPercent":
            key = message.runtime_key
            message = message.default_value if message.HasField("default_value") else None
        if message is not None:
            numerator, denominator = message.numerator, _DENOMINATORS[message.denominator]
        return self.share(key, numerator, denominator)

    def share(self, key: str, numerator: int, denominator: int = HUNDRED) -> Fraction:
        """A fraction by its key and defaults."""
        fraction = Fraction(key, numerator, denominator)
        self._follow(key, fraction)
        return fraction

    def integer(self, key: str, default: int) -> RuntimeInt:
        follower = RuntimeInt(key, default)
        self._follow(key, follower)
        return follower

    def double(self, key: str, default: float) -> RuntimeDouble:
        follower = RuntimeDouble(key, default)
        self._follow(key, follower)
        return follower

    def boolean(self, message: Any) -> RuntimeBool:
        """The switch of a `RuntimeFeatureFlag`."""
        return self.switch(message.runtime_key, message.default_value.value)

    def switch(self, key: str, default: bool) -> RuntimeBool:
        """A switch by its key and default."""
        follower = RuntimeBool(key, default)
        self._follow(key, follower)
        return follower

    # -- changing ------------------------------------------------------------------------------------------------------

    def replace_layers(self, layers: list[Layer]) -> None:
        """Take the layers of a new configuration. What an operator set in the admin layer stays, and what a control
        plane said of a layer that is still asked for."""
        kept = {key: value for layer in self.layers if layer.is_admin for key, value in layer.values.items()}
        discovered = {layer.key(): layer.values for layer in self.layers if layer.is_discovered}
        for layer in layers:
            if layer.is_admin:
                layer.values.update(kept)
            elif layer.is_discovered:
                layer.values = discovered.get(layer.key(), layer.values)
        self.layers = layers
        self._recompute()

    def set_discovered(self, key: tuple[str, bytes], values: dict[str, Value]) -> None:
        """A control plane gives the layers with this `key` other values."""
        for layer in self.layers:
            if layer.is_discovered and layer.key() == key:
                layer.values = values
        self._recompute()

    def modify(self, changes: dict[str, str]) -> None:
        """Set keys in the admin layer; an empty value removes the key. Raises ConfigError without such a layer."""
        admin = next((layer for layer in self.layers if layer.is_admin), None)
        if admin is None:
            raise ConfigError("", "No admin layer specified")
        for key, value in changes.items():
            if value:
                admin.values[key] = value
            else:
                admin.values.pop(key, None)
        self._recompute()

    # -- showing -------------------------------------------------------------------------------------------------------

    def layer_names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    def entries(self) -> dict[str, list[str]]:
        """For `/runtime`: each key with its value in every layer (empty where it has none), as text."""
        return {key: [_text(layer.values.get(key)) for layer in self.layers] for key in sorted(self._values)}

    def final_value(self, key: str) -> str:
        """For `/runtime`: the value in force, as text."""
        return _text(self._values.get(key))

    # ------------------------------------------------------------------------------------------------------------------

    def _recompute(self) -> None:
        values: dict[str, Value] = {}
        for layer in self.layers:
            values.update(layer.values)
        changed = self._changed_keys(values)
        self._values = values
        for follower in self._followers if changed else ():
            if follower.key in changed:
                self._refresh(follower)
        stats = self.stats
        stats.load_success += 1
        stats.override_dir_not_exists += 1  # Envoy counts every load in which no disk layer overrides
        stats.num_keys = len(values)
        stats.num_layers = len(self.layers)
        stats.admin_overrides_active = int(any(layer.is_admin and layer.values for layer in self.layers))

    def _changed_keys(self, values: dict[str, Value]) -> set[str]:
        """Keys whose value is not what it was, and those that they lie under (a fraction reads `<key>.numerator`)."""
        before = self._values
        changed: set[str] = set()
        for key in before.keys() | values.keys():
            if before.get(key) != values.get(key):
                parts = key.split(".")
                changed.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return changed

    def _follow(self, key: str, follower: Fraction | RuntimeInt | RuntimeDouble | RuntimeBool) -> None:
        if not key:
            return  # nothing can change it
        self._followers.add(follower)
        self._refresh(follower)

    def _refresh(self, follower: Fraction | RuntimeInt | RuntimeDouble | RuntimeBool) -> None:
        if isinstance(follower, Fraction):
            numerator, denominator = self.get_fraction(
                follower.key, follower.default_numerator, follower.default_denominator
            )
            follower.numerator, follower.denominator = numerator, denominator
        elif isinstance(follower, RuntimeInt):
            follower.value = self.get_int(follower.key, follower.default)
        elif isinstance(follower, RuntimeDouble):
            follower.value = self.get_double(follower.key, follower.default)
        else:
            follower.value = self.get_bool(follower.key, follower.default)


def _scalar(value: Value) -> Value:
    """A value with the type that its text has: `/runtime_modify` sets strings."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _number(value: Value) -> float | None:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if math.isfinite(value) else None


def read_fraction(value: Value) -> tuple[int, int] | None:
    """(numerator, denominator) of a FractionalPercent in JSON; None when `value` is none."""
    if not isinstance(value, dict) or not value or not value.keys() <= {"numerator", "denominator"}:
        return None
    numerator = _number(value.get("numerator", 0))
    denominator = value.get("denominator", "HUNDRED")
    whole = _DENOMINATOR_NAMES.get(denominator) if isinstance(denominator, str) else None
    return None if numerator is None or whole is None else (int(numerator), whole)


def _text(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    fraction = read_fraction(value)
    if fraction is not None:
        return json.dumps({"numerator": fraction[0], "denominator": _NAMES[fraction[1]]}, separators=(",", ":"))
    return json.dumps(value)
