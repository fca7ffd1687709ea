"""`envoy.filters.http.grpc_web`: lets browsers call gRPC services (gRPC's PROTOCOL-WEB).

A request of gRPC-Web goes upstream as gRPC, its body decoded where it is base64. In the response the trailers become
the last message of the body, and the body is base64 where the client accepts that. A response that is no gRPC becomes
a head with its text as `grpc-message`.
"""

from __future__ import annotations

import binascii
from typing import Any, Final

from envoy.extensions.filters.http.grpc_web.v3.grpc_web_pb2 import GrpcWeb as GrpcWebMessage

from meshproxy.codec import grpc
from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.config.context import BuildContext
from meshproxy.http.filter import CONTINUE, STOP, DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.grpc.messages import TRAILERS, MessageScanner, frame
from meshproxy.http.grpc.stats import CallStats, method_of, stats_name
from meshproxy.http.stream import Stream

_BINARY: Final = (b"application/grpc-web", b"application/grpc-web+proto")
_TEXT: Final = (b"application/grpc-web-text", b"application/grpc-web-text+proto")
_MESSAGE_BYTES: Final = 16384  # of a body that becomes grpc-message (Envoy)
_EQUALS: Final = 0x3D


class Call:
    """One stream of gRPC-Web."""

    def __init__(self) -> None:
        self.stats: CallStats | None = None
        self.decodes: bool = False  # the request's body is base64
        self.encoder: TextEncoder | None = None  # of the response's body, where that is base64
        self.rest: bytes = b""  # of base64 that is yet to be decoded
        self.becomes_head: bool = False  # the response is no gRPC


class GrpcWeb(HttpFilter):
    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if not headers.known & h.GRPC:
            return CONTINUE
        content_type = headers.get(b"content-type")
        decodes = content_type in _TEXT
        if not decodes and content_type not in _BINARY:
            return CONTINUE
        call = Call()
        call.decodes = decodes
        if headers.get(b"accept") in _TEXT:
            call.encoder = TextEncoder()
        stream.state[self.slot] = call
        stream.grpc_replies = 0  # replies of the proxy become gRPC-Web here
        self._choose_stats(stream, call, headers)
        headers.remove(b"content-length")
        headers.set(b"content-type", b"application/grpc")
        headers.set(b"te", b"trailers")
        headers.set_default(b"grpc-accept-encoding", b"identity")
        return CONTINUE

    def _choose_stats(self, stream: Stream, call: Call, headers: HeaderMap) -> None:
        stream.current_route()
        name = method_of(headers)
        if stream.cluster is not None and name is not None:
            call.stats = stream.cluster.named_stats(stats_name("grpc-web", name), CallStats)

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if not call.decodes:
            return CONTINUE
        text = call.rest + data
        whole = len(text) // 4 * 4
        if end and whole < len(text):
            return _refuse(stream, "grpc_base_64_decode_failed_bad_size")
        call.rest = text[whole:]
        decoded = decode_base64(text[:whole])
        if decoded is None:
            return _refuse(stream, "grpc_base_64_decode_failed")
        return decoded

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if call.stats is not None:
            call.stats.charge_status(headers)
        status = status_code(headers)
        is_web = status == 200 and _is_binary_web(headers.get(b"content-type"))
        call.becomes_head = not end and not is_web and not grpc.is_grpc_response(headers, status, end)
        headers.remove(b"content-length")
        headers.set(b"content-type", _BINARY[1] if call.encoder is None else _TEXT[1])
        if call.becomes_head:
            stream.buffer_response(_MESSAGE_BYTES, cut=True)
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if call.becomes_head:
            assert stream.response_headers is not None
            _put_into_head(stream.response_headers, data)
            return b""
        return CONTINUE if call.encoder is None else call.encoder.encode(data, end)

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        call = stream.state[self.slot]
        if call is None:
            return CONTINUE
        assert isinstance(call, Call)
        if call.stats is not None:
            call.stats.charge_status(trailers)
        if not call.becomes_head:
            lines = b"".join([b"%b:%b\r\n" % (name, value) for name, value in trailers.fields])
            trailers.fields.clear()
            last = frame(lines, TRAILERS)
            stream.add_to_response(last if call.encoder is None else call.encoder.finish() + _encode(last))
        return CONTINUE


def _refuse(stream: Stream, details: str) -> int:
    stream.send_local_reply(400, b"Bad gRPC-web request, invalid base64 data.", details)
    return STOP


def _is_binary_web(content_type: bytes | None) -> bool:
    return content_type is not None and content_type.partition(b";")[0].rstrip().lower() in _BINARY


def _put_into_head(headers: HeaderMap, body: bytes) -> None:
    """The text of a response that is no gRPC, and the status that stands for it."""
    headers.set(b"grpc-message", grpc.encode_message(body))
    headers.set(b"grpc-status", b"%d" % grpc.status_of_http(status_code(headers)))
    headers.set(b"content-length", b"0")


def decode_base64(text: bytes) -> bytes | None:
    """What blocks of base64 stand for, each with its padding (messages may be encoded one by one); None where they are
    not such, in their one spelling. The length is a multiple of 4."""
    blocks: list[bytes] = []
    at = 0
    while at < len(text):
        padding = text.find(_EQUALS, at)
        end = len(text) if padding < 0 else padding // 4 * 4 + 4
        block = text[at:end]
        try:
            decoded = binascii.a2b_base64(block)
        except binascii.Error:
            return None
        if _encode(decoded) != block:
            return None
        blocks.append(decoded)
        at = end
    return b"".join(blocks)


def _encode(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False)


class TextEncoder:
    """Encodes a body as base64, each message with a padding of its own; no more than two bytes wait for others."""

    def __init__(self) -> None:
        self._scanner = MessageScanner()
        self._rest: bytes = b""

    def encode(self, data: bytes, end: bool) -> bytes:
        """A piece of the body; `end`: the last one."""
        text: list[bytes] = []
        at = 0
        for message_end in self._scanner.feed(data):
            text.append(_encode(self._rest + data[at:message_end]))
            self._rest = b""
            at = message_end
        rest = self._rest + data[at:]
        whole = len(rest) // 3 * 3
        text.append(_encode(rest[:whole]))
        self._rest = rest[whole:]
        if end:
            text.append(self.finish())
        return b"".join(text)

    def finish(self) -> bytes:
        """What is left of a message that did not come whole."""
        rest, self._rest = self._rest, b""
        return _encode(rest)


def build_grpc_web(message: Any, path: str, context: BuildContext) -> GrpcWeb:
    return GrpcWeb()


register_http_filter(GrpcWebMessage, HttpFilterType(build_grpc_web))
