"""A user's class in force: what its instances share, and the rail around its hooks (docs/writing-filters.md).

A `PythonVersion` lasts while a configuration has it, also over updates that change something else, and until its last
instance is done. Whoever calls a hook stands between `enter` and `leave`.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any, ClassVar, Final

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.filter_secret import FilterSecret, refer_to_secret
from meshproxy.config.python_class import PythonClass, describe_failure, load_class
from meshproxy.config.tls_material import digest_of
from meshproxy.config.values import milliseconds_or
from meshproxy.http.filter_context import FilterContext, FilterStats
from meshproxy.net.hook_watch import HOOK_WATCH, HookOwner
from meshproxy.observe.log import log_once_per

_DEFAULT_SLOW_HOOK_MS: Final = 50

_errors: Final = log_once_per(1.0, "filter")

VersionKey = tuple[str, str, str, bytes]  # (where it stands, content of the file, class, configuration and secrets)


class ConnectionStats(FilterStats):
    """Of a class that has an instance for each connection."""

    GAUGES: ClassVar[tuple[str, ...]] = ("connections_active",)

    def __init__(self) -> None:
        super().__init__()
        self.connections_active: int = 0


class SingleStats(FilterStats):
    """Of a class that has one instance."""

    GAUGES: ClassVar[tuple[str, ...]] = ()


class PythonVersion:
    """A user's class with its configuration."""

    def __init__(self, key: VersionKey, loaded: PythonClass[Any], context: FilterContext, stats: Any) -> None:
        self.key = key
        self.loaded = loaded
        self.kind: Any = loaded.kind
        self._class: Any = _configured(loaded.kind, context)
        self.context = context
        self.stats = stats  # FilterStats, or those of a kind
        self.active: int = 0  # instances
        self._one: Any = None
        self._users: int = 0  # configurations
        self._running: bool = False
        self.owner = HookOwner(context.name, _DEFAULT_SLOW_HOOK_MS / 1000.0, self._count_slow)

    def _count_slow(self) -> None:
        self.stats.slow_hooks += 1

    # -- instances

    def new(self) -> Any:
        """An instance, which is followed by one `on_done`. Raises what its `__init__` raises."""
        self.active += 1
        return self.make(self.context.config)

    def one(self) -> Any:
        """The one instance of a class that has one; made when it is first asked for."""
        if self._one is None:
            self._one = self.make(self.context.config)
        return self._one

    def make(self, config: Any) -> Any:
        """An instance with this configuration, which may be a route's."""
        kind = self._class
        if config is self.context.config:
            return kind()
        made = kind.__new__(kind)
        made.config = config
        made.__init__()
        return made

    def on_done(self) -> None:
        """An instance has ended, or could not be made."""
        self.active -= 1
        if self._users == 0 and self.active == 0:
            self._stop()

    # -- the rail

    def enter(self) -> float:
        """A hook is about to be called. Returns the time, for `leave`."""
        HOOK_WATCH.running = self.owner
        return monotonic()

    def leave(self, began: float) -> None:
        """The hook has returned, or raised."""
        HOOK_WATCH.running = None
        took_s = monotonic() - began
        if took_s > self.owner.slow_s:
            HOOK_WATCH.on_returned(self.owner, took_s)

    def on_error(self, what: str, error: BaseException) -> None:
        """A hook has raised: it is counted, and logged unless there are too many; `what` says what becomes of it."""
        self.stats.errors += 1
        _errors.error(f"filter {self.context.name} raised; {what}", error)

    # -- how long it lasts

    def acquire(self) -> None:
        """A configuration has it."""
        self._users += 1

    def start(self) -> str:
        """It is about to be in force: why it cannot be; "" if it can. What it spawns waits until it is."""
        if self._running:
            return ""
        try:
            self.kind.on_start(self.context)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a user's code
            self.context.close()
            return describe_failure(error, getattr(sys.modules.get(self.kind.__module__), "__file__", None) or "")
        self._running = True
        HOOK_WATCH.add(self.owner)
        return ""

    def close(self) -> None:
        """A configuration that had it is gone. It ends with its last instance."""
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
        self._one = None
        try:
            self.kind.on_stop(self.context)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a user's code
            self.on_error("it was in on_stop", error)


def _configured(kind: type[Any], context: FilterContext) -> type[Any]:
    """The class with what its instances have in common, so that making one is all that is left."""
    common = {"config": context.config, "context": context, "name": context.name}
    return type(kind.__name__, (kind,), common | {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


_versions: Final[dict[VersionKey, PythonVersion]] = {}  # that a configuration of this process has
MakeVersion = Callable[[VersionKey, PythonClass[Any], FilterContext, Any], PythonVersion]


def build_version(
    message: Any,
    path: str,
    context: BuildContext,
    base: type[Any],
    prefix: str,
    stats_kind: type[FilterStats],
    make: MakeVersion = PythonVersion,
) -> PythonVersion | None:
    """The version that a `Python` message of any kind asks for: the one that runs, where nothing of it changed.

    It is the context's from now on, and stands under `prefix` in the stats. None after errors.
    """
    loaded = load_class(message, path, context, base)
    if loaded is None:
        return None
    before = len(context.errors)
    where = child(path, "class")
    config = loaded.build_config(message.config, child(path, "config"), context.errors)
    refuse_coroutines(loaded.kind, ("on_start", "on_stop"), where, context)
    _check_switches(loaded.kind, base, where, context)
    if len(context.errors) != before:
        return None
    stats = context.scope(prefix, stats_kind)
    try:
        version = _version_of(loaded, config, message, prefix, stats, context, make)
    except Exception as error:  # noqa: BLE001  a class may refuse to be derived from
        context.errors.add(where, f"{loaded.kind.__name__} cannot be used: {error}")
        return None
    if "slow_hook" in message.DESCRIPTOR.fields_by_name:
        version.owner.slow_s = milliseconds_or(message, "slow_hook", _DEFAULT_SLOW_HOOK_MS) / 1000.0
    version.acquire()
    context.keep(version)
    if not _refer_to_secrets(message, path, context, version.context.secrets):
        return None
    if context.services is not None:
        failure = version.start()
        if failure:
            context.errors.add(where, f"{loaded.kind.__name__}.on_start: {failure}")
            return None
        context.when_in_force(version.context.take_effect)
    return version


def _version_of(
    loaded: PythonClass[Any],
    config: Any,
    message: Any,
    prefix: str,
    stats: Any,
    context: BuildContext,
    make: MakeVersion,
) -> PythonVersion:
    where = f"{context.resource} {context.listener_stat_prefix}{prefix}"
    written = digest_of(each.SerializeToString(deterministic=True) for each in (message.config, *_secrets(message)))
    key = (where, loaded.version, loaded.kind.__qualname__, written)
    version = _versions.get(key)
    if version is None or version.kind is not loaded.kind:
        made = FilterContext(context.filter_name, config, stats, context.services)
        version = _versions[key] = make(key, loaded, made, stats)
    return version


def _secrets(message: Any) -> list[Any]:
    """The SdsSecretConfigs of a message that has a field for them."""
    return list(message.secrets) if "secrets" in message.DESCRIPTOR.fields_by_name else []


def _refer_to_secrets(message: Any, path: str, context: BuildContext, known: dict[str, FilterSecret]) -> bool:
    """A version that runs already has its secrets from all who were built with it."""
    before = len(context.errors)
    seen: set[str] = set()
    for index, each in enumerate(_secrets(message)):
        where = item(path, "secrets", index)
        if each.name in seen:
            context.errors.add(child(where, "name"), "the name is used twice")
        seen.add(each.name)
        refer_to_secret(each, where, context, known.setdefault(each.name, FilterSecret()))
    return len(context.errors) == before


def refuse_coroutines(kind: type[Any], hooks: tuple[str, ...], path: str, context: BuildContext) -> bool:
    """An error for each of these hooks, which nothing can wait for, that is `async def`; whether there was one."""
    before = len(context.errors)
    for hook in hooks:
        if inspect.iscoroutinefunction(getattr(kind, hook)):
            context.errors.add(path, f"{kind.__name__}.{hook} cannot be async: nothing waits for it")
    return len(context.errors) != before


def _check_switches(kind: type[Any], base: type[Any], path: str, context: BuildContext) -> None:
    """What a class says by attributes (`shared`, `buffer_request` …) is spelt right, and of the right type."""
    # By `type`: what mypyc knows to be an int is no bool any more.
    known = {name: type(value) for name, value in vars(base).items() if type(value) in (int, bool)}
    for name, value in vars(kind).items():
        if name in known:
            if type(value) is not known[name]:
                context.errors.add(path, f"{kind.__name__}.{name} must be {known[name].__name__}, not {value!r}")
        elif isinstance(value, (int, bool, str)) and not name.startswith("_"):
            near = difflib.get_close_matches(name, known, 1, 0.85)
            if near:
                context.errors.add(path, f"{kind.__name__}.{name} means nothing (did you mean {near[0]}?)")
