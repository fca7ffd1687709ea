"""What the sample rules come to, against the readable files in xds/golden, which a review has seen."""

from __future__ import annotations

import pytest

from tests.pilot.resources.golden import GOLDEN, golden_files

FILES = golden_files()


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_what_the_rules_come_to(name: str) -> None:
    assert (GOLDEN / name).read_text() == FILES[name], "python -m tests.pilot.resources.golden writes them anew"


def test_there_is_no_other_file() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(FILES)
