"""The upstream's end of an HTTP/2 connection: requests out, responses in."""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from meshproxy.codec.connection import CodecConnection
from meshproxy.codec.http2.settings import Http2Settings
from meshproxy.codec.http2.stats import Http2Stats
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import ProtocolError


@mypyc_attr(allow_interpreted_subclasses=True)
class Http2ClientCallbacks:
    """What the codec tells the connection pool."""

    def on_send_pending(self) -> None:
        """The output went from empty to something: fetch it with `data_to_send()` before the turn ends."""
        raise NotImplementedError

    def on_stream_closed(self) -> None:
        """One stream is over, both ways or by a reset from either side; its decoder has been told before."""
        raise NotImplementedError

    def on_max_streams(self) -> None:
        """`max_streams` has changed: the peer's SETTINGS came."""

    def on_goaway(self, error_code: int) -> None:
        """The peer takes no further streams (`max_streams` is 0 from now on). Those that it has not looked at are
        reset with RESET_REMOTE_REFUSED after this call; the others go on."""
        raise NotImplementedError

    def on_protocol_error(self, error: ProtocolError) -> None:
        """The upstream broke the protocol: a GOAWAY is in the output; close when it is sent.

        The decoders of all streams are told `on_reset(RESET_PROTOCOL_ERROR)` after this call.
        """
        raise NotImplementedError

    def on_ping_ack(self) -> None:
        """The peer has answered a `ping()`."""


class Http2ClientConnection(CodecConnection):
    """Many requests at once. The preface and SETTINGS are in the output from the beginning."""

    def __init__(self, callbacks: Http2ClientCallbacks, settings: Http2Settings, stats: Http2Stats) -> None:
        super().__init__()
        self.streams_open: int = 0
        self.max_streams: int = settings.max_concurrent_streams  # how many may be open: ours, or fewer by the peer

    def new_stream(self, decoder: StreamDecoder) -> StreamEncoder:
        """Begin a request; there are fewer than `max_streams`. Its HEADERS go out with `send_headers`."""
        raise NotImplementedError

    def ping(self) -> None:
        """Ask for a sign of life: `on_ping_ack`."""
        raise NotImplementedError

    def close_streams(self, reason: int) -> None:
        """The connection is gone: every open stream's decoder is told `on_reset(reason, "")`."""
        raise NotImplementedError
