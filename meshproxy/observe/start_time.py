"""`%START_TIME(…)%`: Envoy's time formats (strftime, with `%3f`, `%E3S` and the like for parts of a second)."""

from __future__ import annotations

import re
import time
from typing import Final

DEFAULT_UTC: Final = "%Y-%m-%dT%H:%M:%E3SZ"
DEFAULT_LOCAL: Final = "%Y-%m-%dT%H:%M:%E3S%z"

_SPECIAL: Final = re.compile(
    r"%(?:(?P<whole>%)|(?P<epoch>s)|(?P<digits>[1-9]?)f|E(?P<e_digits>\d|\*)(?P<e_kind>[Sf])|E4Y|E[zZ])"
)
_FLAGS_NEWLINE: Final = re.compile(r"%[-_0^#]*[1-9]*[EO]?n")
_NANO_DIGITS: Final = 9


class TimeFormat:
    """One format, compiled. Everything but the parts of a second is kept for the second that it was made for.

    Raises ValueError for a format that yields a line break.
    """

    def __init__(self, text: str, *, local: bool = False) -> None:
        if _FLAGS_NEWLINE.search(text) or "\n" in text:
            raise ValueError("a time format must not contain a newline")
        self._local = local
        # Literals for strftime (str), and digits of the second's fraction (int; 0: all but trailing zeros).
        self._pieces = _compile(text)
        self._second = -1
        self._parts: list[str | int] = []

    def format(self, wall: float) -> str:
        """The Unix time `wall` (seconds) in words."""
        micros = int(wall * 1_000_000)
        second = micros // 1_000_000
        if second != self._second:
            self._second = second
            self._parts = self._render(second)
        if len(self._parts) == 1 and isinstance(self._parts[0], str):
            return self._parts[0]
        nanos = str(1_000_000 + micros % 1_000_000)[1:] + "000"
        words = ""
        for part in self._parts:
            words += part if isinstance(part, str) else _fraction(nanos, part)
        return words

    def _render(self, second: int) -> list[str | int]:
        fields = time.localtime(second) if self._local else time.gmtime(second)
        rendered: list[str | int] = []
        for piece in self._pieces:
            if isinstance(piece, int):
                rendered.append(piece)
                continue
            text = str(second) if piece == "%s" else time.strftime(piece, fields)
            if rendered and isinstance(rendered[-1], str):
                rendered[-1] += text
            else:
                rendered.append(text)
        return rendered or [""]


def _fraction(nanos: str, digits: int) -> str:
    return nanos[:digits] if digits > 0 else nanos.rstrip("0") or "0"


def _compile(text: str) -> list[str | int]:
    pieces: list[str | int] = []
    literal = ""
    end = 0
    for match in _SPECIAL.finditer(text):
        literal += text[end : match.start()]
        end = match.end()
        if match["whole"]:
            literal += "%%"
        elif match["epoch"]:
            pieces += [literal, "%s"]
            literal = ""
        elif match["e_kind"] == "S" or match["e_kind"] == "f" or match["digits"] is not None:
            if match["e_kind"] == "S":
                literal += "%S" if match["e_digits"] == "0" else "%S."
            if match["e_digits"] != "0":
                pieces += [literal, _digits(match)]
                literal = ""
        else:
            literal += {"%E4Y": "%Y"}.get(match[0], "%z")
    pieces.append(literal + text[end:])
    return [piece for piece in pieces if piece != ""]


def _digits(match: re.Match[str]) -> int:
    if match["e_digits"] is not None:
        return 0 if match["e_digits"] == "*" else int(match["e_digits"])
    return int(match["digits"]) if match["digits"] else _NANO_DIGITS
