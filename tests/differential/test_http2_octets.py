"""Every octet at every place of an HTTP/2 head, and of trailers: which of them make a message malformed."""

from collections.abc import Callable

import pytest

from tests.differential.http2 import Http2Pair, Http2Side, Http2Topic
from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.support.http2_downstream import Http2Downstream
from tests.support.http2_upstream import Http2Answer
from tests.support.http2_wire import Fields, code_name, data, headers

GET = {":method": "GET", ":scheme": "http", ":path": "/", ":authority": "x.test"}
HIGH = frozenset(range(0x80, 0x100))
SPACES = frozenset(b"\t ")
TO_UPSTREAM = [*((name, value) for name, value in GET.items() if name != ":path"), (":path", "/h")]

Make = Callable[[str], Fields]


def with_pseudo(name: str, text: str) -> Make:
    """A request whose pseudo-header has the octet in place of `*`."""
    return lambda octet: [(key, text.replace("*", octet) if key == name else value) for key, value in GET.items()]


def with_field(name: str, value: str) -> Make:
    """A request with one more field."""
    return lambda octet: [*GET.items(), (name.replace("*", octet), value.replace("*", octet))]


# Beside each stand the octets that Envoy takes and we refuse: `path-octets`, `value-spaces` and `status-range` in
# docs/envoy-differences.md.
REQUESTS: dict[str, tuple[Make, frozenset[int]]] = {
    "name": (with_field("x*y", "v"), frozenset()),
    "first_of_name": (with_field("*y", "v"), frozenset()),
    "value": (with_field("x", "a*b"), frozenset()),
    "first_of_value": (with_field("x", "*b"), SPACES),
    "last_of_value": (with_field("x", "a*"), SPACES),
    "whole_value": (with_field("x", "*"), SPACES),
    "method": (with_pseudo(":method", "G*T"), frozenset()),
    "path": (with_pseudo(":path", "/a*b"), HIGH),
    "first_of_path": (with_pseudo(":path", "*a"), frozenset()),
    "query": (with_pseudo(":path", "/?a*b"), HIGH),
    "scheme": (with_pseudo(":scheme", "h*p"), frozenset()),
    "first_of_scheme": (with_pseudo(":scheme", "*p"), frozenset()),
    "authority": (with_pseudo(":authority", "x*y"), frozenset()),
    "host": (lambda octet: [*list(GET.items())[:3], ("host", f"x{octet}y")], frozenset()),
    "cookie": (with_field("cookie", "a*b"), frozenset()),
    "content_length": (with_field("content-length", "0*"), frozenset()),
    "te": (with_field("te", "trailers*"), frozenset()),
}
TRAILERS: dict[str, tuple[Make, frozenset[int]]] = {
    "name": (lambda octet: [(f"x{octet}y", "v")], frozenset()),
    "value": (lambda octet: [("x", f"a{octet}b")], frozenset()),
    "last_of_value": (lambda octet: [("x", f"a{octet}")], SPACES),
}
ANSWERS: dict[str, tuple[Make, frozenset[int]]] = {
    "name": (lambda octet: [(":status", "200"), (f"x{octet}y", "v")], frozenset()),
    "value": (lambda octet: [(":status", "200"), ("x", f"a{octet}b")], frozenset()),
    "last_of_value": (lambda octet: [(":status", "200"), ("x", f"a{octet}")], SPACES),
    "status": (lambda octet: [(":status", f"2{octet}0")], frozenset()),
    "first_of_status": (lambda octet: [(":status", f"{octet}00")], frozenset(b"06789")),
}
OVERRIDE = "http2_protocol_options: { override_stream_error_on_invalid_http_message: true }\n"
ROUTES = """
route_config:
  virtual_hosts:
  - name: any
    domains: ['*']
    routes:
    - { match: { prefix: /h }, route: { cluster: lenient } }
    - { match: { prefix: / }, direct_response: { status: 200 } }
"""
HTTP2 = Http2Topic(
    listeners={"main": OVERRIDE + ROUTES},
    clusters={
        "lenient": "hosts: [h]\ntyped_extension_protocol_options: { envoy.extensions.upstreams.http.v3.HttpProtocolOptions: "
        "{ '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: "
        "{ http2_protocol_options: { override_stream_error_on_invalid_http_message: true } } } }"
    },
)


def outcome(downstream: Http2Downstream, stream: int) -> str:
    """The status, or how the stream was reset."""
    seen = downstream.streams[stream]
    if seen.reset is not None and not seen.ended:
        return code_name(seen.reset)
    return seen.parts[0].get(":status")


def each_octet(side: Http2Side, exchange: Callable[[Http2Downstream, int, str], object]) -> dict[int, str]:
    """What becomes of the stream that `exchange` makes with each octet. Connections are not used for more than half of
    them: who resets too many streams is given up."""
    outcomes: dict[int, str] = {}
    for half in (range(128), range(128, 256)):
        with Http2Downstream(side.ports["main"]) as downstream:
            for number, octet in enumerate(half):
                stream = 2 * number + 1
                exchange(downstream, stream, chr(octet))
                downstream.wait_over(stream)
                outcomes[octet] = outcome(downstream, stream)
    return outcomes


def asked(side: Http2Side, make: Make) -> dict[int, str]:
    """The octet is in the request."""
    return each_octet(side, lambda downstream, stream, octet: downstream.send(headers(stream, make(octet), end=True)))


def asked_with_trailers(side: Http2Side, make: Make) -> dict[int, str]:
    """The octet is in the request's trailers."""

    def exchange(downstream: Http2Downstream, stream: int, octet: str) -> None:
        trailers = headers(stream, make(octet), end=True)
        downstream.send(headers(stream, TO_UPSTREAM) + data(stream, b"x") + trailers)

    return each_octet(side, exchange)


def answered(side: Http2Side, make: Make) -> dict[int, str]:
    """The octet is in the upstream's answer."""

    def exchange(downstream: Http2Downstream, stream: int, octet: str) -> None:
        side.upstream.play((Http2Answer(lambda number: headers(number, make(octet), end=True)),))
        downstream.send(headers(stream, TO_UPSTREAM, end=True))

    return each_octet(side, exchange)


def check(expected: dict[int, str], actual: dict[int, str], refused: frozenset[int], refusal: str) -> None:
    """Both agree, but for octets that we refuse."""
    found = {octet: (expected[octet], actual[octet]) for octet in range(256) if expected[octet] != actual[octet]}
    if SUBJECT_IS_ENVOY:
        assert not found
    else:
        assert found == {octet: (expected[octet], refusal) for octet in refused}


@pytest.mark.parametrize("place", REQUESTS)
def test_octets_of_requests(http2_pair: Http2Pair, place: str) -> None:
    make, refused = REQUESTS[place]
    expected, actual = (asked(side, make) for side in (http2_pair.reference, http2_pair.subject))
    check(expected, actual, refused, "PROTOCOL_ERROR")


@pytest.mark.parametrize("place", TRAILERS)
def test_octets_of_trailers(http2_pair: Http2Pair, place: str) -> None:
    make, refused = TRAILERS[place]
    expected, actual = (asked_with_trailers(side, make) for side in (http2_pair.reference, http2_pair.subject))
    check(expected, actual, refused, "PROTOCOL_ERROR")


@pytest.mark.parametrize("place", ANSWERS)
def test_octets_of_answers(http2_pair: Http2Pair, place: str) -> None:
    make, refused = ANSWERS[place]
    expected, actual = (answered(side, make) for side in (http2_pair.reference, http2_pair.subject))
    check(expected, actual, refused, "502")
