"""What both sides of a connection are tested by."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.town import Town, open_town


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Certificates of all kinds, good and bad."""
    with open_town(tmp_path_factory.mktemp("mesh")) as found:
        yield found
