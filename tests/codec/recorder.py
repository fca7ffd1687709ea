"""Owners of codecs that write down what they are told, one line an event."""

from meshproxy.codec.connection import ServerConnectionCallbacks
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http1.client import ClientConnectionCallbacks, Http1ClientConnection
from meshproxy.codec.http1.server import Http1ServerConnection
from meshproxy.codec.http1.settings import Http1Settings
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import ProtocolError

RESETS = {1: "local", 6: "termination", 8: "protocol_error"}


def escaped(data: bytes) -> str:
    """Bytes as they stand in a playbook."""
    return data.decode("latin-1").encode("unicode_escape").decode().replace("\\\\", "\\")


def unescaped(text: str) -> bytes:
    """The bytes that a playbook's text stands for."""
    return text.encode().decode("unicode_escape").encode("latin-1")


def block(headers: HeaderMap) -> str:
    """`name=value` of every field."""
    return " ".join(escaped(name) + "=" + escaped(value) for name, value in headers.fields)


class Recorder(StreamDecoder):
    """Writes every event of a stream into `log`; neighbouring pieces of a body are one event."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.ended = False
        self.reset = False

    def _end(self, text: str, end: bool) -> None:
        assert not self.ended, f"{text} after the end"
        self.ended = end
        self.log.append(text + (" end" if end else ""))

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        self._end(f"headers {block(headers)}", end)

    def on_informational(self, headers: HeaderMap) -> None:
        self._end(f"informational {block(headers)}", False)

    def on_data(self, data: bytes, end: bool) -> None:
        assert data or end, "an empty piece of a body"
        before = ""
        if self.log and self.log[-1].startswith("data "):
            before = self.log.pop()[5:]
        self._end(f"data {before}{escaped(data)}", end)

    def on_trailers(self, trailers: HeaderMap) -> None:
        self._end(f"trailers {block(trailers)}", True)

    def on_reset(self, reason: int, details: str) -> None:
        assert not self.reset, "reset twice"
        self.ended = self.reset = True  # A response may fail after the end of its request.
        self.log.append(f"reset {RESETS[reason]} {details}".strip())


class Downstream(ServerConnectionCallbacks):
    """A server's connection. `answer`: every request gets a 200 as soon as it is complete, a broken one its status."""

    def __init__(self, settings: Http1Settings, answer: bool = False) -> None:
        self.log: list[str] = []
        self.connection = Http1ServerConnection(self, settings)
        self.encoder: StreamEncoder | None = None
        self.answer = answer
        self.streams = 0

    def new_stream(self, encoder: StreamEncoder) -> StreamDecoder:
        self.encoder = encoder
        self.streams += 1
        return _Answering(self, self.log, encoder) if self.answer else Recorder(self.log)

    def on_send_pending(self) -> None:
        assert self.connection.has_output

    def on_stream_complete(self) -> None:
        self.log.append("complete" + (" close" if self.connection.should_close else ""))
        if self.answer:
            self.connection.read_next()

    def on_protocol_error(self, error: ProtocolError) -> None:
        self.log.append(f"error {error.status} {error.details}")
        if self.answer and self.encoder is not None:
            self.encoder.send_headers(HeaderMap([(b":status", b"%d" % error.status)]), True)

    def on_abort(self) -> None:
        self.log.append("abort")

    def on_reading_wanted(self) -> None:
        self.log.append("reading wanted")


class _Answering(Recorder):
    def __init__(self, owner: Downstream, log: list[str], encoder: StreamEncoder) -> None:
        super().__init__(log)
        self.owner = owner
        self.encoder = encoder

    def _end(self, text: str, end: bool) -> None:
        super()._end(text, end)
        if end:
            self.encoder.send_headers(HeaderMap([(b":status", b"200"), (b"content-length", b"2")]), False)
            self.encoder.send_data(b"ok", True)


class Upstream(ClientConnectionCallbacks):
    """A client's connection."""

    def __init__(self, settings: Http1Settings) -> None:
        self.log: list[str] = []
        self.connection = Http1ClientConnection(self, settings)
        self.encoder: StreamEncoder | None = None

    def request(self, fields: list[tuple[bytes, bytes]], end: bool = True) -> StreamEncoder:
        """Begin a request."""
        self.encoder = self.connection.new_stream(Recorder(self.log))
        self.encoder.send_headers(HeaderMap(fields), end)
        return self.encoder

    def on_stream_complete(self, reusable: bool) -> None:
        self.log.append("complete" + (" reusable" if reusable else ""))

    def on_send_pending(self) -> None:
        assert self.connection.has_output

    def on_protocol_error(self, error: ProtocolError) -> None:
        self.log.append(f"error {error.status} {error.details}")

    def on_abort(self) -> None:
        self.log.append("abort")

    def on_reading_wanted(self) -> None:
        self.log.append("reading wanted")


def output(connection: Http1ServerConnection | Http1ClientConnection) -> bytes:
    """Everything there is to send."""
    data = connection.data_to_send()
    return data if isinstance(data, bytes) else b"".join(data)
