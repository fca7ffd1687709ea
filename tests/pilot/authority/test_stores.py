"""Both stores: one state, replaced as a whole by whoever saw the last one; and what is out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from meshproxy.pilot.authority.directory_store import DirectoryStore
from meshproxy.pilot.authority.etcd_store import EtcdStore
from meshproxy.pilot.authority.settings import AuthorityError
from meshproxy.pilot.authority.store import MAX_STATE_BYTES, ConflictError, Record, Store, Stored
from meshproxy.pilot.sources.etcd_client import EtcdSettings
from tests.pilot.authority.support import DEADLINE_S, START
from tests.pilot.sources.etcd import Etcd

HOUR = 3600.0


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture(params=["directory", "etcd"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Store, Store]]:
    """Two of them, of two processes, on the same state."""
    if request.param == "directory":
        yield DirectoryStore(str(tmp_path / "ca")), DirectoryStore(str(tmp_path / "ca"))
        return
    running: Etcd = request.getfixturevalue("etcd")
    settings = EtcdSettings((running.endpoint,), f"/{tmp_path.name}/")
    made = EtcdStore(settings), EtcdStore(settings)
    yield made
    for each in made:
        await each.close()


def record(serial: int, not_after: float = START + HOUR, identity: str = "spiffe://a/ns/b/sa/c") -> Record:
    return Record(serial, "issuer", identity, not_after)


async def test_nothing_is_there_at_first(stores: tuple[Store, Store]) -> None:
    assert await stores[0].read() == Stored(b"", "")
    assert await stores[0].records(START) == []
    await stores[0].forget(START)


async def test_what_one_stores_the_other_reads(stores: tuple[Store, Store]) -> None:
    one, other = stores
    stored = await one.replace(b"first", await one.read())
    assert stored.text == b"first"
    assert await one.read() == await other.read() == stored


async def test_who_missed_a_change_changes_nothing(stores: tuple[Store, Store]) -> None:
    one, other = stores
    empty = await other.read()
    first = await one.replace(b"first", empty)
    with pytest.raises(ConflictError):
        await other.replace(b"second", empty)
    second = await other.replace(b"second", first)
    with pytest.raises(ConflictError):
        await one.replace(b"third", first)
    assert await one.read() == second


async def test_of_many_who_begin_at_once_one_is_first(stores: tuple[Store, Store]) -> None:
    empty = await stores[0].read()
    tries = [stores[number % 2].replace(b"%d" % number, empty) for number in range(10)]
    done = await asyncio.gather(*tries, return_exceptions=True)
    first = [each for each in done if isinstance(each, Stored)]
    assert len(first) == 1
    assert all(isinstance(each, ConflictError) for each in done if each is not first[0])
    assert await stores[1].read() == first[0]


async def test_what_is_out_is_remembered_until_it_ends(stores: tuple[Store, Store]) -> None:
    one, other = stores
    stored = await one.replace(b"first", await one.read())
    out = [record(1), record(1 << 127, START + 5 * HOUR), record(3, START + 10)]
    for each in out:
        await one.record(each, stored)
    assert sorted(await other.records(START), key=lambda each: each.serial) == sorted(out, key=lambda each: each.serial)
    assert [each.serial for each in await other.records(START + 2 * HOUR)] == [1 << 127]
    await other.forget(START + 3 * HOUR)
    assert [each.serial for each in await one.records(START)] == [1 << 127]


async def test_nobody_signs_under_a_state_that_is_gone(stores: tuple[Store, Store]) -> None:
    one, other = stores
    first = await one.replace(b"first", await one.read())
    await other.replace(b"second", first)
    with pytest.raises(ConflictError):
        await one.record(record(1), first)
    assert await one.records(START) == []


async def test_more_than_a_page_is_read_whole(stores: tuple[Store, Store]) -> None:
    stored = await stores[0].replace(b"first", await stores[0].read())
    await asyncio.gather(*[stores[0].record(record(serial), stored) for serial in range(1, 602)])
    assert {each.serial for each in await stores[1].records(START)} == set(range(1, 602))


async def test_a_watch_tells_each_change_also_the_first(stores: tuple[Store, Store]) -> None:
    one, other = stores
    empty = await one.read()
    async with aclosing(other.watch(empty)) as watch:  # type: ignore[type-var]
        known = empty
        for text in (b"first", b"second"):
            known = await one.replace(text, known)
            assert await asyncio.wait_for(anext(watch), DEADLINE_S) == known


async def test_a_watch_tells_what_it_missed(stores: tuple[Store, Store]) -> None:
    one, other = stores
    first = await one.replace(b"first", await one.read())
    second = await one.replace(b"second", first)
    async with aclosing(other.watch(first)) as watch:  # type: ignore[type-var]
        assert await asyncio.wait_for(anext(watch), DEADLINE_S) == second


async def test_a_state_is_bounded(stores: tuple[Store, Store]) -> None:
    with pytest.raises(AuthorityError, match="larger than"):
        await stores[0].replace(b"x" * (MAX_STATE_BYTES + 1), Stored(b"", ""))


# -- the directory


async def test_a_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "ca"))
    stored = await store.replace(b"first", await store.read())
    await store.record(record(1), stored)
    for path in (tmp_path / "ca").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("name", "mode"), [(".", 0o750), (".", 0o705), ("issued", 0o701), ("state.json", 0o640)])
async def test_what_others_can_read_is_refused_by_name(tmp_path: Path, name: str, mode: int) -> None:
    store = DirectoryStore(str(tmp_path / "ca"))
    await store.replace(b"first", await store.read())
    path = tmp_path / "ca" / name
    path.chmod(mode)
    with pytest.raises(AuthorityError, match=f"{path}: others can read it: chmod [67]00 {path}"):
        await store.read()


async def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "no" / "ca"))
    with pytest.raises(AuthorityError, match="No such file or directory"):
        await store.replace(b"first", await store.read())


async def test_looking_makes_no_directory(tmp_path: Path) -> None:
    assert await DirectoryStore(str(tmp_path / "ca")).read() == Stored(b"", "")
    assert not (tmp_path / "ca").exists()


async def test_a_write_that_was_cut_off_leaves_the_old_state(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "ca"))
    first = await store.replace(b"first", await store.read())
    (tmp_path / "ca" / ".state.json.new").write_bytes(b"sec")  # a process that was killed half way
    assert await store.read() == first
    assert (await store.replace(b"second", first)).text == b"second"
    assert not (tmp_path / "ca" / ".state.json.new").exists()


async def test_a_line_that_was_cut_off_harms_no_other(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "ca"))
    stored = await store.replace(b"first", await store.read())
    await store.record(record(1), stored)
    (file,) = (tmp_path / "ca" / "issued").iterdir()
    file.write_bytes(b'{"serial":"2","iss\n' + file.read_bytes())
    assert await store.records(START) == [record(1)]


async def test_a_watch_outlives_a_directory_that_is_gone_for_a_while(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path / "ca"))
    known = await store.replace(b"first", await store.read())
    async with aclosing(store.watch(known)) as watch:  # type: ignore[type-var]
        (tmp_path / "ca").chmod(0o755)
        (tmp_path / "ca" / "state.json").write_bytes(b"others")
        told = asyncio.ensure_future(anext(watch))
        (tmp_path / "ca").chmod(0o700)
        assert (await asyncio.wait_for(told, DEADLINE_S)).text == b"others"


# -- etcd


async def test_an_etcd_that_is_gone_is_told_by_its_address(tmp_path: Path) -> None:
    store = EtcdStore(EtcdSettings(("127.0.0.1:1",), "/x"))
    try:
        with pytest.raises(AuthorityError, match=r"etcd 127\.0\.0\.1:1: UNAVAILABLE"):
            await store.read()
    finally:
        await store.close()


async def replaced(store: Store, text: bytes, was: Stored) -> Stored:
    """As soon as etcd has a leader."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await store.replace(text, was)
            except ConflictError:
                found = await store.read()
                assert found.text == text  # the answer to an earlier try was lost
                return found
            except AuthorityError:
                await asyncio.sleep(0.05)


async def test_a_watch_outlives_a_restart_of_etcd(tmp_path: Path) -> None:
    with Etcd(tmp_path) as running:
        store = EtcdStore(EtcdSettings((running.endpoint,), "/x"))
        try:
            first = await store.replace(b"first", await store.read())
            async with aclosing(store.watch(first)) as watch:  # type: ignore[type-var]
                told = asyncio.ensure_future(anext(watch))
                second = await store.replace(b"second", first)
                assert await asyncio.wait_for(told, DEADLINE_S) == second
                told = asyncio.ensure_future(anext(watch))
                await asyncio.to_thread(running.stop)
                await asyncio.to_thread(running.start)
                third = await replaced(store, b"third", second)
                assert await asyncio.wait_for(told, DEADLINE_S) == third
        finally:
            await store.close()
