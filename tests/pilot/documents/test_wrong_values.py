"""Every kind: what is wrong with a document is told with line, field and reason (wrong_values.txt)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from meshproxy.pilot.documents.kinds import KINDS
from tests.pilot.documents.text import errors_of


def rows() -> list[tuple[str, str, list[str]]]:
    """Kind, spec, errors."""
    kind, found = "", []
    for block in Path(__file__).with_name("wrong_values.txt").read_text().split("\n\n")[1:]:
        lines = block.strip().splitlines()
        if lines[0].startswith("# "):
            kind = lines[0].removeprefix("# ")
            continue
        spec = [line for line in lines if not line.startswith("=> ")]
        errors = [line.removeprefix("=> ") for line in lines if line.startswith("=> ")]
        found.append((kind, "\n".join(spec), errors))
    return found


ROWS: Final = rows()


@pytest.mark.parametrize(("kind", "spec", "errors"), ROWS)
def test_what_is_wrong_is_told_where_it_stands(kind: str, spec: str, errors: list[str]) -> None:
    assert errors
    assert errors_of(kind, spec) == errors


def test_every_kind_has_rows() -> None:
    assert {kind for kind, _, _ in ROWS} == {kind.name for kind in KINDS}
