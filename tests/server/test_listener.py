"""A filter chain that drains: at once, or by and by."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from meshproxy import clock
from meshproxy.net.address import Address
from meshproxy.net.timers import TimerWheel
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.server.listener import Accepted, ActiveFilterChain, ActiveListener, HandshakeTimeout
from meshproxy.server.stats import ListenerStats


@pytest.fixture
def chain() -> ActiveFilterChain:
    listener: Any = SimpleNamespace(config=SimpleNamespace(access_logs=[]))
    anything: Any = None
    return ActiveFilterChain(listener, anything, anything)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same samples in every run."""
    state = random.getstate()
    random.seed(7)
    yield
    random.setstate(state)


def _drains(chain: ActiveFilterChain) -> bool:
    return chain.draining


def _share(chain: ActiveFilterChain) -> float:
    return sum(chain.closes_now() for _ in range(1000)) / 1000


def test_an_immediate_drain_ends_every_connection_with_its_next_answer(chain: ActiveFilterChain) -> None:
    assert not _drains(chain)
    chain.start_drain()
    assert _drains(chain)
    assert _share(chain) == 1.0


def test_the_share_of_a_gradual_drain_grows_with_time(chain: ActiveFilterChain) -> None:
    chain.start_drain(100.0)
    assert _drains(chain)
    assert _share(chain) < 0.05
    clock.move_ahead(50.0)
    assert 0.4 < _share(chain) < 0.6
    clock.move_ahead(50.0)
    assert _share(chain) == 1.0
    assert chain.drain_ms() >= 100_000.0


def test_a_drain_that_gets_urgent(chain: ActiveFilterChain) -> None:
    chain.start_drain(100.0)
    chain.start_drain()  # SIGTERM
    assert _share(chain) == 1.0
    chain.start_drain(100.0)  # it stays so
    assert _share(chain) == 1.0


def test_health_checks_that_fail_end_connections_and_end_no_drain(chain: ActiveFilterChain) -> None:
    chain.fail_health_checks(True)
    assert _drains(chain)
    assert _share(chain) == 1.0
    assert chain.drain_ms() == 0.0
    chain.start_drain(100.0)
    chain.fail_health_checks(False)
    assert _drains(chain)
    assert _share(chain) < 0.05


def test_health_checks_that_pass_again(chain: ActiveFilterChain) -> None:
    chain.fail_health_checks(True)
    chain.fail_health_checks(False)
    assert not _drains(chain)


def test_a_connection_that_is_gone_is_not_kept_by_its_handshake_timeout() -> None:
    nowhere, connection, timers = Address("", 0, "-"), SimpleNamespace(), TimerWheel(None)
    listener: Any = SimpleNamespace(uncount=lambda: None, stats=ListenerStats())
    chain: Any = SimpleNamespace(access_logs=[], draining=False)
    accepted = Accepted(connection, ConnectionInfo(1, nowhere, nowhere))  # type: ignore[arg-type]
    timeout = accepted.handshake_timeout = HandshakeTimeout(accepted.connection, accepted.info, listener.stats)
    timers.arm(timeout, 60_000.0)
    ActiveListener.on_connection_done(listener, chain, accepted)
    assert not timeout.armed
