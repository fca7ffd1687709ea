"""Path templates of google.api.http, and the tree that finds the one a request's path matches.

    Template = "/" Segments [ ":" Verb ]      Segment  = "*" | "**" | literal | Variable
    Segments = Segment { "/" Segment }        Variable = "{" field path [ "=" Segments ] "}"

Behind `**` only literals may come. Names are compared as they stand in the path, escapes and all.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from meshproxy.errors import MeshProxyError

ONE: Final = "*"
REST: Final = "**"

# What `%XX` is left alone in the value of a variable of several segments (GrpcJsonTranscoder.UrlUnescapeSpec); a
# variable of one segment is unescaped in full.
RESERVED: Final = "!#$&'()*+,/:;=?@[]"  # RFC 6570 section 1.5
SLASH: Final = "/"


class TemplateError(MeshProxyError):
    """A path that is no template; the text says why."""


class Variable:
    """Segments from `start` on make up the value of a field. `end` is negative where it is counted from the path's
    last segment on, -1 being behind it: there `**` is among them."""

    def __init__(self, field_path: list[str], start: int, end: int) -> None:
        self.field_path = field_path
        self.start = start
        self.end = end

    def value(self, parts: list[str], kept: str) -> str:
        end = self.end if self.end >= 0 else len(parts) + self.end + 1
        if self.end >= 0 and end - self.start == 1:
            return unescape(parts[self.start], "")
        return "/".join([unescape(part, kept) for part in parts[self.start : end]])


class PathTemplate:
    """A template in parts: its segments are literals, `*` or `**`; `verb` is empty without one."""

    def __init__(self, segments: list[str], verb: str, variables: list[Variable]) -> None:
        self.segments = segments
        self.verb = verb
        self.variables = variables


def parse_template(text: str) -> PathTemplate:
    """Raises TemplateError."""
    return _Parser(text).parse()


class _Parser:
    """Reads one template from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at: int = 0
        self._segments: list[str] = []
        self._variables: list[Variable] = []

    def parse(self) -> PathTemplate:
        self._expect("/")
        self._read_segments(False)
        verb = ""
        if self._take(":"):
            verb = self._read_literal()
        if self._at < len(self._text):
            raise TemplateError(f"{self._text!r}: {self._text[self._at :]!r} is too much")
        self._check_rest()
        for variable in self._variables:
            if REST in self._segments[variable.start : variable.end]:
                variable.end -= len(self._segments) + 1
        return PathTemplate(self._segments, verb, self._variables)

    def _check_rest(self) -> None:
        if REST in self._segments:
            behind = self._segments[self._segments.index(REST) + 1 :]
            if ONE in behind or REST in behind:
                raise TemplateError(f"{self._text!r}: only literals may follow **")

    def _read_segments(self, in_variable: bool) -> None:
        self._read_segment(in_variable)
        while self._take("/"):
            self._read_segment(in_variable)

    def _read_segment(self, in_variable: bool) -> None:
        if self._take(REST):
            self._segments.append(REST)
        elif self._take(ONE):
            self._segments.append(ONE)
        elif not self._take("{"):
            self._segments.append(self._read_literal())
        elif in_variable:
            raise TemplateError(f"{self._text!r}: a variable in a variable")
        else:
            self._read_variable()

    def _read_variable(self) -> None:
        start = len(self._segments)
        field_path = self._read_until("=}").split(".")
        if "" in field_path:
            raise TemplateError(f"{self._text!r}: a variable without a name")
        if self._take("="):
            self._read_segments(True)
        else:
            self._segments.append(ONE)
        self._expect("}")
        self._variables.append(Variable(field_path, start, len(self._segments)))

    def _read_literal(self) -> str:
        literal = self._read_until("/:}")
        if not literal:
            raise TemplateError(f"{self._text!r}: an empty segment")
        return literal

    def _read_until(self, ends: str) -> str:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] not in ends:
            self._at += 1
        return self._text[start : self._at]

    def _take(self, text: str) -> bool:
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        return True

    def _expect(self, text: str) -> None:
        if not self._take(text):
            raise TemplateError(f"{self._text!r}: {text} expected at {self._at}")


class _Node:
    """What may follow a segment."""

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.is_rest: bool = False  # behind **: it takes any further segments
        self.found: dict[str, Any] = {}  # where the template ends here: by method and verb


class PathTree:
    """All templates: literals are preferred to `*`, that to `**`. Of those that are alike, none is found, as in Envoy:
    nobody could say which was meant."""

    def __init__(self, match_unregistered_verbs: bool = False) -> None:
        """With `match_unregistered_verbs` what follows the last colon is a verb even when no template has it."""
        self._root = _Node()
        self._verbs: set[str] = set()
        self._any_verb = match_unregistered_verbs

    def add(self, method: str, template: PathTemplate, target: Any) -> None:
        """`method` may be `*`, for those that have no template of their own there."""
        node = self._root
        for segment in template.segments:
            child = node.children.get(segment)
            if child is None:
                child = node.children[segment] = _Node()
                child.is_rest = segment == REST
            node = child
        key = f"{method}:{template.verb}"
        node.found[key] = None if key in node.found else target
        if template.verb:
            self._verbs.add(template.verb)

    def find(self, method: str, path: str) -> tuple[Any, list[str]]:
        """The target of the template that a request matches, None without one; and the segments of its path."""
        verb = ""
        colon = path.rfind(":")
        if colon > path.rfind("/"):
            last = path[colon + 1 :]
            if self._any_verb or last in self._verbs:
                verb = last
                path = path[:colon]
        parts = path[1:].split("/")
        while parts and not parts[-1]:
            parts.pop()
        return _look_up(self._root, parts, 0, f"{method}:{verb}", f"*:{verb}"), parts


def _look_up(node: _Node, parts: list[str], at: int, key: str, any_method: str) -> Any:
    if at == len(parts):
        found = _target(node, key, any_method)
        rest = node.children.get(REST)
        return _target(rest, key, any_method) if found is None and rest is not None else found
    found = _descend(node, parts[at], parts, at, key, any_method)
    if found is not None:
        return found
    if node.is_rest:
        return _look_up(node, parts, at + 1, key, any_method)
    found = _descend(node, ONE, parts, at, key, any_method)
    return _descend(node, REST, parts, at, key, any_method) if found is None else found


def _descend(node: _Node, segment: str, parts: list[str], at: int, key: str, any_method: str) -> Any:
    child = node.children.get(segment)
    return None if child is None else _look_up(child, parts, at + 1, key, any_method)


def _target(node: _Node, key: str, any_method: str) -> Any:
    return node.found[key] if key in node.found else node.found.get(any_method)


def unescape(text: str, kept: str) -> str:
    """Take off `%XX`, unless it stands for one of the characters `kept`. `text` is of a path, as Latin-1; what is no
    UTF-8 then stays as surrogates (`surrogateescape`)."""
    if "%" not in text and text.isascii():
        return text
    for character in kept:
        escape = quote(character, safe="")
        text = text.replace(escape, f"%25{escape[1:]}").replace(escape.lower(), f"%25{escape.lower()[1:]}")
    return unquote_to_bytes(text.encode("latin-1")).decode("utf-8", "surrogateescape")
