"""Debounce, throttle, identities, and what is shared between names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from meshproxy.pilot.server.debounce import Debounce
from meshproxy.pilot.server.identity import proved
from meshproxy.pilot.server.throttle import Throttle, longest_stalled
from meshproxy.pilot.server.wanted import EVERYTHING, NOTHING, wanted
from meshproxy.pilot.snapshot import Proxy


class FakeLoop:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        self.timers.append((when, callback))

    def advance(self, to: float) -> None:
        self.now = to
        due = [timer for timer in self.timers if timer[0] <= to]
        self.timers = [timer for timer in self.timers if timer[0] > to]
        for _, callback in due:
            callback()


def debounced() -> tuple[FakeLoop, Debounce, list[float]]:
    loop, acts = FakeLoop(), list[float]()
    return loop, Debounce(loop, acts.append, 0.1, 1.0), acts  # type: ignore[arg-type]


def test_a_change_is_acted_upon_when_it_is_quiet() -> None:
    loop, debounce, acts = debounced()
    debounce.touch()
    loop.advance(100.05)
    debounce.touch()
    loop.advance(100.1)
    assert acts == []
    loop.advance(100.15)
    assert acts == [100.0]  # the time of the first one
    loop.advance(101.0)
    assert acts == [100.0]


def test_it_is_acted_upon_though_it_is_never_quiet() -> None:
    loop, debounce, acts = debounced()
    for step in range(24):
        loop.advance(100.0 + step * 0.05)
        debounce.touch()
    assert acts == [100.0]


async def test_writes_wait_in_order_while_too_much_is_under_way() -> None:
    throttle = Throttle(100, 60.0)
    first, order = await throttle.take(80), list[str]()

    async def write(name: str, size: int) -> None:
        hold = await throttle.take(size)
        order.append(name)
        hold.release()

    second = asyncio.ensure_future(write("large", 50))
    third = asyncio.ensure_future(write("small", 10))
    await asyncio.sleep(0)
    assert order == []  # the small one has room, and does not go first
    first.release()
    first.release()
    await asyncio.gather(second, third)
    assert order == ["large", "small"]


async def test_one_that_is_too_large_goes_alone() -> None:
    throttle = Throttle(100, 60.0)
    hold = await throttle.take(1000)
    waiting = asyncio.ensure_future(throttle.take(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    hold.release()
    (await waiting).release()


async def test_who_gives_up_waiting_leaves_room() -> None:
    throttle = Throttle(100, 60.0)
    hold = await throttle.take(60)
    gone, waiting = asyncio.ensure_future(throttle.take(100)), asyncio.ensure_future(throttle.take(40))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    (await waiting).release()
    hold.release()
    (await throttle.take(100)).release()


async def test_a_slow_write_counts_for_a_time_only() -> None:
    throttle = Throttle(100, 0.01)
    slow = await throttle.take(100)
    (await throttle.take(100)).release()
    slow.release()


def test_of_writes_that_stall_the_longest_are_given_up() -> None:
    waiting = {"new": (0.5, 1000), "old": (3.0, 40), "oldest": (9.0, 30), "young": (2.0, 50), "idle": (0.0, 0)}
    assert list(longest_stalled(waiting, 1.0, 120)) == []
    assert list(longest_stalled(waiting, 1.0, 90)) == ["oldest"]
    assert list(longest_stalled(waiting, 1.0, 60)) == ["oldest", "old"]


SPIFFE = "spiffe://cluster.local/ns/shop/sa/cart"


def test_a_certificate_gives_the_service_account() -> None:
    assert proved(Proxy("p", namespace="shop"), ("dns.test", SPIFFE)).service_account == "cart"
    assert proved(Proxy("p", namespace="shop", service_account="cart"), (SPIFFE,)).service_account == "cart"


def test_without_a_spiffe_identity_the_node_is_believed() -> None:
    proxy = Proxy("p", namespace="shop", service_account="cart")
    assert proved(proxy, ("dns.test",)) is proxy


def test_a_certificate_without_an_identity_is_not_enough_where_one_is_required() -> None:
    proxy = Proxy("p", namespace="shop")
    for names in ((), ("https://shop.test",), ("spiffe://cluster.local/shop",)):
        with pytest.raises(ValueError, match="the certificate has no SPIFFE identity"):
            proved(proxy, names, required=True)
    assert proved(proxy, (SPIFFE,), required=True).service_account == "cart"
    assert proved(proxy, None, required=True) is proxy  # by a Unix socket: there are no certificates


@pytest.mark.parametrize("proxy", [Proxy("p", namespace="other"), Proxy("p", namespace="shop", service_account="x")])
def test_who_says_something_else_than_its_certificate_is_refused(proxy: Proxy) -> None:
    with pytest.raises(ValueError, match="its certificate says shop/cart"):
        proved(proxy, (SPIFFE,))


def test_equal_wishes_are_one_object() -> None:
    assert wanted(["b", "a"]) is wanted(["a", "b"])
    assert wanted(["*"]) is EVERYTHING
    assert wanted() is NOTHING
    assert wanted(["a", "*"]) is not wanted(["a"])
