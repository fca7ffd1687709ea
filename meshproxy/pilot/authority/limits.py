"""How many certificates an identity, and all of them together, may have a second: token buckets."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MAX_BUCKETS: Final = 10_000


class Bucket:
    """`rate` tokens a second, `burst` at most; full at the beginning."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def has_one(self, now: float) -> bool:
        """`now` is of a monotonic clock."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return self._tokens >= 1.0

    def take(self) -> None:
        self._tokens -= 1.0


class Limits:
    """Of MAX_BUCKETS identities; the one that asked longest ago is forgotten first, and its bucket is full by then,
    where identities are not proved faster than MAX_BUCKETS in burst/rate seconds."""

    def __init__(self, identity: tuple[float, float], total: tuple[float, float], now: float) -> None:
        self._identity = identity  # rate, burst
        self._total = Bucket(*total, now)
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def refusal(self, identity: str, now: float) -> str:
        """ "" where it may have one now, which is counted."""
        bucket = self._buckets.get(identity)
        if bucket is None:
            bucket = self._buckets[identity] = Bucket(*self._identity, now)
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(identity)
        if not bucket.has_one(now):
            return "too many certificates for this identity"
        if not self._total.has_one(now):
            return "too many certificates"
        bucket.take()
        self._total.take()
        return ""
