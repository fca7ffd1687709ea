"""What the connections of every HTTP version have in common, as the layers above use them. No I/O.

Bytes go in by `receive_data` and `receive_eof`, which never raise, and come out by `data_to_send`; everything else is
told by callbacks.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import ProtocolError

PASS_ON_BYTES: Final = 16 * 1024  # pieces of output from this size on are not copied together with others


@mypyc_attr(allow_interpreted_subclasses=True)
class ServerConnectionCallbacks:
    """What the codec of a downstream connection tells the connection manager."""

    def new_stream(self, encoder: StreamEncoder) -> StreamDecoder:
        """A request begins; its headers follow at once, or its reset where they are none."""
        raise NotImplementedError

    def on_stream_complete(self) -> None:
        """HTTP/1: the response is sent in full, and the stream is over.

        Then the connection is closed once its output is written (`should_close`), or `read_next()` is called, here or
        later: no further request is read before that.
        """

    def on_send_pending(self) -> None:
        """The output went from empty to something: fetch it with `data_to_send()` before the turn ends."""
        raise NotImplementedError

    def on_protocol_error(self, error: ProtocolError) -> None:
        """The downstream broke the protocol. The codec reads no more; `should_close` is True.

        On HTTP/1 the answer goes to the newest encoder: a head that was refused gets its `new_stream` before this
        call. Its decoder is not told anything more (not even `on_reset`). On HTTP/2 a GOAWAY is in the output, and the
        decoders of all streams have been told `on_reset`.
        """
        raise NotImplementedError

    def on_abort(self) -> None:
        """HTTP/1: the response cannot be completed (reset, or not as long as announced): close at once."""

    def on_reading_wanted(self) -> None:
        """`reading_wanted`, which was False after `receive_data`, is True again."""

    def on_stream_closed(self) -> None:
        """HTTP/2: a stream is over, and its answer in the output."""

    def on_ping_ack(self) -> None:
        """HTTP/2: the peer has answered a `ping()`."""


class CodecConnection:
    """One connection: base of both versions' servers and clients."""

    def __init__(self) -> None:
        # Of all messages so far: bytes of field lines, received ones without the space behind the colon (as Envoy); on
        # HTTP/2, of header blocks as they were on the wire.
        self.field_bytes_received: int = 0
        self.field_bytes_sent: int = 0
        self._out: list[bytes] = []

    # -- bytes in

    def receive_data(self, data: bytes) -> None:
        """Take what the peer sent, in any split. Callbacks happen before this returns, unless reading is disabled."""
        raise NotImplementedError

    def receive_eof(self) -> None:
        """The peer sends no more."""
        raise NotImplementedError

    @property
    def buffered_bytes(self) -> int:
        """Received bytes that wait to be read."""
        raise NotImplementedError

    @property
    def reading_wanted(self) -> bool:
        """False while so much waits that the socket should pause; `on_reading_wanted` tells when it may go on."""
        raise NotImplementedError

    def forget_callbacks(self) -> None:
        """The connection is gone: nobody is told any more (else codec and callbacks kept each other alive)."""
        raise NotImplementedError

    # -- bytes out

    def on_send_pending(self) -> None:
        """There is output again."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Append to the output."""
        out = self._out
        out.append(data)
        if len(out) == 1:
            self.on_send_pending()

    def data_to_send(self) -> bytes | list[bytes]:
        """Take all output: small pieces joined with their neighbours, large ones as they are."""
        out = self._out
        if len(out) == 1:
            return out.pop()
        self._out = []
        for piece in out:
            if len(piece) >= PASS_ON_BYTES:
                return _join_small(out)
        return out[0] + out[1] if len(out) == 2 else b"".join(out)

    @property
    def output_bytes(self) -> int:
        """How much `data_to_send` has."""
        return sum([len(piece) for piece in self._out])

    @property
    def has_output(self) -> bool:
        """Whether `data_to_send` has something."""
        return bool(self._out)


def output_size(output: bytes | list[bytes]) -> int:
    """Of what `data_to_send` gave."""
    if isinstance(output, bytes):
        return len(output)
    size = 0
    for piece in output:
        size += len(piece)
    return size


def _join_small(pieces: list[bytes]) -> list[bytes]:
    joined: list[bytes] = []
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) < PASS_ON_BYTES:
            small.append(piece)
            continue
        if small:
            joined.append(b"".join(small))
            small = []
        joined.append(piece)
    if small:
        joined.append(b"".join(small))
    return joined
