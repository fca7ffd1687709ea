"""The collector around a change of the configuration (`server/garbage.py`)."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from meshproxy.server.garbage import Garbage


@pytest.fixture
def collections() -> Iterator[list[int]]:
    """The generations that were collected, one after the other. All is as before afterwards."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)
    gc.unfreeze()
    gc.enable()


def _built() -> list[list[int]]:
    return [[number] for number in range(gc.get_threshold()[0] * 20)]


def test_nobody_looks_at_what_was_built_once_it_is_in_force(collections: list[int]) -> None:
    garbage = Garbage()
    garbage.rebase()
    garbage.pause()
    collections.clear()
    built = _built()
    garbage.settle(1024 * 1024)
    assert not collections
    assert gc.isenabled()
    assert gc.get_freeze_count() >= len(built)


def test_what_is_small_is_not_put_away(collections: list[int]) -> None:
    before = gc.get_freeze_count()
    garbage = Garbage()
    garbage.pause()
    garbage.settle(1024)
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_it_is_off_until_the_last_who_paused_it_is_done(collections: list[int]) -> None:
    garbage = Garbage()
    garbage.pause()
    garbage.pause()
    garbage.settle(1024 * 1024)
    assert not gc.isenabled()
    garbage.resume()
    assert gc.isenabled()
