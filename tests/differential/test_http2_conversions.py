"""Requests and responses from one version to the other and back: framing, trailers, interim responses, gRPC."""

from tests.differential.cases import chunked, get, post, request
from tests.differential.http2 import (
    Bytes,
    Head,
    Http2Pair,
    Http2Topic,
    Over,
    Parts,
    Reached,
    Request1,
    Row,
    Step,
    Sync,
    one,
)
from tests.support.http2_upstream import SILENT, Http2Answer, answer, frames_of
from tests.support.http2_wire import DATA, END_STREAM, PADDED, data, frame, headers
from tests.support.upstream import STALL, Answer, reply

TO_H = "match: { prefix: / }\nroute: { cluster: h }"
TO_A = "match: { prefix: / }\nroute: { cluster: a }"
TO_TRAILERS = "match: { prefix: / }\nroute: { cluster: with_trailers }"
DIRECT = "match: { prefix: / }\ndirect_response: { status: 200, body: { inline_string: hi } }"
DEAD = "match: { prefix: / }\nroute: { cluster: dead }"
GRPC = ("content-type", "application/grpc")
POST = Head(method="POST", end=False)
LONG = b"".join(b"%08d" % number for number in range(12800))  # 100 KiB


def in_frames(body: bytes, stream: int = 1, size: int = 16384) -> bytes:
    """DATA that ends the stream."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(data(stream, piece, end=number == len(pieces) - 1) for number, piece in enumerate(pieces))


REQUESTS: dict[str, tuple[Step, ...]] = {
    "get": (Head(),),
    "get_with_body": (Head(end=False), data(1, b"abc", end=True)),
    "get_with_empty_data": (Head(end=False), data(1, end=True)),
    "head": (Head(method="HEAD"),),
    "post": (POST, data(1, b"abc", end=True)),
    "post_with_length": (Head([("content-length", "3")], method="POST", end=False), data(1, b"abc", end=True)),
    "post_with_length_0": (Head([("content-length", "0")], method="POST"),),
    "post_without_body": (Head(method="POST"),),
    "post_with_empty_data": (POST, data(1, end=True)),
    "post_in_pieces": (POST, data(1, b"a"), data(1, b"b"), data(1, b"c"), data(1, end=True)),
    "post_padded": (POST, frame(DATA, PADDED | END_STREAM, 1, b"\x05abcxxxxx")),
    "post_long": (Sync(), POST, in_frames(LONG)),
    "post_long_in_small_frames": (Sync(), POST, in_frames(LONG, size=1000)),
    "scheme_of_its_own": (Head(over=((":scheme", "ftp"),)),),
    "scheme_in_capitals": (Head(over=((":scheme", "HTTPS"),)),),
    "unknown_method": (Head(method="FOO"),),
    "delete": (Head(method="DELETE"),),
    "options": (Head(method="OPTIONS"),),
    "trailers": (POST, data(1, b"x"), headers(1, [("t", "v"), ("u", "w")], end=True)),
    "trailers_announced": (
        Head([("te", "trailers"), ("trailer", "t")], method="POST", end=False),
        data(1, b"x"),
        headers(1, [("t", "v")], end=True),
    ),
    "trailers_without_body": (POST, headers(1, [("t", "v")], end=True)),
    "cookies": (Head([("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]),),
    "expect": (Head([("expect", "100-continue")], method="POST", end=False), Parts(), data(1, b"abc", end=True)),
    "forwarded": (Head([("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https"), ("x-envoy-internal", "1")]),),
    "https_scheme": (Head(over=((":scheme", "https"),)),),
    "query": (Head(path="/a?b=c&d"),),
}
FROM_REQUESTS = [
    *(one(f"request_{name}", *steps, route=TO_A) for name, steps in REQUESTS.items()),
    *(one(f"request_{name}_to_h", *steps, route=TO_H) for name, steps in REQUESTS.items()),
    *(
        one(f"request_{name}_with_trailers", *steps, route=TO_TRAILERS)
        for name, steps in REQUESTS.items()
        if name.startswith("trailers")
    ),
    Row(
        "three_at_once",
        (Head(path="/1"), Head(path="/2", stream=3), Head(path="/3", stream=5), Over((1, 3, 5))),
        route=DIRECT,
    ),
    Row(
        "two_bodies_interleaved",
        (
            POST,
            Reached(),
            Head(method="POST", end=False, stream=3),
            Reached(2),
            data(1, b"a"),
            data(3, b"b"),
            data(1, b"c", end=True),
            data(3, b"d", end=True),
            Over((1, 3)),
        ),
        route=TO_H,
    ),
]


def plain(text: bytes, then: str = "keep") -> Answer:
    return Answer((text.replace(b"\n", b"\r\n"),), then=then)


PLAIN_ANSWERS: dict[str, Answer] = {
    "length": reply(200, b"body", [("x", "y")]),
    "empty": reply(200, b""),
    "long": reply(200, LONG),
    "chunked": plain(b"HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n2\nok\n0\n\n"),
    "trailers": plain(b"HTTP/1.1 200 OK\ntransfer-encoding: chunked\ntrailer: t\n\n2\nok\n0\nt: v\n\n"),
    "until_close": plain(b"HTTP/1.1 200 OK\n\nok", then="close"),
    "http_1_0": plain(b"HTTP/1.0 200 OK\n\nok", then="close"),
    "connection_close": plain(b"HTTP/1.1 200 OK\nconnection: close\ncontent-length: 2\n\nok", then="close"),
    "hop_by_hop": plain(
        b"HTTP/1.1 200 OK\nkeep-alive: timeout=5\nproxy-connection: x\nupgrade: foo\ncontent-length: 2\n\nok"
    ),
    "capitals": plain(b"HTTP/1.1 200 OK\nContent-Length: 2\nX-Upper: V\nSet-Cookie: a\nSet-Cookie: b\n\nok"),
    "100": plain(b"HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\ncontent-length: 2\n\nok"),
    "103": plain(b"HTTP/1.1 103 Early\nlink: a\n\nHTTP/1.1 200 OK\ncontent-length: 2\n\nok"),
    "204": reply(204),
    "304": plain(b"HTTP/1.1 304 Not Modified\ncontent-length: 20\n\n"),
    "205": reply(205, b""),
    "500": reply(500, b"oops"),
    "reason": plain(b"HTTP/1.1 299 Strange Thing\ncontent-length: 0\n\n"),
}
FROM_PLAIN_ANSWERS = [
    *(one(f"plain_{name}", Head(), route=TO_A, plain=(what,)) for name, what in PLAIN_ANSWERS.items()),
    one(
        "plain_nominated",
        Head(),
        route=TO_A,
        plain=(plain(b"HTTP/1.1 200 OK\nconnection: x-foo\nx-foo: 1\ncontent-length: 2\n\nok"),),
        differs="response-connection-header",
        envoy=("x-foo: 1",),
    ),
    one("plain_trailers_kept", Head(), route=TO_TRAILERS, plain=(PLAIN_ANSWERS["trailers"],)),
    one(
        "plain_head_length", Head(method="HEAD"), route=TO_A, plain=(plain(b"HTTP/1.1 200 OK\ncontent-length: 20\n\n"),)
    ),
    one(
        "plain_head_chunked",
        Head(method="HEAD"),
        route=TO_A,
        plain=(plain(b"HTTP/1.1 200 OK\ntransfer-encoding: chunked\n\n"),),
    ),
]
STATUS = [(":status", "200")]
ANSWERS: dict[str, Http2Answer] = {
    "length": answer([("content-length", "4"), ("x", "y")], b"body"),
    "no_length": answer([], b"body"),
    "empty": answer([], b""),
    "long": answer([], LONG),
    "empty_data": frames_of(lambda stream: headers(stream, STATUS) + data(stream, b"ok") + data(stream, end=True)),
    "only_empty_data": frames_of(lambda stream: headers(stream, STATUS) + data(stream, end=True)),
    "padded": frames_of(lambda stream: headers(stream, STATUS) + frame(DATA, 9, stream, b"\x03okxxx")),
    "trailers": frames_of(
        lambda stream: (
            headers(stream, STATUS) + data(stream, b"ok") + headers(stream, [("t", "v"), ("u", "w")], end=True)
        )
    ),
    "trailers_alone": frames_of(lambda stream: headers(stream, STATUS) + headers(stream, [("t", "v")], end=True)),
    "100": frames_of(lambda stream: headers(stream, [(":status", "100")]) + headers(stream, STATUS, end=True)),
    "103": frames_of(
        lambda stream: headers(stream, [(":status", "103"), ("link", "a")]) + headers(stream, STATUS, end=True)
    ),
    "204": answer([], b"", 204),
    "204_with_length": answer([("content-length", "0")], b"", 204),
    "304": answer([("content-length", "20")], b"", 304),
    "404": answer([], b"no", 404),
    "cookies": answer([("set-cookie", "a"), ("set-cookie", "b"), ("cookie", "c"), ("cookie", "d")], b"ok"),
    "own_fields": answer([("date", "x"), ("server", "y"), ("via", "z"), ("x-envoy-upstream-service-time", "9")], b"ok"),
    "continued": frames_of(lambda stream: headers(stream, [*STATUS, ("a", "b" * 300)], end=True, split_at=50)),
}
FROM_ANSWERS = [
    *(one(f"answer_{name}", Head(), route=TO_H, answers=(what,)) for name, what in ANSWERS.items()),
    *(
        Row(f"answer_{name}_to_http1", (Request1(get("/")),), route=TO_H, answers=(what,), opening=None)
        for name, what in ANSWERS.items()
    ),
    Row(
        "answer_trailers_to_http1_kept",
        (Request1(get("/", ("te", "trailers"))),),
        route=TO_H,
        answers=(ANSWERS["trailers"],),
        opening=None,
        listener="trailers",
    ),
    one("answer_to_head", Head(method="HEAD"), route=TO_H, answers=(answer([("content-length", "20")], b""),)),
    Row(
        "answer_to_head_of_http1",
        (Request1(request("HEAD")),),
        route=TO_H,
        answers=(answer([("content-length", "20")], b""),),
        opening=None,
    ),
    Row(
        "answer_to_head_of_http1_without_length",
        (Request1(request("HEAD")),),
        route=TO_H,
        answers=(answer([], b""),),
        opening=None,
    ),
    Row(
        "answer_in_two_steps",
        (Head(), Bytes(4), Over()),
        route=TO_H,
        answers=(
            frames_of(lambda stream: headers(stream, STATUS) + data(stream, b"part") + data(stream, b"rest", end=True)),
        ),
    ),
]
HTTP1_REQUESTS: dict[str, bytes] = {
    "get": get("/"),
    "post": post("/", b"abc"),
    "post_empty": post("/", b""),
    "post_chunked": request("POST", "/", [("transfer-encoding", "chunked")]) + chunked(b"ab", b"c"),
    "post_chunked_empty": request("POST", "/", [("transfer-encoding", "chunked")]) + chunked(),
    "post_long": post("/", LONG),
    "trailers": request("POST", "/", [("transfer-encoding", "chunked"), ("trailer", "t")])
    + chunked(b"ab", trailers=[("t", "v")]),
    "head": request("HEAD"),
    "foo": request("FOO"),
    "host_with_port": get("/", host="$HOST:80"),
    "absolute_form": request("GET", "http://$HOST/abs?x=y", host="$HOST"),
    "hop_by_hop": get(
        "/", ("connection", "x-foo, keep-alive"), ("x-foo", "1"), ("keep-alive", "timeout=5"), ("te", "gzip")
    ),
    "te_trailers": get("/", ("te", "trailers")),
    "capitals": get("/", ("X-Upper", "V"), ("Cookie", "a=1; b=2")),
    "two_cookies": get("/", ("Cookie", "a=1"), ("Cookie", "b=2")),
    "h2c": get(
        "/", ("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "AAMAAABkAAQAAP__")
    ),
    "authorization": get("/", ("authorization", "secret"), ("proxy-authorization", "x")),
    "expect": post("/", b"abc", ("expect", "100-continue")),
}
FROM_HTTP1 = [
    *(
        Row(f"http1_{name}", (Request1(raw),), route=TO_H, opening=None)
        for name, raw in HTTP1_REQUESTS.items()
        if name != "expect"
    ),
    Row("http1_trailers_kept", (Request1(HTTP1_REQUESTS["trailers"]),), route=TO_H, opening=None, listener="trailers"),
]
GRPC_ROWS = [
    one("grpc_unreachable", Head([GRPC], method="POST"), route=DEAD),
    one("grpc_unreachable_incomplete", Head([GRPC], method="POST", end=False), route=DEAD),
    one("grpc_no_route", Head([GRPC], method="POST"), route="match: { path: /other }\nroute: { cluster: a }"),
    one("grpc_direct", Head([GRPC], method="POST"), route=DIRECT),
    one("grpc_plus_proto", Head([("content-type", "application/grpc+proto")], method="POST"), route=DEAD),
    one("grpc_web_is_none", Head([("content-type", "application/grpc-web")], method="POST"), route=DEAD),
    one(
        "grpc_timeout",
        Head([GRPC], method="POST"),
        route="match: { prefix: / }\nroute: { cluster: h, timeout: 0.1s }",
        answers=(SILENT,),
    ),
    one(
        "grpc_timeout_of_plain",
        Head([GRPC], method="POST"),
        route="match: { prefix: / }\nroute: { cluster: a, timeout: 0.1s }",
        plain=(STALL,),
    ),
    one(
        "grpc_trailers_only",
        Head([GRPC], method="POST"),
        route=TO_H,
        answers=(answer([GRPC, ("grpc-status", "5"), ("grpc-message", "none")], b""),),
    ),
    one(
        "grpc_trailers",
        Head([GRPC, ("te", "trailers")], method="POST", end=False),
        data(1, b"\0\0\0\0\2hi", end=True),
        route=TO_H,
        answers=(
            frames_of(
                lambda stream: (
                    headers(stream, [*STATUS, GRPC])
                    + data(stream, b"\0\0\0\0\2ok")
                    + headers(stream, [("grpc-status", "0")], end=True)
                )
            ),
        ),
    ),
    one(
        "grpc_retried",
        Head([GRPC], method="POST"),
        route="match: { prefix: / }\nroute: { cluster: h, retry_policy: { retry_on: unavailable, "
        "num_retries: 1, retry_back_off: { base_interval: 0.002s } } }",
        answers=(answer([GRPC, ("grpc-status", "14")], b""), answer([GRPC, ("grpc-status", "0")], b"")),
    ),
    one("grpc_not_found_of_plain", Head([GRPC], method="POST"), route=TO_A, plain=(reply(404, b"no"),)),
]
ROWS = [*FROM_REQUESTS, *FROM_PLAIN_ANSWERS, *FROM_ANSWERS, *FROM_HTTP1, *GRPC_ROWS]
WITH_TRAILERS = (
    "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { '@type': \
type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: { \
http_protocol_options: { enable_trailers: true } } } }"
)
HTTP2 = Http2Topic(
    ROWS,
    listeners={"main": "", "trailers": "http_protocol_options: { enable_trailers: true }"},
    clusters={"with_trailers": "hosts: [b]\n" + WITH_TRAILERS},
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
