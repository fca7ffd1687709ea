"""Which filter chain a connection gets: FilterChainMatch messages, compiled to one walk through tables.

The criteria are looked at in Envoy's order, and at each only the chains with the most specific value that fits go on.
There is no way back: a chain with the exact server name and another ALPN is the end of it, though one for the wildcard
would fit. A criterion that a chain does not name fits everything, as the least specific value.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from typing import Any, Final, Generic, TypeVar

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.filters.listener_filter import AcceptedSocket
from meshproxy.net.address import Address

T = TypeVar("T")

# ConnectionSourceType
_ANY: Final = 0
_SAME_IP_OR_LOOPBACK: Final = 1
_EXTERNAL: Final = 2

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})

_EVERYWHERE: Final = ""  # the key of chains that name no prefix range
_ADDRESS_SETS: Final = frozenset({1, 5, 7})  # levels of the tree whose keys are prefix ranges
_LEVELS: Final = 9
# Stands for a Unix socket's address where addresses are matched: it is in nobody's range but that of all.
_NO_ADDRESS: Final = (4, 0xFFFFFFFF)

Range = tuple[int, int, int]  # (4 or 6, prefix length, the prefix as a number)


class PrefixTable(Generic[T]):
    """Longest prefix match: one look-up for each prefix length that occurs, the longest first."""

    def __init__(self, entries: Iterable[tuple[Range, T]], everywhere: T | None) -> None:
        by_shift: dict[int, dict[int, dict[int, T]]] = {4: {}, 6: {}}  # bits behind the prefix -> prefix -> value
        for (family, length, prefix), value in entries:
            shift = (32 if family == 4 else 128) - length
            by_shift[family].setdefault(shift, {})[prefix >> shift] = value
        self._by_family = {
            family: [(shift, tables[shift]) for shift in sorted(tables)] for family, tables in by_shift.items()
        }
        self._everywhere = everywhere

    def only(self) -> T | None:
        """The value for everything, when there is no other."""
        return None if self._by_family[4] or self._by_family[6] else self._everywhere

    def find(self, address: tuple[int, int]) -> T | None:
        """The value of the longest range that holds the address, of the one for everything where none does."""
        number = address[1]
        for shift, table in self._by_family[address[0]]:
            found = table.get(number >> shift)
            if found is not None:
                return found
        return self._everywhere


class FilterChainMatcher:
    """Finds the index of a connection's chain; None stands for the default filter chain."""

    def __init__(self, by_port: dict[int, PrefixTable[Any]]) -> None:
        self._by_port = by_port
        anywhere = by_port.get(0)
        # One chain without any criterion is what most listeners have: it needs no walk.
        self._only: int | None = _only_chain(anywhere) if anywhere is not None and len(by_port) == 1 else None

    @property
    def matches_everything(self) -> bool:
        """Whether there is one chain, for every connection."""
        return self._only is not None

    def find(self, accepted: AcceptedSocket) -> int | None:
        """The chain for this connection."""
        if self._only is not None:
            return self._only
        local = accepted.local
        by_destination = self._by_port.get(0 if local.path else local.port)
        if by_destination is None:
            by_destination = self._by_port.get(0)
            if by_destination is None:
                return None
        by_name = by_destination.find(_number(local))
        return None if by_name is None else _find_by_protocols(_by_server_name(by_name, accepted.server_name), accepted)


def _only_chain(table: PrefixTable[Any]) -> int | None:
    """The chain that everything leads to, if there is one."""
    node: Any = table.only()
    for key in ("", "", "", None, _ANY, None, 0):
        if node is None or (key is not None and list(node) != [key]):
            return None
        node = node.only() if key is None else node[key]
    return int(node)


def _by_server_name(names: dict[str, Any], server_name: str) -> Any:
    """The exact name, else the longest wildcard domain (held as `.example.com`), else what names no server."""
    found = names.get(server_name)
    if found is not None:
        return found
    at = server_name.find(".", 1)
    while 0 < at < len(server_name) - 1:
        found = names.get(server_name[at:])
        if found is not None:
            return found
        at = server_name.find(".", at + 1)
    return names.get("")


def _find_by_protocols(by_transport: dict[str, Any] | None, accepted: AcceptedSocket) -> int | None:
    if by_transport is None:
        return None
    by_application = by_transport.get(accepted.transport_protocol or "raw_buffer")
    if by_application is None:
        by_application = by_transport.get("")
        if by_application is None:
            return None
    for protocol in accepted.application_protocols:  # in the client's order
        if protocol in by_application:
            return _find_by_source(by_application[protocol], accepted)
    return _find_by_source(by_application.get(""), accepted)


def _find_by_source(by_direct_source: PrefixTable[Any] | None, accepted: AcceptedSocket) -> int | None:
    if by_direct_source is None:
        return None
    by_type = by_direct_source.find(_number(accepted.direct_remote))
    if by_type is None:
        return None
    by_source = by_type.get(_SAME_IP_OR_LOOPBACK if is_same_ip_or_loopback(accepted) else _EXTERNAL)
    if by_source is None:
        by_source = by_type.get(_ANY)
        if by_source is None:
            return None
    by_port = by_source.find(_number(accepted.remote))
    if by_port is None:
        return None
    found: int | None = by_port.get(accepted.remote.port)
    return by_port.get(0) if found is None else found


def is_same_ip_or_loopback(accepted: AcceptedSocket) -> bool:
    """Whether the connection comes from this machine; like Envoy, 127.0.0.2 to 127.0.0.1 does not."""
    remote = accepted.remote
    return bool(remote.path) or remote.ip in _LOOPBACK or remote.ip == accepted.local.ip


def _number(address: Address) -> tuple[int, int]:
    return _NO_ADDRESS if address.path else ip_number(address.ip)


def ip_number(ip: str) -> tuple[int, int]:
    """(4 or 6, the address as a number). Raises OSError for text that is no IP address."""
    if ":" in ip:
        return 6, int.from_bytes(socket.inet_pton(socket.AF_INET6, ip.partition("%")[0]), "big")
    return 4, int.from_bytes(socket.inet_pton(socket.AF_INET, ip), "big")


# -- from messages


def build_filter_chain_matcher(chains: Sequence[Any], path: str, context: BuildContext) -> FilterChainMatcher | None:
    """The matcher of a Listener's `filter_chains` (at `path`); None, with the errors in the context, if two of them
    compete or a criterion is none."""
    before = len(context.errors)
    tree: dict[Any, Any] = {}
    seen: dict[bytes, int] = {}
    for index, chain in enumerate(chains):
        where = child(item(path, "filter_chains", index), "filter_chain_match")
        match = chain.filter_chain_match
        first = seen.setdefault(match.SerializeToString(deterministic=True), index)
        keys = _keys(match, where, context)
        if first != index:
            same = f"filter chain '{chain.name}' has the same matching rules defined as '{chains[first].name}'"
            context.errors.add(where, same)
        elif keys is not None and not _insert(tree, keys, index):
            context.errors.add(where, "multiple filter chains with overlapping matching rules are defined")
    return FilterChainMatcher(_compile(tree, 0)) if len(context.errors) == before else None


def _keys(match: Any, path: str, context: BuildContext) -> list[list[Any]] | None:
    """What a chain is filed under at each level of the tree, in the order of the criteria."""
    keys = [
        [match.destination_port.value],
        _ranges(match.prefix_ranges, child(path, "prefix_ranges"), context),
        _server_names(match.server_names, path, context),
        [match.transport_protocol],
        list(match.application_protocols) or [""],
        _ranges(match.direct_source_prefix_ranges, child(path, "direct_source_prefix_ranges"), context),
        [match.source_type],
        _ranges(match.source_prefix_ranges, child(path, "source_prefix_ranges"), context),
        list(match.source_ports) or [0],
    ]
    return None if [] in keys else keys


def _server_names(names: Sequence[str], path: str, context: BuildContext) -> list[str]:
    """Lower case; a wildcard without its star. Like Envoy, `.example.com` is taken for `*.example.com`."""
    for index, name in enumerate(names):
        if "*" in name and not name.startswith("*."):
            reason = 'partial wildcards are not supported in "server_names"'
            context.errors.add(item(path, "server_names", index), reason)
            return []
    return [name.lower().removeprefix("*") for name in names] or [""]


def _ranges(ranges: Sequence[Any], path: str, context: BuildContext) -> list[Any]:
    """Prefix ranges with the bits behind the prefix cut off; a length that is left out is 0, one too long is cut."""
    made: list[Any] = []
    for index, each in enumerate(ranges):
        try:
            family, number = ip_number(each.address_prefix)
        except OSError:
            context.errors.add(f"{path}[{index}].address_prefix", f"malformed IP address: {each.address_prefix}")
            return []
        bits = 32 if family == 4 else 128
        length = min(each.prefix_len.value, bits)
        made.append((family, length, number >> (bits - length) << (bits - length)))
    return made or [_EVERYWHERE]


def _insert(node: dict[Any, Any], keys: list[list[Any]], index: int) -> bool:
    """File the chain under every combination of its keys; False where another chain, or itself, is already."""
    if len(keys) == 1:
        free = not any(key in node for key in keys[0]) and len(set(keys[0])) == len(keys[0])
        node.update(dict.fromkeys(keys[0], index))
        return free
    return all(_insert(node.setdefault(key, {}), keys[1:], index) for key in keys[0])


def _compile(node: dict[Any, Any], level: int) -> Any:
    """The tree, with the nodes whose keys are prefix ranges made tables."""
    if level == _LEVELS - 1:
        return node
    below = {key: _compile(value, level + 1) for key, value in node.items()}
    if level not in _ADDRESS_SETS:
        return below
    everywhere = below.pop(_EVERYWHERE, None)
    return PrefixTable(below.items(), everywhere)
