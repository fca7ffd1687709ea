"""The stream that takes over from one whose upstream redirected it, where the proxy follows that itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.http.entry import check_and_normalize
from meshproxy.http.stream_end import end_stream
from meshproxy.http.stream_reply import reply_rejected

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream


def recreate_stream(stream: Stream, response: HeaderMap, body: bytes) -> None:
    """`Stream.recreate`."""
    info = stream.info
    info.response_headers = response
    info.response_code = status_code(response)
    info.response_code_details = "internal_redirect"
    end_stream(stream)
    _resume(stream.manager.recreate_stream(stream), stream, body)


def _resume(stream: Stream, old: Stream, body: bytes) -> None:
    """Begin as the successor of `old`: trust and identity were settled by it."""
    headers, info, before = old.request_headers, stream.info, old.info
    stream.redirects = old.redirects
    stream.request_headers = headers
    info.request_headers = headers
    info.protocol = before.protocol
    info.bytes_received = before.bytes_received
    info.remote = before.remote
    info.internal = before.internal
    info.request_id = before.request_id
    stream.on_request_complete()
    rejected = check_and_normalize(stream.config, headers, info)
    if rejected is not None:
        reply_rejected(stream, rejected)
        return
    route = stream.begin_route(headers)
    stream.enter_chain(stream.config.chain, route, headers, not body)
    if body and not stream.done:
        stream.on_data(body, True)
