"""docs/rules.md is what the specs say."""

from __future__ import annotations

from pathlib import Path

from meshproxy.pilot.documents.docs import generate

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "rules.md").read_text() == generate()
