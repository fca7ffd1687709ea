"""http_inspector. Which request lines count as HTTP is tried with the real Envoy, in
tests/differential/test_filter_chains.py.
"""

from __future__ import annotations

import pytest

from meshproxy.filters.listener.http_inspector import MAX_REQUEST_LINE, PREFACE
from meshproxy.filters.listener_filter import CLOSE, CONTINUE, NEEDS_DATA, ListenerFilterRun
from tests.filters.listener.harness import Filters, assert_any_split_is_the_same, mutations, run, socket_of
from tests.filters.listener.hello import real_hello

PLAIN = ("http_inspector", "")
FOUND = {
    b"GET / HTTP/1.1\r\nhost: a\r\n\r\n": ("http/1.1", "http11_found"),
    b"POST /x HTTP/1.0\r\n\r\n": ("http/1.0", "http10_found"),
    PREFACE + b"\0\0\0\4\0\0\0\0\0": ("h2c", "http2_found"),
}


@pytest.mark.parametrize("data", FOUND)
def test_what_is_http_in_any_split(data: bytes) -> None:
    verdict, accepted, rest = assert_any_split_is_the_same(PLAIN, data)
    assert (verdict, rest) == (CONTINUE, data)
    assert accepted.application_protocols == [FOUND[data][0]]
    filters = Filters(PLAIN)
    run(filters.filters, data)
    assert filters.counted() == {f"http_inspector.{FOUND[data][1]}": 1}


@pytest.mark.parametrize(
    "data", [b"\r\n", b"SSH-2.0-x\r\n", b"\x16\x03\x01", b"EHLO a\r\n", b"\x00\x00\x00\x10", b"{}"]
)
def test_what_is_not_in_any_split(data: bytes) -> None:
    verdict, accepted, _ = assert_any_split_is_the_same(PLAIN, data)
    assert verdict == CONTINUE
    assert accepted.application_protocols == []
    filters = Filters(PLAIN)
    run(filters.filters, data)
    assert filters.counted() == {"http_inspector.http_not_found": 1}


@pytest.mark.parametrize("data", [b"G", b"GET / HT", b"P", PREFACE[:-1]])
def test_what_may_become_http_waits(data: bytes) -> None:
    assert run(Filters(PLAIN).filters, data)[0] == NEEDS_DATA


def test_a_line_without_an_end_closes_at_the_limit() -> None:
    filters = Filters(PLAIN)
    line = b"GET /" + b"a" * (MAX_REQUEST_LINE - 6)
    assert run(filters.filters, line)[0] == NEEDS_DATA
    assert run(filters.filters, line, b"a")[0] == CLOSE
    assert run(filters.filters, line + b"aaaa HTTP/1.1\r\n")[0] == CLOSE
    assert filters.counted() == {"http_inspector.read_error": 2}


def test_tls_is_not_looked_at() -> None:
    filters = Filters(("tls_inspector", ""), PLAIN)
    verdict, accepted, _ = run(filters.filters, real_hello("a.b"))
    assert verdict == CONTINUE
    assert accepted.application_protocols == []
    assert "http_inspector.http_not_found" not in filters.counted()


def test_plain_connections_are_looked_at_though_tls_inspector_was_there() -> None:
    going = ListenerFilterRun(Filters(("tls_inspector", ""), PLAIN).filters, socket_of())
    going.accepted.transport_protocol = "raw_buffer"
    assert going.start() == NEEDS_DATA
    assert going.receive(b"GET / HTTP/1.1\r\n") == CONTINUE
    assert going.accepted.application_protocols == ["http/1.1"]


@pytest.mark.parametrize("data", FOUND)
def test_mutated_input_never_raises(data: bytes) -> None:
    filters = Filters(PLAIN)
    for mutated in mutations(data):
        _, accepted, rest = run(filters.filters, mutated)
        assert rest == mutated
        assert accepted.application_protocols in ([], ["http/1.0"], ["http/1.1"], ["h2c"])
