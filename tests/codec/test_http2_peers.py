"""Random sessions with `h2` at the other end: what one end sends is what the other is told, and neither finds fault."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.stream import Http2Stream
from meshproxy.codec.stream import StreamEncoder
from tests.codec.http2_frames import Fields
from tests.codec.http2_recorder import Client, Recorder, Server

STEPS = 60
SESSIONS = 120
HEADS = (h2.events.RequestReceived, h2.events.ResponseReceived, h2.events.InformationalResponseReceived)
REQUEST = [(b":method", b"POST"), (b":authority", b"a"), (b":scheme", b"http"), (b":path", b"/p")]


@dataclass
class Message:
    """One direction of one stream, as its sender or its receiver has it."""

    heads: list[Fields] = field(default_factory=list)
    body: bytes = b""
    trailers: Fields | None = None
    ended: bool = False
    reset: bool = False


class Told(Recorder):
    """Our end of a stream: what is received on it."""

    def __init__(self, message: Message) -> None:
        super().__init__([])
        self.message = message

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        self.message.heads.append(sorted(headers.fields))
        self.message.ended = end

    def on_informational(self, headers: HeaderMap) -> None:
        self.message.heads.append(sorted(headers.fields))

    def on_data(self, data: bytes, end: bool) -> None:
        self.message.body += data
        self.message.ended = end

    def on_trailers(self, trailers: HeaderMap) -> None:
        self.message.trailers = list(trailers.fields)
        self.message.ended = True

    def on_reset(self, reason: int, details: str) -> None:
        self.message.reset = True


class TellingServer(Server):
    """Files what comes by stream."""

    def __init__(self, settings: Http2Settings) -> None:
        super().__init__(settings)
        self.received: dict[int, Message] = {}

    def record(self, encoder: Http2Stream) -> Recorder:
        self.received[encoder.id] = Message()
        return Told(self.received[encoder.id])


class Session:
    """Two ends, and what each has sent and received, by stream."""

    def __init__(self, role: str, rng: random.Random) -> None:
        self.rng = rng
        self.role = role
        settings = Http2Settings(
            stream_window_bytes=65_535,
            connection_window_bytes=rng.choice((65_535, 100_000)),
            max_concurrent_streams=rng.choice((3, 100)),
            hpack_table_bytes=rng.choice((0, 100, 4096, 10_000)),
            stream_error_on_invalid_message=rng.random() < 0.5,
            max_window_updates_per_data_frame=1_000,
        )
        self.ours: Server | Client = TellingServer(settings) if role == "server" else Client(settings)
        config = h2.config.H2Configuration(client_side=role == "server", header_encoding=None)
        self.theirs = h2.connection.H2Connection(config)
        self.theirs.local_settings = h2.settings.Settings(
            client=role == "server",
            initial_values={
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: rng.choice((0, 1_000, 65_535)),
                h2.settings.SettingCodes.MAX_FRAME_SIZE: rng.choice((16_384, 30_000)),
                h2.settings.SettingCodes.HEADER_TABLE_SIZE: rng.choice((0, 100, 4096)),
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: rng.choice((3, 100)),
            },
        )
        self.theirs.initiate_connection()
        self.we_sent: dict[int, Message] = {}
        self.they_sent: dict[int, Message] = {}
        self.we_received: dict[int, Message] = self.ours.received if isinstance(self.ours, TellingServer) else {}
        self.they_received: dict[int, Message] = {}
        self.encoders: dict[int, StreamEncoder] = self.ours.encoders
        self.unread: dict[int, int] = {}
        self.exchange()

    # -- the wire

    def exchange(self) -> None:
        """Bytes in both directions, in any pieces, until neither end has more to say."""
        connection = self.ours.connection
        while True:
            data = self.theirs.data_to_send()
            while data:
                size = self.rng.choice((1, 10, 1_000, len(data)))
                connection.receive_data(data[:size])
                data = data[size:]
            if not connection.has_output:
                return
            sent = connection.data_to_send()
            connection.on_output_written()
            for event in self.theirs.receive_data(sent if isinstance(sent, bytes) else b"".join(sent)):
                self.on_event(event)

    def on_event(self, event: Any) -> None:
        """What h2 tells."""
        assert not isinstance(event, h2.events.ConnectionTerminated)
        stream_id = getattr(event, "stream_id", 0)
        message = self.they_received.setdefault(stream_id, Message()) if stream_id else Message()
        if isinstance(
            event, h2.events.RequestReceived | h2.events.ResponseReceived | h2.events.InformationalResponseReceived
        ):
            message.heads.append(sorted((bytes(name), bytes(value)) for name, value in event.headers))
        elif isinstance(event, h2.events.DataReceived):
            message.body += event.data
            self.unread[stream_id] = self.unread.get(stream_id, 0) + event.flow_controlled_length
        elif isinstance(event, h2.events.TrailersReceived):
            message.trailers = [(bytes(name), bytes(value)) for name, value in event.headers]
        elif isinstance(event, h2.events.StreamEnded):
            message.ended = True
        elif isinstance(event, h2.events.StreamReset):
            message.reset = True

    # -- steps

    def fields(self) -> Fields:
        """A few fields, some of them again and again."""
        rng = self.rng
        names = (b"x-a", b"x-b", b"accept", b"cookie", b"authorization", b"x-long")
        return [
            (name, rng.choice((b"1", b"yes, of course", bytes(rng.randbytes(8).hex(), "ascii"), b"z" * 300)))
            for name in rng.sample(names, rng.randrange(4))
        ]

    def step(self) -> None:
        """Something happens at one of the ends."""
        actions = [self.we_send_data, self.they_send_data, self.they_read, self.resets, self.they_change, self.we_pause]
        rng = self.rng
        if rng.random() < 0.25:
            self.open_stream()
        elif rng.random() < 0.2:
            self.respond()
        else:
            rng.choice(actions)()
        if rng.random() < 0.8:
            self.exchange()

    def open_stream(self) -> None:
        fields = self.fields()
        end = self.rng.random() < 0.3
        sent = Message()
        sent.heads.append(sorted([*REQUEST, *fields]))
        sent.ended = end
        if isinstance(self.ours, Client):
            if self.ours.connection.streams_open >= self.ours.connection.max_streams:
                return
            received = Message()
            encoder = self.ours.connection.new_stream(Told(received))
            encoder.send_headers(HeaderMap([*REQUEST, *fields]), end)
            assert isinstance(encoder, Http2Stream)
            self.encoders[encoder.id] = encoder
            self.we_sent[encoder.id] = sent
            self.we_received[encoder.id] = received
        else:
            if self.theirs.open_outbound_streams >= self.theirs.remote_settings.max_concurrent_streams:
                return
            stream_id = self.theirs.get_next_available_stream_id()
            self.theirs.send_headers(stream_id, [*REQUEST, *fields], end_stream=end)
            self.they_sent[stream_id] = sent

    def respond(self) -> None:
        """Somebody who has a request sends a head."""
        status = [(b":status", self.rng.choice((b"200", b"404", b"103")))]
        fields = status + self.fields()
        interim = status[0][1] == b"103"
        end = not interim and self.rng.random() < 0.2
        ours = isinstance(self.ours, TellingServer)
        requests = self.we_received if ours else self.they_received
        sent = self.we_sent if ours else self.they_sent
        ready = [
            each for each in requests if requests[each].heads and not self.is_over(each) and not has_head(sent, each)
        ]
        if not ready:
            return
        stream_id = self.rng.choice(ready)
        message = sent.setdefault(stream_id, Message())
        message.heads.append(sorted(fields))
        if ours:
            headers = HeaderMap(fields)
            if interim:
                self.encoders[stream_id].send_informational(headers)
            else:
                self.encoders[stream_id].send_headers(headers, end)
                if end and not requests[stream_id].ended:
                    message.reset = True  # RFC 9113 section 8.1: the rest of the request is not wanted
        else:
            self.theirs.send_headers(stream_id, fields, end_stream=end)
        message.ended = end

    def unfinished(self, sent: dict[int, Message]) -> list[int]:
        """The streams on which one end may send data."""
        return [
            stream_id
            for stream_id, message in sent.items()
            if not message.ended and not self.is_over(stream_id) and has_head(sent, stream_id)
        ]

    def is_over(self, stream_id: int) -> bool:
        """Whether anybody has reset the stream."""
        books = (self.we_sent, self.they_sent, self.we_received, self.they_received)
        return any(stream_id in book and book[stream_id].reset for book in books)

    def we_send_data(self) -> None:
        ready = self.unfinished(self.we_sent)
        if not ready:
            return
        stream_id = self.rng.choice(ready)
        sent = self.we_sent[stream_id]
        data = self.rng.randbytes(self.rng.choice((0, 1, 100, 5_000, 70_000)))
        sent.body += data
        kind = self.rng.random()
        if kind < 0.2:
            self.encoders[stream_id].send_data(data, False)
            sent.trailers = [(b"t", self.rng.randbytes(2).hex().encode())]
            self.encoders[stream_id].send_trailers(HeaderMap(list(sent.trailers)))
            sent.ended = True
        else:
            sent.ended = kind < 0.4
            self.encoders[stream_id].send_data(data, sent.ended)
        if sent.ended and self.role == "server" and not self.we_received[stream_id].ended:
            sent.reset = True  # the rest of the request is not wanted

    def they_send_data(self) -> None:
        ready = self.unfinished(self.they_sent)
        if not ready:
            return
        stream_id = self.rng.choice(ready)
        sent = self.they_sent[stream_id]
        room = min(self.theirs.local_flow_control_window(stream_id), self.theirs.max_outbound_frame_size)
        kind = self.rng.random()
        if kind < 0.2:
            sent.trailers = [(b"t", self.rng.randbytes(2).hex().encode())]
            self.theirs.send_headers(stream_id, sent.trailers, end_stream=True)
            sent.ended = True
            return
        sent.ended = kind < 0.4
        pad = self.rng.choice((None, None, 0, 20)) if room > 100 else None
        most = max(0, room - 30)
        data = self.rng.randbytes(min(most, self.rng.choice((1, 100, 5_000, 16_000))))
        if not data and not sent.ended:
            return
        sent.body += data
        self.theirs.send_data(stream_id, data, end_stream=sent.ended, pad_length=pad)

    def they_read(self) -> None:
        """h2 gives back windows."""
        for stream_id in list(self.unread):
            size = self.unread.pop(stream_id)
            self.theirs.acknowledge_received_data(size, stream_id)

    def we_pause(self) -> None:
        """Our end reads a stream no longer, or again; in the end it has read all."""
        live = [each for each in self.encoders if each in self.ours.connection.streams]
        if live:
            encoder = self.encoders[self.rng.choice(live)]
            encoder.read_disable(True)
            self.exchange()
            encoder.read_disable(False)

    def they_change(self) -> None:
        """Settings, pings. h2 takes the first acknowledgement for all of its settings: there is one at a time."""
        self.exchange()
        codes = h2.settings.SettingCodes
        kind = self.rng.random()
        if kind < 0.3:
            self.theirs.ping(b"12345678")
        elif kind < 0.6:
            self.theirs.update_settings({codes.INITIAL_WINDOW_SIZE: self.rng.choice((0, 10, 20_000, 65_535, 100_000))})
        elif kind < 0.8:
            self.theirs.update_settings({codes.HEADER_TABLE_SIZE: self.rng.choice((0, 50, 4096, 20_000))})
        else:
            self.theirs.increment_flow_control_window(self.rng.choice((1, 1_000, 50_000)))

    def resets(self) -> None:
        if self.rng.random() > 0.3:
            return
        live = [each for each in self.encoders if each in self.ours.connection.streams and not self.is_over(each)]
        if not live:
            return
        stream_id = self.rng.choice(live)
        self.exchange()
        if stream_id not in self.ours.connection.streams:
            return
        if self.rng.random() < 0.5:
            self.encoders[stream_id].reset(1)
            self.we_sent.setdefault(stream_id, Message()).reset = True
        else:
            try:
                self.theirs.reset_stream(stream_id)
            except h2.exceptions.ProtocolError:
                return
            self.they_sent.setdefault(stream_id, Message()).reset = True

    # -- the end

    def finish(self) -> None:
        """Let all that waits arrive."""
        self.theirs.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000})
        self.theirs.increment_flow_control_window(10_000_000)
        for _ in range(3):
            self.exchange()
            self.they_read()
        self.exchange()

    def compare(self) -> None:
        """Whoever sent, the other has it all; a reset stream may have lost its end."""
        for sent, received in ((self.we_sent, self.they_received), (self.they_sent, self.we_received)):
            for stream_id, message in sent.items():
                if self.is_over(stream_id):
                    got = received.get(stream_id)
                    assert got is None or message.body.startswith(got.body)
                    if got is not None:
                        assert message.heads[: len(got.heads)] == got.heads
                elif message.heads:
                    assert received[stream_id] == message, stream_id


def has_head(sent: dict[int, Message], stream_id: int) -> bool:
    """Whether the head of a request, or of a final response, was sent."""
    message = sent.get(stream_id)
    return message is not None and any(dict(head).get(b":status", b"-") != b"103" for head in message.heads)


@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("block", range(6))
def test_random_sessions(role: str, block: int) -> None:
    for seed in range(block * SESSIONS // 6, (block + 1) * SESSIONS // 6):
        play(role, seed)


@pytest.mark.long
@pytest.mark.parametrize("role", ["server", "client"])
@pytest.mark.parametrize("block", range(20))
def test_many_random_sessions(role: str, block: int) -> None:
    for seed in range(10_000 + 100 * block, 10_100 + 100 * block):
        play(role, seed)


def play(role: str, seed: int) -> None:
    """One session."""
    session = Session(role, random.Random(seed))
    try:
        for _ in range(STEPS):
            session.step()
        session.finish()
        session.compare()
    except Exception as error:
        raise AssertionError(f"seed {seed}") from error
    assert not session.ours.connection.should_close
