"""`meshproxy.filters.http.python`: an HTTP filter that is a class in Python (docs/writing-filters.md).

`PythonHttpFilter` stands in the chain; it calls the hooks of the user's class, on an instance of the stream's own, and
is the rail around them. What the user's class shares among its streams is a `FilterVersion`: it lasts while a
configuration has it, also over updates that change something else, and until its last stream is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from google.protobuf.struct_pb2 import Struct

from meshproxy.api.http_filter_pb2 import Python, PythonPerRoute
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.python_class import PythonClass
from meshproxy.config.values import milliseconds_or
from meshproxy.errors import HookTimeoutError
from meshproxy.http.filter import DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.filter_context import FilterContext, FilterStats
from meshproxy.http.head_check import check_head
from meshproxy.http.python_version import PythonVersion, VersionKey, build_version, refuse_coroutines
from meshproxy.http.upgrade import establishes_tunnel
from meshproxy.http.user_filter import HttpFilter as UserFilter
from meshproxy.http.user_filter import LeftOut
from meshproxy.net.hook_watch import HOOK_WATCH
from meshproxy.route.route import Route

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

_DEFAULT_HOOK_TIMEOUT_MS: Final = 5_000

_OF_REQUEST: Final = (b":method", b":path", b":authority")
_OF_RESPONSE: Final = (b":status",)
_OF_TRAILERS: Final = ()


class FilterVersion(PythonVersion):
    """A user's class with its configuration, and what its streams share."""

    def __init__(
        self, key: VersionKey, loaded: PythonClass[UserFilter], context: FilterContext, stats: FilterStats
    ) -> None:
        super().__init__(key, loaded, context, stats)
        self._counts = stats
        self._is_shared: bool = loaded.kind.shared

    def instance(self, override: PythonOverride | None) -> Any:
        """That of a stream, which is followed by one `on_stream_done`."""
        self.active += 1
        self._counts.streams_active += 1
        if not self._is_shared:
            return self.make(self.context.config if override is None else override.config)
        if override is None:
            return self.one()
        if override.shared is None or override.shared_by is not self:
            override.shared = self.make(override.config)
            override.shared_by = self
        return override.shared

    def on_stream_done(self) -> None:
        self._counts.streams_active -= 1
        self.on_done()


class PythonOverride:
    """A route's `PythonPerRoute`."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.shared: Any = None  # the instance with this configuration of a class that is `shared`
        self.shared_by: FilterVersion | None = None


class PythonHttpFilter(HttpFilter):
    """Calls the hooks of a user's class."""

    swappable = True

    def __init__(self, version: FilterVersion, config: Struct) -> None:
        kind = version.kind
        self.kind: type[UserFilter] = kind
        self.struct = config
        self.version = version
        self.fail_open: bool = False
        self._hears_the_end: bool = self._has_hook(kind, "on_stream_done")
        self._buffer_request: int = kind.buffer_request
        self._buffer_response: int = kind.buffer_response

    def overrides(self, hook: str) -> bool:
        """Headers are looked at also where only the data is, since that may be wanted in one piece."""
        if hook == "on_stream_done":
            return True
        kind = self.kind
        if hook.endswith("_headers") and self._has_hook(kind, hook.replace("_headers", "_data")):
            return True
        return self._has_hook(kind, hook)

    def _has_hook(self, kind: type[UserFilter], hook: str) -> bool:
        return getattr(kind, hook) is not getattr(UserFilter, hook)

    # -- the rail

    def _instance(self, stream: Stream) -> Any:
        held = stream.state[self.slot]
        if held is None:
            held = stream.state[self.slot] = self.version.instance(self._override_for(stream.route))
        return held

    def _override_for(self, route: Route | None) -> PythonOverride | None:
        if route is not None and route.filter_configs:
            override = route.filter_configs.get(self.name)
            if isinstance(override, PythonOverride):
                return override
        return None

    def goes_on(self, stream: Stream, error: BaseException) -> bool:
        HOOK_WATCH.running = None
        stats = self.version.stats
        if isinstance(error, HookTimeoutError):
            stats.hook_timeouts += 1
        stream.state[self.slot] = LeftOut(stream.state[self.slot])
        if not self.fail_open:
            stats.errors += 1
            return False
        stats.failed_open += 1
        self.version.on_error("the stream goes on without it", error)
        return True

    def _check(self, before: list[Any], headers: HeaderMap, names: tuple[bytes, ...]) -> None:
        """A head that cannot be sent is the fault of the hook that made it."""
        try:
            check_head(before, headers, names)
        except (TypeError, ValueError):
            headers.fields = before  # where the stream goes on without the filter
            raise

    def check_head(self, headers: HeaderMap, request: bool) -> None:
        check_head([], headers, _OF_REQUEST if request else _OF_RESPONSE)

    # -- the hooks

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        began = self.version.enter()
        if self._buffer_request and not end and not stream.tunnel:
            stream.buffer_request(self._buffer_request)
        before = headers.fields.copy()
        result: Result = self._instance(stream).on_request_headers(stream, headers, end)
        self.version.leave(began)
        self._check(before, headers, _OF_REQUEST)
        return result

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        began = self.version.enter()
        result: DataResult = self._instance(stream).on_request_data(stream, data, end)
        self.version.leave(began)
        return result

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        began = self.version.enter()
        before = trailers.fields.copy()
        result: Result = self._instance(stream).on_request_trailers(stream, trailers)
        self.version.leave(began)
        self._check(before, trailers, _OF_TRAILERS)
        return result

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        began = self.version.enter()
        if self._buffer_response and not end and not establishes_tunnel(stream.tunnel, status_code(headers)):
            stream.buffer_response(self._buffer_response)
        before = headers.fields.copy()
        result: Result = self._instance(stream).on_response_headers(stream, headers, end)
        self.version.leave(began)
        self._check(before, headers, _OF_RESPONSE)
        return result

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        began = self.version.enter()
        result: DataResult = self._instance(stream).on_response_data(stream, data, end)
        self.version.leave(began)
        return result

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        began = self.version.enter()
        before = trailers.fields.copy()
        result: Result = self._instance(stream).on_response_trailers(stream, trailers)
        self.version.leave(began)
        self._check(before, trailers, _OF_TRAILERS)
        return result

    def on_stream_done(self, stream: Stream) -> None:
        if not self._hears_the_end:
            if stream.state[self.slot] is not None:
                stream.state[self.slot] = None  # it may know the stream: without this cycle both go at once
                self.version.on_stream_done()
            return
        began = self.version.enter()
        try:
            self._instance(stream).on_stream_done(stream)
        except BaseException:
            self.version.stats.errors += 1
            raise
        finally:
            self.version.leave(began)
            stream.state[self.slot] = None
            self.version.on_stream_done()


# -- building ----------------------------------------------------------------------------------------------------------


def build_python(message: Any, path: str, context: BuildContext) -> HttpFilter | None:
    prefix = f"{context.stat_prefix}python.{context.filter_name}."
    version = build_version(message, path, context, UserFilter, prefix, FilterStats, FilterVersion)
    if version is None or refuse_coroutines(version.kind, ("on_stream_done",), child(path, "class"), context):
        return None
    assert isinstance(version, FilterVersion)
    built = PythonHttpFilter(version, message.config)
    built.fail_open = message.fail_open
    built.hook_timeout_ms = float(milliseconds_or(message, "hook_timeout", _DEFAULT_HOOK_TIMEOUT_MS))
    return built


def build_python_override(message: Any, path: str, context: BuildContext) -> object | None:
    """A route's fields stand for those of the filter; the rest of its configuration stays."""
    found = context.filters.get(context.filter_name)
    if found is None and context.filter_name in context.filters:
        return None  # an error says why
    if not isinstance(found, PythonHttpFilter):
        context.errors.add(path, f"{context.filter_name!r} is no filter in Python of this connection manager")
        return None
    struct = Struct()
    struct.CopyFrom(found.struct)
    for name, value in message.config.fields.items():
        struct.fields[name].CopyFrom(value)
    before = len(context.errors)
    config = found.version.loaded.build_config(struct, child(path, "config"), context.errors)
    return PythonOverride(config) if len(context.errors) == before else None


register_http_filter(Python, HttpFilterType(build_python, PythonPerRoute, build_python_override))
