"""Envoy's StringMatcher, compiled: one native object per pattern, `match(value)` on bytes.

Case is ASCII case, as in Envoy. `ignore_case` says nothing about a `safe_regex` (write `(?i)` there).
"""

from __future__ import annotations

from typing import Any

from mypy_extensions import mypyc_attr

from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.regex import Regex, compile_regex


@mypyc_attr(allow_interpreted_subclasses=True)
class StringMatcher:
    """Says whether a value matches; the base accepts everything."""

    def match(self, value: bytes) -> bool:
        return True


class ExactMatcher(StringMatcher):
    def __init__(self, text: bytes) -> None:
        self.text = text

    def match(self, value: bytes) -> bool:
        return value == self.text


class PrefixMatcher(StringMatcher):
    def __init__(self, text: bytes) -> None:
        self.text = text

    def match(self, value: bytes) -> bool:
        return value.startswith(self.text)


class SuffixMatcher(StringMatcher):
    def __init__(self, text: bytes) -> None:
        self.text = text

    def match(self, value: bytes) -> bool:
        return value.endswith(self.text)


class ContainsMatcher(StringMatcher):
    def __init__(self, text: bytes) -> None:
        self.text = text

    def match(self, value: bytes) -> bool:
        return self.text in value


class IgnoreCaseMatcher(StringMatcher):
    """Any of the above on the lower-case value; its `inner` holds lower-case text."""

    def __init__(self, inner: StringMatcher) -> None:
        self.inner = inner

    def match(self, value: bytes) -> bool:
        return self.inner.match(value.lower())


class RegexMatcher(StringMatcher):
    """The whole value must match (RE2 syntax)."""

    def __init__(self, regex: Regex) -> None:
        self.regex = regex

    def match(self, value: bytes) -> bool:
        return self.regex.full_match(value)


def build_string_matcher(message: Any, path: str, errors: ConfigErrors) -> StringMatcher | None:
    """Compile an `envoy.type.matcher.v3.StringMatcher`; None with an error at `path` when that cannot be."""
    kind: str | None = message.WhichOneof("match_pattern")
    if kind is None:
        errors.add(path, "one of exact, prefix, suffix, contains, safe_regex is required")
        return None
    if kind == "safe_regex":
        if message.ignore_case:
            errors.add(child(path, "ignore_case"), "ignore_case has no effect for safe_regex.")
        regex = compile_regex(message.safe_regex, child(path, "safe_regex"), errors)
        return None if regex is None else RegexMatcher(regex)
    if kind == "custom":
        errors.add(child(path, "custom"), "custom string matchers are not supported")
        return None
    text: str = getattr(message, kind)
    if not text and kind != "exact":
        errors.add(child(path, kind), "must not be empty")
        return None
    return literal_matcher(kind, text.encode(), message.ignore_case)


def literal_matcher(kind: str, text: bytes, ignore_case: bool = False) -> StringMatcher:
    """A matcher of `kind` exact, prefix, suffix or contains."""
    if ignore_case:
        text = text.lower()
    matcher: StringMatcher
    if kind == "exact":
        matcher = ExactMatcher(text)
    elif kind == "prefix":
        matcher = PrefixMatcher(text)
    elif kind == "suffix":
        matcher = SuffixMatcher(text)
    else:
        matcher = ContainsMatcher(text)
    return IgnoreCaseMatcher(matcher) if ignore_case else matcher
