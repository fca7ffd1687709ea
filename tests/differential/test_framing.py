"""Message framing, RFC 9112 §2–7 and §9: requests, bodies, connections, and responses from upstream."""

from tests.differential.cases import (
    AwaitUpstream,
    Case,
    Differs,
    Expect,
    Fire,
    HalfClose,
    Receive,
    ReceiveInterim,
    chunked,
    post,
    request,
)
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import CLOSE, OK, RESET, STALL, Answer, reply

HEAD = b"GET / HTTP/1.1\r\nhost: all.test\r\n"
POST = b"POST / HTTP/1.1\r\nhost: all.test\r\n"
HEAD_T = HEAD.replace(b"all.test", b"trailers.test")
CHUNKED_T = b"POST / HTTP/1.1\r\nhost: trailers.test\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


def raw(text: bytes, **answer: str) -> Answer:
    """An answer byte for byte."""
    return Answer((text,), then=answer.get("then", "keep"))


ENVOY_GET = Expect((200,), "kept", ("GET / HTTP/1.1",))
ENVOY_POST = Expect((200,), "kept", ("POST / HTTP/1.1",))


def refused(
    name: str, key: str, text: bytes, envoy: Expect = ENVOY_GET, listener: str = "main", partly: bool = False
) -> Case:
    """A request that RFC 9112 forbids and Envoy takes; ours is a 400 and a closed connection.

    `partly` says that the head was in order, so that it may have reached the upstream before the error came.
    """
    ours = Expect((400,), "closed", None if partly else ())
    return Case(name, text, listener=listener, differs=Differs(key, ours, envoy))


def bad_chunk(name: str, text: bytes) -> Case:
    """A chunked body that both refuse; whether its head went upstream before is a matter of timing."""
    return Case(name, CHUNKED + text, compare_upstream="nothing", log_bytes=False)


def refused_response(
    name: str, key: str, text: bytes, envoy: Expect = ENVOY_GET, then: str = "keep", probe: bool = True
) -> Case:
    """A response that RFC 9112 forbids and Envoy passes on; ours is a 502."""
    ours = Expect((502,), "kept", ("GET / HTTP/1.1",))
    return Case(
        f"response_{name}", HEAD + b"\r\n", (raw(text, then=then),), probe=probe, differs=Differs(key, ours, envoy)
    )


def response(
    name: str, text: bytes, then: str = "keep", req: bytes = HEAD + b"\r\n", differs: Differs | None = None
) -> Case:
    """A case about what the upstream sends."""
    return Case(f"response_{name}", req, (raw(text, then=then),), differs=differs)


START_LINES = [
    Case("plain_get", HEAD + b"\r\n"),
    Case("lower_case_method", b"get / HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("unknown_method", b"FROB / HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    *(
        Case(f"method_{method.lower()}", request(method, "/", host="all.test"))
        for method in (
            "PUT",
            "DELETE",
            "OPTIONS",
            "TRACE",
            "PATCH",
            "PROPFIND",
            "REPORT",
            "SEARCH",
            "PURGE",
            "MKCALENDAR",
        )
    ),
    Case("head", request("HEAD", "/", host="all.test")),
    Case("connect", b"CONNECT all.test:80 HTTP/1.1\r\nhost: all.test:80\r\n\r\n", probe=False),
    Case("leading_crlf", b"\r\n" + HEAD + b"\r\n"),
    Case("leading_crlfs", b"\r\n\r\n\r\n" + HEAD + b"\r\n"),
    Case("leading_space", b" " + HEAD + b"\r\n"),
    refused("two_spaces_after_method", "request-line-whitespace", b"GET  / HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    refused("two_spaces_before_version", "request-line-whitespace", b"GET /  HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    refused("tab_after_method", "request-line-whitespace", b"GET\t/ HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    refused("trailing_space_after_version", "request-line-whitespace", b"GET / HTTP/1.1 \r\nhost: all.test\r\n\r\n"),
    Case("space_in_target", b"GET /a b HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("no_target", b"GET HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case(
        "no_version",
        b"GET /\r\nhost: all.test\r\n\r\n",
        differs=Differs("http-version", Expect((400,), "closed"), Expect((426,), "closed")),
    ),
    Case(
        "version_0_9",
        b"GET / HTTP/0.9\r\nhost: all.test\r\n\r\n",
        differs=Differs("http-version", Expect((400,), "closed"), Expect((426,), "closed")),
    ),
    Case(
        "version_1_2",
        b"GET / HTTP/1.2\r\nhost: all.test\r\n\r\n",
        differs=Differs("http-version", Expect((400,), "closed"), Expect((426,), "closed")),
    ),
    Case(
        "version_2_0",
        b"GET / HTTP/2.0\r\nhost: all.test\r\n\r\n",
        differs=Differs("http-version", Expect((400,), "closed"), Expect((426,), "closed")),
    ),
    Case("version_lower_case", b"GET / http/1.1\r\nhost: all.test\r\n\r\n"),
    Case("version_garbage", b"GET / HTTQ/1.1\r\nhost: all.test\r\n\r\n"),
    Case("version_two_digits", b"GET / HTTP/1.10\r\nhost: all.test\r\n\r\n"),
    Case(
        "fragment_in_target",
        b"GET /a#b HTTP/1.1\r\nhost: all.test\r\n\r\n",
        differs=Differs(
            "refused-in-codec",
            Expect((400,), "closed", (), ("body: 'Bad Request'",)),
            Expect((400,), "closed", (), ("content-length: 0",)),
        ),
    ),
    Case(
        "fragment_after_query",
        b"GET /a?q=1#b HTTP/1.1\r\nhost: all.test\r\n\r\n",
        differs=Differs(
            "refused-in-codec",
            Expect((400,), "closed", (), ("body: 'Bad Request'",)),
            Expect((400,), "closed", (), ("content-length: 0",)),
        ),
    ),
    Case("target_not_origin_form", b"GET a HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("target_star_get", b"GET * HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("target_star_options", b"OPTIONS * HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case(
        "target_nul",
        b"GET /a\x00b HTTP/1.1\r\nhost: all.test\r\n\r\n",
        differs=Differs(
            "refused-in-codec",
            Expect((400,), "closed", contains=("details=http1.codec_error",)),
            Expect((400,), "closed", contains=("details=http1.invalid_characters",)),
        ),
    ),
    Case(
        "target_control",
        b"GET /a\x01b HTTP/1.1\r\nhost: all.test\r\n\r\n",
        differs=Differs(
            "refused-in-codec",
            Expect((400,), "closed", contains=("details=http1.codec_error",)),
            Expect((400,), "closed", contains=("details=http1.invalid_characters",)),
        ),
    ),
    Case(
        "target_delete",
        b"GET /a\x7fb HTTP/1.1\r\nhost: all.test\r\n\r\n",
        differs=Differs(
            "refused-in-codec",
            Expect((400,), "closed", contains=("details=http1.codec_error",)),
            Expect((400,), "closed", contains=("details=http1.invalid_characters",)),
        ),
    ),
    Case("target_high_bit", b"GET /a\xffb HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("target_utf8", "GET /ä HTTP/1.1\r\nhost: all.test\r\n\r\n".encode()),
    Case("target_odd_characters", b'GET /a<>"{}|\\^`[]?<>"{}|\\^`[] HTTP/1.1\r\nhost: all.test\r\n\r\n'),
    Case("target_double_slash", b"GET //a//b HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("target_bad_percent", b"GET /a%zz HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("absolute_form", b"GET http://all.test/a?b HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("absolute_form_other_host", b"GET http://all.test/a HTTP/1.1\r\nhost: other.test\r\n\r\n"),
    Case(
        "absolute_form_no_host",
        b"GET http://all.test/a HTTP/1.1\r\n\r\n",
        differs=Differs(
            "no-host-absolute-form", Expect((400,), "closed"), Expect((200,), "kept", ("GET /a HTTP/1.1",))
        ),
    ),
    Case("absolute_form_no_path", b"GET http://all.test HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case(
        "absolute_form_query_no_path",
        b"GET http://all.test?q HTTP/1.1\r\nhost: all.test\r\n\r\n",
        differs=Differs(
            "absolute-form-empty-path", Expect((200,), "kept", ("GET /?q HTTP/1.1",)), Expect((404,), "kept")
        ),
    ),
    Case("absolute_form_port", b"GET http://all.test:80/a HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("absolute_form_https", b"GET https://all.test/a HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case(
        "absolute_form_userinfo",
        b"GET http://u:p@all.test/a HTTP/1.1\r\nhost: all.test\r\n\r\n",
        differs=Differs("userinfo", Expect((400,), "closed"), Expect((200,), "kept", ("GET /a HTTP/1.1",))),
    ),
    Case("absolute_form_upper_scheme", b"GET HTTP://all.test/a HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("absolute_form_ftp", b"GET ftp://all.test/a HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("absolute_form_empty_host", b"GET http:///a HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("absolute_form_options_no_path", b"OPTIONS http://all.test HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    Case("http2_preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", listener="http1"),
]

HOSTS = [
    Case(
        "no_host",
        b"GET / HTTP/1.1\r\n\r\n",
        differs=Differs(
            "refused-in-codec",
            Expect((400,), "closed", (), ("body: 'Bad Request'",)),
            Expect((400,), "closed", (), ("content-length: 0",)),
        ),
    ),
    refused(
        "two_hosts",
        "two-hosts",
        b"GET / HTTP/1.1\r\nhost: all.test\r\nhost: other.test\r\n\r\n",
        Expect((404,), "kept"),
    ),
    refused(
        "two_same_hosts",
        "two-hosts",
        b"GET / HTTP/1.1\r\nhost: all.test\r\nhost: all.test\r\n\r\n",
        Expect((404,), "kept"),
    ),
    Case("empty_host", b"GET / HTTP/1.1\r\nhost:\r\n\r\n"),
    Case("host_with_space", b"GET / HTTP/1.1\r\nhost: a b\r\n\r\n"),
    Case("host_with_slash", b"GET / HTTP/1.1\r\nhost: a/b\r\n\r\n"),
    Case(
        "host_with_userinfo",
        b"GET / HTTP/1.1\r\nhost: u@all.test\r\n\r\n",
        differs=Differs("userinfo", Expect((400,), "closed"), Expect((404,), "kept")),
    ),
    Case("host_with_bad_port", b"GET / HTTP/1.1\r\nhost: all.test:port\r\n\r\n"),
    Case("host_with_comma", b"GET / HTTP/1.1\r\nhost: all.test, other.test\r\n\r\n"),
    Case("host_upper_case", b"GET / HTTP/1.1\r\nHOST: ALL.Test\r\n\r\n"),
    Case("host_ipv6", b"GET / HTTP/1.1\r\nhost: [::1]:80\r\n\r\n"),
    Case("host_high_bit", b"GET / HTTP/1.1\r\nhost: \xe4.test\r\n\r\n"),
]

HEADERS = [
    Case("header_name_upper_case", HEAD + b"X-MiXed: Value\r\n\r\n"),
    Case("header_value_surrounding_space", HEAD + b"x-a: \t a b \t \r\n\r\n"),
    Case("header_empty_value", HEAD + b"x-a:\r\n\r\n"),
    Case("header_no_space", HEAD + b"x-a:b\r\n\r\n"),
    Case("header_repeated", HEAD + b"x-a: 1\r\nx-b: 2\r\nx-a: 3\r\n\r\n"),
    Case("header_high_bit_value", HEAD + b"x-a: \xe4\xff\r\n\r\n"),
    Case("header_tab_in_value", HEAD + b"x-a: b\tc\r\n\r\n"),
    Case("header_underscore", HEAD + b"x_a: b\r\n\r\n"),
    Case("header_name_token_characters", HEAD + b"x!#$%&'*+-.^_`|~9: b\r\n\r\n"),
    Case("header_empty_name", HEAD + b": b\r\n\r\n"),
    Case("header_no_colon", HEAD + b"x-a\r\n\r\n"),
    Case("header_space_before_colon", HEAD + b"x-a : b\r\n\r\n"),
    Case("header_tab_before_colon", HEAD + b"x-a\t: b\r\n\r\n"),
    Case("header_space_in_name", HEAD + b"x a: b\r\n\r\n"),
    Case("header_high_bit_name", HEAD + b"x\xe4: b\r\n\r\n"),
    Case("header_control_in_name", HEAD + b"x\x01a: b\r\n\r\n"),
    Case("header_paren_in_name", HEAD + b"x(a): b\r\n\r\n"),
    Case("header_nul_in_value", HEAD + b"x-a: b\x00c\r\n\r\n"),
    Case("header_control_in_value", HEAD + b"x-a: b\x01c\r\n\r\n"),
    Case("header_delete_in_value", HEAD + b"x-a: b\x7fc\r\n\r\n"),
    Case("header_escape_in_value", HEAD + b"x-a: b\x1bc\r\n\r\n"),
    refused("header_bare_cr_in_value", "bare-cr", HEAD + b"x-a: b\rc\r\n\r\n"),
    refused("header_bare_cr_at_end", "bare-cr", HEAD + b"x-a: b\r\r\n\r\n"),
    refused("header_bare_lf_end", "bare-lf", HEAD + b"x-a: b\nx-c: d\r\n\r\n"),
    refused("header_bare_lf_everywhere", "bare-lf", b"GET / HTTP/1.1\nhost: all.test\n\n"),
    refused("start_line_bare_lf", "bare-lf", b"GET / HTTP/1.1\nhost: all.test\r\n\r\n"),
    Case("start_line_bare_cr", b"GET / HTTP/1.1\rhost: all.test\r\n\r\n"),
    refused("header_end_bare_lf", "bare-lf", HEAD + b"x-a: b\r\n\n"),
    refused("header_obs_fold_space", "obs-fold", HEAD + b"x-a: b\r\n c\r\n\r\n"),
    refused("header_obs_fold_tab", "obs-fold", HEAD + b"x-a: b\r\n\tc\r\n\r\n"),
    Case("header_obs_fold_first", b"GET / HTTP/1.1\r\n x: y\r\nhost: all.test\r\n\r\n"),
    refused(
        "header_obs_fold_in_transfer_encoding",
        "obs-fold",
        POST + b"transfer-encoding:\r\n chunked\r\n\r\n" + chunked(b"hi"),
        ENVOY_POST,
    ),
    refused("header_obs_fold_in_content_length", "obs-fold", POST + b"content-length:\r\n 2\r\n\r\nhi", ENVOY_POST),
    Case("headers_100", HEAD + b"".join(b"x-%d: v\r\n" % i for i in range(90)) + b"\r\n"),
    Case("headers_over_100", HEAD + b"".join(b"x-%d: v\r\n" % i for i in range(101)) + b"\r\n"),
    Case("headers_50_kib", HEAD + b"x-a: " + b"v" * 50000 + b"\r\n\r\n"),
    Case("headers_over_60_kib", HEAD + b"x-a: " + b"v" * 62000 + b"\r\n\r\n"),
    Case("headers_many_over_60_kib", HEAD + b"".join(b"x-%d: %s\r\n" % (i, b"v" * 1000) for i in range(70)) + b"\r\n"),
    Case("target_over_60_kib", b"GET /" + b"a" * 62000 + b" HTTP/1.1\r\nhost: all.test\r\n\r\n"),
    Case("headers_over_small_limit", HEAD + b"x-a: " + b"v" * 1100 + b"\r\n\r\n", listener="small"),
    Case("headers_within_small_limit", HEAD + b"x-a: " + b"v" * 700 + b"\r\n\r\n", listener="small"),
    Case(
        "headers_over_small_count", HEAD + b"".join(b"x-%d: v\r\n" % i for i in range(12)) + b"\r\n", listener="small"
    ),
    Case(
        "headers_within_small_count", HEAD + b"".join(b"x-%d: v\r\n" % i for i in range(5)) + b"\r\n", listener="small"
    ),
    Case("underscore_rejected", HEAD + b"x_a: b\r\n\r\n", listener="underscore_reject"),
    Case("underscore_dropped", HEAD + b"x_a: b\r\nx-b: c\r\n\r\n", listener="underscore_drop"),
]

LENGTHS = [
    Case("length_exact", post("/", b"hello", host="all.test")),
    Case("length_zero", post("/", b"", host="all.test")),
    Case("length_none_on_post", POST + b"\r\n"),
    Case("length_on_get", HEAD + b"content-length: 2\r\n\r\nhi"),
    Case("length_on_head", b"HEAD / HTTP/1.1\r\nhost: all.test\r\ncontent-length: 2\r\n\r\nhi"),
    Case("length_leading_zeros", POST + b"content-length: 0005\r\n\r\nhello"),
    Case("length_plus", POST + b"content-length: +5\r\n\r\nhello"),
    Case("length_minus", POST + b"content-length: -5\r\n\r\nhello"),
    Case("length_hex", POST + b"content-length: 0x5\r\n\r\nhello"),
    Case("length_empty", POST + b"content-length:\r\n\r\n"),
    Case("length_letters", POST + b"content-length: five\r\n\r\nhello"),
    Case("length_space_inside", POST + b"content-length: 1 0\r\n\r\nhello"),
    Case("length_trailing_space", POST + b"content-length: 5 \r\n\r\nhello"),
    Case("length_overflow", POST + b"content-length: 99999999999999999999999\r\n\r\nhello"),
    Case("length_list_same", POST + b"content-length: 5, 5\r\n\r\nhello"),
    Case("length_list_differing", POST + b"content-length: 5, 6\r\n\r\nhello"),
    Case("length_repeated_same", POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello"),
    Case("length_repeated_differing", POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
    Case("length_surplus_is_next_request", POST + b"content-length: 5\r\n\r\nhello" + HEAD + b"\r\n", responses=2),
    Case("length_cut_short", (POST + b"content-length: 10\r\n\r\nhello", AwaitUpstream(), HalfClose(), Receive())),
]

TRANSFER_CODINGS = [
    Case("chunked_plain", CHUNKED + chunked(b"hello", b" world")),
    Case("chunked_upper_case", POST + b"Transfer-Encoding: CHUNKED\r\n\r\n" + chunked(b"hello")),
    Case("chunked_empty", CHUNKED + chunked()),
    Case("chunked_on_get", HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"hello")),
    Case("chunked_with_length", POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"hello")),
    Case(
        "chunked_before_length", POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n" + chunked(b"hello")
    ),
    Case(
        "chunked_with_length_zero",
        POST + b"content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"hello"),
    ),
    Case(
        "chunked_twice",
        POST + b"transfer-encoding: chunked, chunked\r\n\r\n" + chunked(b"hello"),
        differs=Differs("transfer-coding-status", Expect((400,), "closed"), Expect((501,), "closed")),
    ),
    Case(
        "chunked_twice_in_lines",
        POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"a"),
        differs=Differs("transfer-coding-status", Expect((400,), "closed"), Expect((501,), "closed")),
    ),
    Case("coding_gzip_chunked", POST + b"transfer-encoding: gzip, chunked\r\n\r\n" + chunked(b"hello")),
    Case(
        "coding_chunked_gzip",
        POST + b"transfer-encoding: chunked, gzip\r\n\r\n" + chunked(b"hello"),
        differs=Differs("transfer-coding-status", Expect((400,), "closed"), Expect((501,), "closed")),
    ),
    Case("coding_gzip", POST + b"transfer-encoding: gzip\r\n\r\n" + chunked(b"hello")),
    Case("coding_identity", POST + b"transfer-encoding: identity\r\n\r\n"),
    Case(
        "coding_identity_with_length",
        POST + b"transfer-encoding: identity\r\ncontent-length: 2\r\n\r\nhi",
        differs=Differs("transfer-coding-status", Expect((501,), "closed"), Expect((400,), "closed")),
    ),
    Case("coding_unknown", POST + b"transfer-encoding: frob\r\n\r\n"),
    Case(
        "coding_empty",
        POST + b"transfer-encoding:\r\n\r\n" + chunked(b"hello"),
        differs=Differs("transfer-coding-status", Expect((400,), "closed"), Expect((501,), "closed")),
    ),
    Case("coding_xchunked", POST + b"transfer-encoding: xchunked\r\n\r\n" + chunked(b"hello")),
    Case("coding_chunked_parameter", POST + b"transfer-encoding: chunked;q=1\r\n\r\n" + chunked(b"hello")),
    Case("coding_quoted", POST + b'transfer-encoding: "chunked"\r\n\r\n' + chunked(b"hello")),
    Case("coding_vertical_tab", POST + b"transfer-encoding: \x0bchunked\r\n\r\n" + chunked(b"hello")),
    Case("coding_space_before_colon", POST + b"transfer-encoding : chunked\r\n\r\n" + chunked(b"hello")),
    Case(
        "coding_trailing_comma",
        POST + b"transfer-encoding: chunked,\r\n\r\n" + chunked(b"hello"),
        differs=Differs("transfer-coding-status", Expect((400,), "closed"), Expect((501,), "closed")),
    ),
    Case(
        "chunked_on_http_1_0",
        b"POST / HTTP/1.0\r\nhost: all.test\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"a"),
        listener="http_1_0",
        differs=Differs(
            "chunked-on-http-1-0", Expect((400,), "closed"), Expect((200,), "closed", ("POST / HTTP/1.1",))
        ),
    ),
]

CHUNKS = [
    Case("chunk_size_upper_hex", CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n"),
    Case("chunk_size_leading_zeros", CHUNKED + b"0005\r\nhello\r\n000\r\n\r\n"),
    Case("chunk_extension", CHUNKED + b"5;a=b\r\nhello\r\n0;c\r\n\r\n"),
    Case("chunk_extension_quoted", CHUNKED + b'5;a="b c"\r\nhello\r\n0\r\n\r\n'),
    Case("chunk_extension_space", CHUNKED + b"5 ;a=b\r\nhello\r\n0\r\n\r\n"),
    bad_chunk("chunk_extension_bare_lf", b"5;a\nhello\r\n0\r\n\r\n"),
    Case(
        "chunk_size_trailing_space",
        CHUNKED + b"5 \r\nhello\r\n0\r\n\r\n",
        differs=Differs("chunk-size-space", Expect((400,), "closed", None), ENVOY_POST),
    ),
    bad_chunk("chunk_size_leading_space", b" 5\r\nhello\r\n0\r\n\r\n"),
    bad_chunk("chunk_size_empty", b"\r\nhello\r\n0\r\n\r\n"),
    bad_chunk("chunk_size_letters", b"xyz\r\nhello\r\n0\r\n\r\n"),
    bad_chunk("chunk_size_minus", b"-5\r\nhello\r\n0\r\n\r\n"),
    bad_chunk("chunk_size_plus", b"+5\r\nhello\r\n0\r\n\r\n"),
    bad_chunk("chunk_size_0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
    bad_chunk("chunk_size_overflow", b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    bad_chunk("chunk_size_underscore", b"1_0\r\nhello\r\n0\r\n\r\n"),
    bad_chunk("chunk_size_bare_lf", b"5\nhello\r\n0\r\n\r\n"),
    bad_chunk("chunk_size_bare_cr", b"5\rhello\r\n0\r\n\r\n"),
    refused(
        "chunk_data_too_long", "chunk-data-length", CHUNKED + b"5\r\nhello!!\r\n0\r\n\r\n", ENVOY_POST, partly=True
    ),
    refused("chunk_data_end_bare_lf", "bare-lf", CHUNKED + b"5\r\nhello\n0\r\n\r\n", ENVOY_POST, partly=True),
    bad_chunk("chunk_data_end_missing", b"5\r\nhello0\r\n\r\n"),
    bad_chunk("chunk_last_bare_lf", b"5\r\nhello\r\n0\n\n"),
    Case("chunk_cut_short", (CHUNKED + b"5\r\nhel", AwaitUpstream(), HalfClose(), Receive()), log_bytes=False),
    Case("chunked_next_request", CHUNKED + chunked(b"hello") + HEAD + b"\r\n", responses=2),
    Case("trailers_dropped", CHUNKED + chunked(b"hello", trailers=[("x-t", "1")])),
    Case("trailers_passed", CHUNKED_T + chunked(b"hello", trailers=[("x-t", "1"), ("x-u", "2")]), listener="trailers"),
    Case("trailers_to_cluster_without", CHUNKED + chunked(b"hello", trailers=[("x-t", "1")]), listener="trailers"),
    bad_chunk("trailers_bad_name", b"5\r\nhello\r\n0\r\nx t: 1\r\n\r\n"),
    Case(
        "trailers_bad_name_enabled",
        CHUNKED_T + b"5\r\nhello\r\n0\r\nx t: 1\r\n\r\n",
        listener="trailers",
        compare_upstream="nothing",
        log_bytes=False,
    ),
    Case(
        "trailers_no_colon",
        CHUNKED_T + b"5\r\nhello\r\n0\r\nxt\r\n\r\n",
        listener="trailers",
        compare_upstream="nothing",
        log_bytes=False,
    ),
    refused(
        "trailers_obs_fold",
        "obs-fold",
        CHUNKED_T + b"5\r\nhello\r\n0\r\nx-t: 1\r\n 2\r\n\r\n",
        ENVOY_POST,
        listener="trailers",
        partly=True,
    ),
    Case(
        "trailers_content_length",
        CHUNKED_T + chunked(b"hello", trailers=[("content-length", "9")]),
        listener="trailers",
        differs=Differs(
            "trailer-fields", ENVOY_POST, Expect((200,), "kept", ("POST / HTTP/1.1",), ("trailer content-length: 9",))
        ),
    ),
    Case(
        "trailers_transfer_encoding",
        CHUNKED_T + chunked(b"hello", trailers=[("transfer-encoding", "gzip")]),
        listener="trailers",
        differs=Differs(
            "trailer-fields",
            ENVOY_POST,
            Expect((200,), "kept", ("POST / HTTP/1.1",), ("trailer transfer-encoding: gzip",)),
        ),
    ),
    Case(
        "trailers_host",
        CHUNKED_T + chunked(b"hello", trailers=[("host", "evil.test")]),
        listener="trailers",
        differs=Differs(
            "trailer-fields", ENVOY_POST, Expect((200,), "kept", ("POST / HTTP/1.1",), ("trailer host: evil.test",))
        ),
    ),
    Case(
        "response_trailers_dropped",
        HEAD + b"\r\n",
        (raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"hi", trailers=[("x-t", "1")])),),
    ),
    Case(
        "response_trailers_passed",
        HEAD_T + b"\r\n",
        (raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"hi", trailers=[("x-t", "1")])),),
        listener="trailers",
    ),
]

CONNECTIONS = [
    Case("pipelined", (HEAD + b"x-n: 1\r\n\r\n" + HEAD + b"x-n: 2\r\n\r\n" + HEAD + b"x-n: 3\r\n\r\n", Receive(3))),
    Case(
        "pipelined_with_bodies",
        (POST + b"content-length: 2\r\n\r\nhi" + CHUNKED + chunked(b"a", b"b") + HEAD + b"\r\n", Receive(3)),
        (reply(200, b"one"), reply(201, b"two"), reply(202, b"three")),
    ),
    Case(
        "pipelined_close_in_middle", (HEAD + b"\r\n" + HEAD + b"connection: close\r\n\r\n" + HEAD + b"\r\n", Receive(2))
    ),
    Case("pipelined_bad_second", (HEAD + b"\r\n" + HEAD + b"x a: b\r\n\r\n", Receive(2))),
    Case(
        "pipelined_head_get",
        request("HEAD", "/", host="all.test") + HEAD + b"\r\n",
        methods=(b"HEAD", b"GET"),
        responses=2,
    ),
    Case("connection_close", HEAD + b"connection: close\r\n\r\n"),
    Case("connection_close_upper", HEAD + b"Connection: CLOSE\r\n\r\n"),
    Case("connection_close_in_list", HEAD + b"connection: x-a, close\r\nx-a: 1\r\n\r\n"),
    Case("connection_keep_alive", HEAD + b"connection: keep-alive\r\n\r\n"),
    Case("connection_keep_alive_and_close", HEAD + b"connection: keep-alive, close\r\n\r\n"),
    Case("proxy_connection_close", HEAD + b"proxy-connection: close\r\n\r\n"),
    Case("proxy_connection_keep_alive", HEAD + b"proxy-connection: keep-alive\r\n\r\n"),
    Case("two_requests_in_turn", (HEAD + b"\r\n", Receive(), HEAD + b"\r\n", Receive())),
    Case(
        "slow_bytes",
        (b"GE", b"T / HT", b"TP/1.1\r", b"\nho", b"st: all.test\r\n\r", b"\n", Receive()),
    ),
    Case("half_close_after_request", (HEAD + b"\r\n", AwaitUpstream(), HalfClose(), Receive()), (STALL,)),
    Case("half_close_before_request", (HalfClose(), Receive())),
    Case(
        "half_close_mid_head",
        (HEAD, HalfClose(), Receive()),
        differs=Differs(
            "head-cut-short",
            Expect((), "closed", None),
            Expect((), "closed", None, ("details=downstream_remote_disconnect",)),
        ),
    ),
    Case("http_1_0_refused", b"GET / HTTP/1.0\r\nhost: all.test\r\n\r\n"),
    Case("http_1_0_accepted", b"GET / HTTP/1.0\r\nhost: all.test\r\n\r\n", listener="http_1_0"),
    Case("http_1_0_no_host", b"GET / HTTP/1.0\r\n\r\n", listener="http_1_0"),
    Case(
        "http_1_0_keep_alive",
        b"GET / HTTP/1.0\r\nhost: all.test\r\nconnection: keep-alive\r\n\r\n",
        listener="http_1_0",
    ),
    Case("http_1_0_body", b"POST / HTTP/1.0\r\nhost: all.test\r\ncontent-length: 2\r\n\r\nhi", listener="http_1_0"),
    Case(
        "http_1_0_chunked_response",
        b"GET / HTTP/1.0\r\nhost: all.test\r\n\r\n",
        (raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"hi", b"ho")),),
        listener="http_1_0",
    ),
    Case(
        "http_1_0_keep_alive_chunked_response",
        b"GET / HTTP/1.0\r\nhost: all.test\r\nconnection: keep-alive\r\n\r\n",
        (raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"hi", b"ho")),),
        listener="http_1_0",
    ),
    Case(
        "max_requests_per_connection", (HEAD + b"\r\n", Receive(), HEAD + b"\r\n", Receive()), listener="two_requests"
    ),
    Case("upgrade_unknown", HEAD + b"connection: upgrade\r\nupgrade: frob\r\n\r\n"),
    Case("upgrade_websocket_not_configured", HEAD + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"),
    Case(
        "upgrade_h2c",
        HEAD
        + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
    ),
    Case("upgrade_h2c_with_body", POST + b"connection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\nhi"),
    Case("upgrade_without_connection", HEAD + b"upgrade: websocket\r\n\r\n"),
    Case("expect_100", POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\nhi"),
    Case(
        "expect_100_waiting",
        (POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n", ReceiveInterim(), b"hi", Receive()),
    ),
    Case("expect_100_upper", POST + b"Expect: 100-Continue\r\ncontent-length: 2\r\n\r\nhi"),
    Case("expect_unknown", POST + b"expect: frob\r\ncontent-length: 2\r\n\r\nhi"),
    Case(
        "expect_100_upstream_says_100",
        (POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n", ReceiveInterim(), b"hi", Receive()),
        (Answer(OK.pieces, interim=b"HTTP/1.1 100 Continue\r\n\r\n"),),
    ),
    Case(
        "expect_100_proxied",
        (POST + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\n", ReceiveInterim(), b"hi", Receive()),
        (Answer(OK.pieces, interim=b"HTTP/1.1 100 Continue\r\n\r\n"),),
        listener="proxy_100",
    ),
    Case(
        "expect_100_no_route",
        POST.replace(b"all.test", b"none.test") + b"expect: 100-continue\r\ncontent-length: 2\r\n\r\nhi",
    ),
    Case(
        "early_response",
        (POST + b"content-length: 10\r\n\r\nhello", Receive()),
        (reply(413, b"no", early=True, then="stall"),),
        probe=False,
        log=False,
    ),
    Case(
        "early_response_then_rest",
        (POST + b"content-length: 10\r\n\r\nhello", Receive(), b"world"),
        (reply(200, b"no", early=True),),
        log=False,
        compare_upstream="nothing",
    ),
]

OK_HEAD = b"HTTP/1.1 200 OK\r\n"
RESPONSES = [
    response("length", OK_HEAD + b"content-length: 2\r\n\r\nhi"),
    response("chunked", OK_HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(b"hi", b"ho")),
    response("chunked_upper", OK_HEAD + b"Transfer-Encoding: Chunked\r\n\r\n" + chunked(b"hi", b"ho")),
    response("until_close", OK_HEAD + b"\r\nhello", "close"),
    response("until_close_empty", OK_HEAD + b"\r\n", "close"),
    response("http_1_0_until_close", b"HTTP/1.0 200 OK\r\n\r\nhello", "close"),
    response("http_1_0_length", b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nhi", "close"),
    response("http_1_0_keep_alive", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nhi"),
    response("connection_close", OK_HEAD + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", "close"),
    response("length_zero", OK_HEAD + b"content-length: 0\r\n\r\n"),
    response("204", b"HTTP/1.1 204 No Content\r\n\r\n"),
    response("204_with_length", b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n"),
    response("204_with_length_5", b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n"),
    response("204_with_chunked", b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", "close"),
    response("304", b'HTTP/1.1 304 Not Modified\r\netag: "x"\r\n\r\n'),
    response("304_with_length", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
    response("205", b"HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n"),
    response("head_with_length", OK_HEAD + b"content-length: 5\r\n\r\n", req=request("HEAD", "/", host="all.test")),
    response(
        "head_chunked", OK_HEAD + b"transfer-encoding: chunked\r\n\r\n", req=request("HEAD", "/", host="all.test")
    ),
    response("head_without_length", OK_HEAD + b"\r\n", req=request("HEAD", "/", host="all.test")),
    response("custom_reason", b"HTTP/1.1 200 Fine By Me\r\ncontent-length: 2\r\n\r\nhi"),
    response("no_reason", b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nhi"),
    response("no_reason_no_space", b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nhi"),
    response("unknown_status", b"HTTP/1.1 299 Odd\r\ncontent-length: 2\r\n\r\nhi"),
    response("status_600", b"HTTP/1.1 600 Odd\r\ncontent-length: 2\r\n\r\nhi"),
    response("status_099", b"HTTP/1.1 099 Odd\r\ncontent-length: 2\r\n\r\nhi"),
    refused_response(
        "status_four_digits",
        "status-digits",
        b"HTTP/1.1 2000 Odd\r\ncontent-length: 2\r\n\r\nhi",
        Expect((2000,), "kept", ("GET / HTTP/1.1",)),
    ),
    response("status_two_digits", b"HTTP/1.1 20 Odd\r\ncontent-length: 2\r\n\r\nhi"),
    response("status_letters", b"HTTP/1.1 abc Odd\r\ncontent-length: 2\r\n\r\nhi"),
    response("interim_100", b"HTTP/1.1 100 Continue\r\n\r\n" + OK_HEAD + b"content-length: 2\r\n\r\nhi"),
    response("interim_102", b"HTTP/1.1 102 Processing\r\n\r\n" + OK_HEAD + b"content-length: 2\r\n\r\nhi"),
    response(
        "interim_103", b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK_HEAD + b"content-length: 2\r\n\r\nhi"
    ),
    refused_response(
        "switching_unasked",
        "unasked-101",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: frob\r\nconnection: upgrade\r\n\r\n",
        Expect((101,), "kept", ("GET / HTTP/1.1",)),
        "close",
        probe=False,
    ),
    response(
        "version_2_0",
        b"HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        differs=Differs("http-version", Expect((502,), "kept", ("GET / HTTP/1.1",)), ENVOY_GET),
    ),
    response(
        "version_1_2",
        b"HTTP/1.2 200 OK\r\ncontent-length: 2\r\n\r\nhi",
        differs=Differs("http-version", Expect((502,), "kept", ("GET / HTTP/1.1",)), ENVOY_GET),
    ),
    response("garbage", b"\x00\x01\x02garbage\r\n\r\n", "stall"),
    response("not_http", b"SSH-2.0-OpenSSH_9.0\r\n", "stall"),
    response("empty_close", b"", "close", POST + b"content-length: 2\r\n\r\nhi"),
    response("empty_reset", b"", "reset", POST + b"content-length: 2\r\n\r\nhi"),
    response("head_cut_close", OK_HEAD + b"x-a: ", "close"),
    response(
        "head_cut_reset",
        OK_HEAD + b"x-a: ",
        "reset",
        differs=Differs("upstream-reset", Expect((503,), "kept", None), Expect((502,), "kept", None)),
    ),
    response(
        "length_and_chunked", OK_HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"hi")
    ),
    response("length_repeated_same", OK_HEAD + b"content-length: 2\r\ncontent-length: 2\r\n\r\nhi"),
    response("length_repeated_differing", OK_HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\nhi"),
    response("length_list", OK_HEAD + b"content-length: 2, 2\r\n\r\nhi"),
    response("length_minus", OK_HEAD + b"content-length: -2\r\n\r\nhi"),
    response("length_letters", OK_HEAD + b"content-length: two\r\n\r\nhi"),
    response("length_overflow", OK_HEAD + b"content-length: 99999999999999999999999\r\n\r\nhi"),
    response("coding_gzip", OK_HEAD + b"transfer-encoding: gzip\r\n\r\nhi", "close"),
    response("coding_gzip_chunked", OK_HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n" + chunked(b"hi")),
    response("coding_identity", OK_HEAD + b"transfer-encoding: identity\r\ncontent-length: 2\r\n\r\nhi"),
    response("chunked_twice", OK_HEAD + b"transfer-encoding: chunked, chunked\r\n\r\n" + chunked(b"hi")),
    refused_response("obs_fold", "obs-fold", OK_HEAD + b"x-a: b\r\n c\r\ncontent-length: 2\r\n\r\nhi"),
    refused_response("bare_cr", "bare-cr", OK_HEAD + b"x-a: b\rc\r\ncontent-length: 2\r\n\r\nhi"),
    refused_response("bare_lf", "bare-lf", b"HTTP/1.1 200 OK\ncontent-length: 2\n\nhi"),
    response("nul", OK_HEAD + b"x-a: b\x00c\r\ncontent-length: 2\r\n\r\nhi"),
    response("control", OK_HEAD + b"x-a: b\x01c\r\ncontent-length: 2\r\n\r\nhi"),
    response("space_before_colon", OK_HEAD + b"x-a : b\r\ncontent-length: 2\r\n\r\nhi"),
    response("bad_name", OK_HEAD + b"x a: b\r\ncontent-length: 2\r\n\r\nhi"),
    response("high_bit", OK_HEAD + b"x-a: \xe4\r\ncontent-length: 2\r\n\r\nhi"),
    response("repeated_headers", OK_HEAD + b"set-cookie: a\r\nx-b: 1\r\nset-cookie: b\r\ncontent-length: 2\r\n\r\nhi"),
    response(
        "headers_over_100", OK_HEAD + b"".join(b"x-%d: v\r\n" % i for i in range(101)) + b"content-length: 2\r\n\r\nhi"
    ),
    response("headers_over_60_kib", OK_HEAD + b"x-a: " + b"v" * 62000 + b"\r\ncontent-length: 2\r\n\r\nhi"),
    Case(
        "response_surplus_bytes",
        (HEAD + b"\r\n", Receive(), HEAD + b"\r\n", Receive()),
        (raw(OK_HEAD + b"content-length: 2\r\n\r\nhi" + b"surplus"), OK),
        connections=True,
    ),
    Case(
        "response_surplus_response",
        (HEAD + b"\r\n", Receive(), HEAD + b"\r\n", Receive()),
        (raw(OK_HEAD + b"content-length: 2\r\n\r\nhi" + OK_HEAD + b"content-length: 2\r\n\r\nho"), OK),
        connections=True,
    ),
    response(
        "hop_by_hop", OK_HEAD + b"keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\ncontent-length: 2\r\n\r\nhi"
    ),
    response(
        "connection_names_header",
        OK_HEAD + b"connection: x-a\r\nx-a: 1\r\ncontent-length: 2\r\n\r\nhi",
        differs=Differs(
            "response-connection-header", ENVOY_GET, Expect((200,), "kept", ("GET / HTTP/1.1",), ("x-a: 1",))
        ),
    ),
    response("upgrade_header", OK_HEAD + b"upgrade: h2c\r\ncontent-length: 2\r\n\r\nhi"),
    response("leading_crlf", b"\r\n" + OK_HEAD + b"content-length: 2\r\n\r\nhi"),
    Case("response_cut_in_length", HEAD + b"\r\n", (raw(OK_HEAD + b"content-length: 10\r\n\r\nhello", then="close"),)),
    Case(
        "response_reset_in_length",
        HEAD + b"\r\n",
        (raw(OK_HEAD + b"content-length: 10\r\n\r\nhello", then="reset"),),
        log_bytes=False,
        ignore=("body:", "end:"),
        differs=Differs(
            "upstream-reset",
            Expect((200,), "closed", None, ("flags=UC",)),
            Expect((200,), "closed", None, ("flags=UPE",)),
        ),
    ),
    Case(
        "response_cut_in_chunk",
        HEAD + b"\r\n",
        (raw(OK_HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhel", then="close"),),
    ),
    Case(
        "response_cut_between_chunks",
        HEAD + b"\r\n",
        (raw(OK_HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", then="close"),),
    ),
    Case(
        "response_bad_chunk_size",
        HEAD + b"\r\n",
        (raw(OK_HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n", then="stall"),),
        log_bytes=False,
    ),
    Case(
        "response_bad_second_chunk",
        HEAD + b"\r\n",
        (Answer((OK_HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",), then="stall"),),
        ignore=("body:",),
        log_bytes=False,
    ),
    Case(
        "response_in_pieces",
        HEAD + b"\r\n",
        (Answer((b"HTTP/1.1 2", b"00 OK\r\ncontent-le", b"ngth: 4\r\n\r", b"\nho", b"ho")),),
    ),
    Case(
        "response_waits_for_event",
        (HEAD + b"\r\n", AwaitUpstream(), Fire("go"), Receive()),
        (Answer(OK.pieces, wait_for="go"),),
    ),
    Case(
        "response_body_then_close_twice",
        (HEAD + b"\r\n", Receive(), HEAD + b"\r\n", Receive()),
        (raw(OK_HEAD + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", then="close"),),
    ),
    Case("response_closed_before_answer", post("/", host="all.test"), (CLOSE,)),
    Case("response_reset_before_answer", post("/", host="all.test"), (RESET,)),
]

TRAILERS_CLUSTER = """
hosts: [a]
typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: { http_protocol_options: { enable_trailers: true } }
"""

TOPIC = Topic(
    [*START_LINES, *HOSTS, *HEADERS, *LENGTHS, *TRANSFER_CODINGS, *CHUNKS, *CONNECTIONS, *RESPONSES],
    clusters={"t": TRAILERS_CLUSTER},
    listeners={
        "main": "",
        "http1": "codec_type: HTTP1",
        "small": "common_http_protocol_options: { max_headers_count: 10 }\nmax_request_headers_kb: 1",
        "http_1_0": "http_protocol_options: { accept_http_10: true, default_host_for_http_10: all.test }",
        "trailers": """
http_protocol_options: { enable_trailers: true }
route_config:
  virtual_hosts:
  - { name: trailers, domains: [trailers.test], routes: [{ match: { prefix: / }, route: { cluster: t } }] }
""",
        "two_requests": "common_http_protocol_options: { max_requests_per_connection: 2 }",
        "proxy_100": "proxy_100_continue: true",
        "underscore_reject": "common_http_protocol_options: { headers_with_underscores_action: REJECT_REQUEST }",
        "underscore_drop": "common_http_protocol_options: { headers_with_underscores_action: DROP_HEADER }",
    },
    vhosts="[{ name: all, domains: [all.test, 'all.test:80', '[::1]:80'], routes: [{ match: { prefix: / }, route: { cluster: a } }] }]",
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()
