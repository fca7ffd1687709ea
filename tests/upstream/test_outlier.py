"""Outlier detection, on a wheel that the test turns. Numbers and names are those of Envoy's documentation."""

from __future__ import annotations

from typing import Any

import pytest

from meshproxy.config.runtime import Runtime
from meshproxy.net.address import Address
from meshproxy.net.timers import TimerWheel
from meshproxy.upstream import outlier as module
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.host import NO_LOCALITY, Host
from meshproxy.upstream.outlier import (
    LOCAL_ORIGIN_CONNECT_FAILED,
    LOCAL_ORIGIN_CONNECT_SUCCESS,
    EjectionListener,
    OutlierDetector,
)
from meshproxy.upstream.stats import OutlierStats
from tests.upstream.harness import build, cluster_dict, endpoint, until, world


class Listener(EjectionListener):
    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []

    def on_ejection_changed(self, host: Host) -> None:
        self.told.append((host.address.ip, host.outlier.ejected))


class Bench:
    """A detector over some hosts."""

    def __init__(self, hosts: int = 2, random: int = 0, **fields: Any) -> None:
        config = build(cluster_dict(endpoint("10.0.0.1"), outlier_detection=fields), Runtime())
        assert config.outlier is not None
        self.stats = OutlierStats()
        self.wheel = TimerWheel(None)
        self.listener = Listener()
        self.detector = OutlierDetector(config.outlier, self.stats, self.wheel, self.listener, lambda _bits: random)
        self.hosts = [Host(Address(f"10.0.0.{i}", 80), "", 0, NO_LOCALITY) for i in range(hosts)]
        self.detector.set_hosts(self.hosts)

    def put(self, status: int, times: int = 1, host: int = 0) -> None:
        for _ in range(times):
            self.hosts[host].outlier.put_response(status)

    def ejected(self) -> list[int]:
        return [index for index, host in enumerate(self.hosts) if host.outlier.ejected]

    def interval(self, after_s: float) -> None:
        """An interval ends so long after the first host's last ejection."""
        self.detector.on_interval(self.hosts[0].outlier.ejected_at + after_s)

    def turned(self) -> dict[str, int]:
        names = (*OutlierStats.COUNTERS, *OutlierStats.GAUGES)
        return {name: getattr(self.stats, name) for name in names if getattr(self.stats, name)}


def test_five_5xx_in_a_row_eject() -> None:
    bench = Bench(hosts=2, max_ejection_percent=50)
    bench.put(500, 4)
    assert bench.ejected() == []
    bench.put(500)
    assert bench.ejected() == [0]
    assert bench.listener.told == [("10.0.0.0", True)]
    assert bench.turned() == {
        "ejections_active": 1,
        "ejections_consecutive_5xx": 1,
        "ejections_detected_consecutive_5xx": 1,
        "ejections_enforced_consecutive_5xx": 1,
        "ejections_enforced_total": 1,
        "ejections_total": 1,
    }


def test_a_success_begins_the_count_anew() -> None:
    bench = Bench(hosts=1, max_ejection_percent=100)
    bench.put(500, 4)
    bench.put(404)
    bench.put(500, 4)
    assert bench.ejected() == []
    bench.put(500)
    assert bench.ejected() == [0]


def test_gateway_failures_are_only_detected_by_default() -> None:
    bench = Bench(hosts=1, max_ejection_percent=100, consecutive_gateway_failure=2, consecutive_5xx=100)
    bench.put(503, 2)
    assert bench.ejected() == []
    assert bench.turned() == {"ejections_detected_consecutive_gateway_failure": 1}


def test_gateway_failures_that_are_enforced() -> None:
    fields: dict[str, Any] = {"consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100}
    bench = Bench(hosts=1, max_ejection_percent=100, **fields)
    bench.put(502)
    bench.put(500)  # no gateway failure
    bench.put(504)
    assert bench.ejected() == []
    bench.put(503)
    assert bench.ejected() == [0]
    assert bench.stats.ejections_enforced_consecutive_gateway_failure == 1


def test_enforcing_is_a_percentage() -> None:
    fields: dict[str, Any] = {"consecutive_5xx": 1, "enforcing_consecutive_5xx": 30, "max_ejection_percent": 100}
    assert Bench(hosts=1, random=29, **fields).detector is not None
    inside, outside = Bench(hosts=1, random=29, **fields), Bench(hosts=1, random=30, **fields)
    inside.put(500)
    outside.put(500)
    assert inside.ejected() == [0]
    assert outside.ejected() == []


def test_no_more_than_ten_percent_by_default() -> None:
    bench = Bench(hosts=10)
    bench.put(500, 5, host=0)
    bench.put(500, 5, host=1)
    assert bench.ejected() == [0]
    assert bench.stats.ejections_overflow == 1


def test_a_small_cluster_loses_none_by_default() -> None:
    bench = Bench(hosts=2)
    bench.put(500, 5)
    assert bench.ejected() == []
    assert bench.stats.ejections_overflow == 1


def test_always_eject_one_host() -> None:
    bench = Bench(hosts=2, always_eject_one_host=True)
    bench.put(500, 5, host=0)
    bench.put(500, 5, host=1)
    assert bench.ejected() == [0]


def test_an_ejection_lasts_longer_each_time() -> None:
    bench = Bench(hosts=1, max_ejection_percent=100, consecutive_5xx=1, base_ejection_time="30s")
    for times in (1, 2, 3):
        bench.put(500)
        assert bench.ejected() == [0]
        bench.interval(30.0 * times - 0.5)
        assert bench.ejected() == [0]
        bench.interval(30.0 * times)
        assert bench.ejected() == []


def test_max_ejection_time() -> None:
    fields: dict[str, Any] = {"base_ejection_time": "30s", "max_ejection_time": "40s", "consecutive_5xx": 1}
    bench = Bench(hosts=1, max_ejection_percent=100, **fields)
    for _ in range(5):
        bench.put(500)
        bench.interval(40.0)
        assert bench.ejected() == []


def test_jitter_makes_it_longer() -> None:
    bench = Bench(hosts=1, random=7_000, max_ejection_percent=100, consecutive_5xx=1, max_ejection_time_jitter="10s")
    bench.hosts[0].outlier.ejected = False
    bench.detector.eject(bench.hosts[0], module.CONSECUTIVE_5XX)
    bench.interval(36.9)
    assert bench.ejected() == [0]
    bench.interval(37.0)
    assert bench.ejected() == []


def test_good_behaviour_shortens_the_next_ejection() -> None:
    bench = Bench(hosts=1, max_ejection_percent=100, consecutive_5xx=1)
    bench.put(500)
    bench.interval(30.0)
    monitor = bench.hosts[0].outlier
    assert monitor.backoff == 1
    bench.interval(40.0)  # one interval later
    assert monitor.backoff == 0


def test_a_host_comes_back_without_its_old_failures() -> None:
    fields: dict[str, Any] = {"consecutive_gateway_failure": 10, "enforcing_consecutive_gateway_failure": 100}
    bench = Bench(hosts=1, max_ejection_percent=100, **fields)
    bench.put(503, 5)
    bench.put(503, 4)
    assert bench.ejected() == [0]
    bench.interval(30.0)
    bench.put(503, 1)
    assert bench.ejected() == []
    assert bench.listener.told == [("10.0.0.0", True), ("10.0.0.0", False)]
    assert bench.stats.ejections_active == 0


def test_local_failures_count_as_5xx_unless_they_are_split_off() -> None:
    bench = Bench(hosts=1, max_ejection_percent=100)
    for _ in range(4):
        bench.hosts[0].outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_FAILED)
    bench.hosts[0].outlier.put_local_origin(LOCAL_ORIGIN_CONNECT_SUCCESS)  # says nothing of the response
    bench.hosts[0].outlier.put_timeout()
    assert bench.ejected() == [0]
    assert bench.stats.ejections_enforced_consecutive_5xx == 1


def test_local_failures_split_off() -> None:
    bench = Bench(hosts=1, max_ejection_percent=100, split_external_local_origin_errors=True)
    monitor = bench.hosts[0].outlier
    bench.put(500, 4)
    for _ in range(4):
        monitor.put_timeout()
    monitor.put_local_origin(LOCAL_ORIGIN_CONNECT_SUCCESS)
    for _ in range(4):
        monitor.put_local_origin(LOCAL_ORIGIN_CONNECT_FAILED)
    assert bench.ejected() == []
    monitor.put_local_origin(LOCAL_ORIGIN_CONNECT_FAILED)
    assert bench.ejected() == [0]
    assert bench.stats.ejections_enforced_consecutive_local_origin_failure == 1


def test_success_rate() -> None:
    """{50, 100, 100, 100, 100}: mean 90, deviation 20, threshold 90 − 1.9 × 20 = 52 (the example in Envoy's source)."""
    bench = Bench(hosts=5, max_ejection_percent=50, consecutive_5xx=1000)
    for host in range(5):
        bench.put(200, 50, host)
        bench.put(500 if host == 0 else 200, 50, host)
    bench.interval(1000.0)
    assert bench.detector.averages[0] == pytest.approx(90.0)
    assert bench.detector.thresholds[0] == pytest.approx(52.0)
    assert bench.ejected() == [0]
    assert bench.stats.ejections_enforced_success_rate == 1
    assert bench.hosts[0].outlier.external.rate == pytest.approx(50.0)


@pytest.mark.parametrize(("hosts", "requests"), [(4, 100), (5, 99)])
def test_success_rate_needs_hosts_and_requests(hosts: int, requests: int) -> None:
    bench = Bench(hosts=hosts, max_ejection_percent=50, consecutive_5xx=1000)
    for host in range(hosts):
        bench.put(500 if host == 0 else 200, requests, host)
    bench.interval(1000.0)
    assert bench.ejected() == []


def test_failure_percentage() -> None:
    fields: dict[str, Any] = {
        "enforcing_failure_percentage": 100,
        "enforcing_success_rate": 0,
        "failure_percentage_minimum_hosts": 1,
    }
    bench = Bench(hosts=2, max_ejection_percent=50, consecutive_5xx=1000, **fields)
    bench.put(500, 85)
    bench.put(200, 15)
    bench.put(200, 100, host=1)
    bench.interval(1000.0)
    assert bench.ejected() == [0]
    assert bench.stats.ejections_enforced_failure_percentage == 1


def test_old_requests_do_not_count() -> None:
    bench = Bench(hosts=5, max_ejection_percent=50, consecutive_5xx=1000)
    for host in range(5):
        bench.put(200, 100, host)
    bench.interval(1000.0)
    for host in range(5):
        bench.put(500 if host == 0 else 200, 50, host)  # too few in this interval
    bench.interval(2000.0)
    assert bench.ejected() == []


def test_hosts_that_go_are_forgotten() -> None:
    bench = Bench(hosts=2, max_ejection_percent=50)
    bench.put(500, 5)
    assert bench.stats.ejections_active == 1
    bench.detector.set_hosts(bench.hosts[1:])
    assert bench.stats.ejections_active == 0
    bench.put(500, 100)  # a stream that was still running
    assert bench.stats.ejections_detected_consecutive_5xx == 1


def test_the_interval_timer() -> None:
    bench = Bench(hosts=1, max_ejection_percent=100, consecutive_5xx=1, base_ejection_time="0.001s", interval="10s")
    bench.detector.start()
    bench.put(500)
    deadline_ms = bench.detector.deadline * 4
    bench.wheel.advance(deadline_ms - 8)
    assert bench.ejected() == [0]
    bench.hosts[0].outlier.ejected_at -= 1.0
    bench.wheel.advance(deadline_ms)
    assert bench.ejected() == []
    assert bench.detector.armed
    bench.detector.stop()
    assert not bench.detector.armed


class Broken(EjectionListener):
    def on_ejection_changed(self, host: Host) -> None:
        raise ValueError("oh")


def test_the_interval_timer_goes_on_when_a_listener_fails() -> None:
    bench = Bench(hosts=1, max_ejection_percent=100, consecutive_5xx=1)
    bench.put(500)
    detector = bench.detector
    failing = OutlierDetector(detector.config, bench.stats, bench.wheel, Broken(), lambda _bits: 0)
    bench.hosts[0].outlier.ejected_at -= 1000.0
    failing.set_hosts(bench.hosts)
    with pytest.raises(ValueError, match="oh"):
        failing.on_timer()
    assert failing.armed


def chosen(cluster: Cluster) -> set[Host | None]:
    return {cluster.choose_for_own(None) for _ in range(20)}


@pytest.mark.parametrize("hosts", [3, 1001])
async def test_hosts_that_are_ejected_and_let_back_in_one_turn(hosts: int) -> None:
    """Where the table of a cluster is built beside the traffic."""
    endpoints = [endpoint(f"10.0.{i // 250}.{i % 250}") for i in range(hosts)]
    detection = {"consecutive_5xx": 1, "max_ejection_percent": 100, "max_ejection_time_jitter": "0s"}
    policy = "MAGLEV" if hosts == 3 else "ROUND_ROBIN"
    no_panic = {"healthy_panic_threshold": {"value": 0}}
    async with world() as w:
        fields = cluster_dict(*endpoints, lb_policy=policy, outlier_detection=detection, common_lb_config=no_panic)
        cluster = w.add(fields)
        *failing, last = cluster.hosts
        for host in failing:
            host.outlier.put_response(500)
        await until(lambda: chosen(cluster) == {last})
        assert cluster.stats.membership_healthy == 1
        assert cluster.detector is not None
        cluster.detector.on_interval(failing[-1].outlier.ejected_at + 1000.0)
        assert cluster.stats.membership_healthy == hosts
        await until(lambda: chosen(cluster) != {last})


def test_thresholds_are_runtime_keys() -> None:
    runtime = Runtime()
    config = build(cluster_dict(endpoint("10.0.0.1"), outlier_detection={}), runtime)
    assert config.outlier is not None
    assert config.outlier.consecutive_5xx.key == "outlier_detection.consecutive_5xx"
    assert config.outlier.base_ejection_time_ms.key == "outlier_detection.base_ejection_time_ms"
