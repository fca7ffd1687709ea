"""How a stream answers in place of an upstream: plain or gRPC, through the filters of the response or past them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.codec.grpc import is_grpc
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.errors import RESET_LOCAL, RESET_REMOTE
from meshproxy.http.chain import HEADERS
from meshproxy.http.entry import RejectedRequest
from meshproxy.http.local_reply import complete_grpc_reply_headers, complete_reply_headers
from meshproxy.observe import response_flags as flags

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream


def send_local_reply(
    stream: Stream,
    status: int,
    body: bytes,
    details: str,
    response_flags: int,
    extra: HeaderMap | None,
    grpc_status: int,
    content_type: bytes,
) -> None:
    """`Stream.send_local_reply`."""
    if stream.done:
        return
    _check_reply(status, body)
    stream.info.response_flags |= response_flags
    stream.info.response_code_details = details.replace(" ", "_")
    if stream.request_path is not None:
        stream.request_path.finish()
    if stream.router is not None:
        stream.router.cancel()
    if stream.response_started or stream.local_reply:
        stream.reset(details)
        return
    stream.local_reply = True
    if status == 400:
        stream.manager.end_http1()  # as Envoy: a bad request is the connection's last
    _leave_response_path(stream)
    headers = HeaderMap()
    headers.add(b":status", b"%d" % status)
    if extra is not None:
        headers.extend(extra.fields)
    grpc = _replies_as_grpc(stream)
    mapping = stream.config.local_replies
    if mapping is not None:
        status, body, content_type = mapping.rewrite(headers, stream.info, status, body, content_type, grpc)
    if grpc:
        complete_grpc_reply_headers(headers, status, body, grpc_status)
        body = b""
    else:
        complete_reply_headers(headers, body, content_type)
    if stream.request_headers.get(b":method") == b"HEAD":
        body = b""
    stream.send_response_headers(headers, not body)
    if body and not stream.done:
        stream.send_response_data(body, True)


def reply_past_filters(stream: Stream, details: str) -> None:
    """A filter failed on a local reply itself: the client is told so without the filters."""
    _leave_response_path(stream)
    stream.info.response_code_details = details
    headers = HeaderMap([(b":status", b"500")])
    if _replies_as_grpc(stream):
        complete_grpc_reply_headers(headers, 500, b"", -1)
    else:
        complete_reply_headers(headers, b"", b"")
    stream.response_headers = stream.info.response_headers = headers
    stream.info.response_code = status_code(headers)
    stream.encode_part(HEADERS, headers, True)


def _leave_response_path(stream: Stream) -> None:
    """The response that the filters had under way is none any more."""
    if stream.response_path is not None:
        stream.response_path.finish()
        stream.response_path = None


def _replies_as_grpc(stream: Stream) -> bool:
    return is_grpc(stream.request_headers) if stream.grpc_replies < 0 else stream.grpc_replies > 0


def _check_reply(status: object, body: object) -> None:
    """A filter's mistake is told before anything has changed."""
    if not isinstance(status, int) or not isinstance(body, bytes):
        given = f"{type(status).__name__} and {type(body).__name__}"
        raise TypeError(f"a local reply has a status (int) and a body (bytes), not {given}")


def reply_rejected(stream: Stream, rejected: RejectedRequest) -> None:
    """The answer to a request that gets no further than its head."""
    config = stream.config
    if rejected.location:
        config.stats.downstream_rq_redirected_with_normalized_path += 1
        extra = HeaderMap([(b"location", rejected.location)])
        stream.send_local_reply(rejected.status, b"", rejected.details, 0, extra)
        return
    if rejected.stat:
        config.stats.count(rejected.stat)
    if rejected.malformed and stream.manager.is_http2:
        config.http2_stats.counts().requests_rejected_with_underscores_in_headers += 1
        stream.info.request_headers = None
        stream.encoder.reset(RESET_LOCAL)
        stream.on_reset(RESET_REMOTE, "http2.unexpected_underscore")
    elif rejected.malformed:
        config.stats.downstream_cx_protocol_error += 1
        _count_unfinished(stream)
        stream.info.request_headers = None  # to the log it is no request, as with what the codec refuses
        stream.send_local_reply(400, b"Bad Request", rejected.details, flags.DOWNSTREAM_PROTOCOL_ERROR)
    else:
        stream.send_local_reply(rejected.status, b"", rejected.details)


def _count_unfinished(stream: Stream) -> None:
    """What Envoy, whose codec refuses this request before its end, counts of it."""
    if stream.request_complete:
        stream.config.stats.downstream_rq_response_before_rq_complete += 1
        stream.config.stats.downstream_rq_rx_reset += 1
