"""Rate limits of routes, virtual hosts and filters: their actions describe a request to whoever limits requests.

Each RateLimit makes one descriptor of a request, or none when one of its actions finds that it does not concern it.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

from mypy_extensions import mypyc_attr

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.observe.formatter import FormatError, Formatter, parse_format
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.header_matcher import HeaderMatcher, build_header_matchers, matches_all
from meshproxy.route.query_matcher import QueryMatcher, build_query_matchers

if TYPE_CHECKING:
    from meshproxy.route.route import Route

Entries = tuple[bytes, ...]  # of a descriptor: key, value, key, value …

_MOST_HITS: Final = 1_000_000_000
_NO_HITS: Final = -1
_V4_BITS: Final = 32
_V6_BITS: Final = 128


class Descriptor:
    """What a RateLimit says of a request. `hits` is how much it counts for."""

    def __init__(self, entries: Entries, hits: int) -> None:
        self.entries = entries
        self.hits = hits


@mypyc_attr(allow_interpreted_subclasses=True)
class Action:
    """One RateLimit.Action: adds its key and value to `entries`, or nothing; False when there is to be no descriptor.

    `route` is the one that forwards the request; None when no route does.
    """

    def describe(self, headers: HeaderMap, info: StreamInfo, route: Route | None, entries: list[bytes]) -> bool:
        raise NotImplementedError


class Constant(Action):
    """generic_key and source_cluster."""

    def __init__(self, key: bytes, value: bytes) -> None:
        self.key = key
        self.value = value

    def describe(self, headers: HeaderMap, info: StreamInfo, route: Route | None, entries: list[bytes]) -> bool:
        entries.append(self.key)
        entries.append(self.value)
        return True


class DestinationCluster(Action):
    def describe(self, headers: HeaderMap, info: StreamInfo, route: Route | None, entries: list[bytes]) -> bool:
        if route is None:
            return False
        entries.append(b"destination_cluster")
        entries.append(route.resolve_cluster(headers).encode("utf-8", "surrogateescape"))
        return True


class RequestHeader(Action):
    """The first value of a header. `skip_if_absent`: without it the descriptor does without the entry."""

    def __init__(self, name: bytes, key: bytes, skip_if_absent: bool) -> None:
        self.name = name
        self.key = key
        self.skip_if_absent = skip_if_absent

    def describe(self, headers: HeaderMap, info: StreamInfo, route: Route | None, entries: list[bytes]) -> bool:
        value = headers.get(self.name)
        if value is None:
            return self.skip_if_absent
        entries.append(self.key)
        entries.append(value)
        return True


class QueryParameter(Action):
    """As RequestHeader, of the query, percent-decoded."""

    def __init__(self, name: bytes, key: bytes, skip_if_absent: bool) -> None:
        self.name = name
        self.key = key
        self.skip_if_absent = skip_if_absent

    def describe(self, headers: HeaderMap, info: StreamInfo, route: Route | None, entries: list[bytes]) -> bool:
        value = decoded_query(headers).get(self.name)
        if value is None:
            return self.skip_if_absent
        entries.append(self.key)
        entries.append(value)
        return True


class RemoteAddress(Action):
    """The trusted address of the downstream, whole or its network."""

    def __init__(self, key: bytes, v4_bits: int, v6_bits: int) -> None:
        self.key = key
        self.v4_bits = v4_bits
        self.v6_bits = v6_bits
        self.masked = key == b"masked_remote_address"

    def describe(self, headers: HeaderMap, info: StreamInfo, route: Route | None, entries: list[bytes]) -> bool:
        ip = info.remote.ip
        if not ip:
            return False
        entries.append(self.key)
        entries.append(network(ip, self.v4_bits, self.v6_bits) if self.masked else ip.encode())
        return True


class HeaderValueMatch(Action):
    def __init__(self, key: bytes, value: bytes, matchers: list[HeaderMatcher], expected: bool) -> None:
        self.key = key
        self.value = value
        self.matchers = matchers
        self.expected = expected

    def describe(self, headers: HeaderMap, info: StreamInfo, route: Route | None, entries: list[bytes]) -> bool:
        if matches_all(self.matchers, headers) != self.expected:
            return False
        entries.append(self.key)
        entries.append(self.value)
        return True


class QueryValueMatch(Action):
    """Here matchers look at decoded values, other than where routes are matched."""

    def __init__(self, key: bytes, value: bytes, matchers: list[QueryMatcher], expected: bool) -> None:
        self.key = key
        self.value = value
        self.matchers = matchers
        self.expected = expected

    def describe(self, headers: HeaderMap, info: StreamInfo, route: Route | None, entries: list[bytes]) -> bool:
        parameters = decoded_query(headers)
        if all(matcher.matches(parameters) for matcher in self.matchers) != self.expected:
            return False
        entries.append(self.key)
        entries.append(self.value)
        return True


class MetadataValue(Action):
    """A text in the dynamic metadata of the stream, or in the metadata of its route."""

    def __init__(self, key: bytes, path: list[str], of_route: bool, default: bytes, skip_if_absent: bool) -> None:
        self.key = key
        self.path = path  # the namespace first
        self.of_route = of_route
        self.default = default
        self.skip_if_absent = skip_if_absent

    def describe(self, headers: HeaderMap, info: StreamInfo, route: Route | None, entries: list[bytes]) -> bool:
        value = self._text(info) or self.default
        if not value:
            return self.skip_if_absent
        entries.append(self.key)
        entries.append(value)
        return True

    def _text(self, info: StreamInfo) -> bytes:
        found: object = info.dynamic_metadata
        if self.of_route:
            found = None if info.route is None else info.route.metadata
        for key in self.path:
            if not isinstance(found, dict):
                return b""
            found = found.get(key)
        return found.encode() if isinstance(found, str) else b""


class HitsAddend:
    """How much a request counts for: `number`, or what the formatter says."""

    def __init__(self, number: int, formatter: Formatter | None) -> None:
        self.number = number
        self.formatter = formatter

    def of(self, info: StreamInfo) -> int:
        """-1 where that is no number from 0 to 1,000,000,000."""
        if self.formatter is None:
            return self.number
        try:
            hits = float(self.formatter.format(info))
        except ValueError:
            return _NO_HITS
        return int(hits) if 0.0 <= hits <= _MOST_HITS else _NO_HITS


class RateLimit:
    """A RateLimit. `descriptor` is what it makes of every request, where that depends on nothing."""

    def __init__(self, actions: list[Action], stage: int, hits: HitsAddend | None) -> None:
        self.stage = stage
        self.descriptor: Descriptor | None = None
        self._actions = actions
        self._hits = hits
        constants = [action for action in actions if isinstance(action, Constant)]
        if hits is None and len(constants) == len(actions):
            self.descriptor = Descriptor(tuple([text for each in constants for text in (each.key, each.value)]), 1)

    def describe(self, headers: HeaderMap, info: StreamInfo, route: Route | None) -> Descriptor | None:
        """The descriptor of a request; None when there is none."""
        if self.descriptor is not None:
            return self.descriptor
        entries: list[bytes] = []
        for action in self._actions:
            if not action.describe(headers, info, route, entries):
                return None
        hits = 1 if self._hits is None else self._hits.of(info)
        return None if hits < 0 else Descriptor(tuple(entries), hits)


def decoded_query(headers: HeaderMap) -> dict[bytes, bytes]:
    """The parameters of the query, percent-decoded (`+` is no space); the first of equal names counts."""
    path = headers.get(b":path")
    parameters: dict[bytes, bytes] = {}
    query = b"" if path is None else path.partition(b"?")[2]
    for parameter in query.split(b"&") if query else []:
        name, _, value = parameter.partition(b"=")
        parameters.setdefault(unquote_to_bytes(name), unquote_to_bytes(value))
    return parameters


def network(ip: str, v4_bits: int, v6_bits: int) -> bytes:
    """The network of an address, as `10.1.0.0/16`."""
    family, bits, kept = socket.AF_INET, _V4_BITS, v4_bits
    if ":" in ip:
        family, bits, kept = socket.AF_INET6, _V6_BITS, v6_bits
    number = int.from_bytes(socket.inet_pton(family, ip), "big") >> (bits - kept) << (bits - kept)
    return f"{socket.inet_ntop(family, number.to_bytes(bits // 8, 'big'))}/{kept}".encode()


# -- building ----------------------------------------------------------------------------------------------------------


def build_rate_limits(messages: Any, path: str, context: BuildContext) -> list[RateLimit] | None:
    """Compile the `rate_limits` of a route or a virtual host; None when there are none.

    Those with a `disable_key` never take effect, as with Envoy's local rate limit.
    """
    built: list[RateLimit] = []
    for index in range(len(messages)):
        message, where = messages[index], item(path, "rate_limits", index)
        if message.HasField("hits_addend"):
            context.errors.add(child(where, "hits_addend"), "is for the rate_limits of a filter")
        actions = _build_actions(message.actions, where, context)
        if not message.disable_key:
            built.append(RateLimit(actions, message.stage.value, None))
    return built if messages else None


def build_filter_rate_limits(messages: Any, path: str, context: BuildContext) -> list[RateLimit]:
    """Compile the `rate_limits` of a filter, which have no stages."""
    built: list[RateLimit] = []
    for index in range(len(messages)):
        message, where = messages[index], item(path, "rate_limits", index)
        if message.HasField("stage") or message.disable_key:
            context.errors.add(where, "'stage' field and 'disable_key' field are not supported")
        hits = None
        if message.HasField("hits_addend"):
            hits = _build_hits(message.hits_addend, child(where, "hits_addend"), context)
        built.append(RateLimit(_build_actions(message.actions, where, context), 0, hits))
    return built


def _build_hits(message: Any, path: str, context: BuildContext) -> HitsAddend | None:
    if message.HasField("number") == bool(message.format):
        context.errors.add(path, "hits_addend must contain either a format or a number")
        return None
    if not message.format:
        return HitsAddend(message.number.value, None)
    try:
        formatter = parse_format(message.format)
    except FormatError as error:
        context.errors.add(child(path, "format"), str(error))
        return None
    if not formatter.single:
        context.errors.add(child(path, "format"), "hits_addend format must contain exactly one substitution")
    return HitsAddend(0, formatter)


def _build_actions(messages: Any, path: str, context: BuildContext) -> list[Action]:
    built = [_build_action(messages[i], item(path, "actions", i), context) for i in range(len(messages))]
    return [action for action in built if action is not None]


def _build_action(message: Any, path: str, context: BuildContext) -> Action | None:
    kind: str | None = message.WhichOneof("action_specifier")
    if kind == "generic_key":
        key = message.generic_key.descriptor_key or "generic_key"
        return Constant(key.encode(), message.generic_key.descriptor_value.encode())
    if kind == "source_cluster":
        return Constant(b"source_cluster", context.service_cluster.encode())
    if kind == "destination_cluster":
        return DestinationCluster()
    if kind == "remote_address":
        return RemoteAddress(b"remote_address", _V4_BITS, _V6_BITS)
    if kind == "masked_remote_address":
        return _build_masked(message.masked_remote_address)
    if kind in ("request_headers", "query_parameters"):
        return _build_value(kind, getattr(message, kind))
    if kind in ("header_value_match", "query_parameter_value_match"):
        return _build_match(kind, getattr(message, kind), child(path, kind), context)
    if kind == "metadata":
        return _build_metadata(message.metadata)
    context.errors.add(path, "this action is not supported" if kind else "an action is required")
    return None


def _build_masked(message: Any) -> Action:
    v4_bits = message.v4_prefix_mask_len.value if message.HasField("v4_prefix_mask_len") else _V4_BITS
    v6_bits = message.v6_prefix_mask_len.value if message.HasField("v6_prefix_mask_len") else _V6_BITS
    return RemoteAddress(b"masked_remote_address", v4_bits, v6_bits)


def _build_value(kind: str, message: Any) -> Action:
    key: bytes = message.descriptor_key.encode()
    if kind == "query_parameters":
        return QueryParameter(message.query_parameter_name.encode(), key, message.skip_if_absent)
    name: bytes = message.header_name.lower().encode()
    return RequestHeader(b":authority" if name == b"host" else name, key, message.skip_if_absent)


def _build_match(kind: str, message: Any, path: str, context: BuildContext) -> Action:
    expected: bool = message.expect_match.value if message.HasField("expect_match") else True
    value: bytes = message.descriptor_value.encode()
    if kind == "header_value_match":
        headers = build_header_matchers(message.headers, path, "headers", context.errors)
        return HeaderValueMatch((message.descriptor_key or "header_match").encode(), value, headers, expected)
    queries = build_query_matchers(message.query_parameters, path, "query_parameters", context.errors)
    return QueryValueMatch((message.descriptor_key or "query_match").encode(), value, queries, expected)


def _build_metadata(message: Any) -> Action:
    key = message.metadata_key
    path = [key.key, *(segment.key for segment in key.path)]
    of_route = message.source == type(message).ROUTE_ENTRY
    return MetadataValue(
        message.descriptor_key.encode(), path, of_route, message.default_value.encode(), message.skip_if_absent
    )
