"""Listener filters without a socket: built from YAML, fed with data in any pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf import json_format

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Layer, Runtime
from meshproxy.filters.builtin import LISTENER_FILTER_MODULES
from meshproxy.filters.listener_filter import (
    NEEDS_DATA,
    AcceptedSocket,
    ConfiguredListenerFilter,
    ListenerFilterRun,
    build_listener_filters,
)
from meshproxy.net.address import Address
from meshproxy.observe.stats import StatsRegistry

TYPE = "type.googleapis.com/envoy.extensions.filters.listener."
MESSAGES = {
    "tls_inspector": "TlsInspector",
    "http_inspector": "HttpInspector",
    "original_dst": "OriginalDst",
    "proxy_protocol": "ProxyProtocol",
}
assert LISTENER_FILTER_MODULES  # imported, they are registered


class Filters:
    """Configured listener filters and their stats. `entries` are (name, YAML of the message, YAML of the rest)."""

    def __init__(self, *entries: tuple[str, str] | tuple[str, str, str]) -> None:
        made: list[dict[str, Any]] = []
        for name, config, *rest in entries:
            typed = {"@type": f"{TYPE}{name}.v3.{MESSAGES[name]}"} | (yaml.safe_load(config) or {})
            made.append({"name": name, "typed_config": typed} | (yaml.safe_load(rest[0]) if rest else {}))
        message = json_format.ParseDict({"listener_filters": made}, Listener())
        self.errors = ConfigErrors()
        self.stats = StatsRegistry()
        self.context = BuildContext(self.errors, Runtime([Layer("static", {})]), self.stats)
        self.filters = build_listener_filters(message.listener_filters, "listener", self.context)

    def counted(self) -> dict[str, int]:
        """Counters that are not 0."""
        return {name: value for name, value in self.stats.snapshot().counters.items() if value}


def socket_of(remote: str = "192.0.2.1", local: str = "192.0.2.2") -> AcceptedSocket:
    """A connection without a socket, from port 1 to port 2."""
    return AcceptedSocket(None, Address(remote, 1), Address(local, 2))


def run(filters: Sequence[ConfiguredListenerFilter], *pieces: bytes) -> tuple[int, AcceptedSocket, bytes]:
    """The last answer, what is known then, and the data that is left for the filter chain."""
    going = ListenerFilterRun(filters, socket_of())
    verdict = going.start()
    rest = b""
    for piece in pieces:
        if verdict != NEEDS_DATA:
            rest += piece
        elif piece:
            verdict = going.receive(piece)
    return verdict, going.accepted, going.data + rest


def known(accepted: AcceptedSocket) -> dict[str, Any]:
    """All that filters may have said."""
    header = accepted.proxy_header
    return {
        "remote": accepted.remote,
        "local": accepted.local,
        "local_restored": accepted.local_restored,
        "transport_protocol": accepted.transport_protocol,
        "server_name": accepted.server_name,
        "application_protocols": accepted.application_protocols,
        "ja3": accepted.ja3,
        "ja4": accepted.ja4,
        "transport_failure_reason": accepted.transport_failure_reason,
        "dynamic_metadata": accepted.dynamic_metadata,
        "filter_state": accepted.filter_state,
        "proxy_header": None if header is None else (header.remote, header.local, header.tlvs),
    }


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Every way to cut the data in two, and into single bytes."""
    yield [data]
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]
    yield [data[at : at + 1] for at in range(len(data))]


def assert_any_split_is_the_same(entry: tuple[str, str], data: bytes) -> tuple[int, AcceptedSocket, bytes]:
    """The outcome, which is that of every split; the data that is left never gets lost."""
    filters = Filters(entry)
    whole = run(filters.filters, data)
    counted = filters.counted()
    for pieces in splits(data):
        filters = Filters(entry)
        verdict, accepted, rest = run(filters.filters, *pieces)
        assert (verdict, known(accepted), rest) == (whole[0], known(whole[1]), whole[2]), pieces
        assert filters.counted() == counted, pieces
    return whole


def mutations(data: bytes) -> Iterator[bytes]:
    """The data with each of its bytes changed, doubled and left out, and with its end cut off."""
    for at in range(len(data)):
        for byte in (0, 0x0A, 0x7F, 0xFF, data[at] ^ 1, (data[at] + 1) & 0xFF):
            yield data[:at] + bytes([byte]) + data[at + 1 :]
        yield data[:at] + data[at : at + 1] + data[at:]
        yield data[:at] + data[at + 1 :]
        yield data[:at]
