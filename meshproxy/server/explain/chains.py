"""Why connections pass filter chains over. Which one they get is `FilterChainMatcher`'s to say.

The criteria are looked at in their order; at each, only the chains with the most specific value that fits stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from meshproxy.filters.listener_filter import AcceptedSocket
from meshproxy.net.address import Address
from meshproxy.server.filter_chain_match import ip_number, is_same_ip_or_loopback

Rank = float | None  # how specific the value is that fits; None: none does

_ANY: Final = 0  # ConnectionSourceType
_SAME_IP_OR_LOOPBACK: Final = 1
_UNNAMED: Final = -1.0  # the rank of a chain that does not name the criterion, where others go up from 0
_EXACT: Final = 1000.0  # more than the length of any server name
_MOST_SHOWN: Final = 4


class _Criterion:
    def __init__(
        self,
        name: str,
        rank: Callable[[Any, AcceptedSocket], Rank],
        given: Callable[[AcceptedSocket], str],
        asked: Callable[[Any], Sequence[str]],
    ) -> None:
        self.name = name
        self.rank = rank
        self.given = given
        self.asked = asked

    def mismatch(self, match: Any, accepted: AcceptedSocket) -> str:
        """`destination port is 80, and must be 443`."""
        asked = list(self.asked(match))
        shown = ", ".join(asked[:_MOST_SHOWN]) + (f" … ({len(asked)} in all)" if len(asked) > _MOST_SHOWN else "")
        given = self.given(accepted) or "not known"
        return f"{self.name} is {given}, and must be {'one of ' if len(asked) > 1 else ''}{shown}"


def passed_over(chains: Sequence[Any], labels: Sequence[str], accepted: AcceptedSocket) -> list[str]:
    """Why each of the FilterChain messages, named by `labels`, is not the one; "" of the one that is, if there is."""
    reasons = [""] * len(chains)
    left = list(range(len(chains)))
    for criterion in _CRITERIA:
        ranks = {index: criterion.rank(chains[index].filter_chain_match, accepted) for index in left}
        best = max([rank for rank in ranks.values() if rank is not None], default=0.0)
        winner = next((labels[index] for index in left if ranks[index] == best), "")
        for index, rank in ranks.items():
            if rank is None:
                reasons[index] = criterion.mismatch(chains[index].filter_chain_match, accepted)
            elif rank < best:
                reasons[index] = f"{criterion.name}: that of {winner} is more specific, and there is no way back"
        left = [index for index in left if ranks[index] == best]
    return reasons


def _port(match: Any, accepted: AcceptedSocket) -> Rank:
    if not match.destination_port.value:
        return 0
    return 1 if not accepted.local.path and match.destination_port.value == accepted.local.port else None


def _range(field: str, address_of: Callable[[AcceptedSocket], Address]) -> Callable[[Any, AcceptedSocket], Rank]:
    def rank(match: Any, accepted: AcceptedSocket) -> Rank:
        ranges = getattr(match, field)
        return max([_length(each, address_of(accepted)) for each in ranges], default=_UNNAMED, key=_order)

    return rank


def _order(rank: Rank) -> float:
    return -2.0 if rank is None else rank


def _length(each: Any, address: Address) -> Rank:
    """The prefix length of a CidrRange that holds the address."""
    if address.path:
        return None
    family, number = ip_number(address.ip)
    own, prefix = ip_number(each.address_prefix)
    bits = 32 if own == 4 else 128
    length: int = min(each.prefix_len.value, bits)
    return length if family == own and number >> (bits - length) == prefix >> (bits - length) else None


def _server_name(match: Any, accepted: AcceptedSocket) -> Rank:
    if not match.server_names:
        return _UNNAMED
    ranks = [_name_rank(name.lower().removeprefix("*"), accepted.server_name) for name in match.server_names]
    return max(ranks, key=_order)


def _name_rank(name: str, requested: str) -> Rank:
    if name == requested:
        return _EXACT if name else _UNNAMED
    wild = name.startswith(".") and requested.endswith(name) and len(requested) > len(name)
    return len(name) if wild else _UNNAMED if not name else None


def _transport(match: Any, accepted: AcceptedSocket) -> Rank:
    if not match.transport_protocol:
        return 0
    return 1 if match.transport_protocol == _transport_of(accepted) else None


def _application(match: Any, accepted: AcceptedSocket) -> Rank:
    """The client's first protocol that any chain has decides."""
    offered = accepted.application_protocols
    ranks: list[Rank] = [-float(offered.index(each)) for each in match.application_protocols if each in offered]
    if not match.application_protocols or "" in match.application_protocols:
        ranks.append(-float(len(offered)) - 1)
    return max(ranks, default=None, key=_order_of_protocols)


def _order_of_protocols(rank: Rank) -> float:
    return float("-inf") if rank is None else rank


def _source_type(match: Any, accepted: AcceptedSocket) -> Rank:
    if match.source_type == _ANY:
        return 0
    return 1 if is_same_ip_or_loopback(accepted) == (match.source_type == _SAME_IP_OR_LOOPBACK) else None


def _source_port(match: Any, accepted: AcceptedSocket) -> Rank:
    if not match.source_ports:
        return 0
    return 1 if accepted.remote.port in match.source_ports else None


def _transport_of(accepted: AcceptedSocket) -> str:
    return accepted.transport_protocol or "raw_buffer"


def _ranges_of(field: str) -> Callable[[Any], Sequence[str]]:
    return lambda match: [f"{each.address_prefix}/{each.prefix_len.value}" for each in getattr(match, field)]


_CRITERIA: Final = (
    _Criterion(
        "destination port",
        _port,
        lambda accepted: str(accepted.local.port),
        lambda match: [str(match.destination_port.value)],
    ),
    _Criterion(
        "destination address",
        _range("prefix_ranges", lambda accepted: accepted.local),
        lambda accepted: accepted.local.ip or accepted.local.path,
        _ranges_of("prefix_ranges"),
    ),
    _Criterion(
        "server name", _server_name, lambda accepted: accepted.server_name, lambda match: list(match.server_names)
    ),
    _Criterion("transport protocol", _transport, _transport_of, lambda match: [match.transport_protocol]),
    _Criterion(
        "application protocol",
        _application,
        lambda accepted: ", ".join(accepted.application_protocols),
        lambda match: list(match.application_protocols),
    ),
    _Criterion(
        "direct source address",
        _range("direct_source_prefix_ranges", lambda accepted: accepted.direct_remote),
        lambda accepted: accepted.direct_remote.ip or accepted.direct_remote.path,
        _ranges_of("direct_source_prefix_ranges"),
    ),
    _Criterion(
        "source type",
        _source_type,
        lambda accepted: "SAME_IP_OR_LOOPBACK" if is_same_ip_or_loopback(accepted) else "EXTERNAL",
        lambda match: ["SAME_IP_OR_LOOPBACK" if match.source_type == _SAME_IP_OR_LOOPBACK else "EXTERNAL"],
    ),
    _Criterion(
        "source address",
        _range("source_prefix_ranges", lambda accepted: accepted.remote),
        lambda accepted: accepted.remote.ip or accepted.remote.path,
        _ranges_of("source_prefix_ranges"),
    ),
    _Criterion(
        "source port",
        _source_port,
        lambda accepted: str(accepted.remote.port),
        lambda match: [str(port) for port in match.source_ports],
    ),
)
