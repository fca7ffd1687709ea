"""HTTP/2 by the package h2, for tests under load: an upstream that says what it was asked, and clients with many
streams on each connection that check every answer."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import Iterator
from typing import Self, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from tests.integration.load import Answer, Check, Load
from tests.integration.proxy import eventually
from tests.support.http2_wire import MAX_WINDOW, goaway

_WINDOW = 1 << 20


class Http2Peer(asyncio.Protocol):
    """Either end of a connection: bytes in, events of h2 to `on_<event>`."""

    transport: asyncio.Transport

    def __init__(self, client_side: bool, max_streams: int = 1000) -> None:
        config = h2.config.H2Configuration(client_side=client_side, header_encoding=None)
        self.http2 = h2.connection.H2Connection(config)
        self.http2.local_settings.update(
            {
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: max_streams,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW,
            }
        )
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it
        self.http2.initiate_connection()
        self.http2.increment_flow_control_window(MAX_WINDOW - 65535)
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True

    def data_received(self, data: bytes) -> None:
        for event in self.events(data):
            self.on_event(event)
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                self.acknowledge(event.stream_id, event.flow_controlled_length)
        self.flush()

    def events(self, data: bytes) -> Iterator[h2.events.Event]:
        """What the bytes mean; a peer that breaks the protocol raises ProtocolError."""
        yield from self.http2.receive_data(data)

    def acknowledge(self, stream: int, size: int) -> None:
        try:
            self.http2.acknowledge_received_data(size, stream)
        except h2.exceptions.StreamClosedError:
            return  # nobody reads the rest of it

    def on_event(self, event: h2.events.Event) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        """Send what there is."""
        if (output := self.http2.data_to_send()) and not self.transport.is_closing():
            self.transport.write(output)


class Http2EchoUpstream:
    """An HTTP/2 server in the test's own loop; its answer to `/path` is `<name> /path`. No request bodies."""

    def __init__(self, name: str, port: int = 0, max_streams: int = 1000, tls: ssl.SSLContext | None = None) -> None:
        self.name = name
        self._tls = tls
        self.port = port
        self.max_streams = max_streams
        self.seen = 0
        self.delay_s = 0.0
        self.holds = False  # requests are answered when `release` says so
        self.connections: set[_EchoPeer] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: object, value: object, trace: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port if it did before."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _EchoPeer(self), "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Go at once, and wait until nothing of it is left."""
        assert self._server is not None
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        await eventually(lambda: not self.connections, "the upstream's connections to end")

    @property
    def waiting(self) -> int:
        """How many requests have no answer yet."""
        return sum(len(connection.open) for connection in self.connections)

    def release(self) -> None:
        """Answer all that wait."""
        for connection in self.connections:
            for stream in list(connection.open):
                connection.answer(stream)

    def go_away(self) -> int:
        """Take no further streams on the connections that have some, and finish those; how many connections."""
        busy = [connection for connection in self.connections if connection.open and not connection.going]
        for connection in busy:
            connection.go_away(connection.last_id)
        return len(busy)

    def go_away_unprocessed(self) -> int:
        """The same, but of the streams that have no answer yet only the older half is finished; how many are not."""
        dropped = 0
        for connection in self.connections:
            waiting = sorted(connection.open)
            if len(waiting) > 1 and not connection.going:
                last = waiting[len(waiting) // 2 - 1]
                dropped += sum(stream > last for stream in waiting)
                connection.go_away(last)
        return dropped


class _EchoPeer(Http2Peer):
    def __init__(self, upstream: Http2EchoUpstream) -> None:
        super().__init__(client_side=False, max_streams=upstream.max_streams)
        self._upstream = upstream
        self._last_taken = MAX_WINDOW
        self.last_id = 0
        self.open: dict[int, bytes] = {}  # streams without an answer, and what they ask for

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._upstream.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._upstream.connections.discard(self)

    @property
    def going(self) -> bool:
        """Whether it has said GOAWAY."""
        return self._last_taken != MAX_WINDOW

    def go_away(self, last: int) -> None:
        """h2 would take this for the end of the connection: it is not told."""
        self._last_taken = last
        self.open = {stream: target for stream, target in self.open.items() if stream <= last}
        self.transport.write(goaway(last))
        self._close_if_done()

    def on_event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._on_request(event.stream_id, dict(event.headers)[b":path"])
        elif isinstance(event, h2.events.StreamReset):
            self.open.pop(event.stream_id, None)

    def _on_request(self, stream: int, target: bytes) -> None:
        if stream > self._last_taken:
            return  # it was on its way when we said that we go
        upstream = self._upstream
        upstream.seen += 1
        self.last_id = stream
        self.open[stream] = target
        if upstream.delay_s:
            asyncio.get_running_loop().call_later(upstream.delay_s, self.answer, stream)
        elif not upstream.holds:
            self.answer(stream)

    def answer(self, stream: int) -> None:
        target = self.open.pop(stream, None)
        if target is None or self.lost:
            return
        body = self._upstream.name.encode() + b" " + target
        self.http2.send_headers(stream, [(":status", "200"), ("content-length", str(len(body)))])
        self.http2.send_data(stream, body, end_stream=True)
        self.flush()
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self.going and not self.open:
            self.transport.close()


class Unprocessed(Exception):
    """The proxy says that it has not looked at the request: it can be asked again."""


class Http2Load(Load):
    """As `Load`, with `streams` requests at a time on each of the `kept` connections.

    A request that the proxy has said not to have processed (RFC 9113 section 8.7) is asked again, and counted.
    """

    def __init__(
        self,
        port: int,
        check: Check,
        *,
        kept: int = 4,
        fresh: int = 2,
        streams: int = 6,
        pause_s: float = 0.01,
        until_refused: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(port, check, kept=kept, fresh=fresh, pause_s=pause_s, until_refused=until_refused, tls=tls)
        self._streams = streams
        self.unprocessed = 0
        self.goaways = 0  # connections that were told to end

    async def _client(self, keep: bool) -> None:
        while not self._stopping:
            connection = Http2Client()
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda connection=connection: connection,
                    "127.0.0.1",
                    self.port,
                    ssl=self._tls,
                    server_hostname="a.test" if self._tls else None,
                )
            except ConnectionRefusedError:
                self.refused += 1
                if self._until_refused:
                    return
                await asyncio.sleep(self._pause_s)
                continue
            except ConnectionResetError:
                continue  # not accepted yet: nothing was sent
            self.connections += 1
            if keep:
                await asyncio.gather(*(self._ask_on(connection) for _ in range(self._streams)))
            else:
                await self._ask_once(connection)
            self.goaways += connection.last_taken is not None
            self.closed_unasked += connection.lost and connection.last_taken is None
            connection.transport.close()
            await eventually(lambda connection=connection: connection.lost, "a connection to end")  # type: ignore[misc]
            await asyncio.sleep(self._pause_s)

    async def _ask_on(self, connection: Http2Client) -> None:
        while connection.usable and not self._stopping:
            await self._ask_once(connection)
            await asyncio.sleep(self._pause_s)

    async def _ask_once(self, connection: Http2Client) -> None:
        target = f"{self._path}{next(self._numbers)}".encode()
        try:
            answer = await connection.ask(target)
        except Unprocessed:
            self.unprocessed += 1
        except (TimeoutError, ConnectionError) as error:
            self._lose(f"{target!r}: {error!r} {connection.facts()}")
        else:
            self.answers.append(answer)
            if complaint := self.check(answer, target):
                self.failures.append(complaint)


class Http2Client(Http2Peer):
    """One connection of the load."""

    def __init__(self) -> None:
        super().__init__(client_side=True)
        self.last_taken: int | None = None  # of the last GOAWAY
        self.requests = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._heads: dict[int, dict[bytes, bytes]] = {}
        self._bodies: dict[int, bytes] = {}
        self._goaway_seen = b""

    @property
    def usable(self) -> bool:
        """Whether another request may begin."""
        return not self.lost and self.last_taken is None

    def facts(self) -> str:
        return f"of {self.requests}, last taken {self.last_taken}, lost {self.lost}"

    async def ask(self, target: bytes) -> Answer:
        """Raises Unprocessed, ConnectionError or TimeoutError."""
        began = asyncio.get_running_loop().time()
        stream = self.begin(target)
        async with asyncio.timeout(20.0):
            await self._waiting[stream]
        return self.take(stream, began)

    def begin(self, target: bytes) -> int:
        """Send a request; its stream."""
        self.requests += 1
        stream = self.http2.get_next_available_stream_id()
        self._waiting[stream] = asyncio.get_running_loop().create_future()
        fields = [(":method", "GET"), (":scheme", "http"), (":authority", "test"), (":path", target.decode())]
        self.http2.send_headers(stream, fields, end_stream=True)
        self.flush()
        return stream

    def take(self, stream: int, began: float = 0.0) -> Answer:
        """The answer, which is whole."""
        head = self._heads.pop(stream)
        now = asyncio.get_running_loop().time()
        return Answer(began, now, int(head[b":status"]), head, self._bodies.pop(stream, b""))

    @property
    def waiting(self) -> int:
        """How many requests have no answer yet."""
        return len(self._waiting)

    def cancel_all(self) -> None:
        """Take back what has no answer."""
        for stream in list(self._waiting):
            self.http2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            self._waiting.pop(stream).cancel()
        self.flush()

    def on_event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self._heads[event.stream_id] = dict(event.headers)
        elif isinstance(event, h2.events.DataReceived):
            self._bodies[event.stream_id] = self._bodies.get(event.stream_id, b"") + event.data
        elif isinstance(event, h2.events.StreamEnded):
            self._waiting.pop(event.stream_id).set_result(None)
        elif isinstance(event, h2.events.StreamReset):
            self._on_reset(event.stream_id, int(event.error_code))

    def _on_reset(self, stream: int, code: int) -> None:
        error: Exception = ConnectionResetError(f"RST_STREAM {code}")
        self._fail(stream, Unprocessed() if code == h2.errors.ErrorCodes.REFUSED_STREAM else error)

    def _fail(self, stream: int, error: Exception) -> None:
        if stream in self._waiting:
            self._waiting.pop(stream).set_exception(error)

    def events(self, data: bytes) -> Iterator[h2.events.Event]:
        """h2 takes any GOAWAY for the connection's end: those frames are taken out before, and read here."""
        kept = b""
        data = self._goaway_seen + data
        while len(data) >= 9 and len(data) >= 9 + (size := int.from_bytes(data[:3], "big")):
            frame, data = data[: 9 + size], data[9 + size :]
            if frame[3] == 7:
                kept = self._on_goaway(frame, kept)
            else:
                kept += frame
        self._goaway_seen = data
        yield from super().events(kept)

    def _on_goaway(self, frame: bytes, kept: bytes) -> bytes:
        last, code = struct.unpack("!LL", frame[9:17])
        self.last_taken = last
        if code:
            kept += frame
        for stream in [each for each in self._waiting if each > last]:
            self._fail(stream, Unprocessed())
        return kept

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        for stream in list(self._waiting):
            self._fail(stream, ConnectionResetError(f"the connection ended ({error!r})"))
