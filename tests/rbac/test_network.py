"""The network filter in a connection without a socket (tests/differential/test_network_rbac.py has the rest)."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.network.rbac.v3.rbac_pb2 import RBAC

from meshproxy.filters.network import rbac
from meshproxy.net.connection import CLOSED, CLOSING, OPEN, Connection, ConnectionHandler
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.stream_info import ConnectionInfo
from tests.http.harness import FakeTransport, Harness, parse
from tests.rbac.support import ANY, CLIENT, NEVER, Peer, Yaml, policy

ALLOWED: Yaml = {"policies": {"p": policy()}}
REFUSED: Yaml = {"action": "DENY", "policies": {"p": policy()}}


class Handler(ConnectionHandler):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ended = False
        self.connected = 0
        self.out: list[bytes] = []

    def on_connected(self, connection: Connection) -> None:
        self.connected += 1

    def on_data(self, data: bytes) -> None:
        self.heard.append(data)

    def on_eof(self) -> None:
        self.ended = True

    def data_to_send(self) -> list[bytes]:
        out, self.out = self.out, []
        return out


class Session(TransportSocket):
    """A transport socket with a handshake of one word, which tells of a peer."""

    def __init__(self, peer: Peer) -> None:
        super().__init__()
        self._peer = peer
        self._out: list[bytes] = []

    def receive(self, data: bytes) -> list[bytes]:
        if not self.established:
            self.established, self.facts = True, self._peer
            return []
        return [data]

    def send(self, data: bytes) -> None:
        self._out.append(b"<" + data + b">")

    def shut(self) -> None:
        self._out.append(b"<end>")

    def take_output(self) -> bytes:
        out, self._out = self._out, []
        return b"".join(out)


class Guarded:
    """A connection with a filter of this configuration."""

    def __init__(self, inner: TransportSocket | None = None, **config: Any) -> None:
        self.harness = Harness(loop=None)
        self.rules: Any = rbac.build_rbac(parse({"stat_prefix": "n"} | config, RBAC()), "f", self.harness.context)
        assert not self.harness.errors, str(self.harness.errors)
        self.transport = FakeTransport("10.0.0.9")
        self.handler = Handler()
        self.connection = Connection(self.harness.dispatcher, ConnectionHandler(), 1 << 20)
        self.connection.connection_made(self.transport)
        self.connection.set_handler(self.handler)
        self.info = ConnectionInfo(1, self.connection.remote, self.connection.local)
        self.info.transport_socket = inner
        place = self.rules.new(self.connection, self.info, inner)
        self.harness.dispatcher.begin_turn()
        self.connection.start_transport_socket(place)
        self.harness.dispatcher.end_turn()

    def receive(self, data: bytes) -> None:
        self.connection.data_received(data)
        self.harness.run_soon()

    def say(self, data: bytes) -> bytes:
        """What leaves of what the handler says."""
        self.handler.out.append(data)
        self.connection.send_pending()
        self.harness.dispatcher.begin_turn()
        self.harness.dispatcher.end_turn()
        written, self.transport.written = self.transport.written, b""
        return written

    def counted(self) -> dict[str, int]:
        return {name: value for name, value in self.harness.registry.snapshot().counters.items() if value}


def test_what_is_allowed_passes_and_is_asked_once() -> None:
    made = Guarded(rules=ALLOWED)
    assert made.handler.connected == 1
    for word in (b"a", b"b"):
        made.receive(word)
    assert made.handler.heard == [b"a", b"b"]
    assert made.counted() == {"n.rbac.allowed": 1}


def test_what_is_denied_reaches_nobody() -> None:
    made = Guarded(rules=REFUSED)
    made.receive(b"a")
    assert made.handler.heard == []
    assert made.connection.state == CLOSED
    assert made.info.termination_details == "rbac_access_denied_matched_policy[p]"
    assert made.counted() == {"n.rbac.denied": 1}


def test_a_denied_peer_is_told_nothing_any_more() -> None:
    made = Guarded(rules=REFUSED)
    assert made.say(b"banner") == b"banner"
    made.handler.out.append(b"secret")
    made.receive(b"a")
    assert made.transport.written == b""


def test_continuous_rules_are_asked_about_each_piece() -> None:
    made = Guarded(rules=ALLOWED, enforcement_type="CONTINUOUS")
    for word in (b"a", b"b", b"c"):
        made.receive(word)
    assert made.counted() == {"n.rbac.allowed": 3}


def test_continuous_rules_may_change_their_mind() -> None:
    """By dynamic metadata, which other filters write meanwhile."""
    metadata = {"filter": "f", "path": [{"key": "bad"}], "value": {"present_match": True}}
    rules = {"action": "DENY", "policies": {"p": policy({"metadata": metadata})}}
    made = Guarded(rules=rules, enforcement_type="CONTINUOUS")
    made.receive(b"a")
    made.info.dynamic_metadata = {"f": {"bad": True}}
    made.receive(b"b")
    assert made.handler.heard == [b"a"]
    assert made.connection.state == CLOSED


def test_a_denial_is_put_off() -> None:
    made = Guarded(rules=REFUSED, delay_deny="2s")
    made.receive(b"a")
    made.receive(b"b")
    assert (made.handler.heard, made.connection.state, made.transport.paused) == ([], OPEN, True)
    assert made.say(b"banner") == b""
    made.harness.advance(1_900)
    assert made.connection.state == OPEN
    made.harness.advance(200)
    assert made.connection.state in (CLOSING, CLOSED)
    assert made.transport.closed
    assert made.counted() == {"n.rbac.denied": 1}


def test_a_peer_that_leaves_meanwhile_leaves_no_timer() -> None:
    made = Guarded(rules=REFUSED, delay_deny="2s")
    made.receive(b"a")
    place: Any = made.connection.transport_socket
    made.connection.connection_lost(None)
    place.on_close()
    made.harness.advance(3_000)
    assert made.connection.state == CLOSED


@pytest.mark.parametrize(("rules", "ended"), [(ALLOWED, True), (REFUSED, False)])
def test_an_end_without_a_word_is_asked_about(rules: Yaml, ended: bool) -> None:
    made = Guarded(rules=rules)
    made.connection.eof_received()
    made.harness.run_soon()
    assert made.handler.ended == ended
    assert sum(made.counted().values()) == 1


@pytest.mark.parametrize(("peer", "passes"), [(CLIENT, True), (Peer((), "CN=x"), False)])
def test_the_peer_of_the_session_before_it_is_known(peer: Peer, passes: bool) -> None:
    named = {"authenticated": {"principal_name": {"prefix": "spiffe://mesh/"}}}
    made = Guarded(Session(peer), rules={"policies": {"p": policy(ANY, named)}})
    assert made.handler.connected == 0
    made.receive(b"handshake")
    assert made.handler.connected == 1
    made.receive(b"a")
    assert made.handler.heard == ([b"a"] if passes else [])
    if passes:
        assert made.say(b"b") == b"<b>"
    else:
        assert made.transport.written == b"<end>"


def test_shadow_rules_are_told_of_the_connection() -> None:
    made = Guarded(shadow_rules={"policies": {"p": policy(NEVER)}}, shadow_rules_stat_prefix="dry_")
    made.receive(b"a")
    assert made.handler.heard == [b"a"]
    assert made.info.dynamic_metadata == {"envoy.filters.network.rbac": {"dry_shadow_engine_result": "denied"}}
    assert made.counted() == {"n.rbac.dry_.shadow_denied": 1}


def test_log_tells_access_loggers_of_the_connection() -> None:
    made = Guarded(rules={"action": "LOG", "policies": {"p": policy()}})
    made.receive(b"a")
    assert made.handler.heard == [b"a"]
    assert made.info.dynamic_metadata == {"envoy.common": {"access_log_hint": True}}


def test_a_delay_is_not_negative() -> None:
    made = Harness()
    rbac.build_rbac(parse({"stat_prefix": "n", "delay_deny": "-1s"}, RBAC()), "f", made.context)
    assert [error.path for error in made.errors.items] == ["f.delay_deny"]
