"""Envoy's HeaderMatcher, compiled. Of several fields of one name it is enough that one matches."""

from __future__ import annotations

import re
from typing import Any, Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.regex import compile_regex
from meshproxy.config.string_matcher import RegexMatcher, StringMatcher, build_string_matcher, literal_matcher

_INTEGER: Final = re.compile(rb"[ \t\r\n\v\f]*([+-]?)0*([0-9]{1,19})[ \t\r\n\v\f]*")
_INT64_MAX: Final = (1 << 63) - 1
_INT64_MIN: Final = -(1 << 63)

# The deprecated fields of HeaderMatcher that stand for a StringMatcher, and its kind.
_DEPRECATED_KINDS: Final = {
    "exact_match": "exact",
    "prefix_match": "prefix",
    "suffix_match": "suffix",
    "contains_match": "contains",
}


class HeaderMatcher:
    """One condition on one header.

    `present` is None for a condition on the value (`string` or, without one, the range [start, end)), else whether
    the header must be there. A missing header never matches a condition on the value, inverted or not, unless
    `missing_as_empty`.
    """

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.string: StringMatcher | None = None
        self.start: int = 0
        self.end: int = 0
        self.present: bool | None = None
        self.invert: bool = False
        self.missing_as_empty: bool = False
        # Set where the matcher belongs to a route: the slot of its header in the virtual host (see match.Subject), and
        # the index of its expression in that header's set, or -1.
        self.slot: int = 0
        self.pattern: int = -1

    def matches(self, headers: HeaderMap) -> bool:
        name = self.name
        found: bytes | None = None
        for field in headers.fields:
            if field[0] == name:
                if found is not None:
                    return self.match_several(headers)
                found = field[1]
        return self.match_value(found)

    def match_several(self, headers: HeaderMap) -> bool:
        """For a name that has several fields."""
        if self.present is not None:
            return self.present != self.invert
        found = any(self.match_text(value) for value in headers.get_all(self.name))
        return found != self.invert

    def match_text(self, value: bytes) -> bool:
        """The condition on a value, before it is inverted."""
        string = self.string
        return string.match(value) if string is not None else in_range(value, self.start, self.end)

    def match_value(self, value: bytes | None) -> bool:
        """As `matches`, for a caller that looked up the only value itself."""
        if self.present is not None:
            there = value is not None or self.missing_as_empty
            return (there == self.present) != self.invert
        if value is None:
            if not self.missing_as_empty:
                return False
            value = b""
        return self.match_text(value) != self.invert


def in_range(value: bytes, start: int, end: int) -> bool:
    """True when `value` is a decimal 64-bit integer in [start, end); blanks around it are allowed, as in Envoy."""
    found = _INTEGER.fullmatch(value)
    if found is None:
        return False
    number = int(found[1] + found[2])
    return _INT64_MIN <= number <= _INT64_MAX and start <= number < end


def matches_all(matchers: list[HeaderMatcher], headers: HeaderMap) -> bool:
    """True when every condition holds; also when there is none."""
    return all(matcher.matches(headers) for matcher in matchers)


def build_header_matcher(message: Any, path: str, errors: ConfigErrors) -> HeaderMatcher | None:
    """Compile an `envoy.config.route.v3.HeaderMatcher`; None with an error when that cannot be."""
    name: bytes = message.name.lower().encode()
    matcher = HeaderMatcher(b":authority" if name == b"host" else name)
    matcher.invert = message.invert_match
    matcher.missing_as_empty = message.treat_missing_header_as_empty
    kind: str | None = message.WhichOneof("header_match_specifier")
    if kind is None:
        matcher.present = True
    elif kind == "present_match":
        matcher.present = message.present_match
    elif kind == "range_match":
        matcher.start = message.range_match.start
        matcher.end = message.range_match.end
    elif kind == "string_match":
        matcher.string = build_string_matcher(message.string_match, child(path, "string_match"), errors)
    elif kind == "safe_regex_match":
        regex = compile_regex(message.safe_regex_match, child(path, "safe_regex_match"), errors)
        matcher.string = None if regex is None else RegexMatcher(regex)
    elif kind == "exact_match" and not message.exact_match:
        matcher.present = True  # as Envoy has it
    else:
        matcher.string = literal_matcher(_DEPRECATED_KINDS[kind], getattr(message, kind).encode())
    if matcher.string is None and matcher.present is None and kind != "range_match":
        return None
    return matcher


def build_header_matchers(messages: Any, path: str, field: str, errors: ConfigErrors) -> list[HeaderMatcher]:
    """Compile a repeated field of HeaderMatcher; those in error are left out, with their errors."""
    built = [build_header_matcher(messages[i], item(path, field, i), errors) for i in range(len(messages))]
    return [matcher for matcher in built if matcher is not None]
