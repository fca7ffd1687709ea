"""Formats: what each operator says, as Envoy 1.40 said it of the same request, and what is refused."""

from __future__ import annotations

import json
import math
import os
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.clock import monotonic
from meshproxy.codec.headers import HeaderMap
from meshproxy.net.address import Address
from meshproxy.observe import response_flags
from meshproxy.observe.formatter import DEFAULT_FORMAT, FormatError, JsonFormatter, parse_format
from meshproxy.observe.start_time import TimeFormat
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.observe.value_text import number_text
from tests.observe.streams import make_bare_stream, make_stream

# operator -> (of the whole stream, of a bare one); None is "no value": `-` in text, null in JSON
EXPECTED: dict[str, tuple[object, object]] = {
    "REQ(:METHOD)": ("POST", None),
    "REQ(x-nope?:PATH):3": ("/p/", None),
    "REQ(X-A)": ("abcdef", None),
    "REQ(:path):0": ("", None),
    "RESP(CONTENT-TYPE)": ("text/plain", None),
    "TRAILER(x-t)": (None, None),
    "PROTOCOL": ("HTTP/1.1", "HTTP/1.1"),
    "RESPONSE_CODE": (200, 0),
    "RESPONSE_CODE_DETAILS": ("via_upstream", None),
    "RESPONSE_FLAGS": ("-", "-"),
    "RESPONSE_FLAGS_LONG": ("-", "-"),
    "CONNECTION_TERMINATION_DETAILS": (None, None),
    "BYTES_RECEIVED": (4, 0),
    "BYTES_SENT": (5, 0),
    "RESPONSE_HEADERS_BYTES": (32, 0),
    "RESPONSE_TRAILERS_BYTES": (0, 0),
    "REQUEST_DURATION": (62, None),
    "RESPONSE_DURATION": (250, None),
    "RESPONSE_TX_DURATION": (250, None),
    "REQUEST_TX_DURATION": (187, None),
    "ROUNDTRIP_DURATION": (None, None),
    "COMMON_DURATION(DS_RX_BEG:DS_RX_END)": (62, None),
    "COMMON_DURATION(US_TX_BEG:US_RX_END:us)": (250000, None),
    "COMMON_DURATION(US_CX_BEG:US_CX_END)": (None, None),
    "UPSTREAM_HOST": ("127.0.0.1:18999", None),
    "UPSTREAM_HOST_NAME": ("hn", None),
    "UPSTREAM_REMOTE_ADDRESS": ("127.0.0.1:18999", None),
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": ("127.0.0.1", None),
    "UPSTREAM_REMOTE_PORT": (18999, None),
    "UPSTREAM_LOCAL_ADDRESS": ("127.0.0.1:59714", None),
    "UPSTREAM_CLUSTER": ("calt", None),
    "UPSTREAM_CLUSTER_RAW": ("c", None),
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": (1, 0),
    "UPSTREAM_TRANSPORT_FAILURE_REASON": (None, None),
    "UPSTREAM_PROTOCOL": ("HTTP/1.1", None),
    "UPSTREAM_CONNECTION_ID": (1, 0),
    "UPSTREAM_WIRE_BYTES_SENT": (9, 0),
    "UPSTREAM_WIRE_BYTES_RECEIVED": (7, 0),
    "UPSTREAM_HEADER_BYTES_SENT": (8, 0),
    "UPSTREAM_HEADER_BYTES_RECEIVED": (6, 0),
    "DOWNSTREAM_WIRE_BYTES_RECEIVED": (104, 0),
    "DOWNSTREAM_WIRE_BYTES_SENT": (205, 0),
    "DOWNSTREAM_HEADER_BYTES_RECEIVED": (90, 0),
    "DOWNSTREAM_HEADER_BYTES_SENT": (180, 0),
    "DOWNSTREAM_REMOTE_ADDRESS": ("10.0.0.9:4242", "10.0.0.9:4242"),
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": ("10.0.0.9", "10.0.0.9"),
    "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT(8)": ("10.0.0.0/8", "10.0.0.0/8"),
    "DOWNSTREAM_REMOTE_PORT": (4242, 4242),
    "DOWNSTREAM_DIRECT_REMOTE_ADDRESS": ("10.0.0.9:4242", "10.0.0.9:4242"),
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS": ("127.0.0.1:8081", "127.0.0.1:8080"),
    "DOWNSTREAM_LOCAL_ADDRESS": ("127.0.0.1:8080", "127.0.0.1:8080"),
    "DOWNSTREAM_LOCAL_PORT": (8080, 8080),
    "DOWNSTREAM_TLS_VERSION": (None, None),
    "DOWNSTREAM_PEER_URI_SAN": (None, None),
    "UPSTREAM_TLS_CIPHER": (None, None),
    "CONNECTION_ID": (7, 0),
    "REQUESTED_SERVER_NAME": (None, None),
    "ROUTE_NAME": ("rt", None),
    "VIRTUAL_CLUSTER_NAME": (None, None),
    "FILTER_CHAIN_NAME": ("chain", None),
    "LISTENER_NAME": ("listener", None),
    "ENVIRONMENT(NO_SUCH_VARIABLE)": ("-", "-"),
    "DYNAMIC_METADATA(ns:key)": (None, None),
    "CLUSTER_METADATA(cm:k)": ("v", None),
    "CLUSTER_METADATA(cm)": ({"k": "v", "n": 3}, None),
    'CLUSTER_METADATA(["cm", "k"])': ("v", None),
    "UPSTREAM_METADATA(um:k)": (7, None),
    "METADATA(ROUTE:rm:k)": ({"a": [1, 2.5, True, None, "x"]}, None),
    "METADATA(VIRTUAL_HOST:vm:k)": ("w", None),
    "METADATA(VIRTUAL_HOST:cm:k)": (None, None),
    "FILTER_STATE(k:PLAIN)": (None, None),
    "STREAM_ID": ("b9159d70-1145-4340-bcc7-ba12364292e9", None),
    "PATH": ("/p/q?a=1&b=xyz%20q&a=2", None),
    "PATH(NQ)": ("/p/q", None),
    "PATH(NQ:ORIG)": (None, None),
    "PATH(WQ:ORIG_OR_PATH):5": ("/p/q?", None),
    "QUERY_PARAM(a)": ("1", None),
    "QUERY_PARAM(b):2": ("xy", None),
    "QUERY_PARAM(zz)": (None, None),
    "QUERY_PARAMS": ("a=1&b=xyz%20q&a=2", None),
    "REQ_WITHOUT_QUERY(x-envoy-original-path?:PATH):3": ("/p/", None),
    "GRPC_STATUS": (None, None),
    "REQUEST_HEADER(x-none?X-A):3": ("abc", None),
    "RESPONSE_HEADER(content-type)": ("text/plain", None),
    "RESPONSE_TRAILER(x-t)": (None, None),
    "BYTES_RETRANSMITTED": (0, 0),
    "PACKETS_RETRANSMITTED": (0, 0),
    "CUSTOM_FLAGS": ("", ""),
    "LOCAL_REPLY_BODY": ("", ""),
    "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID": ("", ""),
    "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID": ("", None),
    "ACCESS_LOG_TYPE": ("DownstreamEnd", "NotSet"),
    "STREAM_INFO_REQ(:path)": ("/p/q?a=1&b=xyz%20q&a=2", None),
}


@pytest.mark.parametrize("operator", EXPECTED)
def test_operator(operator: str) -> None:
    whole, bare = EXPECTED[operator]
    formatter = JsonFormatter({"value": f"%{operator}%"}, for_log=True)
    assert json.loads(formatter.format(make_stream())) == {"value": whole}
    assert json.loads(formatter.format(make_bare_stream())) == {"value": bare}


@pytest.mark.parametrize("operator", EXPECTED)
def test_operator_in_text_is_a_dash_without_a_value(operator: str) -> None:
    whole, bare = EXPECTED[operator]
    formatter = parse_format(f"<%{operator}%>", b"-", for_log=True)
    for value, info in ((whole, make_stream()), (bare, make_bare_stream())):
        text = json.dumps(value, separators=(",", ":")) if isinstance(value, dict) else value
        assert formatter.format(info) == b"<%s>" % ("-" if value is None else str(text)).encode()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("%FOO(x)%", "Not supported field in StreamInfo: FOO"),
        ("%LISTENER_METADATA(a)%", "Not supported field in StreamInfo: LISTENER_METADATA"),
        ("%REQ%", "REQ requires parameters"),
        ("%REQ()%", "REQ requires parameters"),
        ("%REQ(a?b?c)%", "More than 1 alternative header specified in token: a?b?c"),
        ("%REQ(a%", "Incorrect configuration: %REQ(a%. Couldn't find valid command at position 0"),
        ("%REQ(a):x%", "Incorrect configuration: %REQ(a):x%. Couldn't find valid command at position 0"),
        ("%%PROTOCOL%", "Incorrect configuration: %%PROTOCOL%. Couldn't find valid command at position 10"),
        ("%RESP(é)%", "Invalid header configuration. Format string contains invalid characters."),
        ("%DURATION:3%", "DURATION does not take any parameters or length"),
        ("%UPSTREAM_CLUSTER(x)%", "UPSTREAM_CLUSTER does not take any parameters or length"),
        ("%PATH(XX)%", "Invalid PATH option: 'XX', only 'WQ'/'NQ' are allowed"),
        ("%PATH(WQ:XX)%", "Invalid PATH option: 'XX', only 'ORIG'/'PATH'/'ORIG_OR_PATH' are allowed"),
        ("%METADATA(FOO:a)%", "FOO is not supported type of metadata"),
        ("%COMMON_DURATION(DS_RX_BEG)%", "Invalid common duration configuration: DS_RX_BEG."),
        ("%COMMON_DURATION(DS_RX_BEG:DS_TX_BEG:fs)%", "Invalid common duration precision: fs."),
        ("%START_TIME(%s%n)%", "Invalid header configuration. Format string contains newline."),
        ("%ENVIRONMENT%", "ENVIRONMENT requires parameters"),
        ("%HOSTNAME(x)%", "HOSTNAME does not take any parameters or length"),
        ("%UPSTREAM_PEER_SUBJECT(x)%", "UPSTREAM_PEER_SUBJECT does not take any parameters or length"),
        ("%UPSTREAM_PEER_SERIAL%", "Not supported field in StreamInfo: UPSTREAM_PEER_SERIAL"),
        (
            "%UPSTREAM_LOCAL_ADDRESS_ENDPOINT_ID%",
            "Not supported field in StreamInfo: UPSTREAM_LOCAL_ADDRESS_ENDPOINT_ID",
        ),
        ("%CLUSTER_METADATA(a):3%", "CLUSTER_METADATA does not allow length to be specified."),
    ],
)
def test_refused_as_by_envoy(text: str, reason: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_format(text)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("operator", "named"),
    [
        ("CEL(request.path)", "CEL"),
        ("DOWNSTREAM_HANDSHAKE_DURATION", "DOWNSTREAM_HANDSHAKE_DURATION"),
        ("DOWNSTREAM_DETECTED_CLOSE_TYPE", "DOWNSTREAM_DETECTED_CLOSE_TYPE"),
        ("UPSTREAM_HOSTS_ATTEMPTED", "UPSTREAM_HOSTS_ATTEMPTED"),
        ("UPSTREAM_FILTER_STATE(a)", "UPSTREAM_FILTER_STATE"),
        ("QUERY_PARAMS(DECODED)", "DECODED"),
        ("FILTER_STATE(a:FIELD:b)", "FIELD"),
    ],
)
def test_what_only_envoy_knows_is_refused_by_name(operator: str, named: str) -> None:
    with pytest.raises(FormatError, match=f"^{named} .*is not supported"):
        parse_format(f"%{operator}%")


def test_constant_formats_need_no_stream() -> None:
    assert parse_format("50%% of \\n").constant == b"50% of \\n"
    assert parse_format("").constant == b""
    assert parse_format("on %HOSTNAME%").constant == f"on {socket.gethostname()}".encode()
    assert parse_format("%PROTOCOL%").constant is None


def test_literal_percents_stand_beside_operators() -> None:
    assert parse_format("%%%PROTOCOL%%%b%%").format(make_stream()) == b"%HTTP/1.1%b%"


def test_environment_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MESH_TEST", "a%b")
    assert parse_format("%ENVIRONMENT(MESH_TEST)%|%ENVIRONMENT(MESH_TEST):1%").constant == b"a%b|a"


def test_default_format() -> None:
    info = make_stream()
    line = parse_format(DEFAULT_FORMAT, b"-").format(info).decode()
    time, rest = line.split("] ", 1)
    assert re.fullmatch(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == (
        '"POST /p/q?a=1&b=xyz%20q&a=2 HTTP/1.1" 200 - 4 5 500 - "-" "ua" '
        '"b9159d70-1145-4340-bcc7-ba12364292e9" "h.example" "127.0.0.1:18999"\n'
    )


def test_duration_runs_until_the_stream_ends() -> None:
    info = StreamInfo(make_bare_stream().connection, monotonic() - 5)
    assert int(parse_format("%DURATION%").format(info)) >= 5000


def test_details_lose_their_blanks_unless_asked() -> None:
    info = make_bare_stream()
    info.response_code_details = "filter said no"
    assert parse_format("%RESPONSE_CODE_DETAILS%").format(info) == b"filter_said_no"
    assert parse_format("%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%").format(info) == b"filter said no"


def test_flags_in_words() -> None:
    info = make_bare_stream()
    info.response_flags = response_flags.UPSTREAM_CONNECTION_FAILURE | response_flags.UPSTREAM_RETRY_LIMIT_EXCEEDED
    expected = b"URX,UF UpstreamRetryLimitExceeded,UpstreamConnectionFailure"
    assert parse_format("%RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG%").format(info) == expected


@pytest.mark.parametrize(
    ("trailer", "header", "code", "expected"),
    [
        (b"5", None, 200, b"NotFound NOT_FOUND 5"),
        (None, b"14", 200, b"Unavailable UNAVAILABLE 14"),
        (None, None, 503, b"Unavailable UNAVAILABLE 14"),
        (None, None, 404, b"Unimplemented UNIMPLEMENTED 12"),
        (b"77", None, 200, b"77 77 77"),
        (b"x", None, 200, b"-1 -1 -1"),
    ],
)
def test_grpc_status(trailer: bytes | None, header: bytes | None, code: int, expected: bytes) -> None:
    info = make_bare_stream()
    info.request_headers = HeaderMap([(b"content-type", b"application/grpc+proto")])
    info.response_code = code
    info.response_headers = HeaderMap([] if header is None else [(b"grpc-status", header)])
    info.response_trailers = HeaderMap([] if trailer is None else [(b"grpc-status", trailer)])
    formatter = parse_format("%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS_NUMBER%")
    assert formatter.format(info) == expected


def test_unique_id_stays_with_its_stream() -> None:
    formatter = parse_format("%UNIQUE_ID%")
    first, second = make_bare_stream(), make_bare_stream()
    assert formatter.format(first) == formatter.format(first)
    assert formatter.format(first) != formatter.format(second)


def test_unix_sockets_have_no_port() -> None:
    info = make_bare_stream()
    info.remote = Address("", 0, "/run/app.sock")
    formatter = parse_format(
        "%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT%", b"-"
    )
    assert formatter.format(info) == b"/run/app.sock /run/app.sock -"


def test_json_keeps_types_and_sorts_keys() -> None:
    formatter = JsonFormatter({"z": "%BYTES_SENT%", "a": {"x": ["%REQ(no)%", "b-%REQ(no)%", 3.0, True]}, "m": "50%%"})
    assert formatter.format(make_stream()) == b'{"a":{"x":[null,"b--",3,true]},"m":"50%","z":5}\n'


def test_json_escapes_bytes_that_are_no_utf8_as_envoy_does() -> None:
    info = make_bare_stream()
    formatter = JsonFormatter({"ua": "%REQ(user-agent)%"})
    info.request_headers = HeaderMap([(b"user-agent", b'a "q" \\ \xe4 \xc3\xa4\tz')])
    assert formatter.format(info) == rb'{"ua":"a \u0022q\u0022 \u005c \u00e4 \u00c3\u00a4\u0009z"}' + b"\n"
    info.request_headers = HeaderMap([(b"user-agent", b'a "q" \\ \xc3\xa4\tz')])
    assert formatter.format(info) == rb'{"ua":"a \"q\" \\ ' + b"\xc3\xa4" + rb'\tz"}' + b"\n"


def test_json_leaves_out_what_is_empty() -> None:
    tree = {"a": "%REQ(no)%", "b": "x-%REQ(no)%", "c": {"q": "%REQ(no)%"}, "l": ["%REQ(no)%", "a"]}
    formatter = JsonFormatter(tree, omit_empty=True)
    assert formatter.format(make_stream()) == b'{"b":"x-","l":["a"]}\n'


# 2026-11-21T04:33:38.432335Z; the expected text is what Envoy 1.40 printed for that moment
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%Y/%m/%dT%H:%M:%S%z%%%6f%9f%f%1f", "2026/11/21T04:33:38+0000%4323354323350004323350004"),
        ("%e|%E3S|%E*f|%j", "21|38.432|432335|325"),
        ("%s.%3f", "1795235618.432"),
        ("%s", "1795235618"),
        ("%Y-%m-%dT%H:%M:%E3SZ", "2026-11-21T04:33:38.432Z"),
        ("%3fX", "432X"),
    ],
)
def test_time_format(text: str, expected: str) -> None:
    compiled = TimeFormat(text)
    assert compiled.format(1795235618.4323355) == expected
    compiled.format(1795235700.0)  # another second in between
    assert compiled.format(1795235618.4323355) == expected


@given(st.binary(max_size=40), st.integers(0, 50))
def test_header_values_pass_as_they_are(value: bytes, length: int) -> None:
    info = make_bare_stream()
    info.request_headers = HeaderMap([(b"x", value)])
    assert parse_format("%REQ(x)%").format(info) == value
    assert parse_format(f"[%REQ(x):{length}%]").format(info) == b"[" + value[:length] + b"]"
    json.loads(JsonFormatter({"x": "%REQ(x)%"}).format(info))


@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text: str) -> None:
    try:
        formatter = parse_format(text)
    except FormatError:
        assert "%" in text
        return
    if "%" not in text:
        assert formatter.constant == text.encode()
    assert isinstance(formatter.format(make_stream()), bytes)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (5.0, "5"),
        (-1000.0, "-1000"),
        (10_000.0, "10000"),
        (100_000.0, "1e+05"),
        (1_234_567.0, "1234567"),
        (1e21, "1e+21"),
        (12345678901234567890.0, "12345678901234567168"),
        (0.1, "0.1"),
        (0.0001, "1e-04"),
        (1e-7, "1e-07"),
        (-123456789.125, "-123456789.125"),
        (0.1 + 0.2, "0.30000000000000004"),
        (5e-324, "5e-324"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "null"),
    ],
)
def test_numbers_are_written_as_envoy_writes_them(value: float, text: str) -> None:
    """Those of metadata; recorded from Envoy 1.40."""
    assert number_text(value) == text


def test_structures_are_written_with_sorted_keys() -> None:
    info = make_bare_stream()
    info.dynamic_metadata = {"ns": {"b": 1.0, "a": [{"z": 1.0, "y": b"\xff"}], "B": None}}
    assert parse_format("%DYNAMIC_METADATA(ns)%").format(info) == b'{"B":null,"a":[{"y":"\\u00ff","z":1}],"b":1}'
