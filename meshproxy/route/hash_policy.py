"""Hash policies: which parts of a request decide on its host, where the cluster's load balancer goes by a hash.

The hashes are Envoy's (xxHash64), and so is the way in which those of several policies become one.
"""

from __future__ import annotations

from typing import Any, Final

from mypy_extensions import mypyc_attr
from xxhash import xxh64_hexdigest, xxh64_intdigest

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.inline_headers import INLINE_REQUEST_HEADERS
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.regex import Substitution, build_substitution
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.query_matcher import parse_query

NO_HASH: Final = -1
_MASK: Final = (1 << 64) - 1


@mypyc_attr(allow_interpreted_subclasses=True)
class HashMethod:
    """One policy. A terminal one ends the search when there is a hash."""

    def __init__(self, terminal: bool) -> None:
        self.terminal = terminal

    def evaluate(self, headers: HeaderMap, info: StreamInfo, cookies: list[bytes] | None) -> int:
        """64 bits, or NO_HASH. Where a cookie is made up, its `set-cookie` is added to `cookies`; None: none is."""
        raise NotImplementedError


class HeaderHash(HashMethod):
    """All values of a header, whatever their order."""

    def __init__(self, terminal: bool, name: bytes, rewrite: Substitution | None) -> None:
        super().__init__(terminal)
        self._name = name
        self._joined: bool = name in INLINE_REQUEST_HEADERS  # Envoy keeps these joined by commas
        self._rewrite = rewrite

    def evaluate(self, headers: HeaderMap, info: StreamInfo, cookies: list[bytes] | None) -> int:
        if self._joined:
            joined = headers.joined(self._name)
            values = [] if joined is None else [joined]
        else:
            values = headers.get_all(self._name)
        if not values:
            return NO_HASH
        rewrite = self._rewrite
        if rewrite is not None:
            values = [rewrite.apply(value) for value in values]
        values.sort()
        result = 0
        for value in values:
            result = xxh64_intdigest(value, result)  # the seed is the hash so far
        return result


class CookieHash(HashMethod):
    """A cookie's value. With a ttl, one is made up for a request that has none: the same for all of a connection."""

    def __init__(self, terminal: bool, name: bytes, ttl_s: int, attributes: bytes) -> None:
        super().__init__(terminal)
        self._name = name
        self._ttl_s = ttl_s  # -1: none is made up
        self._attributes = attributes

    def evaluate(self, headers: HeaderMap, info: StreamInfo, cookies: list[bytes] | None) -> int:
        value = cookie_value(headers, self._name)
        if not value:
            if self._ttl_s < 0 or cookies is None:
                return NO_HASH
            value = self._make_up(info, cookies)
        return xxh64_intdigest(value)

    def _make_up(self, info: StreamInfo, cookies: list[bytes]) -> bytes:
        ends = info.connection.remote.text + info.connection.local.text
        value = xxh64_hexdigest(ends.encode()).encode()
        cookies.append(self._name + b'="' + value + b'"' + self._attributes)
        return value


class SourceIpHash(HashMethod):
    """The downstream's address, as trusted (x-forwarded-for)."""

    def evaluate(self, headers: HeaderMap, info: StreamInfo, cookies: list[bytes] | None) -> int:
        return source_ip_hash(info)


class QueryParameterHash(HashMethod):
    """The first value of a query parameter, as it is written."""

    def __init__(self, terminal: bool, name: bytes) -> None:
        super().__init__(terminal)
        self._name = name

    def evaluate(self, headers: HeaderMap, info: StreamInfo, cookies: list[bytes] | None) -> int:
        value = parse_query(headers.get(b":path") or b"").get(self._name)
        return NO_HASH if value is None else xxh64_intdigest(value)


class FilterStateHash(HashMethod):
    """A text that a filter keeps in the stream's filter state; objects of other kinds have no hash."""

    def __init__(self, terminal: bool, key: str) -> None:
        super().__init__(terminal)
        self._key = key

    def evaluate(self, headers: HeaderMap, info: StreamInfo, cookies: list[bytes] | None) -> int:
        value = None if info.filter_state is None else info.filter_state.get(self._key)
        if isinstance(value, str):
            return xxh64_intdigest(value.encode())
        return xxh64_intdigest(value) if isinstance(value, bytes) else NO_HASH


class HashPolicy:
    """The policies of a route, in their order."""

    def __init__(self, methods: list[HashMethod]) -> None:
        self._methods = methods

    def hash(self, headers: HeaderMap, info: StreamInfo, cookies: list[bytes] | None) -> int:
        """The hash of a request, or NO_HASH. `set-cookie` values of cookies that are made up are added to `cookies`;
        None: none are made up (where weighted clusters go by the policy)."""
        result = NO_HASH
        for method in self._methods:
            new = method.evaluate(headers, info, cookies)
            if new != NO_HASH:
                result = new if result == NO_HASH else (result << 1 & _MASK | result >> 63) ^ new
            if method.terminal and result != NO_HASH:
                break
        return result


def source_ip_hash(info: StreamInfo) -> int:
    ip = info.remote.ip
    return xxh64_intdigest(ip.encode()) if ip else NO_HASH


def cookie_value(headers: HeaderMap, name: bytes) -> bytes:
    """The first cookie of that name, without quotes around it; b"" when there is none."""
    for line in headers.get_all(b"cookie"):
        for pair in line.split(b";"):
            key, equals, value = pair.lstrip(b" ").partition(b"=")
            if equals and key == name:
                quoted = len(value) > 1 and value.startswith(b'"') and value.endswith(b'"')
                return value[1:-1] if quoted else value
    return b""


def build_hash_policy(messages: Any, path: str, field: str, errors: ConfigErrors) -> HashPolicy | None:
    """Compile a repeated field of `envoy.config.route.v3.RouteAction.HashPolicy`; None when there are none."""
    methods: list[HashMethod] = []
    for index in range(len(messages)):
        method = _build_method(messages[index], item(path, field, index), errors)
        if method is not None:
            methods.append(method)
    return HashPolicy(methods) if methods else None


def _build_method(message: Any, path: str, errors: ConfigErrors) -> HashMethod | None:
    kind: str | None = message.WhichOneof("policy_specifier")
    terminal: bool = message.terminal
    if kind == "header":
        return _build_header(message.header, terminal, child(path, kind), errors)
    if kind == "cookie":
        return _build_cookie(message.cookie, terminal)
    if kind == "connection_properties":
        return SourceIpHash(terminal) if message.connection_properties.source_ip else None
    if kind == "query_parameter":
        return QueryParameterHash(terminal, message.query_parameter.name.encode())
    if kind == "filter_state":
        return FilterStateHash(terminal, message.filter_state.key)
    errors.add(path, "a policy specifier is required")
    return None


def _build_header(message: Any, terminal: bool, path: str, errors: ConfigErrors) -> HashMethod | None:
    rewrite: Substitution | None = None
    if message.HasField("regex_rewrite"):
        rewrite = build_substitution(message.regex_rewrite, child(path, "regex_rewrite"), errors)
    name = message.header_name.lower().encode()
    return HeaderHash(terminal, b":authority" if name == b"host" else name, rewrite)


def _build_cookie(message: Any, terminal: bool) -> HashMethod:
    ttl_s: int = message.ttl.seconds if message.HasField("ttl") else -1
    parts: list[str] = []
    if ttl_s > 0:
        parts.append(f"Max-Age={ttl_s}")
    if message.path:
        parts.append(f"Path={message.path}")
    parts.extend(each.name + (f"={each.value}" if each.value else "") for each in message.attributes)
    parts.append("HttpOnly")
    return CookieHash(terminal, message.name.encode(), ttl_s, "".join([f"; {part}" for part in parts]).encode())
