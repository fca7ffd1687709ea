"""Messages in bodies: however the body is split, the same messages; and no more is kept than one."""

from __future__ import annotations

import tracemalloc
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.http.grpc.messages import COMPRESSED, MessageReader, MessageScanner, MessageTooLongError, frame

MESSAGES = st.lists(st.tuples(st.sampled_from([0, 1, 0x80, 0x81]), st.binary(max_size=40)), max_size=8)


def test_a_frame_has_flags_and_length() -> None:
    assert frame(b"abc") == b"\0\0\0\0\3abc"
    assert frame(b"", COMPRESSED) == b"\1\0\0\0\0"
    assert frame(bytes(70_000))[:5] == b"\0\0\1\x11\x70"


@given(MESSAGES, st.data())
def test_any_split_gives_the_same_messages(messages: list[tuple[int, bytes]], data: st.DataObject) -> None:
    body = b"".join(frame(message, flags) for flags, message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=10)))
    reader, scanner, read, ends = MessageReader(40), MessageScanner(), [], []
    for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
        read += reader.feed(body[start:end])
        ends += [start + at for at in scanner.feed(body[start:end])]
    assert read == messages
    assert not reader.partial
    assert ends == list(accumulate(5 + len(message) for _, message in messages))
    assert scanner.count == len(messages)


def test_what_is_whole_comes_at_once_and_the_rest_is_kept() -> None:
    reader = MessageReader(100)
    assert reader.feed(frame(b"one") + frame(b"two")[:6]) == [(0, b"one")]
    assert reader.partial
    assert reader.feed(b"w") == []
    assert reader.feed(b"o") == [(0, b"two")]
    assert not reader.partial


def test_a_message_in_many_pieces_takes_no_more_memory_than_it_has() -> None:
    reader = MessageReader(100_000)
    body = frame(bytes(range(256)) * 390)[:-1]
    tracemalloc.start()
    for at in range(0, len(body), 2):
        reader.feed(body[at : at + 2])
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reader.kept_bytes == len(body)
    assert size < 2 * len(body)


@pytest.mark.parametrize("split", [0, 1, 4])
def test_a_message_beyond_the_limit(split: int) -> None:
    body = frame(bytes(11))
    reader = MessageReader(10)
    assert reader.feed(body[:split]) == []
    with pytest.raises(MessageTooLongError) as error:
        reader.feed(body[split:5])
    assert (error.value.length, error.value.limit_bytes) == (11, 10)


def test_a_message_at_the_limit() -> None:
    assert MessageReader(10).feed(frame(bytes(10))) == [(0, bytes(10))]


def test_a_message_counts_from_its_first_byte() -> None:
    scanner = MessageScanner()
    assert scanner.feed(b"\0") == []
    assert scanner.count == 1
    assert scanner.feed(b"\0\0\0\2") == []
    assert scanner.feed(b"ab" + frame(b"") + b"\1") == [2, 7]
    assert scanner.count == 3
