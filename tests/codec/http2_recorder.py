"""Owners of HTTP/2 codecs that write down what they are told, one line an event, with the stream's number first."""

from __future__ import annotations

from meshproxy.codec.connection import ServerConnectionCallbacks
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2.client import Http2ClientCallbacks, Http2ClientConnection
from meshproxy.codec.http2.server import Http2ServerConnection
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.http2.stream import Http2Stream
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import ProtocolError
from tests.codec.http2_frames import Fields, Reader, Writer, escaped, show_fields

RESETS = {1: "local", 2: "remote", 3: "refused", 6: "termination", 8: "protocol_error"}


class Recorder(StreamDecoder):
    """Writes every event of a stream into `log`; neighbouring pieces of a body are one event."""

    def __init__(self, log: list[str], encoder: Http2Stream | None = None) -> None:
        self.log = log
        self.encoder = encoder
        self.ended = False
        self.body = 0  # bytes

    @property
    def name(self) -> str:
        """The stream's number."""
        return str(self.encoder.id) if self.encoder is not None else "?"

    def add(self, text: str, end: bool) -> None:
        """One event."""
        assert not self.ended, f"{text} after the end"
        self.ended = end
        self.log.append(f"{self.name} {text}" + (" end" if end else ""))

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        self.add(f"headers {show_fields(headers.fields)}", end)

    def on_informational(self, headers: HeaderMap) -> None:
        self.add(f"informational {show_fields(headers.fields)}", False)

    def on_data(self, data: bytes, end: bool) -> None:
        assert data or end, "an empty piece of a body"
        before = f"{self.name} data "
        self.body += len(data)
        if self.log and self.log[-1].startswith(before):
            self.add(f"data {self.log.pop().removeprefix(before)}{escaped(data)}", end)
        else:
            self.add(f"data {escaped(data)}", end)

    def on_trailers(self, trailers: HeaderMap) -> None:
        self.add(f"trailers {show_fields(trailers.fields)}", True)

    def on_reset(self, reason: int, details: str) -> None:
        self.ended = True  # a response may fail after the end of its request
        self.log.append(f"{self.name} reset {RESETS[reason]} {details}".strip())

    def on_above_write_watermark(self) -> None:
        self.log.append(f"{self.name} above")

    def on_below_write_watermark(self) -> None:
        self.log.append(f"{self.name} below")


class Server(ServerConnectionCallbacks):
    """A downstream's connection; `peer` writes the client's frames, `reader` reads ours."""

    def __init__(self, settings: Http2Settings | None = None) -> None:
        self.log: list[str] = []
        self.stats = Http2Stats()
        self.settings = settings or Http2Settings()
        self.connection = Http2ServerConnection(self, self.settings, self.stats)
        self.connection.start()
        self.encoders: dict[int, StreamEncoder] = {}
        self.recorders: dict[int, Recorder] = {}
        self.peer = Writer()
        self.reader = Reader()

    def new_stream(self, encoder: StreamEncoder) -> StreamDecoder:
        assert isinstance(encoder, Http2Stream)
        self.encoders[encoder.id] = encoder
        recorder = self.recorders[encoder.id] = self.record(encoder)
        return recorder

    def record(self, encoder: Http2Stream) -> Recorder:
        """What listens to a new stream."""
        return Recorder(self.log, encoder)

    def on_send_pending(self) -> None:
        assert self.connection.has_output

    def on_protocol_error(self, error: ProtocolError) -> None:
        assert self.connection.should_close
        self.log.append(f"error {error.details}")

    def on_ping_ack(self) -> None:
        self.log.append("ping ack")


class Client(Http2ClientCallbacks):
    """An upstream's connection."""

    def __init__(self, settings: Http2Settings | None = None) -> None:
        self.log: list[str] = []
        self.begun = False
        self.stats = Http2Stats()
        self.settings = settings or Http2Settings()
        self.connection = Http2ClientConnection(self, self.settings, self.stats)
        self.encoders: dict[int, StreamEncoder] = {}
        self.recorders: dict[int, Recorder] = {}
        self.peer = Writer()
        self.reader = Reader()

    def request(self, fields: Fields, end: bool = True) -> int:
        """Begin a request; the stream's number."""
        recorder = Recorder(self.log)
        encoder = self.connection.new_stream(recorder)
        assert isinstance(encoder, Http2Stream)
        recorder.encoder = encoder
        encoder.send_headers(HeaderMap(fields), end)
        self.encoders[encoder.id] = encoder
        self.recorders[encoder.id] = recorder
        return encoder.id

    def on_send_pending(self) -> None:
        assert not self.begun or self.connection.has_output  # the preface is written when the connection is made
        self.begun = True

    def on_stream_closed(self) -> None:
        self.log.append("closed")

    def on_max_streams(self) -> None:
        self.log.append(f"max streams {self.connection.max_streams}")

    def on_goaway(self, error_code: int) -> None:
        assert self.connection.max_streams == 0
        self.log.append(f"goaway {error_code}")

    def on_protocol_error(self, error: ProtocolError) -> None:
        self.log.append(f"error {error.details}")

    def on_ping_ack(self) -> None:
        self.log.append("ping ack")


def output(owner: Server | Client) -> bytes:
    """Everything there is to send, all of which the socket takes."""
    parts: list[bytes] = []
    while owner.connection.has_output:
        data = owner.connection.data_to_send()
        parts.extend([data] if isinstance(data, bytes) else data)
    owner.connection.on_output_written()
    return b"".join(parts)


def sent_lines(owner: Server | Client) -> list[str]:
    """The same as lines, read by others' code."""
    return owner.reader.lines(output(owner))
