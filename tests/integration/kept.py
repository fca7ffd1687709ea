"""A downstream connection that is kept: what changes under it, its next request meets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self


class Reply:
    """A response with a Content-Length, or none."""

    def __init__(self, head: str, body: str) -> None:
        lines = head.split("\r\n")
        self.status = int(lines[0].split()[1])
        self.body = body
        self._fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)

    def header(self, name: str) -> str:
        return self._fields.get(name, "")


class KeptConnection:
    """Requests one after the other. That the proxy closed it is a failure of the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def get(self, path: str, host: str = "a.test") -> Reply:
        """A request, and its answer. Raises TimeoutError, or IncompleteReadError where the connection was closed."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        async with asyncio.timeout(15.0):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
            reply = Reply(head.removesuffix("\r\n\r\n"), "")
            reply.body = (await self._reader.readexactly(int(reply.header("content-length") or 0))).decode()
        return reply

    async def until(self, path: str, condition: Callable[[Reply], bool]) -> Reply:
        """Ask until the answer is as it should be."""
        async with asyncio.timeout(15.0):
            while not condition(reply := await self.get(path)):
                await asyncio.sleep(0.01)
        return reply

    def close(self) -> None:
        self._writer.close()
