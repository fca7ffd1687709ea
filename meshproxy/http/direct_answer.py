"""Routes that answer for themselves: redirects and direct responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.codec.headers import HeaderMap
from meshproxy.route.route import ROUTE_REDIRECT, Route

if TYPE_CHECKING:
    from meshproxy.http.stream import Stream


def answer_directly(stream: Stream, route: Route, headers: HeaderMap) -> None:
    """Answer as the route says; `headers` are the request's."""
    if route.kind == ROUTE_REDIRECT:
        _redirect(stream, route, headers)
    else:
        _respond(stream, route, headers)


def _redirect(stream: Stream, route: Route, headers: HeaderMap) -> None:
    status, location = route.redirect(headers, stream.info)
    action = route.redirect_action
    if action is not None and action.path_rewrite is not None:  # as Envoy: header operations and logs see it
        headers.set(b":path", action.path_rewrite.rewrite(headers.get(b":path") or b"", stream.info))
    extra = HeaderMap([(b"location", location)])
    if route.has_response_mutations:
        route.finalize_response(extra, stream.info)
    stream.send_local_reply(status, b"", "direct_response", 0, extra)


def _respond(stream: Stream, route: Route, headers: HeaderMap) -> None:
    extra = HeaderMap()
    location = route.direct_location(headers, stream.info)
    if location is not None:
        extra.add(b"location", location)
    if route.has_response_mutations:
        route.finalize_response(extra, stream.info)
    status, body = route.direct_response(stream.info)
    stream.info.local_reply_body = b""
    stream.send_local_reply(status, body, "direct_response", 0, extra, content_type=route.direct_content_type)
