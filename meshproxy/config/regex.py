"""Regular expressions by RE2, which takes linear time whatever the input: Envoy's engine, so its syntax too.

Patterns and subjects are bytes, and each byte is a character (Latin-1, as Envoy has it): a header value that is not
UTF-8 is matched like any other. The low-level interface is called: the wrapper's match objects cost as much as a match.
"""

from __future__ import annotations

import re
from typing import Any, Final

import re2

from meshproxy.config.errors import ConfigErrors, child

_RE2: Final[Any] = re2._re2.RE2
_ANCHOR_BOTH: Final[Any] = _RE2.Anchor.ANCHOR_BOTH
_UNANCHORED: Final[Any] = _RE2.Anchor.UNANCHORED
_NO_MATCH: Final = (-1, -1)
# \0 to \9 are groups (\0 is the whole match), \\ is a backslash.
_REFERENCE: Final = re.compile(rb"\\(.?)", re.DOTALL)


class RegexError(ValueError):
    """A pattern or substitution that RE2 does not take, and why."""


class Regex:
    """One pattern. Raises RegexError when it does not compile."""

    __slots__ = ("_match", "_regex", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._regex = _compile(pattern, capture=False)
        self._match = self._regex.Match

    def full_match(self, value: bytes) -> bool:
        """Whether all of `value` matches."""
        found: tuple[int, int] = self._match(_ANCHOR_BOTH, value, 0, len(value))[0]
        return found[0] == 0

    def search(self, value: bytes) -> bool:
        """Whether some part of `value` matches."""
        found: tuple[int, int] = self._match(_UNANCHORED, value, 0, len(value))[0]
        return found[0] >= 0


class RegexSet:
    """Patterns that compete for one value: all are tried in a single pass. Raises RegexError for a bad pattern."""

    __slots__ = ("_match", "_set", "patterns")

    def __init__(self, patterns: list[str]) -> None:
        self.patterns = patterns
        options = _options(capture=False)
        options.max_mem = options.max_mem * max(1, len(patterns))
        self._set: Any = re2._re2.Set(_ANCHOR_BOTH, options)
        for pattern in patterns:
            _compile(pattern, capture=False)
            if self._set.Add(pattern.encode()) < 0:
                raise RegexError(f"the pattern {pattern!r} does not compile")
        if not self._set.Compile():
            raise RegexError("the patterns together take too much memory")
        self._match = self._set.Match

    def match(self, value: bytes) -> list[int]:
        """The indexes of the patterns that match all of `value`, ascending."""
        found: list[int] = self._match(value)
        if len(found) > 1:
            found.sort()
        return found


class Substitution:
    r"""Envoy's RegexMatchAndSubstitute: every match of the pattern is replaced; `\1` stands for a captured group.

    Raises RegexError for a pattern or a substitution that RE2 refuses.
    """

    __slots__ = ("_match", "_parts", "_regex", "pattern")

    def __init__(self, pattern: str, substitution: str) -> None:
        self.pattern = pattern
        self._regex = _compile(pattern, capture=True)
        self._match = self._regex.Match
        self._parts = _parse_substitution(substitution, self._regex.NumberOfCapturingGroups())

    def apply(self, value: bytes) -> bytes:
        """`value` with all matches replaced, as RE2::GlobalReplace: no empty match right at the end of another one."""
        end = len(value)
        position, last_end = 0, -1
        out: list[bytes] = []
        while position <= end:
            spans = self._match(_UNANCHORED, value, position, end)
            start, stop = spans[0]
            if start < 0:
                break
            out.append(value[position:start])
            if start == stop == last_end:
                out.append(value[start : start + 1])
                position = start + 1
                continue
            out.extend(part if isinstance(part, bytes) else _group(value, spans[part]) for part in self._parts)
            position = last_end = stop
        out.append(value[position:])
        return b"".join(out)


def compile_regex(message: Any, path: str, errors: ConfigErrors) -> Regex | None:
    """The expression of a `RegexMatcher`; None, with an error, when it does not compile."""
    try:
        return Regex(message.regex)
    except RegexError as error:
        errors.add(child(path, "regex"), str(error))
    return None


def build_substitution(message: Any, path: str, errors: ConfigErrors) -> Substitution | None:
    """The `RegexMatchAndSubstitute`; None, with an error, when pattern or substitution are bad."""
    if compile_regex(message.pattern, child(path, "pattern"), errors) is None:
        return None
    try:
        return Substitution(message.pattern.regex, message.substitution)
    except RegexError as error:
        errors.add(child(path, "substitution"), str(error))
    return None


def _options(*, capture: bool) -> Any:
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_capture = not capture
    options.log_errors = False
    return options


def _compile(pattern: str, *, capture: bool) -> Any:
    regex = _RE2(pattern.encode(), _options(capture=capture))
    if not regex.ok():
        reason = regex.error()
        raise RegexError(f"bad regular expression: {reason.decode() if isinstance(reason, bytes) else reason}")
    return regex


def _parse_substitution(substitution: str, groups: int) -> list[bytes | int]:
    """The literal parts, and the numbers of the groups between them."""
    text = substitution.encode()
    parts: list[bytes | int] = []
    position = 0
    for reference in _REFERENCE.finditer(text):
        parts.append(text[position : reference.start()])
        position = reference.end()
        name = reference[1]
        if name == b"\\":
            parts.append(name)
        elif not name.isdigit():
            raise RegexError("a backslash must be followed by a digit or a backslash")
        elif int(name) > groups:
            raise RegexError(f"refers to group {int(name)}, but the pattern has {groups}")
        else:
            parts.append(int(name))
    parts.append(text[position:])
    return [part for part in parts if part != b""]


def _group(value: bytes, span: tuple[int, int]) -> bytes:
    """What a group captured; nothing when it took no part in the match."""
    return b"" if span == _NO_MATCH else value[span[0] : span[1]]
