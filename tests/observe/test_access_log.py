"""Access logs from their configuration: sinks, formats, filters, and every refusal with its path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from envoy.config.accesslog.v3 import accesslog_pb2
from google.protobuf import json_format

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Layer, Runtime
from meshproxy.http.access_log import AccessLog, build_access_log
from meshproxy.observe import response_flags
from meshproxy.observe.log_file import LOG_FILES
from meshproxy.observe.stats import StatsRegistry
from meshproxy.observe.stream_info import TRACE_CLIENT, TRACE_FORCED, TRACE_NONE, TRACE_SAMPLED, StreamInfo
from tests.observe.streams import make_stream

FILE = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"


@pytest.fixture
def log_path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "access.log"
    LOG_FILES.close()


def _context(runtime: dict[str, Any] | None = None) -> BuildContext:
    return BuildContext(ConfigErrors(), Runtime([Layer("static", runtime or {})]), StatsRegistry())


def _build(config: dict[str, Any], context: BuildContext) -> AccessLog | None:
    return build_access_log(json_format.ParseDict(config, accesslog_pb2.AccessLog()), "access_log[0]", context)


def _config(path: Path, **fields: Any) -> dict[str, Any]:
    return {"name": "file", "typed_config": {"@type": FILE, "path": str(path), **fields}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"format": "%PROTOCOL% %REQ(no)%\n"}, "HTTP/1.1 -\n"),
        ({"json_format": {"code": "%RESPONSE_CODE%"}}, '{"code":200}\n'),
        ({"log_format": {"text_format_source": {"inline_string": "%REQ(no)%!\n"}}}, "-!\n"),
        ({"log_format": {"text_format": "%REQ(no)%!\n", "omit_empty_values": True}}, "!\n"),
        ({"log_format": {"json_format": {"a": "%REQ(no)%", "b": ["%RESPONSE_CODE%"]}}}, '{"a":null,"b":[200]}\n'),
    ],
)
def test_formats(log_path: Path, fields: dict[str, Any], expected: str) -> None:
    context = _context()
    log = _build(_config(log_path, **fields), context)
    assert log is not None, str(context.errors)
    log.log(make_stream())
    LOG_FILES.close()
    assert log_path.read_text() == expected


def test_the_default_format_and_the_stats_of_its_file(log_path: Path) -> None:
    context = _context()
    log = _build(_config(log_path), context)
    assert log is not None
    log.log(make_stream())
    log.close()
    LOG_FILES.close()
    assert '"POST /p/q?a=1&b=xyz%20q&a=2 HTTP/1.1" 200 - 4 5 500 ' in log_path.read_text()
    counters = context.stats.snapshot().counters
    assert (counters["filesystem.write_buffered"], counters["filesystem.write_completed"]) == (1, 1)


def _number(value: int, operation: str = "GE", key: str = "none") -> dict[str, Any]:
    return {"comparison": {"op": operation, "value": {"default_value": value, "runtime_key": key}}}


@pytest.mark.parametrize(
    ("log_filter", "logged"),
    [
        ({"status_code_filter": _number(200)}, True),
        ({"status_code_filter": _number(201)}, False),
        ({"status_code_filter": _number(200, "EQ")}, True),
        ({"status_code_filter": _number(200, "NE")}, False),
        ({"status_code_filter": _number(199, "LE")}, False),
        ({"status_code_filter": _number(500, "GE", "log.from")}, True),  # runtime says 100
        ({"duration_filter": _number(500)}, True),
        ({"duration_filter": _number(501)}, False),
        ({"not_health_check_filter": {}}, True),
        ({"header_filter": {"header": {"name": "x-a", "string_match": {"prefix": "abc"}}}}, True),
        ({"header_filter": {"header": {"name": "x-b", "present_match": True}}}, False),
        ({"response_flag_filter": {"flags": ["UF", "UH"]}}, False),
        ({"response_flag_filter": {"flags": ["UH", "NR"]}}, True),
        ({"response_flag_filter": {}}, True),
        ({"grpc_status_filter": {"statuses": ["OK"]}}, False),
        ({"grpc_status_filter": {"statuses": ["OK"], "exclude": True}}, True),
        ({"grpc_status_filter": {"statuses": ["UNKNOWN"]}}, True),  # as Envoy: no gRPC, and a 200
        ({"log_type_filter": {"types": ["DownstreamEnd"]}}, True),
        ({"log_type_filter": {"types": ["DownstreamEnd"], "exclude": True}}, False),
        # 0xb9159d70 % 100 is 20
        ({"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": 21}}}, True),
        ({"runtime_filter": {"runtime_key": "none", "percent_sampled": {"numerator": 20}}}, False),
        ({"runtime_filter": {"runtime_key": "log.share", "percent_sampled": {"numerator": 0}}}, True),
        ({"runtime_filter": {"runtime_key": "none", "use_independent_randomness": True}}, False),
        ({"and_filter": {"filters": [{"status_code_filter": _number(200)}, {"duration_filter": _number(501)}]}}, False),
        ({"or_filter": {"filters": [{"status_code_filter": _number(200)}, {"duration_filter": _number(501)}]}}, True),
    ],
)
def test_filters(log_path: Path, log_filter: dict[str, Any], logged: bool) -> None:
    context = _context({"log.from": 100, "log.share": 100})
    log = _build({**_config(log_path, format="x"), "filter": log_filter}, context)
    assert log is not None, str(context.errors)
    info: StreamInfo = make_stream()
    info.response_flags = response_flags.NO_ROUTE_FOUND
    log.log(info)
    LOG_FILES.close()
    assert (log_path.read_text() == "x") is logged


@pytest.mark.parametrize(
    ("path", "value", "more", "logged"),
    [
        (["key"], {"string_match": {"exact": "value"}}, {}, True),
        (["key"], {"string_match": {"exact": "other"}}, {}, False),
        (["deep", "er"], {"double_match": {"exact": 5}}, {}, True),
        (["none"], {"string_match": {"exact": "value"}}, {}, True),
        (["none"], {"present_match": True}, {"match_if_key_not_found": False}, False),
        (["key", "none"], {"present_match": True}, {"match_if_key_not_found": False}, False),
    ],
)
def test_dynamic_metadata_decides(
    log_path: Path, path: list[str], value: dict[str, Any], more: dict[str, Any], logged: bool
) -> None:
    matcher = {"filter": "ns", "path": [{"key": key} for key in path], "value": value}
    context = _context()
    config = {**_config(log_path, format="x"), "filter": {"metadata_filter": {"matcher": matcher, **more}}}
    log = _build(config, context)
    assert log is not None, str(context.errors)
    info = make_stream()
    info.dynamic_metadata = {"ns": {"key": "value", "deep": {"er": 5.0}}}
    log.log(info)
    LOG_FILES.close()
    assert (log_path.read_text() == "x") is logged


def test_traceable_means_forced(log_path: Path) -> None:
    log = _build({**_config(log_path, format="%TRACE_ID% %SPAN_ID%\n"), "filter": {"traceable_filter": {}}}, _context())
    assert log is not None
    info = make_stream()
    info.traceparent = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for reason in (TRACE_NONE, TRACE_SAMPLED, TRACE_CLIENT, TRACE_FORCED):
        info.trace_reason = reason
        log.log(info)
    info.health_check = True
    log.log(info)
    LOG_FILES.close()
    assert log_path.read_text() == "0af7651916cd43dd8448eb211c80319c b7ad6b7169203331\n"


def test_health_checks_are_left_out(log_path: Path) -> None:
    log = _build({**_config(log_path, format="x"), "filter": {"not_health_check_filter": {}}}, _context())
    assert log is not None
    info = make_stream()
    info.health_check = True
    log.log(info)
    LOG_FILES.close()
    assert log_path.read_text() == ""


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"typed_config": {"@type": FILE, "path": "/no/such/place"}},
         "typed_config.path: unable to open file '/no/such/place': No such file or directory"),
        ({"typed_config": {"@type": FILE, "path": "/dev/null", "format": "%NO%"}},
         "typed_config.format: Not supported field in StreamInfo: NO"),
        ({"typed_config": {"@type": FILE, "path": "/dev/null", "log_format": {"json_format": {"a": "%NO%"}}}},
         "typed_config.log_format.json_format: Not supported field in StreamInfo: NO"),
        ({"typed_config": {"@type": FILE, "path": "/dev/null",
                           "log_format": {"text_format_source": {"environment_variable": "NO_SUCH_VARIABLE"}}}},
         ("typed_config.log_format.text_format_source.environment_variable: the environment variable "
          "'NO_SUCH_VARIABLE' is not set")),
        ({"typed_config": {"@type": FILE, "path": "/dev/null"}, "filter": {"extension_filter": {"name": "cel"}}},
         "filter.extension_filter: is not supported"),
        ({"typed_config": {"@type": FILE, "path": "/dev/null",
                           "log_format": {"text_format": "%CEL(request.path)%"}}},
         "typed_config.log_format.text_format: CEL is not supported: there is no CEL"),
        ({"typed_config": {"@type": FILE, "path": "/dev/null"},
          "filter": {"or_filter": {"filters": [{"not_health_check_filter": {}},
                                               {"response_flag_filter": {"flags": ["UH", "XX"]}}]}}},
         "filter.or_filter.filters[1].response_flag_filter.flags[1]: XX is not a response flag"),
    ],
)  # fmt: skip
def test_refusals_name_their_place(config: dict[str, Any], error: str) -> None:
    context = _context()
    assert _build(config, context) is None
    assert [str(item) for item in context.errors.items] == [f"access_log[0].{error}"]


def test_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    typed = {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        "log_format": {"json_format": {"code": "%RESPONSE_CODE%"}},
    }
    log = _build({"name": "stdout", "typed_config": typed}, _context())
    assert log is not None
    log.log(make_stream())
    LOG_FILES.close()
    assert json.loads(capfd.readouterr().out) == {"code": 200}


def test_a_log_that_nobody_holds_gives_its_file_back(log_path: Path) -> None:
    log = _build(_config(log_path, format="x"), _context())
    assert log is not None
    log.log(make_stream())
    assert str(log_path) in LOG_FILES.paths()
    del log
    assert str(log_path) not in LOG_FILES.paths()
