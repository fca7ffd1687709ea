"""The health_check filter. What is expected was recorded from Envoy 1.40 on the same configuration and requests."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.health_check.v3.health_check_pb2 import HealthCheck

from meshproxy.codec.headers import Field
from meshproxy.filters.http import health_check
from meshproxy.filters.http.health_check import HealthCheckStats, Requirement
from tests.http.harness import Downstream, Harness, ScriptedUpstream, get, head, parse
from tests.upstream.harness import cluster_dict, endpoint, world

PATH = {"headers": [{"name": ":path", "string_match": {"exact": "/healthz"}}]}
CHECKED = ("x-envoy-upstream-healthchecked-cluster", "mine")
FAILING = ("x-envoy-immediate-health-check-fail", "true")
NO_BODY = ("content-length", "0")
CHECK = get("/healthz")


class Checked(Harness):
    """A chain with a health_check filter of this configuration."""

    def __init__(self, answer: list[Field] | None = None, **config: Any) -> None:
        super().__init__(upstream=ScriptedUpstream(answer or [(b":status", b"200")]))
        self.context.service_cluster = "mine"
        self.filter = health_check.build_health_check(parse({**PATH, **config}, HealthCheck()), "h", self.context)
        self.add(self.filter, "health")
        self.used = self.config()

    def ask(self, request: bytes = CHECK, *, failing: bool = False) -> bytes:
        return self.failing(failing).send(request)

    def failing(self, failing: bool = True) -> Downstream:
        """A connection, while an operator lets health checks fail or not."""
        downstream = self.connect(self.used)
        downstream.manager.owner.failing = failing
        return downstream

    def counted(self) -> dict[str, int]:
        stats = self.filter.stats
        return {name: getattr(stats, name) for name in stats.COUNTERS if getattr(stats, name)}


def test_a_health_check_is_answered() -> None:
    made = Checked(pass_through_mode=False)
    assert made.ask() == head("200 OK", CHECKED, NO_BODY)
    assert made.upstream.seen == []
    assert made.counted() == {"request_total": 1, "ok": 1}
    assert made.stats.downstream_rq_completed == 0


def test_any_other_request_passes() -> None:
    made = Checked(pass_through_mode=False)
    assert made.ask(get("/other")) == head("200 OK", NO_BODY)
    assert made.counted() == {}
    assert not made.upstream.streams[-1].info.health_check
    assert made.stats.downstream_rq_completed == 1


def test_a_health_check_passes_through() -> None:
    made = Checked(pass_through_mode=True)
    assert made.ask() == head("200 OK", CHECKED, NO_BODY)
    assert len(made.upstream.seen) == 1
    assert made.upstream.streams[-1].info.health_check
    assert made.counted() == {}


@pytest.mark.parametrize("passes", [True, False])
def test_while_health_checks_fail(passes: bool) -> None:
    made = Checked(pass_through_mode=passes)
    assert made.ask(failing=True) == head("503 Service Unavailable", CHECKED, FAILING, NO_BODY)
    assert made.ask(get("/other"), failing=True) == head("200 OK", FAILING, NO_BODY)
    assert made.counted() == {"request_total": 1, "failed": 1}


def test_a_body_is_read_first() -> None:
    made = Checked(pass_through_mode=False)
    downstream = made.connect(made.used)
    assert downstream.send(get("/healthz", ("content-length", "5"), method="POST") + b"hel") == b""
    assert downstream.send(b"lo") == head("200 OK", CHECKED, NO_BODY)
    assert downstream.send(CHECK) == head("200 OK", CHECKED, NO_BODY)


def test_trailers_end_a_health_check_too() -> None:
    made = Checked(pass_through_mode=False)
    request = get("/healthz", ("transfer-encoding", "chunked"), method="POST") + b"1\r\nx\r\n0\r\nx-t: 1\r\n\r\n"
    assert made.ask(request) == head("200 OK", CHECKED, NO_BODY)


def test_the_upstreams_answer_is_remembered() -> None:
    made = Checked([(b":status", b"204"), (b"x-a", b"b")], pass_through_mode=True, cache_time="1000s")
    assert made.ask() == head("204 No Content", ("x-a", "b"), CHECKED)
    assert made.ask() == made.ask() == head("204 No Content", CHECKED)
    assert len(made.upstream.seen) == 1
    assert made.counted() == {"request_total": 2, "ok": 2, "cached_response": 2}


def test_a_failure_is_remembered() -> None:
    made = Checked([(b":status", b"500")], pass_through_mode=True, cache_time="1000s")
    made.ask()
    assert made.ask() == head("500 Internal Server Error", CHECKED, NO_BODY)
    assert made.counted() == {"request_total": 1, "failed": 1, "cached_response": 1}


def test_that_it_is_degraded_is_remembered() -> None:
    answer: list[Field] = [(b":status", b"200"), (b"x-envoy-degraded", b"true")]
    made = Checked(answer, pass_through_mode=True, cache_time="1000s")
    made.ask()
    assert made.ask() == head("200 OK", ("x-envoy-degraded", ""), CHECKED, NO_BODY)
    assert made.counted() == {"request_total": 1, "ok": 1, "cached_response": 1, "degraded": 1}


def test_what_is_remembered_is_forgotten() -> None:
    made = Checked(pass_through_mode=True, cache_time="1s")
    made.ask()
    made.ask()
    assert len(made.upstream.seen) == 1
    made.advance(1000)
    made.ask()
    assert len(made.upstream.seen) == 2


def test_nothing_is_remembered_for_no_time() -> None:
    made = Checked(pass_through_mode=True, cache_time="0s")
    made.ask()
    made.ask()
    assert len(made.upstream.seen) == 2


def hosts(healthy: int = 0, unhealthy: int = 0, degraded: int = 0) -> list[dict[str, Any]]:
    """Endpoints, by what their health is said to be."""
    statuses = ["HEALTHY"] * healthy + ["UNHEALTHY"] * unhealthy + ["DEGRADED"] * degraded
    return [endpoint("127.0.0.1", port, health_status=status) for port, status in enumerate(statuses, 1)]


@pytest.mark.parametrize(
    ("endpoints", "percent", "failure"),
    [
        (hosts(1, 1), 50.0, ""),
        (hosts(1, 1), 51.0, "cluster_unhealthy"),
        (hosts(1, 0, 1), 100.0, ""),
        (hosts(2, 1), 66.6, ""),
        (hosts(2, 1), 66.7, "cluster_unhealthy"),
        ([], 0.0, ""),
        ([], 1.0, "cluster_empty"),
    ],
)
async def test_how_much_of_a_cluster_must_be_healthy(
    endpoints: list[dict[str, Any]], percent: float, failure: str
) -> None:
    async with world() as w:
        w.add(cluster_dict(*endpoints))
        failed = Requirement("c", percent).failure(w.manager, HealthCheckStats())
        assert failed == (f"health_check_failed_{failure}" if failure else "")


def test_a_cluster_that_is_not_there() -> None:
    made = Checked(pass_through_mode=False, cluster_min_healthy_percentages={"a": {"value": 0}})
    assert made.ask() == head("503 Service Unavailable", CHECKED, NO_BODY)
    assert made.counted() == {"request_total": 1, "failed": 1, "failed_cluster_not_found": 1}


def test_a_cache_is_for_what_passes_through() -> None:
    made = Harness()
    config = parse({"pass_through_mode": False, "cache_time": "1s"}, HealthCheck())
    health_check.build_health_check(config, "h", made.context)
    assert [error.path for error in made.errors.items] == ["h.cache_time"]
