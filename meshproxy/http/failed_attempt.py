"""An attempt that failed, or had its time: another one follows, or the downstream is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshproxy.errors import RESET_LOCAL, RESET_OVERFLOW
from meshproxy.http import hedging
from meshproxy.http.local_reply import reset_details, reset_flag, upstream_reset_reply
from meshproxy.http.retry import IDEMPOTENT
from meshproxy.observe import response_flags as flags
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.outlier import LOCAL_ORIGIN_CONNECT_FAILED

if TYPE_CHECKING:
    from meshproxy.http.router import Router
    from meshproxy.http.upstream_request import UpstreamRequest


def on_attempt_reset(router: Router, upstream: UpstreamRequest, reason: int, transport_failure: str) -> None:
    """It was reset: before, or amid, its response."""
    cluster = router.cluster
    assert cluster is not None
    hedging.remove(router, upstream)
    router.try_timed_out = False
    info = router.stream.info
    if info.upstream is not None and transport_failure:
        info.upstream.transport_failure_reason = transport_failure
    if reason != RESET_OVERFLOW:
        upstream.host.outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_FAILED)
    if router.response_started:
        _cut_response(router, reason, transport_failure)
        return
    if upstream.stale and not upstream.retried and _can_reconnect(router, upstream):
        router.reconnected = True
        cluster.stats.count("upstream_rq_stale_connection_retry")
        router.start_attempt()
        return
    if not upstream.retried and _retries_reset(router, reason, upstream.started):
        return
    reply = upstream_reset_reply(reason, transport_failure, router.attempts > 1)
    details = reply.details
    if router.had_interim:
        details = reset_details("upstream_reset_after_response_started", reason, transport_failure)
    router.charge(cluster, reply.status, upstream.host if reason != RESET_OVERFLOW else None)
    if reason == RESET_OVERFLOW:
        cluster.dropped += 1
    if hedging.others_may_answer(router, upstream):
        return
    router.reply(reply.status, reply.body, details, reply.response_flags)


def _cut_response(router: Router, reason: int, transport_failure: str) -> None:
    stream = router.stream
    router.end_attempts()
    _fail_call(router)
    stream.info.response_flags |= reset_flag(reason)
    details = reset_details("upstream_reset_after_response_started", reason, transport_failure)
    if stream.response_started:
        stream.reset(details)
    else:  # a filter has kept it: there is time for a better answer
        reply = upstream_reset_reply(reason, "", False)
        stream.send_local_reply(reply.status, reply.body, details)


def _can_reconnect(router: Router, upstream: UpstreamRequest) -> bool:
    """The connection is stale. A reused one that the peer closed before any byte of its response: an idempotent
    request goes once more (RFC 9110 section 9.2.2), since the peer closed while idle and never saw it. One of
    HTTP/2 whose peer says that it has not looked at the request: any goes once more (RFC 9113 section 8.7)."""
    switch = router.config.retry_stale_connections
    return (
        (switch is None or switch.value)
        and not router.reconnected
        and not router.body_lost
        and (upstream.multiplexed or router.headers.get(b":method") in IDEMPOTENT)
    )


def _retries_reset(router: Router, reason: int, started: bool) -> bool:
    """Whether another attempt follows one that was reset (or timed out) before its response."""
    retry = router.retry
    if retry is None or not router.shall_retry(retry.on_reset(reason, started)):
        return False
    router.retry_later(retry.backoff_ms)
    return True


def _fail_call(router: Router) -> None:
    """The response is cut short. Only a call of gRPC counts that: others count their heads."""
    if router.call is not None and router.call.fail():
        router.config.stats.rq_reset_after_downstream_response_started += 1


# -- an attempt had its time


def on_per_try_timeout(router: Router, upstream: UpstreamRequest, idle: bool) -> None:
    """The retry policy's timeout of one try, or (`idle`) of its silence."""
    cluster = router.cluster
    assert cluster is not None
    if router.timeouts.hedges:
        hedging.hedge(router, upstream)
        return
    stats = cluster.stats
    if idle:
        stats.upstream_rq_per_try_idle_timeout += 1
    else:
        stats.upstream_rq_per_try_timeout += 1
    upstream.host.stats.rq_timeout += 1
    upstream.host.outlier.put_timeout()
    hedging.remove(router, upstream)
    router.try_timed_out = True
    upstream.abort()
    details = "upstream_per_try_idle_timeout" if idle else "upstream_per_try_timeout"
    if router.response_started:
        _fail_call(router)
        router.stream.info.response_flags |= flags.UPSTREAM_REQUEST_TIMEOUT
        router.end_attempts()
        router.stream.reset(details)
        return
    if _retries_reset(router, RESET_LOCAL, True):
        return
    router.charge(cluster, _timeout_status(router), upstream.host)
    _reply_timeout(router, details)


def on_max_duration(router: Router, upstream: UpstreamRequest) -> None:
    """An attempt lived as long as its cluster, or x-envoy-upstream-stream-duration-ms, lets it."""
    cluster = router.cluster
    assert cluster is not None
    cluster.stats.upstream_rq_max_duration_reached += 1
    hedging.remove(router, upstream)
    upstream.abort()
    router.stream.info.response_flags |= flags.UPSTREAM_MAX_STREAM_DURATION_REACHED
    if router.response_started:
        router.end_attempts()
        router.stream.reset("upstream_max_stream_duration_reached")
        return
    if not upstream.retried and _retries_reset(router, RESET_LOCAL, True):
        return
    status = 504 if router.request_end else 408
    router.reply(status, b"upstream max stream duration reached", "upstream_max_stream_duration_reached", 0)


def on_response_timeout(router: Router) -> None:
    """The overall timeout of the route."""
    cluster = router.cluster
    assert cluster is not None
    for attempt in reversed(hedging.take_all(router)):
        _time_out(router, cluster, attempt)
    if router.response_started:
        router.end_attempts()
        router.stream.info.response_flags |= flags.UPSTREAM_REQUEST_TIMEOUT
        router.stream.reset("response_timeout")
        return
    _reply_timeout(router, "response_timeout")


def _time_out(router: Router, cluster: Cluster, attempt: UpstreamRequest) -> None:
    host = attempt.host
    cluster.stats.upstream_rq_timeout += 1
    if router.counts is not None:
        router.counts.on_timeout()
    host.stats.rq_timeout += 1
    if not attempt.headers_received:
        if not attempt.timed_out:
            host.outlier.put_timeout()
        router.charge(cluster, _timeout_status(router), host)
    elif router.call is not None:
        router.call.fail()
    attempt.abort()


def _timeout_status(router: Router) -> int:
    return 204 if router.timeouts.alternative_response else 504


def _reply_timeout(router: Router, details: str) -> None:
    status = _timeout_status(router)
    body = b"" if status == 204 else b"upstream request timeout"
    router.reply(status, body, details, flags.UPSTREAM_REQUEST_TIMEOUT)
