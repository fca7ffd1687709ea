"""The filter chain: which filters have which hooks, and one direction of one stream on its way through them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import mypyc_attr

from meshproxy.codec.headers import HeaderMap
from meshproxy.errors import HookTimeoutError, MeshProxyError
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter
from meshproxy.net.dispatcher import CancelledError, Task
from meshproxy.net.timers import CallTimer
from meshproxy.route.route import DISABLED, Route

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

# The parts of a message, as they pass a chain.
HEADERS: Final = 0
DATA: Final = 1
TRAILERS: Final = 2
NOTHING: Final = -1

_HOOKS: Final = (
    ("on_request_headers", "on_request_data", "on_request_trailers"),
    ("on_response_headers", "on_response_data", "on_response_trailers"),
)
Filters = tuple[HttpFilter, ...]
_UNLIMITED: Final = 1 << 60  # a local reply is not refused for its size
_MOST_SENT: Final = 10_000  # parts, by hooks that were called with what hooks sent


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

    def adopt(self, newer: FilterChain) -> FilterChain:
        """This chain with those filters of `newer`, which is configured alike, that may be replaced at any time."""
        if not any(f.swappable for f in self.filters):
            return self
        pairs = zip(self.filters, newer.filters, strict=True)
        return FilterChain(tuple(new if new.swappable else old for old, new in pairs), self.disabled)

    def with_filter(self, built: HttpFilter) -> FilterChain:
        """This chain with the filter in the place that its `slot` says."""
        filters = tuple(built if each.slot == built.slot else each for each in self.filters)
        return FilterChain(filters, self.disabled)

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
        return self._variant(disabled)

    def for_route_behind(self, route: Route, slot: int) -> FilterChain:
        """As `for_route`, when the request has come as far as the filter in `slot`: those before stay as they were."""
        wanted = self.for_route(route).disabled
        settled = frozenset(f.name for f in self.filters if f.slot <= slot)
        return self._variant((wanted - settled) | (self.disabled & settled))

    def _variant(self, disabled: frozenset[str]) -> FilterChain:
        if disabled == self.disabled:
            return self
        variant = self._variants.get(disabled)
        if variant is None:
            variant = self._variants[disabled] = FilterChain(self.filters, disabled)
        return variant


def _overriding(name: str, filters: Filters) -> Filters:
    return tuple(f for f in filters if f.overrides(name))


class Collection:
    """The body of a message, as a filter collects it; the headers wait with it.

    `direction` is 1 for a request, which passes the filters in order of their slots, and -1 for a response.
    """

    def __init__(self, limit_bytes: int, direction: int, cut: bool) -> None:
        self.http_filter: HttpFilter | None = None
        self.headers: HeaderMap | None = None
        self.headers_index: int = 0  # of the next filter, for the headers
        self.size: int = 0
        self._limit_bytes = limit_bytes
        self._direction = direction
        self._cut = cut  # what comes beyond the limit is lost
        self.passes: bool = False  # nothing is kept: the filter's hooks get each part, and say when the headers go on
        self._pieces: list[bytes] = []

    def begin(self, http_filter: HttpFilter, headers: HeaderMap, headers_index: int) -> None:
        self.http_filter = http_filter
        self.headers = headers
        self.headers_index = headers_index

    def add(self, data: bytes) -> bool:
        """False when it is more than the limit."""
        if self._cut:
            data = data[: self._limit_bytes - self.size]
        self._pieces.append(data)
        self.size += len(data)
        return self.size <= self._limit_bytes

    def take(self) -> bytes:
        return b"".join(self._pieces)

    def index_in(self, filters: Filters) -> int:
        """How many of the filters stand before the one that collects."""
        http_filter = self.http_filter
        return len(filters) if http_filter is None else _count_before(filters, http_filter.slot, self._direction)


def _count_before(filters: Filters, slot: int, direction: int) -> int:
    """How many of the filters stand before the slot."""
    for index in range(len(filters)):
        if filters[index].slot * direction >= slot * direction:
            return index
    return len(filters)


def _is_result(result: Any, kind: int) -> bool:
    """Whether a hook may return this."""
    if isinstance(result, bytes):
        return kind == DATA
    if isinstance(result, int):
        return result in (CONTINUE, STOP) and not isinstance(result, bool)
    return result is None or isinstance(result, Coroutine)


def _wrong_result(result: Any, kind: int) -> TypeError:
    allowed = "CONTINUE, STOP, bytes or a coroutine" if kind == DATA else "CONTINUE, STOP or a coroutine"
    shown = repr(result) if isinstance(result, int) else type(result).__name__
    return TypeError(f"a hook returned {shown}: it may return {allowed}")


@mypyc_attr(allow_interpreted_subclasses=False)
class FilterPath:
    """One direction of a stream: its parts pass filter after filter, in order, each part all the way.

    When a hook says STOP, or is a coroutine, the path is *held*: the part stays before the next filter, its source is
    read-disabled, and parts that come all the same wait in `_queue`. `resume` goes on exactly there. A data hook may
    `keep` the rest of its data: it is called with it again, before anything that came later. A headers hook may
    `collect` the body: headers and data wait at its filter until all data is there, and go on together. What a hook
    itself sends in its own direction waits until the part has passed that it was called with.
    """

    def __init__(self, stream: Stream, direction: int) -> None:
        self.stream = stream
        self._direction = direction
        self.held: bool = False
        self.done: bool = False  # a local reply, a reset or the end: hooks are not called any more
        self._hook: int = NOTHING  # the kind of part whose hook runs
        self._sent: int = 0  # parts, by hooks, since the path had nothing left to do
        self._kind: int = HEADERS  # of the part that is held
        self._part: Any = None
        self._end: bool = False
        self._index: int = 0
        self._queue: list[tuple[int, Any, bool, int]] | None = None  # kind, part, end, index of the next filter
        self._rest: bytes | None = None
        self._added: HeaderMap | bytes | None = None
        self._task: Task[Any] | None = None
        self._budget: CallTimer | None = None  # of the time that `_task` may take
        self._collection: Collection | None = None  # a filter that waits for the whole body
        self._collected: Collection | None = None  # its headers, that are to go on before the part that is held

    # what a direction is made of
    def filters(self, kind: int) -> Filters:
        raise NotImplementedError

    def call(self, http_filter: HttpFilter, kind: int, part: Any, end: bool) -> Any:
        raise NotImplementedError

    def pass_on(self, kind: int, part: Any, end: bool) -> None:
        raise NotImplementedError

    def read_disable(self, disable: bool) -> None:
        raise NotImplementedError

    def too_large(self) -> None:
        """More came than the filter that collects can take."""
        raise NotImplementedError

    def push(self, kind: int, part: Any, end: bool) -> None:
        """The next part of the message."""
        if self.done:
            return
        if self.held or self._hook != NOTHING or self._queue is not None:
            if self._queue is None:
                self._queue = []
            if self._hook != NOTHING:
                self._sent += 1
                if self._sent > _MOST_SENT:
                    raise MeshProxyError("a hook sends in its own direction without end")
            self._queue.append((kind, part, end, 0))
            return
        self._run(kind, part, end, 0)
        self._drain()

    def resume(self) -> None:
        """Go on behind the filter that held the path; no-op when none does, or the stream is done."""
        if not self.held or self.done or self._task is not None:
            return
        self.held = False
        kind, part, end, index = self._kind, self._part, self._end, self._index
        self._part = None
        if self._collected is not None:
            self._release(self._collected, kind, part, end, index)
        elif self._added is not None:
            self._queue_added(kind, part, end, index)
        elif kind != HEADERS or self._collection is None:  # else they wait for their body
            self._run(kind, part, end, index)
        self._drain()
        if not self.done:
            self.read_disable(False)  # for this hold; another may have begun meanwhile

    def go_on_behind(self, slot: int) -> None:
        """The stream's chain is another one, alike as far as the filter in `slot`, which holds the path."""
        self._index = _count_before(self.filters(self._kind), slot + self._direction, self._direction)

    def keep(self, rest: bytes) -> None:
        """For a data hook: `rest` of its data comes to it again, after what it returns has passed, or when it
        resumes. Raises MeshProxyError outside of one, and where the whole body was collected."""
        if (self.held and self._task is None) or self._kind_in_hook() != DATA or self._collected is not None:
            raise MeshProxyError("data can be kept by a data hook only, and not when it asked for the whole body")
        self._rest = rest

    def add(self, part: HeaderMap | bytes) -> None:
        """For a hook that lets its part pass: the headers hook puts a body behind headers without one, the trailers
        hook puts data before the trailers, the data hook puts trailers behind the last data. What is added passes the
        filters behind this one; a body, its own data hook too. Raises MeshProxyError elsewhere."""
        kind = self._kind_in_hook()
        if (kind == DATA) == isinstance(part, bytes) or kind == NOTHING:
            raise MeshProxyError("data can be added by a headers or trailers hook only, trailers by a data hook only")
        self._added = part

    def collect(self, limit_bytes: int, cut: bool = False) -> None:
        """For a headers hook: its data hook is called once, with the whole body, before the headers go on; a `cut`
        body ends at the limit. Raises MeshProxyError when the headers are not in a hook."""
        if self._kind_in_hook() != HEADERS:
            raise MeshProxyError("a body can be asked for by a hook of its own headers only")
        collection = Collection(limit_bytes, self._direction, cut)
        if self._hook == HEADERS:
            self._collection = collection  # it begins when the hook has returned
        elif not self._end:
            self._collection = collection
            collection.begin(self.filters(HEADERS)[self._index - 1], self._part, self._index)

    def wait(self) -> None:
        """For a headers hook: they wait at its filter, whose other hooks are called as ever, until these let something
        pass: data, or the end. Until then no hook of the filter may hold the message. Raises MeshProxyError elsewhere.
        """
        if self._hook != HEADERS:
            raise MeshProxyError("headers can be made to wait by their hook only")
        self._collection = Collection(0, self._direction, False)
        self._collection.passes = True

    def _kind_in_hook(self) -> int:
        """What is in a hook, or held by one: the hook, its coroutine or its timer may use the path's verbs."""
        return self._kind if self.held else self._hook

    def finish(self) -> None:
        """No hook is called from here on, and one that waits is cancelled."""
        self.done = True
        self._queue = None
        self._part = None
        self._collection = self._collected = None
        task = self._forget_task()
        if task is not None:
            task.cancel()

    def _drain(self) -> None:
        while not self.held and not self.done and self._queue is not None:
            queue = self._queue
            if not queue:
                self._queue = None
                self._sent = 0
                return
            kind, part, end, index = queue.pop(0)
            self._run(kind, part, end, index)

    def _run(self, kind: int, part: Any, end: bool, index: int) -> None:
        filters = self.filters(kind)
        behind = len(filters)
        if self._collection is not None:
            behind = self._collection.index_in(filters)
        while index < behind:
            http_filter = filters[index]
            index += 1
            result = self._call(http_filter, kind, part, end)
            if self._is_done():
                return
            if self._rest is not None and not isinstance(result, Coroutine):
                rest, self._rest = self._rest, None
                if not isinstance(result, bytes):
                    self._hold(kind, rest, end, index - 1, http_filter, result)
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
            if kind == HEADERS and self._collection is not None and self._begins(http_filter, part, end, index):
                if result is not None:
                    self._hold(kind, part, end, index, http_filter, result)
                return
            if isinstance(result, bytes):
                part = result
            elif result is not None:
                self._hold(kind, part, end, index, http_filter, result)
                return
            if self._added is not None:
                self._queue_added(kind, part, end, index)
                return
        if kind == DATA and not part and not end:
            return
        if self._collection is not None:
            self._add(self._collection, kind, part, end)
        else:
            self.pass_on(kind, part, end)

    def _call(self, http_filter: HttpFilter, kind: int, part: Any, end: bool) -> Any:
        """What the hook returned that is no CONTINUE: STOP, bytes, a coroutine; else None. Without it where it failed
        and the stream goes on; else the path is done."""
        self._hook = kind
        try:
            result = self.call(http_filter, kind, part, end)
        except (Exception, SystemExit, CancelledError) as error:  # noqa: BLE001  a filter's bug is a 500 of its stream
            self._hook = NOTHING
            self._fails(http_filter, error)
            return None
        self._hook = NOTHING
        if self.done:
            if isinstance(result, Coroutine):
                result.close()
            return None
        if result is None or (isinstance(result, int) and result == CONTINUE):
            return None
        if not _is_result(result, kind):
            self._fails(http_filter, _wrong_result(result, kind))
            return None
        return result

    def _queue_added(self, kind: int, part: Any, end: bool, index: int) -> None:
        """The end of a message, with what a filter added before it (data), or behind it (trailers, a body)."""
        added, self._added = self._added, None
        http_filter = self.filters(kind)[index - 1]
        if not end:
            if not self._fails(http_filter, MeshProxyError("a part can be added at the end of the message only")):
                self._keep_first(kind, part, end, index)
            return
        if kind == HEADERS:
            self._keep_first(DATA, added, True, _count_before(self.filters(DATA), http_filter.slot, self._direction))
            self._keep_first(HEADERS, part, False, index)
            return
        other = TRAILERS if kind == DATA else DATA
        behind = _count_before(self.filters(other), http_filter.slot + self._direction, self._direction)
        if kind == DATA:
            self._keep_first(TRAILERS, added, True, behind)
            if part:
                self._keep_first(DATA, part, False, index)
        else:
            self._keep_first(TRAILERS, part, True, index)
            self._keep_first(DATA, added, False, behind)

    # -- a body that is collected

    def _begins(self, http_filter: HttpFilter, headers: HeaderMap, end: bool, index: int) -> bool:
        """The filter's headers hook asked for the body; False when there will be none."""
        collection = self._collection
        if end or collection is None or collection.headers is not None:
            self._collection = None if end else collection
            return False
        collection.begin(http_filter, headers, index)
        return True

    def _add(self, collection: Collection, kind: int, part: Any, end: bool) -> None:
        """What came as far as the filter that collects: with the last of it, the whole body passes that filter."""
        if collection.passes:
            self._pass_by(collection, kind, part, end)
            return
        if kind == DATA:
            if not collection.add(part):
                self.too_large()
                return
            if not end:
                return
        else:
            self._keep_first(kind, part, end, collection.index_in(self.filters(kind)))
        self._collection = None
        self._collected = collection
        filters = self.filters(DATA)
        index = collection.index_in(filters)
        if index < len(filters) and filters[index] is collection.http_filter:
            self._pass_body(filters[index], collection, collection.take(), kind == DATA, index + 1)
        else:
            self._release(collection, DATA, collection.take(), kind == DATA, index)

    def _pass_by(self, collection: Collection, kind: int, part: Any, end: bool) -> None:
        """A part has come to the filter at which its headers wait: if it lets it pass, they go on before it."""
        filters = self.filters(kind)
        index = collection.index_in(filters)
        if index < len(filters) and filters[index] is collection.http_filter:
            result = self._call(filters[index], kind, part, end)
            if self.done:
                return
            if self._rest is not None or not (result is None or isinstance(result, bytes)):
                if isinstance(result, Coroutine):
                    result.close()
                if self._fails(filters[index], TypeError("a hook held the message while its headers wait")):
                    return
            elif result is not None:
                part = result
            index += 1
        if kind == DATA and not part and not end and self._collection is collection:
            return
        headers = collection.headers
        assert headers is not None
        self._collection = None
        if self._added is None:
            self._keep_first(kind, part, end, index)
        else:
            self._queue_added(kind, part, end, index)
        if not self._is_done():
            self._run(HEADERS, headers, False, collection.headers_index)

    def _pass_body(self, http_filter: HttpFilter, collection: Collection, body: bytes, end: bool, index: int) -> None:
        """What the filter's data hook returns decides when headers and body go on, and as what."""
        result = self._call(http_filter, DATA, body, end)
        if self.done:
            return
        if isinstance(result, bytes):
            body = result
        elif result is not None:
            self._hold(DATA, body, end, index, http_filter, result)
            return
        self._release(collection, DATA, body, end, index)

    def _release(self, collection: Collection, kind: int, part: Any, end: bool, index: int) -> None:
        """The headers whose body was collected go on; the body follows from the queue."""
        self._collected = None
        headers = collection.headers
        assert headers is not None
        if collection.size != len(part) and headers.get(b"content-length") is not None:
            headers.set(b"content-length", b"%d" % len(part))
        if self._added is not None:
            self._queue_added(kind, part, end, index)
            if self._is_done():
                return
        else:
            self._keep_first(kind, part, end, index)
        self._run(HEADERS, headers, False, collection.headers_index)

    # -- what goes wrong

    def _fails(self, http_filter: HttpFilter, error: BaseException) -> bool:
        """Whether the stream fails with its filter's hook; if not, it goes on as if the filter were not there."""
        self._rest = self._added = None
        collection = self._collection
        if collection is not None and (collection.headers is None or collection.http_filter is http_filter):
            self._collection = None
        if http_filter.goes_on(self.stream, error):
            return False
        self.stream.on_filter_error(http_filter, error)
        return True

    def _is_done(self) -> bool:
        return self.done

    def _keep_first(self, kind: int, part: Any, end: bool, index: int) -> None:
        if self._queue is None:
            self._queue = []
        self._queue.insert(0, (kind, part, end, index))

    def _hold(self, kind: int, part: Any, end: bool, index: int, http_filter: HttpFilter, result: Any) -> None:
        """A hook said STOP, or must be waited for."""
        self.held = True
        self._kind = kind
        self._part = part
        self._end = end
        self._index = index
        self.read_disable(True)
        if isinstance(result, Coroutine):
            self._await(http_filter, result)

    def _await(self, http_filter: HttpFilter, coroutine: Coroutine[Any, Any, Any]) -> None:
        waiting = _Waiting(self, http_filter)
        self._task = self.stream.dispatcher.run(coroutine, f"filter {http_filter.name}", waiting.on_done)
        if http_filter.hook_timeout_ms > 0.0:
            self._budget = CallTimer(waiting.on_timeout)
            self.stream.dispatcher.timers.arm(self._budget, http_filter.hook_timeout_ms)

    def on_task_done(self, http_filter: HttpFilter, task: Task[Any]) -> None:
        """A coroutine of a hook ended: with CONTINUE, STOP, bytes that replace the data, or an exception."""
        if task is not self._task:
            return
        self._forget_task()
        error = CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            if not self._fails(http_filter, error):
                self.resume()
            return
        if self._kind == HEADERS and not self._is_sendable(http_filter):
            return
        result = task.result()
        if isinstance(result, Coroutine) or not _is_result(result, self._kind):
            if isinstance(result, Coroutine):
                result.close()
            if not self._fails(http_filter, _wrong_result(result, self._kind)):
                self.resume()
            return
        if self._rest is not None:
            self._keep_rest(self._rest, result)
        elif isinstance(result, bytes):
            self._part = result
            self.resume()
        elif result != STOP:
            self.resume()

    def _is_sendable(self, http_filter: HttpFilter) -> bool:
        """Whether the headers are still such after the coroutine of a hook. If not, the stream has failed."""
        try:
            http_filter.check_head(self._part, self._direction > 0)
        except (TypeError, ValueError) as error:
            self.stream.on_filter_error(http_filter, error)
            return False
        return True

    def _keep_rest(self, rest: bytes, result: Any) -> None:
        """The coroutine of a data hook kept `rest`: it passes the beginning, or waits to be resumed."""
        self._rest = None
        index = self._index - 1
        if isinstance(result, bytes):
            self._keep_first(DATA, rest, self._end, index)
            self._part = result
            self._end = False
            self.resume()
        else:
            self._part = rest
            self._index = index

    def on_task_timeout(self, http_filter: HttpFilter) -> None:
        """A coroutine took longer than its filter may."""
        task = self._forget_task()
        if task is not None:
            task.cancel()
        error = HookTimeoutError(f"a hook took longer than {http_filter.hook_timeout_ms:g} ms")
        if not self._fails(http_filter, error):
            self.resume()

    def _forget_task(self) -> Task[Any] | None:
        task, self._task = self._task, None
        if self._budget is not None:
            self._budget.disarm()
            self._budget = None  # it knows us
        return task


class _Waiting:
    """Remembers which filter a task belongs to."""

    def __init__(self, path: FilterPath, http_filter: HttpFilter) -> None:
        self._path = path
        self._filter = http_filter

    def on_done(self, task: Task[Any]) -> None:
        self._path.on_task_done(self._filter, task)

    def on_timeout(self) -> None:
        self._path.on_task_timeout(self._filter)


class RequestPath(FilterPath):
    """Downstream to upstream: the filters in order, then the router."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, 1)

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

    def too_large(self) -> None:
        self.stream.config.stats.downstream_rq_too_large += 1
        self.stream.send_local_reply(413, b"Payload Too Large", "request_payload_too_large")


class ResponsePath(FilterPath):
    """Upstream to downstream: the filters in reverse, then the codec."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, -1)

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

    def collect(self, limit_bytes: int, cut: bool = False) -> None:
        super().collect(_UNLIMITED if self.stream.local_reply and not cut else limit_bytes, cut)

    def too_large(self) -> None:
        self.stream.config.stats.rs_too_large += 1
        self.stream.send_local_reply(500, b"Internal Server Error", "response_payload_too_large")
