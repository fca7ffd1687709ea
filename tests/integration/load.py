"""An upstream that says what it was asked, and a load that checks every answer."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self, cast

from tests.integration.proxy import eventually

_HEAD_END = b"\r\n\r\n"


class EchoUpstream:
    """An HTTP/1.1 server in the test's own loop; its answer to `/path` is `<name> /path`. No request bodies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self.seen = 0
        self.delay_s = 0.0
        self._server: asyncio.Server | None = None
        self._connections: set[_EchoConnection] = set()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _EchoConnection(self, self._connections), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: object, value: object, trace: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.transport.abort()
        await eventually(lambda: not self._connections, "the upstream's connections to end")


class _EchoConnection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, upstream: EchoUpstream, connections: set[_EchoConnection]) -> None:
        self._upstream = upstream
        self._connections = connections
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(_HEAD_END)) >= 0:
            target = self._buffer.split(b" ", 2)[1]
            self._buffer = self._buffer[end + 4 :]
            self._upstream.seen += 1
            if self._upstream.delay_s:
                asyncio.get_running_loop().call_later(self._upstream.delay_s, self._answer, target)
            else:
                self._answer(target)

    def _answer(self, target: bytes) -> None:
        body = self._upstream.name.encode() + b" " + target
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


class Answer:
    """One answer of the load: when its request began and its answer was whole (loop time), and what it said."""

    def __init__(self, began: float, ended: float, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        self.began = began
        self.ended = ended
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def closes(self) -> bool:
        """Whether it said `connection: close`."""
        return self.headers.get(b"connection") == b"close"


Check = Callable[[Answer, bytes], str]


def echoed(*names: str) -> Check:
    """The answer is 200, by one of these upstreams, to this very request."""

    def check(answer: Answer, target: bytes) -> str:
        wanted = [name.encode() + b" " + target for name in names]
        if answer.status == 200 and answer.body in wanted:
            return ""
        return f"{target!r}: {answer.status} {answer.body!r}"

    return check


class Load:
    """Clients that ask one request after the other until `stop`: `kept` of them on a connection that they keep as long
    as the proxy lets them, `fresh` of them on a new one for each; with `tls` they speak it, and ask for a.test.

    `failures` has what must not be: a wrong answer, or a request that was sent and not answered. A refused connection
    is counted, and tried again; with `until_refused` it ends the client.
    """

    def __init__(
        self,
        port: int,
        check: Check,
        *,
        kept: int = 6,
        fresh: int = 2,
        pause_s: float = 0.01,
        until_refused: bool = False,
        path: str = "/",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.port = port
        self.check = check
        self.answers: list[Answer] = []
        self.failures: list[str] = []
        self.lost: list[str] = []  # requests that ended without any answer (also in `failures`)
        self.refused = 0
        self.connections = 0
        self.closed_unasked = 0  # kept connections that ended between two requests, without a word
        self._path = path
        self._tls = tls
        self._pause_s = pause_s
        self._until_refused = until_refused
        self._numbers = itertools.count()
        self._stopping = False
        self._kinds = [True] * kept + [False] * fresh
        self._clients: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._clients = [asyncio.create_task(self._client(keep)) for keep in self._kinds]
        try:
            await self.more(20)
        except TimeoutError:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def more(self, count: int = 50, deadline_s: float = 15.0) -> None:
        """Wait until so many more answers came, to requests that begin from now on."""
        now = asyncio.get_running_loop().time()
        seen = len(self.answers)

        def enough() -> bool:
            nonlocal seen
            return sum(answer.began >= now for answer in self.answers[seen:]) >= count

        try:
            await eventually(enough, f"{count} more answers", deadline_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {len(self.answers)} answers, {self.failures[:3]}") from None

    async def until(self, condition: Callable[[Answer], bool], what: str) -> None:
        """Wait until one of the last answers is so."""
        await eventually(lambda: any(condition(answer) for answer in self.answers[-40:]), what)

    async def ended(self, deadline_s: float = 30.0) -> None:
        """Wait until every client has found the port closed."""
        await eventually(lambda: all(client.done() for client in self._clients), "the clients to end", deadline_s)

    async def stop(self) -> None:
        """End after the requests that are under way."""
        self._stopping = True
        await asyncio.gather(*self._clients)

    def since(self, moment: float) -> list[Answer]:
        """The answers to requests that began after `moment`."""
        return [answer for answer in self.answers if answer.began >= moment]

    def names(self, since: float = 0.0) -> Counter[bytes]:
        """How often which upstream (the first word of a body) answered."""
        return Counter(answer.body.split(b" ")[0] for answer in self.since(since))

    async def _client(self, keep: bool) -> None:
        connection: _Client | None = None
        while not self._stopping:
            if connection is None:
                try:
                    connection = await _Client.open(self.port, self._tls)
                except ConnectionRefusedError:
                    self.refused += 1
                    if self._until_refused:
                        return
                    await asyncio.sleep(self._pause_s)
                    continue
                except ConnectionResetError:
                    continue  # not accepted yet: nothing was sent
                self.connections += 1
            if not await self._ask(connection) or not keep:
                connection.close()
                connection = None
            await asyncio.sleep(self._pause_s)
            if connection is not None and connection.ended:
                self.closed_unasked += 1
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    async def _ask(self, connection: _Client) -> bool:
        """Whether the connection can be used again."""
        target = f"{self._path}{next(self._numbers)}".encode()
        try:
            answer = await connection.ask(target)
        except TimeoutError:
            self._lose(f"{target!r}: no answer in time")
            return False
        except (ConnectionError, EOFError) as error:
            self._lose(f"{target!r}: {error!r} after {connection.requests} requests")
            return False
        self.answers.append(answer)
        if complaint := self.check(answer, target):
            self.failures.append(complaint)
        return not answer.closes

    def _lose(self, complaint: str) -> None:
        self.lost.append(complaint)
        self.failures.append(complaint)


class _Client:
    """One connection of the load."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.requests = 0

    @classmethod
    async def open(cls, port: int, tls: ssl.SSLContext | None) -> _Client:
        return cls(
            *await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="a.test" if tls else None)
        )

    @property
    def ended(self) -> bool:
        """The proxy has closed."""
        return self._reader.at_eof()

    async def ask(self, target: bytes) -> Answer:
        self.requests += 1
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._writer.write(b"GET %s HTTP/1.1\r\nhost: test\r\n\r\n" % target)
        async with asyncio.timeout(20.0):
            head = (await self._reader.readuntil(_HEAD_END))[:-4]
            start, *lines = head.split(b"\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
            body = await self._reader.readexactly(int(headers.get(b"content-length", b"0")))
        return Answer(began, loop.time(), int(start.split(b" ")[1]), headers, body)

    def close(self) -> None:
        self._writer.close()
