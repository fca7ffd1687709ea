"""`meshproxy.filters.listener.python`: a listener filter that is a class in Python (docs/writing-filters.md)."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.api.listener_filter_pb2 import Python
from meshproxy.config.context import BuildContext
from meshproxy.filters import listener_filter as contract
from meshproxy.filters.listener_filter import (
    CLOSE,
    CONTINUE,
    LISTENER_FILTERS,
    NEEDS_DATA,
    AcceptedSocket,
    ListenerFilterFactory,
)
from meshproxy.http.python_version import ConnectionStats, PythonVersion, build_version, refuse_coroutines
from meshproxy.http.user_classes import UserClass

_VERDICTS: Final = (None, CONTINUE, NEEDS_DATA, CLOSE)


class ListenerFilter(UserClass):
    """Looks at a connection before a filter chain is picked. Each connection has an instance of its own."""

    max_read_bytes: int = 0  # how much of the connection's data it may ask for; it may change while it runs

    def on_accept(self, accepted: AcceptedSocket) -> int | None:
        """CONTINUE (or nothing), NEEDS_DATA or CLOSE."""
        return NEEDS_DATA if self.max_read_bytes > 0 else CONTINUE

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int | None:
        """All data that has come, at most `max_read_bytes` of it; again, with more, after NEEDS_DATA."""
        return CONTINUE


class _Guarded(contract.ListenerFilter):
    """An instance with the rail around it."""

    def __init__(self, version: PythonVersion, fail_open: bool) -> None:
        self._version = version
        self._fail_open = fail_open
        self._instance: ListenerFilter | None = None
        self._counted = True
        version.stats.connections_active += 1

    def on_accept(self, accepted: AcceptedSocket) -> int:
        return self._ask(accepted, None)

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int:
        return self._ask(accepted, data)

    def _ask(self, accepted: AcceptedSocket, data: bytes | None) -> int:
        """`data` is None for a connection that was just accepted."""
        began = self._version.enter()
        try:
            if self._instance is None:
                self._instance = self._version.new()
            instance = self._instance
            verdict = instance.on_accept(accepted) if data is None else instance.on_data(accepted, data)
            self.max_read_bytes = instance.max_read_bytes
            if verdict not in _VERDICTS:
                raise TypeError(f"a hook returned {verdict!r}")
            if verdict == NEEDS_DATA and self.max_read_bytes <= 0:
                raise ValueError("NEEDS_DATA asks for more than max_read_bytes, which is 0")
        except Exception as error:  # noqa: BLE001  a user's code
            verdict = self._failed(accepted, error)
        finally:
            self._version.leave(began)
        if verdict != NEEDS_DATA:
            self._done()
        return verdict or CONTINUE

    def _failed(self, accepted: AcceptedSocket, error: Exception) -> int:
        accepted.consumed = 0  # half of what it wanted would be worse than nothing
        if self._fail_open:
            self._version.stats.failed_open += 1
            self._version.on_error("its connection goes on without it", error)
            return CONTINUE
        self._version.on_error("its connection is closed", error)
        return CLOSE

    def _done(self) -> None:
        if self._counted:
            self._counted = False
            self._version.stats.connections_active -= 1
            self._version.on_done()

    def __del__(self) -> None:
        self._done()  # the connection ended while it waited for data


class PythonListenerFilterFactory(ListenerFilterFactory):
    """A configured class."""

    def __init__(self, version: PythonVersion, fail_open: bool) -> None:
        self._version = version
        self._fail_open = fail_open

    def new(self) -> contract.ListenerFilter:
        return _Guarded(self._version, self._fail_open)


def build_python(message: Any, path: str, context: BuildContext) -> ListenerFilterFactory | None:
    prefix = f"{context.listener_stat_prefix}python.{context.filter_name}."
    version = build_version(message, path, context, ListenerFilter, prefix, ConnectionStats)
    if version is None or refuse_coroutines(version.kind, ("on_accept", "on_data"), path, context):
        return None
    return PythonListenerFilterFactory(version, message.fail_open)


LISTENER_FILTERS.register(Python, build_python)
