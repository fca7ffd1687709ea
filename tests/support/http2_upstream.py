"""A scripted HTTP/2 upstream: it answers streams with the frames it is told to and remembers what it saw."""

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.http2_wire import (
    MAX_WINDOW,
    PREFACE,
    WIDE,
    Fields,
    Http2Wire,
    StreamSeen,
    data,
    headers,
    ping,
    settings,
    window_update,
)
from tests.support.polling import wait_for
from tests.support.upstream import shut
from tests.support.wire import ConnectionEnded

OPENING = settings(*WIDE) + window_update(0, MAX_WINDOW - 65535)


@dataclass(frozen=True)
class Http2Answer:
    """What the upstream does with one request.

    `frames` makes the bytes of the answer from the stream's identifier. `early` answers the request's head, without
    waiting for its end. `wait_for` names an event of the script before the answer goes out, or what is `first`. `then`
    is "keep" or "close" (FIN).
    """

    frames: Callable[[int], bytes]
    early: bool = False
    wait_for: str = ""
    then: str = "keep"
    first: Callable[[int], bytes] | None = None  # is sent before the request's end is awaited


def answer(fields: Fields = (), body: bytes = b"ok", status: int = 200, *, early: bool = False) -> Http2Answer:
    """A well-formed answer."""
    head = [(":status", str(status)), *fields]

    def frames(stream: int) -> bytes:
        pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)]
        last = len(pieces) - 1
        content = b"".join(data(stream, piece, end=number == last) for number, piece in enumerate(pieces))
        return headers(stream, head, end=not body) + content

    return Http2Answer(frames, early=early)


def frames_of(
    *parts: Callable[[int], bytes], early: bool = False, wait_for: str = "", then: str = "keep"
) -> Http2Answer:
    """An answer of several frames, one behind the other."""
    return Http2Answer(lambda stream: b"".join(part(stream) for part in parts), early, wait_for, then)


OK = answer([("content-length", "2")])
SILENT = Http2Answer(lambda stream: b"", early=True)
HANG_UP = Http2Answer(lambda stream: b"", then="close")


@dataclass
class Http2Seen:
    """A request that came: on which server, on which of its connections, as which stream."""

    server: str
    connection: int
    stream_id: int
    stream: StreamSeen
    wire: Http2Wire


@dataclass
class Http2Script:
    """The answers to the next requests in the order they arrive (the last one repeats), and what was seen meanwhile."""

    answers: Sequence[Http2Answer] = (OK,)
    seen: list[Http2Seen] = field(default_factory=list)

    def take(self) -> Http2Answer:
        """The answer to the request that was seen last."""
        return self.answers[min(len(self.seen), len(self.answers)) - 1]


class Http2Upstream:
    """Several named servers on loopback ports of their own, which follow one script.

    `openings` gives each its first frames (SETTINGS); those that are `deaf` answer neither SETTINGS nor
    PING. Threads, since the proxies under test are other processes.
    """

    def __init__(self, openings: Mapping[str, bytes], timeout_s: float = 30.0, deaf: Sequence[str] = ()) -> None:
        self._deaf = deaf
        self._lock = threading.Lock()
        self._timeout_s = timeout_s
        self._events: dict[str, threading.Event] = {}
        self._open: set[socket.socket] = set()
        self._counts: dict[str, int] = {}
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.script = Http2Script()
        self.wires: list[Http2Wire] = []
        self.errors: list[str] = []
        self._listeners: list[socket.socket] = []
        self.ports: dict[str, int] = {}
        for name, opening in openings.items():
            listener = socket.create_server(("127.0.0.1", 0), backlog=64)
            self._listeners.append(listener)
            self.ports[name] = listener.getsockname()[1]
            self._start(self._accept, name, opening, listener)

    def play(self, answers: Sequence[Http2Answer] = (OK,)) -> Http2Script:
        """Begin a new script and return it; requests still running keep the old one."""
        with self._lock:
            self.script = Http2Script(answers)
            before, self._events = self._events, {}
        for event in before.values():
            event.set()  # Whoever still waits has lost its stream.
        return self.script

    def fire(self, event: str) -> None:
        """Let answers that wait for `event` go out."""
        self._event(event).set()

    def wait_seen(self, count: int, deadline_s: float = 5.0) -> list[Http2Seen]:
        """Wait until the current script saw the heads of `count` requests."""
        script = self.script
        wait_for(lambda: len(script.seen) >= count, f"{count} HTTP/2 requests upstream", deadline_s)
        return script.seen

    def wait_over(self, count: int, deadline_s: float = 5.0) -> None:
        """Wait until `count` requests are whole or reset, or their connection is over."""
        script = self.script
        wait_for(
            lambda: sum(seen.stream.over or bool(seen.wire.end) for seen in script.seen) >= count,
            f"{count} HTTP/2 requests to end",
            deadline_s,
        )

    def wait_gone(self, count: int, deadline_s: float = 5.0) -> None:
        """Wait until `count` connections of the script have ended."""
        script = self.script
        wait_for(
            lambda: len({id(seen.wire) for seen in script.seen if seen.wire.end}) >= count,
            f"{count} HTTP/2 connections to end",
            deadline_s,
        )

    def settle(self, deadline_s: float = 2.0) -> None:
        """Wait until every connection of the script has been read up to a PING's answer, or has ended."""
        wires = {id(seen.wire): seen.wire for seen in self.script.seen}
        for wire in wires.values():
            before = len(wire.acknowledged_pings)
            if not wire.end and wire.send_if_open(ping(b"settling")):
                with contextlib.suppress(TimeoutError):
                    wait_for(
                        lambda wire=wire, before=before: wire.end or len(wire.acknowledged_pings) > before,  # type: ignore[misc]
                        "an answer to PING",
                        deadline_s,
                        0.002,
                    )

    def close(self) -> None:
        """End everything and wait for the threads."""
        self._closed = True
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            events, connections = list(self._events.values()), list(self._open)
        for event in events:
            event.set()
        for connection in connections:
            shut(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5.0)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads = [known for known in self._threads if known.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _event(self, name: str) -> threading.Event:
        with self._lock:
            return self._events.setdefault(name, threading.Event())

    def _accept(self, name: str, opening: bytes, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(self._timeout_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                number = self._counts[name] = self._counts.get(name, 0) + 1
                self._open.add(connection)
            self._start(self._serve, name, number, opening, connection)

    def _serve(self, name: str, number: int, opening: bytes, connection: socket.socket) -> None:
        wire = Http2Wire(connection)
        wire.answering = name not in self._deaf
        self.wires.append(wire)
        begun: set[int] = set()
        try:
            if (preface := wire.read_bytes(len(PREFACE))) != PREFACE:
                self.errors.append(f"{name}: {preface!r} is no preface")
                return
            wire.send(opening)
            while not self._closed:
                wire.read_frame()
                self._note(name, number, wire, begun)
        except (ConnectionEnded, TimeoutError, OSError):
            wire.end = wire.end or "closed"
        except Exception as error:  # noqa: BLE001 (every failure of the helper fails the test that reads `errors`)
            self.errors.append(f"{name}: {error!r}")
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _note(self, name: str, number: int, wire: Http2Wire, begun: set[int]) -> None:
        for stream_id, stream in list(wire.streams.items()):
            if stream_id in begun or not stream.parts:
                continue
            begun.add(stream_id)
            with self._lock:
                script = self.script
                script.seen.append(Http2Seen(name, number, stream_id, stream, wire))
                what = script.take()
            self._start(self._answer, wire, stream_id, stream, what)

    def _answer(self, wire: Http2Wire, stream_id: int, stream: StreamSeen, what: Http2Answer) -> None:
        """In a thread of its own, since others go on meanwhile."""
        if what.first is not None:
            if what.wait_for:
                self._event(what.wait_for).wait(self._timeout_s)
            wire.send_if_open(what.first(stream_id))
        if not what.early:
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: stream.over or wire.end or self._closed, "the request's end", self._timeout_s, 0.001)
        if what.wait_for:
            self._event(what.wait_for).wait(self._timeout_s)
        if stream.reset is not None or wire.end or self._closed:
            return
        with contextlib.suppress(OSError):
            wire.send(what.frames(stream_id))
            if what.then == "close":
                shut(wire.sock, socket.SHUT_WR)
