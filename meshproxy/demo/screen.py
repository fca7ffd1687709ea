"""The terminal: lines that stay, and on a terminal a block below them that is drawn anew in place.

Without a terminal (a pipe, a CI log) it prints plain lines, one every other second, and each block once at its end.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import Final, TextIO

PLAIN: Final = ""
BOLD: Final = "1"
DIM: Final = "2"
RED: Final = "1;31"
GREEN: Final = "32"

# A style and the text to show in it.
Line = tuple[str, str]

_DRAW_EVERY_S: Final = 0.2
_PRINT_EVERY_S: Final = 2.0
_ROWS_NEEDED: Final = 20


class Screen:
    """Writes to a text stream, and finds out by itself what that stream can show."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        terminal = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colours = terminal and not os.environ.get("NO_COLOR")
        self.draws = terminal and shutil.get_terminal_size().lines >= _ROWS_NEEDED
        self._rows_drawn = 0
        self._shown_at = 0.0

    def say(self, text: str = "", style: str = PLAIN) -> None:
        """A line that stays."""
        self._out.write(self._styled((style, text)) + "\n")
        self._out.flush()

    def begin(self) -> None:
        """A new block starts here."""
        self._rows_drawn = 0
        self._shown_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to show something new; True counts as showing it."""
        now = time.monotonic()
        if now - self._shown_at < (_DRAW_EVERY_S if self.draws else _PRINT_EVERY_S):
            return False
        self._shown_at = now
        return True

    def draw(self, block: list[Line]) -> None:
        """Draw the block over the one drawn before, or for the first time."""
        columns = shutil.get_terminal_size().columns - 1 if self.draws else 1000
        back = f"\x1b[{self._rows_drawn}F" if self._rows_drawn else ""
        clear = "\x1b[K" if self.draws else ""
        rows = "".join(self._styled((style, text[:columns])) + clear + "\n" for style, text in block)
        self._out.write(back + rows)
        self._out.flush()
        self._rows_drawn = len(block)

    def settle(self, block: list[Line]) -> None:
        """The block as it stays."""
        self.draw(block)
        self._rows_drawn = 0

    def _styled(self, line: Line) -> str:
        style, text = line
        return f"\x1b[{style}m{text}\x1b[0m" if style and self._colours else text
