"""grpc_stats: what is counted, and where. Compared with Envoy in tests/differential/test_grpc_filters.py."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.grpc_stats.v3.config_pb2 import FilterConfig

from meshproxy.filters.http.grpc_stats import build_grpc_stats
from meshproxy.http.grpc.messages import frame
from meshproxy.http.grpc.stats import CallTimes
from meshproxy.observe.formatter import parse_format
from tests.filters.grpc_calls import GRPC, Call

OK = ((b"grpc-status", b"0"),)


def counting(**config: Any) -> Call:
    return Call(build_grpc_stats, FilterConfig(), config)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({}, "grpc."),
        ({"stats_for_all_methods": True}, "grpc.s.S.M."),
        ({"stats_for_all_methods": True, "replace_dots_in_grpc_service_name": True}, "grpc.s_S.M."),
        (
            {"individual_method_stats_allowlist": {"services": [{"name": "s.S", "method_names": ["M", "N"]}]}},
            "grpc.s.S.M.",
        ),
        ({"individual_method_stats_allowlist": {"services": [{"name": "s.S", "method_names": ["N"]}]}}, "grpc."),
    ],
)
def test_where_a_call_is_counted(config: dict[str, Any], name: str) -> None:
    call = counting(**config)
    call.request(frame(b"one") + frame(b"two")[:2], frame(b"two")[2:])
    call.answer(frame(b"a"), trailers=OK)
    assert call.counters() == {
        f"{name}0": 1,
        f"{name}success": 1,
        f"{name}total": 1,
        f"{name}request_message_count": 2,
        f"{name}response_message_count": 1,
    }


def test_a_failure_in_the_head() -> None:
    call = counting()
    call.request()
    call.answer(head=((b"grpc-status", b"14"),))
    assert call.counters() == {"grpc.14": 1, "grpc.failure": 1, "grpc.total": 1}


@pytest.mark.parametrize("path", ["/M", "/a/b/c", "/"])
def test_a_path_that_names_no_method_is_not_counted(path: str) -> None:
    call = counting(stats_for_all_methods=True)
    call.request(frame(b"x"), path=path)
    call.answer(frame(b"x"), trailers=OK)
    assert call.counters() == {}


def test_what_is_no_grpc_is_not_counted() -> None:
    call = counting()
    call.request(frame(b"x"), headers=(("content-type", "application/json"),))
    call.answer(frame(b"x"), trailers=OK)
    assert call.counters() == {}


def test_a_response_that_is_no_grpc_has_no_messages() -> None:
    call = counting()
    call.request(frame(b"x"))
    call.answer(frame(b"x"), status=b"503")
    assert call.counters() == {"grpc.request_message_count": 1}


def test_a_client_cannot_make_up_names_without_end() -> None:
    call = counting(stats_for_all_methods=True)
    for number in range(1100):
        call.request(path=f"/s.S/M{number}")
        call.answer(head=OK)
    counters = call.counters()
    assert counters["grpc.s.S.M0.total"] == 1
    assert counters["grpc.total"] == 1100 - sum(name.startswith("grpc.s.S.M") for name in counters if "total" in name)
    assert len([name for name in counters if name.endswith(".total")]) <= 1001


def test_the_filter_state() -> None:
    call = counting(emit_filter_state=True)
    call.request(frame(b"x"))
    stream = call.stream
    call.answer(frame(b"a"), frame(b"b"), trailers=OK)
    plain = parse_format("%FILTER_STATE(envoy.filters.http.grpc_stats:PLAIN)%")
    typed = parse_format("%FILTER_STATE(envoy.filters.http.grpc_stats:TYPED)%")
    assert plain.format(stream.info) == b"1,2"
    assert typed.format(stream.info) == b'{"requestMessageCount":"1","responseMessageCount":"2"}'


def test_how_long_the_upstream_took() -> None:
    call = counting(enable_upstream_stats=True)
    call.request(frame(b"x"))
    upstream = call.stream.info.upstream
    assert upstream is not None
    upstream.last_byte_sent, upstream.last_byte_received = 10.0, 10.25
    call.answer(frame(b"a"), trailers=OK)
    times = call.cluster.named_stats("grpc", CallTimes)
    assert times is not None
    assert (times.upstream_rq_time.total, times.upstream_rq_time.sum) == (1, 250)


def test_a_call_without_a_cluster_is_not_counted() -> None:
    call = counting()
    call.connection.manager.clusters.remove("a")
    call.request(frame(b"x"), headers=(GRPC,))
    call.answer(head=OK)
    assert call.counters() == {}
