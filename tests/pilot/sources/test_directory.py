"""A directory of documents: what is read, how changes are seen, how files are written."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshproxy.pilot.documents.document import Identity, parse_document
from meshproxy.pilot.sources.directory import DirectorySource
from meshproxy.pilot.sources.source import RuleSet, SourceError, Write
from tests.pilot.documents.text import document_text

_DEADLINE_S = 10.0


def text(name: str, host: str = "a.example") -> str:
    return document_text("Sidecar", f"egress: [{{hosts: [./{host}]}}]", name)


def names(rules: RuleSet) -> list[str]:
    found = [parse_document(raw).identity for raw in rules.documents]
    return [identity.name for identity in found if identity is not None]


def identity(name: str) -> Identity:
    return Identity("Sidecar", "default", name)


async def told(watch: AsyncIterator[RuleSet]) -> list[str]:
    return names(await asyncio.wait_for(anext(watch), _DEADLINE_S))


async def test_files_are_read_in_order_also_below(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(text("b1") + "---\n" + text("b2"))
    (tmp_path / "a.yml").write_text(text("a"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.json").write_text('{"kind": "Sidecar"}')
    (tmp_path / "notes.txt").write_text(text("no"))
    (tmp_path / ".hidden.yaml").write_text(text("no"))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.yaml").write_text(text("no"))
    rules = await DirectorySource(str(tmp_path)).read()
    assert [(Path(raw.source).name, raw.line) for raw in rules.documents] == [
        ("a.yml", 1),
        ("b.yaml", 1),
        ("b.yaml", 7),
        ("c.json", 1),
    ]


async def test_a_file_may_stand_for_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(text("a"))
    assert names(await DirectorySource(str(path)).read()) == ["a"]


async def test_the_revision_tells_contents_apart(tmp_path: Path) -> None:
    source = DirectorySource(str(tmp_path))
    (tmp_path / "a.yaml").write_text(text("a"))
    first = await source.read()
    assert (await source.read()).revision == first.revision
    (tmp_path / "a.yaml").write_text(text("b"))
    assert (await source.read()).revision != first.revision


async def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"a: \xff")
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "fine.yaml").write_text(text("a"))
    rules = await DirectorySource(str(tmp_path)).read()
    assert names(rules) == ["a"]
    assert [str(problem).removeprefix(f"{tmp_path}/") for problem in rules.unreadable] == [
        "bad.yaml:1: cannot be read: not UTF-8 (byte 3)",
        "gone.yaml:1: cannot be read: No such file or directory",
    ]


async def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no such directory"):
        await DirectorySource(str(tmp_path / "none")).read()


async def test_a_directory_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    list_directory = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return list_directory(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match="sub: cannot be listed: Permission denied"):
        await DirectorySource(str(tmp_path)).read()


async def test_a_link_that_leads_back_is_followed_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text("a"))
    (tmp_path / "loop").symlink_to(tmp_path)
    assert names(await DirectorySource(str(tmp_path)).read()) == ["a"]


async def test_changes_are_told_however_they_are_made(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text("a"))
    watch = DirectorySource(str(tmp_path)).watch()
    try:
        assert await told(watch) == ["a"]
        file.write_text(text("written"))
        assert await told(watch) == ["written"]
        (tmp_path / ".new").write_text(text("renamed"))
        os.replace(tmp_path / ".new", file)
        assert await told(watch) == ["renamed"]
        (tmp_path / "b.yaml").write_text(text("b"))
        assert await told(watch) == ["renamed", "b"]
        file.unlink()
        assert await told(watch) == ["b"]
    finally:
        await watch.aclose()  # type: ignore[attr-defined]


async def test_a_config_map_is_swapped_by_its_link(tmp_path: Path) -> None:
    for version in ("one", "two"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "rules.yaml").write_text(text(version))
    (tmp_path / "..data").symlink_to("..one")
    (tmp_path / "rules.yaml").symlink_to("..data/rules.yaml")
    watch = DirectorySource(str(tmp_path)).watch()
    try:
        assert await told(watch) == ["one"]
        (tmp_path / "..tmp").symlink_to("..two")
        os.replace(tmp_path / "..tmp", tmp_path / "..data")
        assert await told(watch) == ["two"]
    finally:
        await watch.aclose()  # type: ignore[attr-defined]


async def test_a_directory_that_is_gone_for_a_while_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "rules"
    root.mkdir()
    (root / "a.yaml").write_text(text("a"))
    watch = DirectorySource(str(root)).watch()
    try:
        assert await told(watch) == ["a"]
        root.rename(tmp_path / "away")
        pending = asyncio.ensure_future(told(watch))
        await asyncio.wait([pending], timeout=0.5)
        assert not pending.done()
        root.mkdir()
        (root / "a.yaml").write_text(text("back"))
        assert await pending == ["back"]
    finally:
        await watch.aclose()  # type: ignore[attr-defined]


async def test_a_new_document_gets_a_file_and_an_old_one_keeps_its_place(tmp_path: Path) -> None:
    source = DirectorySource(str(tmp_path))
    shared = tmp_path / "shared.yaml"
    shared.write_text("# the first\n" + text("a") + "---\n" + text("b") + "---\n# the third\n" + text("c"))
    old = {parse_document(raw).identity: raw.text for raw in (await source.read()).documents}
    await source.write(
        [
            Write(identity("b"), text("b", "b.example"), old[identity("b")]),
            Write(identity("d"), text("d"), None),
        ]
    )
    assert shared.read_text() == (
        "# the first\n" + text("a") + "---\n" + text("b", "b.example") + "---\n# the third\n" + text("c")
    )
    assert (tmp_path / "sidecar.default.d.yaml").read_text() == text("d")


async def test_a_document_is_deleted_and_its_file_with_the_last(tmp_path: Path) -> None:
    source = DirectorySource(str(tmp_path))
    shared = tmp_path / "shared.yaml"
    shared.write_text(text("a") + "---\n" + text("b"))
    old = {parse_document(raw).identity: raw.text for raw in (await source.read()).documents}
    await source.write([Write(identity("a"), None, old[identity("a")])])
    assert names(await source.read()) == ["b"]
    await source.write([Write(identity("b"), None, old[identity("b")])])
    assert not shared.exists()


async def test_what_someone_else_changed_is_not_overwritten(tmp_path: Path) -> None:
    source = DirectorySource(str(tmp_path))
    (tmp_path / "a.yaml").write_text(text("a"))
    for was in (text("a", "other.example"), None):
        with pytest.raises(SourceError, match="Sidecar default/a was changed by someone else"):
            await source.write([Write(identity("a"), text("a", "mine.example"), was)])
    assert (tmp_path / "a.yaml").read_text() == text("a")


async def test_a_file_system_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says that it cannot tell whether it is a directory: that is an error of the source, not its end."""
    source = DirectorySource(str(tmp_path))

    def fail(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", fail)
    with pytest.raises(SourceError, match="Permission denied"):
        await source.read()
