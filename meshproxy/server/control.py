"""The socket between supervisor and worker: numbered calls and answers, with file descriptors where a call brings some.

A frame is its length (4 bytes, big endian) and a marshalled tuple. Both ends are the same program, so nothing is
negotiated.
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

_LENGTH: Final = struct.Struct("!I")
_READ_BYTES: Final = 256 * 1024
FDS_PER_FRAME: Final = 64  # the kernel takes 253 in one message
Frame = tuple[Any, ...]


class ControlSocket:
    """One end. `on_frame(frame, fds)` is called for each frame, `on_end()` once when the other end is gone."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_frame: Callable[[Frame, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._on_frame = on_frame
        self._on_end = on_end
        self._in = bytearray()
        self._fds: list[int] = []
        self._out: list[tuple[bytes, list[int]]] = []
        self._open = True
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._readable)

    def send(self, frame: Frame, fds: list[int] | None = None) -> None:
        """Queue a frame; with `fds`, its last item must say how many. The descriptors are duplicated here."""
        if not self._open:
            return
        data = marshal.dumps(frame)
        self._out.append((_LENGTH.pack(len(data)) + data, [os.dup(fd) for fd in fds or ()]))
        if len(self._out) == 1:
            self._write()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        for _, fds in self._out:
            _close_all(fds)
        _close_all(self._fds)
        self._sock.close()

    def _write(self) -> None:
        while self._out:
            data, fds = self._out[0]
            try:
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._write)
                return
            except OSError:
                self._end()
                return
            _close_all(fds)
            if sent == len(data):
                self._out.pop(0)
            else:
                self._out[0] = (data[sent:], [])
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _READ_BYTES, FDS_PER_FRAME)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._end()
            return
        self._fds.extend(fds)
        self._in += data
        while self._open and len(self._in) >= 4:
            (size,) = _LENGTH.unpack_from(self._in)
            if len(self._in) < 4 + size:
                return
            frame: Frame = marshal.loads(bytes(self._in[4 : 4 + size]))
            del self._in[: 4 + size]
            count = frame[-1] if frame[0] == SOCKETS else 0
            taken, self._fds = self._fds[:count], self._fds[count:]
            self._on_frame(frame, taken)

    def _end(self) -> None:
        if self._open:
            self.close()
            self._on_end()


# The first item of a frame.
CALL: Final = 0  # (CALL, id, verb, arguments)
PART: Final = 1  # (PART, id, part of the result)
ANSWER: Final = 2  # (ANSWER, id, failure): that was all of it; "" for success
SOCKETS: Final = 3  # (SOCKETS, listener, count of descriptors)
INTEREST: Final = 4  # (INTEREST, 0, what the worker watches from now on, or no longer)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
