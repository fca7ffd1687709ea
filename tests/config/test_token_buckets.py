"""Buckets by name: shared by all who ask for the same, given up with the last of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from meshproxy.config.token_buckets import TokenBuckets
from meshproxy.net.token_bucket import BucketTable


@pytest.fixture
def table() -> Iterator[BucketTable]:
    fd = os.memfd_create("buckets", os.MFD_CLOEXEC)
    os.ftruncate(fd, BucketTable.size_bytes(2))
    made = BucketTable(fd, 0, 2)
    yield made
    made.close()
    os.close(fd)


def test_a_newer_version_goes_on_with_what_is_left() -> None:
    buckets = TokenBuckets()
    old = buckets.lease("a", 2, 1e-9)
    assert old.bucket.take(2)
    new = buckets.lease("a", 2, 1e-9)
    del old
    assert not new.bucket.take(1)


def test_a_bucket_of_another_size_is_another_one() -> None:
    buckets = TokenBuckets()
    one, larger, faster = buckets.lease("a", 1, 1e-9), buckets.lease("a", 2, 1e-9), buckets.lease("a", 1, 1e-8)
    assert all(lease.bucket.take(1) for lease in (one, larger, faster))


def test_it_is_forgotten_with_the_last_who_used_it() -> None:
    buckets = TokenBuckets()
    lease = buckets.lease("a", 1, 1e-9)
    assert lease.bucket.take(1)
    del lease
    assert buckets.lease("a", 1, 1e-9).bucket.take(1)


def test_with_a_table_it_holds_for_all_workers(table: BucketTable) -> None:
    first, second = TokenBuckets(table, 0), TokenBuckets(table, 1)
    one, two = first.lease("a", 1, 1e-9), second.lease("a", 1, 1e-9)
    assert (one.bucket.take(1), two.bucket.take(1)) == (True, False)
    del one
    assert two.bucket.take(1)
