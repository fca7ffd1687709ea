from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.testing import Answer, ConfigError, Exchange, FilterTest, load_file

FILE = Path(__file__).with_name("websocket_messages.py")
ws = load_file(FILE)

UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",  # RFC 6455 section 1.3
    "sec-websocket-extensions": "permessage-deflate",
}
HEAD_END = b"\r\n\r\n"


def frame(opcode: int, payload: bytes, *, final: bool = True, masked: bool = True) -> bytes:
    """RFC 6455 section 5.2, written down a second time."""
    head = bytes([(0x80 if final else 0) | opcode])
    mask = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([mask | len(payload)])
    elif len(payload) < 1 << 16:
        head += bytes([mask | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([mask | 127]) + struct.pack("!Q", len(payload))
    if not masked:
        return head + payload
    key = b"\x37\xfa\x21\x3d"  # of RFC 6455 section 5.7
    return head + key + bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))


class Socket:
    """A client's end; the upstream sends every byte back that it was sent."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._head = b""

    async def opened(self) -> None:
        while HEAD_END not in self._exchange.received:
            await self._exchange.until_received(len(self._exchange.received) + 1)
        self._head = self._exchange.received.partition(HEAD_END)[0] + HEAD_END

    async def send(self, data: bytes) -> None:
        await self._exchange.send(data)

    async def received(self, size: int) -> bytes:
        return (await self._exchange.until_received(len(self._head) + size))[len(self._head) :]

    async def closed(self) -> tuple[int, str]:
        """The code and the reason of the close frame."""
        await self._exchange.until_closed()
        rest = self._exchange.received[len(self._head) :]
        at = rest.index(b"\x88")
        assert len(rest) == at + 2 + rest[at + 1]
        return struct.unpack_from("!H", rest, at + 2)[0], rest[at + 4 :].decode()


async def open_socket(t: FilterTest) -> Socket:
    t.upstream.echoes = True
    t.upstream.handler = lambda request: Answer(101, {"upgrade": "websocket", "connection": "Upgrade"})
    socket = Socket(t.open("GET", "/chat", UPGRADE))
    await socket.opened()
    return socket


def watched(**config: Any) -> FilterTest:
    return FilterTest(FILE, config, class_name="WebSocketMessages")


async def test_messages_pass_and_are_not_compressed() -> None:
    async with watched() as t:
        socket = await open_socket(t)
        sent = (
            frame(1, b"hello") + frame(1, b"he", final=False) + frame(9, b"ping") + frame(0, b"llo") + frame(2, b"\0")
        )
        for byte in sent:
            await socket.send(bytes([byte]))
        # The pieces of a message wait for its last one; a control frame may stand between them.
        back = await socket.received(len(sent))
        assert sorted(ws.FrameReader(100).feed(back), key=lambda f: f.payload)[0].payload == b"\0"
        assert t.upstream.requests[0].header("sec-websocket-extensions") is None
        assert t.stats()["messages"] == 3


async def test_a_blocked_message_ends_it() -> None:
    async with watched(blocked=["(?i)secret"]) as t:
        socket = await open_socket(t)
        await socket.send(frame(1, b"my SECRET"))
        assert await socket.closed() == (1008, "the message is not allowed")
        assert t.stats()["blocked"] == 1


async def test_also_one_that_is_cut_in_the_middle_of_the_word() -> None:
    async with watched(blocked=["secret"]) as t:
        socket = await open_socket(t)
        await socket.send(frame(1, b"my sec", final=False) + frame(0, b"ret"))
        assert (await socket.closed())[0] == 1008


async def test_a_blocked_message_is_dropped_where_that_is_wanted() -> None:
    async with watched(blocked=["secret"], on_blocked="drop") as t:
        socket = await open_socket(t)
        after = frame(1, b"after")
        await socket.send(frame(1, b"secret") + after)
        assert await socket.received(len(after)) == after


@pytest.mark.parametrize(
    ("config", "sent", "code"),
    [
        ({"max_message_bytes": 4}, frame(1, b"12345"), 1009),
        ({"max_message_bytes": 4}, frame(1, b"123", final=False) + frame(0, b"45"), 1009),
        ({"allow_binary": False}, frame(2, b"x"), 1008),
        ({"messages_per_second": 2}, frame(1, b"x") * 3, 1008),
        ({}, frame(0, b"x"), 1002),
        ({}, frame(1, b"x", final=False) + frame(1, b"y"), 1002),
        ({}, bytes([0xC1]) + frame(1, b"x")[1:], 1002),
    ],
)
async def test_what_ends_it(config: dict[str, Any], sent: bytes, code: int) -> None:
    async with watched(**config) as t:
        socket = await open_socket(t)
        await socket.send(sent)
        assert (await socket.closed())[0] == code
        assert t.stats()[f"closed.{code}"] == 1


async def test_an_upstream_that_says_too_much() -> None:
    async with watched(max_message_bytes=4) as t:
        socket = await open_socket(t)
        await t.upstream.say(frame(1, b"12345", masked=False))
        assert (await socket.closed())[0] == 1009


async def test_what_is_no_websocket_passes() -> None:
    async with watched() as t:
        t.upstream.respond(200, None, "\x81\x85")
        response = await t.request("POST", "/", body=b"\xff\xff")
        assert (response.status, t.upstream.requests[0].body) == (200, b"\xff\xff")


@given(st.lists(st.tuples(st.sampled_from([1, 2, 9]), st.binary(max_size=300)), max_size=4), st.data())
def test_frames_in_any_pieces(messages: list[tuple[int, bytes]], data: st.DataObject) -> None:
    text = b"".join(frame(opcode, payload) for opcode, payload in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    reader = ws.FrameReader(1000)
    frames = [f for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True) for f in reader.feed(text[a:b])]
    assert [(f.opcode, f.payload) for f in frames] == messages
    assert b"".join(f.raw for f in frames) == text


@given(st.binary(max_size=50))
def test_any_bytes_end_in_frames_or_a_violation(data: bytes) -> None:
    with contextlib.suppress(ws.Violation):
        ws.Messages(1000).feed(data)


async def test_configurations_that_are_refused() -> None:
    for config, error in (({"blocked": ["("]}, "blocked: '\\('"), ({"max_message_bytes": 0}, "at least 1")):
        with pytest.raises(ConfigError, match=error):
            await watched(**config).start()
