"""Looks at the messages of WebSockets: their size, their rate, and what they say (RFC 6455)."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Literal

from meshproxy import CONTINUE, HeaderMap, HttpFilter, Stream

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8

PROTOCOL_ERROR: Final = 1002
POLICY_VIOLATION: Final = 1008
TOO_BIG: Final = 1009


@dataclass(frozen=True)
class Config:
    """What clients may send; what the upstream says is only held to `max_message_bytes`."""

    max_message_bytes: int = 1 << 20
    messages_per_second: float = 0.0  # 0: as many as they like
    blocked: list[str] = field(default_factory=list)  # regular expressions, looked for in text messages
    on_blocked: Literal["drop", "close"] = "close"
    allow_binary: bool = True

    def __post_init__(self) -> None:
        if self.max_message_bytes < 1:
            raise ValueError("max_message_bytes: at least 1")
        for pattern in self.blocked:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"blocked: {pattern!r}: {error}") from error


class Violation(Exception):
    """What ends the WebSocket: a close code, and why."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Frame:
    """One frame: `raw` as it was sent, `payload` without its mask."""

    def __init__(self, opcode: int, final: bool, payload: bytes, raw: bytes) -> None:
        self.opcode = opcode
        self.final = final
        self.payload = payload
        self.raw = raw


class FrameReader:
    """Bytes in, in any pieces; whole frames out. It keeps one frame, of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Raises Violation."""
        self._buffer += data
        frames = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        """RFC 6455 section 5.2."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        if buffer[0] & 0x70:
            raise Violation(PROTOCOL_ERROR, "reserved bits without an extension")
        masked, length, at = buffer[1] & 0x80, buffer[1] & 0x7F, 2
        if length >= 126:
            size, form = (2, "!H") if length == 126 else (8, "!Q")
            if len(buffer) < at + size:
                return None
            (length,) = struct.unpack_from(form, buffer, at)
            at += size
        if length > self._limit:
            raise Violation(TOO_BIG, "the message is too big")
        begin = at + (4 if masked else 0)
        if len(buffer) < begin + length:
            return None
        payload = bytes(buffer[begin : begin + length])
        if masked:
            payload = unmask(payload, bytes(buffer[at:begin]))
        frame = Frame(buffer[0] & 0x0F, bool(buffer[0] & 0x80), payload, bytes(buffer[: begin + length]))
        del buffer[: begin + length]
        return frame


def unmask(payload: bytes, key: bytes) -> bytes:
    """RFC 6455 section 5.3, all bytes at once."""
    size = len(payload)
    stream = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(size, "big")


class Messages:
    """Frames in; the frames of whole messages out, since a message is judged before any of it goes on."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reader = FrameReader(limit)
        self._held: list[Frame] = []

    def feed(self, data: bytes) -> list[list[Frame]]:
        """The frames of each message that is complete now; control frames stand alone. Raises Violation."""
        complete = []
        for frame in self._reader.feed(data):
            if frame.opcode >= CLOSE:
                complete.append([frame])
                continue
            if (frame.opcode == CONTINUATION) != bool(self._held):
                raise Violation(PROTOCOL_ERROR, "a message begins within another, or goes on without one")
            self._held.append(frame)
            if sum(len(held.payload) for held in self._held) > self._limit:
                raise Violation(TOO_BIG, "the message is too big")
            if frame.final:
                complete.append(self._held)
                self._held = []
        return complete


class WebSocketMessages(HttpFilter):
    """To do something else with messages, derive from it and override `judge`."""

    config: Config

    def __init__(self) -> None:
        self._from_client = Messages(self.config.max_message_bytes)
        self._from_upstream = Messages(self.config.max_message_bytes)
        self._blocked = [re.compile(pattern) for pattern in self.config.blocked]
        self._open = False
        self._closed = False
        self._farewell = b""  # our close frame, on its way through our own hook
        self._tokens = self.config.messages_per_second
        self._refilled = monotonic()

    def judge(self, opcode: int, message: bytes) -> bool:
        """Whether a message of the client goes on. Raises Violation to end the WebSocket."""
        config = self.config
        if opcode == BINARY:
            if not config.allow_binary:
                raise Violation(POLICY_VIOLATION, "binary messages are not allowed")
            return True
        text = message.decode("utf-8", "replace")
        if not any(pattern.search(text) for pattern in self._blocked):
            return True
        self.context.count("blocked")
        if config.on_blocked == "close":
            raise Violation(POLICY_VIOLATION, "the message is not allowed")
        return False

    # -- hooks

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        del headers[b"sec-websocket-extensions"]  # compressed messages could not be read

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        self._open = headers[b":status"] == b"101"
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        if not self._open:
            return data
        if self._closed:
            return b""
        try:
            return b"".join(frame.raw for frames in self._from_client.feed(data) for frame in self._passing(frames))
        except Violation as violation:
            return self._end(stream, violation)

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        if not self._open:
            return data
        if self._closed:
            return data if data == self._farewell else b""
        try:
            messages = self._from_upstream.feed(data)
        except Violation as violation:
            self._count(violation)
            self._closed = True
            stream.call_later(0.0, lambda: stream.send_response_data(b"", True))
            return close_frame(violation)
        return b"".join(frame.raw for frames in messages for frame in frames)

    # -- messages

    def _passing(self, frames: list[Frame]) -> list[Frame]:
        opcode = frames[0].opcode
        if opcode >= CLOSE:
            return frames
        self._take_token()
        self.context.count("messages")
        return frames if self.judge(opcode, b"".join(frame.payload for frame in frames)) else []

    def _take_token(self) -> None:
        rate = self.config.messages_per_second
        if not rate:
            return
        now = monotonic()
        self._tokens = min(max(rate, 1.0), self._tokens + (now - self._refilled) * rate)
        self._refilled = now
        if self._tokens < 1.0:
            raise Violation(POLICY_VIOLATION, "too many messages")
        self._tokens -= 1.0

    # -- the end

    def _end(self, stream: Stream, violation: Violation) -> bytes:
        """The client is told why (section 7.4); the upstream sees its connection end."""
        self._count(violation)
        self._closed = True
        self._farewell = close_frame(violation)
        stream.send_response_data(self._farewell, True)
        return b""

    def _count(self, violation: Violation) -> None:
        self.context.count(f"closed.{violation.code}")
        self.context.log.info("websocket closed: %s", violation.reason)


def close_frame(violation: Violation) -> bytes:
    """As a server sends it: without a mask (sections 5.1 and 5.5.1)."""
    payload = struct.pack("!H", violation.code) + violation.reason.encode()[:123]
    return bytes([0x80 | CLOSE, len(payload)]) + payload
