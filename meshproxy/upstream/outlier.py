"""Outlier detection: a host that fails is ejected from load balancing for a while.

An `OutlierMonitor` sits on every host and is told of each result; the `OutlierDetector` of the cluster ejects, compares
success rates once an interval, and lets hosts back. The rules are those of Envoy's arch_overview/upstream/outlier and
of config.cluster.v3.OutlierDetection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from meshproxy.clock import monotonic
from meshproxy.config.runtime import RuntimeInt
from meshproxy.net.timers import Timer, TimerWheel
from meshproxy.upstream.stats import OutlierStats

if TYPE_CHECKING:
    from meshproxy.upstream.host import Host

# What ejects (data.cluster.v3.OutlierEjectionType).
CONSECUTIVE_5XX: Final = 0
CONSECUTIVE_GATEWAY_FAILURE: Final = 1
SUCCESS_RATE: Final = 2
CONSECUTIVE_LOCAL_ORIGIN_FAILURE: Final = 3
LOCAL_ORIGIN_SUCCESS_RATE: Final = 4
FAILURE_PERCENTAGE: Final = 5
LOCAL_ORIGIN_FAILURE_PERCENTAGE: Final = 6

# What befell a request on our side of the wire, whatever the host may have answered.
LOCAL_ORIGIN_TIMEOUT: Final = 0
LOCAL_ORIGIN_CONNECT_FAILED: Final = 1  # a connection that failed, or broke before the response
LOCAL_ORIGIN_CONNECT_SUCCESS: Final = 2

NO_RATE: Final = -1.0


class OutlierConfig:
    """`OutlierDetection`. Every number may be overridden by its runtime key, `outlier_detection.<field>`."""

    def __init__(self, ints: dict[str, RuntimeInt], split_local_origin: bool, always_eject_one_host: bool) -> None:
        self.split_local_origin = split_local_origin
        self.always_eject_one_host = always_eject_one_host
        self.interval_ms = ints["interval_ms"]
        self.base_ejection_time_ms = ints["base_ejection_time_ms"]
        self.max_ejection_time_ms = ints["max_ejection_time_ms"]
        self.max_ejection_time_jitter_ms = ints["max_ejection_time_jitter_ms"]
        self.max_ejection_percent = ints["max_ejection_percent"]
        self.consecutive_5xx = ints["consecutive_5xx"]
        self.consecutive_gateway_failure = ints["consecutive_gateway_failure"]
        self.consecutive_local_origin_failure = ints["consecutive_local_origin_failure"]
        self.success_rate_minimum_hosts = ints["success_rate_minimum_hosts"]
        self.success_rate_request_volume = ints["success_rate_request_volume"]
        self.success_rate_stdev_factor = ints["success_rate_stdev_factor"]
        self.failure_percentage_threshold = ints["failure_percentage_threshold"]
        self.failure_percentage_minimum_hosts = ints["failure_percentage_minimum_hosts"]
        self.failure_percentage_request_volume = ints["failure_percentage_request_volume"]
        # by the type of ejection: how many percent of the detected ones are carried out
        self.enforcing: list[RuntimeInt] = [
            ints["enforcing_consecutive_5xx"],
            ints["enforcing_consecutive_gateway_failure"],
            ints["enforcing_success_rate"],
            ints["enforcing_consecutive_local_origin_failure"],
            ints["enforcing_local_origin_success_rate"],
            ints["enforcing_failure_percentage"],
            ints["enforcing_failure_percentage_local_origin"],
        ]


class RateMonitor:
    """Successes out of all, in this interval and in the last; `rate` in percent, `NO_RATE` when there were too few."""

    def __init__(self) -> None:
        self.total: int = 0
        self.success: int = 0
        self.last_total: int = 0
        self.last_success: int = 0
        self.rate: float = NO_RATE

    def turn(self) -> None:
        """The interval is over."""
        self.last_total, self.last_success = self.total, self.success
        self.total = self.success = 0
        self.rate = NO_RATE


class OutlierMonitor:
    """The results of one host. Without a detector it takes no notice of them."""

    def __init__(self) -> None:
        self._detector: OutlierDetector | None = None
        self._host: Host | None = None
        self.split: bool = False
        self.consecutive_5xx: int = 0
        self.consecutive_gateway_failure: int = 0
        self.consecutive_local_origin_failure: int = 0
        self.external = RateMonitor()
        self.local = RateMonitor()
        self.ejected: bool = False
        self.backoff: int = 0  # how many times the base ejection time the next ejection lasts
        self.ejected_at: float = 0.0  # monotonic seconds
        self.unejected_at: float = -1.0  # -1: never
        self.jitter_ms: int = 0

    def attach(self, detector: OutlierDetector | None, host: Host) -> None:
        self._detector = detector
        self._host = host
        self.split = detector is not None and detector.config.split_local_origin

    def put_response(self, status: int) -> None:
        """The host answered (or a status stands for what befell the request, when local failures are not split off)."""
        detector = self._detector
        if detector is None:
            return
        external = self.external
        external.total += 1
        if status < 500 or status > 599:
            external.success += 1
            self.consecutive_5xx = 0
            self.consecutive_gateway_failure = 0
            return
        config = detector.config
        if 502 <= status <= 504:
            self.consecutive_gateway_failure += 1
            if self.consecutive_gateway_failure == config.consecutive_gateway_failure.value:
                self.consecutive_gateway_failure = 0
                detector.on_consecutive_failures(self._the_host(), CONSECUTIVE_GATEWAY_FAILURE)
        else:
            self.consecutive_gateway_failure = 0
        self.consecutive_5xx += 1
        if self.consecutive_5xx == config.consecutive_5xx.value:
            self.consecutive_5xx = 0
            detector.stats.ejections_consecutive_5xx += 0 if self.ejected else 1
            detector.on_consecutive_failures(self._the_host(), CONSECUTIVE_5XX)

    def put_timeout(self) -> None:
        """The request timed out on our side."""
        self.put_local_origin(LOCAL_ORIGIN_TIMEOUT)

    def put_local_origin(self, result: int) -> None:
        """One of LOCAL_ORIGIN_*. Unless local failures are split off they count as a 503 or 504 of the host."""
        detector = self._detector
        if detector is None:
            return
        if not self.split:
            if result != LOCAL_ORIGIN_CONNECT_SUCCESS:
                self.put_response(504 if result == LOCAL_ORIGIN_TIMEOUT else 503)
            return
        self.local.total += 1
        if result == LOCAL_ORIGIN_CONNECT_SUCCESS:
            self.local.success += 1
            self.consecutive_local_origin_failure = 0
            return
        self.consecutive_local_origin_failure += 1
        if self.consecutive_local_origin_failure == detector.config.consecutive_local_origin_failure.value:
            self.consecutive_local_origin_failure = 0
            detector.on_consecutive_failures(self._the_host(), CONSECUTIVE_LOCAL_ORIGIN_FAILURE)

    def _the_host(self) -> Host:
        host = self._host
        assert host is not None
        return host

    def forget_failures(self) -> None:
        """A host that comes back starts afresh."""
        self.consecutive_5xx = self.consecutive_gateway_failure = self.consecutive_local_origin_failure = 0


@mypyc_attr(allow_interpreted_subclasses=True)
class EjectionListener:
    """Told when a host was ejected or let back."""

    def on_ejection_changed(self, host: Host) -> None:
        raise NotImplementedError


class OutlierDetector(Timer):
    """Ejects the hosts of one cluster. It is its own interval timer."""

    def __init__(
        self,
        config: OutlierConfig,
        stats: OutlierStats,
        timers: TimerWheel,
        listener: EjectionListener,
        random_bits: Callable[[int], int],
    ) -> None:
        super().__init__()
        self.config = config
        self.stats = stats
        self._timers = timers
        self._listener = listener
        self._random_bits = random_bits
        self._hosts: list[Host] = []
        self._ejected: int = 0
        # of the last interval, for the external and the local origin: average and threshold of the success rates
        self.averages: list[float] = [NO_RATE, NO_RATE]
        self.thresholds: list[float] = [NO_RATE, NO_RATE]

    def start(self) -> None:
        self._timers.arm(self, float(self.config.interval_ms.value))

    def stop(self) -> None:
        self.disarm()
        self.set_hosts([])

    def set_hosts(self, hosts: list[Host]) -> None:
        """The cluster's hosts from now on."""
        staying = set(hosts)
        for host in self._hosts:
            if host not in staying:
                host.outlier.attach(None, host)
                if host.outlier.ejected:
                    self._count_ejected(-1)
        known = set(self._hosts)
        for host in hosts:
            if host not in known:
                host.outlier.attach(self, host)
                if host.outlier.ejected:
                    self._count_ejected(1)
        self._hosts = hosts

    def _count_ejected(self, change: int) -> None:
        self._ejected += change
        self.stats.ejections_active += change

    # -- ejecting

    def on_consecutive_failures(self, host: Host, kind: int) -> None:
        if not host.outlier.ejected:
            self._detected(kind)
            self.eject(host, kind)

    def _detected(self, kind: int) -> None:
        stats = self.stats
        if kind == CONSECUTIVE_5XX:
            stats.ejections_detected_consecutive_5xx += 1
        elif kind == CONSECUTIVE_GATEWAY_FAILURE:
            stats.ejections_detected_consecutive_gateway_failure += 1
        elif kind == SUCCESS_RATE:
            stats.ejections_detected_success_rate += 1
        elif kind == CONSECUTIVE_LOCAL_ORIGIN_FAILURE:
            stats.ejections_detected_consecutive_local_origin_failure += 1
        elif kind == LOCAL_ORIGIN_SUCCESS_RATE:
            stats.ejections_detected_local_origin_success_rate += 1
        elif kind == FAILURE_PERCENTAGE:
            stats.ejections_detected_failure_percentage += 1
        else:
            stats.ejections_detected_local_origin_failure_percentage += 1

    def _enforced(self, kind: int) -> None:
        stats = self.stats
        stats.ejections_enforced_total += 1
        if kind == CONSECUTIVE_5XX:
            stats.ejections_enforced_consecutive_5xx += 1
        elif kind == CONSECUTIVE_GATEWAY_FAILURE:
            stats.ejections_enforced_consecutive_gateway_failure += 1
        elif kind == SUCCESS_RATE:
            stats.ejections_enforced_success_rate += 1
        elif kind == CONSECUTIVE_LOCAL_ORIGIN_FAILURE:
            stats.ejections_enforced_consecutive_local_origin_failure += 1
        elif kind == LOCAL_ORIGIN_SUCCESS_RATE:
            stats.ejections_enforced_local_origin_success_rate += 1
        elif kind == FAILURE_PERCENTAGE:
            stats.ejections_enforced_failure_percentage += 1
        else:
            stats.ejections_enforced_local_origin_failure_percentage += 1

    def eject(self, host: Host, kind: int) -> None:
        """Eject the host, unless too many are out already or this kind is not (always) enforced."""
        config = self.config
        percent = 100.0 * (self._ejected + 1) / len(self._hosts)
        if percent > min(100, config.max_ejection_percent.value):
            if not config.always_eject_one_host or self._ejected > 0:
                self.stats.ejections_overflow += 1
                return
        if kind in (CONSECUTIVE_5XX, SUCCESS_RATE):
            self.stats.ejections_total += 1  # deprecated in Envoy, yet shown
        if self._random_bits(30) % 100 >= config.enforcing[kind].value:
            return
        self._enforced(kind)
        self._count_ejected(1)
        self._put_out(host.outlier)
        self._listener.on_ejection_changed(host)

    def _put_out(self, monitor: OutlierMonitor) -> None:
        config = self.config
        monitor.ejected = True
        monitor.ejected_at = monotonic()
        monitor.jitter_ms = self._random_bits(30) % (config.max_ejection_time_jitter_ms.value + 1)
        base = config.base_ejection_time_ms.value
        if monitor.backoff * base < config.max_ejection_time_ms.value + base:
            monitor.backoff += 1

    # -- once an interval

    def on_timer(self) -> None:
        try:
            self.on_interval(monotonic())
        finally:
            self._timers.arm(self, float(self.config.interval_ms.value))

    def on_interval(self, now: float) -> None:
        """Let hosts back whose time is over, and compare the success rates of the interval that ends at `now`."""
        for host in self._hosts.copy():
            monitor = host.outlier
            if monitor.ejected and (now - monitor.ejected_at) * 1000.0 >= self._ejection_ms(monitor):
                self._let_back(host, now)
            monitor.external.turn()
            monitor.local.turn()
        self._compare_rates(False)
        self._compare_rates(True)
        interval_s = self.config.interval_ms.value / 1000.0
        for host in self._hosts:
            monitor = host.outlier
            if not monitor.ejected and monitor.unejected_at >= 0.0 and now - monitor.unejected_at >= interval_s:
                if monitor.backoff > 0:
                    monitor.backoff -= 1

    def _ejection_ms(self, monitor: OutlierMonitor) -> int:
        config = self.config
        lasts = min(config.base_ejection_time_ms.value * monitor.backoff, config.max_ejection_time_ms.value)
        return lasts + monitor.jitter_ms

    def _let_back(self, host: Host, now: float) -> None:
        monitor = host.outlier
        monitor.ejected = False
        monitor.unejected_at = now
        monitor.forget_failures()
        self._count_ejected(-1)
        self._listener.on_ejection_changed(host)

    def _compare_rates(self, local: bool) -> None:
        config = self.config
        origin = 1 if local else 0
        self.averages[origin] = self.thresholds[origin] = NO_RATE
        by_rate: list[Host] = []
        by_percentage: list[Host] = []
        for host in self._hosts:
            monitor = host.outlier
            rates = monitor.local if local else monitor.external
            if monitor.ejected or rates.last_total == 0:
                continue
            rate = rates.last_success * 100.0 / rates.last_total
            if rates.last_total >= config.success_rate_request_volume.value:
                rates.rate = rate
                by_rate.append(host)
            if rates.last_total >= config.failure_percentage_request_volume.value:
                rates.rate = rate
                by_percentage.append(host)
        if by_rate and len(by_rate) >= config.success_rate_minimum_hosts.value:
            self._eject_below_average(by_rate, local)
        if by_percentage and len(by_percentage) >= config.failure_percentage_minimum_hosts.value:
            self._eject_failing(by_percentage, local)

    def _eject_below_average(self, hosts: list[Host], local: bool) -> None:
        """Hosts whose success rate is more than so many standard deviations below the mean."""
        rates = [_rate(host, local) for host in hosts]
        mean = sum(rates) / len(rates)
        deviation = math.sqrt(sum([(rate - mean) ** 2 for rate in rates]) / len(rates))
        threshold = mean - deviation * self.config.success_rate_stdev_factor.value / 1000.0
        origin = 1 if local else 0
        self.averages[origin] = mean
        self.thresholds[origin] = threshold
        kind = LOCAL_ORIGIN_SUCCESS_RATE if local else SUCCESS_RATE
        for host in hosts:
            if _rate(host, local) < threshold:
                self.stats.ejections_success_rate += 1
                self._detected(kind)
                self.eject(host, kind)

    def _eject_failing(self, hosts: list[Host], local: bool) -> None:
        """Hosts that fail so many percent of their requests."""
        kind = LOCAL_ORIGIN_FAILURE_PERCENTAGE if local else FAILURE_PERCENTAGE
        for host in hosts:
            if 100.0 - _rate(host, local) >= self.config.failure_percentage_threshold.value:
                self._detected(kind)
                if not host.outlier.ejected:
                    self.eject(host, kind)


def _rate(host: Host, local: bool) -> float:
    monitor = host.outlier
    return monitor.local.rate if local else monitor.external.rate
