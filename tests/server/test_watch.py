"""Files on whose change something is built anew."""

from __future__ import annotations

import os
from pathlib import Path

from meshproxy.config.datasource import file_stamp
from meshproxy.server.watch import FilesWatch


def put(path: Path, text: str) -> None:
    """As a whole, by a rename."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    os.replace(temporary, path)


def test_what_changed_since_it_was_read(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    put(one, "1")
    put(two, "1")
    watch = FilesWatch(lambda: None)
    watch.watch((str(path), file_stamp(str(path))) for path in (one, two))
    assert watch.changed() == {}
    put(two, "2")
    assert list(watch.changed()) == [str(two)]
    two.unlink()
    assert watch.changed() == {}


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As a mounted secret is replaced: a link on the way to the file is."""
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        put(tmp_path / version / "key", version)
    current, shown = tmp_path / "current", tmp_path / "current" / "key"
    current.symlink_to("v1")
    watch = FilesWatch(lambda: None)
    watch.watch([(str(shown), file_stamp(str(shown)))])
    current.unlink()
    current.symlink_to("v2")
    assert list(watch.changed()) == [str(shown)]


def test_whoever_read_an_older_one_counts(tmp_path: Path) -> None:
    """Two workers may have read a file before and after it changed."""
    path = tmp_path / "one"
    put(path, "1")
    before = file_stamp(str(path))
    put(path, "22")
    now = file_stamp(str(path))
    watch = FilesWatch(lambda: None)
    watch.watch([(str(path), before), (str(path), now)])
    assert watch.changed() == {str(path): now}
