"""The xDS streams of all clients: what the protocol says goes out, in the order in which clients can take it.

A client that is idle costs one task, which waits for its next request. What it is to be sent is written by another,
which ends when there is nothing more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable
from typing import Any, Final

import grpc
from envoy.config.core.v3.base_pb2 import Node
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest
from google.protobuf.message import DecodeError

from meshproxy.config.subscription import SECRET_TYPE
from meshproxy.observe.log import log_once_per
from meshproxy.pilot.server.identity import Names, Proof, Shown, proof_by_certificate
from meshproxy.pilot.server.kinds import label_of, short_name
from meshproxy.pilot.server.metrics import Metrics
from meshproxy.pilot.server.protocol import DeltaStream, Rejection, RequestError, StateOfTheWorldStream, TooMuchError
from meshproxy.pilot.server.responses import Response
from meshproxy.pilot.server.snapshots import Snapshots, TooManyScopesError
from meshproxy.pilot.server.stream_secrets import StreamSecrets
from meshproxy.pilot.server.throttle import LONGEST_HOLD_S, STALLED_BYTES, Throttle, longest_stalled
from meshproxy.pilot.server.view import View
from meshproxy.pilot.snapshot import Proxy
from meshproxy.rpc.server.call import RpcFailure
from meshproxy.rpc.server.google import status_code

Identify = Callable[[Node, Names], Proxy]

# How long a client may take to answer a response, or to say who it is.
DEADLINE_S: Final = 30.0
_WATCH_INTERVAL_S: Final = 1.0
MAX_STREAMS: Final = 20_000
MAX_NODE_BYTES: Final = 256 * 1024  # without its extensions
# Responses from this size on are under way for a while, and wait for each other.
_LARGE_BYTES: Final = 64 * 1024
_MAX_REJECTIONS: Final = 200  # that are remembered
_MAX_NAME: Final = 256
_MAX_REASON: Final = 1024
_PROOF_ENDED: Final = "the proof of identity has ended"
_log: Final = logging.getLogger("meshproxy.pilot")
_refusals: Final = log_once_per(1.0, "pilot")  # of whoever comes: outsiders do not fill the disk


class ClientStream:
    """One stream of a client. Until its first request it is nobody's."""

    def __init__(self, streams: Streams, context: Any, number: int, type_url: str, *, delta: bool) -> None:
        self.number = number
        self.node: Node | None = None
        self.proxy = Proxy("")
        self.shown = Shown(None)
        self.address: str = context.peer()
        self.began_at = time.time()
        self.protocol = "delta" if delta else "sotw"
        self.stream = DeltaStream(type_url) if delta else StateOfTheWorldStream(type_url)
        self.requests = 0
        self.bytes_sent = 0
        self._request: Any = DeltaDiscoveryRequest if delta else DiscoveryRequest
        self._streams = streams
        self._context = context
        self._began = time.monotonic()
        self._writing: asyncio.Task[None] | None = None
        self._queued = False
        self._write_bytes = 0  # of the write that gRPC has not finished, and since when
        self._write_at = 0.0
        self._ended = False
        self._secrets: StreamSecrets | None = None  # since the client has asked for some, and may have them
        self._due: View | None = None  # a change that the client has not taken yet
        self._ending: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None

    async def serve(self) -> None:
        """Until the client goes, or is told to."""
        self._task = asyncio.current_task()
        try:
            await self._prove()
            while (data := await self._context.read()) is not grpc.aio.EOF:
                await self._take(data)
        finally:
            self._ended = True
            if self._secrets is not None:
                self._secrets.close()
            if self._writing is not None:
                self._writing.cancel()
                await asyncio.gather(self._writing, return_exceptions=True)
            self._context = self._task = None  # gRPC resets a call that nobody holds

    async def _prove(self) -> None:
        """Before anything is read of it."""
        try:
            self.shown = await self._streams.proof(self._context)
        except RpcFailure as failure:
            self._streams.on_refused(self, failure.message)
            await self._context.abort(status_code(failure.status), failure.message)

    async def _take(self, data: bytes) -> None:
        self.requests += 1
        try:
            request = self._request.FromString(data)
            if self.node is None:
                self._introduce(request)
            if request.type_url == SECRET_TYPE and self._may_have_secrets():
                rejection = self._receive_for_secrets(data)
            else:
                rejection = self.stream.receive(request, time.monotonic())
        except (RequestError, TooManyScopesError, ValueError, DecodeError, RpcFailure) as error:
            reason = str(error)[:_MAX_REASON]  # it may repeat what the client said
            self._streams.on_refused(self, reason)
            await self._context.abort(_code_of(error), reason)
        else:
            if rejection is not None:
                self._streams.on_rejection(self, rejection)
            self.poke()

    def _introduce(self, request: Any) -> None:
        if not request.node.id:
            raise RequestError("the first request of a stream must say who asks: node.id is required")
        # A copy of its own: the request, which may name a thousand resources, is not kept, nor what Envoy can do.
        request.node.ClearField("extensions")
        data = request.node.SerializeToString()
        if len(data) > MAX_NODE_BYTES:
            raise TooMuchError(f"the node has more than {MAX_NODE_BYTES} bytes")
        node = Node.FromString(data)
        self.proxy = self._streams.identify(node, self.shown.names)
        self.node = node
        self._streams.snapshots.join(self)

    def _may_have_secrets(self) -> bool:
        return self.shown.open_secrets is not None and not self.stream.type_url

    def _receive_for_secrets(self, data: bytes) -> Rejection | None:
        if self._secrets is None and self.shown.open_secrets is not None:
            self._secrets = StreamSecrets(self.shown.open_secrets(), self.poke, delta=self.stream.IS_DELTA)
        return None if self._secrets is None else self._secrets.receive(data, time.time())

    def show(self, view: View) -> None:
        """There is a newer snapshot."""
        if self.stream.view is not None:
            self._due = view
        self.stream.set_view(view)
        self.poke()

    def turn_away(self, reason: str) -> None:
        """There is no snapshot for it."""
        self._streams.on_refused(self, reason)
        self.end(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)

    def poke(self) -> None:
        """Send what can be sent now."""
        if self._writing is not None or self._ended:
            return
        response = self._next()
        if response is not None:
            self._writing = asyncio.ensure_future(self._write(response))
        elif self._due is not None and self.stream.settled:
            self._streams.metrics.push.observe(time.monotonic() - self._due.changed_at)
            self._due = None

    def _next(self) -> Response | None:
        response = self.stream.next(time.monotonic())
        return self._secrets.next() if response is None and self._secrets is not None else response

    async def _write(self, response: Response | None) -> None:
        try:
            while response is not None:
                size = len(response.body)
                self.bytes_sent += size
                self._streams.on_sent(response)
                if size >= _LARGE_BYTES:
                    await self._write_large(response)
                else:
                    await self._put(response)
                response = self._next()
        except grpc.aio.BaseError as error:
            _log.debug("%s is gone while it is written to: %s", self.name, error)
        finally:
            self._writing = None

    async def _write_large(self, response: Response) -> None:
        self._queued = True
        hold = await self._streams.throttle.take(len(response.body))
        self._queued = False
        try:
            self.stream.leaves(response, time.monotonic())
            await self._put(response)
        finally:
            hold.release()

    async def _put(self, response: Response) -> None:
        self._write_bytes, self._write_at = len(response.body), time.monotonic()
        try:
            await self._context.write(bytes(response))
        finally:
            self._write_bytes = 0

    def stalled(self, now: float) -> tuple[float, int]:
        """For how long, and of how many bytes, gRPC waits until the client reads on."""
        return (now - self._write_at, self._write_bytes) if self._write_bytes else (0.0, 0)

    @property
    def name(self) -> str:
        """For the log."""
        return self.proxy.id[:_MAX_NAME] or self.address

    def overdue_s(self, now: float) -> float:
        """For how long the client owes an answer, or its first request."""
        if self.node is None:
            return now - self._began
        sent_at = None if self._queued else self.stream.oldest_sent_at()
        return 0.0 if sent_at is None else now - sent_at

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """Tell the client to go. A second call does nothing."""
        if self._ending is not None or self._ended:
            return
        if self._writing is not None and self._task is not None:
            self._task.cancel()  # a status would wait behind what the client does not read
        else:
            self._ending = asyncio.ensure_future(self._abort(self._context, code, details))

    async def _abort(self, context: Any, code: grpc.StatusCode, details: str) -> None:
        try:
            await context.abort(code, details)
        except grpc.aio.BaseError as error:
            _log.debug("%s was told to go: %s", self.name, error)


class Streams:
    """All clients. `proof` says what one has proved, or raises RpcFailure; `identify` makes a proxy of a node and of
    that; it may raise ValueError."""

    def __init__(
        self, snapshots: Snapshots, identify: Identify, metrics: Metrics, deadline_s: float = DEADLINE_S
    ) -> None:
        self.snapshots = snapshots
        self.identify = identify
        self.proof: Proof = proof_by_certificate
        self.metrics = metrics
        self.throttle = Throttle()
        self.stalled_bytes = STALLED_BYTES
        self.clients: dict[ClientStream, None] = {}
        self.rejections: dict[int, tuple[str, Rejection]] = {}  # the last ones, with the client
        self._rejection_numbers = itertools.count()
        self._stream_numbers = itertools.count(1)
        self._deadline_s = deadline_s
        self._hold_s = min(LONGEST_HOLD_S, deadline_s / 4)
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch for slow clients."""
        self._watch = asyncio.ensure_future(self._watch_deadlines())

    async def close(self) -> None:
        """Watch no longer."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def serve(self, context: Any, type_url: str, *, delta: bool) -> None:
        """One stream, from its first request to its end."""
        if len(self.clients) >= MAX_STREAMS:
            self.metrics.refused.inc()
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"this pilot serves {MAX_STREAMS} streams: ask another"
            )
        client = ClientStream(self, context, next(self._stream_numbers), type_url, delta=delta)
        self.clients[client] = None
        self.metrics.clients.labels(client.protocol).inc()
        try:
            await client.serve()
        finally:
            del self.clients[client]
            self.metrics.clients.labels(client.protocol).dec()
            self.snapshots.leave(client)

    async def send_away(self, seconds: float) -> None:
        """End all streams, each at a moment of its own within so many seconds: who serves them next is not flooded."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        clients = list(self.clients)
        random.shuffle(clients)
        for left, client in zip(range(len(clients), 0, -1), clients, strict=True):
            pause = (until - loop.time()) / left
            if pause > 0.0:
                await asyncio.sleep(random.uniform(0.0, 2.0 * pause))
            client.end(grpc.StatusCode.UNAVAILABLE, "this pilot ends: ask another")

    # -- what streams tell

    def on_sent(self, response: Response) -> None:
        self.metrics.responses.labels(label_of(response.type_url)).inc()
        self.metrics.bytes.inc(len(response.body))

    def on_refused(self, client: ClientStream, reason: str) -> None:
        self.metrics.refused.inc()
        _refusals.warning(f"{client.name} is refused: {reason}")

    def on_rejection(self, client: ClientStream, rejection: Rejection) -> None:
        kind = short_name(rejection.type_url)
        self.metrics.rejections.labels(label_of(rejection.type_url)).inc()
        self.rejections[next(self._rejection_numbers)] = (client.name, rejection)
        if len(self.rejections) > _MAX_REJECTIONS:
            del self.rejections[next(iter(self.rejections))]
        _log.warning("%s refuses %s %s: %s", client.name, kind, rejection.version, rejection.reason)

    async def _watch_deadlines(self) -> None:
        while True:
            await asyncio.sleep(min(_WATCH_INTERVAL_S, self._deadline_s / 4))
            now = time.monotonic()
            for client in list(self.clients):
                if client.overdue_s(now) > self._deadline_s:
                    self._send_slow_away(client, f"no answer for {self._deadline_s:g} s")
                elif not client.shown.holds():
                    self.on_refused(client, _PROOF_ENDED)
                    client.end(grpc.StatusCode.UNAUTHENTICATED, _PROOF_ENDED)
                elif client.stream.waits:
                    client.poke()
            waiting = {client: client.stalled(now) for client in self.clients}
            for client in longest_stalled(waiting, self._hold_s, self.stalled_bytes):
                self._send_slow_away(client, "it does not read, and neither do too many others")

    def _send_slow_away(self, client: ClientStream, reason: str) -> None:
        self.metrics.slow.inc()
        _log.warning("%s is sent away: %s", client.name, reason)
        client.end(grpc.StatusCode.DEADLINE_EXCEEDED, reason)


def _code_of(error: Exception) -> grpc.StatusCode:
    if isinstance(error, RpcFailure):
        return status_code(error.status)
    too_much = isinstance(error, (TooMuchError, TooManyScopesError))
    return grpc.StatusCode.RESOURCE_EXHAUSTED if too_much else grpc.StatusCode.INVALID_ARGUMENT
