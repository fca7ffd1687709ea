"""expressions.txt: expressions with what the real Envoy makes of them, and the request that they are about."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

HEADERS: Final = (
    ("x-a", "one"),
    ("x-a", "two"),
    ("x-empty", ""),
    ("user-agent", "ua"),
    ("referer", "ref"),
    ("x-request-id", "rid"),
)
HOST: Final = "h.example:80"
TARGET: Final = "/p?q=1"
METADATA: Final = {"ns": {"a": "b", "l": ["x", "y"], "t": True, "z": None, "m": {"k": "v"}}}


class Row(NamedTuple):
    """`option`: the field of CelExpressionConfig that it needs, or "". `holds`, `negation_holds`: whether it does."""

    expression: str
    option: str
    holds: bool
    negation_holds: bool


def rows() -> list[Row]:
    """All of them."""
    option, found = "", []
    for line in Path(__file__).with_name("expressions.txt").read_text().splitlines()[2:]:
        if line.startswith("# "):
            option = line[2:] if line.startswith("# enable") else ""
        elif line:
            kind, _, expression = line.partition(" ")
            found.append(Row(expression, option, kind == "T", kind == "F"))
    return found
