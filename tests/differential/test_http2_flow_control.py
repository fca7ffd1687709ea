"""Windows of HTTP/2: how much goes out before the peer allows more, on streams and connections, in both directions."""

from tests.differential.http2 import (
    Bytes,
    Fire,
    Head,
    Held,
    HeldUpstream,
    Http2Pair,
    Http2Topic,
    Over,
    Parts,
    Reached,
    Row,
    Sync,
    http2_cluster,
)
from tests.support.http2_upstream import OK, Http2Answer, answer
from tests.support.http2_wire import PREFACE, data, reset, settings, window_update
from tests.support.upstream import reply

TEXT = b"".join(b"%08d" % number for number in range(12800))  # 100 KiB
DIRECT = "match: { prefix: / }\ndirect_response: { status: 200, body: { inline_string: 0123456789abcdefghij } }"
TO_A = "match: { prefix: / }\nroute: { cluster: a }"
TO_H = "match: { prefix: / }\nroute: { cluster: h }"
TO_NARROW = "match: { prefix: / }\nroute: { cluster: narrow }"
NARROW = PREFACE + settings((4, 10))
CLOSED = PREFACE + settings((4, 0))
ORDINARY = PREFACE + settings()
POST = Head(method="POST", end=False)


def widened(size: int) -> Http2Answer:
    """Gives the stream so much window at the event, and answers the whole request."""
    return Http2Answer(OK.frames, wait_for="go", first=lambda stream: window_update(stream, size))


DOWNSTREAM = [
    Row(
        "stream",
        (Head(), Bytes(10), Held(), window_update(1, 5), Bytes(15), Held(), window_update(1, 5), Over()),
        route=DIRECT,
        opening=NARROW,
    ),
    Row("stream_of_0", (Head(), Parts(), Held(), window_update(1, 100), Over()), route=DIRECT, opening=CLOSED),
    Row(
        "settings_widen",
        (Head(), Bytes(10), Held(), settings((4, 15)), Bytes(15), Held(), settings((4, 100)), Over()),
        route=DIRECT,
        opening=NARROW,
    ),
    Row(
        "settings_narrow",
        (
            Head(),
            Bytes(10),
            settings((4, 4)),
            Held(),
            window_update(1, 8),
            Bytes(12),
            Held(),
            window_update(1, 100),
            Over(),
        ),
        route=DIRECT,
        opening=NARROW,
    ),
    Row(
        "connection",
        (Head(), Bytes(65535), Held(), window_update(0, 1000), Bytes(66535), Held(), window_update(0, 1 << 20), Over()),
        route=TO_A,
        plain=(reply(200, TEXT),),
        opening=PREFACE + settings((4, 1 << 20)),
    ),
    Row(
        "connection_of_two",
        (Head(), Bytes(65535), Head(stream=3), Parts(1, 3), Held(), window_update(0, 1 << 20), Over((1, 3))),
        route=TO_A,
        plain=(reply(200, TEXT),),
        opening=PREFACE + settings((4, 1 << 20)),
    ),
    Row(
        "other_stream_goes_on",
        (
            Head(),
            Bytes(10),
            Head(stream=3),
            Bytes(10, 3),
            window_update(3, 100),
            Over((3,)),
            Held(),
            window_update(1, 100),
            Over(),
        ),
        route=DIRECT,
        opening=NARROW,
    ),
    Row(
        "of_upstream",
        (Head(), Bytes(65535), Held(), window_update(1, 1 << 20), window_update(0, 1 << 20), Over()),
        route=TO_H,
        answers=(answer([], TEXT),),
        opening=ORDINARY,
    ),
    Row(
        "trailers_wait_for_data",
        (Head(), Bytes(10), Held(), window_update(1, 100), Over()),
        route=TO_H,
        opening=NARROW,
        answers=(answer([], b"0123456789abcdefghij"),),
    ),
    Row(
        "reset_while_held",
        (Head(), Bytes(10), reset(1), Sync(), Head(stream=3), Bytes(10, 3), window_update(3, 100), Over((3,))),
        route=DIRECT,
        opening=NARROW,
        differs="reset-while-flushed",
        envoy=("stat http.main.downstream_rq_rx_reset: +1",),
    ),
    Row(
        "empty_needs_no_window",
        (Head(), Over()),
        route="match: { prefix: / }\ndirect_response: { status: 204 }",
        opening=CLOSED,
    ),
]
UPSTREAM = [
    Row(
        "upstream_stream",
        (
            POST,
            Reached(),
            Sync(),
            data(1, b"0123456789abcdefghij", end=True),
            Sync(),
            HeldUpstream(),
            Fire("go"),
            Over(),
        ),
        route=TO_NARROW,
        answers=(widened(100),),
    ),
    Row(
        "upstream_stream_of_one_more",
        (POST, Reached(), Sync(), data(1, b"0123456789a", end=True), Sync(), HeldUpstream(), Fire("go"), Over()),
        route=TO_NARROW,
        answers=(widened(1),),
    ),
    Row("upstream_stream_fits", (POST, Reached(), data(1, b"0123456789", end=True), Over()), route=TO_NARROW),
    Row(
        "upstream_reset_while_held",
        (POST, Reached(), Sync(), data(1, b"0123456789abcdefghij"), Sync(), HeldUpstream(), reset(1), Sync()),
        route=TO_NARROW,
        answers=(widened(100),),
    ),
]
HTTP2 = Http2Topic([*DOWNSTREAM, *UPSTREAM], clusters={"narrow": http2_cluster("h_narrow")})


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
