"""The contract of filters in Python files: what `from meshproxy import HttpFilter` gives (docs/writing-filters.md).

The hooks are those of `filter.HttpFilter`. That class is compiled, and instances of classes that derive from it would
keep these for ever (mypyc's native types do not give back the reference that each instance has of its class); so users
derive from this one, which is never compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.filter import CONTINUE, DataResult, Result

if TYPE_CHECKING:
    from meshproxy.http.filter_context import FilterContext
    from meshproxy.http.stream import Stream


class HttpFilter:
    """Sees the messages of a stream, between the downstream and the router.

    Each stream has an instance of its own, unless the class is `shared`. Override the hooks that you need; the others
    are not called. `config` is what the configuration says, as the dataclass that annotates it in your class; `context`
    is the configured filter's, and outlives the stream.
    """

    shared: ClassVar[bool] = False  # one instance for all streams
    # A limit in bytes makes the data hook see the whole body at once; the headers wait for it.
    buffer_request: ClassVar[int] = 0
    buffer_response: ClassVar[int] = 0

    config: Any
    context: FilterContext
    name: str

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        """The configured filter takes effect in this worker: the place to set `context.state`, and to spawn tasks."""

    @classmethod
    def on_stop(cls, context: FilterContext) -> None:
        """The configured filter has ended: it was replaced or removed, and its last stream is done."""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        """The head of the request; `end`: it has no body."""
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        """A piece of the request's body, `end`: the last one. Bytes that it returns replace it."""
        return CONTINUE

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        """The trailers of the request, after the last piece of its body."""
        return CONTINUE

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        """The head of the response, be it an upstream's or the proxy's own."""
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        """A piece of the response's body, as `on_request_data`."""
        return CONTINUE

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        """The trailers of the response."""
        return CONTINUE

    def on_stream_done(self, stream: Stream) -> None:
        """The end of the stream, however it came: exactly once."""


class LeftOut(HttpFilter):
    """In place of an instance whose hook failed: no hook of that is called any more, but the end of its stream."""

    def __init__(self, failed: HttpFilter | None) -> None:
        self._failed = failed

    def on_stream_done(self, stream: Stream) -> None:
        if self._failed is not None:
            self._failed.on_stream_done(stream)
