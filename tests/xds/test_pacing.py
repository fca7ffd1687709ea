"""How long the client waits, and how often it asks."""

from __future__ import annotations

import pytest

from meshproxy.clock import move_ahead
from meshproxy.xds.pacing import BackOff, RequestLimit


def test_the_back_off_doubles_up_to_its_limit_and_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshproxy.xds.pacing.random.uniform", lambda _least, most: most)
    back_off = BackOff(500.0, 3000.0)
    assert [back_off.next_ms() for _ in range(5)] == [500.0, 1000.0, 2000.0, 3000.0, 3000.0]
    back_off.reset()
    assert back_off.next_ms() == 500.0


def test_clients_do_not_come_back_all_at_once() -> None:
    waits = [BackOff(500.0, 3000.0).next_ms() for _ in range(100)]
    assert all(0.0 <= wait <= 500.0 for wait in waits)
    assert len(set(waits)) > 50


def test_a_bucket_of_tokens() -> None:
    limit = RequestLimit(2, 10.0)
    assert [limit.take(), limit.take()] == [0.0, 0.0]
    assert limit.take() == pytest.approx(100.0, abs=5.0)
    move_ahead(0.1)
    assert limit.take() == 0.0
    move_ahead(60.0)
    assert [limit.take() == 0.0 for _ in range(3)] == [True, True, False]


def test_without_a_size_there_is_no_limit() -> None:
    limit = RequestLimit(0, 10.0)
    assert [limit.take() for _ in range(100)] == [0.0] * 100
