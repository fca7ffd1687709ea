"""HTTP/2 frames that break RFC 9113 sections 4 to 6, and frames that no longer matter: connection errors and silence."""

import struct
from dataclasses import replace

from tests.differential.http2 import (
    Ended,
    Fire,
    Head,
    Http2Pair,
    Http2Topic,
    Leave,
    Over,
    Reached,
    Row,
    Step,
    Sync,
    one,
)
from tests.support.http2_downstream import OPENING
from tests.support.http2_upstream import OK
from tests.support.http2_upstream import SILENT as SILENT_ANSWER
from tests.support.http2_wire import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PRIORITY_FLAG,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    data,
    field_block,
    frame,
    goaway,
    headers,
    ping,
    priority,
    reset,
    settings,
    window_update,
)

HELD = replace(OK, wait_for="go")
GET = [(":method", "GET"), (":scheme", "http"), (":path", "/direct"), (":authority", "x.test")]
BLOCK = field_block(GET)
DIRECT = headers(1, GET, end=True)
ALL = END_HEADERS | END_STREAM
STALLED = (Head(path="/h", end=False), Reached())

# Both say the same GOAWAY.
LOUD: dict[str, Step | tuple[Step, ...]] = {
    "data_on_idle": data(1, b"x"),
    "data_on_0": data(0, b"x"),
    "settings_size": frame(SETTINGS, 0, 0, b"abc"),
    "settings_ack_size": frame(SETTINGS, ACK, 0, b"abcdef"),
    "ping_size": frame(PING, 0, 0, b"abc"),
    "reset_size": (*STALLED, frame(RST_STREAM, 0, 1, b"abc")),
    "window_update_size": frame(WINDOW_UPDATE, 0, 0, b"abc"),
    "goaway_size": frame(GOAWAY, 0, 0, b"\0" * 4),
    "data_too_large": (*STALLED, frame(DATA, 0, 1, b"x" * 16385)),
    "headers_too_large": frame(HEADERS, 0, 1, b"x" * 16385),
    "unknown_too_large": frame(99, 0, 0, b"x" * 16385),
    "headers_padding": frame(HEADERS, ALL | PADDED, 1, b"\xff" + BLOCK),
    "data_padding": (*STALLED, frame(DATA, PADDED, 1, b"\x09abc")),
    "continuation_alone": frame(CONTINUATION, END_HEADERS, 1, BLOCK),
}
# The same, but that Envoy logs a request whose head it has not got.
HEADLESS: dict[str, tuple[str, bytes]] = {
    "ping_within_block": ("PROTOCOL_ERROR", headers(1, GET, end_headers=False) + ping()),
    "other_stream_within_block": (
        "PROTOCOL_ERROR",
        headers(1, GET, end_headers=False) + frame(CONTINUATION, END_HEADERS, 3),
    ),
    "unknown_within_block": ("PROTOCOL_ERROR", headers(1, GET, end_headers=False) + frame(99, 0, 0, b"x")),
    "hpack_index": ("COMPRESSION_ERROR", frame(HEADERS, ALL, 1, b"\xff\xff\x03")),
    "hpack_index_0": ("COMPRESSION_ERROR", frame(HEADERS, ALL, 1, b"\x80")),
    "hpack_size_update": ("COMPRESSION_ERROR", frame(HEADERS, ALL, 1, b"\x3f\xff\xff\x03" + BLOCK)),
    "hpack_size_update_behind": ("COMPRESSION_ERROR", frame(HEADERS, ALL, 1, BLOCK + b"\x20")),
    "hpack_huffman": ("COMPRESSION_ERROR", frame(HEADERS, ALL, 1, b"\0\x81\xff\x00")),
    "hpack_cut": ("COMPRESSION_ERROR", frame(HEADERS, ALL, 1, b"\0\x05a")),
}
# Envoy closes without GOAWAY, which RFC 9113 section 5.4.1 says should be sent.
SILENT: dict[str, tuple[str, Step | tuple[Step, ...]]] = {
    "even_stream": ("PROTOCOL_ERROR", headers(2, GET, end=True)),
    "headers_on_0": ("PROTOCOL_ERROR", headers(0, GET, end=True)),
    "reset_on_idle": ("PROTOCOL_ERROR", reset(1)),
    "window_update_on_idle": ("PROTOCOL_ERROR", window_update(1, 5)),
    "window_update_of_0": ("PROTOCOL_ERROR", window_update(0, 0)),
    "window_overflow": ("FLOW_CONTROL_ERROR", window_update(0, MAX_WINDOW)),
    "settings_on_stream": ("PROTOCOL_ERROR", frame(SETTINGS, 0, 1)),
    "settings_push": ("PROTOCOL_ERROR", settings((2, 2))),
    "settings_window": ("FLOW_CONTROL_ERROR", settings((4, 1 << 31))),
    "settings_frame_size": ("PROTOCOL_ERROR", settings((5, 1))),
    "settings_frame_size_large": ("PROTOCOL_ERROR", settings((5, 1 << 24))),
    "settings_connect": ("PROTOCOL_ERROR", settings((8, 2))),
    "ping_on_stream": ("PROTOCOL_ERROR", frame(PING, 0, 1, b"12345678")),
    "reset_on_0": ("PROTOCOL_ERROR", frame(RST_STREAM, 0, 0, b"\0\0\0\x08")),
    "goaway_on_stream": ("PROTOCOL_ERROR", frame(GOAWAY, 0, 1, b"\0" * 8)),
    "push_promise": ("PROTOCOL_ERROR", frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + BLOCK)),
}
# Nothing but the answer to the request that follows.
QUIET: dict[str, bytes] = {
    "settings_push_1": settings((2, 1)),
    "settings_unknown": settings((77, 1)),
    "settings_empty": settings(),
    "unknown_frame": frame(99, 0xFF, 0, b"x"),
    "unknown_frame_on_stream": frame(99, 0, 7, b"x"),
    "ping_ack": frame(PING, ACK, 0, b"12345678"),
    "priority_idle": priority(5),
}
# After the answer to stream 1, which is closed then.
LATE: dict[str, bytes] = {
    "reset_on_closed": reset(1),
    "window_update_on_closed": window_update(1, 5),
    "priority_on_closed": priority(1),
}


def steps(given: Step | tuple[Step, ...]) -> tuple[Step, ...]:
    return given if isinstance(given, tuple) else (given,)


ROWS = [
    *(Row(name, (Sync(), *steps(given), Ended()), answers=(SILENT_ANSWER,)) for name, given in LOUD.items()),
    *(
        Row(
            f"goaway_{code}",
            (Head(path="/h"), Reached(), goaway(0, code, b"why"), Fire("go"), Over(), Leave()),
            answers=(HELD,),
        )
        for code in (0, 2)
    ),
    *(Row(name, (Sync(), *steps(given), Ended()), silent=code) for name, (code, given) in SILENT.items()),
    *(one(f"quiet_{name}", Sync(), given, DIRECT) for name, given in QUIET.items()),
    *(
        Row(f"late_{name}", (DIRECT, Over(), given, headers(3, GET, end=True), Over((3,))))
        for name, given in LATE.items()
    ),
    *(
        Row(
            name,
            (Sync(), given, Ended()),
            differs="head-cut-short",
            envoy=(
                f"goaway: {code} last=1",
                "stat http.main.downstream_rq_rx_reset: +1",
            ),
            ours=(f"goaway: {code} last=0",),
        )
        for name, (code, given) in HEADLESS.items()
    ),
    Row(
        "lower_stream",
        (headers(5, GET, end=True), Over((5,)), headers(3, GET, end=True)),
        differs="closed-stream",
        envoy=("connection: kept",),
        ours=("connection: closed", "goaway: STREAM_CLOSED last=5"),
    ),
    Row(
        "data_on_closed",
        (DIRECT, Over(), data(1, b"x")),
        differs="closed-stream",
        envoy=("connection: kept",),
        ours=("connection: closed", "goaway: STREAM_CLOSED last=1"),
    ),
    Row(
        "data_after_end",
        (Head(path="/h"), Reached(), data(1, b"x")),
        answers=(SILENT_ANSWER,),
        differs="closed-stream",
        envoy=("connection: closed", "goaway: STREAM_CLOSED last=1"),
        ours=("connection: kept", "RST_STREAM STREAM_CLOSED"),
    ),
    Row(
        "priority_size",
        (Sync(), frame(PRIORITY, 0, 1, b"abc")),
        differs="priority-frames",
        envoy=("connection: closed", "goaway: FRAME_SIZE_ERROR last=0"),
        ours=("connection: kept", "RST_STREAM FRAME_SIZE_ERROR"),
    ),
    Row(
        "priority_of_itself",
        (*STALLED, priority(1, 1)),
        answers=(SILENT_ANSWER,),
        differs="priority-frames",
        ours=("RST_STREAM PROTOCOL_ERROR",),
    ),
    Row(
        "priority_on_0",
        (Sync(), priority(0)),
        differs="priority-frames",
        envoy=("connection: kept",),
        ours=("connection: closed", "goaway: PROTOCOL_ERROR last=0"),
    ),
    Row(
        "stream_window_update_of_0",
        (*STALLED, window_update(1, 0)),
        answers=(SILENT_ANSWER,),
        differs="stream-window",
        envoy=("connection: closed",),
        ours=("connection: kept", "RST_STREAM PROTOCOL_ERROR"),
    ),
    Row(
        "stream_window_overflow",
        (*STALLED, window_update(1, MAX_WINDOW)),
        answers=(SILENT_ANSWER,),
        differs="stream-window",
        envoy=("connection: closed",),
        ours=("connection: kept", "RST_STREAM FLOW_CONTROL_ERROR"),
    ),
    Row(
        "headers_prioritised_by_itself",
        (Sync(), frame(HEADERS, ALL | PRIORITY_FLAG, 1, struct.pack("!LB", 1, 15) + BLOCK)),
        differs="priority-frames",
        envoy=("connection: closed",),
        ours=("connection: kept", "RST_STREAM PROTOCOL_ERROR"),
    ),
    one("headers_prioritised", frame(HEADERS, ALL | PRIORITY_FLAG, 1, struct.pack("!LB", 0, 15) + BLOCK)),
    one("headers_padded", frame(HEADERS, ALL | PADDED, 1, b"\x03" + BLOCK + b"\0\0\0")),
    one("continued", headers(1, GET, end=True, split_at=7)),
    Row("no_settings", (PREFACE + ping(), Ended()), opening=b""),
    Row("headers_before_settings", (PREFACE + DIRECT, Ended()), opening=b""),
    Row(
        "wrong_preface",
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + settings(), Ended()),
        opening=b"",
        silent="PROTOCOL_ERROR",
    ),
    Row(
        "http1_bytes",
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", Ended()),
        opening=b"",
        listener="two",
        silent="PROTOCOL_ERROR",
    ),
    one("two_with_prior_knowledge", DIRECT, listener="two"),
    one("preface_in_pieces", OPENING[:10], OPENING[10:20], OPENING[20:], DIRECT, opening=b"", listener="two"),
    one("byte_by_byte", *(bytes([byte]) for byte in DIRECT)),
]
ROUTES = """
route_config:
  virtual_hosts:
  - name: any
    domains: ['*']
    routes:
    - { match: { prefix: /direct }, direct_response: { status: 200, body: { inline_string: hi } } }
    - { match: { prefix: /h }, route: { cluster: h } }
"""
HTTP2 = Http2Topic(ROWS, listeners={"main": ROUTES, "two": "codec_type: HTTP2" + ROUTES})


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
