"""The socket between supervisor and worker: frames of any size, in order, with their descriptors."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

from meshproxy.server.control import ANSWER, CALL, FDS_PER_FRAME, SOCKETS, ControlSocket, Frame
from tests.integration.proxy import eventually


class End:
    """One end, and what it heard."""

    def __init__(self, sock: socket.socket) -> None:
        self.frames: list[tuple[Frame, list[int]]] = []
        self.ended = 0
        self.control = ControlSocket(sock, asyncio.get_running_loop(), self._on_frame, self._on_end)

    def _on_frame(self, frame: Frame, fds: list[int]) -> None:
        self.frames.append((frame, fds))

    def _on_end(self) -> None:
        self.ended += 1


def _pair() -> tuple[End, End]:
    ours, theirs = socket.socketpair()
    return End(ours), End(theirs)


async def test_frames_of_any_size_arrive_in_order() -> None:
    one, two = _pair()
    sizes = (0, 5_000_000, 1, 300_000)
    frames: list[tuple[Any, ...]] = [(CALL, number, "verb", (b"x" * size,)) for number, size in enumerate(sizes)]
    for frame in frames:
        one.control.send(frame)
    two.control.send((ANSWER, 0, False, {"a": [1, 2.5, None]}))
    await eventually(lambda: len(two.frames) == len(frames) and one.frames, "the frames")
    assert [frame for frame, _ in two.frames] == frames
    assert one.frames == [((ANSWER, 0, False, {"a": [1, 2.5, None]}), [])]
    one.control.close()
    await eventually(lambda: two.ended == 1, "the end")


async def test_descriptors_come_with_their_frame() -> None:
    one, two = _pair()
    pipes = [os.pipe() for _ in range(FDS_PER_FRAME)]
    reading, writing = [pipe[0] for pipe in pipes], [pipe[1] for pipe in pipes]
    one.control.send((CALL, 1, "big", (b"x" * 1_000_000,)))
    one.control.send((SOCKETS, "many", len(writing)), writing)
    one.control.send((SOCKETS, "one", 1), writing[:1])
    one.control.send((CALL, 2, "after", ()))
    await eventually(lambda: len(two.frames) == 4, "the frames")
    names = [frame[1] for frame, _ in two.frames]
    assert names == [1, "many", "one", 2]
    assert [len(fds) for _, fds in two.frames] == [0, FDS_PER_FRAME, 1, 0]
    for index, fd in enumerate(two.frames[1][1]):
        os.write(fd, b"%d" % index)
    for index, fd in enumerate(reading):
        assert os.read(fd, 10) == b"%d" % index
    for fd in (*reading, *writing, *two.frames[1][1], *two.frames[2][1]):
        os.close(fd)
    two.control.close()
    await eventually(lambda: one.ended == 1, "the end")
    one.control.send((CALL, 3, "nobody hears", ()))


async def test_sending_to_one_that_is_gone_is_an_end() -> None:
    one, two = _pair()
    two.control.close()
    for number in range(3):
        one.control.send((CALL, number, "verb", (b"x" * 1_000_000,)))
    await eventually(lambda: one.ended == 1, "the end")
