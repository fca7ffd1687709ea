"""Several attempts of one request at once: each of them that outlives its time has another begin beside it.

The last one is the router's `upstream`; those before it that go on are its `hedged`. The first good answer goes down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshproxy.http.router import Router
    from meshproxy.http.upstream_request import UpstreamRequest


def hedge(router: Router, upstream: UpstreamRequest) -> None:
    """A try has had its time: it goes on, and another begins beside it if the retry policy has one left."""
    if upstream.retried:
        return
    upstream.timed_out = True
    upstream.host.outlier.put_timeout()
    retry = router.retry
    if router.response_started or retry is None or not router.shall_retry(retry.on_hedge()):
        return
    upstream.retried = True
    router.try_timed_out = True
    router.upstream = None
    if router.hedged is None:
        router.hedged = []
    router.hedged.append(upstream)
    router.retry_later(retry.backoff_ms)


def remove(router: Router, upstream: UpstreamRequest) -> None:
    """The attempt is over."""
    if router.upstream is upstream:
        router.upstream = None
    elif router.hedged is not None and upstream in router.hedged:
        router.hedged.remove(upstream)


def others_may_answer(router: Router, upstream: UpstreamRequest) -> bool:
    """Whether another attempt waits for its response, or is about to start: what befell this one is no answer."""
    if router.backoff is not None or (router.upstream is not None and router.upstream is not upstream):
        return True
    if router.hedged is not None:
        for attempt in router.hedged:
            if attempt is not upstream:
                return True
    return False


def choose(router: Router, upstream: UpstreamRequest) -> None:
    """This response goes downstream: the other attempts are reset, and none follows."""
    remove(router, upstream)
    abort_all(router)
    if router.backoff is not None:
        router.backoff.disarm()
        router.backoff = None
    router.upstream = upstream
    upstream.on_chosen()


def abort_all(router: Router) -> None:
    """Reset every attempt."""
    for attempt in take_all(router):
        attempt.abort()


def take_all(router: Router) -> list[UpstreamRequest]:
    """The attempts, the last one last; from here on the router has none."""
    attempts = router.hedged or []
    if router.upstream is not None:
        attempts = [*attempts, router.upstream]
    router.upstream = router.hedged = None
    return attempts
