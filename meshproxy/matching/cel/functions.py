"""The functions of expressions, by name, with how many arguments they take; `a.f(b)` and `f(a, b)` are one.

Each raises CelError for arguments that it is not for. What Envoy has only on demand, `string` and `+` of strings, is
apart.
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Callable
from typing import Final, TypeAlias

from meshproxy.matching.cel.times import (
    date,
    day_of_month,
    day_of_week,
    day_of_year,
    hours,
    milliseconds,
    minutes,
    moment_of,
    month,
    seconds,
    span_of,
    timestamp_of,
    to_duration,
    to_timestamp,
    year,
)
from meshproxy.matching.cel.values import (
    INT_MAX,
    INT_MIN,
    NS,
    UINT_MAX,
    CelError,
    Span,
    Timestamp,
    UInt,
    checked,
    compare,
    element,
    equal,
    inside,
    size_of,
    type_of,
)

Function: TypeAlias = Callable[[list[object]], object]

_HEXADECIMAL: Final = re.compile(r"[-+]?0[xX]")
_LONGEST_NUMBER: Final = 100
_TRUE: Final = ("1", "t", "true", "TRUE", "True")
_FALSE: Final = ("0", "f", "false", "FALSE", "False")


# -- operators


def less(arguments: list[object]) -> object:
    return compare(arguments[0], arguments[1]) == -1


def less_or_equal(arguments: list[object]) -> object:
    return compare(arguments[0], arguments[1]) in (-1, 0)


def greater(arguments: list[object]) -> object:
    return compare(arguments[0], arguments[1]) == 1


def greater_or_equal(arguments: list[object]) -> object:
    return compare(arguments[0], arguments[1]) in (0, 1)


def same(arguments: list[object]) -> object:
    return equal(arguments[0], arguments[1])


def different(arguments: list[object]) -> object:
    return not equal(arguments[0], arguments[1])


def contained(arguments: list[object]) -> object:
    return inside(arguments[0], arguments[1])


def indexed(arguments: list[object]) -> object:
    return element(arguments[0], arguments[1])


def negated(arguments: list[object]) -> object:
    value = arguments[0]
    if isinstance(value, bool):
        return not value
    raise CelError("this is neither true nor false")


def minus(arguments: list[object]) -> object:
    value = arguments[0]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CelError("this has no negative")
    return -value if isinstance(value, float) else checked(-value)


def add(arguments: list[object]) -> object:
    one, other = arguments
    if isinstance(one, Timestamp) and isinstance(other, Span):
        return timestamp_of(one.ns + other.ns)
    if isinstance(one, Span) and isinstance(other, Timestamp):
        return timestamp_of(one.ns + other.ns)
    if isinstance(one, Span) and isinstance(other, Span):
        return span_of(one.ns + other.ns)
    return _arithmetic("+", one, other)


def add_or_join(arguments: list[object]) -> object:
    """With `enable_string_concat`."""
    one, other = arguments
    if isinstance(one, str) and isinstance(other, str):
        return one + other
    if isinstance(one, bytes) and isinstance(other, bytes):
        return one + other
    return add(arguments)


def subtract(arguments: list[object]) -> object:
    one, other = arguments
    if isinstance(one, Timestamp) and isinstance(other, Timestamp):
        return span_of(one.ns - other.ns)
    if isinstance(one, Timestamp) and isinstance(other, Span):
        return timestamp_of(one.ns - other.ns)
    if isinstance(one, Span) and isinstance(other, Span):
        return span_of(one.ns - other.ns)
    return _arithmetic("-", one, other)


def multiply(arguments: list[object]) -> object:
    return _arithmetic("*", arguments[0], arguments[1])


def divide(arguments: list[object]) -> object:
    return _arithmetic("/", arguments[0], arguments[1])


def modulo(arguments: list[object]) -> object:
    return _arithmetic("%", arguments[0], arguments[1])


def _arithmetic(operator: str, one: object, other: object) -> object:
    """Of two numbers of one kind: there are no conversions."""
    if isinstance(one, UInt) and isinstance(other, UInt):
        return UInt(_integers(operator, one.value, other.value))
    if isinstance(one, float) and isinstance(other, float):
        return _doubles(operator, one, other)
    if isinstance(one, int) and isinstance(other, int) and not isinstance(one, bool) and not isinstance(other, bool):
        return checked(_integers(operator, one, other))
    raise CelError(f"{operator} is not for these")


def _integers(operator: str, one: int, other: int) -> int:
    """Division cuts off what is behind the point, as in C."""
    if operator == "+":
        return one + other
    if operator == "-":
        return one - other
    if operator == "*":
        return one * other
    if other == 0:
        raise CelError("division by zero")
    quotient = abs(one) // abs(other)
    if (one < 0) != (other < 0):
        quotient = -quotient
    return quotient if operator == "/" else one - quotient * other


def _doubles(operator: str, one: float, other: float) -> float:
    if operator == "+":
        return one + other
    if operator == "-":
        return one - other
    if operator == "*":
        return one * other
    if operator == "%":
        raise CelError("% is not for doubles")
    if other == 0.0:
        infinite = float("inf") if (one > 0) == (str(other)[0] != "-") else float("-inf")
        return infinite if one != 0.0 and one == one else float("nan")  # noqa: PLR0124 - NaN is not equal to itself
    return one / other


# -- strings


def _texts(arguments: list[object]) -> tuple[str, str]:
    one, other = arguments
    if isinstance(one, str) and isinstance(other, str):
        return one, other
    raise CelError("this is for strings")


def contains(arguments: list[object]) -> object:
    text, part = _texts(arguments)
    return part in text


def starts_with(arguments: list[object]) -> object:
    text, part = _texts(arguments)
    return text.startswith(part)


def ends_with(arguments: list[object]) -> object:
    text, part = _texts(arguments)
    return text.endswith(part)


# -- conversions


def size(arguments: list[object]) -> object:
    return size_of(arguments[0])


def the_type(arguments: list[object]) -> object:
    return type_of(arguments[0])


def as_it_is(arguments: list[object]) -> object:
    return arguments[0]


def to_int(arguments: list[object]) -> object:
    value = arguments[0]
    if isinstance(value, UInt):
        return checked(value.value)
    if isinstance(value, float):
        return _whole(value, float(INT_MIN), float(INT_MAX))
    if isinstance(value, Timestamp):
        return value.ns // NS
    if isinstance(value, str):
        return checked(_parsed(value, r"[-+]?\d+"))
    if isinstance(value, int):
        return int(value)
    raise CelError("no int can be made of this")


def to_uint(arguments: list[object]) -> object:
    value = arguments[0]
    if isinstance(value, UInt):
        return value
    if isinstance(value, float):
        return UInt(_whole(value, 0.0, float(UINT_MAX)))
    if isinstance(value, str):
        return UInt(_parsed(value, r"\+?\d+"))
    if isinstance(value, int) and not isinstance(value, bool):
        return UInt(value)
    raise CelError("no uint can be made of this")


def _whole(value: float, least: float, most: float) -> int:
    """What is behind the point is cut off; the ends of the range are not exact as doubles, and out of it."""
    if not least <= value < most:
        raise CelError("out of range")
    return int(value)


def _parsed(text: str, form: str) -> int:
    text = text.strip()
    if not text.isascii() or re.fullmatch(form, text) is None or len(text) > _LONGEST_NUMBER:
        raise CelError("this is no whole number")
    return int(text)


def to_double(arguments: list[object]) -> object:
    value = arguments[0]
    if isinstance(value, str):
        return _parsed_double(value.strip())
    if isinstance(value, UInt):
        return float(value.value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise CelError("no double can be made of this")


def _parsed_double(text: str) -> float:
    """Decimal or, as in C, hexadecimal."""
    try:
        if "_" not in text and len(text) <= _LONGEST_NUMBER:
            return float.fromhex(text) if _HEXADECIMAL.match(text) else float(text)
    except (ValueError, OverflowError):
        pass
    raise CelError("this is no number")


def to_bool(arguments: list[object]) -> object:
    value = arguments[0]
    if isinstance(value, bool):
        return value
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise CelError("this is neither true nor false")


def to_bytes(arguments: list[object]) -> object:
    value = arguments[0]
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return value
    raise CelError("no bytes can be made of this")


def to_string(arguments: list[object]) -> object:
    """With `enable_string_conversion`."""
    value = arguments[0]
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, UInt):
        return str(value.value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _double_text(value)
    if isinstance(value, Span):
        return f"{'-' if value.ns < 0 else ''}{abs(value.ns) // NS}{_fraction(abs(value.ns) % NS)}s"
    if isinstance(value, Timestamp):
        return f"{moment_of([value]):%Y-%m-%dT%H:%M:%S}{_fraction(value.ns % NS)}Z"
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise CelError("this is no UTF-8") from None
    raise CelError("no string can be made of this")


def _double_text(value: float) -> str:
    """The shortest text that reads as the number again; with an exponent where `%g` has one."""
    if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - NaN is not equal to itself
        return str(value)
    digits = len(decimal.Decimal(repr(value)).normalize().as_tuple().digits)
    scientific = f"{value:.{digits - 1}e}"
    if -5 < int(scientific.partition("e")[2]) < 6:
        return f"{decimal.Decimal(repr(value)):f}".removesuffix(".0")
    return scientific


def _fraction(ns: int) -> str:
    """Of a second: nothing, or 3, 6 or 9 digits."""
    text = f".{ns:09}"
    while len(text) > 1 and text.endswith("000"):
        text = text[:-3]
    return text.removesuffix(".")


# By name: the least and the most arguments.
FUNCTIONS: Final[dict[str, tuple[int, int, Function]]] = {
    "_==_": (2, 2, same),
    "_!=_": (2, 2, different),
    "_<_": (2, 2, less),
    "_<=_": (2, 2, less_or_equal),
    "_>_": (2, 2, greater),
    "_>=_": (2, 2, greater_or_equal),
    "@in": (2, 2, contained),
    "_in_": (2, 2, contained),
    "in": (2, 2, contained),
    "_[_]": (2, 2, indexed),
    "!_": (1, 1, negated),
    "-_": (1, 1, minus),
    "_+_": (2, 2, add),
    "_-_": (2, 2, subtract),
    "_*_": (2, 2, multiply),
    "_/_": (2, 2, divide),
    "_%_": (2, 2, modulo),
    "contains": (2, 2, contains),
    "startsWith": (2, 2, starts_with),
    "endsWith": (2, 2, ends_with),
    "size": (1, 1, size),
    "type": (1, 1, the_type),
    "dyn": (1, 1, as_it_is),
    "int": (1, 1, to_int),
    "uint": (1, 1, to_uint),
    "double": (1, 1, to_double),
    "bool": (1, 1, to_bool),
    "bytes": (1, 1, to_bytes),
    "duration": (1, 1, to_duration),
    "timestamp": (1, 1, to_timestamp),
    "getFullYear": (1, 2, year),
    "getMonth": (1, 2, month),
    "getDate": (1, 2, date),
    "getDayOfMonth": (1, 2, day_of_month),
    "getDayOfWeek": (1, 2, day_of_week),
    "getDayOfYear": (1, 2, day_of_year),
    "getHours": (1, 2, hours),
    "getMinutes": (1, 2, minutes),
    "getSeconds": (1, 2, seconds),
    "getMilliseconds": (1, 2, milliseconds),
}
