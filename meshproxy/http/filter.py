"""The contract of an HTTP filter (docs/writing-filters.md).

A filter overrides the hooks that it needs; those it leaves alone are never called. A hook returns `CONTINUE` (or
nothing), or `STOP` to hold its direction until `stream.resume_request()` / `stream.resume_response()`, or a coroutine
when it must wait: the chain awaits it and goes on with what it returns. While a direction is held the chain keeps its
later data, end and trailers in order, within the watermark. A data hook may also return bytes, which replace the data.
A headers hook may ask for the whole body at once (`stream.buffer_request`, `stream.buffer_response`). A hook that sends
a local reply (`stream.send_local_reply`) returns STOP.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from google.protobuf.message import Message
from mypy_extensions import mypyc_attr

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.registry import Registry

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

CONTINUE: Final = 0  # run the next filter
STOP: Final = 1  # hold this direction here, until it is resumed

Result = int | None | Coroutine[Any, Any, int | None]
DataResult = int | bytes | None | Coroutine[Any, Any, int | bytes | None]


@mypyc_attr(allow_interpreted_subclasses=True)
class HttpFilter:
    """What passes over the messages of a stream, between the downstream and the router.

    One object per configured filter, shared by all streams: what belongs to a stream goes into
    `stream.state[self.slot]`. (Filters in Python files derive from `user_filter.HttpFilter`, which has the same hooks.)

    `slot` is the filter's index in the chain; `name` the name it is configured under, which is also the key of its
    overrides in `typed_per_filter_config`: `stream.route_config(self)` gives those of the stream's route, or None.
    """

    swappable: ClassVar[bool] = False  # it may be replaced while connections stay

    slot: int = -1
    name: str = ""
    hook_timeout_ms: float = 0.0  # how long a coroutine of a hook may take; 0: as long as it likes

    def overrides(self, hook: str) -> bool:
        """Whether the filter has a hook of its own of this name; others are not called."""
        return getattr(type(self), hook) is not getattr(HttpFilter, hook)

    def goes_on(self, stream: Stream, error: BaseException) -> bool:
        """Its hook raised, or took too long: whether the stream goes on as if the filter were not there."""
        return False

    def check_head(self, headers: HeaderMap, request: bool) -> None:
        """A coroutine of its headers hook has returned. Raises an exception when what it left cannot be sent."""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        return CONTINUE

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        return CONTINUE

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        return CONTINUE

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        return CONTINUE

    def on_stream_done(self, stream: Stream) -> None:
        """Called exactly once for every stream that entered the chain, whatever became of it."""


FilterBuilder = Callable[[Any, str, BuildContext], HttpFilter | None]
OverrideBuilder = Callable[[Any, str, BuildContext], object | None]


class HttpFilterType(NamedTuple):
    """How a configuration becomes a filter: what a file under filters/http/ registers.

    `build(message, path, context)` and `build_override` (for the message in `typed_per_filter_config`) return None
    after they
    added an error to the context.
    """

    build: FilterBuilder
    override: type[Message] | None = None
    build_override: OverrideBuilder | None = None


HTTP_FILTERS: Final[Registry[HttpFilterType]] = Registry("HTTP filter")
# Overrides are looked up by the type of their own message, as Envoy does.
HTTP_FILTER_OVERRIDES: Final[Registry[OverrideBuilder]] = Registry("per-route filter configuration")


def register_http_filter(message: type[Message], filter_type: HttpFilterType) -> None:
    """Called once by each module under filters/http/ when it is imported."""
    HTTP_FILTERS.register(message, filter_type)
    if filter_type.override is not None and filter_type.build_override is not None:
        HTTP_FILTER_OVERRIDES.register(filter_type.override, filter_type.build_override)
