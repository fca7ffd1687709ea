"""One request that became a call of gRPC: its body on the way there, and the messages on the way back."""

from __future__ import annotations

import base64
from typing import Any, Final

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.grpc.messages import MessageReader, frame
from meshproxy.http.transcoding import raw_body
from meshproxy.http.transcoding.json_array import JsonArray
from meshproxy.http.transcoding.json_request import MessageWriter, parse_json
from meshproxy.http.transcoding.json_response import MessagePrinter, ResponseError
from meshproxy.http.transcoding.methods import Binding, MethodTable, Parameters

# How a stream of messages is put together.
ARRAY: Final = 0
LINES: Final = 1
EVENTS: Final = 2

_PIECE_BYTES: Final = 1 << 20  # of a raw body in a stream of messages, since servers take 4 MiB by default


class TranscoderSettings:
    """A GrpcJsonTranscoder, of the filter or of a route."""

    def __init__(self, table: MethodTable, writer: MessageWriter, printer: MessagePrinter) -> None:
        self.table = table
        self.writer = writer
        self.printer = printer
        self.framing: int = ARRAY
        self.keeps_route: bool = False
        self.converts_status: bool = False
        self.rejects_unknown_methods: bool = False
        self.rejects_unknown_parameters: bool = False
        self.max_request_bytes: int = 0  # 0: as much as the connection buffers
        self.max_response_bytes: int = 0


class Call:
    """A request that became a call, and the response to it."""

    def __init__(self, settings: TranscoderSettings, binding: Binding, parameters: Parameters, limit: int) -> None:
        self.settings = settings
        self.binding = binding
        self.method = binding.method
        self.parameters = parameters
        self.request_bytes_limit = limit
        self.content_type: str = ""  # of a raw body
        self.first: bytes = b""  # what the first message of a raw body begins with
        self.has_first: bool = True  # that message is still to come
        self.request_done: bool = False
        self._pieces: list[bytes] = []
        self._size: int = 0
        self._array: JsonArray | None = None
        if self.method.client_streaming and not self.method.raw_request:
            self._array = JsonArray()
        # the response
        self.passes: bool = False  # as it is
        self.reader = MessageReader()
        self.headers: HeaderMap | None = None  # as long as they wait
        self.has_body: bool = False
        self.body: bytes = b""  # of a single message
        self.printed: int = 0  # messages
        self.counted_request: int = 0  # of the bytes that are kept, those that the stats tell
        self.counted_response: int = 0

    @property
    def kept_request(self) -> int:
        """Bytes of the request that wait for the rest of their message."""
        return self._size if self._array is None else self._array.size

    @property
    def kept_response(self) -> int:
        return self.reader.kept_bytes + len(self.body)

    # -- the request

    def begin(self, headers: HeaderMap) -> None:
        """Raises RequestError for what path and query say where the body is raw; else the first message does."""
        if self.method.raw_request:
            self.content_type = (headers.get(b"content-type") or b"").decode("latin-1")
            self.first = self.settings.writer.write(self.method.request, self.tree({}), self.parameters.bound)

    def feed(self, data: bytes, end: bool) -> bytes | None:
        """What goes on of the request; None when there is more of it than may be kept. Raises RequestError."""
        self.request_done = end
        if self._array is not None:
            return self._feed_array(self._array, data, end)
        self._pieces.append(data)
        self._size += len(data)
        if self.method.raw_request and self.method.client_streaming:
            self._size = 0
            return self._cut()
        if self._size > self.request_bytes_limit:
            return None
        if not end:
            return b""
        body = b"".join(self._pieces)
        self._pieces = []
        self._size = 0
        if self.method.raw_request:
            return self._wrap(body)
        return self._message(parse_json(body) if body else {}, True)

    def _feed_array(self, array: JsonArray, data: bytes, end: bool) -> bytes | None:
        messages: list[bytes] = []
        for element in array.feed(data):
            if len(element) > self.request_bytes_limit:
                return None
            messages.append(self._message(parse_json(element), self.has_first))
            self.has_first = False
        if array.size > self.request_bytes_limit:
            return None
        if end:
            array.finish()
        return b"".join(messages)

    def _message(self, tree: Any, first: bool) -> bytes:
        """The body, or an element of it, as a message: the first holds what path and query say."""
        bound = self.parameters.bound if first else None
        return frame(self.settings.writer.write(self.method.request, self.tree(tree), bound))

    def tree(self, tree: Any) -> Any:
        """The message's JSON, where that of the body is one of its fields."""
        for name in reversed(self.binding.body):
            tree = {name: tree}
        return tree

    def _cut(self) -> bytes:
        """A raw body that is a stream goes on in pieces as they come, in one at least."""
        data = b"".join(self._pieces)
        self._pieces = []
        if not data:
            return self._wrap(b"") if self.has_first else b""
        return b"".join([self._wrap(data[at : at + _PIECE_BYTES]) for at in range(0, len(data), _PIECE_BYTES)])

    def _wrap(self, data: bytes) -> bytes:
        first, self.first = self.first, b""
        content_type, self.content_type = self.content_type, ""
        self.has_first = False
        method = self.method
        return frame(first + raw_body.wrap(data, content_type, self.parameters.unknown, method.request_body))

    # -- the response

    def print(self, data: bytes) -> bytes:
        """What goes on of the response: of a single message nothing until the end. Raises ResponseError."""
        messages = self.reader.feed(data)
        streaming = self.method.server_streaming
        parts: list[bytes] = []
        for flags, message in messages:
            if self.printed and not streaming:
                break
            if self.method.raw_response:
                self._print_raw(message, parts)
            elif flags:
                raise ResponseError(f"Unsupported gRPC frame flag: {flags}", "INTERNAL")
            else:
                parts.append(self._print_message(message))
                self.printed += 1
        if streaming:
            return b"".join(parts)
        self.body += b"".join(parts)
        return b""

    def _print_message(self, message: bytes) -> bytes:
        settings = self.settings
        text = settings.printer.print_bytes(self.method.response_class, message)
        if not self.method.server_streaming:
            return text
        if settings.framing == EVENTS:
            return b"data: " + text + b"\n\n"
        if settings.framing == LINES:
            return text + b"\n"
        return (b"," if self.printed else b"[") + text

    def _print_raw(self, message: bytes, parts: list[bytes]) -> None:
        """The first that is not empty says what the body is."""
        if not message:
            return
        content_type, data = raw_body.unwrap(self.method.response_class, message, self.method.response_body)
        parts.append(data)
        if not self.printed and self.headers is not None:
            self.headers.set(b"content-type", content_type.encode())
            self.set_length(len(data))
        self.printed += 1

    def set_length(self, size: int) -> None:
        """The body is all there, if it is a single message."""
        if self.headers is not None and not self.method.server_streaming:
            self.headers.set(b"content-length", b"%d" % size)

    def print_end(self) -> bytes:
        """What ends the body. Raises ResponseError when it was cut short."""
        if self.method.raw_response:
            return self.body
        if self.reader.partial:
            raise ResponseError("Incomplete gRPC frame", "INTERNAL")
        if not self.method.server_streaming:
            return self.body
        if self.settings.framing != ARRAY:
            return b""
        return b"]" if self.printed else b"[]"

    def converted(self, status: int | None, fields: HeaderMap) -> bytes | None:
        """The JSON of a failed call's google.rpc.Status, where that is asked for and there is no other body."""
        if not self.settings.converts_status or self.has_body or status is None or status <= 0:
            return None
        try:
            return self.settings.printer.print(_status_message(status, fields))
        except ResponseError:
            return None


def _status_message(status: int, fields: HeaderMap) -> Any:
    """The google.rpc.Status in `grpc-status-details-bin`, or one of `grpc-status` and `grpc-message`."""
    details = fields.get(b"grpc-status-details-bin")
    given = None if details is None else _read_status(details)
    if given is not None:
        return given
    text = grpc.decode_message(fields.get(b"grpc-message") or b"")
    return Status(code=status, message=text.decode("utf-8", "replace"))


def _read_status(details: bytes) -> Any:
    """None for what is no google.rpc.Status in base64."""
    try:
        return Status.FromString(base64.b64decode(details + b"=" * (-len(details) % 4), validate=True))
    except (ValueError, DecodeError):
        return None
