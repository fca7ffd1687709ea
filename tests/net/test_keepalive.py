"""Pings, with time that passes when the test says so."""

from __future__ import annotations

from meshproxy.clock import monotonic, move_ahead
from meshproxy.net.keepalive import Keepalive, PingSender
from meshproxy.net.timers import TimerWheel


class Peer(PingSender):
    """Notes what is asked of it."""

    def __init__(self, interval_ms: float = 0.0, idle_interval_ms: float = 0.0, jitter_percent: float = 0.0) -> None:
        self.wheel = TimerWheel(None)
        self.events: list[str] = []
        self.keepalive = Keepalive(self, self.wheel, interval_ms, 50.0, jitter_percent, idle_interval_ms)
        self.keepalive.start(monotonic())

    def send_ping(self) -> None:
        self.events.append("ping")

    def on_ping_timeout(self) -> None:
        self.events.append("timeout")

    def wait(self, ms: float) -> list[str]:
        """Let so much time pass, and tell what happened."""
        move_ahead(ms / 1000.0)
        self.wheel.advance(int(monotonic() * 1000.0))
        events, self.events = self.events, []
        return events


def test_a_ping_after_each_interval() -> None:
    peer = Peer(interval_ms=1000.0)
    assert peer.wait(900.0) == []
    assert peer.wait(150.0) == ["ping"]
    peer.keepalive.on_ack()
    assert peer.wait(900.0) == []
    assert peer.wait(150.0) == ["ping"]


def test_without_an_answer_the_peer_is_dead() -> None:
    peer = Peer(interval_ms=1000.0)
    assert peer.wait(1050.0) == ["ping"]
    assert peer.wait(100.0) == ["timeout"]
    assert peer.wait(5000.0) == []


def test_an_answer_that_nobody_asked_for_changes_nothing() -> None:
    peer = Peer(interval_ms=1000.0)
    assert peer.wait(900.0) == []
    peer.keepalive.on_ack()
    assert peer.wait(150.0) == ["ping"]


def test_jitter_is_a_share_of_the_interval() -> None:
    for _ in range(20):
        peer = Peer(interval_ms=1000.0, jitter_percent=50.0)
        assert peer.wait(990.0) == []
        assert peer.wait(530.0) == ["ping"]


def test_an_idle_connection_is_asked_before_a_stream() -> None:
    peer = Peer(idle_interval_ms=1000.0)
    assert peer.wait(900.0) == []
    peer.keepalive.on_new_stream(monotonic())
    assert peer.wait(90.0) == []
    peer.keepalive.on_data(monotonic())
    assert peer.wait(990.0) == []
    peer.keepalive.on_new_stream(monotonic())
    assert peer.wait(20.0) == []
    peer.keepalive.on_new_stream(monotonic())
    peer.keepalive.on_new_stream(monotonic())
    assert peer.wait(20.0) == ["ping"]
    peer.keepalive.on_ack()
    assert peer.wait(5000.0) == []


def test_a_connection_that_is_over_asks_no_more() -> None:
    peer = Peer(interval_ms=1000.0, idle_interval_ms=1000.0)
    peer.keepalive.stop()
    assert peer.wait(5000.0) == []
    peer.keepalive.on_new_stream(monotonic())
    peer.keepalive.on_ack()
    assert peer.wait(5000.0) == []
