"""Envoy's substitution formats: `%REQ(X-A?:PATH):10% literal %PROTOCOL%`, compiled once and applied to streams.

Header values, access logs and local replies all stand on this.
"""

from __future__ import annotations

import re
from typing import Any, Final

from meshproxy.observe.operators import WIRE_OPERATORS, Constant, FormatError, Reader, build_reader
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.observe.value_text import Value, to_bytes, to_json

_COMMAND: Final = re.compile(r"%([A-Z0-9_]+)(?:\(([^)]*)\))?(?::([0-9]+))?%")

DEFAULT_FORMAT: Final = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" '
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% "
    '%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" '
    '"%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"\n'
)


class LineFormat:
    """A compiled format of text or JSON. `measures`: it tells of bytes on the wire."""

    def __init__(self) -> None:
        self.measures: bool = False

    def format(self, info: StreamInfo) -> bytes:
        raise NotImplementedError


class Formatter(LineFormat):
    """A compiled format. `constant` is its value when it does not depend on the stream, else None."""

    def __init__(self, literals: list[bytes], readers: list[Reader], unset: bytes) -> None:
        super().__init__()
        self._literals = literals  # one before each operator, and one behind the last
        self._readers = readers
        self._unset = unset
        self._bare: bool = literals == [b"", b""]
        self.constant: bytes | None = None if readers else literals[0]

    def format(self, info: StreamInfo) -> bytes:
        """The format's value for this stream; an operator that has none leaves `unset` in its place."""
        if self._bare:
            alone = self._readers[0].read(info)
            return alone if isinstance(alone, bytes) else self._unset if alone is None else to_bytes(alone)
        literals = self._literals
        pieces = [literals[0]]
        for i, reader in enumerate(self._readers, 1):
            value = reader.read(info)
            if isinstance(value, bytes):
                pieces.append(value)
            elif value is None:
                pieces.append(self._unset)
            elif isinstance(value, str):
                pieces.append(value.encode())
            else:
                pieces.append(to_bytes(value))
            pieces.append(literals[i])
        return b"".join(pieces)

    @property
    def single(self) -> bool:
        """Whether it is one operator, or one constant."""
        return self._bare or not self._readers

    def value(self, info: StreamInfo) -> Value:
        """As `format`, but an operator that stands alone keeps its type, and None says that it has no value."""
        if self._bare:
            return self._readers[0].read(info)
        return self.format(info)


def parse_format(text: str, unset: bytes = b"", *, for_log: bool = False) -> Formatter:
    """Compile a format. `unset` stands for operators without a value: nothing in headers, `-` in access logs.

    Only `for_log` may it tell of bytes on the wire.

    Raises FormatError for what Envoy refuses, and for an operator that is not supported, by its name.
    """
    readers: list[Reader] = []
    literals: list[str] = [""]
    position = 0
    measures = False
    while position < len(text):
        percent = text.find("%", position)
        if percent < 0:
            literals[-1] += text[position:]
            break
        literals[-1] += text[position:percent]
        if text.startswith("%%", percent):
            literals[-1] += "%"
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
        if isinstance(reader, Constant):
            literals[-1] += reader.value
        else:
            readers.append(reader)
            literals.append("")
    formatter = Formatter([literal.encode("utf-8", "surrogateescape") for literal in literals], readers, unset)
    formatter.measures = measures
    return formatter


class JsonFormatter(LineFormat):
    """`json_format`: a tree of formats, written as one line of JSON with sorted keys.

    An operator that stands alone keeps its type, and is null without a value; with `omit_empty` such
    values, and objects that hold nothing else, are left out.
    """

    def __init__(self, tree: dict[str, Any], *, omit_empty: bool = False, for_log: bool = False) -> None:
        super().__init__()
        self._unset: bytes = b"" if omit_empty else b"-"
        self._for_log = for_log
        self._tree: Any = self._compile(tree)
        self._omit_empty = omit_empty
        # The line without what may be left out: as in a format of text, values stand between literals.
        self._literals: list[str] = [""]
        self._values: list[Formatter] = []
        self._flatten(self._tree)
        self._literals[-1] += "\n"

    def format(self, info: StreamInfo) -> bytes:
        """One line of JSON."""
        if self._omit_empty:
            return (to_json(_without_empty(self._tree, info)) + "\n").encode("utf-8", "replace")
        literals = self._literals
        pieces = [literals[0]]
        for i, formatter in enumerate(self._values, 1):
            pieces.append(to_json(formatter.value(info)))
            pieces.append(literals[i])
        return "".join(pieces).encode("utf-8", "replace")

    def _compile(self, node: Any) -> Any:
        if isinstance(node, dict):
            return {key: self._compile(node[key]) for key in sorted(node)}
        if isinstance(node, list):
            return [self._compile(item) for item in node]
        if not isinstance(node, str):
            return node
        formatter = parse_format(node, self._unset, for_log=self._for_log)
        self.measures = self.measures or formatter.measures
        return formatter if formatter.constant is None else formatter.constant

    def _flatten(self, node: Any) -> None:
        if isinstance(node, dict):
            for index, key in enumerate(node):
                self._literals[-1] += ("," if index else "{") + to_json(key) + ":"
                self._flatten(node[key])
            self._literals[-1] += "}" if node else "{}"
        elif isinstance(node, list):
            for index, item in enumerate(node):
                self._literals[-1] += "," if index else "["
                self._flatten(item)
            self._literals[-1] += "]" if node else "[]"
        elif isinstance(node, Formatter):
            self._values.append(node)
            self._literals.append("")
        else:
            self._literals[-1] += to_json(node)


def _without_empty(node: Any, info: StreamInfo) -> Any:
    """The values of a tree of formats; what has none is left out, and with it an object that is empty then."""
    if isinstance(node, Formatter):
        return node.value(info)
    if isinstance(node, dict):
        filled = {key: _without_empty(item, info) for key, item in node.items()}
        return {key: item for key, item in filled.items() if item is not None and item != {}}
    if isinstance(node, list):
        items = [_without_empty(item, info) for item in node]
        return [item for item in items if item is not None]
    return node


__all__ = ["DEFAULT_FORMAT", "FormatError", "Formatter", "JsonFormatter", "LineFormat", "parse_format"]
