"""The filter chain: which filters have which hooks, and one direction of one stream on its way through them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import mypyc_attr

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.filter import CONTINUE, HttpFilter
from meshproxy.net.dispatcher import Task
from meshproxy.route.route import DISABLED, Route

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

# The parts of a message, as they pass a chain.
HEADERS: Final = 0
DATA: Final = 1
TRAILERS: Final = 2

_HOOKS: Final = (
    ("on_request_headers", "on_request_data", "on_request_trailers"),
    ("on_response_headers", "on_response_data", "on_response_trailers"),
)
Filters = tuple[HttpFilter, ...]


class FilterChain:
    """The configured filters of a connection manager, without the router that ends them. Never changes.

    Only the hooks that a filter overrides are kept, so the others cost nothing. `filters` holds all of them, also
    those that are
    `disabled` until a route enables them.
    """

    def __init__(self, filters: Filters, disabled: frozenset[str] = frozenset()) -> None:
        self.filters = filters
        self.disabled = disabled
        self.size: int = len(filters)
        active = tuple(f for f in filters if f.name not in disabled)
        self.request: tuple[Filters, ...] = tuple(_overriding(name, active) for name in _HOOKS[0])
        self.response: tuple[Filters, ...] = tuple(_overriding(name, active[::-1]) for name in _HOOKS[1])
        self.done: Filters = _overriding("on_stream_done", active)
        self.has_request_hooks: bool = any(self.request)
        self.has_response_hooks: bool = any(self.response)
        self._variants: dict[frozenset[str], FilterChain] = {}

    def for_route(self, route: Route | None) -> FilterChain:
        """This chain, less what the route disables, plus what it enables."""
        if route is None or (not route.toggles_filters and not self.disabled):
            return self
        configs = route.filter_configs
        disabled = frozenset(
            f.name
            for f in self.filters
            if configs.get(f.name) is DISABLED or (f.name in self.disabled and f.name not in configs)
        )
        if disabled == self.disabled:
            return self
        variant = self._variants.get(disabled)
        if variant is None:
            variant = self._variants[disabled] = FilterChain(self.filters, disabled)
        return variant


def _overriding(name: str, filters: Filters) -> Filters:
    return tuple(f for f in filters if getattr(type(f), name) is not getattr(HttpFilter, name))


@mypyc_attr(allow_interpreted_subclasses=False)
class FilterPath:
    """One direction of a stream: its parts pass filter after filter, in order, each part all the way.

    When a hook says STOP, or is a coroutine, the path is *held*: the part stays before the next filter, its source is
    read-disabled, and parts that come all the same wait in `_queue`. `resume` goes on exactly there. A data hook may
    `keep` the rest of its data: it is called with it again, before anything that came later.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.held: bool = False
        self.done: bool = False  # a local reply, a reset or the end: hooks are not called any more
        self._kind: int = HEADERS
        self._part: Any = None
        self._end: bool = False
        self._index: int = 0
        self._queue: list[tuple[int, Any, bool, int]] | None = None  # kind, part, end, index of the next filter
        self._rest: bytes | None = None
        self._task: Task[Any] | None = None

    # what a direction is made of
    def filters(self, kind: int) -> Filters:
        raise NotImplementedError

    def call(self, http_filter: HttpFilter, kind: int, part: Any, end: bool) -> Any:
        raise NotImplementedError

    def pass_on(self, kind: int, part: Any, end: bool) -> None:
        raise NotImplementedError

    def read_disable(self, disable: bool) -> None:
        raise NotImplementedError

    def push(self, kind: int, part: Any, end: bool) -> None:
        """The next part of the message."""
        if self.done:
            return
        if self.held or self._queue is not None:
            if self._queue is None:
                self._queue = []
            self._queue.append((kind, part, end, 0))
            return
        self._run(kind, part, end, 0)

    def resume(self) -> None:
        """Go on behind the filter that held the path; no-op when none does, or the stream is done."""
        if not self.held or self.done or self._task is not None:
            return
        self.held = False
        kind, part, end, index = self._kind, self._part, self._end, self._index
        self._part = None
        self._run(kind, part, end, index)
        self._drain()
        if not self.done:
            self.read_disable(False)  # for this hold; another may have begun meanwhile

    def keep(self, rest: bytes) -> None:
        """For a data hook: `rest` of its data comes to it again, after what it returns has passed, or when it
        resumes."""
        self._rest = rest

    def finish(self) -> None:
        """No hook is called from here on, and one that waits is cancelled."""
        self.done = True
        self._queue = None
        self._part = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def _drain(self) -> None:
        while not self.held and not self.done and self._queue is not None:
            queue = self._queue
            if not queue:
                self._queue = None
                return
            kind, part, end, index = queue.pop(0)
            self._run(kind, part, end, index)

    def _run(self, kind: int, part: Any, end: bool, index: int) -> None:
        filters = self.filters(kind)
        while index < len(filters):
            http_filter = filters[index]
            index += 1
            try:
                result = self.call(http_filter, kind, part, end)
            except Exception as error:  # noqa: BLE001  a filter's bug is a 500 of its stream (DESIGN section 5)
                self.stream.on_filter_error(http_filter, error)
                return
            if self.done:
                if isinstance(result, Coroutine):
                    result.close()
                return
            if self._rest is not None:
                rest, self._rest = self._rest, None
                if not isinstance(result, bytes):
                    self._hold(kind, rest, end, index - 1)
                    return
                self._run(kind, result, False, index)
                if self._is_done():  # through what the beginning met further on
                    return
                part = rest
                index -= 1
                if self.held:
                    self._keep_first(kind, part, end, index)
                    return
                continue
            if isinstance(result, int):
                if result == CONTINUE:
                    continue
                self._hold(kind, part, end, index)
                return
            if isinstance(result, bytes):
                part = result
                continue
            self._hold(kind, part, end, index)
            self._await(http_filter, result)
            return
        if kind == DATA and not part and not end:
            return
        self.pass_on(kind, part, end)

    def _is_done(self) -> bool:
        return self.done

    def _keep_first(self, kind: int, part: Any, end: bool, index: int) -> None:
        if self._queue is None:
            self._queue = []
        self._queue.insert(0, (kind, part, end, index))

    def _hold(self, kind: int, part: Any, end: bool, index: int) -> None:
        self.held = True
        self._kind = kind
        self._part = part
        self._end = end
        self._index = index
        self.read_disable(True)

    def _await(self, http_filter: HttpFilter, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._task = self.stream.dispatcher.run(
            coroutine, f"filter {http_filter.name}", _TaskResult(self, http_filter).on_done
        )

    def on_task_done(self, http_filter: HttpFilter, task: Task[Any]) -> None:
        """A coroutine of a hook ended: with CONTINUE, STOP, bytes that replace the data, or an exception."""
        if task is not self._task:
            return
        self._task = None
        error = task.exception()
        if error is not None:
            self.stream.on_filter_error(http_filter, error)
            return
        result = task.result()
        if isinstance(result, bytes):
            self._part = result
            self.resume()
        elif result == CONTINUE:
            self.resume()


class _TaskResult:
    """Remembers which filter a task belongs to."""

    def __init__(self, path: FilterPath, http_filter: HttpFilter) -> None:
        self._path = path
        self._filter = http_filter

    def on_done(self, task: Task[Any]) -> None:
        if not task.cancelled():
            self._path.on_task_done(self._filter, task)


class RequestPath(FilterPath):
    """Downstream to upstream: the filters in order, then the router."""

    def filters(self, kind: int) -> Filters:
        return self.stream.chain.request[kind]

    def call(self, http_filter: HttpFilter, kind: int, part: Any, end: bool) -> Any:
        if kind == HEADERS:
            assert isinstance(part, HeaderMap)
            return http_filter.on_request_headers(self.stream, part, end)
        if kind == DATA:
            return http_filter.on_request_data(self.stream, part, end)
        assert isinstance(part, HeaderMap)
        return http_filter.on_request_trailers(self.stream, part)

    def pass_on(self, kind: int, part: Any, end: bool) -> None:
        self.stream.route_part(kind, part, end)

    def read_disable(self, disable: bool) -> None:
        self.stream.read_disable_request(disable)


class ResponsePath(FilterPath):
    """Upstream to downstream: the filters in reverse, then the codec."""

    def filters(self, kind: int) -> Filters:
        return self.stream.chain.response[kind]

    def call(self, http_filter: HttpFilter, kind: int, part: Any, end: bool) -> Any:
        if kind == HEADERS:
            assert isinstance(part, HeaderMap)
            return http_filter.on_response_headers(self.stream, part, end)
        if kind == DATA:
            return http_filter.on_response_data(self.stream, part, end)
        assert isinstance(part, HeaderMap)
        return http_filter.on_response_trailers(self.stream, part)

    def pass_on(self, kind: int, part: Any, end: bool) -> None:
        self.stream.encode_part(kind, part, end)

    def read_disable(self, disable: bool) -> None:
        self.stream.read_disable_response(disable)
