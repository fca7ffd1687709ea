"""Two workers, one bucket: local rate limits hold for the process, whatever becomes of a worker."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

from tests.integration.config import Json, bootstrap, direct, listener
from tests.integration.proxy import Proxy, eventually
from tests.support.downstream import RawDownstream, exchange

_TYPES = "type.googleapis.com/envoy.extensions.filters"
_TWO = ("--concurrency", "2")
_ON = {"default_value": {"numerator": 100}}
_REQUESTS = 30  # on connections of their own: with two workers, all to one of them is as likely as 2^-29


def _bucket(tokens: int) -> Json:
    return {"max_tokens": tokens, "fill_interval": "1000000s"}


def _limit(**fields: Any) -> Json:
    return {
        "@type": f"{_TYPES}.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "limit",
        "filter_enabled": _ON,
        "filter_enforced": _ON,
        **fields,
    }


def _config(limit: Json, *routes: Json) -> str:
    http_filter = {"name": "limit", "typed_config": limit}
    return bootstrap([listener("main", routes or [direct("/", "hi")], filters=[http_filter])])


async def _statuses(proxy: Proxy, number: int = _REQUESTS, *headers: str) -> list[int]:
    """Of requests on connections of their own, one after the other."""
    lines = "".join(f"{header}\r\n" for header in headers)
    request = f"GET /x HTTP/1.1\r\nhost: test\r\n{lines}\r\n".encode()
    answers = [await asyncio.to_thread(exchange, proxy.ports["main"], request, 20.0) for _ in range(number)]
    return [answer.status for answer in answers]


async def test_a_bucket_holds_for_both_workers() -> None:
    async with Proxy(_config(_limit(token_bucket=_bucket(10))), *_TWO) as proxy:
        assert await _statuses(proxy) == [200] * 10 + [429] * (_REQUESTS - 10)
        stats = await proxy.stats("limit.http_local_rate_limit")
        assert stats["limit.http_local_rate_limit.ok"] == 10
        assert stats["limit.http_local_rate_limit.rate_limited"] == _REQUESTS - 10


async def test_one_worker_that_dies_returns_tokens_and_its_successor_counts_with_the_other() -> None:
    async with Proxy(_config(_limit(token_bucket=_bucket(10))), *_TWO) as proxy:
        assert (await _statuses(proxy)).count(200) == 10
        victim = proxy.workers()[0]
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: len(proxy.workers()) == 2 and victim not in proxy.workers(), "another worker")
        await proxy.until_stat("server.live", lambda live: live == 1)
        assert (await _statuses(proxy)).count(200) <= 10
        assert await _statuses(proxy) == [429] * _REQUESTS


async def test_a_reload_does_not_fill_a_bucket() -> None:
    limit = _limit(token_bucket=_bucket(10))
    async with Proxy(_config(limit), *_TWO) as proxy:
        assert (await _statuses(proxy)).count(200) == 10
        await proxy.reload(_config(limit, direct("/", "other")))
        assert await _statuses(proxy) == [429] * _REQUESTS
        await proxy.reload(_config(_limit(token_bucket=_bucket(5))))
        assert (await _statuses(proxy)).count(200) == 5


async def test_buckets_of_open_values_hold_for_both_workers() -> None:
    limit = _limit(
        token_bucket=_bucket(1000),
        descriptors=[{"entries": [{"key": "user"}], "token_bucket": _bucket(7)}],
        rate_limits=[{"actions": [{"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}]}],
    )
    async with Proxy(_config(limit), *_TWO) as proxy:
        for user in ("ann", "bob"):
            assert await _statuses(proxy, _REQUESTS, f"x-user: {user}") == [200] * 7 + [429] * (_REQUESTS - 7)


async def test_a_bucket_for_connections_holds_for_both_workers_and_listeners() -> None:
    listeners = [_limited_listener("main"), _limited_listener("other")]
    async with Proxy(bootstrap(listeners), *_TWO) as proxy:
        served = [await asyncio.to_thread(_is_served, proxy.ports[name]) for name in ("main", "other") * 10]
        assert served == [True] * 9 + [False] * 11
        limited = await proxy.stats("local_rate_limit")
        assert sum(limited.values()) == 11


def _limited_listener(name: str) -> Json:
    made = listener(name, [direct("/", "hi")])
    limit = {
        "@type": f"{_TYPES}.network.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": name,
        "share_key": "all",
        "token_bucket": _bucket(9),
    }
    made["filter_chains"][0]["filters"].insert(0, {"name": "limit", "typed_config": limit})
    return made


def _is_served(port: int) -> bool:
    with RawDownstream(port, timeout_s=20.0) as downstream:
        downstream.send(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        return bool(downstream.reader.read_to_end()[0])
