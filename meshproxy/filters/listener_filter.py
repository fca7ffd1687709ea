"""The contract of a listener filter: it looks at a connection before a filter chain is picked.

Listener filters run in their order, each to its end. One that needs bytes of the connection says how many at most, and
is given all that has come, again and again, until it goes on or closes; what it does not `consume` is read by the
filters behind it and by the filter chain, so nothing is peeked at and nothing is lost.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Final

from meshproxy.config.context import BuildContext
from meshproxy.config.registry import Registry
from meshproxy.net.address import Address

CONTINUE: Final = 0
NEEDS_DATA: Final = 1
CLOSE: Final = 2


class AcceptedSocket:
    """What is known of a connection before it has a filter chain; filters add to it."""

    def __init__(self, sock: socket.socket | None, remote: Address, local: Address) -> None:
        self.sock = sock  # for socket options; None in tests without one
        self.direct_remote = remote
        self.direct_local = local
        self.remote = remote  # after proxy_protocol
        self.local = local  # after original_dst or proxy_protocol
        self.local_restored: bool = False  # `local` is the original destination: use_original_dst goes by it
        self.transport_protocol: str = ""  # "tls" or "raw_buffer"; "" reads as raw_buffer
        self.server_name: str = ""  # SNI, lower case
        self.application_protocols: list[str] = []  # ALPN, or what http_inspector saw: http/1.0, http/1.1, h2c
        self.ja3: str = ""
        self.ja4: str = ""
        self.dynamic_metadata: dict[str, dict[str, Any]] = {}
        self.filter_state: dict[str, Any] = {}
        self.proxy_protocol: Any = None  # what proxy_protocol read, for the upstream transport socket of that name
        self.termination_details: str = ""  # why a filter closed it: CONNECTION_TERMINATION_DETAILS
        self.consumed: int = 0  # bytes at the front of the data that belong to filters only

    def consume(self, count: int) -> None:
        """The first `count` bytes of the data that the filter was given are not for anybody behind it."""
        self.consumed += count


class ListenerFilter:
    """One per connection."""

    max_read_bytes: int = 0  # 0: it reads nothing

    def on_accept(self, accepted: AcceptedSocket) -> int:
        """CONTINUE, NEEDS_DATA or CLOSE."""
        raise NotImplementedError

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int:
        """All data that has come (without what earlier filters consumed), at most `max_read_bytes` of it. NEEDS_DATA
        with `max_read_bytes` of data closes the connection."""
        raise NotImplementedError

    def on_eof(self, accepted: AcceptedSocket) -> int:
        """The peer sends nothing more: CONTINUE or CLOSE."""
        return CLOSE


class ListenerFilterFactory:
    """The configuration of a listener filter; makes one for each connection."""

    def new(self) -> ListenerFilter:
        raise NotImplementedError


ListenerFilterBuilder = Callable[[Any, str, BuildContext], ListenerFilterFactory | None]
LISTENER_FILTERS: Final[Registry[ListenerFilterBuilder]] = Registry("listener filter")
