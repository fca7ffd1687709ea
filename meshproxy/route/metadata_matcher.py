"""Conditions on dynamic metadata and on filter state (`envoy.type.matcher.v3`)."""

from __future__ import annotations

from typing import Any

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.string_matcher import StringMatcher, build_string_matcher
from meshproxy.observe.stream_info import StateObject, StreamInfo


class ValueMatcher:
    """A ValueMatcher on what JSON knows; the base holds for any value that is there (`present_match: true`)."""

    def match(self, value: object) -> bool:
        return True


class NeverMatcher(ValueMatcher):
    """`present_match: false`: Envoy asks for a value that is there and finds it unwanted."""

    def match(self, value: object) -> bool:
        return False


class NullMatcher(ValueMatcher):
    def match(self, value: object) -> bool:
        return value is None


class NumberMatcher(ValueMatcher):
    """A number in [start, end), or equal to `start` when `exact`."""

    def __init__(self, start: float, end: float, exact: bool) -> None:
        self.start = start
        self.end = end
        self.exact = exact

    def match(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        number = float(value)
        return number == self.start if self.exact else self.start <= number < self.end


class TextMatcher(ValueMatcher):
    def __init__(self, string: StringMatcher) -> None:
        self.string = string

    def match(self, value: object) -> bool:
        if isinstance(value, bytes):  # text that is no UTF-8
            return self.string.match(value)
        return isinstance(value, str) and self.string.match(value.encode())


class BoolMatcher(ValueMatcher):
    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def match(self, value: object) -> bool:
        return isinstance(value, bool) and value == self.wanted


class OneOfMatcher(ValueMatcher):
    """A list that holds an element which matches."""

    def __init__(self, element: ValueMatcher) -> None:
        self.element = element

    def match(self, value: object) -> bool:
        return isinstance(value, list) and any(self.element.match(each) for each in value)


class OrMatcher(ValueMatcher):
    def __init__(self, matchers: list[ValueMatcher]) -> None:
        self.matchers = matchers

    def match(self, value: object) -> bool:
        return any(matcher.match(value) for matcher in self.matchers)


class MetadataMatcher:
    """One condition on the value at `keys` in the dynamic metadata of the filter `namespace`."""

    def __init__(self, namespace: str, keys: list[str], value: ValueMatcher, invert: bool) -> None:
        self.namespace = namespace
        self.keys = keys
        self.value = value
        self.invert = invert

    def matches(self, metadata: dict[str, dict[str, Any]] | None) -> bool:
        found: object = (metadata or {}).get(self.namespace, {})
        for key in self.keys:
            if not isinstance(found, dict) or key not in found:
                return self.invert  # what is not there matches nothing
            found = found[key]
        return self.value.match(found) != self.invert


class FilterStateMatcher:
    """One condition on the text of a filter state object, of the stream or of its connection."""

    def __init__(self, key: str, string: StringMatcher) -> None:
        self.key = key
        self.string = string

    def matches(self, info: StreamInfo) -> bool:
        value = self._find(info.filter_state)
        if value is None:
            value = self._find(info.connection.filter_state)
        if isinstance(value, StateObject):
            value = value.text()
        return value is not None and self.string.match(value if isinstance(value, bytes) else str(value).encode())

    def _find(self, state: dict[str, Any] | None) -> Any:
        return None if state is None else state.get(self.key)


def build_value_matcher(message: Any, path: str, errors: ConfigErrors) -> ValueMatcher | None:
    """Compile a ValueMatcher; None with an error when that cannot be."""
    kind: str | None = message.WhichOneof("match_pattern")
    if kind == "null_match":
        return NullMatcher()
    if kind == "double_match":
        number = message.double_match
        if number.WhichOneof("match_pattern") == "exact":
            return NumberMatcher(number.exact, 0.0, True)
        return NumberMatcher(number.range.start, number.range.end, False)
    if kind == "string_match":
        string = build_string_matcher(message.string_match, child(path, "string_match"), errors)
        return None if string is None else TextMatcher(string)
    if kind == "bool_match":
        return BoolMatcher(message.bool_match)
    if kind == "present_match":
        return ValueMatcher() if message.present_match else NeverMatcher()
    if kind == "list_match":
        one_of = build_value_matcher(message.list_match.one_of, child(path, "list_match.one_of"), errors)
        return None if one_of is None else OneOfMatcher(one_of)
    if kind == "or_match":
        return _build_or(message.or_match.value_matchers, child(path, "or_match"), errors)
    errors.add(path, "a match pattern is required")
    return None


def _build_or(messages: Any, path: str, errors: ConfigErrors) -> ValueMatcher | None:
    built = [build_value_matcher(messages[i], item(path, "value_matchers", i), errors) for i in range(len(messages))]
    matchers = [matcher for matcher in built if matcher is not None]
    return OrMatcher(matchers) if len(matchers) == len(built) else None


def build_metadata_matchers(messages: Any, path: str, field: str, errors: ConfigErrors) -> list[MetadataMatcher]:
    """Compile a repeated field of `envoy.type.matcher.v3.MetadataMatcher`."""
    built = [build_metadata_matcher(messages[i], item(path, field, i), errors) for i in range(len(messages))]
    return [matcher for matcher in built if matcher is not None]


def build_metadata_matcher(message: Any, path: str, errors: ConfigErrors) -> MetadataMatcher | None:
    """Compile one; None with an error when that cannot be."""
    value = build_value_matcher(message.value, child(path, "value"), errors)
    if value is None:
        return None
    return MetadataMatcher(message.filter, [segment.key for segment in message.path], value, message.invert)


def build_filter_state_matchers(messages: Any, path: str, field: str, errors: ConfigErrors) -> list[FilterStateMatcher]:
    """Compile a repeated field of `envoy.type.matcher.v3.FilterStateMatcher`."""
    built = [build_filter_state_matcher(messages[i], item(path, field, i), errors) for i in range(len(messages))]
    return [matcher for matcher in built if matcher is not None]


def build_filter_state_matcher(message: Any, path: str, errors: ConfigErrors) -> FilterStateMatcher | None:
    """Compile one; None with an error when that cannot be."""
    if message.WhichOneof("matcher") != "string_match":
        errors.add(path, "only string_match is supported on filter state")
        return None
    string = build_string_matcher(message.string_match, child(path, "string_match"), errors)
    return None if string is None else FilterStateMatcher(message.key, string)
