"""Cuts a JSON array that comes in pieces into the texts of its elements, each as soon as it is whole."""

from __future__ import annotations

import re
from typing import Final

from meshproxy.http.transcoding.json_request import RequestError

_BEFORE: Final = 0  # the array has not begun
_BETWEEN: Final = 1  # an element or the end may come
_ELEMENT: Final = 2
_BEHIND: Final = 3  # an element: a comma or the end may come
_OVER: Final = 4

_TEXT: Final = re.compile(rb"[^ \t\r\n]")
_MARK: Final = re.compile(rb'[\[\]{},"]')  # what matters in an element outside of strings
_STRING_MARK: Final = re.compile(rb'["\\]')
_OPEN: Final = (0x5B, 0x7B)
_CLOSE: Final = (0x5D, 0x7D)
_QUOTE: Final = 0x22
_COMMA: Final = 0x2C
_END: Final = 0x5D


class JsonArray:
    """The elements are JSON only if whoever takes them finds that they are."""

    def __init__(self) -> None:
        self._state: int = _BEFORE
        self._element = bytearray()  # what has come of it
        self._depth: int = 0
        self._in_string: bool = False
        self._escaped: bool = False  # the data ended with a backslash

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return len(self._element)

    def feed(self, data: bytes) -> list[bytes]:
        """The elements that `data` completes. Raises RequestError where this is no array."""
        elements: list[bytes] = []
        at = 0
        while at < len(data):
            if self._state == _ELEMENT:
                at = self._scan(data, at, elements)
                continue
            found = _TEXT.search(data, at)
            if found is None:
                break
            at = self._step(data[found.start()], found.start())
        return elements

    def finish(self) -> None:
        """The input has ended. Raises RequestError when the array has not."""
        if self._state == _BEFORE:
            raise RequestError("Expected an array instead of an object")  # no body is an empty object
        if self._state != _OVER:
            raise RequestError("Unexpected end of string. Expected , or ] after array value.")

    def _step(self, byte: int, at: int) -> int:
        """Between elements: where to go on."""
        if self._state == _BEFORE:
            if byte != _OPEN[0]:
                what = "an object" if byte == _OPEN[1] else "a scalar value."
                raise RequestError(f"Expected an array instead of {what}")
            self._state = _BETWEEN
        elif self._state == _OVER:
            raise RequestError("Parsing terminated before end of input.")
        elif byte == _END:
            self._state = _OVER
        elif self._state == _BETWEEN:
            self._state = _ELEMENT
            return at
        elif byte != _COMMA:
            raise RequestError("Expected , or ] after array value.")
        else:
            self._state = _ELEMENT
            return at + 1
        return at + 1

    def _scan(self, data: bytes, at: int, elements: list[bytes]) -> int:
        """Go through the element until it ends: where to go on."""
        start = at
        if self._escaped:
            self._escaped = False
            at += 1
        while True:
            found = (_STRING_MARK if self._in_string else _MARK).search(data, at)
            if found is None:
                self._element += data[start:]
                return len(data)
            at = found.start()
            byte = data[at]
            at += 1
            if self._in_string:
                if byte == _QUOTE:
                    self._in_string = False
                else:
                    self._escaped = at == len(data)
                    at += 1
            elif byte == _QUOTE:
                self._in_string = True
            elif byte in _OPEN:
                self._depth += 1
            elif self._depth == 0:  # a comma, or the end of the array
                self._complete(data[start : at - 1], elements)
                return at - 1
            elif byte in _CLOSE:
                self._depth -= 1
                if self._depth == 0:
                    self._complete(data[start:at], elements)
                    return at

    def _complete(self, rest: bytes, elements: list[bytes]) -> None:
        self._element += rest
        elements.append(bytes(self._element))
        self._element.clear()
        self._state = _BEHIND
