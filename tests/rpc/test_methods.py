"""Typed methods, from the descriptors of a generated module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from envoy.service.cluster.v3 import cds_pb2
from envoy.service.discovery.v3 import ads_pb2, discovery_pb2
from google.protobuf.message import Message

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.grpc.client import RpcCall, RpcClient, RpcError, RpcResponse, RpcStatus
from meshproxy.http.grpc.methods import Method, Stub, UnaryMethod

CLUSTERS = cds_pb2.DESCRIPTOR.services_by_name["ClusterDiscoveryService"]
ADS = ads_pb2.DESCRIPTOR.services_by_name["AggregatedDiscoveryService"]
Request: Any = discovery_pb2.DiscoveryRequest
Response: Any = discovery_pb2.DiscoveryResponse
FETCH: UnaryMethod[Any, Any] = UnaryMethod(CLUSTERS, "FetchClusters", Request, Response)
STREAM: Method[Any, Any] = Method(ADS, "StreamAggregatedResources", Request, Response)


class FakeCall(RpcCall):
    """Has its answers, and remembers what it was asked."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.sent: list[bytes] = []
        self.cancelled = False

    async def send(self, message: bytes) -> bool:
        self.sent.append(message)
        return True

    def end(self) -> None:
        self.sent.append(b"end")

    async def receive(self) -> bytes | None:
        return self.answers.pop(0) if self.answers else None

    async def headers(self) -> HeaderMap:
        return HeaderMap([(b"x", b"head")])

    @property
    def trailers(self) -> HeaderMap:
        return HeaderMap([(b"x", b"trailer")])

    def cancel(self) -> None:
        self.cancelled = True


class FakeClient(RpcClient):
    def __init__(self, *answers: bytes) -> None:
        self.made = FakeCall(list(answers))
        self.asked: list[Any] = []

    def call(self, path: bytes, **options: Any) -> RpcCall:
        self.asked.append((path, options))
        return self.made

    def start_unary(
        self, path: bytes, message: bytes, on_done: Callable[[RpcResponse | RpcError], object], **options: Any
    ) -> Callable[[], None]:
        self.asked.append((path, message, options))
        answers = self.made.answers
        on_done(RpcResponse(answers[0], HeaderMap(), HeaderMap()) if answers else RpcError(RpcStatus(grpc.UNAVAILABLE)))
        return self.made.cancel


def request(version: str) -> Message:
    message: Message = Request(version_info=version)
    return message


def answer(version: str) -> bytes:
    written: bytes = Response(version_info=version).SerializeToString()
    return written


async def test_a_unary_method() -> None:
    client = FakeClient(answer("2"))
    response = await FETCH(client, request("1"), timeout_ms=5.0, metadata=[(b"x", b"y")])
    assert response.version_info == "2"
    assert client.made.sent == [request("1").SerializeToString(), b"end"]
    ((path, options),) = client.asked
    assert path == b"/envoy.service.cluster.v3.ClusterDiscoveryService/FetchClusters"
    assert (options["timeout_ms"], options["metadata"]) == (5.0, [(b"x", b"y")])


async def test_a_unary_method_without_a_task() -> None:
    outcomes: list[Any] = []
    client = FakeClient(answer("2"))
    FETCH.start(client, request("1"), outcomes.append)()
    assert outcomes.pop().version_info == "2"
    assert client.made.cancelled
    FETCH.start(FakeClient(), request("1"), outcomes.append)
    assert outcomes.pop().code == grpc.UNAVAILABLE
    FETCH.start(FakeClient(b"\xff"), request("1"), outcomes.append)
    assert outcomes.pop().code == grpc.INTERNAL


async def test_a_stream() -> None:
    client = FakeClient(answer("2"), answer("3"))
    async with STREAM.open(client) as call:
        assert await call.send(request("1"))
        assert (await call.headers()).get(b"x") == b"head"
        assert [each.version_info async for each in call] == ["2", "3"]
        assert await call.receive() is None
        assert call.trailers.get(b"x") == b"trailer"
        call.end()
    assert client.made.cancelled
    assert client.made.sent == [request("1").SerializeToString(), b"end"]
    async with STREAM.open(FakeClient(answer("4"))) as call:
        assert (await call.result()).version_info == "4"


async def test_an_answer_that_is_no_such_message() -> None:
    with pytest.raises(RpcError) as error:
        await FETCH(FakeClient(b"\xff"), request("1"))
    assert str(error.value) == "INTERNAL: the answer is not a envoy.service.discovery.v3.DiscoveryResponse"


@pytest.mark.parametrize(("answers", "words"), [([], "no message"), ([b"", b""], "several messages")])
async def test_an_answer_is_one_message(answers: list[bytes], words: str) -> None:
    with pytest.raises(RpcError) as error:
        await FETCH(FakeClient(*answers), request("1"))
    assert words in str(error.value)


async def test_a_stub() -> None:
    response: Any = await Stub(FakeClient(answer("2")), CLUSTERS).unary("FetchClusters", request("1"))
    assert response.version_info == "2"
    client = FakeClient(answer("3"))
    async with Stub(client, ADS).open("StreamAggregatedResources", timeout_ms=9.0) as call:
        received: Any = await call.receive()
        assert received.version_info == "3"
    assert client.asked[0][1]["timeout_ms"] == 9.0
    with pytest.raises(LookupError):
        Stub(client, ADS).open("Nothing")


def test_methods_are_checked() -> None:
    assert STREAM.streams == (True, True)
    with pytest.raises(LookupError, match="has no method Nothing"):
        Method(CLUSTERS, "Nothing", Request, Response)
    with pytest.raises(TypeError, match="DiscoveryResponse, and not"):
        Method(CLUSTERS, "FetchClusters", Request, Request)
    with pytest.raises(TypeError, match="method of streams"):
        UnaryMethod(ADS, "StreamAggregatedResources", Request, Response)


def test_a_status_in_words() -> None:
    assert str(RpcStatus(grpc.NOT_FOUND)) == "NOT_FOUND"
    assert str(RpcStatus(99, "text")) == "99: text"
    details = HeaderMap([(b"grpc-status-details-bin", b"AAE")])
    assert RpcStatus(grpc.INTERNAL, "", details).details == b"\0\1"
    assert RpcStatus(grpc.INTERNAL).details == b""
