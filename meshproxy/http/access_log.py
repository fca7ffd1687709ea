"""From envoy.config.accesslog.v3.AccessLog to the log that a connection manager calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import substitution_format_string_pb2
from envoy.data.accesslog.v3 import accesslog_pb2 as data_accesslog_pb2
from envoy.extensions.access_loggers.file.v3 import file_pb2
from envoy.extensions.access_loggers.stream.v3 import stream_pb2
from google.protobuf import json_format

from meshproxy.config.context import BuildContext
from meshproxy.config.datasource import load_data_source
from meshproxy.config.errors import child, item
from meshproxy.config.registry import Registry
from meshproxy.config.values import bool_or
from meshproxy.errors import ConfigError
from meshproxy.observe.access_log import (
    AccessLog,
    AllFilter,
    AnyFilter,
    Comparison,
    DurationFilter,
    FileAccessLog,
    GrpcStatusFilter,
    HeaderFilter,
    LogFilter,
    LogTypeFilter,
    MetadataFilter,
    NotHealthCheckFilter,
    ResponseFlagFilter,
    RuntimeFilter,
    StatusCodeFilter,
    TraceableFilter,
)
from meshproxy.observe.formatter import DEFAULT_FORMAT, FormatError, JsonFormatter, LineFormat, parse_format
from meshproxy.observe.log_file import LOG_FILES, FilesystemStats
from meshproxy.observe.response_flags import NAMES
from meshproxy.route.header_matcher import build_header_matcher
from meshproxy.route.metadata_matcher import build_value_matcher

# (message, filter, path, context) -> the log, or None after an error was added
AccessLogBuilder = Callable[[Any, LogFilter | None, str, BuildContext], AccessLog | None]

ACCESS_LOGGERS: Final[Registry[AccessLogBuilder]] = Registry("access logger")

_FLAGS: Final = {short: 1 << bit for bit, (short, _) in enumerate(NAMES)}
# Formatters that Envoy has as extensions; here their operators are always known.
_FORMATTERS: Final = frozenset({
    "envoy.extensions.formatter.req_without_query.v3.ReqWithoutQuery",
    "envoy.extensions.formatter.metadata.v3.Metadata",
})  # fmt: skip


def build_access_log(message: accesslog_pb2.AccessLog, path: str, context: BuildContext) -> AccessLog | None:
    """The access log of one entry; None after errors were added to the context."""
    before = len(context.errors)
    log_filter = None
    if message.HasField("filter"):
        log_filter = build_filter(message.filter, child(path, "filter"), context)
    where = child(path, "typed_config")
    found = ACCESS_LOGGERS.find(message.typed_config, where, context)
    if found is None or len(context.errors) != before:
        return None
    context.filter_name = message.name
    return found[1](found[0], log_filter, where, context)


# ---- sinks


def _build_file(message: Any, log_filter: LogFilter | None, path: str, context: BuildContext) -> AccessLog | None:
    kind = message.WhichOneof("access_log_format")
    line: LineFormat | None
    if kind == "log_format":
        line = build_line_format(message.log_format, child(path, "log_format"), context)
    elif kind in {"json_format", "typed_json_format"}:
        line = _json(getattr(message, kind), child(path, kind), context, omit_empty=False)
    else:
        line = _text(message.format or DEFAULT_FORMAT, child(path, "format"), context, unset=b"-")
    return _file_log(message.path, line, log_filter, child(path, "path"), context)


def _build_stdout(message: Any, log_filter: LogFilter | None, path: str, context: BuildContext) -> AccessLog | None:
    return _file_log("/dev/stdout", _stream_format(message, path, context), log_filter, path, context)


def _build_stderr(message: Any, log_filter: LogFilter | None, path: str, context: BuildContext) -> AccessLog | None:
    return _file_log("/dev/stderr", _stream_format(message, path, context), log_filter, path, context)


def _stream_format(message: Any, path: str, context: BuildContext) -> LineFormat | None:
    if message.HasField("log_format"):
        return build_line_format(message.log_format, child(path, "log_format"), context)
    return parse_format(DEFAULT_FORMAT, b"-", for_log=True)


def _file_log(
    file_path: str, line: LineFormat | None, log_filter: LogFilter | None, path: str, context: BuildContext
) -> AccessLog | None:
    if line is None:
        return None
    try:
        file = LOG_FILES.acquire(file_path, context.scope("filesystem.", FilesystemStats))
    except ConfigError as error:
        context.errors.add(path, error.reason)
        return None
    return FileAccessLog(LOG_FILES, file, line, log_filter)


# ---- formats


def build_line_format(
    message: substitution_format_string_pb2.SubstitutionFormatString,
    path: str,
    context: BuildContext,
    *,
    for_log: bool = True,
) -> LineFormat | None:
    """The format of a SubstitutionFormatString, as access logs (and local replies, not `for_log`) use it."""
    for index, formatter in enumerate(message.formatters):
        name = formatter.typed_config.type_url.rpartition("/")[2]
        if name not in _FORMATTERS:
            context.errors.add(item(path, "formatters", index), f"{name} is not supported as a formatter")
            return None
    kind = message.WhichOneof("format")
    if kind == "json_format":
        omit_empty = message.omit_empty_values
        return _json(message.json_format, child(path, kind), context, omit_empty=omit_empty, for_log=for_log)
    unset = b"" if message.omit_empty_values else b"-"
    if kind == "text_format":
        return _text(message.text_format, child(path, kind), context, unset, for_log=for_log)
    if kind == "text_format_source":
        return _text_source(message.text_format_source, child(path, kind), context, unset, for_log=for_log)
    context.errors.add(path, "a format is required")
    return None


def _text(text: str, path: str, context: BuildContext, unset: bytes, *, for_log: bool = True) -> LineFormat | None:
    try:
        return parse_format(text, unset, for_log=for_log)
    except FormatError as error:
        context.errors.add(path, str(error))
        return None


def _text_source(source: Any, path: str, context: BuildContext, unset: bytes, *, for_log: bool) -> LineFormat | None:
    text = load_data_source(source, path, context.errors)
    if text is None:
        return None
    try:
        return _text(text.decode(), path, context, unset, for_log=for_log)
    except UnicodeDecodeError as error:
        context.errors.add(path, f"is not UTF-8: {error}")
        return None


def _json(
    struct: Any, path: str, context: BuildContext, *, omit_empty: bool, for_log: bool = True
) -> LineFormat | None:
    try:
        return JsonFormatter(json_format.MessageToDict(struct), omit_empty=omit_empty, for_log=for_log)
    except FormatError as error:
        context.errors.add(path, str(error))
        return None


# ---- filters


def build_filter(message: accesslog_pb2.AccessLogFilter, path: str, context: BuildContext) -> LogFilter | None:
    """The filter of an access log; None after errors were added to the context."""
    kind = message.WhichOneof("filter_specifier")
    if kind is None:
        context.errors.add(path, "a filter is required")
        return None
    build = _FILTERS.get(kind)
    if build is None:
        context.errors.add(child(path, kind), "is not supported")
        return None
    return build(getattr(message, kind), child(path, kind), context)


def _comparison(message: Any, context: BuildContext) -> Comparison:
    value = message.comparison.value
    return Comparison(message.comparison.op, context.runtime.integer(value.runtime_key, value.default_value))


def _status_code(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    return StatusCodeFilter(_comparison(message, context))


def _duration(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    return DurationFilter(_comparison(message, context))


def _not_health_check(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    return NotHealthCheckFilter()


def _traceable(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    return TraceableFilter()


def _runtime(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    percent = message.percent_sampled
    denominator = (100, 10_000, 1_000_000)[percent.denominator]
    share = context.runtime.share(message.runtime_key, percent.numerator, denominator)
    return RuntimeFilter(share, independent=message.use_independent_randomness)


def _parts(message: Any, path: str, context: BuildContext) -> list[LogFilter]:
    built = [build_filter(part, item(path, "filters", index), context) for index, part in enumerate(message.filters)]
    return [part for part in built if part is not None]


def _and(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    return AllFilter(_parts(message, path, context))


def _or(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    return AnyFilter(_parts(message, path, context))


def _header(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    matcher = build_header_matcher(message.header, child(path, "header"), context.errors)
    return None if matcher is None else HeaderFilter(matcher.matches)


def _response_flag(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    flags = 0
    for index, name in enumerate(message.flags):
        if name not in _FLAGS:
            context.errors.add(item(path, "flags", index), f"{name} is not a response flag")
            return None
        flags |= _FLAGS[name]
    return ResponseFlagFilter(flags)


def _grpc_status(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    return GrpcStatusFilter(frozenset(message.statuses), exclude=message.exclude)


def _metadata(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    """Envoy takes the matcher's `invert` for nothing here; the value is matched alone."""
    unknown = bool_or(message, "match_if_key_not_found", True)
    matcher = message.matcher
    if not message.HasField("matcher"):
        return MetadataFilter("", [], lambda value: False, unknown=unknown)
    value = build_value_matcher(matcher.value, child(path, "matcher.value"), context.errors)
    if value is None:
        return None
    return MetadataFilter(matcher.filter, [part.key for part in matcher.path], value.match, unknown=unknown)


def _log_type(message: Any, path: str, context: BuildContext) -> LogFilter | None:
    types = frozenset(data_accesslog_pb2.AccessLogType.Name(number) for number in message.types)
    return LogTypeFilter(types, exclude=message.exclude)


_FILTERS: Final[dict[str, Callable[[Any, str, BuildContext], LogFilter | None]]] = {
    "status_code_filter": _status_code,
    "duration_filter": _duration,
    "not_health_check_filter": _not_health_check,
    "traceable_filter": _traceable,
    "runtime_filter": _runtime,
    "and_filter": _and,
    "or_filter": _or,
    "header_filter": _header,
    "response_flag_filter": _response_flag,
    "grpc_status_filter": _grpc_status,
    "metadata_filter": _metadata,
    "log_type_filter": _log_type,
}

ACCESS_LOGGERS.register(file_pb2.FileAccessLog, _build_file)
ACCESS_LOGGERS.register(stream_pb2.StdoutAccessLog, _build_stdout)
ACCESS_LOGGERS.register(stream_pb2.StderrAccessLog, _build_stderr)

__all__ = ["ACCESS_LOGGERS", "AccessLog", "build_access_log", "build_filter", "build_line_format"]
