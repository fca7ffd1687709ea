"""`HeaderMutation`s: changes of a header block, one after the other, each seeing what those before it did."""

from __future__ import annotations

from typing import Any

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.inline_headers import append_field
from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.string_matcher import StringMatcher, build_string_matcher
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.header_ops import (
    ADD_IF_ABSENT,
    APPEND_IF_EXISTS_OR_ADD,
    OVERWRITE_IF_EXISTS,
    HeaderOperation,
    build_header_operation,
)


class Mutation:
    """One change of a header block."""

    def apply(self, headers: HeaderMap, info: StreamInfo) -> None:
        raise NotImplementedError


class RemoveName(Mutation):
    def __init__(self, name: bytes) -> None:
        self._name = name

    def apply(self, headers: HeaderMap, info: StreamInfo) -> None:
        headers.remove(self._name)


class RemoveMatching(Mutation):
    """Drops every field whose name matches, but no pseudo-header: a message without them is none."""

    def __init__(self, matcher: StringMatcher) -> None:
        self._matcher = matcher

    def apply(self, headers: HeaderMap, info: StreamInfo) -> None:
        match = self._matcher.match
        headers.fields = [field for field in headers.fields if field[0].startswith(b":") or not match(field[0])]


class SetField(Mutation):
    """A HeaderValueOption. An empty value does nothing, not even to a field that is there, unless it is to be kept."""

    def __init__(self, operation: HeaderOperation, inline: frozenset[bytes]) -> None:
        self._operation = operation
        self._one_line = inline

    def apply(self, headers: HeaderMap, info: StreamInfo) -> None:
        operation = self._operation
        name = operation.name
        value = operation.field[1] if operation.formatter is None else operation.formatter.format(info)
        if not value and not operation.keep_empty:
            return
        action = operation.action
        if action == APPEND_IF_EXISTS_OR_ADD:
            append_field(headers, name, value, self._one_line)
        elif action == ADD_IF_ABSENT:
            headers.set_default(name, value)
        elif action != OVERWRITE_IF_EXISTS or headers.get(name) is not None:
            headers.remove(name)
            headers.add(name, value)


def build_mutation(message: Any, path: str, inline: frozenset[bytes], errors: ConfigErrors) -> Mutation | None:
    """Compile an `envoy.config.common.mutation_rules.v3.HeaderMutation`."""
    kind = message.WhichOneof("action")
    if kind == "remove":
        name = message.remove.lower().encode()
        if name.startswith(b":"):
            errors.add(child(path, "remove"), ":-prefixed headers may not be removed")
        return RemoveName(name)
    if kind == "append":
        operation = build_header_operation(message.append, child(path, "append"), errors)
        return None if operation is None else SetField(operation, inline)
    if kind == "remove_on_match":
        where = child(path, "remove_on_match.key_matcher")
        matcher = build_string_matcher(message.remove_on_match.key_matcher, where, errors)
        return None if matcher is None else RemoveMatching(matcher)
    errors.add(path, "one of remove, append, remove_on_match is required")
    return None
