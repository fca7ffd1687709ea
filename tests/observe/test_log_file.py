"""The writer of log files: batches, rotation, sharing, a full disk, and a reader that does not read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshproxy.errors import ConfigError
from meshproxy.observe import log_file
from meshproxy.observe.log_file import FLUSH_BYTES, FilesystemStats, LogFiles
from tests.support.polling import wait_for


@pytest.fixture
def files() -> Iterator[LogFiles]:
    held = LogFiles(flush_interval_s=60.0)
    yield held
    held.close()


def test_close_writes_all_that_waits(files: LogFiles, tmp_path: Path) -> None:
    stats = FilesystemStats()
    file = files.acquire(str(tmp_path / "a.log"), stats)
    lines = [b"line %d\n" % number for number in range(1000)]
    for line in lines:
        file.write(line)
    files.close()
    assert (tmp_path / "a.log").read_bytes() == b"".join(lines)
    assert (stats.write_buffered, stats.write_total_buffered, stats.write_dropped) == (1000, 0, 0)
    assert stats.write_completed >= 1


def test_a_full_buffer_is_written_before_the_interval_ends(files: LogFiles, tmp_path: Path) -> None:
    file = files.acquire(str(tmp_path / "a.log"), FilesystemStats())
    file.write(b"x" * FLUSH_BYTES)
    wait_for(lambda: (tmp_path / "a.log").stat().st_size == FLUSH_BYTES, "the flush")


def test_the_interval_writes_a_few_lines(tmp_path: Path) -> None:
    files, stats = LogFiles(flush_interval_s=0.01), FilesystemStats()
    files.acquire(str(tmp_path / "a.log"), stats).write(b"one\n")
    wait_for(lambda: (tmp_path / "a.log").read_bytes() == b"one\n", "the flush")
    files.close()
    assert stats.flushed_by_timer == 1


def test_reopen_follows_a_rotation(files: LogFiles, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    file = files.acquire(str(path), FilesystemStats())
    file.write(b"x" * FLUSH_BYTES)
    wait_for(lambda: path.stat().st_size == FLUSH_BYTES, "the flush")
    path.rename(tmp_path / "a.log.1")
    files.reopen()
    wait_for(path.exists, "the new file")
    file.write(b"after\n")
    files.close()
    assert path.read_bytes() == b"after\n"
    assert (tmp_path / "a.log.1").stat().st_size == FLUSH_BYTES


def test_reopen_that_fails_keeps_the_old_file(files: LogFiles, tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    stats = FilesystemStats()
    file = files.acquire(str(directory / "a.log"), stats)
    directory.rename(tmp_path / "moved")
    files.reopen()
    wait_for(lambda: stats.reopen_failed == 1, "the failure")
    file.write(b"still here\n")
    files.close()
    assert (tmp_path / "moved" / "a.log").read_bytes() == b"still here\n"


def test_a_full_disk_loses_lines_and_nothing_else(files: LogFiles) -> None:
    stats = FilesystemStats()
    file = files.acquire("/dev/full", stats)
    file.write(b"lost\n")
    files.close()
    assert (stats.write_failed, stats.write_completed, stats.write_total_buffered) == (1, 0, 0)


def test_lines_beyond_the_limit_are_dropped_and_counted(
    files: LogFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "LIMIT_BYTES", 10)
    stats = FilesystemStats()
    file = files.acquire(str(tmp_path / "a.log"), stats)
    file.write(b"12345\n")
    file.write(b"67890\n")
    files.close()
    assert (tmp_path / "a.log").read_bytes() == b"12345\n"
    assert (stats.write_buffered, stats.write_dropped) == (1, 1)


def test_equal_paths_share_one_file_until_the_last_gives_it_back(files: LogFiles, tmp_path: Path) -> None:
    path, stats = str(tmp_path / "a.log"), FilesystemStats()
    first, second = files.acquire(path, stats), files.acquire(path, stats)
    assert first is second
    files.release(first)
    second.write(b"held\n")
    files.release(second)
    wait_for(lambda: (tmp_path / "a.log").read_bytes() == b"held\n", "the last flush")
    third = files.acquire(path, stats)
    assert third is not first


def test_writers_of_two_processes_do_not_cut_each_others_lines(tmp_path: Path) -> None:
    path = str(tmp_path / "a.log")
    one, two = LogFiles(0.001), LogFiles(0.001)
    writers = [one.acquire(path, FilesystemStats()), two.acquire(path, FilesystemStats())]
    for number in range(2000):
        writers[number % 2].write(b"%d:%s\n" % (number % 2, b"x" * 100))
    one.close()
    two.close()
    lines = Path(path).read_bytes().splitlines()
    assert sorted(set(lines)) == [b"0:" + b"x" * 100, b"1:" + b"x" * 100]
    assert len(lines) == 2000


def test_a_file_that_cannot_be_opened_is_a_config_error(files: LogFiles, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unable to open file"):
        files.acquire(str(tmp_path / "no" / "a.log"), FilesystemStats())


def test_a_fifo_without_a_reader_holds_up_nobody(
    files: LogFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1 << 20
    monkeypatch.setattr(log_file, "LIMIT_BYTES", limit)
    path = tmp_path / "fifo"
    os.mkfifo(path)
    stats = FilesystemStats()
    file = files.acquire(str(path), stats)
    line = b"x" * 999 + b"\n"
    for _ in range(3000):  # 3 MB, and a pipe holds 64 KiB
        file.write(line)
    assert stats.write_dropped > 0
    assert stats.write_buffered + stats.write_dropped == 3000
    assert stats.write_total_buffered <= limit
    reading = os.open(path, os.O_RDONLY)
    taken = 0
    while taken < stats.write_buffered * len(line):
        taken += len(os.read(reading, 1 << 16))
    os.close(reading)
    wait_for(lambda: stats.write_total_buffered == 0, "the writer")
    assert stats.write_failed == 0


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_writer(files: LogFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    monkeypatch.setitem(log_file._STANDARD, "/dev/stdout", writing)
    stats = FilesystemStats()
    file = files.acquire("/dev/stdout", stats)
    file.write(b"x" * (1 << 20))  # more than a pipe holds
    taken = b""
    while len(taken) < 1 << 20:
        taken += os.read(reading, 1 << 16)
    files.close()
    os.close(reading)
    os.close(writing)
    assert stats.write_completed == 1
