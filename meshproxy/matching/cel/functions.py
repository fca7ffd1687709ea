"""The functions of expressions, by name, with how many arguments they take; `a.f(b)` and `f(a, b)` are one.

Each raises CelError for arguments that it is not for. What Envoy has only on demand, `string` and `+` of strings, is
apart.
"""

from __future__ import annotations

import datetime as dt
import decimal
import re
import zoneinfo
from collections.abc import Callable
from typing import Final, TypeAlias

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

_DURATION: Final = re.compile(r"([-+]?)((?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+")
_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_HEXADECIMAL: Final = re.compile(r"[-+]?0[xX]")
_LONGEST_NUMBER: Final = 100
_NOTHING: Final = ("0", "-0", "+0")
_UNITS_NS: Final = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": NS, "m": 60 * NS, "h": 3_600 * NS}
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[-+]\d\d:\d\d)")
_OFFSET: Final = re.compile(r"([-+]?)(\d\d):(\d\d)")
_TRUE: Final = ("1", "t", "true", "TRUE", "True")
_FALSE: Final = ("0", "f", "false", "FALSE", "False")
# A google.protobuf.Duration holds 10,000 years; a Timestamp the years 1 to 9999.
_MOST_NS: Final = 315_576_000_000 * NS
_FIRST_NS: Final = -62_135_596_800 * NS
_LAST_NS: Final = 253_402_300_800 * NS - 1
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


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
        return f"{_moment([value]):%Y-%m-%dT%H:%M:%S}{_fraction(value.ns % NS)}Z"
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


# -- times


def span_of(ns: int) -> Span:
    """Raises CelError for more than a Duration holds."""
    if not -_MOST_NS <= ns <= _MOST_NS:
        raise CelError("out of range")
    return Span(ns)


def timestamp_of(ns: int) -> Timestamp:
    """Raises CelError for what no Timestamp holds."""
    if not _FIRST_NS <= ns <= _LAST_NS:
        raise CelError("out of range")
    return Timestamp(ns)


def to_duration(arguments: list[object]) -> object:
    """Of `1h2m3.5s`."""
    value = arguments[0]
    if isinstance(value, Span):
        return value
    if value in _NOTHING:
        return Span(0)
    whole = _DURATION.fullmatch(value) if isinstance(value, str) and len(value) < 100 else None
    if whole is None or not isinstance(value, str):
        raise CelError("this is no duration")
    ns = 0
    for number, unit in _PART.findall(value):
        before, _, behind = number.partition(".")
        ns += int(before or "0") * _UNITS_NS[unit]
        ns += int(behind or "0") * _UNITS_NS[unit] // 10 ** len(behind)
    return span_of(-ns if value.startswith("-") else ns)


def to_timestamp(arguments: list[object]) -> object:
    """Of RFC 3339, or seconds since 1970."""
    value = arguments[0]
    if isinstance(value, Timestamp):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return timestamp_of(value * NS)
    parts = _TIME.fullmatch(value.upper()) if isinstance(value, str) else None
    if parts is None:
        raise CelError("this is no time")
    try:
        moment = dt.datetime.fromisoformat(parts[1] + ("+00:00" if parts[3] == "Z" else parts[3]))
    except ValueError:
        raise CelError("this is no time") from None
    elapsed = moment - _EPOCH
    fraction = int((parts[2] or "0").ljust(9, "0"))
    return timestamp_of((elapsed.days * 86_400 + elapsed.seconds) * NS + fraction)


def _zone(name: str) -> dt.tzinfo:
    """Of `+02:00`, or a name of the database. Raises CelError."""
    offset = _OFFSET.fullmatch(name)
    try:
        if offset is not None:
            minutes = int(offset[2]) * 60 + int(offset[3])
            return dt.timezone(dt.timedelta(minutes=-minutes if offset[1] == "-" else minutes))
        return zoneinfo.ZoneInfo(name)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise CelError("there is no such time zone") from None


def _moment(arguments: list[object]) -> dt.datetime:
    value, zone = arguments[0], arguments[1] if len(arguments) > 1 else "UTC"
    if not isinstance(value, Timestamp) or not isinstance(zone, str):
        raise CelError("this has no date")
    try:
        found = _EPOCH + dt.timedelta(seconds=value.ns // NS)
        return found if zone == "UTC" else found.astimezone(_zone(zone))
    except OverflowError:
        raise CelError("out of range") from None


def year(arguments: list[object]) -> object:
    return _moment(arguments).year


def month(arguments: list[object]) -> object:
    """From 0."""
    return _moment(arguments).month - 1


def date(arguments: list[object]) -> object:
    """The day of the month, from 1."""
    return _moment(arguments).day


def day_of_month(arguments: list[object]) -> object:
    """From 0."""
    return _moment(arguments).day - 1


def day_of_week(arguments: list[object]) -> object:
    """From 0, which is Sunday."""
    return _moment(arguments).isoweekday() % 7


def day_of_year(arguments: list[object]) -> object:
    """From 0."""
    return _moment(arguments).timetuple().tm_yday - 1


def _elapsed(arguments: list[object], unit_ns: int) -> int | None:
    """Whole units of a duration; None for what is none."""
    value = arguments[0]
    if not isinstance(value, Span) or len(arguments) > 1:
        return None
    return -(-value.ns // unit_ns) if value.ns < 0 else value.ns // unit_ns


def hours(arguments: list[object]) -> object:
    elapsed = _elapsed(arguments, 3_600 * NS)
    return _moment(arguments).hour if elapsed is None else elapsed


def minutes(arguments: list[object]) -> object:
    elapsed = _elapsed(arguments, 60 * NS)
    return _moment(arguments).minute if elapsed is None else elapsed


def seconds(arguments: list[object]) -> object:
    elapsed = _elapsed(arguments, NS)
    return _moment(arguments).second if elapsed is None else elapsed


def milliseconds(arguments: list[object]) -> object:
    """Those that are no whole second."""
    value = arguments[0]
    if isinstance(value, Span) and len(arguments) == 1:
        rest = abs(value.ns) % NS // 1_000_000
        return -rest if value.ns < 0 else rest
    _moment(arguments)
    assert isinstance(value, Timestamp)
    return value.ns % NS // 1_000_000


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
