"""What holds for every HTTP/2 session: any split of it means the same, nothing raises, memory is bounded."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.stream import Http2Stream
from tests.codec.http2_frames import PREFACE, Reader, Writer, raw_frame
from tests.codec.http2_recorder import Client, Recorder, Server

GET = ":method=GET :scheme=http :authority=a :path=/"
POST = GET.replace("GET", "POST")
SMALL = Http2Settings(
    stream_window_bytes=65_535,
    connection_window_bytes=70_000,
    max_concurrent_streams=5,
    max_headers_bytes=2_000,
    max_headers_count=20,
    stream_error_on_invalid_message=True,
    allow_connect=True,
)
HEAD = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]
FIELD = [(b":status", b"200"), (b"server", b"x")]


class AnsweringServer(Server):
    """Answers each request as it comes."""

    def record(self, encoder: Http2Stream) -> Recorder:
        return _Answering(self.log, encoder)


class _Answering(Recorder):
    def add(self, text: str, end: bool) -> None:
        super().add(text, end)
        encoder = self.encoder
        if end and encoder is not None:
            encoder.send_headers(HeaderMap([(b":status", b"200"), (b"server", b"x")]), False)
            encoder.send_data(b"x" * 1000, False)
            encoder.send_trailers(HeaderMap([(b"t", b"u")]))


def by_stream(log: list[str]) -> dict[str, list[str]]:
    """The events of each stream (and of the connection), neighbouring pieces of a body as one."""
    found: dict[str, list[str]] = {}
    for line in log:
        name, _, event = line.partition(" ")
        events = found.setdefault(name, [])
        if event.startswith("data ") and events and events[-1].startswith("data ") and not events[-1].endswith(" end"):
            events[-1] += event[5:]
        else:
            events.append(event)
    return found


# -- any split


def _request_lines(stream_id: int) -> st.SearchStrategy[list[str]]:
    """One request, in frames; some of them are wrong."""
    heads = st.sampled_from(
        [GET, POST, f"{POST} content-length=6", f"{GET} x=y cookie=a cookie=b", f"{GET} X=y", "x=y", f"{GET} x=+y"]
    )
    bodies = st.lists(
        st.sampled_from(["DATA {} abc", "DATA {} abc pad=3", "DATA {} len=3000", "RAW 0 0 {} "]), max_size=3
    )
    ends = st.sampled_from(
        ["DATA {} end", "HEADERS {} t=u end", "RST_STREAM {} CANCEL", "DATA {} x end", "HEADERS {} :path=/ end", ""]
    )
    extra = st.sampled_from(["", " cut=1", " cut=7", " pad=5", " on=9"])

    def lines(head: str, more: str, body: list[str], end: str, whole: bool) -> list[str]:
        if whole:
            return [f"HEADERS {stream_id} {head}{more} end"]
        each = [f"HEADERS {stream_id} {head}{more}", *body, end]
        return [line.format(stream_id) for line in each if line]

    return st.builds(lines, heads, extra, bodies, ends, st.booleans())


OTHERS = ["PING 12345678", "SETTINGS", "SETTINGS 4=100", "WINDOW_UPDATE 0 100", "PRIORITY 7 on=0", "RAW 99 0 1 x",
          "GOAWAY 0 NO_ERROR", "WINDOW_UPDATE 1 50"]  # fmt: skip


@st.composite
def client_sessions(draw: st.DrawFn) -> bytes:
    """What a client might send: requests one into the other, and frames of the connection between them."""
    queues = [draw(_request_lines(stream_id)) for stream_id in range(1, 2 * draw(st.integers(1, 4)), 2)]
    queues.append(draw(st.lists(st.sampled_from(OTHERS), max_size=4)))
    writer = Writer()
    data = PREFACE + writer.frames("SETTINGS 3=9")
    opened = 0
    while any(queues):
        ready = [at for at, queue in enumerate(queues) if queue and (at <= opened or at == len(queues) - 1)]
        if not ready:
            break
        at = draw(st.sampled_from(ready))
        opened = max(opened, at + 1)
        data += writer.frames(queues[at].pop(0))
    return data


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at these places."""
    places = sorted({cut % len(data) for cut in cuts} - {0})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def server_events(pieces: list[bytes]) -> tuple[dict[str, list[str]], list[str]]:
    """What the owner of a server's connection is told, and what that sends."""
    owner = AnsweringServer(SMALL)
    for piece in pieces:
        owner.connection.receive_data(piece)
    data = owner.connection.data_to_send()
    return by_stream(owner.log), Reader().lines(data if isinstance(data, bytes) else b"".join(data))


@settings(max_examples=250, deadline=None)
@given(client_sessions(), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_split_of_requests(data: bytes, cuts: list[int]) -> None:
    assert server_events(pieces_of(data, cuts)) == server_events([data])


@settings(max_examples=60, deadline=None)
@given(client_sessions())
def test_requests_byte_by_byte(data: bytes) -> None:
    assert server_events([data[at : at + 1] for at in range(len(data))]) == server_events([data])


@st.composite
def server_sessions(draw: st.DrawFn) -> bytes:
    """What a server might answer to three requests."""
    heads = st.sampled_from([":status=200", ":status=204", ":status=200 content-length=6", "x=y", ":status=200 X=y"])
    writer = Writer()
    data = writer.frames("SETTINGS 3=9")
    queues = []
    for stream_id in (1, 3, 5):
        queue = [f"HEADERS {stream_id} :status=103 link=x"] if draw(st.booleans()) else []
        queue.append(f"HEADERS {stream_id} {draw(heads)}" + draw(st.sampled_from(["", " end", " cut=1", " pad=3"])))
        queue += draw(st.lists(st.just(f"DATA {stream_id} abc"), max_size=3))
        queue.append(
            draw(
                st.sampled_from(
                    [f"DATA {stream_id} end", f"HEADERS {stream_id} t=u end", f"RST_STREAM {stream_id} CANCEL"]
                )
            )
        )
        queues.append(queue)
    queues.append(draw(st.lists(st.sampled_from([*OTHERS, "GOAWAY 3 NO_ERROR", "SETTINGS 3=1"]), max_size=4)))
    while any(queues):
        queue = draw(st.sampled_from([each for each in queues if each]))
        data += writer.frames(queue.pop(0))
    return data


def client_events(pieces: list[bytes]) -> tuple[dict[str, list[str]], list[str]]:
    """What the owner of a client's connection is told, and what that sends."""
    owner = Client(SMALL)
    for _ in range(3):
        owner.request(list(HEAD))
    for piece in pieces:
        owner.connection.receive_data(piece)
    data = owner.connection.data_to_send()
    return by_stream(owner.log), Reader().lines(data if isinstance(data, bytes) else b"".join(data))


@settings(max_examples=250, deadline=None)
@given(server_sessions(), st.lists(st.integers(0, 1 << 16), max_size=12))
def test_any_split_of_responses(data: bytes, cuts: list[int]) -> None:
    assert client_events(pieces_of(data, cuts)) == client_events([data])


# -- garbage: a seeded fuzzer


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A session that has suffered."""
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(PREFACE) if rng.random() < 0.9 else 0, len(broken))
        kind = rng.random()
        if kind < 0.5:
            broken[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind < 0.65:
            del broken[at : at + rng.choice((1, 1, 4, 9))]
        elif kind < 0.8:
            broken[at:at] = rng.randbytes(rng.choice((1, 1, 4, 9)))
        elif kind < 0.9:
            size = rng.choice((9, 17, 50))
            broken[at:at] = broken[at - size : at]
        else:
            frame_type, flags = rng.randrange(12), rng.randrange(256)
            broken[at:at] = raw_frame(
                frame_type, flags, rng.randrange(8), rng.randbytes(rng.choice((0, 4, 5, 6, 8, 20)))
            )
        if len(broken) <= len(PREFACE):
            break
    return bytes(broken)


def a_session(role: str, rng: random.Random) -> bytes:
    """Frames that are in order, most of them."""
    writer = Writer()
    lines = ["SETTINGS " + rng.choice(("3=9", "4=10", "1=0 5=20000", "4=1000000"))]
    for stream_id in (1, 3, 5):
        head = rng.choice((GET, POST, f"{POST} content-length=3", f"{GET} x=y cookie=a cookie=b"))
        if role == "client":
            head = rng.choice((":status=200", ":status=103", ":status=200 content-length=3", ":status=204"))
        lines.append(f"HEADERS {stream_id} {head}" + rng.choice(("", " end", " cut=3", " pad=4", " on=7")))
        lines += rng.choices(
            [f"DATA {stream_id} abc", f"DATA {stream_id} abc pad=9", f"WINDOW_UPDATE {stream_id} 100", "PING 12345678",
             f"HEADERS {stream_id} t=u end", f"DATA {stream_id} x end", f"RST_STREAM {stream_id} CANCEL",
             f"PRIORITY {stream_id} on=0", "WINDOW_UPDATE 0 100", "SETTINGS ack", "GOAWAY 9 NO_ERROR"],
            k=rng.randrange(6),
        )  # fmt: skip
    return (PREFACE if role == "server" else b"") + b"".join(writer.frames(line) for line in lines)


def act(owner: Server | Client, rng: random.Random) -> None:
    """The owner does something to a stream that it may long have lost."""
    if not owner.encoders:
        return
    encoder = owner.encoders[rng.choice(list(owner.encoders))]
    verb = rng.randrange(7)
    if verb == 0:
        encoder.send_headers(HeaderMap(list(FIELD)), rng.random() < 0.2)
    elif verb == 1:
        encoder.send_data(b"x" * rng.choice((0, 1, 100, 20_000)), rng.random() < 0.2)
    elif verb == 2:
        encoder.send_trailers(HeaderMap([(b"t", b"u")]))
    elif verb == 3:
        encoder.reset(rng.choice((1, 2, 3, 8)))
    elif verb == 4:
        encoder.read_disable(True)
    elif verb == 5:
        encoder.read_disable(False)
    else:
        encoder.send_informational(HeaderMap([(b":status", b"103")]))


def survive(role: str, seed: int) -> None:
    """One session of garbage."""
    rng = random.Random(seed)
    data = a_session(role, rng)
    if rng.random() < 0.95:
        data = mutated(data, rng)
    owner: Server | Client = Server(SMALL) if role == "server" else Client(SMALL)
    if isinstance(owner, Client):
        for _ in range(3):
            owner.request(
                [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")], False
            )
    reader = Reader()
    connection = owner.connection
    at = 0
    while at < len(data):
        size = rng.choice((1, 3, 9, 20, 100, 1000))
        connection.receive_data(data[at : at + size])
        at += size
        for _ in range(rng.choice((0, 0, 1, 3))):
            act(owner, rng)
        if rng.random() < 0.7:
            sent = connection.data_to_send() if connection.has_output else b""
            reader.read(sent if isinstance(sent, bytes) else b"".join(sent))  # others can read what we send
            connection.on_output_written()
        assert connection.buffered_bytes <= 16_384 + 9 + 1000
        assert len(connection.streams) <= 5
        assert connection.output_bytes <= 400_000
    assert owner.stats.streams_active == len(connection.streams)
    if connection.should_close:
        assert not connection.streams
    connection.close_streams(6)
    assert owner.stats.streams_active == owner.stats.pending_send_bytes == 0


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("block", range(10))
def test_garbage_never_raises(role: str, block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        try:
            survive(role, seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


@pytest.mark.long
@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("block", range(100))
def test_garbage_for_minutes(role: str, block: int) -> None:
    for seed in range(1_000_000 + block * 2_000, 1_000_000 + block * 2_000 + 2_000):
        try:
            survive(role, seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(data: bytes, preface: bool) -> None:
    owner = Server(SMALL)
    owner.connection.receive_data((PREFACE if preface else b"") + data)
    other = Client(SMALL)
    other.connection.receive_data(data)
    assert owner.connection.buffered_bytes <= len(data) + len(PREFACE)
