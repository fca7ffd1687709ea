"""The contract of a listener filter: it looks at a connection before a filter chain is picked.

Listener filters run in their order, each to its end. One that needs bytes of the connection is given all that has come,
again and again, until it goes on or closes; what it does not `consume` is read by the filters behind it and by the
filter chain, so nothing is peeked at and nothing is lost. There is no I/O and no timer here: who owns the connection
feeds a `ListenerFilterRun`, and decides how long a run may take.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.registry import Registry
from meshproxy.net.address import Address
from meshproxy.net.proxy_protocol import ProxyHeader

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
        self.transport_failure_reason: str = ""  # DOWNSTREAM_TRANSPORT_FAILURE_REASON
        self.dynamic_metadata: dict[str, dict[str, Any]] = {}
        self.filter_state: dict[str, Any] = {}
        self.proxy_header: ProxyHeader | None = None  # for the upstream transport socket `proxy_protocol`
        self.consumed: int = 0  # bytes at the front of the data that belong to filters only

    def consume(self, count: int) -> None:
        """The first `count` bytes of the data that the filter was given are not for anybody behind it."""
        self.consumed += count

    def set_metadata(self, namespace: str, key: str, value: Any) -> None:
        """Put one value into the dynamic metadata of the connection."""
        self.dynamic_metadata.setdefault(namespace, {})[key] = value


class ListenerFilter:
    """One per connection. Nothing here raises for what a peer sends."""

    max_read_bytes: int = 0  # how much of the data it may ask for; it may change while it runs

    def on_accept(self, accepted: AcceptedSocket) -> int:
        """CONTINUE, NEEDS_DATA or CLOSE."""
        raise NotImplementedError

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int:
        """All data that has come (without what earlier filters consumed), at most `max_read_bytes` of it. What it
        answers is the same however the data was cut. NEEDS_DATA with all of `max_read_bytes` closes the connection,
        unless the filter has raised that."""
        return CONTINUE


class ListenerFilterFactory:
    """The configuration of a listener filter; makes one for each connection."""

    def new(self) -> ListenerFilter:
        raise NotImplementedError


ListenerFilterBuilder = Callable[[Any, str, BuildContext], ListenerFilterFactory | None]
LISTENER_FILTERS: Final[Registry[ListenerFilterBuilder]] = Registry("listener filter")


class ListenerFilterPredicate:
    """When a listener filter is left out (`filter_disabled`)."""

    def matches(self, accepted: AcceptedSocket) -> bool:
        raise NotImplementedError


class ConfiguredListenerFilter:
    """One entry of `listener_filters`."""

    def __init__(self, factory: ListenerFilterFactory, disabled: ListenerFilterPredicate | None) -> None:
        self.factory = factory
        self.disabled = disabled


class ListenerFilterRun:
    """The listener filters of one connection at work.

    `start`, then `receive` for all that comes, until one answers CONTINUE or CLOSE; afterwards `data` is what the
    filter chain reads first. While NEEDS_DATA is the answer, `data` is shorter than the filter's `max_read_bytes`, so a
    run holds that and one read at most. An end of the connection before the last answer closes it, as Envoy does: no
    filter has to be told.
    """

    def __init__(
        self, filters: Sequence[ConfiguredListenerFilter], accepted: AcceptedSocket, data: bytes = b""
    ) -> None:
        self.accepted = accepted
        self.data = data  # what has come, less what filters consumed
        self._filters = filters
        self._next = 0
        self._current: ListenerFilter | None = None

    def start(self) -> int:
        """Run the filters that need no data, up to the first that does."""
        while self._next < len(self._filters):
            entry = self._filters[self._next]
            self._next += 1
            if entry.disabled is not None and entry.disabled.matches(self.accepted):
                continue
            current = entry.factory.new()
            verdict = current.on_accept(self.accepted)
            if verdict == NEEDS_DATA:
                self._current = current
                verdict = self._ask(current) if self.data else NEEDS_DATA
            if verdict != CONTINUE:
                return verdict
            self._current = None
        return CONTINUE

    def receive(self, data: bytes) -> int:
        """More data has come, after NEEDS_DATA."""
        self.data += data
        assert self._current is not None
        verdict = self._ask(self._current)
        if verdict != CONTINUE:
            return verdict
        self._current = None
        return self.start()

    def _ask(self, current: ListenerFilter) -> int:
        accepted = self.accepted
        while True:
            limit = current.max_read_bytes
            verdict = current.on_data(accepted, self.data[:limit])
            if accepted.consumed:
                self.data = self.data[accepted.consumed :]
                accepted.consumed = 0
            if verdict != NEEDS_DATA or len(self.data) < limit:
                return verdict
            if current.max_read_bytes <= limit:
                return CLOSE


# -- from messages


def build_listener_filters(entries: Sequence[Any], path: str, context: BuildContext) -> list[ConfiguredListenerFilter]:
    """A Listener's `listener_filters` (`path` is the Listener's); errors go to the context."""
    built: list[ConfiguredListenerFilter] = []
    for index, entry in enumerate(entries):
        where = item(path, "listener_filters", index)
        found = LISTENER_FILTERS.find(entry.typed_config, child(where, "typed_config"), context)
        if found is None:
            continue
        config, builder = found
        context.filter_name = entry.name
        factory = builder(config, child(where, "typed_config"), context)
        disabled = build_predicate(entry.filter_disabled) if entry.HasField("filter_disabled") else None
        if factory is not None:
            built.append(ConfiguredListenerFilter(factory, disabled))
    return built


class _Always(ListenerFilterPredicate):
    def matches(self, accepted: AcceptedSocket) -> bool:
        return True


class _DestinationPort(ListenerFilterPredicate):
    """A range without its end. A Unix socket has no port, and Envoy lets it match every range."""

    def __init__(self, start: int, end: int) -> None:
        self._start = start
        self._end = end

    def matches(self, accepted: AcceptedSocket) -> bool:
        local = accepted.local
        return bool(local.path) or self._start <= local.port < self._end


class _Any(ListenerFilterPredicate):
    def __init__(self, rules: list[ListenerFilterPredicate]) -> None:
        self._rules = rules

    def matches(self, accepted: AcceptedSocket) -> bool:
        return any(rule.matches(accepted) for rule in self._rules)


class _All(ListenerFilterPredicate):
    def __init__(self, rules: list[ListenerFilterPredicate]) -> None:
        self._rules = rules

    def matches(self, accepted: AcceptedSocket) -> bool:
        return all(rule.matches(accepted) for rule in self._rules)


class _Not(ListenerFilterPredicate):
    def __init__(self, rule: ListenerFilterPredicate) -> None:
        self._rule = rule

    def matches(self, accepted: AcceptedSocket) -> bool:
        return not self._rule.matches(accepted)


def build_predicate(message: Any) -> ListenerFilterPredicate:
    """A ListenerFilterChainMatchPredicate that `validate` accepted: exactly one of its rules is there."""
    kind = message.WhichOneof("rule")
    if kind == "or_match":
        return _Any([build_predicate(rule) for rule in message.or_match.rules])
    if kind == "and_match":
        return _All([build_predicate(rule) for rule in message.and_match.rules])
    if kind == "not_match":
        return _Not(build_predicate(message.not_match))
    if kind == "destination_port_range":
        return _DestinationPort(message.destination_port_range.start, message.destination_port_range.end)
    return _Always()
