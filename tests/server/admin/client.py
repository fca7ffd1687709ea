"""Asking an admin over a raw connection, ours or Envoy's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

READ_TIMEOUT_S = 10.0


@dataclass
class Answer:
    """A response as it came; `headers` are in lower case, the last of a name counts."""

    status: int
    headers: dict[str, str]
    body: str


async def exchange(address: str, data: bytes) -> bytes:
    """Everything that the peer answers to `data` before it closes the connection."""
    reader, writer = await _connect(address)
    try:
        writer.write(data)
        async with asyncio.timeout(READ_TIMEOUT_S):
            return await reader.read()
    finally:
        await hang_up(writer)


async def ask(address: str, target: str, method: str = "GET", body: bytes = b"", content_type: str = "") -> Answer:
    """One request on a connection of its own."""
    lines = [f"{method} {target} HTTP/1.1", "host: admin", "connection: close"]
    if body:
        lines.append(f"content-length: {len(body)}")
    if content_type:
        lines.append(f"content-type: {content_type}")
    return parse(await exchange(address, "\r\n".join([*lines, "", ""]).encode() + body))


def parse(data: bytes) -> Answer:
    """The one response in `data`."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _join_chunks(body)
    return Answer(int(first.split(" ")[1]), headers, body.decode())


def _join_chunks(body: bytes) -> bytes:
    joined = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            assert rest == b"\r\n"
            break
        assert rest[length : length + 2] == b"\r\n"
        joined += rest[:length]
        body = rest[length + 2 :]
    return joined


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("/"):
        return await asyncio.open_unix_connection(address)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close our end, whatever became of the other."""
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        return
