"""What holds for every input: any split gives the same events, nothing raises, what one end sends the other reads."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http1.settings import Http1Settings
from tests.codec.http1_cases import CHUNKED, REQUESTS, RESPONSES, get, ok, post
from tests.codec.recorder import Downstream, Recorder, Upstream, output

GET = [(b":authority", b"a"), (b":path", b"/"), (b":method", b"GET"), (b":scheme", b"http")]
SETTINGS = Http1Settings(enable_trailers=True, accept_http_10=True, default_host_for_http_10=b"d")

VALID_REQUESTS = [
    get(b"X: y"),
    get().replace(b"1.1", b"1.0"),
    b"\r\n" + get(b"Connection: close"),
    post(b"Content-Length: 11", body=b"hello\r\n\r\nyo"),
    CHUNKED + b"5;x=y\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
    CHUNKED + b"1\r\n!\r\n0\r\nT: u\r\nV: w\r\n\r\n",
    get() + post(b"Content-Length: 2", body=b"ab") + CHUNKED + b"0\r\n\r\n" + get(),
    get(b"Connection: upgrade", b"Upgrade: x"),
    b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nxyz",
]
VALID_RESPONSES = [
    ok(b"Content-Length: 5", body=b"hello"),
    ok(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\n\r\n"),
    ok(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\nT: u\r\n\r\n"),
    ok(body=b"until the end"),
    b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"Content-Length: 0"),
    b"HTTP/1.0 304 Not Modified\r\n\r\n",
]
# The large ones say nothing more about splits, and a blank line too many is seen in another order.
SMALL_REQUESTS = VALID_REQUESTS + [data for _, data, _, _ in REQUESTS if len(data) < 1000]
SMALL_RESPONSES = VALID_RESPONSES + [data for _, data, _ in RESPONSES if len(data) < 1000]


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at these places (and at no place twice)."""
    places = sorted({cut % len(data) for cut in cuts} - {0})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def request_events(pieces: list[bytes]) -> tuple[list[str], bytes]:
    """What a downstream's owner that answers everything sees, and what it sends."""
    downstream = Downstream(SETTINGS, answer=True)
    for piece in pieces:
        downstream.connection.receive_data(piece)
    downstream.connection.receive_eof()
    return downstream.log, output(downstream.connection)


def response_events(pieces: list[bytes]) -> list[str]:
    """What the owner of an upstream's connection sees."""
    upstream = Upstream(SETTINGS)
    upstream.request(GET)
    for piece in pieces:
        upstream.connection.receive_data(piece)
        if upstream.log and upstream.log[-1].startswith("complete"):
            # Whether a surplus comes with the end of the response or behind it, is a matter of splits.
            return [*upstream.log[:-1], "complete"]
    upstream.connection.receive_eof()
    return upstream.log


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SMALL_REQUESTS), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_split_of_requests(data: bytes, cuts: list[int]) -> None:
    assert request_events(pieces_of(data, cuts)) == request_events([data])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SMALL_RESPONSES), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_split_of_responses(data: bytes, cuts: list[int]) -> None:
    assert response_events(pieces_of(data, cuts)) == response_events([data])


@pytest.mark.parametrize("data", SMALL_REQUESTS)
def test_requests_byte_by_byte(data: bytes) -> None:
    assert request_events([bytes([byte]) for byte in data]) == request_events([data])


@pytest.mark.parametrize("data", SMALL_RESPONSES)
def test_responses_byte_by_byte(data: bytes) -> None:
    assert response_events([bytes([byte]) for byte in data]) == response_events([data])


def mutated(random_: random.Random, data: bytes) -> bytes:
    """A few bytes replaced, dropped, doubled or inserted."""
    text = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(text))
        match random_.randrange(4):
            case 0:
                text[at] = random_.choice(b"\r\n\0 \t:;,0159afAF+-/x\x7f\xff")
            case 1:
                del text[at : at + random_.randint(1, 8)]
            case 2:
                text[at:at] = text[at : at + random_.randint(1, 30)]
            case _:
                text[at:at] = random_.choice(
                    [b"\r\n", b"\n", b"\r", b": ", b"chunked", b"Content-Length: 3\r\n", b"0\r\n\r\n"]
                )
        if not text:
            text += b"x"
    return bytes(text)


def fuzz(seed: int, rounds: int) -> None:
    """Mutated messages: nothing raises, and a split changes nothing."""
    random_ = random.Random(seed)
    requests = [data for data in SMALL_REQUESTS if len(data) < 300]
    responses = [data for data in SMALL_RESPONSES if len(data) < 300]
    for _ in range(rounds):
        data = mutated(random_, random_.choice(requests))
        cuts = [random_.randrange(1 << 16) for _ in range(3)]
        assert request_events(pieces_of(data, cuts)) == request_events([data]), data
        data = mutated(random_, random_.choice(responses))
        assert response_events(pieces_of(data, cuts)) == response_events([data]), data


def test_mutated_input() -> None:
    fuzz(1, 4_000)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 12))
def test_mutated_input_for_long(seed: int) -> None:
    fuzz(seed, 50_000)


TOKEN = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_!~", min_size=1, max_size=20).map(str.encode)
VALUE = st.text([chr(code) for code in [*range(0x20, 0x7F), *range(0x80, 0x100)]], max_size=40)
FIELDS = st.lists(
    st.tuples(TOKEN.map(lambda name: b"x-" + name), VALUE.map(lambda text: text.encode("latin-1").strip()))
)
BODY = st.lists(st.binary(max_size=200))


def send(owner: Downstream | Upstream, fields: list[tuple[bytes, bytes]], body: list[bytes], sized: bool) -> bytes:
    """A message with this body, through the owner's encoder, as bytes."""
    if sized:
        fields = [*fields, (b"content-length", b"%d" % sum(map(len, body)))]
    encoder = owner.encoder if isinstance(owner, Downstream) else owner.request(fields, False)
    assert encoder is not None
    if isinstance(owner, Downstream):
        encoder.send_headers(HeaderMap(fields), False)
    for piece in body:
        encoder.send_data(piece, False)
    encoder.send_data(b"", True)
    return output(owner.connection)


@settings(max_examples=300, deadline=None)
@given(FIELDS, BODY, st.booleans())
def test_what_one_end_sends_the_other_reads(fields: list[tuple[bytes, bytes]], body: list[bytes], sized: bool) -> None:
    upstream, downstream = Upstream(SETTINGS), Downstream(SETTINGS)
    post_fields = [(b":authority", b"a"), (b":path", b"/"), (b":method", b"POST"), (b":scheme", b"http"), *fields]
    downstream.connection.receive_data(send(upstream, post_fields, body, sized))
    assert_told(downstream.log, post_fields, body, sized)
    downstream.log.clear()
    status = [(b":status", b"200"), *fields]
    answer = send(downstream, status, body, sized)
    assert downstream.log == ["complete"]
    upstream.connection.receive_data(answer)
    assert upstream.log.pop() == "complete reusable"
    assert_told(upstream.log, status, body, sized)


def assert_told(log: list[str], fields: list[tuple[bytes, bytes]], body: list[bytes], sized: bool) -> None:
    """The events are those of a message with these fields and this body."""
    whole = b"".join(body)
    expected: list[str] = []
    stream = Recorder(expected)
    bodiless = sized and not whole
    stream.on_headers(HeaderMap([*fields, (b"content-length", b"%d" % len(whole))] if sized else fields), bodiless)
    if not bodiless:
        stream.on_data(whole, True)
    assert log == expected
