"""The token buckets of one worker, by name: whoever asks for the same name uses the same bucket.

They are held weakly, as what follows the runtime is: a bucket ends with the last filter that uses it, which may outlive
the configuration that it came with, and a newer version of a filter goes on with what the older one left in the bucket.
"""

from __future__ import annotations

import weakref

from meshproxy.net.token_bucket import BucketTable, SharedTokenBucket, TokenBucket


class BucketLease:
    """The use of a bucket, which ends with this object."""

    def __init__(self, bucket: TokenBucket) -> None:
        self.bucket = bucket

    def __del__(self) -> None:
        self.bucket.leave()


class TokenBuckets:
    """With a `table` the buckets are those of all workers, of which this is number `worker`."""

    def __init__(self, table: BucketTable | None = None, worker: int = 0) -> None:
        self._table = table
        self._worker = worker
        self._leases: weakref.WeakValueDictionary[str, BucketLease] = weakref.WeakValueDictionary()

    def lease(self, name: str, max_tokens: int, rate: float) -> BucketLease:
        """The bucket of that name and size, filled by `rate` tokens a second."""
        name = f"{name}|{max_tokens}|{rate!r}"
        lease = self._leases.get(name)
        if lease is None:
            lease = self._leases[name] = BucketLease(self._make(name, max_tokens, rate))
        return lease

    def _make(self, name: str, max_tokens: int, rate: float) -> TokenBucket:
        if self._table is None:
            return TokenBucket(max_tokens, rate)
        return SharedTokenBucket(max_tokens, rate, name, self._table, self._worker)
