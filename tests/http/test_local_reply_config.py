"""`local_reply_config` from its configuration; tests/differential holds what Envoy makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import LocalReplyConfig
from google.protobuf import json_format

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.http.local_reply_config import build_local_reply_config
from meshproxy.observe.stats import StatsRegistry
from tests.http.harness import Harness, ScriptedUpstream, get, head
from tests.observe.streams import make_bare_stream

ANY = {"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 0, "runtime_key": "none"}}}}


def _context() -> BuildContext:
    return BuildContext(ConfigErrors(), Runtime([]), StatsRegistry())


def _rewrite(config: dict[str, Any], body: bytes = b"no", *, grpc: bool = False) -> tuple[HeaderMap, int, bytes, bytes]:
    context = _context()
    built = build_local_reply_config(json_format.ParseDict(config, LocalReplyConfig()), "local_reply_config", context)
    assert built is not None
    assert not context.errors.items, str(context.errors)
    headers, info = HeaderMap([(b":status", b"404")]), make_bare_stream()
    status, body, content_type = built.rewrite(headers, info, 404, body, b"", grpc)
    assert info.response_code == status
    assert info.local_reply_body == b"", "it is known to the reply's own format alone"
    return headers, status, body, content_type


def test_the_first_mapper_that_matches_is_the_only_one() -> None:
    none = {"status_code_filter": {"comparison": {"op": "EQ", "value": {"default_value": 1, "runtime_key": "none"}}}}
    mappers = [
        {"filter": none, "status_code": 500},
        {
            "filter": ANY,
            "status_code": 410,
            "headers_to_add": [{"header": {"key": "x-was", "value": "%RESPONSE_CODE%"}}],
        },
        {"filter": ANY, "body": {"inline_string": "never"}},
    ]
    headers, status, body, content_type = _rewrite({"mappers": mappers})
    assert headers.fields == [(b":status", b"410"), (b"x-was", b"404")]
    assert (status, body, content_type) == (410, b"no", b"text/plain")


def test_a_mappers_format_comes_before_that_of_all() -> None:
    everybody = {"text_format": "all"}
    own = {"text_format": "%LOCAL_REPLY_BODY%!", "content_type": "text/x"}
    assert _rewrite({"body_format": everybody})[2:] == (b"all", b"text/plain")
    mapper = {"filter": ANY, "body": {"inline_string": "own"}, "body_format_override": own}
    assert _rewrite({"body_format": everybody, "mappers": [mapper]})[2:] == (b"own!", b"text/x")


def test_json_ends_with_a_line_break_but_not_in_a_grpc_message() -> None:
    config = {"body_format": {"json_format": {"body": "%LOCAL_REPLY_BODY%"}}}
    assert _rewrite(config)[2:] == (b'{"body":"no"}\n', b"application/json")
    assert _rewrite(config, grpc=True)[2] == b'{"body":"no"}'


def test_a_reply_of_the_proxy_is_mapped_and_logged_as_such() -> None:
    made = Harness(upstream=ScriptedUpstream(None))
    message = json_format.ParseDict(
        {"mappers": [{"filter": ANY, "status_code": 410, "body": {"inline_string": "tea"}}]}, LocalReplyConfig()
    )
    config = made.config()
    config.local_replies = build_local_reply_config(message, "local_reply_config", _context())
    connection = made.connect(config)
    connection.send(get("/"))
    stream = made.upstream.streams[0]
    stream.send_local_reply(404, b"no", "why")
    text = [("content-length", "3"), ("content-type", "text/plain")]
    assert connection.received() == head("410 Gone", *text) + b"tea"
    assert (stream.info.response_code, stream.info.response_code_details) == (410, "why")


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"body_format": {"text_format": "%NO%"}}, "body_format.text_format: Not supported field in StreamInfo: NO"),
        (
            {"body_format": {"text_format": "%DOWNSTREAM_WIRE_BYTES_SENT%"}},
            "body_format.text_format: DOWNSTREAM_WIRE_BYTES_SENT is known only in access logs",
        ),
        (
            {"mappers": [{"filter": ANY}, {"filter": {"extension_filter": {"name": "cel"}}}]},
            "mappers[1].filter.extension_filter: is not supported",
        ),
        (
            {"mappers": [{"filter": ANY, "headers_to_add": [{"header": {"key": ":status", "value": "1"}}]}]},
            "mappers[0].headers_to_add[0].header.key: :-prefixed or host headers may not be modified",
        ),
        (
            {"mappers": [{"filter": ANY, "body": {"environment_variable": "NO_SUCH_VARIABLE"}}]},
            "mappers[0].body.environment_variable: the environment variable 'NO_SUCH_VARIABLE' is not set",
        ),
    ],
)
def test_refusals_name_their_place(config: dict[str, Any], error: str) -> None:
    context = _context()
    build_local_reply_config(json_format.ParseDict(config, LocalReplyConfig()), "local_reply_config", context)
    assert [str(item) for item in context.errors.items] == [f"local_reply_config.{error}"]
