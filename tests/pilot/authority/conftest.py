"""Passphrases are made into keys quickly here: what costs a guesser a tenth of a second costs a test as much."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshproxy.pilot.authority import keys


@pytest.fixture(autouse=True, scope="module")
def _cheap_passphrases() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_SCRYPT_N", 2**10)
        yield
