"""A TCP service that says again what it hears, and clients that keep at it on the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable
from typing import Self

_DEADLINE_S = 30.0


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """Its port."""
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                writer.write(data)
        writer.close()
        writers.discard(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in list(writers):
            writer.transport.abort()
        while writers:
            await asyncio.sleep(0)


class StreamLoad:
    """One client on a connection that is kept, and one that makes another for each word. `failures` are words that were
    not heard again."""

    def __init__(self, port: int, pause_s: float) -> None:
        self.heard = 0
        self.failures: list[str] = []
        self._port = port
        self._pause_s = pause_s
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.ensure_future(self._kept()), asyncio.ensure_future(self._fresh())]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _kept(self) -> None:
        while not self._stopping:  # again only after a failure
            await self._connection(itertools.count())

    async def _fresh(self) -> None:
        while not self._stopping:
            await self._connection([0])
            await asyncio.sleep(self._pause_s)

    async def _connection(self, numbers: Iterable[int]) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            for number in numbers:
                word = b"word %d" % number
                writer.write(word)
                async with asyncio.timeout(_DEADLINE_S):
                    heard = await reader.readexactly(len(word))
                if heard != word:
                    self.failures.append(f"{heard!r}, not {word!r}")
                self.heard += 1
                if self._stopping:
                    break
                await asyncio.sleep(self._pause_s)
        except (OSError, EOFError, TimeoutError) as error:
            self.failures.append(repr(error))
        finally:
            if writer is not None:
                writer.close()
