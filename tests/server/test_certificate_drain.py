"""Connections that outlive a certificate: who is drained, why, and who is not."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from google.protobuf import json_format

from meshproxy.clock import monotonic
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import check_fields
from meshproxy.net.timers import TimerWheel
from meshproxy.observe.stats import StatsRegistry
from meshproxy.server import certificate_drain
from meshproxy.server.certificate_drain import CertificateDrain, certificate_drain_settings
from meshproxy.tls.context import TlsContext
from meshproxy.tls.x509 import Certificate, revoked_in
from meshproxy.upstream.connection import BUSY, CLOSED, DRAINING, READY
from tests.tls.certificates import Issued, issue, revocation_list, uri, world
from tests.tls.harness import client, pair, server, validation

TYPE = "type.googleapis.com/meshproxy.bootstrap.certificate_drain.v1.CertificateDrain"
DAY_S = 86_400.0
LONG = issue("long", world().ca, names=uri("spiffe://mesh/client"), days=(-1, 300))
LONG_SERVER = issue("long server", world().ca, days=(-1, 300))


def bootstrap(**fields: str) -> Any:
    extension = {"name": "drain", "typed_config": {"@type": TYPE} | fields}
    return json_format.ParseDict({"bootstrap_extensions": [extension]}, Bootstrap())


class Downstream:
    """An ActiveConnection of a client."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def retire(self) -> None:
        self.told.append("retire")

    def end_retired(self) -> None:
        self.told.append("end")


class Upstream:
    def __init__(self, facts: Any, state: int = READY) -> None:
        self.tls = facts
        self.state = state

    def drain(self) -> None:
        self.state = DRAINING


class World:
    """A worker, in which one listener has connections, and one cluster has."""

    def __init__(self) -> None:
        self.stats = StatsRegistry()
        self.timers = TimerWheel(None)
        self.dispatcher = self
        self.spawned: list[Any] = []
        self.contexts: list[TlsContext] = []
        self.connections: dict[Downstream, Any] = {}
        self.pool: list[Upstream] = []
        chain = SimpleNamespace(connections=self.connections)
        self.listeners = {"l": SimpleNamespace(chains=lambda: [chain])}
        self.draining_listeners: list[Any] = []
        host = SimpleNamespace(pools=lambda: [SimpleNamespace(connections=self.pool)])
        self.clusters = SimpleNamespace(clusters=lambda: [SimpleNamespace(hosts=[host])])
        self.drain = CertificateDrain(self)  # type: ignore[arg-type]

    def tls_contexts(self) -> list[TlsContext]:
        return self.contexts

    def spawn(self, coroutine: Any, name: str) -> None:
        self.spawned.append(coroutine)

    def accept(self, facts: Any) -> Downstream:
        connection = Downstream()
        self.connections[connection] = SimpleNamespace(info=SimpleNamespace(tls=facts))
        return connection

    def look(self) -> None:
        for _ in self.drain.look():
            pass

    def counted(self) -> dict[str, int]:
        return {
            name.removeprefix("certificate_drain."): value
            for name, value in self.stats.snapshot().counters.items()
            if value
        }


@pytest.fixture
def w() -> World:
    made = World()
    made.drain.configure(certificate_drain_settings(bootstrap(interval="1s", grace="5s")))
    return made


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    now = time.time() + days * DAY_S
    monkeypatch.setattr("time.time", lambda: now)


def facts_of(own: Issued, peer: Issued | None, **demanded: Any) -> tuple[Any, TlsContext]:
    """What a server knows of a connection that it made with `own`, from a client with `peer`; and its context."""
    context = server(own, validation=validation(**demanded))
    one, _ = pair(context, client(peer))
    assert one.established, one.failure
    return one.facts, context


def test_a_peer_whose_certificate_has_expired(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, context = facts_of(LONG_SERVER, world().client)
    lasting, _ = facts_of(LONG_SERVER, LONG)
    nobody, _ = facts_of(LONG_SERVER, None)
    w.contexts.append(context)
    found = [w.accept(each) for each in (facts, lasting, nobody, None)]
    w.look()
    assert [each.told for each in found] == [[], [], [], []]
    later(monkeypatch, 40)
    w.look()
    w.look()
    assert [each.told for each in found] == [["retire"], [], [], []]
    assert w.counted() == {"downstream_cx_peer_expired": 1}


def test_where_times_do_not_count_nobody_is_drained_for_them(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for demanded in ({"ignore_times": True}, {"accept_untrusted": True}):
        facts, context = facts_of(LONG_SERVER, world().client, **demanded)
        w.contexts.append(context)
        w.accept(facts)
    later(monkeypatch, 40)
    w.look()
    assert w.counted() == {}


def test_a_certificate_of_ours_that_has_expired_where_there_is_another(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, context = facts_of(world().server, LONG)
    w.contexts.append(context)
    connection = w.accept(facts)
    later(monkeypatch, 40)
    w.look()
    assert connection.told == []  # the next one would be made with the same
    w.contexts[:] = [server(LONG_SERVER)]
    w.look()
    assert connection.told == ["retire"]
    assert w.counted() == {"downstream_cx_own_expired": 1}


@pytest.mark.parametrize("where", ["crl", "trusted_ca"])
def test_a_peer_whose_certificate_is_revoked(w: World, where: str) -> None:
    revoked, _ = facts_of(LONG_SERVER, world().revoked)
    other, _ = facts_of(LONG_SERVER, world().client)
    found = [w.accept(each) for each in (revoked, other)]
    w.pool += [Upstream(revoked), Upstream(revoked, BUSY), Upstream(other), Upstream(None), Upstream(revoked, CLOSED)]
    w.look()
    assert w.counted() == {}
    lists = revocation_list(world().ca, world().revoked, world().stranger)
    demanded = {"crl": lists} if where == "crl" else {"trusted_ca": world().ca.pem + lists}
    w.contexts.append(server(LONG_SERVER, validation=validation(**demanded)))
    w.look()
    assert [each.told for each in found] == [["retire"], []]
    assert [each.state for each in w.pool] == [DRAINING, DRAINING, READY, READY, CLOSED]
    assert w.counted() == {"downstream_cx_peer_revoked": 1, "upstream_cx_peer_revoked": 2}


def test_the_list_of_another_authority_says_nothing(w: World) -> None:
    facts, _ = facts_of(LONG_SERVER, world().client)
    connection = w.accept(facts)
    other = revocation_list(world().other_ca, world().client)  # with the same serial number
    w.contexts.append(server(LONG_SERVER, validation=validation(trusted_ca=world().other_ca.pem, crl=other)))
    w.look()
    assert connection.told == []


def test_who_does_not_end_is_ended_after_the_grace(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, context = facts_of(LONG_SERVER, world().client)
    w.contexts.append(context)
    connection = w.accept(facts)
    later(monkeypatch, 40)
    now = 1000.0
    monkeypatch.setattr(certificate_drain, "monotonic", lambda: now)
    w.look()
    now += 4.9
    w.look()
    assert connection.told == ["retire"]
    now += 0.2
    w.look()
    assert connection.told == ["retire", "end"]
    del w.connections[connection]
    w.look()
    assert w.drain._retired == {}


def test_it_looks_as_often_as_it_is_told(w: World) -> None:
    began = int(monotonic() * 1000.0)
    w.timers.advance(began + 60_000)
    assert len(w.spawned) == 1  # and once more when that is done
    w.spawned.pop().close()
    w.drain.configure(None)
    w.timers.advance(began + 120_000)
    assert w.spawned == []


def test_without_the_extension_nothing_is_looked_at() -> None:
    w = World()
    w.drain.configure(certificate_drain_settings(Bootstrap()))
    w.timers.advance(int(monotonic() * 1000.0) + 60_000)
    assert (w.spawned, w.stats.snapshot().counters) == ([], {})


def test_what_revocation_lists_say() -> None:
    pem = revocation_list(world().ca, world().revoked, world().client) + revocation_list(world().other_ca)
    expected = [Certificate(each.der) for each in (world().revoked, world().client)]
    assert list(revoked_in(pem)) == [(each.raw_issuer, each.raw_serial) for each in expected]


def test_the_fields_of_the_extension() -> None:
    errors = ConfigErrors()
    assert check_fields(bootstrap(interval="1s", grace="0s"), "", errors) == []
    assert errors.items == []
