"""Envoy's substitution formats: `%REQ(X-A?:PATH):10% literal %PROTOCOL%`, compiled once and applied to streams.

Header values, access logs and local replies all stand on this.
"""

from __future__ import annotations

import re
from typing import Any, Final

from meshproxy.observe.operators import (
    WIRE_OPERATORS,
    Constant,
    FormatError,
    Reader,
    Value,
    build_reader,
    to_bytes,
    to_json,
)
from meshproxy.observe.stream_info import StreamInfo

_COMMAND: Final = re.compile(r"%([A-Z0-9_]+)(?:\(([^)]*)\))?(?::([0-9]+))?%")

DEFAULT_FORMAT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" '
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% "
    '%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"\n'
)


class Formatter:
    """A compiled format. `constant` is its value when it does not depend on the stream, else None.

    `measures` says that it tells of bytes on the wire.
    """

    def __init__(self, readers: tuple[Reader, ...], template: bytes, unset: bytes, measures: bool) -> None:
        self.measures = measures
        self._readers = readers
        self._template = template  # for `%`: literals with a `%b` at each operator
        self._unset = unset
        self._bare = template == b"%b"
        self.constant: bytes | None = template % () if not readers else None

    def format(self, info: StreamInfo) -> bytes:
        """The format's value for this stream; an operator that has none leaves `unset` in its place."""
        if self._bare:
            value = self._readers[0](info)
            return value if type(value) is bytes else self._unset if value is None else to_bytes(value)
        if self.constant is not None:
            return self.constant
        values = []
        for read in self._readers:
            value = read(info)
            if type(value) is str:
                value = value.encode()
            elif type(value) is int:
                value = b"%d" % value
            elif value is None:
                value = self._unset
            elif type(value) is not bytes:
                value = to_bytes(value)
            values.append(value)
        return self._template % tuple(values)

    def value(self, info: StreamInfo) -> Value:
        """As `format`, but an operator that stands alone keeps its type, and None says that it has no value."""
        if self._bare:
            return self._readers[0](info)
        return self.format(info)


def parse_format(text: str, unset: bytes = b"", *, for_log: bool = False) -> Formatter:
    """Compile a format. `unset` stands for operators without a value: nothing in headers, `-` in access logs.

    Only `for_log` may it tell of bytes on the wire.

    Raises FormatError for what Envoy refuses, and for an operator that is not supported, by its name.
    """
    readers: list[Reader] = []
    template = ""
    position = 0
    measures = False
    while position < len(text):
        percent = text.find("%", position)
        if percent < 0:
            template += text[position:]
            break
        template += text[position:percent]
        if text.startswith("%%", percent):
            template += "%%"
            position = percent + 2
            continue
        match = _COMMAND.match(text, percent)
        if match is None:
            raise FormatError(f"Incorrect configuration: {text}. Couldn't find valid command at position {percent}")
        reader = build_reader(match[1], match[2], int(match[3]) if match[3] else None)
        if match[1] in WIRE_OPERATORS:
            if not for_log:
                raise FormatError(f"{match[1]} is known only in access logs")
            measures = True
        position = match.end()
        owner = getattr(reader, "__self__", None)
        if isinstance(owner, Constant):
            template += owner.value.replace("%", "%%")
        else:
            readers.append(reader)
            template += "%b"
    return Formatter(tuple(readers), template.encode("utf-8", "surrogateescape"), unset, measures)


class JsonFormatter:
    """`json_format`: a tree of formats, written as one line of JSON with sorted keys.

    An operator that stands alone keeps its type, and is null without a value; with `omit_empty` such
    values, and objects that hold nothing else, are left out.
    """

    def __init__(self, tree: dict[str, Any], *, omit_empty: bool = False, for_log: bool = False) -> None:
        self._omit_empty = omit_empty
        self._for_log = for_log
        self.measures: bool = False
        self._tree = self._compile(tree)

    def _compile(self, node: Any) -> Any:
        if isinstance(node, dict):
            return {key: self._compile(node[key]) for key in sorted(node)}
        if isinstance(node, list):
            return [self._compile(item) for item in node]
        if not isinstance(node, str):
            return node
        formatter = parse_format(node, b"" if self._omit_empty else b"-", for_log=self._for_log)
        self.measures = self.measures or formatter.measures
        return formatter if formatter.constant is None else formatter.constant

    def format(self, info: StreamInfo) -> bytes:
        """One line of JSON."""
        return to_json(self._fill(self._tree, info)).encode("utf-8", "replace") + b"\n"

    def _fill(self, node: Any, info: StreamInfo) -> Any:
        if isinstance(node, Formatter):
            return node.value(info)
        if isinstance(node, dict):
            filled = {key: self._fill(item, info) for key, item in node.items()}
            return {key: item for key, item in filled.items() if item not in (None, {})} if self._omit_empty else filled
        if isinstance(node, list):
            items = [self._fill(item, info) for item in node]
            return [item for item in items if item is not None] if self._omit_empty else items
        return node


__all__ = ["DEFAULT_FORMAT", "FormatError", "Formatter", "JsonFormatter", "parse_format"]
