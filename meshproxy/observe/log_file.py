"""Log files that never hold up the event loop: lines go into a bounded buffer, a thread of each file writes them out.

Every line is written whole and the file is opened with O_APPEND, so that several workers may share one. When the disk
is slower than the traffic, or full, lines are dropped and counted; nothing ever waits for them.
"""

from __future__ import annotations

import os
import select
import stat
import threading
from collections import deque
from typing import Final

from meshproxy.errors import ConfigError
from meshproxy.observe.stats import StatsScope

FLUSH_BYTES: Final = 64 * 1024  # a buffer this full is written at once (Envoy's MIN_FLUSH_SIZE)
LIMIT_BYTES: Final = 16 * 1024 * 1024  # what may wait for a slow disk; lines beyond it are dropped
_CHUNK_BYTES: Final = 256 * 1024  # at most this much in one write
_CLOSE_TIMEOUT_S: Final = 5.0  # a pipe that nobody reads must not keep the process from ending
_STANDARD: Final = {"/dev/stdout": 1, "/dev/stderr": 2}


class FilesystemStats(StatsScope):
    """Envoy's `filesystem.*`, and `write_dropped`, which counts the lines that found the buffer full.

    Each attribute has one writing thread: those of the event loop are written by `LogFile.write`, the others by writers
    that hold `LogFiles.lock`.
    """

    COUNTERS = (
        "write_buffered",
        "write_completed",
        "write_failed",
        "write_dropped",
        "flushed_by_timer",
        "reopen_failed",
    )
    GAUGES = ("write_total_buffered",)
    SET_WITH = ("write_buffered",)

    def __init__(self) -> None:
        super().__init__()
        self.write_buffered = 0
        self.write_completed = 0
        self.write_failed = 0
        self.write_dropped = 0
        self.flushed_by_timer = 0
        self.reopen_failed = 0
        self.bytes_in = 0
        self.bytes_out = 0

    @property
    def write_total_buffered(self) -> int:
        """Bytes that wait to be written, of all files."""
        return max(0, self.bytes_in - self.bytes_out)


class LogFile:
    """One file (or standard stream). Raises ConfigError when it cannot be opened."""

    def __init__(self, path: str, stats: FilesystemStats, lock: threading.Lock, flush_interval_s: float) -> None:
        self.path = path
        self.stats = stats
        self._lock = lock  # guards the stats that writers of several files share
        self._flush_interval_s = flush_interval_s
        self._lines: deque[bytes] = deque()  # append and popleft are atomic: the loop adds, the writer takes
        self._bytes_in = 0  # written by the loop only
        self._bytes_out = 0  # written by the writer only
        self._wake = threading.Event()
        self._reopen = False
        self._closing = False
        self._writer: threading.Thread | None = None
        try:
            self._descriptor = _open(path)
        except OSError as error:
            raise ConfigError("", f"unable to open file '{path}': {error.strerror or error}") from error

    def write(self, line: bytes) -> None:
        """Buffer a line (which brings its own line break). Called by the event loop's thread only."""
        size = len(line)
        waiting = self._bytes_in - self._bytes_out + size
        stats = self.stats
        if waiting > LIMIT_BYTES:
            stats.write_dropped += 1
            return
        self._lines.append(line)
        self._bytes_in += size
        stats.bytes_in += size
        stats.write_buffered += 1
        if self._writer is None:
            self._start()
        if waiting >= FLUSH_BYTES and not self._wake.is_set():
            self._wake.set()

    @property
    def busy(self) -> bool:
        """Whether its writer still runs."""
        return self._writer is not None and self._writer.is_alive()

    def reopen(self) -> None:
        """Open the path anew (it was moved away); what waits goes to the new file."""
        self._reopen = True
        if self._writer is None:
            self._start()
        self._wake.set()

    def retire(self) -> None:
        """Have all that waits written and the file closed, without waiting for that."""
        if self._closing:
            return
        self._closing = True
        if self._writer is not None:
            self._wake.set()
        else:
            os.close(self._descriptor)

    def close(self) -> None:
        """As `retire`, and wait until it is done (at most 5 s, when a pipe is stuck)."""
        self.retire()
        if self._writer is not None:
            self._writer.join(_CLOSE_TIMEOUT_S)

    def _start(self) -> None:
        self._writer = threading.Thread(target=self._run, name=f"log {self.path}", daemon=True)
        self._writer.start()

    def _run(self) -> None:
        while not self._closing:
            woken = self._wake.wait(self._flush_interval_s)
            self._wake.clear()
            if self._reopen:
                self._open_again()
            if not woken and self._lines:
                with self._lock:
                    self.stats.flushed_by_timer += 1
            self._flush()
        self._flush()
        os.close(self._descriptor)

    def _flush(self) -> None:
        lines = self._lines
        while lines:
            chunk: list[bytes] = []
            size = 0
            while lines and size < _CHUNK_BYTES:
                chunk.append(lines.popleft())
                size += len(chunk[-1])
            written = self._write_all(b"".join(chunk))
            self._bytes_out += size
            with self._lock:
                self.stats.bytes_out += size
                if written:
                    self.stats.write_completed += 1
                else:
                    self.stats.write_failed += 1

    def _write_all(self, data: bytes) -> bool:
        """False when the disk (or whoever reads) took less than all: the rest is lost."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # a FIFO, or standard output that someone made non-blocking
                self._wait_writable()
                if self._closing:
                    return False
            except OSError:
                return False
        return True

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll(self._flush_interval_s * 1000.0)

    def _open_again(self) -> None:
        self._reopen = False
        try:
            descriptor = _open(self.path)
        except OSError:
            with self._lock:
                self.stats.reopen_failed += 1
            return
        os.close(self._descriptor)
        self._descriptor = descriptor


def _open(path: str) -> int:
    if path in _STANDARD:  # these paths cannot be opened where the stream is a socket
        return os.dup(_STANDARD[path])
    return os.open(path, _FIFO_FLAGS if _is_fifo(path) else _FILE_FLAGS, 0o644)


_FILE_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
# To open a FIFO for writing alone would wait for its reader, and the proxy with it.
_FIFO_FLAGS: Final = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC


def _is_fifo(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False


class LogFiles:
    """Every open log file of the process, shared by path and counted."""

    def __init__(self, flush_interval_s: float = 1.0) -> None:
        self.flush_interval_s = flush_interval_s
        self.lock = threading.Lock()
        self._open: dict[str, tuple[LogFile, int]] = {}
        self._retired: list[LogFile] = []

    def acquire(self, path: str, stats: FilesystemStats) -> LogFile:
        """The file at `path`, to be given back with `release`. Raises ConfigError when it cannot be opened."""
        held = self._open.get(path)
        file = held[0] if held is not None else LogFile(path, stats, self.lock, self.flush_interval_s)
        self._open[path] = (file, held[1] + 1 if held is not None else 1)
        return file

    def release(self, file: LogFile) -> None:
        """Give a file back; the last one has it closed, in the background."""
        held = self._open.get(file.path)
        if held is None or held[0] is not file:
            return
        if held[1] > 1:
            self._open[file.path] = (file, held[1] - 1)
            return
        del self._open[file.path]
        file.retire()
        self._retired = [retired for retired in self._retired if retired.busy] + [file]

    def paths(self) -> list[str]:
        """The paths that are open, sorted."""
        return sorted(self._open)

    def reopen(self) -> None:
        """Open every file anew (SIGUSR1, after a log rotation)."""
        for file, _ in self._open.values():
            file.reopen()

    def close(self) -> None:
        """Write out and close every file: the end of the process."""
        files = [file for file, _ in self._open.values()] + self._retired
        self._open.clear()
        self._retired.clear()
        for file in files:
            file.close()


LOG_FILES: Final = LogFiles()
