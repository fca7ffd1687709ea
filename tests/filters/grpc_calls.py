"""A call of gRPC through one filter, without sockets: the test is the client, and speaks for the upstream."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from meshproxy.codec.headers import Field, HeaderMap
from meshproxy.http.filter import CONTINUE, STOP, FilterBuilder
from meshproxy.http.stream import Stream
from meshproxy.upstream.config import ClusterConfig
from tests.http.harness import Harness, ScriptedUpstream, get, parse

GRPC = ("content-type", "application/grpc")


class Body(ScriptedUpstream):
    """Keeps the request's body too."""

    def __init__(self) -> None:
        super().__init__(None)
        self.body = b""

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        super().on_request_headers(stream, headers, end)
        if end:
            return STOP
        stream.buffer_request(1 << 20)
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> int:
        self.body = data
        return STOP


class Call:
    """One connection with a filter, built of a message with this `config`; `cluster` is the one that calls go to."""

    def __init__(self, build: FilterBuilder, message: Message, config: dict[str, Any] | None = None) -> None:
        self.upstream = Body()
        self.made = Harness(upstream=self.upstream)
        self.made.add(build(parse(config or {}, message), "", self.made.context), "tested")
        self.connection = self.made.connect()
        clusters = self.connection.manager.clusters
        clusters.add_or_update(ClusterConfig("a"))
        found = clusters.get("a")
        assert found is not None
        self.cluster = found

    @property
    def stream(self) -> Stream:
        return self.upstream.streams[-1]

    @property
    def seen(self) -> dict[bytes, bytes]:
        """The head of the request as the upstream saw it."""
        return dict(self.upstream.seen[-1])

    def request(self, *pieces: bytes, path: str = "/s.S/M", headers: tuple[tuple[str, str], ...] = (GRPC,)) -> bytes:
        """Send a request, each piece a chunk; what is answered at once."""
        sent = get(path, *headers, ("transfer-encoding", "chunked"), method="POST")
        answered = self.connection.send(sent)
        for piece in pieces:
            answered += self.connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        return answered + self.connection.send(b"0\r\n\r\n")

    def answer(
        self,
        *pieces: bytes,
        status: bytes = b"200",
        content_type: bytes = b"application/grpc",
        head: tuple[Field, ...] = (),
        trailers: tuple[Field, ...] = (),
    ) -> bytes:
        """Answer as the upstream; what the client gets."""
        fields = [(b":status", status), (b"content-type", content_type), *head]
        self.stream.send_response_headers(HeaderMap(fields), not pieces and not trailers)
        for piece in pieces:
            self.stream.send_response_data(piece, piece is pieces[-1] and not trailers)
        if trailers:
            self.stream.send_response_trailers(HeaderMap(list(trailers)))
        return self.connection.received()

    def counters(self) -> dict[str, int]:
        """What the cluster has counted of calls."""
        found: dict[str, int] = {}
        for prefix, scope in self.made.registry.scopes():
            if prefix.startswith("cluster.a.grpc"):
                scope.refresh()
                found |= {prefix.removeprefix("cluster.a.") + name: count for name, count in scope.dynamic.items()}
        return found


def parts(response: bytes) -> tuple[str, dict[str, str], bytes]:
    """The start line, the headers and the body of a response; chunks are joined, trailers stand among the headers."""
    head, _, rest = response.partition(b"\r\n\r\n")
    start, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") != "chunked":
        return start, headers, rest
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            break
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    headers |= dict(line.split(": ", 1) for line in rest.decode("latin-1").split("\r\n") if line)
    return start, headers, body
