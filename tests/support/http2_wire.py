"""HTTP/2 frames on a blocking socket: made by hand, so that they may be wrong, and read with the decoder of `hpack`."""

import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import hpack

from tests.support.wire import ConnectionEnded

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9
END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20
MAX_WINDOW: Final = (1 << 31) - 1
WIDE: Final = ((4, MAX_WINDOW),)  # SETTINGS under which a peer may send as much as it likes
KINDS: Final = (
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
)
CODES: Final = (
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
)

Fields = Sequence[tuple[str, str]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Any frame."""
    return struct.pack("!HBBBL", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    """SETTINGS of (identifier, value)."""
    return frame(SETTINGS, payload=b"".join(struct.pack("!HL", *pair) for pair in pairs))


def data(stream: int, payload: bytes = b"", *, end: bool = False) -> bytes:
    """DATA."""
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def reset(stream: int, code: int = 8) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, 0, stream, struct.pack("!L", code))


def goaway(last_stream: int, code: int = 0, debug: bytes = b"") -> bytes:
    """GOAWAY."""
    return frame(GOAWAY, 0, 0, struct.pack("!LL", last_stream, code) + debug)


def window_update(stream: int, increment: int) -> bytes:
    """WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack("!L", increment))


def ping(payload: bytes = b"12345678") -> bytes:
    """PING."""
    return frame(PING, 0, 0, payload)


def priority(stream: int, on: int = 0) -> bytes:
    """PRIORITY."""
    return frame(PRIORITY, 0, stream, struct.pack("!LB", on, 15))


def literal(text: str) -> bytes:
    """A string without Huffman code (RFC 7541 section 5.2)."""
    raw = text.encode("latin-1")
    size = len(raw)
    if size < 127:
        return bytes([size]) + raw
    prefix, size = bytearray([127]), size - 127
    while size >= 128:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes([*prefix, size]) + raw


def field_block(fields: Fields) -> bytes:
    """Fields as literals that no table keeps, whatever they hold."""
    return b"".join(b"\0" + literal(name) + literal(value) for name, value in fields)


def headers(
    stream: int, fields: Fields, *, end: bool = False, end_headers: bool = True, split_at: int = 16384
) -> bytes:
    """HEADERS, and CONTINUATION for what is behind `split_at` bytes."""
    block = field_block(fields)
    pieces = [block[at : at + split_at] for at in range(0, len(block), split_at)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frame(
            CONTINUATION if number else HEADERS,
            (END_STREAM if end and not number else 0) | (END_HEADERS if end_headers and number == last else 0),
            stream,
            piece,
        )
        for number, piece in enumerate(pieces)
    )


def code_name(code: int) -> str:
    """An error code in words."""
    return CODES[code] if code < len(CODES) else str(code)


@dataclass
class Part:
    """A header section with the data behind it; the trailers are a part of their own."""

    fields: list[tuple[str, str]]
    body: bytes = b""

    def get(self, name: str) -> str:
        """The first value of a field, or nothing."""
        return next((value for key, value in self.fields if key == name), "")


@dataclass
class StreamSeen:
    """What came on a stream."""

    parts: list[Part] = field(default_factory=list)
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        """Nothing more can come."""
        return self.ended or self.reset is not None


class Http2Wire:
    """Both ends' reading of a connection: it keeps the books on what came, and answers SETTINGS and PING itself."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.answering = True  # False: no acknowledgements
        self.buffer = b""
        self.streams: dict[int, StreamSeen] = {}
        self.settings: list[list[tuple[int, int]]] = []
        self.goaways: list[tuple[int, int, bytes]] = []  # error code, last stream, debug data
        self.acknowledged_pings: list[bytes] = []
        self.window_updates: list[tuple[int, int]] = []
        self.log: list[str] = []
        self.end = ""
        self._sending = threading.Lock()
        self._decoder = hpack.Decoder(max_header_list_size=1 << 24)
        self._block = b""
        self._block_flags = 0

    def send(self, payload: bytes) -> bool:
        """Send everything; False when the peer has closed already."""
        try:
            with self._sending:
                self.sock.sendall(payload)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def send_if_open(self, payload: bytes) -> bool:
        """The same, where the socket may be closed on our side by now."""
        try:
            return self.send(payload)
        except OSError:
            return False

    def read_until(self, probe: Callable[[], bool]) -> None:
        """Read frames until `probe` says so. Raises ConnectionEnded, or TimeoutError."""
        while not probe():
            self.read_frame()

    def read_frame(self) -> None:
        """The next frame into the books."""
        head = self.read_bytes(9)
        size = int.from_bytes(head[:3], "big")
        kind, flags = head[3], head[4]
        stream = int.from_bytes(head[5:], "big")
        self._note(kind, flags, stream, self.read_bytes(size))

    def read_bytes(self, size: int) -> bytes:
        """So many bytes as they are."""
        while len(self.buffer) < size:
            try:
                piece = self.sock.recv(65536)
            except TimeoutError:
                raise
            except OSError as error:
                self.end = "reset"
                raise ConnectionEnded(reset=True, partial=self.buffer) from error
            if not piece:
                self.end = "closed"
                raise ConnectionEnded(reset=False, partial=self.buffer)
            self.buffer += piece
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def _note(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.log.append(describe(kind, flags, stream, payload))
        match kind:
            case 0:
                seen = self.streams.setdefault(stream, StreamSeen())
                if payload or not flags & END_STREAM:
                    (seen.parts or [Part([])])[-1].body += payload
                seen.ended = seen.ended or bool(flags & END_STREAM)
            case 1 | 9:
                self._note_block(kind, flags, stream, payload)
            case 3:
                self.streams.setdefault(stream, StreamSeen()).reset = int.from_bytes(payload, "big")
            case 4:
                self._note_settings(flags, payload)
            case 6:
                self._note_ping(flags, payload)
            case 7:
                last, code = struct.unpack("!LL", payload[:8])
                self.goaways.append((code, last, payload[8:]))
            case 8:
                self.window_updates.append((stream, int.from_bytes(payload, "big")))

    def _note_block(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            self._block, self._block_flags = b"", flags
        self._block += payload
        if flags & END_HEADERS:
            seen = self.streams.setdefault(stream, StreamSeen())
            fields = self._decoder.decode(self._block, raw=True)
            seen.parts.append(Part([(name.decode("latin-1"), value.decode("latin-1")) for name, value in fields]))
            seen.ended = seen.ended or bool(self._block_flags & END_STREAM)
            self.log[-1] += f" {seen.parts[-1].fields}"

    def _note_settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            return
        pairs = [struct.unpack("!HL", payload[at : at + 6]) for at in range(0, len(payload), 6)]
        self.settings.append([(int(name), int(value)) for name, value in pairs])
        if self.answering:
            self.send(frame(SETTINGS, ACK))

    def _note_ping(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            self.acknowledged_pings.append(payload)
        elif self.answering:
            self.send(frame(PING, ACK, 0, payload))


def describe(kind: int, flags: int, stream: int, payload: bytes) -> str:
    """A frame in words."""
    name = KINDS[kind] if kind < len(KINDS) else f"FRAME_{kind}"
    what = f"{name} {stream} flags={flags:#x}"
    if kind == RST_STREAM:
        return f"{what} {code_name(int.from_bytes(payload, 'big'))}"
    if kind == GOAWAY:
        last, code = struct.unpack("!LL", payload[:8])
        return f"{what} {code_name(code)} last={last} {payload[8:]!r}"
    if kind == SETTINGS:
        pairs = [struct.unpack("!HL", payload[at : at + 6]) for at in range(0, len(payload), 6)]
        return f"{what} {pairs}"
    if kind == WINDOW_UPDATE:
        return f"{what} {int.from_bytes(payload, 'big')}"
    return f"{what} {len(payload)} bytes"
