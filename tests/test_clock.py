"""Time stands still within a turn, and only there."""

import time

from meshproxy import clock


def test_in_a_turn_time_stands_still() -> None:
    clock.begin_turn()
    try:
        now = clock.monotonic()
        until = time.monotonic() + 0.002
        while time.monotonic() < until:
            assert clock.monotonic() == now
        clock.begin_turn()
        assert clock.monotonic() > now
    finally:
        clock.end_turn()
    later = clock.monotonic()
    while clock.monotonic() == later:
        pass


def test_wall_time_of_a_reading() -> None:
    before = time.time()
    assert before - 1 < clock.wall_time(clock.monotonic()) < before + 60
    clock.move_ahead(100)
    assert before - 1 < clock.wall_time(clock.monotonic()) < before + 60
