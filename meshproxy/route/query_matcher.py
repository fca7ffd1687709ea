"""Conditions on query parameters. As in Envoy nothing is percent-decoded, and the first of equal names counts."""

from __future__ import annotations

from typing import Any

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.string_matcher import StringMatcher, build_string_matcher


def parse_query(path: bytes) -> dict[bytes, bytes]:
    """The parameters after the first `?` of a :path; a name without `=` has the value ""."""
    parameters: dict[bytes, bytes] = {}
    _, mark, query = path.partition(b"?")
    if not mark or not query:
        return parameters
    for parameter in query.split(b"&"):
        name, _, value = parameter.partition(b"=")
        if name not in parameters:
            parameters[name] = value
    return parameters


class QueryMatcher:
    """One condition on one parameter: on its value (`string`), else on its being there (`present`)."""

    def __init__(self, name: bytes, string: StringMatcher | None, present: bool) -> None:
        self.name = name
        self.string = string
        self.present = present

    def matches(self, parameters: dict[bytes, bytes]) -> bool:
        value = parameters.get(self.name)
        if self.string is None:
            return (value is not None) == self.present
        return value is not None and self.string.match(value)


def build_query_matchers(messages: Any, path: str, field: str, errors: ConfigErrors) -> list[QueryMatcher]:
    """Compile a repeated field of `envoy.config.route.v3.QueryParameterMatcher`."""
    matchers: list[QueryMatcher] = []
    for i in range(len(messages)):
        message = messages[i]
        kind: str | None = message.WhichOneof("query_parameter_match_specifier")
        string: StringMatcher | None = None
        if kind == "string_match":
            string = build_string_matcher(message.string_match, child(item(path, field, i), "string_match"), errors)
            if string is None:
                continue
        present = message.present_match if kind == "present_match" else True
        matchers.append(QueryMatcher(message.name.encode(), string, present))
    return matchers
