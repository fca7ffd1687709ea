"""What a host is credited with: the status of the call decides, wherever it stands."""

from __future__ import annotations

import pytest

from meshproxy.codec.headers import Field, HeaderMap
from meshproxy.http.grpc.call import GrpcCall
from meshproxy.net.address import Address
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.config import ClusterConfig, EndpointConfig
from meshproxy.upstream.host import Host
from tests.http.harness import Harness


def a_host() -> Host:
    made = Harness()
    cluster = Cluster(ClusterConfig("c"), made.dispatcher, made.registry, made.runtime, lambda bits: 0, None)
    cluster.set_endpoints([EndpointConfig(Address("127.0.0.1", 1), "", "")])
    return cluster.hosts[0]


def part(status: bytes | None) -> HeaderMap:
    fields: list[Field] = [] if status is None else [(b"grpc-status", status)]
    return HeaderMap(fields)


def counted(host: Host) -> tuple[int, int]:
    return host.stats.rq_success, host.stats.rq_error


STATUSES = [(b"0", (1, 0)), (b"5", (1, 0)), (b"14", (0, 1)), (b"2", (0, 1)), (b"x", (0, 1)), (None, (0, 1))]


@pytest.mark.parametrize(("status", "expected"), STATUSES)
def test_trailers_decide(status: bytes | None, expected: tuple[int, int]) -> None:
    host, call = a_host(), GrpcCall()
    call.begin(host, part(b"0"), False)
    assert counted(host) == (0, 0)
    call.end(part(status))
    assert not call.fail()
    assert counted(host) == expected


@pytest.mark.parametrize(("status", "expected"), STATUSES)
def test_a_head_alone_decides(status: bytes | None, expected: tuple[int, int]) -> None:
    host, call = a_host(), GrpcCall()
    call.begin(host, part(status), True)
    assert counted(host) == expected


def test_no_trailers_are_an_error_once() -> None:
    host, call = a_host(), GrpcCall()
    call.begin(host, part(None), False)
    assert call.fail()
    assert not call.fail()
    assert counted(host) == (0, 1)


def test_what_was_no_success_of_http_is_decided_already() -> None:
    host, call = a_host(), GrpcCall()
    call.end(part(b"0"))
    assert not call.fail()
    assert counted(host) == (0, 0)
