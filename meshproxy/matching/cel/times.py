"""Times and durations of expressions: read from texts, held within their ranges, and their parts."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from typing import Final

from meshproxy.matching.cel.values import NS, CelError, Span, Timestamp

_DURATION: Final = re.compile(r"([-+]?)((?:\d+(?:\.\d*)?|\.\d+)(?:ns|us|µs|ms|s|m|h))+", re.ASCII)
_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_NOTHING: Final = ("0", "-0", "+0")
_UNITS_NS: Final = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": NS, "m": 60 * NS, "h": 3_600 * NS}
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[-+]\d\d:\d\d)", re.ASCII)
_OFFSET: Final = re.compile(r"([-+]?)(\d\d):(\d\d)", re.ASCII)
# A google.protobuf.Duration holds 10,000 years; a Timestamp the years 1 to 9999.
_MOST_NS: Final = 315_576_000_000 * NS
_FIRST_NS: Final = -62_135_596_800 * NS
_LAST_NS: Final = 253_402_300_800 * NS - 1
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


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


def moment_of(arguments: list[object]) -> dt.datetime:
    value, zone = arguments[0], arguments[1] if len(arguments) > 1 else "UTC"
    if not isinstance(value, Timestamp) or not isinstance(zone, str):
        raise CelError("this has no date")
    try:
        found = _EPOCH + dt.timedelta(seconds=value.ns // NS)
        return found if zone == "UTC" else found.astimezone(_zone(zone))
    except OverflowError:
        raise CelError("out of range") from None


def year(arguments: list[object]) -> object:
    return moment_of(arguments).year


def month(arguments: list[object]) -> object:
    """From 0."""
    return moment_of(arguments).month - 1


def date(arguments: list[object]) -> object:
    """The day of the month, from 1."""
    return moment_of(arguments).day


def day_of_month(arguments: list[object]) -> object:
    """From 0."""
    return moment_of(arguments).day - 1


def day_of_week(arguments: list[object]) -> object:
    """From 0, which is Sunday."""
    return moment_of(arguments).isoweekday() % 7


def day_of_year(arguments: list[object]) -> object:
    """From 0."""
    return moment_of(arguments).timetuple().tm_yday - 1


def _elapsed(arguments: list[object], unit_ns: int) -> int | None:
    """Whole units of a duration; None for what is none."""
    value = arguments[0]
    if not isinstance(value, Span) or len(arguments) > 1:
        return None
    return -(-value.ns // unit_ns) if value.ns < 0 else value.ns // unit_ns


def hours(arguments: list[object]) -> object:
    elapsed = _elapsed(arguments, 3_600 * NS)
    return moment_of(arguments).hour if elapsed is None else elapsed


def minutes(arguments: list[object]) -> object:
    elapsed = _elapsed(arguments, 60 * NS)
    return moment_of(arguments).minute if elapsed is None else elapsed


def seconds(arguments: list[object]) -> object:
    elapsed = _elapsed(arguments, NS)
    return moment_of(arguments).second if elapsed is None else elapsed


def milliseconds(arguments: list[object]) -> object:
    """Those that are no whole second."""
    value = arguments[0]
    if isinstance(value, Span) and len(arguments) == 1:
        rest = abs(value.ns) % NS // 1_000_000
        return -rest if value.ns < 0 else rest
    moment_of(arguments)
    assert isinstance(value, Timestamp)
    return value.ns % NS // 1_000_000
