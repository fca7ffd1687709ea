"""Snapshots: one for each scope that has clients, built apart, and shown to whom they concern."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from meshproxy.pilot.server.metrics import Metrics
from meshproxy.pilot.server.snapshots import Snapshots
from meshproxy.pilot.server.view import View
from meshproxy.pilot.snapshot import Proxy, Snapshot
from tests.pilot.server.support import FixedBuilder, cluster, snapshot

ONE = snapshot(clusters=[cluster("one")])
TWO = snapshot(clusters=[cluster("two")])


class Client:
    """Remembers what it was shown."""

    def __init__(self, namespace: str) -> None:
        self.proxy = Proxy("p", namespace=namespace)
        self.shown: list[View] = []

    def show(self, view: View) -> None:
        self.shown.append(view)

    def turn_away(self, reason: str) -> None:
        raise AssertionError(reason)

    @property
    def snapshots(self) -> list[Snapshot]:
        return [view.snapshot for view in self.shown]


@asynccontextmanager
async def snapshots(builder: Any) -> AsyncIterator[Snapshots]:
    made = Snapshots(builder, Metrics())
    made.start()
    try:
        yield made
    finally:
        await made.close()


async def test_clients_of_one_scope_share_one_snapshot() -> None:
    builder = FixedBuilder()
    async with snapshots(builder) as found:
        found.update({"a": ONE, "b": TWO})
        first, second, other = Client("a"), Client("a"), Client("b")
        for client in (first, second, other):
            found.join(client)
        await found.settled()
        assert first.shown == second.shown
        assert (first.snapshots, other.snapshots) == ([ONE], [TWO])
        assert builder.built == [("a", None), ("b", None)]


async def test_who_comes_later_is_shown_it_at_once() -> None:
    builder = FixedBuilder()
    async with snapshots(builder) as found:
        found.update({"a": ONE})
        first, late = Client("a"), Client("a")
        found.join(first)
        await found.settled()
        found.join(late)
        assert late.shown == first.shown
        assert len(builder.built) == 1


async def test_a_scope_that_does_not_change_is_not_shown_again() -> None:
    builder = FixedBuilder()
    async with snapshots(builder) as found:
        first, other = Client("a"), Client("b")
        found.join(first)
        found.join(other)
        found.update({"a": ONE, "b": ONE})
        await found.settled()
        found.update({"a": TWO, "b": ONE})
        await found.settled()
        assert first.snapshots == [ONE, TWO]
        assert other.snapshots == [ONE]
        assert builder.built[2:] == [("a", ONE), ("b", ONE)]


async def test_a_scope_without_clients_is_forgotten() -> None:
    builder = FixedBuilder()
    async with snapshots(builder) as found:
        found.update({"a": ONE})
        client = Client("a")
        found.join(client)
        await found.settled()
        found.leave(client)
        assert not found.scopes
        found.update({"a": TWO})
        await found.settled()
        assert len(builder.built) == 1


class MovingBuilder(FixedBuilder):
    """A mesh says which scope everybody belongs to."""

    def scope_of(self, mesh: Any, proxy: Proxy) -> Any:
        return mesh["scope"]


async def test_a_change_may_move_a_client_to_another_scope() -> None:
    async with snapshots(MovingBuilder()) as found:
        client = Client("a")
        found.join(client)
        found.update({"scope": "x", "x": ONE})
        await found.settled()
        found.update({"scope": "y", "x": ONE, "y": TWO})
        await found.settled()
        assert client.snapshots == [ONE, TWO]
        assert list(found.scopes) == ["y"]


async def test_what_cannot_be_built_leaves_what_there_was() -> None:
    builder = FixedBuilder()
    async with snapshots(builder) as found:
        first, other = Client("a"), Client("b")
        found.join(first)
        found.join(other)
        found.update({"a": ONE, "b": ONE})
        await found.settled()
        builder.failing = {"a"}
        found.update({"a": TWO, "b": TWO})
        await found.settled()
        assert (first.snapshots, other.snapshots) == ([ONE], [ONE, TWO])
        assert found.scopes["a"].error == "RuntimeError: a is not to be built"
        builder.failing = set()
        found.update({"a": TWO, "b": TWO})
        await found.settled()
        assert first.snapshots == [ONE, TWO]
        assert found.scopes["a"].error == ""
        assert builder.built[-2:] == [("a", None), ("b", TWO)]  # from nothing: who knows what became of `previous`


async def test_a_client_that_nobody_knows_a_scope_for_keeps_its_own() -> None:
    async with snapshots(FixedBuilder()) as found:
        client = Client("a")
        found.join(client)
        found.update({"a": ONE})
        await found.settled()
        found.update({"b": TWO})
        await found.settled()
        assert client.snapshots == [ONE]


class SlowBuilder(FixedBuilder):
    """Waits in its thread until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.may_go = threading.Event(), threading.Event()

    def build_snapshot(self, mesh: Any, scope: Any, previous: Snapshot | None) -> Snapshot:
        self.begun.set()
        assert self.may_go.wait(20.0)
        return super().build_snapshot(mesh, scope, previous)


async def test_a_change_while_it_builds_is_taken_up_next() -> None:
    builder = SlowBuilder()
    async with snapshots(builder) as found:
        client = Client("a")
        found.join(client)
        found.update({"a": ONE})
        await asyncio.to_thread(builder.begun.wait)
        late = Client("a")
        found.join(late)
        found.update({"a": TWO})  # the loop goes on
        builder.may_go.set()
        await found.settled()
        assert client.snapshots == [ONE, TWO]
        assert late.snapshots == [ONE, TWO]
        assert len(builder.built) == 2
