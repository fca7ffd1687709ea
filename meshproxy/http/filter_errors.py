"""What a filter's mistakes come to: each is counted and logged, and the stream fails unless it is at its end."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from meshproxy.http.filter import HttpFilter
from meshproxy.http.stream_reply import reply_past_filters
from meshproxy.net.dispatcher import CancelledError
from meshproxy.observe.log import RateLimitedLog

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

_filter_errors: Final = RateLimitedLog(logging.getLogger("meshproxy.http"), 1.0)


def on_filter_error(stream: Stream, http_filter: HttpFilter, error: BaseException) -> None:
    """A hook raised: the stream is answered 500 with the filter's name, whichever way it was going."""
    _count(stream, f"filter {http_filter.name} raised", error)
    details = f"filter_error{{{http_filter.name}|{type(error).__name__}}}"
    if stream.local_reply and not stream.response_started and not stream.done:
        reply_past_filters(stream, details)
    else:
        stream.send_local_reply(500, b"", details)


def on_timer_error(stream: Stream, error: BaseException) -> None:
    """What `Stream.call_later` called raised."""
    _count(stream, "a timer of a filter raised", error)
    stream.send_local_reply(500, b"", f"filter_error{{timer|{type(error).__name__}}}")


def tell_done(stream: Stream, http_filter: HttpFilter) -> None:
    """The filter's `on_stream_done`."""
    try:
        http_filter.on_stream_done(stream)
    except (Exception, SystemExit, CancelledError) as error:  # noqa: BLE001  a bug of one filter must not keep the others from their end
        _count(stream, f"filter {http_filter.name} raised in on_stream_done", error)


def _count(stream: Stream, message: str, error: BaseException) -> None:
    stream.config.stats.downstream_rq_filter_error += 1
    _filter_errors.error(message, error)
