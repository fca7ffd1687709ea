r"""HTTP/2 frames as lines of text: made with `hyperframe` and `hpack`, and read with them.

    SETTINGS 3=100 4=65535            SETTINGS ack
    HEADERS 1 :method=GET :path=/ … end      (`+` stands for a space in a value)
    DATA 1 hello end                  RST_STREAM 1 CANCEL
    PING 12345678 [ack]               GOAWAY 2147483647 NO_ERROR [debug]
    WINDOW_UPDATE 0 1000              PRIORITY 3 on=1
    RAW TYPE FLAGS STREAM PAYLOAD     any frame, in numbers

More words of HEADERS: `cut=5` (the block goes on in CONTINUATION after so many bytes), `open` (its last frame says that
more will come), `on=1` (its priority), and of HEADERS and DATA `pad=5`; `len=1000` of DATA: so many bytes.
"""

from __future__ import annotations

import struct
from typing import Final

import hpack
import hyperframe.frame as hf

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
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
OPTIONS: Final = ("cut", "on", "pad", "len")

Fields = list[tuple[bytes, bytes]]


def escaped(data: bytes) -> str:
    """Bytes as they stand in a line."""
    return data.decode("latin-1").encode("unicode_escape").decode().replace("\\\\", "\\")


def unescaped(text: str) -> bytes:
    """The bytes that a line's text stands for."""
    return text.encode().decode("unicode_escape").encode("latin-1")


def parse_fields(words: list[str]) -> Fields:
    """`name=value` words as fields."""
    pairs = [word.partition("=") for word in words]
    return [(unescaped(name), unescaped(value.replace("+", " "))) for name, _, value in pairs]


def show_fields(fields: list[tuple[bytes, bytes]]) -> str:
    """`name=value` of every field."""
    return " ".join(escaped(name) + "=" + escaped(value).replace(" ", "+") for name, value in fields)


def code_name(code: int) -> str:
    """An error code as it stands in a line."""
    return CODES[code] if code < len(CODES) else str(code)


def code_number(name: str) -> int:
    """The error code of a line's word."""
    return CODES.index(name) if name in CODES else int(name)


def raw_frame(frame_type: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """Any frame, however wrong."""
    return struct.pack("!L", len(payload))[1:] + struct.pack("!BBL", frame_type, flags, stream_id) + payload


class Writer:
    """Lines to bytes; keeps the compression's state."""

    def __init__(self) -> None:
        self.encoder = hpack.Encoder()

    def frames(self, line: str) -> bytes:
        """The bytes of one line."""
        kind, _, rest = line.partition(" ")
        words = rest.split(" ") if rest else []
        if kind == "PREFACE":
            return PREFACE
        if kind == "BYTES":
            return unescaped(rest)
        if kind == "RAW":
            return raw_frame(int(words[0]), int(words[1]), int(words[2]), unescaped(" ".join(words[3:])))
        if kind == "HEADERS":
            return self.headers(int(words[0]), words[1:])
        return _frame(kind, words).serialize()

    def block(self, fields: Fields) -> bytes:
        """A field block, not Huffman-coded if a field is not text."""
        block: bytes = self.encoder.encode(fields)
        return block

    def headers(self, stream_id: int, words: list[str]) -> bytes:
        """HEADERS, and CONTINUATION."""
        options = _take_options(words)
        is_open = _take(words, "open")
        frame = hf.HeadersFrame(stream_id)
        if _take(words, "end"):
            frame.flags.add("END_STREAM")
        if "pad" in options:
            frame.flags.add("PADDED")
            frame.pad_length = options["pad"]
        if "on" in options:
            frame.flags.add("PRIORITY")
            frame.depends_on = options["on"]
        block = self.block(parse_fields(words))
        cut = options.get("cut", len(block))
        frame.data = block[:cut]
        last: hf.HeadersFrame | hf.ContinuationFrame = frame
        if "cut" in options:
            last = hf.ContinuationFrame(stream_id)
            last.data = block[cut:]
        if not is_open:
            last.flags.add("END_HEADERS")
        out: bytes = frame.serialize()
        return out if last is frame else out + last.serialize()


def _frame(kind: str, words: list[str]) -> hf.Frame:
    options = _take_options(words)
    if kind == "SETTINGS":
        if _take(words, "ack"):
            return hf.SettingsFrame(0, flags=["ACK"])
        pairs = [word.partition("=") for word in words]
        return hf.SettingsFrame(0, {int(name): int(value) for name, _, value in pairs})
    if kind == "PING":
        flags = ["ACK"] if _take(words, "ack") else []
        return hf.PingFrame(0, unescaped(words[0]), flags=flags)
    if kind == "GOAWAY":
        return hf.GoAwayFrame(0, int(words[0]), code_number(words[1]), unescaped(" ".join(words[2:])))
    stream_id = int(words.pop(0))
    if kind == "DATA":
        frame = hf.DataFrame(stream_id, flags=["END_STREAM"] if _take(words, "end") else [])
        frame.data = b"x" * options["len"] if "len" in options else unescaped(" ".join(words))
        if "pad" in options:
            frame.flags.add("PADDED")
            frame.pad_length = options["pad"]
        return frame
    if kind == "RST_STREAM":
        return hf.RstStreamFrame(stream_id, code_number(words[0]))
    if kind == "WINDOW_UPDATE":
        return hf.WindowUpdateFrame(stream_id, int(words[0]))
    if kind == "PRIORITY":
        return hf.PriorityFrame(stream_id, depends_on=options["on"])
    raise ValueError(kind)


def _take(words: list[str], word: str) -> bool:
    if word in words:
        words.remove(word)
        return True
    return False


def _take_options(words: list[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in list(words):
        name, equals, value = word.partition("=")
        if equals and name in OPTIONS:
            found[name] = int(value)
            words.remove(word)
    return found


class Reader:
    """Bytes to lines: what a codec under test sends, checked by `hyperframe`."""

    def __init__(self) -> None:
        self.decoder = hpack.Decoder(max_header_list_size=1 << 24)
        self.decoder.max_allowed_table_size = 1 << 20
        self._buffer = b""
        self._block: tuple[hf.HeadersFrame, bytes] | None = None

    def lines(self, data: bytes) -> list[str]:
        """One line a frame; a block that goes on in CONTINUATION is one with its HEADERS (and the word `continued`)."""
        return [line for frame in self.read(data) if (line := self._line(frame)) is not None]

    def read(self, data: bytes) -> list[hf.Frame]:
        """The whole frames in what came so far."""
        self._buffer += data
        if self._buffer.startswith(PREFACE):
            self._buffer = self._buffer[len(PREFACE) :]
        found: list[hf.Frame] = []
        while len(self._buffer) >= 9:
            frame, length = hf.Frame.parse_frame_header(memoryview(self._buffer[:9]), strict=True)
            if len(self._buffer) < 9 + length:
                break
            assert not self._buffer[4] & ~_flag_bits(frame), "an unused flag is set (RFC 9113 section 4.1)"
            assert not self._buffer[5] & 0x80, "the reserved bit is set (RFC 9113 section 4.1)"
            frame.parse_body(memoryview(self._buffer[9 : 9 + length]))
            self._buffer = self._buffer[9 + length :]
            found.append(frame)
        return found

    def _line(self, frame: hf.Frame) -> str | None:
        if self._block is not None:
            assert isinstance(frame, hf.ContinuationFrame), "a field block is interrupted"
        if isinstance(frame, hf.HeadersFrame | hf.ContinuationFrame):
            return self._headers(frame)
        if isinstance(frame, hf.SettingsFrame):
            pairs = [f"{name}={value}" for name, value in frame.settings.items()]
            return " ".join(["SETTINGS", *(["ack"] if "ACK" in frame.flags else []), *pairs])
        if isinstance(frame, hf.DataFrame):
            text = escaped(frame.data) if len(frame.data) <= 40 else f"len={len(frame.data)}"
            return f"DATA {frame.stream_id} {text}{_end(frame)}"
        if isinstance(frame, hf.RstStreamFrame):
            return f"RST_STREAM {frame.stream_id} {code_name(frame.error_code)}"
        if isinstance(frame, hf.GoAwayFrame):
            return f"GOAWAY {frame.last_stream_id} {code_name(frame.error_code)}"
        if isinstance(frame, hf.PingFrame):
            return f"PING {escaped(frame.opaque_data)}" + (" ack" if "ACK" in frame.flags else "")
        assert isinstance(frame, hf.WindowUpdateFrame), frame
        return f"WINDOW_UPDATE {frame.stream_id} {frame.window_increment}"

    def _headers(self, frame: hf.HeadersFrame | hf.ContinuationFrame) -> str | None:
        if isinstance(frame, hf.HeadersFrame):
            self._block = (frame, frame.data)
        assert self._block is not None, "CONTINUATION without HEADERS"
        first, block = self._block
        if frame is not first:
            assert frame.stream_id == first.stream_id
            block += frame.data
            self._block = (first, block)
        if "END_HEADERS" not in frame.flags:
            return None
        self._block = None
        fields = [(bytes(name), bytes(value)) for name, value in self.decoder.decode(block, raw=True)]
        continued = " continued" if frame is not first else ""
        return f"HEADERS {first.stream_id} {show_fields(fields)}{continued}{_end(first)}"


def _flag_bits(frame: hf.Frame) -> int:
    bits = 0
    for flag in frame.defined_flags:
        bits |= flag.bit
    return bits


def _end(frame: hf.Frame) -> str:
    return " end" if "END_STREAM" in frame.flags else ""
