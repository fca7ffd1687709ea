"""What the HTTP/2 codec costs by itself: a request with a response through a client's and a server's connection, with
nine fields and 64 bytes each way, in memory.

    python -m bench.http2_codec         with PYTHONPATH at a compiled build, of that
"""

from __future__ import annotations

import statistics
import time
from typing import Final

from meshproxy.codec.connection import ServerConnectionCallbacks
from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2.client import Http2ClientCallbacks, Http2ClientConnection
from meshproxy.codec.http2.server import Http2ServerConnection
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import ProtocolError
from meshproxy.version import is_compiled

ROUNDS: Final = 7
REQUESTS: Final = 20_000

_BODY: Final = b"b" * 64
_REQUEST: Final = [
    (b":authority", b"example.com"),
    (b":path", b"/shop.Cart/Add"),
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b"user-agent", b"grpc-python/1.60"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    (b"x-forwarded-proto", b"http"),
    (b"accept", b"*/*"),
]
_RESPONSE: Final = [
    (b":status", b"200"),
    (b"server", b"envoy"),
    (b"date", b"Sat, 21 Nov 2026 16:48:11 GMT"),
    (b"content-type", b"application/grpc"),
    *((b"x-field-%d" % number, b"value") for number in range(5)),
]


class _Answers(StreamDecoder):
    """The server's end of a stream, and, without an encoder, the client's."""

    def __init__(self, encoder: StreamEncoder | None) -> None:
        self._encoder = encoder

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        return

    def on_data(self, data: bytes, end: bool) -> None:
        if end and self._encoder is not None:
            self._encoder.send_headers(HeaderMap(_RESPONSE.copy()), False)
            self._encoder.send_data(_BODY, True)

    def on_reset(self, reason: int, details: str) -> None:
        raise RuntimeError(f"reset for {reason}: {details}")


class _Server(ServerConnectionCallbacks):
    def new_stream(self, encoder: StreamEncoder) -> StreamDecoder:
        return _Answers(encoder)

    def on_send_pending(self) -> None:
        return

    def on_protocol_error(self, error: ProtocolError) -> None:
        raise error


class _Client(Http2ClientCallbacks):
    def on_send_pending(self) -> None:
        return

    def on_stream_closed(self) -> None:
        return

    def on_protocol_error(self, error: ProtocolError) -> None:
        raise error


def exchange_us(requests: int) -> float:
    """CPU µs of one request and its response, both ends together."""
    server = Http2ServerConnection(_Server(), Http2Settings(), Http2Stats())
    server.start()
    client = Http2ClientConnection(_Client(), Http2Settings(), Http2Stats())
    decoder = _Answers(None)
    began = time.process_time()
    for _ in range(requests):
        stream = client.new_stream(decoder)
        stream.send_headers(HeaderMap(_REQUEST.copy()), False)
        stream.send_data(_BODY, True)
        server.receive_data(_output(client))
        client.receive_data(_output(server))
    return (time.process_time() - began) / requests * 1e6


def _output(connection: Http2ClientConnection | Http2ServerConnection) -> bytes:
    connection.on_output_written()
    output = connection.data_to_send()
    return output if isinstance(output, bytes) else b"".join(output)


def main() -> None:
    exchange_us(REQUESTS // 10)
    rounds = [exchange_us(REQUESTS) for _ in range(ROUNDS)]
    compiled = "compiled" if is_compiled() else "not compiled"
    print(
        f"HTTP/2 codec, {compiled}: {statistics.median(rounds) / 2:.1f} µs for each end of a request and its response "
        f"({min(rounds) / 2:.1f} to {max(rounds) / 2:.1f} in {ROUNDS} rounds of {REQUESTS:,})"
    )


if __name__ == "__main__":
    main()
