"""What stands before and behind the proxy in a test: a client's exchange, and an upstream that does as it is told."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import httptools

from meshproxy.codec.headers import HeaderMap
from meshproxy.observe.stream_info import StreamInfo

Text = str | bytes
_TIMEOUT_S = 10.0
Headers = Mapping[Any, Any] | Iterable[tuple[Any, Any]]  # names and values: str or bytes


def to_bytes(text: Text) -> bytes:
    return text.encode() if isinstance(text, str) else text


def to_header_map(headers: Headers | None) -> HeaderMap:
    """Names in lower case."""
    pairs: Iterable[tuple[Any, Any]] = headers.items() if isinstance(headers, Mapping) else headers or ()
    return HeaderMap([(to_bytes(name).lower(), to_bytes(value)) for name, value in pairs])


class Message:
    """The parts that requests and responses have."""

    def __init__(self) -> None:
        self.headers = HeaderMap()
        self.trailers = HeaderMap()
        self.chunks: list[bytes] = []  # the body as it came

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: Text) -> str | None:
        """The first value of `name`, in whatever case that is; None when there is none."""
        value = self.headers.get(to_bytes(name).lower())
        return None if value is None else value.decode("latin-1")


class Request(Message):
    """What an upstream saw."""

    def __init__(self) -> None:
        super().__init__()
        self.method: str = ""
        self.path: str = ""


class Response(Message):
    """What the client saw. `info` is what access logs know of the stream; None until it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.status: int = 0
        self.info: StreamInfo | None = None

    @property
    def details(self) -> str:
        """The response code details, such as `via_upstream`."""
        return "" if self.info is None else self.info.response_code_details

    @property
    def metadata(self) -> dict[str, dict[str, Any]]:
        """The stream's dynamic metadata."""
        return {} if self.info is None else self.info.dynamic_metadata or {}


class Answer:
    """What an upstream says. A `body` in pieces is sent chunked, each piece on its own."""

    def __init__(
        self,
        status: int = 200,
        headers: Headers | None = None,
        body: Text | Iterable[Text] = b"",
        trailers: Headers | None = None,
    ) -> None:
        self.status = status
        self.headers = to_header_map(headers)
        self.pieces = [to_bytes(body)] if isinstance(body, (str, bytes)) else [to_bytes(piece) for piece in body]
        self.chunked = not isinstance(body, (str, bytes)) or trailers is not None
        self.trailers = to_header_map(trailers)


def encode(
    start_line: bytes, headers: HeaderMap, pieces: list[bytes], chunked: bool, trailers: HeaderMap
) -> list[bytes]:
    """A message of HTTP/1.1, in pieces to be sent one after the other."""
    head = [start_line]
    if chunked:
        head.append(b"transfer-encoding: chunked")
    elif (
        b"content-length" not in headers
        and b"upgrade" not in headers
        and (pieces != [b""] or start_line[:4] == b"HTTP")
    ):
        head.append(b"content-length: %d" % len(b"".join(pieces)))
    head += [name + b": " + value for name, value in headers.fields]
    parts = [b"\r\n".join(head) + b"\r\n\r\n"]
    if not chunked:
        return parts + [piece for piece in pieces if piece]
    parts += [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece]
    ends = b"".join(name + b": " + value + b"\r\n" for name, value in trailers.fields)
    return [*parts, b"0\r\n" + ends + b"\r\n"]


class _Parser:
    """httptools' callbacks, for either kind of message."""

    def __init__(self, message: Message, on_complete: Callable[[], None]) -> None:
        self._message = message
        self._on_complete = on_complete
        self._in_body = False

    def on_header(self, name: bytes, value: bytes) -> None:
        part = self._message.trailers if self._in_body else self._message.headers
        part.add(name.lower(), value)

    def on_headers_complete(self) -> None:
        self._in_body = True

    def on_body(self, data: bytes) -> None:
        self._message.chunks.append(data)

    def on_message_complete(self) -> None:
        self._on_complete()


class Exchange(asyncio.Protocol):
    """One request of a client, and its response; `send` and `finish` for one that is sent bit by bit."""

    def __init__(self, method: bytes) -> None:
        self.response = Response()
        self.received: bytes = b""  # all bytes of the connection, for what is not HTTP after its head
        self._method = method
        self._transport: Any = None
        self._chunked = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrived = asyncio.Event()
        self._closed = False
        callbacks: Any = _Parser(self.response, self._complete)
        if method == b"HEAD":
            callbacks.on_headers_complete = self._complete  # the parser would wait for a body
        self._parser: Any = httptools.HttpResponseParser(callbacks)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def begin(self, path: bytes, headers: HeaderMap, *, chunked: bool) -> None:
        """Send the head."""
        self._chunked = chunked
        parts = encode(self._method + b" " + path + b" HTTP/1.1", headers, [], chunked, HeaderMap())
        self._transport.write(parts[0])

    async def send(self, data: Text) -> None:
        """Send a piece of the body."""
        raw = to_bytes(data)
        self._transport.write(b"%x\r\n%s\r\n" % (len(raw), raw) if self._chunked else raw)
        await asyncio.sleep(0)

    async def finish(self, trailers: Headers | None = None) -> Response:
        """End the body, and wait for the whole response. Raises ConnectionError when it does not come."""
        if self._chunked:
            ends = b"".join(name + b": " + value + b"\r\n" for name, value in to_header_map(trailers).fields)
            self._transport.write(b"0\r\n" + ends + b"\r\n")
        await self._done
        self._transport.close()
        return self.response

    async def until_received(self, size: int) -> bytes:
        """Wait until the connection brought that many bytes; returns all of them."""
        while len(self.received) < size:
            self._arrived.clear()
            await self._arrived.wait()
        return self.received

    async def until_closed(self) -> None:
        """Wait until the proxy has closed the connection."""
        while not self._closed:
            self._arrived.clear()
            await self._arrived.wait()

    def close(self) -> None:
        """Leave, whether the response is there or not."""
        if not self._done.done():
            self._done.cancel()
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._arrived.set()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._complete()
        except httptools.HttpParserError as error:
            if not self._done.done():
                self._done.set_exception(ConnectionError(f"what came is no HTTP response: {error}"))
        self.response.status = self._parser.get_status_code()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._arrived.set()
        if not self._done.done():
            self._done.set_exception(ConnectionError("the connection ended before the response was complete"))
            self._done.exception()  # nobody has to ask

    def _complete(self) -> None:
        if self._method == b"HEAD" or self._parser.get_status_code() >= 200 or self._parser.get_status_code() == 101:
            if not self._done.done():
                self._done.set_result(None)


Handler = Callable[[Request], "Answer | Awaitable[Answer]"]


class Upstream:
    """What a cluster leads to. It answers each request with what `respond` said last, or as its `handler` says; one
    that raises ConnectionError ends the connection."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.connections = 0  # that were made
        self.handler: Handler | None = None
        self.echoes = False  # after a 101 it sends back what it is sent
        self._answer = Answer()
        self._tunnels: list[_UpstreamConnection] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def respond(
        self,
        status: int = 200,
        headers: Headers | None = None,
        body: Text | Iterable[Text] = b"",
        trailers: Headers | None = None,
    ) -> None:
        """Answer so from now on."""
        self._answer = Answer(status, headers, body, trailers)

    async def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        if self.handler is None:
            return self._answer
        answer = self.handler(request)
        return await answer if inspect.isawaitable(answer) else answer

    async def say(self, data: Text) -> None:
        """Send bytes on the connections that were switched to another protocol (101)."""
        for tunnel in self._tunnels:
            tunnel.write(to_bytes(data))
        await asyncio.sleep(0)

    def on_tunnel(self, connection: _UpstreamConnection) -> None:
        self._tunnels.append(connection)

    def new_connection(self) -> _UpstreamConnection:
        self.connections += 1
        return _UpstreamConnection(self)


class _UpstreamConnection(asyncio.Protocol):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._transport: Any = None
        self._tunnel = False
        self._begin()

    def _begin(self) -> None:
        self._request = Request()
        callbacks: Any = _Parser(self._request, self._complete)
        callbacks.on_url = self._on_url
        self._parser: Any = httptools.HttpRequestParser(callbacks)

    def _on_url(self, url: bytes) -> None:
        self._request.path += url.decode("latin-1")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._tunnel:
            if self._upstream.echoes:
                self._transport.write(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._tunnel = True  # the proxy sends nothing more before we answer

    def _complete(self) -> None:
        request = self._request
        request.method = self._parser.get_method().decode()
        self._begin()
        task = asyncio.get_running_loop().create_task(self._answer(request))
        self._upstream.tasks.add(task)
        task.add_done_callback(self._upstream.tasks.discard)

    async def _answer(self, request: Request) -> None:
        try:
            answer = await self._upstream.answer(request)
        except ConnectionError:
            self._transport.close()
            return
        if self._transport.is_closing():
            return
        if answer.status == 101:
            self._upstream.on_tunnel(self)
        start_line = b"HTTP/1.1 %d Status" % answer.status
        parts = encode(start_line, answer.headers, answer.pieces, answer.chunked, answer.trailers)
        for part in parts[:1] if request.method == "HEAD" else parts:
            self._transport.write(part)
            await asyncio.sleep(0)


class Peer(asyncio.Protocol):
    """One end of a connection of bytes: a client before the proxy, or what a connection leads to behind it."""

    def __init__(self) -> None:
        self.received: bytes = b""  # and not read yet
        self.ended = False  # the other side sends no more
        self.closed = False  # the connection is gone
        self.error: Exception | None = None  # which it was reset with
        self._has_ended = False
        self._transport: Any = None
        self._news = asyncio.Event()

    @property
    def backed_up(self) -> bool:
        """The proxy does not read what is sent, for the moment."""
        other = self._transport.other
        return other is not None and not other.is_reading()

    def send(self, data: Text) -> None:
        self._transport.write(to_bytes(data))

    def end(self) -> None:
        """Send no more; the other direction stays open until it ends, too."""
        self._has_ended = True
        if self.ended:
            self._transport.close()
        else:
            self._transport.write_eof()

    def close(self) -> None:
        self._transport.close()

    async def read(self, size: int) -> bytes:
        """The next so many bytes. Raises ConnectionError when they do not come any more."""
        await self._until(lambda: len(self.received) >= size or self.ended)
        if len(self.received) < size:
            raise ConnectionError(f"the connection ended after {self.received!r}")
        data, self.received = self.received[:size], self.received[size:]
        return data

    async def read_all(self) -> bytes:
        """All that comes until the other side sends no more."""
        await self._until(lambda: self.ended)
        data, self.received = self.received, b""
        return data

    async def until_closed(self) -> None:
        """Wait until the connection is gone."""
        await self._until(lambda: self.closed)

    async def _until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(_TIMEOUT_S):
            while not holds():
                self._news.clear()
                await self._news.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._news.set()

    def eof_received(self) -> bool:
        self.ended = True
        self._news.set()
        return not self._has_ended

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = self.closed = True
        self.error = exc
        self._news.set()
