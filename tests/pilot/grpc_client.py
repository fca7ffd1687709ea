"""gRPC's own xDS client, in a process, and the servers that it is led to."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

_CALLER = """
import sys, grpc
with grpc.insecure_channel(f"xds:///{sys.argv[1]}") as channel:
    call = channel.unary_unary("/test.Echo/Say")
    print("ready", flush=True)
    for line in sys.stdin:
        print(call(b"hello", timeout=15.0).decode(), flush=True)
"""


@asynccontextmanager
async def grpc_server(name: str) -> AsyncIterator[int]:
    """Answers every call with its name."""

    async def say(_request: bytes, _context: Any) -> bytes:
        return name.encode()

    server = grpc.aio.server()
    handlers = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@asynccontextmanager
async def grpc_caller(pilots: list[str], target: str, node: Any, directory: Path) -> AsyncIterator[Any]:
    """A process with gRPC's xDS client, under the first of these pilots that is there; it calls `xds:///target`."""
    config = {
        "xds_servers": [
            {"server_uri": pilot, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
            for pilot in pilots
        ],
        "node": node,
    }
    path = directory / "bootstrap.json"
    path.write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _CALLER,
        target,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "GRPC_XDS_BOOTSTRAP": str(path)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    async def call() -> str:
        stdin.write(b"\n")
        async with asyncio.timeout(20.0):
            return (await stdout.readline()).decode().strip()

    try:
        assert await stdout.readline() == b"ready\n"
        yield call
    finally:
        stdin.close()
        await process.wait()
