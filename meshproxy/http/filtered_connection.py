"""A connection with a network filter in Python (docs/writing-filters.md).

In a connection the filter is a `TransportSocket`, behind TLS or the filter before it: what it is given passes the hooks
of the user's class, on an instance of the connection's own. Each direction is a `Flow`, which holds back what a hook
wants to wait for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from meshproxy.errors import HookTimeoutError
from meshproxy.http.async_client import HttpClient
from meshproxy.http.filter import CONTINUE, STOP
from meshproxy.http.filter_context import FilterContext
from meshproxy.http.python_version import PythonVersion
from meshproxy.http.user_classes import NetworkFilter
from meshproxy.net.address import Address
from meshproxy.net.connection import CLOSED, CLOSING, Connection
from meshproxy.net.dispatcher import Task
from meshproxy.net.timers import CallTimer, Timer
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.stream_info import ConnectionInfo, shared_metadata, shared_state

_LAST_OUTPUT_MS: Final = 5_000.0  # how long a connection that is to close waits for output that is held


class FilterSettings:
    """What configuration says of a filter, and which hooks its class has."""

    def __init__(self, version: PythonVersion) -> None:
        self.version = version
        self.fail_open: bool = False
        self.hook_timeout_ms: float = 0.0  # 0: as long as it likes
        self.connects: bool = self._has("on_connected")
        self.reads: bool = self._has("on_data")
        self.writes: bool = self._has("on_write")
        self.closes: bool = self._has("on_close")

    def _has(self, hook: str) -> bool:
        return getattr(self.version.kind, hook) is not getattr(NetworkFilter, hook)


class DownstreamConnection:
    """The connection, as a filter sees it. After its end nothing here does anything any more."""

    def __init__(self, place: FilterPlace, connection: Connection, info: ConnectionInfo) -> None:
        self.place: FilterPlace | None = place  # None: the connection is gone
        self.info = info
        self.id: int = connection.id
        self._context: FilterContext = place.version.context

    @property
    def remote(self) -> Address:
        """The downstream, as a PROXY protocol header says where there was one; `.ip`, `.port`, `.text`."""
        return self.info.remote

    @property
    def local(self) -> Address:
        """Where the downstream connected to."""
        return self.info.local

    @property
    def tls(self) -> Any:
        """Facts of the TLS session (tls/facts.py); None on plaintext."""
        return self.info.tls

    @property
    def requested_server_name(self) -> str:
        """What a tls_inspector found (SNI); empty without."""
        return self.info.requested_server_name

    def write(self, data: bytes) -> None:
        """Send to the downstream, through the filters before this one, and not through its own `on_write`."""
        if self.place is not None:
            self.place.write(data)

    def close(self) -> None:
        """Send what is on its way, then close. What this filter holds is lost."""
        if self.place is not None:
            self.place.end()

    def resume_read(self) -> None:
        """Go on with what the downstream sent, after STOP."""
        if self.place is not None:
            self.place.resume(self.place.reading)

    def resume_write(self) -> None:
        """Go on with what is sent to the downstream, after STOP."""
        if self.place is not None:
            self.place.resume(self.place.writing)

    def metadata(self, namespace: str) -> dict[str, Any]:
        """The connection's dynamic metadata under `namespace`, to read and to change."""
        return shared_metadata(self.info).setdefault(namespace, {})

    def filter_state(self) -> dict[str, Any]:
        """Objects that the filters of the connection share, by name."""
        return shared_state(self.info)

    @property
    def call(self) -> HttpClient:
        """`await connection.call("users", path=b"/ann")`: a request through one of the proxy's clusters. Raises
        CallError where there is no response."""
        return self._context.call

    def call_later(self, delay_ms: float, callback: Callable[[], object]) -> Timer:
        """Call back once, unless the connection ends before, or the timer is disarmed. If it raises, the filter has."""
        timer = ConnectionTimer(self.place, callback)
        if self.place is not None:
            self.place.arm(timer, delay_ms)
        return timer


class Flow:
    """One direction: what waits for the filter, and what the filter holds."""

    def __init__(self, hooked: bool) -> None:
        self.hooked = hooked  # the filter has a hook for it
        self.held: bool = False  # the hook said STOP, or its coroutine runs
        self.waiting: deque[bytes] = deque()
        self.bytes: int = 0  # of `waiting` and `current`
        self.current: bytes = b""  # what the hook was given that holds the direction
        self.ended: bool = False  # nothing comes any more
        self.end_given: bool = False  # the hook was told so
        self.end_passed: bool = False  # and the other side
        self.backed_up: bool = False  # over the limit: who sends was told to wait
        self.task: Task[Any] | None = None
        self.timer: CallTimer | None = None

    def add(self, data: bytes) -> None:
        self.waiting.append(data)
        self.bytes += len(data)

    def take(self) -> bytes:
        """The next piece; empty for the end."""
        if not self.waiting:
            self.end_given = True
            return b""
        return self.waiting.popleft()

    @property
    def has_next(self) -> bool:
        return bool(self.waiting) or (self.ended and not self.end_given)

    def stop_waiting(self) -> None:
        """The coroutine is done, or not wanted any more."""
        task, self.task = self.task, None
        timer, self.timer = self.timer, None
        if task is not None:
            task.cancel()
        if timer is not None:
            timer.disarm()

    def clear(self) -> None:
        self.waiting.clear()
        self.current = b""
        self.bytes = 0
        self.held = False


class FilterPlace(TransportSocket):
    """A filter's place in a connection."""

    def __init__(
        self,
        settings: FilterSettings,
        connection: Connection,
        info: ConnectionInfo,
        inner: TransportSocket | None,
    ) -> None:
        super().__init__()
        self.buffers = True
        self.costly_handshake = inner is not None and inner.costly_handshake
        self.version: PythonVersion = settings.version
        self.reading = Flow(settings.reads)
        self.writing = Flow(settings.writes)
        self._settings = settings
        self._connection: Connection | None = connection
        self._inner = inner
        self._facade = DownstreamConnection(self, connection, info)
        self._instance: NetworkFilter | None = None
        self._begun: bool = False
        self._connecting: bool = False  # the coroutine of `on_connected` runs
        self._eof: bool = False  # of the socket
        self._passed: list[bytes] = []  # on their way to the handler
        self._out: list[bytes] = []  # on their way to the socket, where there is no `inner`
        self._timers: list[ConnectionTimer] = []
        self._last_output: CallTimer | None = None

    # -- as a transport socket

    def start(self) -> None:
        if self._inner is not None:
            self._inner.start()
        self._follow()

    def receive(self, data: bytes) -> list[bytes]:
        inner, reading = self._inner, self.reading
        if inner is None:
            if data:
                reading.add(data)
        elif data or inner.buffers:
            for piece in inner.receive(data):
                reading.add(piece)
        self._follow()
        if inner is None or not inner.buffers:
            reading.ended = self._eof or (inner is not None and inner.at_end)
        else:
            reading.ended = inner.at_end
        self._run(reading)
        self.at_end = reading.end_passed
        passed, self._passed = self._passed, []
        return passed

    def receive_eof(self) -> None:
        self._eof = True
        if self._inner is not None:
            self._inner.receive_eof()

    def send(self, data: bytes) -> None:
        self.writing.add(data)
        self._run(self.writing)

    def shut(self) -> None:
        self.writing.ended = True
        self._run(self.writing)
        connection = self._connection
        if connection is not None and connection.state == CLOSING and self._last_output is None and self.holds_output():
            self._last_output = CallTimer(connection.abort)
            connection.dispatcher.timers.arm(self._last_output, _LAST_OUTPUT_MS)

    def take_output(self) -> bytes:
        if self._connection is None or self._connection.state == CLOSED:
            return b""
        if self._inner is not None:
            return self._inner.take_output()
        out, self._out = self._out, []
        return b"".join(out)

    def holds_output(self) -> bool:
        if not self.established or self.failure:
            return False
        return not self.writing.end_passed or (self._inner is not None and self._inner.holds_output())

    def on_close(self) -> None:
        if self._inner is not None:
            self._inner.on_close()
        self._connection = self._facade.place = None  # no cycle is left
        for flow in (self.reading, self.writing):
            flow.stop_waiting()
            flow.clear()
        timers, self._timers = self._timers, []
        for timer in timers:
            timer.disarm()
        if self._last_output is not None:
            self._last_output.disarm()
            self._last_output = None
        if self._begun:
            self._begun = False
            self._tell_closed()
            self.version.stats.connections_active -= 1
            self.version.on_done()

    def _tell_closed(self) -> None:
        instance, self._instance = self._instance, None
        if instance is None or not self._settings.closes:
            return
        began = self.version.enter()
        try:
            instance.on_close(self._facade)
        except Exception as error:  # noqa: BLE001  a user's code
            self.version.on_error("its connection is closed already", error)
        self.version.leave(began)

    def _follow(self) -> None:
        """What the inner one has become, this one is."""
        inner = self._inner
        if inner is not None:
            self.failure = inner.failure
            self.facts = inner.facts
        if not self.established and (inner is None or inner.established):
            self.established = True
            self._begin()

    # -- the filter

    def _begin(self) -> None:
        version = self.version
        self._begun = True
        version.stats.connections_active += 1
        began = version.enter()
        result: Any = CONTINUE  # whatever a hook returns
        error: Exception | None = None
        try:
            self._instance = version.new()
            if self._settings.connects:
                result = self._instance.on_connected(self._facade)
        except Exception as raised:  # noqa: BLE001  a user's code
            error = raised
        version.leave(began)
        if error is not None:
            self._fail(error)
        elif result == STOP:
            self.reading.held = self.writing.held = True
        elif isinstance(result, Coroutine):
            self._connecting = self.writing.held = True
            self._wait(self.reading, result)

    def _run(self, flow: Flow) -> None:
        """Give the filter what waits, until it holds the direction; what passes goes on."""
        while flow.has_next and not flow.held:
            data = flow.take()
            instance = self._instance
            if instance is None or not flow.hooked:
                self._pass(flow, data)
            else:
                self._ask(flow, instance, data)
        self._limit(flow)

    def _ask(self, flow: Flow, instance: NetworkFilter, data: bytes) -> None:
        version, end = self.version, flow.end_given
        began = version.enter()
        result: Any = None  # whatever a hook returns
        error: Exception | None = None
        try:
            if flow is self.reading:
                result = instance.on_data(self._facade, data, end)
            else:
                result = instance.on_write(self._facade, data, end)
        except Exception as raised:  # noqa: BLE001  a user's code
            error = raised
        version.leave(began)
        if error is not None:
            flow.current = data
            flow.held = True
            self._fail(error)
        else:
            self._take(flow, data, result)

    def _take(self, flow: Flow, data: bytes, result: Any) -> None:
        """What a hook returned for `data`."""
        if result is None or result == CONTINUE or not flow.hooked:  # which it was before the hook, see `end`
            self._pass(flow, data)
        elif isinstance(result, bytes):
            flow.bytes += len(result) - len(data)
            self._pass(flow, result)
        else:
            flow.current = data
            flow.held = True
            if isinstance(result, Coroutine):
                self._wait(flow, result)
            elif result != STOP:
                self._fail(TypeError(f"a hook returned {result!r}"))

    def _pass(self, flow: Flow, data: bytes) -> None:
        """To the other side, and the end after the last piece."""
        flow.bytes -= len(data)
        if flow is self.reading:
            if data:
                self._passed.append(data)
        elif data:
            self._send(data)
        if flow.end_given and not flow.end_passed:
            flow.end_passed = True
            if flow is self.writing and self._inner is not None:
                self._inner.shut()

    def _send(self, data: bytes) -> None:
        if self._inner is None:
            self._out.append(data)
        else:
            self._inner.send(data)

    def _limit(self, flow: Flow) -> None:
        """Over the connection's buffer limit, who sends has to wait."""
        connection = self._connection
        if connection is None:
            return
        limit = connection.buffer_limit_bytes
        if flow.backed_up == (flow.held and flow.bytes > limit > 0):
            return
        flow.backed_up = not flow.backed_up
        if flow is self.reading:
            connection.read_disable(flow.backed_up)
        elif flow.backed_up:
            connection.pause_writing()
        else:
            connection.dispatcher.post(connection.resume_writing)  # it begins a turn of its own

    # -- waiting

    def _wait(self, flow: Flow, coroutine: Coroutine[Any, Any, Any]) -> None:
        connection = self._connection
        if connection is None:
            coroutine.close()
            return
        flow.held = True
        on_done = self._on_read_task if flow is self.reading else self._on_write_task
        flow.task = connection.dispatcher.run(coroutine, f"filter {self.version.context.name}", on_done)
        if self._settings.hook_timeout_ms > 0.0:
            flow.timer = CallTimer(self._on_read_timeout if flow is self.reading else self._on_write_timeout)
            connection.dispatcher.timers.arm(flow.timer, self._settings.hook_timeout_ms)

    def _on_read_task(self, task: Task[Any]) -> None:
        self._on_task(self.reading, task)

    def _on_write_task(self, task: Task[Any]) -> None:
        self._on_task(self.writing, task)

    def _on_read_timeout(self) -> None:
        self._on_timeout(self.reading)

    def _on_write_timeout(self) -> None:
        self._on_timeout(self.writing)

    def _on_timeout(self, flow: Flow) -> None:
        flow.stop_waiting()
        self.version.stats.hook_timeouts += 1
        self._fail(HookTimeoutError(f"a hook took longer than {self._settings.hook_timeout_ms:.0f} ms"))

    def _on_task(self, flow: Flow, task: Task[Any]) -> None:
        if flow.task is not task:
            return  # it was cancelled
        flow.task = None
        flow.stop_waiting()
        connecting, self._connecting = self._connecting and flow is self.reading, False
        error = HookTimeoutError("its coroutine was cancelled") if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)
            return
        result = task.result()
        if result == STOP:
            return
        if isinstance(result, bytes):
            flow.bytes += len(result) - len(flow.current)
            flow.current = result
        if connecting:
            self.resume(self.writing)
        self.resume(flow)

    def resume(self, flow: Flow) -> None:
        """Let go what is held, and all that waits behind it."""
        connection = self._connection
        if connection is None or not flow.held or flow.task is not None:
            return
        flow.held = False
        current, flow.current = flow.current, b""
        self._pass(flow, current)
        if flow is self.reading:
            connection.dispatcher.post(self._pump)
        else:
            self._run(flow)
            connection.send_pending()

    def _pump(self) -> None:
        """Have the connection ask for what was held."""
        if self._connection is not None:
            self._connection.data_received(b"")

    # -- the connection

    def write(self, data: bytes) -> None:
        if self._connection is not None and data:
            self._send(data)
            self._connection.send_pending()

    def end(self) -> None:
        connection = self._connection
        if connection is None:
            return
        self._instance_passes()
        self.reading.clear()
        self.writing.clear()
        connection.close()

    def _instance_passes(self) -> None:
        """From now on the connection goes on as if the filter were not there; only its end is still told."""
        self.reading.hooked = self.writing.hooked = False
        self.reading.stop_waiting()
        self.writing.stop_waiting()

    def arm(self, timer: ConnectionTimer, delay_ms: float) -> None:
        if self._connection is not None:
            self._timers.append(timer)
            self._connection.dispatcher.timers.arm(timer, delay_ms)

    def on_timer(self, timer: ConnectionTimer) -> None:
        self._timers.remove(timer)
        began = self.version.enter()
        error: Exception | None = None
        try:
            timer.callback()
        except Exception as raised:  # noqa: BLE001  a user's code
            error = raised
        self.version.leave(began)
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A hook has raised: the connection ends, or goes on without the filter."""
        connection = self._connection
        if connection is None:
            self.version.on_error("its connection is closed already", error)
            return
        self._instance_passes()
        if not self._settings.fail_open:
            self.version.on_error("its connection is closed", error)
            details = f"filter_error{{{self.version.context.name}|{type(error).__name__}}}"
            self._facade.info.termination_details = details
            connection.fail(details)
            return
        self.version.stats.failed_open += 1
        self.version.on_error("its connection goes on without it", error)
        self.resume(self.reading)
        self.resume(self.writing)


class ConnectionTimer(Timer):
    """Of a filter in a connection; `disarm` cancels it."""

    def __init__(self, place: FilterPlace | None, callback: Callable[[], object]) -> None:
        super().__init__()
        self.callback = callback
        self._place = place

    def on_timer(self) -> None:
        if self._place is not None:
            self._place.on_timer(self)
