"""What connection managers and routes say of traces: shares of requests, tags, names of spans."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.runtime import Fraction, Runtime
from meshproxy.observe.formatter import FormatError, Formatter, parse_format
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.observe.value_text import to_bytes

_HUNDRED: Final = 100
_TEN_THOUSAND: Final = 10_000
_DENOMINATORS: Final = (100, 10_000, 1_000_000)
_CLIENT: Final = "tracing.client_enabled"
_RANDOM: Final = "tracing.random_sampling"
_OVERALL: Final = "tracing.global_enabled"


class Sampling:
    """Which requests are traced: those that ask for it, and others; of all of these again a share."""

    def __init__(self, client: Fraction, random: Fraction, overall: Fraction) -> None:
        self.client = client
        self.random = random
        self.overall = overall


class CustomTag:
    """One tag of every span. `read` gives its value, None where a stream has none."""

    def __init__(self, name: str, read: Callable[[StreamInfo], bytes | None]) -> None:
        self.name = name
        self.read = read


class RouteTracing:
    """`tracing` of a route, or what a connection manager's says of the same. Operations may be None."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.tags: list[CustomTag] = []
        self.operation: Formatter | None = None
        self.upstream_operation: Formatter | None = None


class Decorator:
    """`decorator` of a route: what its requests' spans are called, and whether the peer is told."""

    def __init__(self, operation: bytes, propagate: bool) -> None:
        self.operation = operation
        self.propagate = propagate


# -- from the configuration


def build_manager_sampling(message: Any, runtime: Runtime) -> Sampling:
    """Of `HttpConnectionManager.Tracing`, whose shares are in percent; only random_sampling has fractions of it, down
    to 0.01 (as Envoy)."""
    client = int(message.client_sampling.value) if message.HasField("client_sampling") else _HUNDRED
    random = round(message.random_sampling.value * 100) if message.HasField("random_sampling") else _TEN_THOUSAND
    overall = int(message.overall_sampling.value) if message.HasField("overall_sampling") else _HUNDRED
    return Sampling(
        runtime.share(_CLIENT, client, _HUNDRED),
        runtime.share(_RANDOM, random, _TEN_THOUSAND),
        runtime.share(_OVERALL, overall, _HUNDRED),
    )


def _route_sampling(message: Any, runtime: Runtime) -> Sampling:
    """A route's shares stand in place of all of the connection manager's; one that is not set is the whole."""
    shares: list[Fraction] = []
    for field, key in (("client_sampling", _CLIENT), ("random_sampling", _RANDOM), ("overall_sampling", _OVERALL)):
        numerator, denominator = 1, 1
        if message.HasField(field):
            share = getattr(message, field)
            numerator, denominator = share.numerator, _DENOMINATORS[share.denominator]
        shares.append(runtime.share(key, numerator, denominator))
    return Sampling(*shares)


def build_route_tracing(message: Any, path: str, context: BuildContext) -> RouteTracing:
    """`tracing` of a route."""
    tracing = RouteTracing(_route_sampling(message, context.runtime))
    build_names_and_tags(tracing, message, path, context)
    return tracing


def build_decorator(message: Any) -> Decorator:
    propagate = message.propagate.value if message.HasField("propagate") else True
    return Decorator(message.operation.encode(), propagate)


def build_names_and_tags(tracing: RouteTracing, message: Any, path: str, context: BuildContext) -> None:
    """What a route's and a connection manager's `tracing` have in common."""
    tracing.tags = build_custom_tags(message.custom_tags, path, context)
    tracing.operation = _operation(message.operation, child(path, "operation"), context)
    tracing.upstream_operation = _operation(message.upstream_operation, child(path, "upstream_operation"), context)


def _operation(text: str, path: str, context: BuildContext) -> Formatter | None:
    if not text:
        return None
    try:
        return parse_format(text)
    except FormatError as error:
        context.errors.add(path, str(error))
        return None


def build_custom_tags(messages: Any, path: str, context: BuildContext) -> list[CustomTag]:
    tags: list[CustomTag] = []
    for index, message in enumerate(messages):
        read = _reader(message, item(path, "custom_tags", index), context)
        if read is not None:
            tags.append(CustomTag(message.tag, read))
    return tags


def _reader(message: Any, path: str, context: BuildContext) -> Callable[[StreamInfo], bytes | None] | None:
    kind = message.WhichOneof("type")
    if kind == "literal":
        return _Constant(message.literal.value.encode()).read
    if kind == "environment":
        value = os.environ.get(message.environment.name, message.environment.default_value)
        return _Constant(os.fsencode(value)).read
    if kind == "request_header":
        header = message.request_header
        return _Header(header.name.lower().encode(), header.default_value.encode()).read
    if kind == "metadata":
        metadata = message.metadata
        keys = [segment.key for segment in metadata.metadata_key.path]
        source = metadata.kind.WhichOneof("kind") or "request"
        return _MetadataValue(source, metadata.metadata_key.key, keys, metadata.default_value.encode()).read
    formatter = _operation(message.value, child(path, "value"), context)
    return None if formatter is None else _Formatted(formatter).read


class _Constant:
    def __init__(self, value: bytes) -> None:
        self._value = value or None

    def read(self, info: StreamInfo) -> bytes | None:
        return self._value


class _Header:
    """The first value of a request header."""

    def __init__(self, name: bytes, default: bytes) -> None:
        self._name = name
        self._default = default or None

    def read(self, info: StreamInfo) -> bytes | None:
        value = None if info.request_headers is None else info.request_headers.get(self._name)
        return self._default if value is None else value


class _Formatted:
    def __init__(self, formatter: Formatter) -> None:
        self._formatter = formatter

    def read(self, info: StreamInfo) -> bytes | None:
        return self._formatter.format(info) or None


class _MetadataValue:
    """A value in the metadata of the request (dynamic metadata), the route, the cluster or the host."""

    def __init__(self, source: str, namespace: str, keys: list[str], default: bytes) -> None:
        self._source = source
        self._namespace = namespace
        self._keys = keys
        self._default = default or None

    def read(self, info: StreamInfo) -> bytes | None:
        value: Any = (self._metadata(info) or {}).get(self._namespace)
        for key in self._keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str):
            return value.encode() or self._default
        if isinstance(value, (bool, int, float, dict, list)):
            return to_bytes(value)
        return self._default

    def _metadata(self, info: StreamInfo) -> dict[str, Any] | None:
        if self._source == "request":
            return info.dynamic_metadata
        if self._source == "route":
            return None if info.route is None else info.route.metadata
        upstream = info.upstream
        if upstream is None:
            return None
        if self._source == "host":
            return upstream.host_metadata
        return None if upstream.cluster is None else upstream.cluster.metadata
