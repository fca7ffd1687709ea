"""A certificate with a key that is made here, and its successors: each comes at about two thirds of a life."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final

from meshproxy.pilot.authority.contract import Authority, Caller, Issued, Refused

# Of what is left of a life: two thirds in the middle, so that those who came together do not come back together.
_EARLIEST: Final = 0.6
_LATEST: Final = 0.73
_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 60.0
_SPREAD_S: Final = 2.0  # in which all renew whose certificates fell together
_log: Final = logging.getLogger("meshproxy.pilot")


def renewal_delay_s(left_s: float, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """When to renew what lives for so long yet."""
    return max(left_s, 0.0) * uniform(_EARLIEST, _LATEST)


def retry_delay_s(failures: int, lifetime_s: float, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """After the first failure, the second …: twice as long each time, anywhere within it, but never long against a
    life."""
    longest = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(failures - 1, 16), lifetime_s / 10.0)
    return uniform(longest / 10.0, longest)


class RenewedCertificate:
    """Of `caller`. Each is used until there is another, even after it has ended; one that was revoked, or whose root is
    no longer trusted, is renewed soon. `on_change` is called when `current` is another one, but for that of `start`."""

    def __init__(
        self,
        authority: Authority,
        caller: Caller,
        on_change: Callable[[], None],
        *,
        lifetime_s: float = 0.0,
        dns_names: tuple[str, ...] = (),
    ) -> None:
        self.current: Issued | None = None
        self._authority = authority
        self._caller = caller
        self._on_change = on_change
        self._lifetime_s = lifetime_s
        self._dns_names = dns_names
        self._task: asyncio.Task[None] | None = None
        self._fallen = asyncio.Event()  # the current one does not stand any more
        self._unwatch = authority.watch(self._look)

    def begin(self) -> None:
        """Get the first one, as soon as the authority gives it."""
        self._task = asyncio.ensure_future(self._renew(None))

    async def start(self) -> None:
        """Get the first one now. Raises Refused."""
        self.current = await self._issue()
        self._task = asyncio.ensure_future(self._renew(self.current))

    def close(self) -> None:
        """Renew no more."""
        self._unwatch()
        self._unwatch = _nothing
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _issue(self) -> Issued:
        return await self._authority.issue(self._caller, self._lifetime_s, self._dns_names)

    async def _renew(self, issued: Issued | None) -> None:
        while True:
            if issued is not None:
                await self._until_due(issued)
            lifetime_s = _LAST_RETRY_S if issued is None else issued.not_after - issued.not_before
            issued = self.current = await self._next(lifetime_s)
            self._fallen.clear()
            self._on_change()

    def _look(self) -> None:
        if self.current is not None and not self._authority.stands(self.current):
            self._fallen.set()

    async def _until_due(self, issued: Issued) -> None:
        try:
            async with asyncio.timeout(renewal_delay_s(issued.not_after - time.time())):
                await self._fallen.wait()
        except TimeoutError:
            return
        await asyncio.sleep(random.uniform(0.0, _SPREAD_S))

    async def _next(self, lifetime_s: float) -> Issued:
        failures = 0
        while True:
            try:
                return await self._issue()
            except Refused as refused:
                failures += 1
                pause_s = retry_delay_s(failures, lifetime_s)
                _log.warning(
                    "no new certificate for %s, again in %.1f s: %s", self._caller.identity.uri, pause_s, refused.reason
                )
            await asyncio.sleep(pause_s)


def _nothing() -> None:
    """There is nothing to end any more."""
