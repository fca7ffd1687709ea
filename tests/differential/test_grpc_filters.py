"""The filters for gRPC: grpc_stats, grpc_web, grpc_http1_bridge and grpc_http1_reverse_bridge, over HTTP/1 with trailers."""

import base64
from dataclasses import replace

from tests.differential.cases import Case, Differs, Expect, chunked, get, post, request
from tests.differential.pair import Pair, Side, start_pair
from tests.differential.test_stats import values
from tests.differential.topic import Topic
from tests.support.upstream import CLOSE, STALL, Answer, reply

HTTP = "type.googleapis.com/envoy.extensions.filters.http."
ROUTER = f"{{ name: router, typed_config: {{ '@type': {HTTP}router.v3.Router }} }}"
GRPC = ("content-type", "application/grpc")
TRAILERS_ON = (
    "typed_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: "
    "{ '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, "
    "explicit_http_config: { http_protocol_options: { enable_trailers: true } } } }"
)

CALL = "POST /s.S/M HTTP/1.1"
WEB_PADDING, WEB_END, BRIDGE_ERROR, BRIDGE_TRAILERS, REVERSE_REPLY = DIFFERENCES = (
    "grpc-web-padding",
    "grpc-web-end",
    "grpc-bridge-error",
    "grpc-bridge-trailers",
    "grpc-reverse-reply",
)


def listener(*filters: tuple[str, str], more: str = "") -> str:
    """A listener with filters, by kind and fields."""
    items = [
        f"{{ name: {kind.split('.')[0]}, typed_config: {{ '@type': {HTTP}{kind}, {fields} }} }}"
        for kind, fields in filters
    ]
    return (
        f"http_filters: [{', '.join((*items, ROUTER))}]\n"
        f"http_protocol_options: {{ enable_trailers: true, accept_http_10: true }}\n{more}"
    )


def message(data: bytes, flags: int = 0) -> bytes:
    """A gRPC message."""
    return bytes((flags,)) + len(data).to_bytes(4, "big") + data


def answer(
    *pieces: bytes,
    status: str | None = "0",
    text: str | None = None,
    code: int = 200,
    content_type: str = "application/grpc",
    more: tuple[tuple[str, str], ...] = (),
    head: tuple[tuple[str, str], ...] = (),
) -> Answer:
    """A gRPC response, each piece a chunk; without a status in its trailers where it is None."""
    trailers = [] if status is None else [("grpc-status", status)]
    trailers += [] if text is None else [("grpc-message", text)]
    lines = [f"HTTP/1.1 {code} OK", f"content-type: {content_type}", "transfer-encoding: chunked"]
    lines += [f"{name}: {value}" for name, value in head]
    start = ("\r\n".join(lines) + "\r\n\r\n").encode()
    return Answer((start, chunked(*pieces, trailers=[*trailers, *more])))


def trailers_only(
    status: str, *more: tuple[str, str], content_type: str = "application/grpc", code: int = 200
) -> Answer:
    """A response that is its head."""
    return reply(code, b"", [("content-type", content_type), ("grpc-status", status), *more])


def to(cluster: str = "t", more: str = "") -> str:
    """A route to a cluster that takes trailers."""
    return f"match: {{ prefix: / }}\nroute: {{ cluster: {cluster} }}\n{more}"


def call(
    name: str,
    at: str,
    *answers: Answer,
    path: str = "/s.S/M",
    body: bytes = message(b"hello"),
    headers: tuple[tuple[str, str], ...] = (GRPC,),
    route: str = "",
) -> Case:
    """A call."""
    return Case(
        f"{at}_{name}",
        post(path, body, *headers),
        answers or (answer(message(b"world")),),
        listener=at,
        route=route or to(),
        log_bytes=False,
    )


# grpc_stats


def allowlist(service: str) -> str:
    """One method that is counted by itself."""
    return f"individual_method_stats_allowlist: {{ services: [{{ name: {service}, method_names: [M] }}] }}"


STATS = "grpc_stats.v3.FilterConfig"
EMPTY_ANSWER = answer(status="0")
COUNTED = [
    call("ok", "stats"),
    call("ok", "all"),
    call("many", "all", answer(message(b"a") + message(b""), message(b"b" * 300)[:7], message(b"b" * 300)[7:]), body=message(b"") + message(b"x") * 2),
    call("half", "all", answer(message(b"a")[:3]), body=b"\0"),
    call("failed", "all", answer(message(b"a"), status="7", text="no")),
    call("odd_status", "all", answer(message(b"a"), status="x")),
    call("high_status", "all", answer(message(b"a"), status="99")),
    call("no_status", "all", answer(message(b"a"), status=None)),
    call("trailers_only", "all", trailers_only("14")),
    call("trailers_only_ok", "all", trailers_only("0")),
    call("http_error", "all", reply(503, b"down")),
    call("http_error_grpc", "all", answer(message(b"a"), code=500)),
    call("html", "all", reply(200, message(b"html"), [("content-type", "text/html")])),
    call("not_grpc", "all", headers=(("content-type", "text/plain"),)),
    call("query", "all", path="/s.S/M?x=y/z"),
    call("one_part", "all", path="/M"),
    call("three_parts", "all", path="/a/b/c"),
    call("slashes", "all", path="//s.S//M/"),
    call("colon", "all", path="/s:S/M x".replace(" ", "%20")),
    call("closed", "all", CLOSE),
    call("empty_body", "all", EMPTY_ANSWER, body=b""),
    call("no_route", "all", route="match: { prefix: /none }\nroute: { cluster: t }"),
    call("dead", "all", route=to("dead")),
    call("direct", "all", route="match: { prefix: / }\ndirect_response: { status: 200, body: { inline_string: x } }"),
    call("listed", "list", path="/l.S/M"),
    call("other_method", "list", path="/s.S/N"),
    call("other_service", "list", path="/t.S/M", ),
    call("odd_path", "list", path="/M"),
    call("status", "list", answer(message(b"a"), status="3"), path="/l.S/M"),
    call("dots", "dots"),
    call("dots_list", "dotslist", path="/a.b.C/M"),
    call("upstream", "upstream"),
    call("upstream_trailers_only", "upstream", trailers_only("5")),
    call("upstream_plain", "upstream", path="/M"),
    call("upstream_html", "upstream", reply(200, b"x", [("content-type", "text/html")])),
    call("state", "state", answer(message(b"a") + message(b"b"))),
    call("state_request", "state", reply(503, b"no")),
    call("state_nothing", "state", trailers_only("5"), body=b""),
]  # fmt: skip
STATE_LOG = """
access_log:
- name: state
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
    path: '@LOG@'
    log_format:
      text_format_source:
        inline_string: 'plain=%FILTER_STATE(envoy.filters.http.grpc_stats:PLAIN)% typed=%FILTER_STATE(envoy.filters.http.grpc_stats:TYPED)% path=%REQ(:PATH)% rx=
          '
"""

# grpc_web

WEB = "grpc_web.v3.GrpcWeb"
WEB_BINARY = ("content-type", "application/grpc-web")
WEB_TEXT = ("content-type", "application/grpc-web-text")
ACCEPT_TEXT = ("accept", "application/grpc-web-text")


def b64(data: bytes) -> bytes:
    return base64.b64encode(data)


def web(
    name: str,
    *answers: Answer,
    body: bytes = message(b"hello"),
    headers: tuple[tuple[str, str], ...] = (WEB_BINARY,),
    route: str = "",
) -> Case:
    """A call of gRPC-Web."""
    return call(name, "web", *answers, body=body, headers=headers, route=route)


def web_pieces(name: str, *pieces: bytes, text: tuple[tuple[str, str], ...] = (WEB_TEXT,)) -> Case:
    """A request in pieces, each a chunk of its own."""
    start = request("POST", "/s.S/M", [*text, ("transfer-encoding", "chunked")])
    return Case(
        f"web_{name}", start + chunked(*pieces), (answer(message(b"x")),), listener="web", route=to(), log_bytes=False
    )


def bad(case: Case) -> Case:
    """A request that is refused: how much of it went upstream before is a matter of timing."""
    return replace(case, compare_upstream="nothing")


TEXT_BODY = b64(message(b"hello") + message(b"x"))
TWO_BLOCKS = b64(message(b"hello")) + b64(message(b"x"))
WEB_CASES = [
    web("binary"),
    web("binary_proto", headers=(("content-type", "application/grpc-web+proto"),)),
    web("text", body=TEXT_BODY, headers=(WEB_TEXT, ACCEPT_TEXT)),
    web("text_proto", body=TEXT_BODY, headers=(("content-type", "application/grpc-web-text+proto"), ("accept", "application/grpc-web-text+proto"))),
    web("text_to_binary", body=TEXT_BODY, headers=(WEB_TEXT,)),
    web("binary_to_text", headers=(WEB_BINARY, ACCEPT_TEXT)),
    web("accept_list", headers=(WEB_BINARY, ("accept", "application/grpc-web-text, */*"))),
    web("parameter", headers=(("content-type", "application/grpc-web; charset=utf-8"),)),
    web("json", headers=(("content-type", "application/grpc-web+json"),)),
    web("grpc", headers=(GRPC,)),
    web("accept_encoding", headers=(WEB_BINARY, ("grpc-accept-encoding", "gzip"), ("te", "gzip"))),
    web("trailers", answer(message(b"a"), text="fine", more=(("x-A", "b c"), ("grpc-status-details-bin", "AA"), ("x-a", "d")))),
    web("trailers_text", answer(message(b"a"), message(b"bc"), text="fine"), headers=(WEB_BINARY, ACCEPT_TEXT)),
    web("no_trailers", answer(message(b"a"), status=None)),
    web("failed", answer(status="5", text="none")),
    web("trailers_only", trailers_only("7", ("grpc-message", "no"))),
    web("trailers_only_text", trailers_only("7", ("grpc-message", "no")), headers=(WEB_TEXT, ACCEPT_TEXT), body=TEXT_BODY),
    web("empty_no_status", reply(200, b"", [GRPC])),
    web("head_only_error", reply(503, b"")),
    web("http_error", reply(503, b"upstream is 100% down~\n")),
    web("http_error_text", reply(404, b"none"), headers=(WEB_TEXT, ACCEPT_TEXT), body=TEXT_BODY),
    web("http_error_chunked", Answer((b"HTTP/1.1 500 Oh\r\ntransfer-encoding: chunked\r\n\r\n", chunked(b"one ", b"two")))),
    web("http_error_trailers", Answer((b"HTTP/1.1 500 Oh\r\ntransfer-encoding: chunked\r\n\r\n", chunked(b"one", trailers=[("x", "y")])))),
    web("http_error_long", Answer((b"HTTP/1.1 500 Oh\r\ntransfer-encoding: chunked\r\n\r\n", chunked(b"a" * 20_000, b"b" * 20_000)))),
    web("http_error_web", reply(500, b"x", [("content-type", "application/grpc-web+proto")])),
    web("html", reply(200, b"<html>", [("content-type", "text/html")])),
    web("upstream_web", answer(message(b"a"), message(b"grpc-status:0\r\n", 0x80), status=None, content_type="application/grpc-web+proto")),
    web("upstream_web_length", reply(200, message(b"a"), [("content-type", "application/grpc-web+proto; x=y")])),
    web("upstream_web_case", reply(200, message(b"a"), [("content-type", "application/GRPC-web ")])),
    web("upstream_text", reply(200, b64(message(b"a")), [("content-type", "application/grpc-web-text+proto")])),
    web("length", Answer((b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ncontent-length: 6\r\n\r\n" + message(b"a"),))),
    replace(
        web("length_text", Answer((b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ncontent-length: 6\r\n\r\n" + message(b"a"),)), headers=(WEB_TEXT, ACCEPT_TEXT), body=TEXT_BODY),
        differs=Differs(
            WEB_END,
            ours=Expect((200,), upstream=(CALL,), contains=("body: 'AAAAAAFh'",)),
            envoy=Expect((), "stalled", (CALL,)),
        ),
    ),
    web("split_messages_text", answer(message(b"abc")[:3], message(b"abc")[3:] + message(b"d")[:5], b"d" + message(b"")), headers=(WEB_BINARY, ACCEPT_TEXT)),
    web("compressed_text", answer(message(b"abc", 1)), headers=(WEB_BINARY, ACCEPT_TEXT)),
    web("dead", route=to("dead")),
    web("dead_text", route=to("dead"), headers=(WEB_BINARY, ACCEPT_TEXT)),
    web("no_route", route="match: { prefix: /none }\nroute: { cluster: t }"),
    web("direct", route="match: { prefix: / }\ndirect_response: { status: 200, body: { inline_string: direct } }"),
    web("timeout", STALL, route="match: { prefix: / }\nroute: { cluster: t, timeout: 0.1s }"),
    web("empty_request", body=b""),
    bad(web("bad_length", body=TEXT_BODY[:-1], headers=(WEB_TEXT,))),
    bad(web("bad_data", body=b"!!!!" + TEXT_BODY, headers=(WEB_TEXT,))),
    bad(web("bad_data_late", body=TEXT_BODY + b"====", headers=(WEB_TEXT,))),
    bad(web("three_bytes", body=b"abc", headers=(WEB_TEXT,))),
    bad(web("not_canonical", body=b"AB==", headers=(WEB_TEXT,))),
    bad(web("url_safe", body=b"-_-_", headers=(WEB_TEXT,))),
    bad(web("white_space", body=b"AAAA\r\n\r\n", headers=(WEB_TEXT,))),
    web_pieces("pieces", TEXT_BODY[:1], TEXT_BODY[1:3], TEXT_BODY[3:10], TEXT_BODY[10:]),
    bad(web_pieces("pieces_bad", TEXT_BODY[:7])),
    bad(web_pieces("pieces_bad_data", TEXT_BODY[:4], b"$$$$")),
    web_pieces("pieces_none"),
    web_pieces("pieces_binary", message(b"ab")[:2], message(b"ab")[2:], text=(WEB_BINARY,)),
    replace(
        web("padding_amid", body=TWO_BLOCKS, headers=(WEB_TEXT,)),
        differs=Differs(
            WEB_PADDING,
            ours=Expect((200,), upstream=(CALL,), contains=(r"body: '\x00\x00\x00\x00\x05hello\x00\x00\x00\x00\x01x'",)),
            envoy=Expect((400,), "closed", None, contains=("grpc_base_64_decode_failed",)),
        ),
    ),
    replace(
        web("no_trailers_text", answer(message(b"a"), status=None), headers=(WEB_BINARY, ACCEPT_TEXT)),
        differs=Differs(
            WEB_END,
            ours=Expect((200,), upstream=(CALL,), contains=("body: 'AAAAAAFh'",)),
            envoy=Expect((), "stalled", (CALL,)),
        ),
    ),
    replace(
        web("half_message_text", answer(message(b"abc")[:6]), headers=(WEB_BINARY, ACCEPT_TEXT)),
        differs=Differs(
            WEB_END,
            ours=Expect((200,), upstream=(CALL,), contains=("body: 'AAAAAANhgAAAAA",)),
            envoy=Expect((200,), upstream=(CALL,), contains=("body: 'gAAAAA",)),
        ),
    ),
    Case("web_get", get("/s.S/M", WEB_BINARY), (trailers_only("0"),), listener="web", route=to(), log_bytes=False),
    Case("web_options", request("OPTIONS", "/s.S/M", [("origin", "http://a"), ("access-control-request-method", "POST")]), (reply(200),), listener="web", route=to(), log_bytes=False),
]  # fmt: skip

# grpc_http1_bridge

BRIDGE = "grpc_http1_bridge.v3.Config"
PROTO = ("content-type", "application/x-protobuf")
BRIDGED = [
    call("ok", "bridge"),
    call("many", "bridge", answer(message(b"a"), message(b"bc"), text="well", more=(("x-a", "b"),))),
    call("failed", "bridge", answer(status="5", text="none")),
    call("failed_body", "bridge", answer(message(b"a"), status="5", text="none")),
    call("odd_status", "bridge", answer(message(b"a"), status="x")),
    call("no_status", "bridge", answer(message(b"a"), status=None)),
    call("message_alone", "bridge", answer(message(b"a"), status=None, text="alone")),
    call("trailers_only", "bridge", trailers_only("5")),
    call("http_error", "bridge", reply(503, b"down")),
    call("dead", "bridge", route=to("dead")),
    call("not_grpc", "bridge", headers=(PROTO,)),
    call("query", "bridge", path="/s.S/M?a=b"),
    call("chunked", "bridge", answer(status=None)),
    call("ok", "upgrade", headers=(PROTO,), body=b"hello"),
    call("empty", "upgrade", headers=(PROTO,), body=b""),
    call("parameter", "upgrade", headers=(("content-type", "application/x-protobuf; x=y"),), body=b"hello"),
    call("grpc", "upgrade"),
    call("many", "upgrade", answer(message(b"a"), message(b"bc")), headers=(PROTO,), body=b"x"),
    call("half", "upgrade", answer(message(b"abc")[:4]), headers=(PROTO,), body=b"x"),
    call("split", "upgrade", answer(message(b"abc")[:4], message(b"abc")[4:]), headers=(PROTO,), body=b"x"),
    call("failed", "upgrade", answer(message(b"a"), status="5", text="none"), headers=(PROTO,), body=b"x"),
    call("no_body", "upgrade", answer(status="5", text="none"), headers=(PROTO,), body=b"x"),
    call("no_status", "upgrade", answer(message(b"a"), status=None), headers=(PROTO,), body=b"x"),
    call("trailers_only", "upgrade", trailers_only("5"), headers=(PROTO,), body=b"x"),
    replace(call("http_error", "upgrade", reply(503, b"down"), headers=(PROTO,), body=b"x"), differs=Differs(BRIDGE_ERROR, Expect((503,), upstream=(CALL,), contains=("body: 'down'",)), Expect((), "stalled", (CALL,)))),
    replace(call("html", "upgrade", reply(200, b"html", [("content-type", "text/html")]), headers=(PROTO,), body=b"x"), differs=Differs(BRIDGE_ERROR, Expect((200,), upstream=(CALL,), contains=("body: 'html'",)), Expect((), "stalled", (CALL,)))),
    call("dead", "upgrade", headers=(PROTO,), body=b"x", route=to("dead")),
    call("compressed", "upgrade", answer(message(b"abc", 1)), headers=(PROTO,), body=b"x"),
    Case(
        "upgrade_get",
        get("/s.S/M", PROTO),
        listener="upgrade",
        route=to(),
        log_bytes=False,
        differs=Differs(
            BRIDGE_ERROR,
            Expect((200,), upstream=("GET /s.S/M HTTP/1.1",), contains=("body: 'ok'",)),
            Expect((), "stalled", ("GET /s.S/M HTTP/1.1",)),
        ),
    ),
    Case(
        "upgrade_chunked",
        request("POST", "/s.S/M", [PROTO, ("transfer-encoding", "chunked")]) + chunked(b"ab", b"cd"),
        (answer(message(b"world")),),
        listener="upgrade",
        route=to(),
        log_bytes=False,
    ),
    Case(
        "upgrade_trailers",
        request("POST", "/s.S/M", [PROTO, ("transfer-encoding", "chunked")]) + chunked(b"ab", trailers=[("x", "y")]),
        (answer(message(b"world")),),
        listener="upgrade",
        route=to(),
        log_bytes=False,
        differs=Differs(
            BRIDGE_TRAILERS,
            Expect((200,), upstream=(CALL,), contains=(r"body: '\x00\x00\x00\x00\x02ab'", "trailer x: y")),
            Expect((200,), upstream=(CALL,), contains=("body: 'ab'", "trailer x: y")),
        ),
    ),
    call("query", "noquery", path="/s.S/M?a=b"),
    call("no_query", "noquery"),
    call("not_grpc", "noquery", path="/s.S/M?a=b", headers=(PROTO,)),
]  # fmt: skip

# grpc_http1_reverse_bridge

REVERSE = "grpc_http1_reverse_bridge.v3.FilterConfig"
PLAIN = [("content-type", "application/x-protobuf")]


def plain(*fields: tuple[str, str], body: bytes = b"world", code: int = 200) -> Answer:
    """What an upstream that knows nothing of gRPC answers."""
    return reply(code, body, [*PLAIN, *fields])


def plain_chunked(*pieces: bytes, trailers: tuple[tuple[str, str], ...] = (), head: bytes = b"") -> Answer:
    start = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ntransfer-encoding: chunked\r\n" + head + b"\r\n"
    )
    return Answer((start, chunked(*pieces, trailers=trailers)))


REVERSED = [
    *(
        case
        for at in ("reverse", "withhold", "sized")
        for case in (
            call("ok", at, plain(("x-size", "5"))),
            call("plus", at, plain(("x-size", "5")), headers=(("content-type", "application/grpc+proto"),)),
            call("not_grpc", at, plain(), headers=(PROTO,)),
            call("chunked", at, plain_chunked(b"ab", b"cde", head=b"x-size: 5\r\n")),
            call("trailers", at, plain_chunked(b"ab", b"cde", head=b"x-size: 5\r\n", trailers=(("x-t", "1"),))),
            call("error", at, plain(("x-size", "4"), code=503, body=b"down")),
            call("not_found", at, plain(("x-size", "4"), code=404, body=b"none")),
            call("empty", at, plain(("x-size", "0"), body=b"")),
            call("content_type", at, reply(200, b"html", [("content-type", "text/html")])),
            call("no_content_type", at, reply(500, b"oh")),
            replace(
                call("dead", at, route=to("dead")),
                differs=Differs(
                    REVERSE_REPLY,
                    Expect((200,), contains=("grpc-status: 14", "reset reason: remote connection failure")),
                    Expect((200,), contains=("grpc-status: 2", "unsupported content-type application/grpc")),
                ),
            ),
            call("two_messages", at, plain(("x-size", "5")), body=message(b"a") + message(b"b")),
            call("empty_message", at, plain(("x-size", "5")), body=message(b"")),
            Case(f"{at}_get", get("/s.S/M", GRPC), (plain(),), listener=at, route=to(), log_bytes=False),
            Case(
                f"{at}_pieces",
                request("POST", "/s.S/M", [GRPC, ("transfer-encoding", "chunked")]) + chunked(message(b"abc")[:7], b"bc"),
                (plain(("x-size", "5")),),
                listener=at,
                route=to(),
                log_bytes=False,
            ),
            call(
                "off",
                at,
                plain(),
                route=to(more=f"typed_per_filter_config: {{ grpc_http1_reverse_bridge: {{ '@type': {HTTP}grpc_http1_reverse_bridge.v3.FilterConfigPerRoute, disabled: true }} }}"),
            ),
        )
    ),
    call("small", "reverse", plain(), body=b"\0\0"),
    *(
        replace(
            call("small", at, body=b"\0\0"),
            differs=Differs(
                REVERSE_REPLY,
                Expect((200,), upstream=None, contains=("grpc-status: 2", "grpc-message: invalid request body")),
                Expect((200,), "closed", None, contains=("grpc-status: 2", "unsupported content-type application/grpc")),
            ),
        )
        for at in ("withhold", "sized")
    ),
    replace(call("wrong_size", "sized", plain(("x-size", "7"))), ignore=("body:",)),
    call("no_size", "sized", plain()),
    call("odd_size", "sized", plain(("x-size", "x"))),
    call("list_size", "sized", plain(("x-size", "5,6"))),
]  # fmt: skip

TOPIC = Topic(
    [*COUNTED, *WEB_CASES, *BRIDGED, *REVERSED],
    listeners={
        "stats": listener((STATS, "")),
        "all": listener((STATS, "stats_for_all_methods: true")),
        "list": listener((STATS, allowlist("l.S"))),
        "dots": listener((STATS, "stats_for_all_methods: true, replace_dots_in_grpc_service_name: true")),
        "dotslist": listener(
            (
                STATS,
                f"replace_dots_in_grpc_service_name: true, {allowlist('a.b.C')}",
            )
        ),
        "upstream": listener((STATS, "stats_for_all_methods: true, enable_upstream_stats: true")),
        "state": listener((STATS, "emit_filter_state: true"), more=STATE_LOG),
        "web": listener((WEB, "")),
        "bridge": listener((BRIDGE, "")),
        "upgrade": listener((BRIDGE, "upgrade_protobuf_to_grpc: true")),
        "noquery": listener((BRIDGE, "ignore_query_parameters: true")),
        "reverse": listener((REVERSE, "content_type: application/x-protobuf")),
        "withhold": listener((REVERSE, "content_type: application/x-protobuf, withhold_grpc_frames: true")),
        "sized": listener(
            (REVERSE, "content_type: application/x-protobuf, withhold_grpc_frames: true, response_size_header: x-size")
        ),
    },
    clusters={"t": f"hosts: [a]\n{TRAILERS_ON}"},
)


def counters(side: Side) -> dict[str, int]:
    """What both count of calls."""
    return {
        name: value
        for scope in ("cluster.t.", "cluster.dead.")
        for name, value in values(side, scope).items()
        if ".grpc" in name
    }


def test_cases(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()


def test_what_is_counted() -> None:
    with start_pair(TOPIC) as pair:
        check_counted(pair)


def check_counted(pair: Pair) -> None:
    for case in TOPIC.cases:
        if case.differs is None:
            pair.run(case)
    expected = counters(pair.reference)
    assert expected
    assert counters(pair.subject) == expected
