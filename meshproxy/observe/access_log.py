"""Access logs: which streams are logged (filters), in which words (a format), and where to (a file)."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final, Protocol

from mypy_extensions import mypyc_attr

from meshproxy.clock import monotonic
from meshproxy.codec.headers import HeaderMap
from meshproxy.observe.formatter import LineFormat
from meshproxy.observe.log_file import LogFile, LogFiles
from meshproxy.observe.operators import response_grpc_status
from meshproxy.observe.stream_info import TRACE_FORCED, StreamInfo


class IntValue(Protocol):
    """A number that runtime may change."""

    @property
    def value(self) -> int: ...


class Share(Protocol):
    """A share of the traffic that runtime may change."""

    def sample(self, random: int) -> bool: ...


@mypyc_attr(allow_interpreted_subclasses=True)
class LogFilter:
    """Decides whether a finished stream is logged."""

    def matches(self, info: StreamInfo) -> bool:
        raise NotImplementedError


# ComparisonFilter.Op
_EQ: Final = 0
_GE: Final = 1
_LE: Final = 2


class Comparison:
    """Envoy's ComparisonFilter."""

    def __init__(self, operation: int, operand: IntValue) -> None:
        self._operation = operation
        self._operand = operand

    def holds(self, number: int) -> bool:
        operand = self._operand.value
        if self._operation == _EQ:
            return number == operand
        if self._operation == _GE:
            return number >= operand
        if self._operation == _LE:
            return number <= operand
        return number != operand


class StatusCodeFilter(LogFilter):
    """A stream without a response has status 0."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def matches(self, info: StreamInfo) -> bool:
        return self._comparison.holds(info.response_code)


class DurationFilter(LogFilter):
    """By the stream's duration in ms, as far as it has come."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    def matches(self, info: StreamInfo) -> bool:
        return self._comparison.holds(int(((info.end or monotonic()) - info.start) * 1000))


class NotHealthCheckFilter(LogFilter):
    def matches(self, info: StreamInfo) -> bool:
        return not info.health_check


class RuntimeFilter(LogFilter):
    """A share of the streams. The x-request-id decides, so that every proxy on the way logs the same ones."""

    def __init__(self, share: Share, *, independent: bool) -> None:
        self._share = share
        self._independent = independent

    def matches(self, info: StreamInfo) -> bool:
        return self._share.sample(self._random(info.request_id))

    def _random(self, request_id: bytes) -> int:
        if not self._independent and request_id:
            try:
                return int(request_id[:8], 16)
            except ValueError:
                return secrets.randbits(32)  # not a UUID: someone else made it
        return secrets.randbits(32)


class TraceableFilter(LogFilter):
    """Streams whose trace was asked for by x-envoy-force-trace, here or before: Envoy's filter means no others."""

    def matches(self, info: StreamInfo) -> bool:
        return info.trace_reason == TRACE_FORCED and not info.health_check


class AllFilter(LogFilter):
    def __init__(self, filters: list[LogFilter]) -> None:
        self._filters = filters

    def matches(self, info: StreamInfo) -> bool:
        return all(log_filter.matches(info) for log_filter in self._filters)


class AnyFilter(LogFilter):
    def __init__(self, filters: list[LogFilter]) -> None:
        self._filters = filters

    def matches(self, info: StreamInfo) -> bool:
        return any(log_filter.matches(info) for log_filter in self._filters)


class HeaderFilter(LogFilter):
    """By a header of the request."""

    def __init__(self, matches: Callable[[HeaderMap], bool]) -> None:
        self._matches = matches
        self._none = HeaderMap()

    def matches(self, info: StreamInfo) -> bool:
        return self._matches(info.request_headers or self._none)


class ResponseFlagFilter(LogFilter):
    """Any of `flags`; any flag at all when it is 0."""

    def __init__(self, flags: int) -> None:
        self._flags = flags

    def matches(self, info: StreamInfo) -> bool:
        return bool(info.response_flags & self._flags) if self._flags else info.response_flags != 0


class GrpcStatusFilter(LogFilter):
    """A stream that is no gRPC counts as its HTTP status amounts to: Unknown (2) for a 200, as for most."""

    def __init__(self, statuses: frozenset[int], *, exclude: bool) -> None:
        self._statuses = statuses
        self._exclude = exclude

    def matches(self, info: StreamInfo) -> bool:
        status = response_grpc_status(info)
        return ((2 if status is None else status) in self._statuses) != self._exclude


class MetadataFilter(LogFilter):
    """By the value at `keys` in the dynamic metadata of `namespace`; where there is none, `unknown` says it."""

    def __init__(self, namespace: str, keys: list[str], match: Callable[[object], bool], *, unknown: bool) -> None:
        self._namespace = namespace
        self._keys = keys
        self._match = match
        self._unknown = unknown

    def matches(self, info: StreamInfo) -> bool:
        metadata = info.dynamic_metadata
        found: object = None if metadata is None else metadata.get(self._namespace)
        for key in self._keys:
            found = found.get(key) if isinstance(found, dict) else None
        return self._unknown if found is None else self._match(found)


class LogTypeFilter(LogFilter):
    """By the kind of record: `DownstreamEnd`, `DownstreamStart`, `UpstreamEnd` …"""

    def __init__(self, types: frozenset[str], *, exclude: bool) -> None:
        self._types = types
        self._exclude = exclude

    def matches(self, info: StreamInfo) -> bool:
        return (info.log_type in self._types) != self._exclude


@mypyc_attr(allow_interpreted_subclasses=True)
class AccessLog:
    """Base of access logs: `log` is called for each record, whose kind is `info.log_type`; as a rule at a stream's end.

    `measures`: the records tell of bytes on the wire, which are counted only then.
    """

    measures: bool = False

    def log(self, info: StreamInfo) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """The listener that it belonged to is gone."""


class FileAccessLog(AccessLog):
    """Lines of a format into a log file, of those streams that the filter lets pass.

    The file is given back by `close`, or when nobody holds the log any more: configurations go with
    their last stream.
    """

    def __init__(self, files: LogFiles, file: LogFile, line: LineFormat, log_filter: LogFilter | None) -> None:
        self._files = files
        self._file = file
        self._held: bool = True
        self._line = line
        self.measures = line.measures
        self._filter = log_filter

    def log(self, info: StreamInfo) -> None:
        if self._filter is None or self._filter.matches(info):
            self._file.write(self._line.format(info))

    def close(self) -> None:
        if self._held:
            self._held = False
            self._files.release(self._file)

    def __del__(self) -> None:
        self.close()
