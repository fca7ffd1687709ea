"""The local rate limit of HTTP requests. What Envoy does, tests/differential/test_local_ratelimit.py asks it."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.local_ratelimit.v3.local_rate_limit_pb2 import LocalRateLimit

from meshproxy.filters.http import local_ratelimit
from tests.http.harness import Harness, ScriptedUpstream, get, head, parse

ON = {"default_value": {"numerator": 100}}
ENFORCED = {"filter_enabled": ON, "filter_enforced": ON}
PASSED = head("200 OK", ("content-length", "0"))
LIMITED = head(
    "429 Too Many Requests", ("content-length", "18"), ("content-type", "text/plain"), body="local_rate_limited"
)
BY_USER = [{"actions": [{"request_headers": {"header_name": "x-user", "descriptor_key": "user"}}]}]


def bucket(tokens: int, seconds: int = 1_000_000) -> dict[str, Any]:
    return {"max_tokens": tokens, "fill_interval": f"{seconds}s"}


class Limiting(Harness):
    """A chain with a LocalRateLimit of this configuration."""

    def __init__(self, runtime: dict[str, Any] | None = None, **config: Any) -> None:
        super().__init__(runtime=runtime, upstream=ScriptedUpstream([(b":status", b"200")]))
        message = parse({"stat_prefix": "l", **config}, LocalRateLimit())
        self.filter = local_ratelimit.build_filter(message, "f", self.context)
        assert not self.errors, str(self.errors)
        self.add(self.filter, "limit")

    def passes(self, *headers: tuple[str, str]) -> bool:
        """Whether a request on a connection of its own does; if not, it is answered 429."""
        answer = self.exchange(get("/", *headers))
        assert answer in (PASSED, LIMITED)
        return answer == PASSED

    def counted(self) -> tuple[int, int, int, int]:
        stats = self.filter.settings.stats
        return stats.enabled, stats.ok, stats.rate_limited, stats.enforced


def test_a_bucket_is_filled_again() -> None:
    made = Limiting(**ENFORCED, token_bucket=bucket(2, 10))
    assert [made.passes() for _ in range(3)] == [True, True, False]
    made.advance(9_900)
    assert not made.passes()
    made.advance(100)
    assert [made.passes() for _ in range(2)] == [True, False]
    assert made.counted() == (6, 3, 3, 3)


def test_what_is_not_enabled_is_not_counted() -> None:
    made = Limiting(token_bucket=bucket(1))
    assert [made.passes() for _ in range(3)] == [True] * 3
    assert made.counted() == (0, 0, 0, 0)


def test_runtime_says_who_is_counted_and_who_is_stopped() -> None:
    shares = {"on": 100, "enforced": 0}
    made = Limiting(
        runtime=shares,
        filter_enabled={"runtime_key": "on", **ON},
        filter_enforced={"runtime_key": "enforced", **ON},
        token_bucket=bucket(1),
    )
    assert [made.passes() for _ in range(2)] == [True, True]
    assert made.counted() == (2, 1, 1, 0)


def test_the_newest_values_keep_their_buckets() -> None:
    """Of two that are held, whoever came longest ago goes, and finds a full bucket when he comes again."""
    made = Limiting(
        **ENFORCED,
        token_bucket=bucket(100),
        descriptors=[{"entries": [{"key": "user"}], "token_bucket": bucket(1)}],
        rate_limits=BY_USER,
        max_dynamic_descriptors=2,
    )
    users = ("a", "b", "a", "c", "a", "b")
    assert [made.passes(("x-user", user)) for user in users] == [True, True, False, True, False, True]


def test_a_connection_of_its_own_bucket() -> None:
    made = Limiting(**ENFORCED, token_bucket=bucket(1), local_rate_limit_per_downstream_connection=True)
    config = made.config()
    one, two = made.connect(config), made.connect(config)
    request = get("/")
    answers = [downstream.send(request) for downstream in (one, two, one, two)]
    assert answers == [PASSED, PASSED, LIMITED, LIMITED]


def test_two_filters_of_one_name_and_place_share_a_bucket() -> None:
    """As an older and a newer configuration do."""
    made = Limiting(**ENFORCED, token_bucket=bucket(1))
    message = parse({"stat_prefix": "l", **ENFORCED, "token_bucket": bucket(1)}, LocalRateLimit())
    newer = local_ratelimit.build_filter(message, "f", made.context)
    assert newer.settings.limiter is not None
    assert made.passes()
    assert newer.settings.limiter.take([]) == (False, newer.settings.limiter.default)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (
            {"token_bucket": {"max_tokens": 1, "fill_interval": "0.049s"}},
            "f.token_bucket: local rate limit token bucket fill timer must be >= 50ms",
        ),
        (
            {
                "descriptors": [
                    {
                        "entries": [{"key": "k", "value": "v"}],
                        "token_bucket": {"max_tokens": 1, "fill_interval": "0.049s"},
                    }
                ]
            },
            "f.descriptors[0].token_bucket: local rate limit descriptor token bucket fill timer must be >= 50ms",
        ),
        (
            {"descriptors": [{"entries": [{"key": "k", "value": "v"}, {"key": "l"}], "token_bucket": bucket(1)}] * 2},
            "f.descriptors[1]: duplicate descriptor in the local rate descriptor: k=v, l=",
        ),
    ],
)
def test_errors_are_envoys_with_their_path(config: dict[str, Any], error: str) -> None:
    made = Harness()
    local_ratelimit.build_filter(parse({"stat_prefix": "l", **config}, LocalRateLimit()), "f", made.context)
    assert [str(each) for each in made.errors.items] == [error]


def test_a_route_needs_a_bucket() -> None:
    made = Harness()
    assert local_ratelimit.build_override(parse({"stat_prefix": "l"}, LocalRateLimit()), "f", made.context) is None
    assert [str(each) for each in made.errors.items] == [
        "f: local rate limit token bucket must be set for per filter configs"
    ]
