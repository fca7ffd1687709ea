"""How listener filters follow one another, and what they may ask for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from envoy.config.listener.v3.listener_components_pb2 import ListenerFilter as ListenerFilterMessage
from envoy.extensions.filters.http.router.v3.router_pb2 import Router

from meshproxy.filters.listener_filter import (
    CLOSE,
    CONTINUE,
    NEEDS_DATA,
    AcceptedSocket,
    ConfiguredListenerFilter,
    ListenerFilter,
    ListenerFilterFactory,
    ListenerFilterRun,
    build_listener_filters,
)
from meshproxy.net.address import Address
from tests.filters.listener.harness import Filters, socket_of
from tests.filters.listener.headers import v1
from tests.filters.listener.hello import alpn, client_hello, records, sni

HELLO = records(client_hello(sni(b"a.b"), alpn(b"h2")))


class Scripted(ListenerFilter):
    """Waits for `wanted` bytes, takes `taken` of them off, and says that it was asked."""

    def __init__(self, said: list[str], name: str, wanted: int = 0, taken: int = 0, limit: int = 10) -> None:
        self.said = said
        self.name = name
        self.wanted = wanted
        self.taken = taken
        self.max_read_bytes = limit

    def on_accept(self, accepted: AcceptedSocket) -> int:
        self.said.append(f"{self.name} accepts")
        return NEEDS_DATA if self.wanted else CONTINUE

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int:
        self.said.append(f"{self.name} {data.decode()}")
        if len(data) < self.wanted:
            return NEEDS_DATA
        accepted.consume(self.taken)
        return CONTINUE


class Growing(Scripted):
    """Asks for more when it has seen all it may."""

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int:
        verdict = super().on_data(accepted, data)
        if verdict == NEEDS_DATA and len(data) == self.max_read_bytes:
            self.max_read_bytes *= 2
        return verdict


class Refusing(Scripted):
    def on_accept(self, accepted: AcceptedSocket) -> int:
        return CLOSE


class Given(ListenerFilterFactory):
    def __init__(self, made: ListenerFilter) -> None:
        self.made = made

    def new(self) -> ListenerFilter:
        return self.made


def run_of(*filters: ListenerFilter) -> ListenerFilterRun:
    return ListenerFilterRun([ConfiguredListenerFilter(Given(each), None) for each in filters], socket_of())


def test_no_filter_is_no_wait() -> None:
    assert run_of().start() == CONTINUE


def test_each_begins_when_the_one_before_is_done() -> None:
    said: list[str] = []
    run = run_of(Scripted(said, "a"), Scripted(said, "b", wanted=2), Scripted(said, "c"))
    assert run.start() == NEEDS_DATA
    assert said == ["a accepts", "b accepts"]
    assert run.receive(b"1") == NEEDS_DATA
    assert run.receive(b"2") == CONTINUE
    assert said[2:] == ["b 1", "b 12", "c accepts"]
    assert run.data == b"12"


def test_what_one_consumes_the_next_does_not_see() -> None:
    said: list[str] = []
    run = run_of(Scripted(said, "a", wanted=2, taken=2), Scripted(said, "b", wanted=3, taken=1))
    assert run.start() == NEEDS_DATA
    assert run.receive(b"12345") == CONTINUE
    assert said == ["a accepts", "a 12345", "b accepts", "b 345"]
    assert run.data == b"45"


def test_the_next_waits_when_all_is_consumed() -> None:
    said: list[str] = []
    run = run_of(Scripted(said, "a", wanted=2, taken=2), Scripted(said, "b", wanted=1))
    assert run.start() == NEEDS_DATA
    assert run.receive(b"12") == NEEDS_DATA
    assert said[-1] == "b accepts"
    assert run.receive(b"3") == CONTINUE
    assert run.data == b"3"


def test_a_filter_sees_no_more_than_it_asks_for() -> None:
    said: list[str] = []
    run = run_of(Scripted(said, "a", wanted=3, limit=3))
    assert run.start() == NEEDS_DATA
    assert run.receive(b"123456") == CONTINUE
    assert said[-1] == "a 123"
    assert run.data == b"123456"


def test_who_has_all_and_wants_more_closes() -> None:
    run = run_of(Scripted([], "a", wanted=4, limit=3))
    assert run.start() == NEEDS_DATA
    assert run.receive(b"12") == NEEDS_DATA
    assert run.receive(b"3") == CLOSE


def test_a_limit_may_be_raised() -> None:
    said: list[str] = []
    run = run_of(Growing(said, "a", wanted=5, limit=2))
    assert run.start() == NEEDS_DATA
    assert run.receive(b"123456") == CONTINUE
    assert said == ["a accepts", "a 12", "a 1234", "a 123456"]


def test_nobody_runs_after_a_refusal() -> None:
    said: list[str] = []
    assert run_of(Refusing(said, "a"), Scripted(said, "b")).start() == CLOSE
    assert said == []


def test_proxy_protocol_before_tls_inspector() -> None:
    filters = Filters(("proxy_protocol", ""), ("tls_inspector", ""), ("http_inspector", ""))
    run = ListenerFilterRun(filters.filters, socket_of())
    assert run.start() == NEEDS_DATA
    data = v1("203.0.113.1:7") + HELLO
    for at in range(len(data) - 1):
        assert run.receive(data[at : at + 1]) == NEEDS_DATA
    assert run.receive(data[-1:]) == CONTINUE
    assert run.data == HELLO
    accepted = run.accepted
    assert accepted.remote == Address("203.0.113.1", 7)
    assert accepted.direct_remote == Address("192.0.2.1", 1)
    assert (accepted.server_name, accepted.application_protocols) == ("a.b", ["h2"])


PREDICATES = {
    "{any_match: true}": (True, True, True),
    "{destination_port_range: {start: 80, end: 81}}": (True, False, True),
    "{destination_port_range: {start: 79, end: 80}}": (False, False, True),
    "{not_match: {destination_port_range: {start: 80, end: 81}}}": (False, True, False),
    "{and_match: {rules: [{any_match: true}, {destination_port_range: {start: 80, end: 81}}]}}": (True, False, True),
    "{or_match: {rules: [{not_match: {any_match: true}}, {destination_port_range: {start: 81, end: 90}}]}}": (
        False,
        True,
        True,
    ),
}


@pytest.mark.parametrize(("predicate", "disabled"), PREDICATES.items())
def test_filter_disabled(predicate: str, disabled: Sequence[bool]) -> None:
    """On port 80, on port 81, and on a Unix socket, which Envoy lets match every range of ports."""
    filters = Filters(("tls_inspector", "", f"{{filter_disabled: {predicate}}}"))
    locals_ = (Address("192.0.2.2", 80), Address("192.0.2.2", 81), Address("", 0, "/run/x"))
    answers = [ListenerFilterRun(filters.filters, AcceptedSocket(None, local, local)).start() for local in locals_]
    assert answers == [CONTINUE if each else NEEDS_DATA for each in disabled]


def test_an_unknown_filter_is_an_error_at_its_path() -> None:
    filters = Filters()
    entry = ListenerFilterMessage(name="x")
    entry.typed_config.Pack(Router())
    assert build_listener_filters([entry], "listener", filters.context) == []
    assert [error.path for error in filters.errors.items] == ["listener.listener_filters[0].typed_config"]
