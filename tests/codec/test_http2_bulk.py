"""Large DATA frames: cut anywhere by the reads they come in, and sent without a copy."""

from __future__ import annotations

import pytest

from meshproxy.codec.connection import PASS_ON_BYTES
from meshproxy.codec.http2.constants import DATA, END_STREAM
from tests.codec.http2_frames import raw_frame
from tests.codec.http2_playbook import act, server
from tests.codec.http2_recorder import Server

POST = ":method=POST :scheme=http :authority=a :path=/"
PIECES = [bytes([number]) * PASS_ON_BYTES for number in range(1, 5)]
LAST = raw_frame(DATA, END_STREAM, 1, b"end")
FRAMES = b"".join(raw_frame(DATA, 0, 1, piece) for piece in PIECES) + LAST
FRAME_BYTES = 9 + PASS_ON_BYTES


def receiver() -> Server:
    owner = server()
    owner.connection.receive_data(owner.peer.frames(f"HEADERS 1 {POST}"))
    return owner


def log_of(*reads: bytes) -> list[str]:
    """What a stream hears of DATA in such reads."""
    owner = receiver()
    for read in reads:
        owner.connection.receive_data(read)
    return owner.log


@pytest.mark.parametrize("frames", [0, 1, 2])
@pytest.mark.parametrize("more", [0, 1, 8, 9, 10, 5000, FRAME_BYTES - 1])
def test_a_read_may_end_anywhere(frames: int, more: int) -> None:
    at = frames * FRAME_BYTES + more
    assert log_of(FRAMES[:at], FRAMES[at:]) == log_of(FRAMES)


def test_a_frame_may_come_in_many_reads() -> None:
    for size in (1000, PASS_ON_BYTES - 1, PASS_ON_BYTES, PASS_ON_BYTES + 1, 40_000):
        reads = [FRAMES[at : at + size] for at in range(0, len(FRAMES), size)]
        assert log_of(*reads) == log_of(FRAMES)


def test_nothing_is_looked_at_behind_an_error_in_the_frame_that_was_put_together() -> None:
    owner = receiver()
    padded = raw_frame(DATA, 0x8, 1, b"\xff" + b"p" * 100)  # more padding than payload
    owner.connection.receive_data(padded[:20])
    owner.connection.receive_data(padded[20:] + FRAMES)
    assert owner.connection.should_close
    assert not any("data" in line for line in owner.log)
    assert owner.connection.buffered_bytes == 0


def test_a_large_piece_is_passed_on_as_it_is() -> None:
    owner = receiver()
    act(owner, "!! send 1 :status=200")
    owner.connection.data_to_send()
    owner.encoders[1].send_data(PIECES[0], False)
    owner.encoders[1].send_data(b"small", False)
    output = owner.connection.data_to_send()
    assert isinstance(output, list)
    assert any(piece is PIECES[0] for piece in output)
    assert b"".join(output) == raw_frame(DATA, 0, 1, PIECES[0]) + raw_frame(DATA, 0, 1, b"small")
