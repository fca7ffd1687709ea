"""The values of expressions, and what is equal, less and inside.

A null is None; a bool, an int, a double, a string and bytes are Python's; a list is a list. The rest has classes: an
unsigned number is not an int, and maps are of several kinds. A list or map of a Struct (`metadata`) gives its numbers
as doubles, as Envoy does.
"""

from __future__ import annotations

import math
from typing import Any, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.errors import MeshProxyError

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
UINT_MAX: Final = 2**64 - 1
NS: Final = 1_000_000_000
UNORDERED: Final = 2


class CelError(MeshProxyError):
    """An expression that has no value: what it asks for is not there, or not of a kind that it can be asked of."""


class UInt:
    """An unsigned number of 64 bits. Raises CelError for one that is none."""

    def __init__(self, value: int) -> None:
        if value < 0 or value > UINT_MAX:
            raise CelError("out of range")
        self.value = value


class Timestamp:
    """A moment, in nanoseconds since 1970."""

    def __init__(self, ns: int) -> None:
        self.ns = ns


class Span:
    """A google.protobuf.Duration, in nanoseconds."""

    def __init__(self, ns: int) -> None:
        self.ns = ns


class TypeName:
    """A type, as `type(x)` gives it."""

    def __init__(self, name: str) -> None:
        self.name = name


class MapValue:
    """A map: of an expression, by `key_of` of its keys."""

    def __init__(self, entries: dict[Any, Any]) -> None:
        self.entries = entries

    def find(self, key: object) -> object:
        """The value of a key; raises KeyError."""
        return self.entries[key_of(key)]

    def has(self, key: object) -> bool:
        return key_of(key) in self.entries

    def keys(self) -> list[object]:
        """As they are."""
        return [UInt(int(key[1])) if key[0] == "u" else key[1] for key in self.entries]

    def size(self) -> int:
        return len(self.entries)


class StructMap(MapValue):
    """A map of a Struct: its keys are strings."""

    def find(self, key: object) -> object:
        if not isinstance(key, str):
            raise KeyError(key)
        return of_struct(self.entries[key])

    def has(self, key: object) -> bool:
        return isinstance(key, str) and key in self.entries

    def keys(self) -> list[object]:
        return list(self.entries)


class Headers(MapValue):
    """Headers, by names in letters of either case; one that is there several times has its values joined."""

    def __init__(self, headers: HeaderMap) -> None:
        super().__init__({})
        self.headers = headers

    def find(self, key: object) -> object:
        found = self.headers.joined(_header_name(key)) if isinstance(key, str) else None
        if found is None:
            raise KeyError(key)
        return text_of(found)

    def has(self, key: object) -> bool:
        return isinstance(key, str) and self.headers.get(_header_name(key)) is not None

    def keys(self) -> list[object]:
        return list({text_of(name): None for name, _ in self.headers})

    def size(self) -> int:
        return len(self.headers)


def _header_name(key: str) -> bytes:
    name = key.lower().encode("utf-8", "surrogateescape")
    return b":authority" if name == b"host" else name


def text_of(data: bytes) -> str:
    """Bytes of a message as a string: what is no UTF-8 stays what it is."""
    return data.decode("utf-8", "surrogateescape")


def of_struct(value: object) -> object:
    """A value of a Struct, whose numbers are doubles."""
    if isinstance(value, dict):
        return StructMap(value)
    if isinstance(value, list):
        return [of_struct(one) for one in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def key_of(key: object) -> tuple[str, Any]:
    """What stands for a key of a map: equal numbers of all kinds are one. Raises CelError for what can be no key."""
    if isinstance(key, bool):
        return ("b", key)
    if isinstance(key, int):
        return ("i", key)
    if isinstance(key, UInt):
        return ("i" if key.value <= INT_MAX else "u", key.value)
    if isinstance(key, float) and key.is_integer():
        return ("i", int(key))
    if isinstance(key, str):
        return ("s", key)
    raise CelError("this can be no key")


def number_of(value: object) -> Any:
    """A number as Python's; None for anything else."""
    if isinstance(value, UInt):
        return value.value
    if isinstance(value, bool):
        return None
    return value if isinstance(value, int | float) else None


def equal(one: object, other: object) -> bool:
    """Values of different kinds are different, but for numbers."""
    first, second = number_of(one), number_of(other)
    if first is not None or second is not None:
        return first is not None and second is not None and _order(first, second) == 0
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, MapValue):
        return isinstance(other, MapValue) and _same_map(one, other)
    if isinstance(one, Timestamp):
        return isinstance(other, Timestamp) and one.ns == other.ns
    if isinstance(one, Span):
        return isinstance(other, Span) and one.ns == other.ns
    if isinstance(one, TypeName):
        return isinstance(other, TypeName) and one.name == other.name
    return type(one) is type(other) and one == other


def _same_map(one: MapValue, other: MapValue) -> bool:
    keys = one.keys()
    if len(keys) != len(other.keys()):
        return False
    return all(other.has(key) and equal(one.find(key), other.find(key)) for key in keys)


def _order(one: Any, other: Any) -> int:
    """Of two numbers; a double has both compared as doubles, as in Envoy, though large ints are not exact so."""
    if isinstance(one, float) or isinstance(other, float):
        one, other = float(one), float(other)
        if math.isnan(one) or math.isnan(other):
            return UNORDERED
    return int(one > other) - int(one < other)


def compare(one: object, other: object) -> int:
    """-1, 0 or 1, as `one` is less, equal or more; UNORDERED for what is not a number (NaN). Raises CelError for values
    that have no order."""
    first, second = number_of(one), number_of(other)
    if first is not None and second is not None:
        return _order(first, second)
    if isinstance(one, Timestamp) and isinstance(other, Timestamp):
        return int(one.ns > other.ns) - int(one.ns < other.ns)
    if isinstance(one, Span) and isinstance(other, Span):
        return int(one.ns > other.ns) - int(one.ns < other.ns)
    if isinstance(one, str) and isinstance(other, str):
        left, right = one.encode("utf-8", "surrogateescape"), other.encode("utf-8", "surrogateescape")
        return int(left > right) - int(left < right)
    if isinstance(one, bytes) and isinstance(other, bytes):
        return int(one > other) - int(one < other)
    if isinstance(one, bool) and isinstance(other, bool):
        return int(one) - int(other)
    raise CelError("these have no order")


def checked(value: int) -> int:
    """A signed number of 64 bits. Raises CelError for one that is none."""
    if value < INT_MIN or value > INT_MAX:
        raise CelError("out of range")
    return value


def type_of(value: object) -> TypeName:
    if value is None:
        return TypeName("null_type")
    if isinstance(value, bool):
        return TypeName("bool")
    if isinstance(value, int):
        return TypeName("int")
    if isinstance(value, UInt):
        return TypeName("uint")
    if isinstance(value, float):
        return TypeName("double")
    if isinstance(value, str):
        return TypeName("string")
    if isinstance(value, bytes):
        return TypeName("bytes")
    if isinstance(value, list):
        return TypeName("list")
    if isinstance(value, MapValue):
        return TypeName("map")
    if isinstance(value, Timestamp):
        return TypeName("google.protobuf.Timestamp")
    return TypeName("google.protobuf.Duration" if isinstance(value, Span) else "type")


def size_of(value: object) -> int:
    """Characters of a string, bytes, elements, keys. Raises CelError for what has none."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return len(value)
    if isinstance(value, MapValue):
        return value.size()
    raise CelError("this has no size")


def inside(value: object, container: object) -> bool:
    """`value in container`."""
    if isinstance(container, list):
        return any(equal(value, one) for one in container)
    if isinstance(container, MapValue):
        return container.has(value)
    raise CelError("nothing is in this")


def element(container: object, key: object) -> object:
    """`container[key]`. Raises CelError where it is not there."""
    if isinstance(container, MapValue):
        try:
            return container.find(key)
        except KeyError:
            raise CelError("no such key") from None
    if isinstance(container, list):
        index = number_of(key)
        if index is not None and 0 <= index < len(container) and index == int(index):
            found: object = container[int(index)]
            return found
        raise CelError("no such element")
    raise CelError("this has no elements")
