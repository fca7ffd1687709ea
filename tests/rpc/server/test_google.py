"""Handlers behind grpcio's server, asked by grpcio's client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from meshproxy.rpc.server.call import Handler, Handlers, Peer, RpcFailure, ServerCall
from meshproxy.rpc.server.google import add_handlers
from tests.tls.certificates import Issued, dns, issue, uri

DEADLINE_S = 20.0
ROOT = issue("root", ca=True)
SERVER = issue("server.test", ROOT, names=dns("server.test"))
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "server.test")]


@asynccontextmanager
async def serving(handlers: Handlers, address: str = "127.0.0.1:0", *, tls: bool = False) -> AsyncIterator[str]:
    """At this address."""
    server = grpc.aio.server()
    add_handlers(server, handlers)
    if tls:
        pair = [(SERVER.key_pem, SERVER.pem)]
        port = server.add_secure_port(address, grpc.ssl_server_credentials(pair, ROOT.pem, require_client_auth=True))
    else:
        port = server.add_insecure_port(address)
    await server.start()
    try:
        yield address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        await server.stop(0.0)


@asynccontextmanager
async def channel(target: str, mine: Issued | None = None) -> AsyncIterator[Any]:
    if mine is None:
        made = grpc.aio.insecure_channel(target, options=_OPTIONS)
    else:
        credentials = grpc.ssl_channel_credentials(ROOT.pem, mine.key_pem, mine.pem)
        made = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
    async with made as opened:
        yield opened


async def peer_of(handlers_at: str, mine: Issued | None = None) -> tuple[str, str]:
    async with channel(handlers_at, mine) as asked:
        answer = await asked.unary_unary("/test.Service/Peer")(b"", timeout=DEADLINE_S)
        address, _, rest = answer.decode().partition("|")
        return address, rest


def one(path: str, handler: Handler) -> Handlers:
    return {f"/test.Service/{path}": handler}


async def _tell_peer(call: ServerCall) -> None:
    peer: Peer = call.peer
    await call.receive()
    told = f"{peer.address}|{peer.is_encrypted} {' '.join(peer.uris)} {peer.certificate.hex()} {peer.credentials}"
    await call.send(told.encode())


async def test_who_calls(tmp_path: Path) -> None:
    mine = issue("client", ROOT, names=uri("spiffe://mesh.test/ns/a/sa/b"))
    async with serving(one("Peer", _tell_peer), tls=True) as target:
        address, rest = await peer_of(target, mine)
        assert address.startswith("127.0.0.1:")
        assert rest == f"True spiffe://mesh.test/ns/a/sa/b {mine.der.hex()} None"
    async with serving(one("Peer", _tell_peer)) as target:
        address, rest = await peer_of(target)
        assert address.startswith("127.0.0.1:")
        assert rest == "False   None"
    async with serving(one("Peer", _tell_peer), f"unix:{tmp_path / 'socket'}") as target:
        address, rest = await peer_of(target)
        assert address.startswith("unix:")
        assert rest == "False   None"


async def test_an_address_of_version_6() -> None:
    async with serving(one("Peer", _tell_peer), "[::1]:0") as target:
        address, _ = await peer_of(target.replace("127.0.0.1", "[::1]"))
        assert address.startswith("[::1]:")


async def test_messages_go_both_ways() -> None:
    async def echo(call: ServerCall) -> None:
        while (message := await call.receive()) is not None:
            await call.send(message + b"!")

    async with serving(one("Echo", echo)) as target, channel(target) as asked:
        call = asked.stream_stream("/test.Service/Echo")(timeout=DEADLINE_S)
        for text in (b"a", b"b"):
            await call.write(text)
            assert await call.read() == text + b"!"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_metadata_without_what_is_binary() -> None:
    async def tell(call: ServerCall) -> None:
        await call.receive()
        found = {name: list(values) for name, values in call.metadata.items() if name.startswith("x-")}
        await call.send(repr(found).encode())

    async with serving(one("Metadata", tell)) as target, channel(target) as asked:
        metadata = (("x-one", "1"), ("x-two", "2"), ("x-two", "3"), ("x-raw-bin", b"\x00"))
        answer = await asked.unary_unary("/test.Service/Metadata")(b"", metadata=metadata, timeout=DEADLINE_S)
    assert answer == b"{'x-one': ['1'], 'x-two': ['2', '3']}"


@pytest.mark.parametrize(
    ("raised", "code", "details"),
    [
        (RpcFailure(7, "not you: é"), grpc.StatusCode.PERMISSION_DENIED, "not you: é"),
        (RpcFailure(99, "odd"), grpc.StatusCode.UNKNOWN, "odd"),
        (ValueError("a secret"), grpc.StatusCode.INTERNAL, "internal error"),
    ],
)
async def test_how_a_call_may_end(raised: Exception, code: grpc.StatusCode, details: str) -> None:
    async def fail(_call: ServerCall) -> None:
        raise raised

    async with serving(one("Fail", fail)) as target, channel(target) as asked:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked.unary_unary("/test.Service/Fail")(b"", timeout=DEADLINE_S)
    assert (caught.value.code(), caught.value.details()) == (code, details)


async def test_a_caller_that_goes_ends_its_handler() -> None:
    ended = asyncio.Event()

    async def wait(call: ServerCall) -> None:
        try:
            await call.send(b"begun")
            await call.receive()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(one("Wait", wait)) as target, channel(target) as asked:
        call = asked.stream_stream("/test.Service/Wait")(timeout=DEADLINE_S)
        assert await call.read() == b"begun"
        call.cancel()
        async with asyncio.timeout(DEADLINE_S):
            await ended.wait()
