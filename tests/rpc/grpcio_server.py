"""A gRPC server by grpcio, in a process of its own: `python -m tests.rpc.grpcio_server` prints its port.

Its methods, of service `test.Test`, are of both streams and of bytes; each says what it does.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

HELD = asyncio.Event()
EVENTS: list[str] = []
COUNTS = {"sent": 0}


async def echo(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """What comes goes back."""
    async for message in messages:
        yield message


async def fail(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """Trailers alone."""
    context.set_trailing_metadata((("why", "because"), ("why-bin", b"\0\xff")))
    await context.abort(grpc.StatusCode.NOT_FOUND, "100 % süß")
    yield b""


async def fail_later(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """A message, and then an error."""
    yield b"first"
    await context.abort(grpc.StatusCode.DATA_LOSS, "lost")


async def metadata(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """What the call brought, and metadata of its own."""
    await context.send_initial_metadata((("first", "1"), ("first-bin", b"\0\1")))
    context.set_trailing_metadata((("last", "2"), ("last-bin", b"\0\2")))
    found = [[key, value if isinstance(value, str) else value.hex()] for key, value in context.invocation_metadata()]
    left = context.time_remaining()
    yield json.dumps({"metadata": sorted(found), "deadline": left is not None and left < 3600.0}).encode()


async def many(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """As many messages, of that many bytes, as the first one asks for: `10 1000`."""
    asked = await anext(messages)
    number, size = map(int, asked.split())
    COUNTS["sent"] = 0
    for _ in range(number):
        yield b"x" * size
        COUNTS["sent"] += 1


async def total(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """The size of all messages together."""
    yield str(sum([len(message) async for message in messages])).encode()


async def hold(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """As `total`, but it reads nothing before a call of `release`."""
    await HELD.wait()
    yield str(sum([len(message) async for message in messages])).encode()


async def release(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    HELD.set()
    yield b""


async def wait(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """Never ends by itself."""
    EVENTS.append("waits")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        EVENTS.append("cancelled")
        raise
    yield b""


async def events(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    """What has happened so far."""
    yield json.dumps({"events": EVENTS, **COUNTS}).encode()


METHODS = (echo, fail, fail_later, metadata, many, total, hold, release, wait, events)


class Handler(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        for method in METHODS:
            if details.method == f"/test.Test/{method.__name__}":
                return grpc.stream_stream_rpc_method_handler(method)
        return None


async def serve(certificates: str) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    if certificates:
        print(server.add_secure_port("127.0.0.1:0", credentials_in(Path(certificates))), flush=True)
    else:
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)  # until whoever started it goes
    await server.stop(None)


def credentials_in(folder: Path) -> Any:
    """Mutual TLS, by the files of a folder."""
    key, chain, ca = ((folder / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem"))
    return grpc.ssl_server_credentials(((key, chain),), ca, require_client_auth=True)


class GrpcioServer:
    """The process. With a folder of `certificates` it speaks TLS."""

    def __init__(self, certificates: str = "") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rpc.grpcio_server", certificates],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """End it amid what it does."""
        self._process.kill()

    def stop(self) -> None:
        self._process.communicate(timeout=30)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
