"""HTTP/2 requests that break RFC 9113 section 8: which cost their stream, which the connection, and what is counted."""

from tests.differential.http2 import Ended, Head, Http2Pair, Http2Topic, Over, Reached, Row, Step, Sync, one
from tests.support.http2_wire import data, field_block, frame, headers

PSEUDO = {":method": "GET", ":scheme": "http", ":path": "/", ":authority": "x.test"}
PSEUDO_BYTES = sum(len(name) + len(value) for name, value in PSEUDO.items())
BEGUN = (Head(method="POST", end=False), Reached(plain=True))
BAD: dict[str, Step | tuple[Step, ...]] = {
    "no_method": Head(over=((":method", None),)),
    "no_scheme": Head(over=((":scheme", None),)),
    "no_path": Head(over=((":path", None),)),
    "no_authority": Head(over=((":authority", None),)),
    "nothing": headers(1, [], end=True),
    "method_twice": headers(1, [(":method", "GET"), *PSEUDO.items()], end=True),
    "path_twice": headers(1, [*PSEUDO.items(), (":path", "/other")], end=True),
    "authority_twice": headers(1, [*PSEUDO.items(), (":authority", "y.test")], end=True),
    "unknown_pseudo": Head(over=((":other", "x"),)),
    "status": Head(over=((":status", "200"),)),
    "pseudo_behind": headers(1, [("a", "b"), *PSEUDO.items()], end=True),
    "upper_case": Head([("X-Upper", "x")]),
    "empty_name": Head([("", "x")]),
    "space_in_name": Head([("a b", "x")]),
    "colon_in_name": Head([("a:b", "x")]),
    "connection": Head([("connection", "close")]),
    "connection_keep_alive": Head([("connection", "keep-alive")]),
    "keep_alive": Head([("keep-alive", "timeout=5")]),
    "proxy_connection": Head([("proxy-connection", "keep-alive")]),
    "transfer_encoding": Head([("transfer-encoding", "chunked")]),
    "upgrade": Head([("upgrade", "websocket")]),
    "te_gzip": Head([("te", "gzip")]),
    "te_list": Head([("te", "trailers, gzip")]),
    "te_weight": Head([("te", "trailers;q=0.5")]),
    "te_empty": Head([("te", "")]),
    "path_empty": Head(path=""),
    "path_star": Head(path="*"),
    "path_absolute": Head(path="http://x.test/"),
    "path_relative": Head(path="relative"),
    "path_space": Head(path="/a b"),
    "path_tab": Head(path="/a\tb"),
    "path_control": Head(path="/a\x01b"),
    "method_empty": Head(method=""),
    "method_space": Head(method="G T"),
    "method_control": Head(method="G\x01"),
    "scheme_empty": Head(over=((":scheme", ""),)),
    "scheme_space": Head(over=((":scheme", "h t"),)),
    "authority_empty": Head(over=((":authority", ""),)),
    "authority_user": Head(over=((":authority", "user@x.test"),)),
    "authority_space": Head(over=((":authority", "a b"),)),
    "authority_slash": Head(over=((":authority", "a/b"),)),
    "authority_control": Head(over=((":authority", "a\x01"),)),
    "host_space": Head([("host", "a b")], over=((":authority", None),)),
    "two_hosts": Head([("host", "a"), ("host", "a")], over=((":authority", None),)),
    "value_nul": Head([("a", "b\0c")]),
    "value_cr": Head([("a", "b\rc")]),
    "value_lf": Head([("a", "b\nc")]),
    "value_control": Head([("a", "b\x01c")]),
    "value_delete": Head([("a", "b\x7fc")]),
    "length_text": Head([("content-length", "x")]),
    "length_negative": Head([("content-length", "-1")]),
    "length_plus": Head([("content-length", "+0")]),
    "length_empty": Head([("content-length", "")]),
    "length_twice": Head([("content-length", "0"), ("content-length", "0")]),
    "length_two": Head([("content-length", "0"), ("content-length", "1")]),
    "length_list": Head([("content-length", "0, 0")]),
    "length_overflow": Head([("content-length", "9" * 23)]),
    "length_without_content": Head([("content-length", "5")]),
    "connect_with_path": Head(method="CONNECT"),
    "protocol_not_allowed": Head(method="CONNECT", over=((":protocol", "websocket"),)),
    "protocol_of_get": Head(over=((":protocol", "websocket"),)),
    "trailers_go_on": (*BEGUN, headers(1, [("t", "1")])),
    "trailers_pseudo": (*BEGUN, headers(1, [(":path", "/")], end=True)),
    "trailers_connection": (*BEGUN, headers(1, [("connection", "x")], end=True)),
    "trailers_upper_case": (*BEGUN, headers(1, [("T", "x")], end=True)),
    "trailers_before_length": (
        Head([("content-length", "5")], method="POST", end=False),
        Reached(plain=True),
        headers(1, [("t", "1")], end=True),
    ),
}
FINE: dict[str, Step | tuple[Step, ...]] = {
    "host_alone": Head([("host", "x.test")], over=((":authority", None),)),
    "host_differs": Head([("host", "other.test")]),
    "te_trailers": Head([("te", "trailers")]),
    "te_trailers_upper": Head([("te", "Trailers")]),
    "http2_settings": Head([("http2-settings", "AAMAAABk")]),
    "options_star": Head(method="OPTIONS", path="*"),
    "path_fragment": Head(path="/a#b"),
    "method_unknown": Head(method="FOO"),
    "method_lower": Head(method="get"),
    "scheme_ftp": Head(over=((":scheme", "ftp"),)),
    "scheme_https": Head(over=((":scheme", "https"),)),
    "scheme_upper": Head(over=((":scheme", "HTTP"),)),
    "value_tab": Head([("a", "b\tc")]),
    "value_high": Head([("a", "b\xe9")]),
    "value_empty": Head([("a", "")]),
    "underscore": Head([("a_b", "c")]),
    "cookies": Head([("cookie", "a=1"), ("b", "2"), ("cookie", "c=3"), ("cookie", "d=4")]),
    "repeated": Head([("a", "1"), ("a", "2")]),
    "order": Head([("z", "1"), ("user-agent", "q"), ("accept", "*/*")]),
    "expect_other": Head([("expect", "other")]),
    "trailers_length": (Head(method="POST", end=False), data(1, b"x"), headers(1, [("content-length", "1")], end=True)),
    "length_exceeded": (
        Head([("content-length", "1")], method="POST", end=False),
        Reached(plain=True),
        data(1, b"xyz", end=True),
    ),
    "length_not_reached": (
        Head([("content-length", "5")], method="POST", end=False),
        Reached(plain=True),
        data(1, b"x", end=True),
    ),
    "padded": (
        Head(method="POST", end=False),
        frame(0, 0x9, 1, b"\x03abcxxx"),
    ),
    "padded_and_prioritised": frame(1, 0x2D, 1, b"\x02\0\0\0\0\x0f" + field_block([*PSEUDO.items()]) + b"\0\0"),
    "continued": headers(1, [*PSEUDO.items(), ("a", "b" * 300)], end=True, split_at=10),
    "fields_100": Head([(f"h{number}", "v") for number in range(96)]),
    "fields_101": Head([(f"h{number}", "v") for number in range(97)]),
    "fields_101_of_cookies": Head([("cookie", "v") for _ in range(97)]),
    "trailers_101": (
        *BEGUN,
        headers(1, [(f"h{number}", "v") for number in range(101)], end=True),
    ),
    "list_61440": headers(1, [*PSEUDO.items(), ("a", "v" * (61439 - PSEUDO_BYTES))], end=True),
    "list_61441": headers(1, [*PSEUDO.items(), ("a", "v" * (61440 - PSEUDO_BYTES))], end=True),
}
ANY = """
route_config:
  virtual_hosts: [{ name: any, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: a } }] }]
"""


def steps(given: Step | tuple[Step, ...]) -> tuple[Step, ...]:
    return given if isinstance(given, tuple) else (given,)


CUT = ("end:",)  # whether the upstream has already noticed
HTTP2 = Http2Topic(
    [
        *(
            Row(name, (Sync(), *steps(given), Ended()), listener="any", silent="PROTOCOL_ERROR", ignore=CUT)
            for name, given in BAD.items()
        ),
        *(one(f"stream_{name}", *steps(given), listener="any_stream", ignore=CUT) for name, given in BAD.items()),
        *(one(name, *steps(given), listener="any", ignore=CUT) for name, given in FINE.items()),
        *(
            one(
                name,
                given,
                listener="any_stream",
                differs=key,
                envoy=(envoy,),
                ours=(ours,),
            )
            for name, key, given, envoy, ours in (
                ("path_high", "path-octets", Head(path="/a\xff"), ":status: 200", "RST_STREAM PROTOCOL_ERROR"),
                ("value_spaces", "value-spaces", Head([("a", " b ")]), ":status: 200", "RST_STREAM PROTOCOL_ERROR"),
                (
                    "list_of_megabyte",
                    "endless-field-block",
                    Head([("a", "v" * 8000)] * 90),
                    "RST_STREAM INTERNAL_ERROR",
                    "connection: closed",
                ),
            )
        ),
        Row(
            "bad_beside_good",
            (Sync(), Head(end=False), Reached(plain=True), Head([("A", "b")], stream=3), Ended()),
            listener="any",
            silent="PROTOCOL_ERROR",
            ignore=CUT,
        ),
        Row(
            "bad_beside_good_stream",
            (
                Head(path="/", end=False),
                Sync(),
                Head([("A", "b")], stream=3),
                Over((3,)),
                data(1, b"x", end=True),
                Over(),
            ),
            listener="any_stream",
        ),
    ],
    listeners={
        "any": ANY,
        "any_stream": "http2_protocol_options: { override_stream_error_on_invalid_http_message: true }" + ANY,
    },
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
