"""The body of a request, kept for an attempt that has to begin anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshproxy.http.retry import IDEMPOTENT

if TYPE_CHECKING:
    from meshproxy.http.router import Router
    from meshproxy.http.upstream_request import UpstreamRequest

_UNTOUCHED_BYTES: Final = 16 * 1024  # are kept for a GOAWAY that says that nobody has seen the request


class ReplayBody:
    """All of the body so far."""

    def __init__(self) -> None:
        self.size_bytes: int = 0
        self._pieces: list[bytes] = []

    def add(self, data: bytes) -> None:
        self.size_bytes += len(data)
        self._pieces.append(data)

    def whole(self) -> bytes:
        """In one piece."""
        return b"".join(self._pieces)


def keep_for_replay(router: Router, data: bytes) -> None:
    """The next piece of the request's body came. What no attempt can need any more, or what is too large, is lost."""
    if router.body_lost:
        return
    upstream = router.upstream
    if upstream is not None and not _may_begin_anew(router, upstream):
        router.lose_body()
        return
    body = router.body
    if body is None:
        body = router.body = ReplayBody()
    body.add(data)
    if body.size_bytes > _limit_bytes(router, body):
        router.lose_body()
        _give_up(router)


def _may_begin_anew(router: Router, upstream: UpstreamRequest) -> bool:
    if router.response_started:
        return False
    return router.retry is not None or _may_redirect(router) or _may_reconnect(router, upstream)


def _may_redirect(router: Router) -> bool:
    return router.route is not None and router.route.internal_redirect is not None


def _may_reconnect(router: Router, upstream: UpstreamRequest) -> bool:
    if upstream.multiplexed:
        return router.body is None or router.body.size_bytes < _UNTOUCHED_BYTES
    return upstream.reused and router.headers.get(b":method") in IDEMPOTENT


def _limit_bytes(router: Router, body: ReplayBody) -> int:
    """The route's; else what the connection, or a filter, may hold of a request, where 0 is no limit."""
    route, stream = router.route, router.stream
    limit = None if route is None else route.request_body_buffer_limit
    if limit is not None:
        return limit
    return max(stream.manager.buffer_limit_bytes, stream.buffer_limit_bytes) or body.size_bytes


def _give_up(router: Router) -> None:
    """The body is too large to be kept: what is on its way must do. An attempt that is yet to come cannot be."""
    if router.cluster is not None and (router.retry is not None or _may_redirect(router)):
        router.cluster.stats.retry_or_shadow_abandoned += 1
    if router.retry is not None:
        router.retry.give_up()
    if router.upstream is None:
        body = b"exceeded request buffer limit while retrying upstream"
        router.reply(507, body, "request_payload_exceeded_retry_buffer_limit", 0)
