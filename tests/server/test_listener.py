"""A filter chain that drains: at once, or by and by; and one whose filter raises."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from meshproxy import clock
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.http.network_filter import (
    ActiveConnection,
    ConnectionGate,
    ConnectionOwner,
    NetworkFilter,
    RawConnection,
)
from meshproxy.net.address import Address
from meshproxy.net.cells import Counter
from meshproxy.net.connection import Connection
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.timers import TimerWheel
from meshproxy.observe.stats import StatsRegistry
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.server.listener import Accepted, ActiveFilterChain, ActiveListener, ConnectionCount, HandshakeTimeout
from meshproxy.server.listener_config import FilterChainConfig, ListenerConfig
from meshproxy.server.stats import ListenerStats
from meshproxy.testing.memory import connect_pair
from meshproxy.testing.peers import Peer
from meshproxy.upstream.manager import ClusterManager


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


class Broken(NetworkFilter):
    """Takes a connection half way."""

    def accept(
        self,
        dispatcher: Dispatcher,
        clusters: ClusterManager,
        owner: ConnectionOwner,
        connection: Connection,
        info: ConnectionInfo,
    ) -> ActiveConnection:
        connection.set_handler(RawConnection(owner, connection))
        raise ValueError("a bug")


class Gate(ConnectionGate):
    inside = 0

    def admit(self, connection: Connection, info: ConnectionInfo) -> bool:
        self.inside += 1
        return True

    def leave(self) -> None:
        self.inside -= 1


async def test_a_terminal_filter_that_raises_costs_its_connection_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("meshproxy").propagate = True
    dispatcher = Dispatcher(asyncio.get_running_loop())
    runtime, registry = Runtime(), StatsRegistry()
    context = BuildContext(ConfigErrors(), runtime, registry)
    config = ListenerConfig("main", (Address("127.0.0.1", 1),), context)
    chain = config.default_chain = FilterChainConfig("broken", Broken(), b"")
    gate = Gate()
    chain.gates = (gate,)
    count, own = ConnectionCount(runtime.integer("", 10)), Counter()
    clusters = ClusterManager(dispatcher, registry, runtime)
    directory: Any = None
    listener = ActiveListener(config, dispatcher, clusters, count, own, directory)
    for _ in range(2):
        near = Peer()
        connect_pair(dispatcher.loop, near, listener.new_connection(), 1)
        await near.until_closed()
    stats = listener.stats
    assert (stats.downstream_cx_total, stats.downstream_cx_active, stats.downstream_cx_destroy) == (2, 0, 2)
    assert (count.active, own.total(), listener.connections(), gate.inside) == (0, 0, 0, 0)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(messages) == 2  # and none about its end
    assert all("its filter chain 'broken' cannot take it" in message for message in messages)
    await dispatcher.close()


def _listener(dispatcher: Dispatcher, directory: Any, own: Counter) -> ActiveListener:
    runtime, registry = Runtime(), StatsRegistry()
    context = BuildContext(ConfigErrors(), runtime, registry)
    config = ListenerConfig("main", (Address("127.0.0.1", 1),), context)
    config.default_chain = FilterChainConfig("broken", Broken(), b"")
    count = ConnectionCount(runtime.integer("", 10))
    return ActiveListener(config, dispatcher, ClusterManager(dispatcher, registry, runtime), count, own, directory)


async def test_a_connection_on_its_way_to_a_listener_that_is_closed_is_for_the_next_one() -> None:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    accepted: list[Connection] = []
    taken: list[tuple[Connection, bytes]] = []
    heir = SimpleNamespace(accept=accepted.append, take_over=lambda one, _, data: taken.append((one, data)))
    own = Counter()
    listener = _listener(dispatcher, SimpleNamespace(listener_at=lambda _: heir), own)
    late, inspected = listener.new_connection(), listener.new_connection()
    listener.close()
    connect_pair(dispatcher.loop, Peer(), late, 1)
    assert accepted == [late]
    own.add(1)  # its listener filters were still looking at it
    facts: Any = SimpleNamespace(local_restored=False)
    listener.assign(inspected, facts, b"hello")
    assert taken == [(inspected, b"hello")]
    assert own.total() == 0
    await dispatcher.close()


async def test_it_is_reset_where_there_is_no_next_one() -> None:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    listener = _listener(dispatcher, SimpleNamespace(listener_at=lambda _: None), Counter())
    late = listener.new_connection()
    listener.close()
    near = Peer()
    connect_pair(dispatcher.loop, near, late, 1)
    await near.until_closed()
    assert listener.stats.downstream_cx_total == 0
    await dispatcher.close()
