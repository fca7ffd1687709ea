"""`envoy.filters.http.header_mutation`: changes headers, trailers and query parameters on their way through.

Mutations happen one after the other, each seeing what those before it did. After the filter's own come those of the
route: the most specific ones first and the virtual host's last, or the other way round with
`most_specific_header_mutations_wins`.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from envoy.extensions.filters.http.header_mutation.v3.header_mutation_pb2 import HeaderMutation, HeaderMutationPerRoute

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.inline_headers import INLINE_REQUEST_HEADERS, INLINE_RESPONSE_HEADERS
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.http.filter import CONTINUE, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.observe.formatter import FormatError, Formatter, parse_format
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.header_mutation import Mutation, build_mutation
from meshproxy.route.header_ops import ADD_IF_ABSENT, APPEND_IF_EXISTS_OR_ADD, OVERWRITE_IF_EXISTS

# What a list of Mutations changes.
REQUEST: Final = 0
RESPONSE: Final = 1
REQUEST_TRAILERS: Final = 2
RESPONSE_TRAILERS: Final = 3


class QueryMutation:
    """A KeyValueMutation of the query: the `action` with a value, or a removal (`formatter` is None)."""

    def __init__(self, key: bytes, formatter: Formatter | None, action: int) -> None:
        self.key = key
        self.formatter = formatter
        self.action = action

    def apply(self, query: dict[bytes, list[bytes]], info: StreamInfo) -> None:
        """Change `query`: decoded key -> its `key=value`s as they stand in the path."""
        key = self.key
        if self.formatter is None:
            query.pop(key, None)
            return
        present = key in query
        if (self.action == ADD_IF_ABSENT and present) or (self.action == OVERWRITE_IF_EXISTS and not present):
            return
        parameter = _encode(key, "%") + b"=" + _encode(self.formatter.format(info), "*")
        if self.action == APPEND_IF_EXISTS_OR_ADD and present:
            query[key].append(parameter)
        else:
            query[key] = [parameter]


def _encode(text: bytes, safe: str) -> bytes:
    """Percent-encoded, all but letters, digits, `-._` and what is `safe`."""
    return quote(text, safe).replace("~", "%7E").encode()


def parse_query(query: bytes) -> dict[bytes, list[bytes]]:
    """Decoded key -> its parameters, as they stand but for a missing `=`, which is added."""
    parsed: dict[bytes, list[bytes]] = {}
    if query.endswith(b"&"):
        query = query[:-1]
    if not query:
        return parsed
    for parameter in query.split(b"&"):
        key, equals, _ = parameter.partition(b"=")
        parsed.setdefault(unquote_to_bytes(key), []).append(parameter if equals else parameter + b"=")
    return parsed


class Mutations:
    """A `Mutations` message: what one level does to each part of a stream."""

    def __init__(self) -> None:
        self.lists: list[list[Mutation]] = [[], [], [], []]  # REQUEST … RESPONSE_TRAILERS
        self.query: list[QueryMutation] = []

    def apply(self, which: int, headers: HeaderMap, info: StreamInfo) -> None:
        for mutation in self.lists[which]:
            mutation.apply(headers, info)
        if which == REQUEST and self.query:
            self._mutate_query(headers, info)

    def _mutate_query(self, headers: HeaderMap, info: StreamInfo) -> None:
        """The query is put together anew, sorted by keys. What the client sent stays encoded as it was."""
        path = headers.get(b":path")
        if path is None:
            return
        base, _, text = path.partition(b"?")
        query = parse_query(text)
        for mutation in self.query:
            mutation.apply(query, info)
        parameters = [parameter for key in sorted(query) for parameter in query[key]]
        headers.set(b":path", base + b"?" + b"&".join(parameters) if parameters else base)


class HeaderMutationFilter(HttpFilter):
    def __init__(self, mutations: Mutations, most_specific_wins: bool) -> None:
        self._mutations = mutations
        self._most_specific_wins = most_specific_wins

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        return self._apply(REQUEST, stream, headers)

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        return self._apply(REQUEST_TRAILERS, stream, trailers)

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        return self._apply(RESPONSE, stream, headers)

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        return self._apply(RESPONSE_TRAILERS, stream, trailers)

    def _apply(self, which: int, stream: Stream, headers: HeaderMap) -> int:
        info = stream.info
        self._mutations.apply(which, headers, info)
        route = stream.current_route()
        if route is None:
            return CONTINUE
        levels = route.all_filter_configs.get(self.name)
        if levels is not None:
            for level in levels if self._most_specific_wins else levels[::-1]:
                if isinstance(level, Mutations):
                    level.apply(which, headers, info)
        return CONTINUE


# -- building ----------------------------------------------------------------------------------------------------------

_FIELDS: Final = (
    ("request_mutations", INLINE_REQUEST_HEADERS),
    ("response_mutations", INLINE_RESPONSE_HEADERS),
    ("request_trailers_mutations", frozenset[bytes]()),
    ("response_trailers_mutations", INLINE_RESPONSE_HEADERS),
)


def build_mutations(message: Any, path: str, errors: ConfigErrors) -> Mutations:
    """Compile a `Mutations` message; what is in error is left out, with its error."""
    built = Mutations()
    for which in range(len(_FIELDS)):
        field, inline = _FIELDS[which]
        for index, each in enumerate(getattr(message, field)):
            mutation = build_mutation(each, item(path, field, index), inline, errors)
            if mutation is not None:
                built.lists[which].append(mutation)
    for index, each in enumerate(message.query_parameter_mutations):
        query_mutation = build_query_mutation(each, item(path, "query_parameter_mutations", index), errors)
        if query_mutation is not None:
            built.query.append(query_mutation)
    return built


def build_query_mutation(message: Any, path: str, errors: ConfigErrors) -> QueryMutation | None:
    """Compile an `envoy.config.core.v3.KeyValueMutation`."""
    has_append = message.HasField("append")
    if has_append == bool(message.remove):
        errors.add(path, "exactly one of append and remove must be specified")
        return None
    if not has_append:
        return QueryMutation(message.remove.encode(), None, 0)
    append = message.append
    where = child(path, "append.record")
    if not append.HasField("record"):
        errors.add(where, "is required")
        return None
    if append.record.value.WhichOneof("kind") != "string_value":
        errors.add(child(where, "value"), "only a string is allowed as value")
        return None
    try:
        formatter = parse_format(append.record.value.string_value)
    except FormatError as error:
        errors.add(child(where, "value"), str(error))
        return None
    return QueryMutation(append.record.key.encode(), formatter, append.action)


def build_header_mutation(message: Any, path: str, context: BuildContext) -> HeaderMutationFilter:
    mutations = build_mutations(message.mutations, child(path, "mutations"), context.errors)
    return HeaderMutationFilter(mutations, message.most_specific_header_mutations_wins)


def build_per_route(message: Any, path: str, context: BuildContext) -> Mutations:
    return build_mutations(message.mutations, child(path, "mutations"), context.errors)


register_http_filter(HeaderMutation, HttpFilterType(build_header_mutation, HeaderMutationPerRoute, build_per_route))
