"""Broken messages and what they are answered: rows of section, bytes, status and Envoy's details.

A section without a name is one of RFC 9112.
"""

from meshproxy.codec.http1 import details

HOST = b"Host: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def get(*lines: bytes) -> bytes:
    """A request with these field lines behind Host."""
    return b"GET / HTTP/1.1\r\n" + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    """The same with POST and a body."""
    return get(*lines).replace(b"GET", b"POST", 1) + body


def ok(*lines: bytes, body: bytes = b"") -> bytes:
    """A response."""
    return b"HTTP/1.1 200 OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


REQUESTS: list[tuple[str, bytes, int, str]] = [
    ("2.2 bare LF line ends", b"GET / HTTP/1.1\nHost: a\n\n", 400, details.CODEC_ERROR),
    ("2.2 bare LF in the fields", b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400, details.CODEC_ERROR),
    ("2.2 bare CR", get(b"X: a\rb"), 400, details.CODEC_ERROR),
    ("2.2 CR CR LF", get(b"X: a\r"), 400, details.CODEC_ERROR),
    ("2.2 a field before the request line ends", b"GET /\r HTTP/1.1\r\n" + HOST + b"\r\n", 400, details.CODEC_ERROR),
    (
        "2.2 white space before the first field",
        b"GET / HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n",
        400,
        details.CODEC_ERROR,
    ),
    ("2.2 nine empty lines", b"\r\n" * 9 + get(), 400, details.CODEC_ERROR),
    ("2.2 TLS on a plain port", b"\x16\x03\x01\x00\xa5\x01\x00", 400, details.CODEC_ERROR),
    ("2.3 HTTP/2.0", get().replace(b"1.1", b"2.0"), 400, details.CODEC_ERROR),
    ("2.3 HTTP/1.2", get().replace(b"1.1", b"1.2"), 400, details.CODEC_ERROR),
    ("2.3 lower case", get().replace(b"HTTP", b"http"), 400, details.CODEC_ERROR),
    ("2.3 HTTP/0.9", b"GET /\r\n\r\n", 400, details.CODEC_ERROR),
    ("2.3 HTTP/1.0 when it is not accepted", get().replace(b"1.1", b"1.0"), 426, details.LOW_VERSION),
    ("3 two spaces", get().replace(b" /", b"  /"), 400, details.CODEC_ERROR),
    ("3 a tab", get().replace(b" /", b"\t/"), 400, details.CODEC_ERROR),
    ("3 a space at the end", get().replace(b"1.1", b"1.1 "), 400, details.CODEC_ERROR),
    ("3 a space in the target", get().replace(b"/", b"/a b", 1), 400, details.CODEC_ERROR),
    ("3.1 an unknown method", get().replace(b"GET", b"BREW"), 400, details.CODEC_ERROR),
    ("3.1 methods are case-sensitive", get().replace(b"GET", b"get"), 400, details.CODEC_ERROR),
    ("3.2 a fragment", get().replace(b"/", b"/#f", 1), 400, details.FRAGMENT),
    ("3.2 neither path nor URI", get().replace(b"/", b"p", 1), 400, details.CODEC_ERROR),
    ("3.2 a byte above ASCII", get().replace(b"/", b"/\xc3", 1), 400, details.CODEC_ERROR),
    ("3.2 a control byte", get().replace(b"/", b"/\x01", 1), 400, details.CODEC_ERROR),
    ("3.2 DEL", get().replace(b"/", b"/\x7f", 1), 400, details.CODEC_ERROR),
    ("3.2 an empty target", b"GET  HTTP/1.1\r\n" + HOST + b"\r\n", 400, details.CODEC_ERROR),
    ("3.2 no Host", b"GET / HTTP/1.1\r\n\r\n", 400, details.MISSING_HOST),
    ("3.2 no Host, absolute form", b"GET http://a/ HTTP/1.1\r\n\r\n", 400, details.MISSING_HOST),
    ("3.2 two Hosts", get(b"Host: b"), 400, details.CODEC_ERROR),
    ("3.2 the same Host twice", get(b"host: a"), 400, details.CODEC_ERROR),
    ("3.2 a space in Host", get().replace(b" a", b" a b"), 400, details.INVALID_AUTHORITY),
    ("3.2 a path in Host", get().replace(b" a", b" a/b"), 400, details.INVALID_AUTHORITY),
    ("3.2 user information in Host", get().replace(b" a", b" u@a"), 400, details.INVALID_AUTHORITY),
    ("3.2.2 an unknown scheme", get().replace(b"/", b"ftp://a/", 1), 400, details.INVALID_SCHEME),
    ("3.2.2 no host in the URI", get().replace(b"/", b"http:///", 1), 400, details.INVALID_URL),
    ("RFC 9110 4.2.4 user information", get().replace(b"/", b"http://u@a/", 1), 400, details.INVALID_AUTHORITY),
    ("3.2.3 CONNECT to a path", get().replace(b"GET", b"CONNECT"), 400, details.INVALID_URL),
    ("3.2.3 CONNECT without a port", get().replace(b"GET /", b"CONNECT a"), 400, details.INVALID_URL),
    (
        "RFC 9110 9.3.6 CONNECT with a body",
        post(b"Content-Length: 1", body=b"x").replace(b"POST /", b"CONNECT a:1"),
        400,
        details.BODY_DISALLOWED,
    ),
    ("3.2.4 GET *", get().replace(b"/", b"*", 1), 400, details.INVALID_URL),
    ("5 no colon", get(b"X"), 400, details.CODEC_ERROR),
    ("5 an empty name", get(b": x"), 400, details.CODEC_ERROR),
    ("5.1 a space before the colon", get(b"X : y"), 400, details.CODEC_ERROR),
    ("5.1 a tab before the colon", get(b"X\t: y"), 400, details.CODEC_ERROR),
    ("RFC 9110 5.1 no token", get(b"X(: y"), 400, details.CODEC_ERROR),
    ("RFC 9110 5.1 a name above ASCII", get(b"X\xe4: y"), 400, details.CODEC_ERROR),
    ("RFC 9110 5.5 NUL", get(b"X: a\0b"), 400, details.INVALID_CHARACTERS),
    ("RFC 9110 5.5 a control byte", get(b"X: a\x01b"), 400, details.INVALID_CHARACTERS),
    ("RFC 9110 5.5 DEL", get(b"X: a\x7fb"), 400, details.INVALID_CHARACTERS),
    ("5.2 obs-fold", get(b"X: a", b" b"), 400, details.CODEC_ERROR),
    ("5.2 obs-fold with a tab", get(b"X: a", b"\tb"), 400, details.CODEC_ERROR),
    ("5.2 a fold of nothing", get(b"X:", b" b"), 400, details.CODEC_ERROR),
    ("5.4 RFC 6585: too many fields", get(*[b"X: y"] * 100), 431, details.TOO_MANY_HEADERS),
    ("RFC 6585 5 too large", get(b"X: " + b"y" * 61_440), 431, details.HEADERS_TOO_LARGE),
    ("RFC 6585 5 a target too large", get().replace(b"/", b"/" + b"y" * 61_440, 1), 431, details.HEADERS_TOO_LARGE),
    ("RFC 6585 5 and no end", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_241, 431, details.HEADERS_TOO_LARGE),
    ("6.1 an unknown coding", post(b"Transfer-Encoding: gzip"), 501, details.INVALID_TRANSFER_ENCODING),
    ("6.1 gzip, chunked", post(b"Transfer-Encoding: gzip, chunked"), 501, details.INVALID_TRANSFER_ENCODING),
    (
        "6.1 in two fields",
        post(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
        501,
        details.INVALID_TRANSFER_ENCODING,
    ),
    ("6.1 identity", post(b"Transfer-Encoding: identity"), 501, details.INVALID_TRANSFER_ENCODING),
    ("6.1 a parameter", post(b"Transfer-Encoding: chunked;x=y"), 501, details.INVALID_TRANSFER_ENCODING),
    ("6.1 a vertical tab", post(b"Transfer-Encoding: \x0bchunked"), 400, details.INVALID_CHARACTERS),
    ("6.3 chunked is not last", post(b"Transfer-Encoding: chunked, gzip"), 400, details.INVALID_TRANSFER_ENCODING),
    ("6.1 chunked twice", post(b"Transfer-Encoding: chunked, chunked"), 400, details.INVALID_TRANSFER_ENCODING),
    ("6.1 empty", post(b"Transfer-Encoding:"), 400, details.CODEC_ERROR),
    (
        "6.1 with Content-Length",
        post(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        400,
        details.CHUNKED_CONTENT_LENGTH,
    ),
    (
        "6.1 behind Content-Length",
        post(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        400,
        details.CHUNKED_CONTENT_LENGTH,
    ),
    ("6.3 differing Content-Length", post(b"Content-Length: 5", b"Content-Length: 6"), 400, details.CODEC_ERROR),
    ("6.3 repeated Content-Length", post(b"Content-Length: 5", b"Content-Length: 5"), 400, details.CODEC_ERROR),
    ("6.3 a list of lengths", post(b"Content-Length: 5, 5"), 400, details.CODEC_ERROR),
    ("6.2 a sign", post(b"Content-Length: +5"), 400, details.CODEC_ERROR),
    ("6.2 a negative length", post(b"Content-Length: -5"), 400, details.CODEC_ERROR),
    ("6.2 hexadecimal", post(b"Content-Length: 0x5"), 400, details.CODEC_ERROR),
    ("6.2 an underscore", post(b"Content-Length: 1_0"), 400, details.CODEC_ERROR),
    ("6.2 empty", post(b"Content-Length:"), 400, details.CODEC_ERROR),
    ("6.2 overflow", post(b"Content-Length: 18446744073709551621"), 400, details.CODEC_ERROR),
    ("6.2 beyond 63 bits", post(b"Content-Length: 9223372036854775808"), 400, details.CODEC_ERROR),
    ("7.1 no size", CHUNKED + b"\r\n", 400, details.CODEC_ERROR),
    ("7.1 no number", CHUNKED + b"xx\r\n", 400, details.CODEC_ERROR),
    ("7.1 a signed size", CHUNKED + b"+1\r\na\r\n", 400, details.CODEC_ERROR),
    ("7.1 a prefix", CHUNKED + b"0x1\r\na\r\n", 400, details.CODEC_ERROR),
    ("7.1 a space before the size", CHUNKED + b" 1\r\na\r\n", 400, details.CODEC_ERROR),
    ("7.1 a space behind the size", CHUNKED + b"1 \r\na\r\n", 400, details.CODEC_ERROR),
    ("7.1 overflow", CHUNKED + b"10000000000000001\r\na\r\n", 400, details.CODEC_ERROR),
    ("7.1 a bare LF behind the size", CHUNKED + b"1\na\r\n0\r\n\r\n", 400, details.CODEC_ERROR),
    ("7.1 a bare CR behind the size", CHUNKED + b"1\ra\r\n0\r\n\r\n", 400, details.CODEC_ERROR),
    ("7.1 a bare LF behind the data", CHUNKED + b"1\r\na\n0\r\n\r\n", 400, details.CODEC_ERROR),
    ("7.1 data longer than its size", CHUNKED + b"1\r\nab\r\n0\r\n\r\n", 400, details.CODEC_ERROR),
    ("7.1.1 a bare LF in an extension", CHUNKED + b"1;a\nb\r\na\r\n", 400, details.CODEC_ERROR),
    ("7.1.1 a control byte in an extension", CHUNKED + b"1;\x01\r\na\r\n", 400, details.CODEC_ERROR),
    ("7.1.1 a long extension", CHUNKED + b"1;" + b"a" * 1023 + b"\r\na\r\n", 400, details.CODEC_ERROR),
    ("7.1.1 many extensions", CHUNKED + (b"1;" + b"a" * 1000 + b"\r\na\r\n") * 17, 400, details.CODEC_ERROR),
    ("7.1.2 a malformed trailer", CHUNKED + b"0\r\nX : y\r\n\r\n", 400, details.CODEC_ERROR),
    ("7.1.2 trailers too large", CHUNKED + b"0\r\nX: " + b"y" * 61_440, 431, details.TRAILERS_TOO_LARGE),
    ("7.1.2 too many trailers", CHUNKED + b"0\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431, details.TOO_MANY_TRAILERS),
]

# Under `accept_http_10`.
HTTP_10_REQUESTS: list[tuple[str, bytes, int, str]] = [
    (
        "6.1 Transfer-Encoding",
        post(b"Transfer-Encoding: chunked").replace(b"1.1", b"1.0"),
        400,
        details.INVALID_TRANSFER_ENCODING,
    ),
    ("no Host and no default", b"GET / HTTP/1.0\r\n\r\n", 400, details.MISSING_HOST),
]

# The answer to a GET; the status is what the details stand for inside, downstream it is a 502.
RESPONSES: list[tuple[str, bytes, str]] = [
    ("4 another protocol", b"SSH-2.0-x\r\n\r\n", details.CODEC_ERROR),
    ("4 HTTP/2.0", ok().replace(b"1.1", b"2.0"), details.CODEC_ERROR),
    ("4 status 099", ok().replace(b"200", b"099"), details.CODEC_ERROR),
    ("4 four digits", ok().replace(b"200", b"2000"), details.CODEC_ERROR),
    ("4 two spaces", ok().replace(b" 200", b"  200"), details.CODEC_ERROR),
    ("4 a control byte in the reason", ok().replace(b"OK", b"O\x01K"), details.CODEC_ERROR),
    ("4 an empty line before it", b"\r\n" + ok(b"Content-Length: 0"), details.CODEC_ERROR),
    ("2.2 bare LF", b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", details.CODEC_ERROR),
    ("5.1 a space before the colon", ok(b"X : y"), details.CODEC_ERROR),
    ("5.2 obs-fold", ok(b"X: y", b" z"), details.CODEC_ERROR),
    ("RFC 9110 5.5 NUL", ok(b"X: \0"), details.INVALID_CHARACTERS),
    ("too many fields", ok(*[b"X: y"] * 101), details.TOO_MANY_HEADERS),
    ("too large", ok(b"X: " + b"y" * 61_440), details.HEADERS_TOO_LARGE),
    ("6.1 an unknown coding", ok(b"Transfer-Encoding: gzip"), details.INVALID_TRANSFER_ENCODING),
    ("6.1 gzip, chunked", ok(b"Transfer-Encoding: gzip, chunked"), details.INVALID_TRANSFER_ENCODING),
    (
        "6.1 TE in HTTP/1.0",
        ok(b"Transfer-Encoding: chunked").replace(b"1.1", b"1.0"),
        details.INVALID_TRANSFER_ENCODING,
    ),
    (
        "6.1 TE with Content-Length",
        ok(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        details.CHUNKED_CONTENT_LENGTH,
    ),
    ("6.3 two lengths", ok(b"Content-Length: 5", b"Content-Length: 5"), details.CODEC_ERROR),
    ("6.2 a bad length", ok(b"Content-Length: 5x"), details.CODEC_ERROR),
    (
        "6.1 204 with a coding",
        ok(b"Transfer-Encoding: chunked").replace(b"200", b"204"),
        details.TRANSFER_ENCODING_NOT_ALLOWED,
    ),
    (
        "6.1 100 with a coding",
        ok(b"Transfer-Encoding: chunked").replace(b"200", b"100"),
        details.TRANSFER_ENCODING_NOT_ALLOWED,
    ),
    (
        "RFC 9110 8.6 204 with a length",
        ok(b"Content-Length: 5").replace(b"200", b"204"),
        details.CONTENT_LENGTH_NOT_ALLOWED,
    ),
    ("RFC 9110 15.2.2 101 nobody asked for", ok().replace(b"200", b"101"), details.CODEC_ERROR),
    ("7.1 a bad chunk size", ok(b"Transfer-Encoding: chunked", body=b"x\r\n"), details.CODEC_ERROR),
]
