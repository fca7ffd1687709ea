"""The fault filter. What is expected was recorded from Envoy 1.40 on the same configuration and requests."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault

from meshproxy import is_compiled
from meshproxy.codec.headers import HeaderMap
from meshproxy.filters.http import fault
from meshproxy.observe.response_flags import short_names
from meshproxy.observe.stream_info import StreamInfo
from tests.http.harness import Downstream, Harness, ScriptedUpstream, get, head, parse

ALL = {"numerator": 100}
NONE = {"numerator": 0}
ABORT = {"http_status": 418, "percentage": ALL}
DELAY = {"fixed_delay": "0.1s", "percentage": ALL}
BY_HEADER = {"delay": {"header_delay": {}, "percentage": ALL}, "abort": {"header_abort": {}, "percentage": ALL}}
PASSED = head("200 OK", ("content-length", "0"))
ABORTED = head("418 Unknown", ("content-length", "18"), ("content-type", "text/plain"), body="fault filter abort")
SERVICE = ("x-envoy-downstream-service-cluster", "svc")


def per_filter(config: dict[str, Any]) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
    return {"typed_per_filter_config": {"fault": {"@type": kind, **config}}}


ROUTES = {
    "virtual_hosts": [
        {
            "name": "v",
            "domains": ["*"],
            "routes": [
                {
                    "match": {"prefix": "/over"},
                    "route": {"cluster": "a"},
                    **per_filter({"abort": {"http_status": 503, "percentage": ALL}}),
                },
                {"match": {"prefix": "/none"}, "route": {"cluster": "a"}, **per_filter({})},
                {"match": {"prefix": "/b"}, "route": {"cluster": "b"}},
                {"match": {"prefix": "/d"}, "direct_response": {"status": 200}},
                {"match": {"prefix": "/a"}, "route": {"cluster": "a"}},
            ],
        }
    ]
}


class Faulty(Harness):
    """A chain with a fault filter of this configuration."""

    def __init__(self, runtime: dict[str, Any] | None = None, **config: Any) -> None:
        super().__init__(ROUTES, runtime=runtime, upstream=ScriptedUpstream([(b":status", b"200")]))
        self.filter = fault.build_fault(parse(config, HTTPFault()), "f", self.context)
        assert not self.errors, str(self.errors)
        self.add(self.filter, "fault")

    def counted(self) -> dict[str, int]:
        """Every stat that is not zero."""
        stats = self.filter.stats
        names = (*stats.COUNTERS, *stats.GAUGES)
        return {name: getattr(stats, name) for name in names if getattr(stats, name)} | stats.dynamic


def info_of(made: Harness) -> StreamInfo:
    return made.upstream.streams[-1].info


# -- aborts


@pytest.mark.parametrize("path", ["/a", "/d", "/nowhere"])
def test_an_abort(path: str) -> None:
    made = Faulty(abort=ABORT)
    assert made.exchange(get(path)) == ABORTED
    assert made.upstream.seen == []
    assert made.counted() == {"aborts_injected": 1}


def test_an_abort_of_a_head_request_has_no_body() -> None:
    assert Faulty(abort=ABORT).exchange(get("/a", method="HEAD")) == ABORTED.removesuffix(b"fault filter abort")


def test_flags_and_details_of_an_abort() -> None:
    made = Faulty(abort=ABORT)
    infos: list[StreamInfo] = []

    class Log(ScriptedUpstream):
        def on_stream_done(self, stream: Any) -> None:
            infos.append(stream.info)

    made.upstream = Log()
    made.exchange(get("/a"))
    assert short_names(infos[0].response_flags) == "FI"
    assert infos[0].response_code_details == "fault_filter_abort"


def test_the_route_has_its_own_faults_or_none() -> None:
    made = Faulty(abort=ABORT)
    assert made.exchange(get("/over")).startswith(b"HTTP/1.1 503 ")
    assert made.exchange(get("/none")) == PASSED


@pytest.mark.parametrize("abort", [{"http_status": 418}, {"http_status": 418, "percentage": NONE}])
def test_a_share_of_nothing(abort: dict[str, Any]) -> None:
    made = Faulty(abort=abort, delay={"fixed_delay": "1s", "percentage": NONE})
    assert made.exchange(get("/a")) == PASSED
    assert made.counted() == {}


def test_a_share_is_met_over_many_requests() -> None:
    made = Faulty(abort={"http_status": 418, "percentage": {"numerator": 300_000, "denominator": "MILLION"}})
    config = made.config()
    aborted = sum(made.connect(config).send(get("/a")) == ABORTED for _ in range(2_000))
    assert 480 < aborted < 720  # 30 % of 2,000 is 600; a standard deviation is 20.5


@pytest.mark.parametrize(
    ("content_type", "status", "expected"),
    [
        ("", 5, ABORTED.replace(b"418 Unknown", b"200 OK")),
        (
            "application/grpc",
            5,
            head(
                "200 OK",
                ("content-type", "application/grpc"),
                ("grpc-status", "5"),
                ("grpc-message", "fault filter abort"),
                ("content-length", "0"),
            ),
        ),
    ],
)
def test_a_grpc_abort(content_type: str, status: int, expected: bytes) -> None:
    fields = [("content-type", content_type)] if content_type else []
    made = Faulty(abort={"grpc_status": status, "percentage": ALL})
    assert made.exchange(get("/a", *fields)) == expected


def test_an_http_abort_of_a_grpc_request_is_a_grpc_answer() -> None:
    answer = Faulty(abort=ABORT).exchange(get("/a", ("content-type", "application/grpc+proto")))
    assert b"grpc-status: 2\r\ngrpc-message: fault filter abort\r\n" in answer


# -- which requests


@pytest.mark.parametrize(("path", "hit"), [("/b", True), ("/a", False), ("/d", False), ("/nowhere", False)])
def test_only_for_an_upstream_cluster(path: str, hit: bool) -> None:
    assert (Faulty(abort=ABORT, upstream_cluster="b").exchange(get(path)) == ABORTED) == hit


@pytest.mark.parametrize(("node", "hit"), [("n1", True), ("n2", True), ("n3", False), ("", False)])
def test_only_for_downstream_nodes(node: str, hit: bool) -> None:
    fields = [("x-envoy-downstream-service-node", node)] if node else []
    made = Faulty(abort=ABORT, downstream_nodes=["n1", "n2"])
    # Nobody is internal in this configuration; without use_remote_address the node's name still passes.
    assert (made.exchange(get("/a", *fields)) == ABORTED) == hit


@pytest.mark.parametrize(("value", "hit"), [("1", True), ("2", False)])
def test_only_with_headers(value: str, hit: bool) -> None:
    made = Faulty(abort=ABORT, headers=[{"name": "x-f", "string_match": {"exact": "1"}}])
    assert (made.exchange(get("/a", ("x-f", value))) == ABORTED) == hit


# -- delays


def delayed(made: Faulty, request: bytes) -> Downstream:
    """A connection on which the request is being delayed."""
    downstream = made.connect()
    assert downstream.send(request) == b""
    return downstream


def test_a_delay() -> None:
    made = Faulty(delay=DELAY)
    downstream = delayed(made, get("/a"))
    assert made.counted() == {"delays_injected": 1, "active_faults": 1}
    made.advance(90)
    assert downstream.received() == b""
    made.advance(120)
    assert downstream.received() == PASSED
    assert short_names(info_of(made).response_flags) == "DI"
    assert made.counted() == {"delays_injected": 1}


def test_an_abort_after_a_delay() -> None:
    made = Faulty(delay=DELAY, abort=ABORT)
    downstream = delayed(made, get("/a"))
    made.advance(120)
    assert downstream.received() == ABORTED
    assert made.counted() == {"delays_injected": 1, "aborts_injected": 1}


def test_a_delay_ends_with_its_stream() -> None:
    made = Faulty(delay=DELAY)
    downstream = delayed(made, get("/a"))
    downstream.leave()
    assert made.counted() == {"delays_injected": 1}
    made.advance(200)
    assert made.upstream.seen == []
    assert made.upstream.done == 1


def test_a_delay_of_less_than_a_millisecond_is_none() -> None:
    made = Faulty(delay={"fixed_delay": "0.0001s", "percentage": ALL})
    assert made.exchange(get("/a")) == PASSED
    assert made.counted() == {}


def test_no_more_faults_at_a_time_than_allowed() -> None:
    made = Faulty(delay=DELAY, max_active_faults=1)
    config = made.config()
    first = made.connect(config)
    assert first.send(get("/a")) == b""
    assert made.connect(config).send(get("/a")) == PASSED
    assert made.counted() == {"delays_injected": 1, "active_faults": 1, "faults_overflow": 1}
    made.advance(120)
    assert first.received() == PASSED
    assert made.connect(config).send(get("/a")) == b""


def test_no_faults_allowed_at_all() -> None:
    made = Faulty(abort=ABORT, max_active_faults=0)
    assert made.exchange(get("/a")) == PASSED
    assert made.counted() == {"faults_overflow": 1}


# -- faults by header


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        ({"abort-request": "503"}, 503),
        ({"abort-request": "+503"}, 503),
        ({"abort-request": "0503"}, 503),
        ({"abort-request": "599"}, 599),
        ({"abort-request": "199"}, 200),
        ({"abort-request": "600"}, 200),
        ({"abort-request": "x"}, 200),
        ({"abort-request": "503", "abort-request-percentage": "0"}, 200),
        ({"abort-request": "503", "abort-request-percentage": "100"}, 503),
        ({"abort-request": "503", "abort-request-percentage": "200"}, 503),
        ({"abort-request": "503", "abort-request-percentage": "junk"}, 503),
        ({"abort-request": "503", "abort-grpc-request": "5"}, 503),
    ],
)
def test_an_abort_by_header(fields: dict[str, str], status: int) -> None:
    made = Faulty(**BY_HEADER)
    answer = made.exchange(get("/a", *((f"x-envoy-fault-{name}", value) for name, value in fields.items())))
    assert int(answer.split(b" ", 2)[1]) == status
    assert bool(made.upstream.seen) == (status == 200)


@pytest.mark.parametrize(("http", "grpc", "code"), [("", "5", 5), ("", "99", 99), ("5", "7", 7)])
def test_a_grpc_abort_by_header(http: str, grpc: str, code: int) -> None:
    """An HTTP status out of range counts as none."""
    fields = [("content-type", "application/grpc"), ("x-envoy-fault-abort-grpc-request", grpc)]
    if http:
        fields.append(("x-envoy-fault-abort-request", http))
    assert f"grpc-status: {code}\r\n".encode() in Faulty(**BY_HEADER).exchange(get("/a", *fields))


@pytest.mark.parametrize("value", ["0", "abc", "5.0", "0x10", "1e2", "-1", ""])
def test_what_is_no_duration_delays_nothing(value: str) -> None:
    assert Faulty(**BY_HEADER).exchange(get("/a", ("x-envoy-fault-delay-request", value))) == PASSED


@pytest.mark.parametrize("value", ["120", "00120", "+120"])
def test_a_delay_by_header_goes_on_to_the_upstream(value: str) -> None:
    made = Faulty(**BY_HEADER)
    downstream = delayed(made, get("/a", ("x-envoy-fault-delay-request", value)))
    made.advance(100)
    assert downstream.received() == b""
    made.advance(140)
    assert downstream.received() == PASSED
    assert (b"x-envoy-fault-delay-request", value.encode()) in made.upstream.seen[0]


def test_headers_do_nothing_where_the_share_is_nothing() -> None:
    made = Faulty(abort={"header_abort": {}})
    fields = [("x-envoy-fault-abort-request", "503"), ("x-envoy-fault-abort-request-percentage", "100")]
    assert made.exchange(get("/a", *fields)) == PASSED


def test_a_header_may_only_lower_the_share() -> None:
    made = Faulty(abort={"header_abort": {}, "percentage": {"numerator": 500_000, "denominator": "MILLION"}})
    config = made.config()

    def aborted(percentage: str) -> int:
        fields = [("x-envoy-fault-abort-request", "418"), ("x-envoy-fault-abort-request-percentage", percentage)]
        return sum(made.connect(config).send(get("/a", *fields)) == ABORTED for _ in range(1_000))

    assert 400 < aborted("1000000") < 600
    assert aborted("0") == 0
    assert 50 < aborted("100000") < 150  # in the configuration's denominator


# -- runtime


def test_runtime_overrides_by_the_general_keys() -> None:
    assert Faulty({"fault.http.abort.abort_percent": 0}, abort=ABORT).exchange(get("/a")) == PASSED
    assert Faulty({"k": 0}, abort=ABORT, abort_percent_runtime="k").exchange(get("/a")) == PASSED
    status = Faulty({"fault.http.abort.http_status": 499}, abort=ABORT).exchange(get("/a"))
    assert status.startswith(b"HTTP/1.1 499 ")
    made = Faulty({"fault.http.delay.fixed_duration_ms": 50}, delay=DELAY)
    downstream = delayed(made, get("/a"))
    made.advance(70)
    assert downstream.received() == PASSED


@pytest.mark.parametrize(("percent", "hit"), [(0, False), (100, True)])
def test_runtime_overrides_by_the_downstream_cluster(percent: int, hit: bool) -> None:
    made = Faulty(
        {"fault.http.svc.abort.abort_percent": percent}, abort={"http_status": 418, "percentage": NONE if hit else ALL}
    )
    assert (made.exchange(get("/a", SERVICE)) == ABORTED) == hit
    assert (made.exchange(get("/a")) == ABORTED) != hit


def test_the_key_of_the_cluster_stands_in_for_the_general_one() -> None:
    made = Faulty({"k": 100}, abort={"http_status": 418, "percentage": NONE}, abort_percent_runtime="k")
    assert made.exchange(get("/a")) == ABORTED
    assert made.exchange(get("/a", SERVICE)) == PASSED


def test_the_status_and_the_duration_of_a_downstream_cluster() -> None:
    made = Faulty({"fault.http.svc.abort.http_status": 444}, abort=ABORT)
    assert made.exchange(get("/a", SERVICE)).startswith(b"HTTP/1.1 444 ")
    grpc = Faulty({"fault.http.svc.abort.grpc_status": 7}, abort={"grpc_status": 5, "percentage": ALL})
    assert b"grpc-status: 7\r\n" in grpc.exchange(get("/a", SERVICE, ("content-type", "application/grpc")))
    slow = Faulty({"fault.http.svc.delay.fixed_duration_ms": 70}, **BY_HEADER)
    downstream = delayed(slow, get("/a", SERVICE, ("x-envoy-fault-delay-request", "500")))
    slow.advance(90)
    assert downstream.received() == PASSED


def test_stats_by_downstream_cluster() -> None:
    made = Faulty(abort=ABORT)
    made.exchange(get("/a", SERVICE))
    made.exchange(get("/a", ("x-envoy-downstream-service-cluster", "we.ird:name")))
    made.exchange(get("/a", ("x-envoy-downstream-service-cluster", "")))
    assert made.counted() == {"aborts_injected": 3, "svc.aborts_injected": 1, "we.ird:name.aborts_injected": 1}
    without = Faulty(abort=ABORT, disable_downstream_cluster_stats=True)
    without.exchange(get("/a", SERVICE))
    assert without.counted() == {"aborts_injected": 1}


# -- the response's rate


class Clock:
    """Time for the limiter and the timers, in seconds."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    if is_compiled():
        pytest.skip("a compiled module's clock cannot be replaced")
    made = Clock()
    monkeypatch.setattr("meshproxy.filters.http.fault.monotonic", made)
    monkeypatch.setattr("meshproxy.net.timers.monotonic", made)
    monkeypatch.setattr("tests.http.harness.monotonic", made)
    return made


LIMIT = {"fixed_limit": {"limit_kbps": 10}, "percentage": ALL}


def pass_time(made: Harness, clock: Clock, milliseconds: int) -> None:
    clock.now += milliseconds / 1000.0
    made.advance(0)


def answer_slowly(made: Harness, body: bytes) -> Downstream:
    """Begin an answer with this body; its head is out already."""
    made.upstream.answer_fields = None
    downstream = made.connect()
    downstream.send(get("/a", ("x-envoy-fault-throughput-response", "10")))
    stream = made.upstream.streams[-1]
    stream.send_response_headers(HeaderMap([(b":status", b"200"), (b"content-length", b"%d" % len(body))]), False)
    stream.send_response_data(body, True)
    return downstream


@pytest.mark.parametrize("limit", [LIMIT, {"header_limit": {}, "percentage": ALL}], ids=["fixed", "header"])
def test_a_response_passes_in_slices_of_a_twentieth_of_a_second(clock: Clock, limit: dict[str, Any]) -> None:
    made = Faulty(response_rate_limit=limit)
    downstream = answer_slowly(made, b"x" * 1_200)
    assert downstream.received() == head("200 OK", ("content-length", "1200")) + b"x" * 512
    pass_time(made, clock, 40)
    assert downstream.received() == b""
    pass_time(made, clock, 20)
    assert downstream.received() == b"x" * 512
    assert made.upstream.done == 0
    pass_time(made, clock, 60)
    assert downstream.received() == b"x" * 176
    assert made.upstream.done == 1
    assert made.counted() == {"response_rl_injected": 1}


def test_a_small_response_is_not_held_up(clock: Clock) -> None:
    downstream = answer_slowly(Faulty(response_rate_limit=LIMIT), b"y" * 512)
    assert downstream.received().endswith(b"y" * 512)


def test_what_was_not_used_in_a_second_may_be_used_later(clock: Clock) -> None:
    made = Faulty(response_rate_limit=LIMIT)
    made.upstream.answer_fields = None
    downstream = made.connect()
    downstream.send(get("/a"))
    stream = made.upstream.streams[-1]
    stream.send_response_headers(HeaderMap([(b":status", b"200"), (b"content-length", b"20480")]), False)
    clock.now += 5.0
    downstream.received()
    stream.send_response_data(b"z" * 20_480, True)
    assert downstream.received() == b"z" * 10_240  # a second's worth, not five


def test_trailers_wait_for_the_body(clock: Clock) -> None:
    made = Faulty(response_rate_limit=LIMIT)
    made.upstream.answer_fields = None
    downstream = made.connect()
    downstream.send(get("/a"))
    stream = made.upstream.streams[-1]
    stream.send_response_headers(HeaderMap([(b":status", b"200")]), False)
    stream.send_response_data(b"x" * 600, False)
    stream.send_response_trailers(HeaderMap([(b"st", b"1")]))
    assert b"st: 1" not in downstream.received()
    pass_time(made, clock, 60)
    assert downstream.received() == b"58\r\n" + b"x" * 88 + b"\r\n0\r\nst: 1\r\n\r\n"


def test_a_downstream_that_leaves_ends_the_limiter(clock: Clock) -> None:
    made = Faulty(response_rate_limit=LIMIT)
    downstream = answer_slowly(made, b"x" * 1_200)
    downstream.leave()
    pass_time(made, clock, 60)
    assert made.upstream.done == 1


@pytest.mark.parametrize("value", ["", "0", "abc", "-1"])
def test_a_header_limit_that_is_none(clock: Clock, value: str) -> None:
    made = Faulty(response_rate_limit={"header_limit": {}, "percentage": ALL})
    made.exchange(get("/a", ("x-envoy-fault-throughput-response", value)))
    assert made.counted() == {}


# -- configuration


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"abort": {"percentage": ALL}}, "f.abort"),
        ({"delay": {"percentage": ALL}}, "f.delay"),
        ({"response_rate_limit": {"percentage": ALL}}, "f.response_rate_limit"),
    ],
)
def test_a_fault_that_does_not_say_what(config: dict[str, Any], path: str) -> None:
    made = Harness()
    fault.build_fault(parse(config, HTTPFault()), "f", made.context)
    assert [error.path for error in made.errors.items] == [path]


def test_without_faults_and_without_headers_there_is_no_state() -> None:
    made = Faulty()
    made.exchange(get("/a"))
    assert made.upstream.streams[0].state[made.filter.slot] is None
