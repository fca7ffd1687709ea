"""Files that are read again when they change."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshproxy.errors import ConfigError
from meshproxy.pilot.files import Followed, read_file


def followed(*paths: Path) -> Followed[list[bytes]]:
    names = tuple(map(str, paths))
    return Followed(names, lambda: [read_file(name) for name in names])


def test_it_is_the_same_until_one_of_them_changes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    files = followed(first, second)
    assert files.get() == [b"1", b"2"]
    assert files.get() is files.get()
    second.write_bytes(b"changed")
    assert files.get() == [b"1", b"changed"]


def test_what_is_no_good_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "file"
    with pytest.raises(ConfigError, match="No such file"):
        followed(path)
    path.write_bytes(b"1")
    files = followed(path)
    path.unlink()
    with caplog.at_level("WARNING", "meshproxy.pilot"):
        assert files.get() == files.get() == [b"1"]
    assert caplog.messages == [f"{path}: No such file or directory; what it held before stays in force"]
    path.write_bytes(b"back")
    assert files.get() == [b"back"]


def test_a_file_is_not_read_without_end() -> None:
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        read_file("/dev/zero")
