"""`meshproxy.filters.http.python`: an HTTP filter that is a class in Python (docs/writing-filters.md).

`PythonHttpFilter` stands in the chain; it calls the hooks of the user's class, on an instance of the stream's own, and
is the rail around them. What the user's class shares among its streams is a `FilterVersion`: it lasts while a
configuration has it, also over updates that change something else, and until its last stream is done.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.struct_pb2 import Struct

from meshproxy.api.http_filter_pb2 import Python, PythonPerRoute
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.config.python_class import PythonClass, load_class
from meshproxy.config.values import milliseconds_or
from meshproxy.errors import HookTimeoutError
from meshproxy.http.filter import DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.filter_context import FilterContext, FilterStats
from meshproxy.http.user_filter import HttpFilter as UserFilter
from meshproxy.net.hook_watch import HOOK_WATCH, HookOwner
from meshproxy.observe.log import log_once_per
from meshproxy.route.route import Route

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream

_DEFAULT_HOOK_TIMEOUT_MS: Final = 5_000
_DEFAULT_SLOW_HOOK_MS: Final = 50

_errors: Final = log_once_per(1.0, "filter")
_PASSES: Final = UserFilter()  # in place of the instance of a stream that goes on without it


VersionKey = tuple[str, str, str, bytes]  # (connection manager and filter, content of the file, class, configuration)


class FilterVersion:
    """A user's class with its configuration, and what its streams share."""

    def __init__(
        self, key: VersionKey, loaded: PythonClass[UserFilter], context: FilterContext, stats: FilterStats
    ) -> None:
        self.key = key
        self.kind = loaded.kind
        self.context = context
        self.stats = stats
        self.active: int = 0  # streams
        self._users: int = 0  # configurations
        self._running: bool = False
        self._class: Any = _configured(loaded.kind, context)
        self._shared: Any = None
        self.owner = HookOwner(context.name, 0.0, self._count_slow)

    def _count_slow(self) -> None:
        self.stats.slow_hooks += 1

    def new(self, config: Any) -> Any:
        """The instance of a stream."""
        self.active += 1
        self.stats.streams_active += 1
        if self._shared is not None:
            return self._shared
        kind = self._class
        if config is self.context.config:
            made = kind()
        else:
            made = kind.__new__(kind)
            made.config = config
            made.__init__()
        if kind.shared:
            self._shared = made
        return made

    def on_stream_done(self) -> None:
        self.active -= 1
        self.stats.streams_active -= 1
        if self._users == 0 and self.active == 0:
            self._stop()

    def acquire(self) -> None:
        self._users += 1

    def start(self) -> None:
        """It is in force."""
        if self._running:
            return
        self._running = True
        HOOK_WATCH.add(self.owner)
        try:
            self.kind.on_start(self.context)
        except Exception as error:  # noqa: BLE001  a user's code
            self.stats.errors += 1
            _errors.error(f"filter {self.context.name} raised in on_start", error)

    def release(self) -> None:
        """A configuration that had it is gone. It ends with its last stream."""
        self._users -= 1
        if self._users == 0:
            if _versions.get(self.key) is self:
                del _versions[self.key]
            if self.active == 0:
                self._stop()

    def _stop(self) -> None:
        if not self._running:
            return
        self._running = False
        HOOK_WATCH.remove(self.owner)
        self.context.close()
        try:
            self.kind.on_stop(self.context)
        except Exception as error:  # noqa: BLE001  a user's code
            self.stats.errors += 1
            _errors.error(f"filter {self.context.name} raised in on_stop", error)


def _configured(kind: type[UserFilter], context: FilterContext) -> type[UserFilter]:
    """The class with what its instances have in common, so that making one is all that a stream pays for."""
    common = {"config": context.config, "context": context, "name": context.name}
    return type(kind.__name__, (kind,), common | {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


_versions: Final[dict[VersionKey, FilterVersion]] = {}  # that a configuration of this process has


class PythonOverride:
    """A route's `PythonPerRoute`."""

    def __init__(self, config: Any) -> None:
        self.config = config


class PythonHttpFilter(HttpFilter):
    """Calls the hooks of a user's class."""

    swappable = True

    def __init__(self, loaded: PythonClass[UserFilter], version: FilterVersion, config: Struct) -> None:
        self.loaded = loaded
        self.struct = config
        self.version = version
        self.fail_open: bool = False
        self._owner: HookOwner = version.owner
        self._slow_s: float = 0.05
        self._hears_the_end: bool = self._has_hook(loaded.kind, "on_stream_done")
        self._buffer_request: int = loaded.kind.buffer_request
        self._buffer_response: int = loaded.kind.buffer_response
        version.acquire()

    def set_slow_hook(self, slow_s: float) -> None:
        self._slow_s = slow_s
        self._owner.slow_s = slow_s

    def overrides(self, hook: str) -> bool:
        """Headers are looked at also where only the data is, since that may be wanted in one piece."""
        if hook == "on_stream_done":
            return True
        kind = self.loaded.kind
        if hook.endswith("_headers") and self._has_hook(kind, hook.replace("_headers", "_data")):
            return True
        return self._has_hook(kind, hook)

    def _has_hook(self, kind: type[UserFilter], hook: str) -> bool:
        return getattr(kind, hook) is not getattr(UserFilter, hook)

    def close(self) -> None:
        """The configuration is gone."""
        self.version.release()

    # -- the rail

    def _enter(self, stream: Stream) -> Any:
        held = stream.state[self.slot]
        if held is None:
            held = stream.state[self.slot] = self.version.new(self._config_for(stream.route))
        HOOK_WATCH.running = self._owner
        return held

    def _leave(self, began: float) -> None:
        HOOK_WATCH.running = None
        took_s = monotonic() - began
        if took_s > self._slow_s:
            HOOK_WATCH.on_returned(self._owner, took_s)

    def _config_for(self, route: Route | None) -> Any:
        if route is not None and route.filter_configs:
            override = route.filter_configs.get(self.name)
            if isinstance(override, PythonOverride):
                return override.config
        return self.version.context.config

    def goes_on(self, stream: Stream, error: BaseException) -> bool:
        HOOK_WATCH.running = None
        stats = self.version.stats
        stats.errors += 1
        if isinstance(error, HookTimeoutError):
            stats.hook_timeouts += 1
        stream.state[self.slot] = _PASSES
        if not self.fail_open:
            return False
        stats.failed_open += 1
        _errors.error(f"filter {self.name} raised; the stream goes on without it", error)
        return True

    # -- the hooks

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        began = monotonic()
        if self._buffer_request and not end:
            stream.buffer_request(self._buffer_request)
        result: Result = self._enter(stream).on_request_headers(stream, headers, end)
        self._leave(began)
        return result

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        began = monotonic()
        result: DataResult = self._enter(stream).on_request_data(stream, data, end)
        self._leave(began)
        return result

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        began = monotonic()
        result: Result = self._enter(stream).on_request_trailers(stream, trailers)
        self._leave(began)
        return result

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        began = monotonic()
        if self._buffer_response and not end:
            stream.buffer_response(self._buffer_response)
        result: Result = self._enter(stream).on_response_headers(stream, headers, end)
        self._leave(began)
        return result

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        began = monotonic()
        result: DataResult = self._enter(stream).on_response_data(stream, data, end)
        self._leave(began)
        return result

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        began = monotonic()
        result: Result = self._enter(stream).on_response_trailers(stream, trailers)
        self._leave(began)
        return result

    def on_stream_done(self, stream: Stream) -> None:
        if not self._hears_the_end:
            if stream.state[self.slot] is not None:
                self.version.on_stream_done()
            return
        began = monotonic()
        try:
            self._enter(stream).on_stream_done(stream)
        finally:
            self._leave(began)
            self.version.on_stream_done()


# -- building ----------------------------------------------------------------------------------------------------------


def build_python(message: Any, path: str, context: BuildContext) -> HttpFilter | None:
    loaded = load_class(message, path, context, UserFilter)
    return None if loaded is None else build_python_filter(loaded, message, path, context)


def build_python_filter(
    loaded: PythonClass[UserFilter], message: Any, path: str, context: BuildContext
) -> PythonHttpFilter | None:
    """The filter of a class that was found already; `message` is a `Python`. None after errors."""
    before = len(context.errors)
    config = loaded.build_config(message.config, child(path, "config"), context.errors)
    if len(context.errors) != before:
        return None
    try:
        version = _version_of(loaded, message.config, config, context)
    except Exception as error:  # noqa: BLE001  a class may refuse to be derived from
        context.errors.add(child(path, "class"), f"{loaded.kind.__name__} cannot be used: {error}")
        return None
    built = PythonHttpFilter(loaded, version, message.config)
    built.fail_open = message.fail_open
    built.hook_timeout_ms = float(milliseconds_or(message, "hook_timeout", _DEFAULT_HOOK_TIMEOUT_MS))
    built.set_slow_hook(milliseconds_or(message, "slow_hook", _DEFAULT_SLOW_HOOK_MS) / 1000.0)
    context.keep(built)
    context.when_in_force(version.start)
    return built


def _version_of(loaded: PythonClass[UserFilter], struct: Struct, config: Any, context: BuildContext) -> FilterVersion:
    """The one that runs, where nothing of it changed: what its streams share stays."""
    name = context.filter_name
    prefix = f"{context.stat_prefix}python.{name}."
    stats = context.scope(prefix, FilterStats)
    written = bytes(struct.SerializeToString(deterministic=True))
    key = (context.listener_stat_prefix + prefix, loaded.version, loaded.kind.__qualname__, written)
    version = _versions.get(key)
    if version is None or version.kind is not loaded.kind:
        version = FilterVersion(key, loaded, FilterContext(name, config, stats, context.services), stats)
        _versions[key] = version
    return version


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
    config = found.loaded.build_config(struct, child(path, "config"), context.errors)
    return PythonOverride(config) if len(context.errors) == before else None


register_http_filter(Python, HttpFilterType(build_python, PythonPerRoute, build_python_override))
