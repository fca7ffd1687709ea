"""Path templates (`envoy.extensions.path.match.uri_template`) and the rewrites that use what they captured.

A template is a path whose segments are literals, `*` (one segment), `**` (any number of them; only literals may follow,
as in `/**.m3u8`) or variables: `{name}` is `{name=*}`, and there are `{name=videos/*}` and `{name=**}`. It becomes one
regular expression with a group per variable.
"""

from __future__ import annotations

import re
from typing import Any, Final

import re2

from meshproxy.config.regex import Regex, RegexError

# The characters of a path segment: RFC 3986's pchar.
_SEGMENT_CHARACTERS: Final = r"a-zA-Z0-9\-._~%!$&'()*+,;:@="
_ONE_SEGMENT: Final = f"[{_SEGMENT_CHARACTERS}]+"
_ANY_SEGMENTS: Final = f"[{_SEGMENT_CHARACTERS}/]*"
_LITERAL: Final = re.compile(f"[{_SEGMENT_CHARACTERS}]*")
_NAME: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*")
_PRINTABLE: Final = re.compile(r"/[!-~]*")
_VARIABLE: Final = re.compile(r"\{([^{}=]*)(?:=([^{}]*))?\}")
_MAX_VARIABLES: Final = 5
_MAX_NAME: Final = 16


class TemplateError(Exception):
    """A template that does not follow the grammar; the text says why."""


class PathTemplate:
    """A compiled template: whether a path (without its query) matches, and what its variables captured."""

    def __init__(self, text: str, pattern: str, names: list[str]) -> None:
        self.text = text
        self.names = names
        self.regex = Regex(pattern)
        self._capturing: Any = re2.compile(pattern.encode("latin-1"))

    def matches(self, path: bytes) -> bool:
        return self.regex.full_match(path)

    def capture(self, path: bytes) -> list[bytes] | None:
        """The values of the variables, in the order of `names`; None when the path does not match."""
        found = self._capturing.fullmatch(path)
        return None if found is None else [value or b"" for value in found.groups()]


class TemplateRewrite:
    """A rewrite template: literals (bytes) and indices of captured variables."""

    def __init__(self, parts: list[bytes | int]) -> None:
        self.parts = parts

    def expand(self, captured: list[bytes]) -> bytes:
        return b"".join([captured[part] if isinstance(part, int) else part for part in self.parts])


class _Compiler:
    """Turns one template into its pattern, left to right."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.rest_seen = False  # a `**` came: no operator may follow

    def segment(self, text: str, last: bool) -> str:
        """The pattern of one segment: a literal, a variable among literals, or an operator.

        Behind an operator a literal may stand in the last segment only; only the last segment may be empty.
        """
        variable = _VARIABLE.search(text)
        if variable is not None and not text.startswith("*"):
            before, after = text[: variable.start()], text[variable.end() :]
            return self.literal(before) + self.variable(variable) + self.literal(after)
        for operator, pattern in (("**", _ANY_SEGMENTS), ("*", _ONE_SEGMENT)):
            if text.startswith(operator):
                suffix = text[len(operator) :]
                if suffix and not last:
                    raise TemplateError(f"a literal may follow {operator} in the last segment only")
                return self.operator(operator, pattern) + self.literal(suffix)
        if not text and not last:
            raise TemplateError("only the last segment may be empty")
        return self.literal(text)

    def operator(self, operator: str, pattern: str) -> str:
        if self.rest_seen:
            raise TemplateError("no operator may follow **")
        self.rest_seen = operator == "**"
        return pattern

    def variable(self, match: re.Match[str]) -> str:
        name = match.group(1)
        if _NAME.fullmatch(name) is None or len(name) > _MAX_NAME:
            raise TemplateError(
                f"{name!r} is not a variable name (a letter, then letters, digits or _; {_MAX_NAME} at most)"
            )
        if name in self.names:
            raise TemplateError(f"the variable {name!r} is there twice")
        if len(self.names) == _MAX_VARIABLES:
            raise TemplateError(f"there are more than {_MAX_VARIABLES} variables")
        self.names.append(name)
        inner = match.group(2)
        if inner is None:
            inner = "*"
        if not inner:
            raise TemplateError(f"the variable {name!r} has an empty pattern")
        return "(" + "/".join([self.inner_segment(part) for part in inner.split("/")]) + ")"

    def inner_segment(self, text: str) -> str:
        if text == "*":
            return self.operator("*", _ONE_SEGMENT)
        if text == "**":
            return self.operator("**", _ANY_SEGMENTS)
        if not text or text.startswith("*"):
            raise TemplateError(f"{text!r} is not a segment of a variable's pattern")
        return self.literal(text)

    def literal(self, text: str) -> str:
        if _LITERAL.fullmatch(text) is None:
            raise TemplateError(f"{text!r} is not a literal path segment")
        # Envoy leaves a star in a literal as it is, so that it repeats the character before it.
        return str(re2.escape(text)).replace("\\*", "*")


def compile_template(text: str) -> PathTemplate:
    """Compile a `path_template`; raises TemplateError."""
    if _PRINTABLE.fullmatch(text) is None:
        raise TemplateError("a template begins with / and holds printable ASCII only")
    compiler = _Compiler()
    segments = _split(text[1:])
    last = len(segments) - 1
    pattern = "".join(["/" + compiler.segment(segments[i], i == last) for i in range(len(segments))])
    try:
        return PathTemplate(text, pattern, compiler.names)
    except RegexError as error:
        raise TemplateError(str(error)) from error


def _split(text: str) -> list[str]:
    """Split at the slashes that are outside of braces."""
    segments: list[str] = [""]
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == "/" and depth == 0:
            segments.append("")
        else:
            segments[-1] += character
    return segments


def compile_rewrite(text: str, template: PathTemplate) -> TemplateRewrite:
    """Compile a `path_template_rewrite` for the variables of `template`; raises TemplateError."""
    if not text.startswith("/"):
        raise TemplateError("a rewrite begins with /")
    parts: list[bytes | int] = []
    at = 0
    while at < len(text):
        if text[at] == "{":
            end = text.find("}", at)
            name = text[at + 1 : end] if end >= 0 else text[at + 1 :]
            if end < 0 or name not in template.names:
                raise TemplateError(f"the template {template.text!r} has no variable {name!r}")
            parts.append(template.names.index(name))
            at = end + 1
        else:
            end = text.find("{", at)
            end = len(text) if end < 0 else end
            parts.append(_rewrite_literal(text[at:end]))
            at = end
    return TemplateRewrite(parts)


def _rewrite_literal(text: str) -> bytes:
    if _LITERAL.fullmatch(text.replace("/", "")) is None or "//" in text:
        raise TemplateError(f"{text!r} is not a literal path")
    return text.encode("latin-1")
