"""A scripted upstream: an HTTP/1.1 server that answers with the exact bytes it is told and remembers what it saw."""

import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.polling import wait_for
from tests.support.wire import ConnectionEnded, Message, WireReader


@dataclass(frozen=True)
class Answer:
    """What the upstream does with one request.

    `pieces` are written as they stand, one `send` each. `early` answers after the request's head, without waiting for
    its body. `interim` goes out after the head (100 Continue). `then` is "keep", "close" (FIN), "reset" (RST) or
    "stall" (say no more, until the proxy ends the connection). `wait_for` names an event of the script
    (`ScriptedUpstream.fire`) before the answer goes out.
    """

    pieces: tuple[bytes, ...] = (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",)
    then: str = "keep"
    early: bool = False
    interim: bytes = b""
    wait_for: str = ""


def reply(
    status: int = 200,
    body: bytes = b"ok",
    headers: Sequence[tuple[str, str]] = (),
    *,
    then: str = "keep",
    early: bool = False,
    reason: str = "Reason",
) -> Answer:
    """A well-formed answer with Content-Length."""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
    if status >= 200 and status not in (204, 304):
        lines.append(f"content-length: {len(body)}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return Answer((head + (b"" if status in (204, 304) else body),), then=then, early=early)


OK = reply(reason="OK")
CLOSE = Answer((), then="close")
RESET = Answer((), then="reset")
STALL = Answer((), then="stall")


@dataclass
class Seen:
    """A request that came, on which server, on which of its connections, and as which request there."""

    server: str
    connection: int
    request_number: int
    message: Message
    whole: bool = False  # its body has been read
    ended: bool = False  # and the proxy has closed its connection, as the answer asked


@dataclass
class Script:
    """The answers to the next requests in the order they arrive (the last one repeats), and what was seen meanwhile.

    `by_server` gives a server its own answers.
    """

    answers: Sequence[Answer] = (OK,)
    by_server: Mapping[str, Sequence[Answer]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)

    def take(self, server: str) -> Answer:
        """The answer for the next request at a server."""
        key = server if server in self.by_server else ""
        answers = self.by_server.get(server, self.answers)
        number = self.used.get(key, 0)
        self.used[key] = number + 1
        return answers[min(number, len(answers) - 1)]


class ScriptedUpstream:
    """Several named servers on loopback ports of their own, all of them following one script.

    `names` are the servers; `ports[name]` their ports. `play` begins a script. Threads, since the proxies under
    test are other processes and their tests are plain functions.
    """

    def __init__(self, names: Sequence[str] = ("a",), timeout_s: float = 30.0) -> None:
        self._lock = threading.Lock()
        self._timeout_s = timeout_s
        self._connections: dict[str, int] = {}
        self._open: set[socket.socket] = set()
        self._finishing = 0
        self._events: dict[str, threading.Event] = {}
        self._closed = False
        self.script = Script()
        self.errors: list[str] = []
        self._listeners: dict[str, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        for name in names:
            listener = socket.create_server(("127.0.0.1", 0), backlog=256)
            self._listeners[name] = listener
            self._start(self._accept, name, listener)
        self.ports: dict[str, int] = {name: sock.getsockname()[1] for name, sock in self._listeners.items()}

    def play(
        self, answers: Sequence[Answer] = (OK,), by_server: Mapping[str, Sequence[Answer]] | None = None
    ) -> Script:
        """Begin a new script and return it; requests still running keep the old one."""
        with self._lock:
            self.script = Script(answers, by_server or {})
            self._events = {}
            return self.script

    def fire(self, event: str) -> None:
        """Let answers that wait for `event` go out."""
        self._event(event).set()

    def wait_seen(self, count: int, deadline_s: float = 5.0) -> list[Seen]:
        """Wait until the current script saw `count` request heads."""
        script = self.script
        wait_for(lambda: len(script.seen) >= count, f"{count} requests upstream", deadline_s)
        return script.seen

    def wait_whole(self, count: int, deadline_s: float = 5.0) -> None:
        """Wait until the current script saw `count` requests to their end."""
        script = self.script
        wait_for(lambda: sum(seen.whole for seen in script.seen) >= count, f"{count} whole requests", deadline_s)

    def wait_ended(self, count: int, deadline_s: float = 5.0) -> None:
        """Wait until the proxy closed the connections of `count` requests that were answered with `then="close"`."""
        script = self.script
        wait_for(lambda: sum(seen.ended for seen in script.seen) >= count, f"{count} connections to end", deadline_s)

    def settle(self, deadline_s: float = 5.0) -> None:
        """Wait until the proxy has noticed every connection that an answer ended, so that none is reused by mistake."""
        wait_for(lambda: self._finishing == 0, "the proxy to close ended connections", deadline_s)

    @property
    def open_connections(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    def close(self) -> None:
        """End everything and wait for the threads."""
        self._closed = True
        for listener in self._listeners.values():
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

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads = [known for known in self._threads if known.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _event(self, name: str) -> threading.Event:
        with self._lock:
            return self._events.setdefault(name, threading.Event())

    def _accept(self, name: str, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(self._timeout_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                number = self._connections[name] = self._connections.get(name, 0) + 1
                self._open.add(connection)
            self._start(self._serve, name, number, connection)

    def _serve(self, name: str, number: int, connection: socket.socket) -> None:
        reader = WireReader(connection)
        request_number = 0
        try:
            while not self._closed:
                request_number += 1
                if not self._serve_one(name, number, request_number, reader):
                    return
        except (ConnectionEnded, OSError):
            return  # The proxy ended the connection, as it may at any time.
        except Exception as error:  # noqa: BLE001 (every failure of the helper fails the test that reads `errors`)
            self.errors.append(f"{name}: {error!r}, buffer {reader.buffer[:200]!r}")
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _serve_one(self, name: str, number: int, request_number: int, reader: WireReader) -> bool:
        message = reader.read_head()
        message.end = "head"
        with self._lock:
            script = self.script
            answer = script.take(name)
            seen = Seen(name, number, request_number, message)
            script.seen.append(seen)
        if answer.interim:
            reader.sock.sendall(answer.interim)
        if not answer.early:
            self._read_body(reader, message)
            if message.end != "complete":
                return False
            seen.whole = True
        if answer.wait_for:
            self._event(answer.wait_for).wait(self._timeout_s)
        try:
            for piece in answer.pieces:
                reader.sock.sendall(piece)
            if answer.early and answer.then == "keep":
                self._read_body(reader, message)
            seen.ended = not self._finish(reader, answer.then)
            return not seen.ended
        except OSError:
            return False

    def _read_body(self, reader: WireReader, message: Message) -> None:
        message.end = "complete"
        reader.read_body(message, to_end=False)

    def _finish(self, reader: WireReader, then: str) -> bool:
        if then == "keep":
            return True
        with self._lock:
            self._finishing += then != "stall"
        try:
            if then == "reset":
                reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if then == "close":
                shut(reader.sock, socket.SHUT_WR)
            reader.read_to_end()
        finally:
            with self._lock:
                self._finishing -= then != "stall"
        return False


def shut(sock: socket.socket, how: int) -> None:
    """Shut down a socket that the peer may have closed before."""
    try:
        sock.shutdown(how)
    except OSError:
        return
