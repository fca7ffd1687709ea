"""The stream interface that every HTTP codec offers and the layers above speak (DESIGN section 4).

`StreamDecoder` is told what arrives on one stream (`on_*`); `StreamEncoder` sends on it (`send_*`). A proxied request
is two such pairs back to back: the connection manager's Stream decodes a request from a downstream encoder's
connection,
the router's UpstreamRequest decodes the response. `end` comes with the last part of a message: with the headers when
there is no body, else with the last data, else with the trailers (which always end it).
"""

from __future__ import annotations

from mypy_extensions import mypyc_attr

from meshproxy.codec.headers import HeaderMap


@mypyc_attr(allow_interpreted_subclasses=True)
class StreamDecoder:
    """Told of a message's parts, in order. After `end` or `on_reset` nothing more is told."""

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        """The head of the message. The decoder owns `headers` from here on."""
        raise NotImplementedError

    def on_informational(self, headers: HeaderMap) -> None:
        """An interim response: 100 and 103 (RFC 9110 section 15.2); responses only."""

    def on_data(self, data: bytes, end: bool) -> None:
        """A piece of the body (empty only when `end`)."""
        raise NotImplementedError

    def on_trailers(self, trailers: HeaderMap) -> None:
        """The trailer section; it ends the message."""
        raise NotImplementedError

    def on_reset(self, reason: int, details: str) -> None:
        """The stream is gone before its end: `reason` is one of `errors.RESET_*`."""
        raise NotImplementedError

    def on_above_write_watermark(self) -> None:
        """What was sent on the paired encoder piles up: stop producing."""

    def on_below_write_watermark(self) -> None:
        """What was sent has drained: produce again."""


@mypyc_attr(allow_interpreted_subclasses=True)
class StreamEncoder:
    """Sends one message on a stream. Calls after `end` or a reset are no-ops."""

    def send_headers(self, headers: HeaderMap, end: bool) -> None:
        raise NotImplementedError

    def send_informational(self, headers: HeaderMap) -> None:
        raise NotImplementedError

    def send_data(self, data: bytes, end: bool) -> None:
        raise NotImplementedError

    def send_trailers(self, trailers: HeaderMap) -> None:
        raise NotImplementedError

    def reset(self, reason: int) -> None:
        """Give the stream up at once; nothing more is told to the paired decoder."""
        raise NotImplementedError

    def read_disable(self, disable: bool) -> None:
        """Stop (or go on) reading this stream's message. Counted: as many False as True turn it on again."""
        raise NotImplementedError
