"""Access logs, their filters and where they go."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_LOG = "envoy.config.accesslog.v3."

TABLES: Final[Tables] = {
    _LOG + "AccessLog": MessageTable("name filter typed_config"),
    _LOG + "AccessLogFilter": MessageTable(
        "status_code_filter duration_filter not_health_check_filter runtime_filter and_filter or_filter header_filter "
        "response_flag_filter grpc_status_filter log_type_filter traceable_filter "
        "metadata_filter",
        refused={
            "extension_filter": "extensions as filters of access logs, CEL among them, are not supported",
        },
    ),
    _LOG + "StatusCodeFilter": MessageTable("comparison"),
    _LOG + "DurationFilter": MessageTable("comparison"),
    _LOG + "ComparisonFilter": MessageTable("op value"),
    _LOG + "NotHealthCheckFilter": MessageTable(),
    _LOG + "TraceableFilter": MessageTable(),
    _LOG + "RuntimeFilter": MessageTable("runtime_key percent_sampled use_independent_randomness"),
    _LOG + "AndFilter": MessageTable("filters"),
    _LOG + "OrFilter": MessageTable("filters"),
    _LOG + "HeaderFilter": MessageTable("header"),
    _LOG + "ResponseFlagFilter": MessageTable("flags"),
    _LOG + "MetadataFilter": MessageTable("matcher match_if_key_not_found"),
    _LOG + "GrpcStatusFilter": MessageTable("statuses exclude"),
    _LOG + "LogTypeFilter": MessageTable("types exclude"),
    "envoy.extensions.access_loggers.file.v3.FileAccessLog": MessageTable(
        "path log_format format json_format typed_json_format"
    ),
    "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog": MessageTable("log_format"),
    "envoy.extensions.access_loggers.stream.v3.StderrAccessLog": MessageTable("log_format"),
    "meshproxy.access_loggers.python.v1.Python": MessageTable("file module entry_point class config"),
}
