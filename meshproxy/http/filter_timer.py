"""The timers of filters: `Stream.call_later`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from meshproxy.http.filter_errors import on_timer_error
from meshproxy.net.dispatcher import CancelledError
from meshproxy.net.timers import Timer

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream


class FilterTimer(Timer):
    """Of a filter, for one stream, which disarms it at its end."""

    def __init__(self, stream: Stream, callback: Callable[[], object]) -> None:
        super().__init__()
        self._stream = stream
        self._callback = callback

    def on_timer(self) -> None:
        stream = self._stream
        if stream.done:
            return
        try:
            self._callback()
        except (Exception, SystemExit, CancelledError) as error:  # noqa: BLE001  a user's code
            on_timer_error(stream, error)
