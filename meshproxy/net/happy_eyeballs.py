"""Connecting to a host that has several addresses (RFC 8305): the next one is tried when the one before takes long."""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from meshproxy.net.address import Address
from meshproxy.net.connect import ConnectAttempt, ConnectHandler
from meshproxy.net.connection import Connection
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.timers import CallTimer

ATTEMPT_DELAY_MS: Final = 300.0  # Envoy's; RFC 8305 section 5 recommends 250

# UpstreamConnectionOptions.FirstAddressFamilyVersion
FIRST_DEFAULT: Final = 0
FIRST_V4: Final = 1
FIRST_V6: Final = 2

_PREFERRED: Final = {FIRST_V4: "v4", FIRST_V6: "v6"}


class FamilyOrder:
    """In which order addresses are tried: `count` of the family that goes first, then one of each other family, and so
    on (RFC 8305 section 4)."""

    def __init__(self, first: int = FIRST_DEFAULT, count: int = 1) -> None:
        self.first = first
        self.count = count

    def sorted(self, addresses: list[Address]) -> list[Address]:
        """The addresses in this order; those of a family stay in theirs."""
        by_family: dict[str, list[Address]] = {}
        preferred = _family(addresses[0]) if self.first == FIRST_DEFAULT else _PREFERRED.get(self.first, "")
        if preferred:
            by_family[preferred] = []
        for address in addresses:
            by_family.setdefault(_family(address), []).append(address)
        found: list[Address] = []
        while len(found) < len(addresses):
            for family, left in by_family.items():
                count = self.count if family == preferred else 1
                found.extend(left[:count])
                del left[:count]
        return found


def _family(address: Address) -> str:
    return "pipe" if address.path else "v6" if ":" in address.ip else "v4"


@mypyc_attr(allow_interpreted_subclasses=True)
class Opener:
    """Opens one connection to one of the addresses."""

    def open(self, address: Address, handler: ConnectHandler) -> ConnectAttempt:
        """As `net.connect.connect`: the handler hears of it in a later turn."""
        raise NotImplementedError


class HappyEyeballs(ConnectAttempt):
    """Attempts at several addresses, of which the first that succeeds counts. It is the timeout of them all."""

    def __init__(
        self, dispatcher: Dispatcher, handler: ConnectHandler, opener: Opener, addresses: list[Address]
    ) -> None:
        super().__init__(dispatcher, handler)
        self._opener = opener
        self._addresses = addresses
        self._tried: int = 0
        self._candidates: list[_Candidate] = []
        self._next_attempt = CallTimer(self._try_next)

    def begin(self, timeout_ms: float) -> None:
        self._dispatcher.timers.arm(self, timeout_ms)
        self._try_next()

    def _try_next(self) -> None:
        handler = self._handler
        if handler is None:
            return
        address = self._addresses[self._tried]
        if self._tried:
            handler.on_another_attempt()
        self._tried += 1
        candidate = _Candidate(self)
        self._candidates.append(candidate)
        candidate.attempt = self._opener.open(address, candidate)
        if self._tried < len(self._addresses):
            self._dispatcher.timers.arm(self._next_attempt, ATTEMPT_DELAY_MS)

    def _stop(self) -> None:
        """Give up all that are under way."""
        candidates, self._candidates = self._candidates, []
        for candidate in candidates:
            if candidate.attempt is not None:
                candidate.attempt.cancel()

    def _finish(self) -> ConnectHandler | None:
        self._next_attempt.disarm()
        return super()._finish()

    def on_candidate_connected(self, candidate: _Candidate, connection: Connection) -> None:
        """Within a turn."""
        self._candidates.remove(candidate)
        self.connection = connection
        self.on_connected(connection)
        self._stop()

    def on_candidate_failed(self, candidate: _Candidate, reason: int, details: str) -> None:
        """Within a turn."""
        self._candidates.remove(candidate)
        if self._tried < len(self._addresses):
            self._try_next()
        elif not self._candidates:
            handler = self._finish()
            if handler is not None:
                handler.on_connect_failure(reason, details)


class _Candidate(ConnectHandler):
    """One of the attempts."""

    def __init__(self, parent: HappyEyeballs) -> None:
        self.attempt: ConnectAttempt | None = None
        self._parent = parent

    def on_connected(self, connection: Connection) -> None:
        self._parent.on_candidate_connected(self, connection)

    def on_connect_failure(self, reason: int, details: str) -> None:
        self._parent.on_candidate_failed(self, reason, details)

    def on_data(self, data: bytes) -> None:
        """The handler that the connection is for has taken over."""
