"""Filter chains and connections at random, and which chain a connection gets by the words of Envoy's documentation."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from typing import Any

from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from google.protobuf import json_format

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Layer, Runtime
from meshproxy.filters.listener_filter import AcceptedSocket
from meshproxy.net.address import Address
from meshproxy.observe.stats import StatsRegistry
from meshproxy.server.filter_chain_match import FilterChainMatcher, build_filter_chain_matcher

Match = dict[str, Any]  # a FilterChainMatch as JSON

RANGES = (
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.1.0/24",
    "10.1.1.1/32",
    "10.1.2.0/24",
    "11.0.0.0/7",
    "2001:db8::/32",
    "::/1",
)
ADDRESSES = (
    "10.1.1.1",
    "10.1.1.2",
    "10.1.2.1",
    "10.2.0.1",
    "11.0.0.1",
    "9.9.9.9",
    "2001:db8::1",
    "2002::1",
    "127.0.0.1",
)
SERVER_NAMES = ("a.b.c", "*.b.c", "*.c", "x.b.c", "a.c", "*.a.b.c")
REQUESTED_NAMES = ("", "a.b.c", "x.b.c", "y.b.c", "b.c", "c", "a.c", "z.a.b.c", "q.w.a.b.c", "other")
PROTOCOLS = ("h2", "http/1.1", "x")
PORTS = (7, 8)


def range_message(text: str) -> dict[str, Any]:
    """A CidrRange."""
    prefix, _, length = text.partition("/")
    return {"address_prefix": prefix, "prefix_len": int(length)}


def random_match(rng: random.Random) -> Match:
    """A FilterChainMatch with few criteria, so that several chains meet."""
    match: Match = {}
    some: dict[str, Callable[[], Any]] = {
        "destination_port": lambda: rng.choice(PORTS),
        "prefix_ranges": lambda: [range_message(each) for each in rng.sample(RANGES, rng.randint(1, 2))],
        "server_names": lambda: rng.sample(SERVER_NAMES, rng.randint(1, 2)),
        "transport_protocol": lambda: rng.choice(("tls", "raw_buffer")),
        "application_protocols": lambda: rng.sample(PROTOCOLS, rng.randint(1, 2)),
        "direct_source_prefix_ranges": lambda: [range_message(rng.choice(("127.0.0.2/31", "127.0.0.2/32")))],
        "source_type": lambda: rng.choice(("SAME_IP_OR_LOOPBACK", "EXTERNAL")),
        "source_prefix_ranges": lambda: [range_message(each) for each in rng.sample(RANGES, rng.randint(1, 2))],
        "source_ports": lambda: rng.sample(PORTS, rng.randint(1, 2)),
    }
    for name, value in some.items():
        if rng.random() < 0.25:
            match[name] = value()
    return match


def random_connection(rng: random.Random) -> AcceptedSocket:
    """A connection as listener filters leave it: through a proxy, with TLS or without."""
    direct = Address(rng.choice(("127.0.0.1", "127.0.0.2", "127.0.0.3")), 1)
    accepted = AcceptedSocket(None, direct, Address("127.0.0.1", 2))
    remote = rng.choice(ADDRESSES)
    same_family = [each for each in ADDRESSES if (":" in each) == (":" in remote)]
    accepted.remote = Address(remote, rng.choice((7, 8, 9)))
    accepted.local = Address(rng.choice(same_family), rng.choice((7, 8, 9)))
    if rng.random() < 0.7:
        accepted.transport_protocol = "tls"
        accepted.server_name = rng.choice(REQUESTED_NAMES)
        accepted.application_protocols = rng.sample(("h2", "http/1.1", "other"), rng.randint(0, 3))
    return accepted


def build(*matches: Match) -> tuple[FilterChainMatcher | None, ConfigErrors]:
    """The matcher of chains named c0, c1 …"""
    errors = ConfigErrors()
    context = BuildContext(errors, Runtime([Layer("static", {})]), StatsRegistry())
    chains = [
        json_format.ParseDict({"name": f"c{index}", "filter_chain_match": match}, FilterChain())
        for index, match in enumerate(matches)
    ]
    return build_filter_chain_matcher(chains, "listener", context), errors


def random_chains(rng: random.Random) -> list[Match]:
    """Chains that do not compete."""
    chosen: list[Match] = []
    for _ in range(rng.randint(1, 12)):
        match = random_match(rng)
        if build(*chosen, match)[0] is not None:
            chosen.append(match)
    return chosen


# A rank says how specific the value is that a chain matches by; None that it does not match.
Rank = float | None


def expected_chain(matches: list[Match], accepted: AcceptedSocket) -> int | None:
    """Criterion by criterion, only the chains stay that match by the most specific value that any of them has."""
    left = list(range(len(matches)))
    for criterion in CRITERIA:
        ranks = {index: criterion(matches[index], accepted) for index in left}
        best = max((rank for rank in ranks.values() if rank is not None), default=None)
        left = [index for index in left if ranks[index] is not None and ranks[index] == best]
    assert len(left) <= 1
    return left[0] if left else None


def _by_port(match: Match, accepted: AcceptedSocket) -> Rank:
    port = match.get("destination_port")
    return 0 if port is None else 1 if port == accepted.local.port else None


def _by_range(field: str, address_of: Callable[[AcceptedSocket], Address]) -> Callable[[Match, AcceptedSocket], Rank]:
    def rank(match: Match, accepted: AcceptedSocket) -> Rank:
        if field not in match:
            return -1
        address = ipaddress.ip_address(address_of(accepted).ip)
        lengths = [
            network.prefixlen
            for each in match[field]
            if address in (network := ipaddress.ip_network(f"{each['address_prefix']}/{each['prefix_len']}", False))
        ]
        return max(lengths, default=None)

    return rank


def _by_server_name(match: Match, accepted: AcceptedSocket) -> Rank:
    if "server_names" not in match:
        return -1
    name = accepted.server_name
    ranks = [
        1000.0 if given == name else float(len(given))
        for given in match["server_names"]
        if given == name or (given.startswith("*.") and name.endswith(given[1:]))
    ]
    return max(ranks, default=None)


def _by_transport(match: Match, accepted: AcceptedSocket) -> Rank:
    given = match.get("transport_protocol")
    return 0 if given is None else 1 if given == (accepted.transport_protocol or "raw_buffer") else None


def _by_application(match: Match, accepted: AcceptedSocket) -> Rank:
    if "application_protocols" not in match:
        return -100
    offered = accepted.application_protocols
    return max((-offered.index(each) for each in match["application_protocols"] if each in offered), default=None)


def _by_source_type(match: Match, accepted: AcceptedSocket) -> Rank:
    given = match.get("source_type")
    if given is None:
        return 0
    local = accepted.remote.ip in ("127.0.0.1", "::1") or accepted.remote.ip == accepted.local.ip
    return 1 if local == (given == "SAME_IP_OR_LOOPBACK") else None


def _by_source_port(match: Match, accepted: AcceptedSocket) -> Rank:
    if "source_ports" not in match:
        return 0
    return 1 if accepted.remote.port in match["source_ports"] else None


CRITERIA: tuple[Callable[[Match, AcceptedSocket], Rank], ...] = (
    _by_port,
    _by_range("prefix_ranges", lambda accepted: accepted.local),
    _by_server_name,
    _by_transport,
    _by_application,
    _by_range("direct_source_prefix_ranges", lambda accepted: accepted.direct_remote),
    _by_source_type,
    _by_range("source_prefix_ranges", lambda accepted: accepted.remote),
    _by_source_port,
)
