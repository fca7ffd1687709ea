"""Floods of HTTP/2 frames, and the limits that end them: each one's threshold, its counter and what is logged."""

from tests.differential.http2 import (
    Ended,
    Head,
    Http2Pair,
    Http2Topic,
    Over,
    Reached,
    Row,
    Step,
    Sync,
)
from tests.support.http2_downstream import OPENING
from tests.support.http2_upstream import SILENT
from tests.support.http2_wire import (
    DATA,
    PADDED,
    PREFACE,
    data,
    frame,
    headers,
    ping,
    priority,
    reset,
    settings,
    window_update,
)

NARROW = PREFACE + settings()
GET = [(":method", "GET"), (":scheme", "http"), (":path", "/direct"), (":authority", "x.test")]
STALLING = [*GET[:2], (":path", "/h"), GET[3]]
STALLED = (Head(path="/h", method="POST", end=False), Reached())


SHOWN = (
    ":",
    "x-",
    "--",
    "END_STREAM",
    "RST_STREAM",
)  # of requests upstream: how many came so far is a matter of timing


RESPONSE = (":", "content-", "date", "server", "body", "--", "END_STREAM", "RST_STREAM")  # how much is answered is, too


def ends(name: str, *steps: Step, **more: object) -> Row:
    """The proxy closes; Envoy without GOAWAY."""
    return Row(name, (Sync(), *steps, Ended()), answers=(SILENT,), silent="ENHANCE_YOUR_CALM", **more)  # type: ignore[arg-type]


def lives(name: str, *steps: Step, **more: object) -> Row:
    """The proxy does not mind."""
    return Row(name, (Sync(), *steps), answers=(SILENT,), **more)  # type: ignore[arg-type]


def begun(count: int) -> bytes:
    """So many requests that wait for their ends."""
    return b"".join(headers(2 * number + 1, GET) for number in range(count))


RESETS = b"".join(headers(2 * number + 1, STALLING, end=True) + reset(2 * number + 1) for number in range(300))
RESETS_BESIDE = b"".join(headers(2 * number + 3, STALLING, end=True) + reset(2 * number + 3) for number in range(300))
ROWS = [
    lives("empty_data_1", *STALLED, data(1)),
    lives("empty_data_between", *STALLED, (data(1) + data(1, b"x")) * 5),
    lives("empty_data_that_ends", *STALLED, data(1) + data(1, end=True)),
    ends("empty_data_2", *STALLED, data(1) * 2),
    ends("empty_data_padded", *STALLED, frame(DATA, PADDED, 1, b"\x01x") * 2),
    lives("empty_data_5_of_5", *STALLED, data(1) * 5, listener="wider"),
    ends("empty_data_6_of_5", *STALLED, data(1) * 6, listener="wider"),
    lives("priority_100", priority(1) * 100),
    ends("priority_101", priority(1) * 101),
    lives("priority_200_with_stream", *STALLED, priority(3) * 200),
    ends("priority_201_with_stream", *STALLED, priority(3) * 201),
    lives("window_update_5", window_update(0, 1) * 5, opening=NARROW),
    ends("window_update_6", window_update(0, 1) * 6, opening=NARROW),
    lives("window_update_7_with_stream", *STALLED, window_update(1, 1) * 7, opening=NARROW),
    ends("window_update_8_with_stream", *STALLED, window_update(1, 1) * 8, opening=NARROW),
    lives("ping_900", ping() * 900),
    lives("settings_900", settings((4, 70000)) * 900),
    ends(
        "continuation_600",
        headers(1, [*GET, ("a", "b" * 6000)], end=True, split_at=10),
        differs="head-cut-short",
        envoy=("stat http.main.downstream_rq_rx_reset: +1",),
        ours=("stat http2.header_overflow: +1",),
    ),
    lives("continuation_100", headers(1, [*GET, ("a", "b" * 940)], end=True, split_at=10), Over()),
    Row(
        "streams_beyond_limit",
        (Head(path="/h"), Head(path="/h", stream=3), Head(path="/direct", stream=5), Over((5,))),
        opening=OPENING[:24] + OPENING[24:],
        listener="two_streams",
        answers=(SILENT,),
    ),
    lives("rapid_resets_100", RESETS[: len(RESETS) // 3], Sync(), ignore=("upstream", *SHOWN)),
    Row(
        "resets_after_answers",
        (b"".join(headers(2 * n + 1, GET, end=True) + reset(2 * n + 1) for n in range(300)), Sync()),
        ignore=("stream", *RESPONSE, "stat http.main.downstream_rq_rx", "stat http2.rx_reset"),
        log=False,
    ),
    Row(
        "rapid_resets_beside_a_stream",
        (Head(path="/h"), Reached(), RESETS_BESIDE, Ended()),
        answers=(SILENT,),
        ignore=("upstream", "stat cluster.h.", *SHOWN),
    ),
    Row("rapid_resets_300", (RESETS, Ended()), answers=(SILENT,), ignore=("upstream", "stat cluster.h.", *SHOWN)),
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
HTTP2 = Http2Topic(
    ROWS,
    listeners={
        "main": ROUTES,
        "wider": "http2_protocol_options: { max_consecutive_inbound_frames_with_empty_payload: 5 }" + ROUTES,
        "two_streams": "http2_protocol_options: { max_concurrent_streams: 2 }" + ROUTES,
    },
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
