"""Tunnels: upgrades of HTTP/1 and extended CONNECT of HTTP/2 (RFC 8441), one from the other, and plain CONNECT."""

from dataclasses import replace

from tests.differential.cases import get, request
from tests.differential.http2 import (
    Bytes,
    Head,
    Http2Pair,
    Http2Topic,
    Leave,
    Over,
    Parts,
    Request1,
    Row,
    WholeUpstream,
    http2_cluster,
    one,
)
from tests.support.http2_upstream import OK, Http2Answer, answer, frames_of
from tests.support.http2_wire import data, headers, reset
from tests.support.upstream import Answer, reply

TO_A = "match: { prefix: / }\nroute: { cluster: a }"
TO_H = "match: { prefix: / }\nroute: { cluster: tunnels }"
WEBSOCKET = Head(
    [("sec-websocket-version", "13"), ("sec-websocket-key", "k")],
    method="CONNECT",
    path="/chat",
    end=False,
    over=((":protocol", "websocket"),),
)
SWITCHED = Answer(
    (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: x\r\n\r\nhello",
    ),
    then="stall",
    early=True,
)
OPENED = frames_of(
    lambda stream: headers(stream, [(":status", "200"), ("a", "b")]) + data(stream, b"hello"), early=True
)
ENDED = frames_of(lambda stream: headers(stream, [(":status", "200")]) + data(stream, b"hello", end=True), early=True)
REFUSED = Http2Answer(answer([], b"no", 403).frames, early=True)
UPGRADE = get("/chat", ("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k"))
CONNECT = "match: { connect_matcher: {} }\nroute: { cluster: %s, upgrade_configs: [{ upgrade_type: CONNECT%s }] }"
TUNNEL = Head(method="CONNECT", end=False, over=((":path", None), (":scheme", None)))
ROWS = [
    Row(
        "websocket_to_plain",
        (WEBSOCKET, Bytes(5), data(1, b"from downstream"), Leave()),
        route=TO_A,
        plain=(SWITCHED,),
        listener="websocket",
        ignore=("end:",),
    ),
    one("websocket_refused_by_plain", WEBSOCKET, route=TO_A, plain=(reply(403, early=True),), listener="websocket"),
    one("websocket_answered_by_plain", WEBSOCKET, route=TO_A, plain=(reply(200, early=True),), listener="websocket"),
    *(
        one(
            f"{name}_not_configured",
            replace(WEBSOCKET, over=((":protocol", name),)),
            route=TO_A,
            listener="connect_only",
            differs="refused-upgrade",
            envoy=("goaway: NO_ERROR last=2147483647",),
        )
        for name in ("websocket", "other")
    ),
    Row(
        "websocket_to_h",
        (WEBSOCKET, Bytes(5), data(1, b"from downstream", end=True), WholeUpstream()),
        route=TO_H,
        answers=(OPENED,),
        listener="websocket",
    ),
    one(
        "websocket_to_h_ended_by_it",
        WEBSOCKET,
        Bytes(5),
        data(1, b"bye", end=True),
        route=TO_H,
        answers=(ENDED,),
        listener="websocket",
    ),
    Row(
        "websocket_to_h_reset",
        (WEBSOCKET, Bytes(5), reset(1), WholeUpstream()),
        route=TO_H,
        answers=(OPENED,),
        listener="websocket",
    ),
    one("websocket_refused_by_h", WEBSOCKET, route=TO_H, answers=(REFUSED,), listener="websocket"),
    Row(
        "websocket_of_http1_to_h",
        (Request1(UPGRADE, b"from downstream", b"hello"),),
        route=TO_H,
        answers=(OPENED,),
        opening=None,
        listener="websocket",
    ),
    Row(
        "websocket_of_http1_refused_by_h",
        (Request1(UPGRADE),),
        route=TO_H,
        answers=(REFUSED,),
        opening=None,
        listener="websocket",
    ),
    Row(
        "websocket_of_http1_not_configured",
        (Request1(UPGRADE),),
        route=TO_H,
        answers=(OPENED,),
        opening=None,
        listener="connect_only",
    ),
    Row(
        "websocket_with_scheme_missing",
        (replace(WEBSOCKET, over=((":protocol", "websocket"), (":scheme", None))), Over()),
        route=TO_A,
        listener="websocket",
    ),
    Row(
        "websocket_with_path_missing",
        (replace(WEBSOCKET, over=((":protocol", "websocket"), (":path", None))), Over()),
        route=TO_A,
        listener="websocket",
    ),
    Row(
        "websocket_with_empty_protocol",
        (replace(WEBSOCKET, over=((":protocol", ""),)), Over()),
        route=TO_A,
        listener="websocket",
    ),
    Row(
        "connect_terminated",
        (TUNNEL, Parts(), data(1, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"), Bytes(2), Leave()),
        route=CONNECT % ("a", ", connect_config: {}"),
        listener="connect_only",
        ignore=("body:", "end:"),
    ),
    one(
        "connect_to_h",
        TUNNEL,
        Bytes(5),
        data(1, b"bye", end=True),
        route=CONNECT % ("tunnels", ""),
        answers=(ENDED,),
        listener="connect_only",
    ),
    one("connect_refused_by_h", TUNNEL, route=CONNECT % ("tunnels", ""), answers=(REFUSED,), listener="connect_only"),
    one("connect_without_route", TUNNEL, route=TO_A, listener="connect_only"),
    Row(
        "connect_of_http1_to_h",
        (Request1(request("CONNECT", "$HOST:80"), b"abc", b"hello"),),
        route=CONNECT % ("tunnels", ""),
        answers=(OPENED,),
        opening=None,
        listener="connect_only",
        vhost="domains: ['connect-of-http1-to-h.test:80']",
    ),
    one(
        "connect_to_unreachable",
        TUNNEL,
        route=CONNECT % ("dead", ", connect_config: {}"),
        listener="connect_only",
        differs="connect-error",
        envoy=("RST_STREAM CONNECT_ERROR",),
        ours=("RST_STREAM NO_ERROR",),
    ),
]
ROWS += [
    Row(
        "websocket_to_h_that_does_not_take_it",
        (Head(), Over(), replace(WEBSOCKET, stream=3), Over((3,))),
        route="match: { prefix: / }\nroute: { cluster: takes_none }",
        answers=(OK, REFUSED),
        listener="websocket",
        differs="extended-connect",
        envoy=(":status: 403",),
        ours=(":status: 502",),
    ),
]
HTTP2 = Http2Topic(
    ROWS,
    listeners={
        "websocket": "http2_protocol_options: { allow_connect: true, override_stream_error_on_invalid_http_message: true }\n"
        "upgrade_configs: [{ upgrade_type: websocket }]",
        "connect_only": "http2_protocol_options: { allow_connect: true }\nupgrade_configs: [{ upgrade_type: CONNECT }]",
    },
    clusters={
        "tunnels": http2_cluster("h_connect", "allow_connect: true"),
        "takes_none": http2_cluster("h", "allow_connect: true"),
    },
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
