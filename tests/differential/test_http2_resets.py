"""What becomes of a stream that one side gives up: reset codes, statuses, flags and details, in both directions."""

from tests.differential.http2 import (
    Bytes,
    Fire,
    Head,
    Http2Pair,
    Http2Topic,
    Leave,
    Over,
    Parts,
    Reached,
    Row,
    Sync,
    WholeUpstream,
    http2_cluster,
    one,
)
from tests.support.http2_upstream import HANG_UP, OK, SILENT, Http2Answer, frames_of
from tests.support.http2_wire import MAX_WINDOW, data, goaway, headers, reset
from tests.support.upstream import RESET, STALL, Answer, reply

TO_H = "match: { prefix: / }\nroute: { cluster: h }"
TO_OWN = "match: { prefix: / }\nroute: { cluster: %s }"
TO_A = "match: { prefix: / }\nroute: { cluster: a }"
FAST = "match: { prefix: / }\nroute: { cluster: h, timeout: 0.1s }"
DIRECT = "match: { prefix: / }\ndirect_response: { status: 200, body: { inline_string: hi } }"
DEAD = "match: { prefix: / }\nroute: { cluster: dead }"
RETRY = (
    "match: { prefix: / }\nroute: { cluster: h, retry_policy: { retry_on: %s, num_retries: 1, "
    "retry_back_off: { base_interval: 0.002s } } }"
)
HEAD = [(":status", "200")]


def started(stream: int) -> bytes:
    return headers(stream, HEAD)


def partly(stream: int) -> bytes:
    return headers(stream, HEAD) + data(stream, b"part")


def reset_by(code: int, *before: object) -> Http2Answer:
    """An answer that ends in RST_STREAM."""
    return frames_of(*before, lambda stream: reset(stream, code))  # type: ignore[arg-type]


UPSTREAM_RESETS = [
    *(
        one(f"upstream_reset_{code}", Head(), route=TO_H, answers=(reset_by(code),))
        for code in (0, 1, 2, 7, 8, 11, 13, 99)
    ),
    *(
        Row(
            f"upstream_reset_{code}_after_headers", (Head(), Parts(), Fire("go"), Over()), route=TO_H, answers=(answer,)
        )
        for code in (0, 1, 2, 7, 8)
        for answer in (reset_by(code, started),)
    ),
    Row("upstream_reset_after_data", (Head(), Over()), route=TO_H, answers=(reset_by(2, partly),)),
    *(
        one(
            f"retried_reset_{code}_on_{policy.replace('-', '_')}",
            Head(),
            route=RETRY % policy,
            answers=(reset_by(code), OK),
        )
        for code in (2, 7)
        for policy in ("reset", "refused-stream", "5xx", "connect-failure", "gateway-error", "reset-before-request")
    ),
    one("retried_without_end", Head(), route=RETRY % "reset", answers=(reset_by(2),)),
    one("upstream_closes", Head(), route=TO_OWN % "alone", answers=(HANG_UP,)),
    one("plain_upstream_resets", Head(), route=TO_A, plain=(RESET,)),
    one("plain_upstream_garbage", Head(), route=TO_A, plain=(Answer((b"GARBAGE\r\n\r\n",)),)),
    one(
        "plain_upstream_cut_short",
        Head(),
        route=TO_A,
        plain=(Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nabc",), then="close"),),
    ),
    one(
        "plain_upstream_cut_chunk",
        Head(),
        route=TO_A,
        plain=(Answer((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",), then="close"),),
    ),
    one("upstream_unreachable", Head(), route=DEAD),
    one("upstream_unreachable_incomplete", Head(method="POST", end=False), route=DEAD),
    one("no_route", Head(path="/"), route="match: { path: /other }\nroute: { cluster: a }"),
    one("no_cluster", Head(path="/"), route="match: { prefix: / }\nroute: { cluster: empty }"),
]
DOWNSTREAM_RESETS = [
    *(
        Row(
            f"reset_{code}",
            (Head(method="POST", end=False), Reached(), reset(1, code), WholeUpstream(), Sync()),
            route=TO_H,
            answers=(SILENT,),
        )
        for code in (0, 1, 2, 7, 8, 13)
    ),
    Row(
        "reset_while_answered",
        (Head(), Bytes(4), reset(1), WholeUpstream()),
        route=TO_OWN % "own",
        answers=(frames_of(partly, early=True),),
    ),
    Row(
        "reset_of_one_of_two",
        (
            Head(method="POST", end=False),
            Reached(),
            Head(method="POST", end=False, stream=3),
            Reached(2),
            reset(1),
            data(3, b"x", end=True),
            Over((3,)),
        ),
        route=TO_H,
        answers=(SILENT, OK),
    ),
    Row("reset_to_plain", (Head(), Reached(plain=True), reset(1)), route=TO_A, plain=(STALL,)),
    Row(
        "leaves",
        (
            Head(method="POST", end=False),
            Reached(),
            Leave(),
        ),
        route=TO_H,
        answers=(SILENT,),
        ignore=("RST_STREAM",),
    ),
    Row(
        "leaves_two",
        (Head(), Head(stream=3), Reached(2), Leave()),
        route=TO_H,
        answers=(SILENT,),
        ignore=("RST_STREAM",),
    ),
    Row("leaves_plain", (Head(), Reached(plain=True), Leave()), route=TO_A, plain=(STALL,)),
]
EARLY = [
    one("answer_before_end", Head(method="POST", end=False), route=DIRECT),
    Row(
        "data_after_answer",
        (Head(method="POST", end=False), Over(), data(1, b"x"), data(1, b"y", end=True)),
        route=DIRECT,
    ),
    one(
        "answer_before_end_of_upstream",
        Head(method="POST", end=False),
        route=TO_H,
        answers=(frames_of(lambda stream: headers(stream, HEAD, end=True), early=True),),
    ),
    one(
        "answer_and_no_error_of_upstream",
        Head(method="POST", end=False),
        route=TO_H,
        answers=(frames_of(lambda stream: headers(stream, HEAD, end=True) + reset(stream, 0), early=True),),
        ignore=("stat cluster.h.http2.rx_reset",),
    ),
    one(
        "answer_before_end_of_plain",
        Head(method="POST", end=False),
        route=TO_A,
        plain=(reply(200, early=True, then="close"),),
        ignore=("end:",),
    ),
    one(
        "refused_before_end_of_plain",
        Head([("content-length", "5")], method="POST", end=False),
        route=TO_A,
        plain=(reply(401, early=True),),
        ignore=("end:",),
    ),
]
TIMEOUTS = [
    one("timeout", Head(), route=FAST, answers=(SILENT,)),
    one("timeout_after_headers", Head(), route=FAST, answers=(frames_of(started),)),
    one("timeout_after_data", Head(), route=FAST, answers=(frames_of(partly),)),
    one("timeout_of_plain", Head(), route=FAST.replace("cluster: h", "cluster: a"), plain=(STALL,)),
    one(
        "per_try_timeout",
        Head(),
        route="match: { prefix: / }\nroute: { cluster: h, retry_policy: { retry_on: 5xx, "
        "num_retries: 1, per_try_timeout: 0.1s } }",
        answers=(SILENT, OK),
    ),
    one(
        "idle_timeout_of_route",
        Head(),
        route="match: { prefix: / }\nroute: { cluster: h, idle_timeout: 0.1s }",
        answers=(SILENT,),
    ),
    one(
        "idle_timeout_incomplete",
        Head(method="POST", end=False),
        route="match: { prefix: / }\nroute: { cluster: h, idle_timeout: 0.1s }",
        answers=(SILENT,),
    ),
    one(
        "max_stream_duration",
        Head(),
        route="match: { prefix: / }\nroute: { cluster: h, max_stream_duration: { max_stream_duration: 0.1s } }",
        answers=(SILENT,),
    ),
    one("request_timeout", Head(method="POST", end=False), route=TO_H, listener="hasty", answers=(SILENT,)),
]
GOAWAYS = [
    *(
        one(
            f"goaway_before_{code}",
            Head(),
            route=TO_OWN % "alone",
            answers=(frames_of(lambda stream, code=code: goaway(0, code)), OK),  # type: ignore[misc]
            differs="goaway-refused",
            envoy=(":status: 503",),
            ours=(":status: 200",),
        )
        for code in (0, 11)
    ),
    Row(
        "goaway_refused_retried",
        (Head(), Over()),
        route=RETRY.replace("cluster: h", "cluster: fresh") % "refused-stream",
        answers=(frames_of(lambda stream: goaway(0)), OK),
        ignore=("stat cluster.fresh.upstream_rq_retry",),
    ),
    Row(
        "goaway_then_answer",
        (Head(), Over(), Head(stream=3), Over((3,))),
        route=TO_OWN % "goes",
        answers=(frames_of(lambda stream: goaway(MAX_WINDOW), OK.frames), OK),
        ignore=("stat cluster.goes.upstream_cx_protocol_error",),
    ),
    Row(
        "goaway_while_running",
        (Head(), Reached(), Head(stream=3), Over((3,)), Fire("go"), Over()),
        route=TO_OWN % "stays",
        answers=(Http2Answer(OK.frames, wait_for="go"), frames_of(goaway, OK.frames), OK),
        ignore=("stat cluster.stays.upstream_cx_protocol_error",),
    ),
]
ROWS = [*UPSTREAM_RESETS, *DOWNSTREAM_RESETS, *EARLY, *TIMEOUTS, *GOAWAYS]
HTTP2 = Http2Topic(
    ROWS,
    listeners={"main": "", "hasty": "request_timeout: 0.1s"},
    clusters={name: http2_cluster("h") for name in ("alone", "own", "fresh", "goes", "stays")},
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
