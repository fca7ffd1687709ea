"""The sockets of the process tree: bound once, kept over reloads, taken over, and given up whole."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.loader import load_bootstrap
from meshproxy.server.listening import ListeningSockets
from tests.integration.config import address, bootstrap, direct, listener, pipe


def _bootstrap(*listeners: dict[str, Any]) -> Any:
    return load_bootstrap(bootstrap(listeners), errors=ConfigErrors())


def _listener(name: str, **fields: Any) -> dict[str, Any]:
    return listener(name, [direct("/", "x")], **fields)


@pytest.fixture
def sockets() -> Iterator[ListeningSockets]:
    made = ListeningSockets(2)
    yield made
    made.close()


def _plan(sockets: ListeningSockets, *listeners: dict[str, Any]) -> list[str]:
    errors = ConfigErrors()
    sockets.plan(_bootstrap(*listeners), errors)
    return [f"{error.path}: {error.reason}" for error in errors.items]


def _take(sockets: ListeningSockets, *listeners: dict[str, Any]) -> None:
    assert _plan(sockets, *listeners) == []
    sockets.accept_plan()[0].close()


def _place(sockets: ListeningSockets, name: str) -> str:
    return next(addresses[0].text for known, addresses in sockets.addresses() if known == name)


def test_one_socket_for_each_worker_on_one_port(sockets: ListeningSockets) -> None:
    assert _plan(sockets, _listener("main")) == []
    first, second = (sockets.new_sockets(worker)["main"] for worker in (0, 1))
    assert first[0] is not second[0]
    assert first[0].getsockname() == second[0].getsockname()
    sockets.accept_plan()[0].close()
    assert sockets.all_sockets(1) == {"main": second}


@pytest.mark.parametrize("kind", ["unix", "reuse_port off"])
def test_one_shared_socket(sockets: ListeningSockets, kind: str, tmp_path: Path) -> None:
    path = pipe(str(tmp_path / "socket"))
    main = _listener("main", at=path) if kind == "unix" else _listener("main", enable_reuse_port=False)
    assert _plan(sockets, main) == []
    assert sockets.new_sockets(0)["main"][0] is sockets.new_sockets(1)["main"][0]


def test_a_listener_that_binds_nothing(sockets: ListeningSockets) -> None:
    at = address(_free_port())
    unbound = _listener("main", at=at, bind_to_port=False)
    _take(sockets, unbound)
    assert sockets.all_sockets(0) == {}
    assert _place(sockets, "main") == f"127.0.0.1:{at['socket_address']['port_value']}"
    assert _plan(sockets, unbound) == []
    assert sockets.new_sockets(0) == {}
    _take(sockets, _listener("main", at=at))
    assert len(sockets.all_sockets(0)["main"]) == 1
    assert _plan(sockets, unbound) == []
    assert sockets.new_sockets(0) == {"main": []}


def test_an_unchanged_address_keeps_its_sockets(sockets: ListeningSockets) -> None:
    _take(sockets, _listener("main"))
    place = _place(sockets, "main")
    assert _plan(sockets, _listener("main", filters=[]), _listener("other")) == []
    assert set(sockets.new_sockets(0)) == {"other"}
    sockets.accept_plan()[0].close()
    assert _place(sockets, "main") == place


def test_another_name_takes_the_sockets_over(sockets: ListeningSockets) -> None:
    fixed = address(_free_port())
    _take(sockets, _listener("main", at=fixed))
    before = sockets.all_sockets(0)["main"]
    assert _plan(sockets, _listener("renamed", at=fixed)) == []
    assert sockets.new_sockets(0) == {"renamed": before}
    sockets.accept_plan()[0].close()
    assert before[0].fileno() >= 0
    assert set(sockets.all_sockets(0)) == {"renamed"}


def test_an_abandoned_plan_leaves_everything_as_it_was(sockets: ListeningSockets, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    _take(sockets, _listener("main"), _listener("unix", at=pipe(str(path))))
    before = sockets.addresses()
    assert _plan(sockets, _listener("main", at=address()), _listener("new", at=pipe(str(tmp_path / "new")))) == []
    sockets.abandon()
    assert sockets.addresses() == before
    assert path.is_socket()
    assert not (tmp_path / "new").exists()


def test_errors_have_paths_and_leave_nothing_bound(sockets: ListeningSockets, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = address(taken.getsockname()[1])
        text = f"127.0.0.1:{taken.getsockname()[1]}"
        errors = _plan(sockets, _listener("new", at=pipe(str(tmp_path / "new"))), _listener("main", at=place))
        assert errors == [f"static_resources.listeners[1].address: cannot bind {text}: Address already in use"]
        assert not (tmp_path / "new").exists()
    assert _plan(sockets, _listener("one"), _listener("two")) == []  # port 0 twice is two ports


def test_a_removed_listener_s_sockets_close(sockets: ListeningSockets, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    _take(sockets, _listener("main"), _listener("unix", at=pipe(str(path))))
    old = sockets.all_sockets(0)["main"][0]
    _take(sockets)
    assert old.fileno() == -1
    assert not path.exists()


def test_the_mode_of_a_unix_socket_changes_in_place(sockets: ListeningSockets, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    for mode in (0o600, 0o666):
        _take(sockets, _listener("unix", at={"pipe": {"path": str(path), "mode": mode}}))
        assert path.stat().st_mode & 0o777 == mode


def test_stopped_is_for_good(sockets: ListeningSockets) -> None:
    inside = _listener("in", traffic_direction="INBOUND")
    _take(sockets, inside, _listener("out"))
    place = _place(sockets, "out")
    sockets.stop(inbound_only=True)
    assert set(sockets.all_sockets(0)) == {"out"}
    assert _plan(sockets, inside, _listener("out")) == []
    assert sockets.new_sockets(0) == {}
    sockets.accept_plan()[0].close()
    assert set(sockets.all_sockets(0)) == {"out"}
    assert _place(sockets, "out") == place


def test_the_file_of_another_process_is_not_removed(sockets: ListeningSockets, tmp_path: Path) -> None:
    """A new process has taken the path over before the old one ended."""
    path = tmp_path / "socket"
    _take(sockets, _listener("unix", at=pipe(str(path))))
    other = ListeningSockets(1)
    _take(other, _listener("unix", at=pipe(str(path))))
    sockets.close()
    assert path.is_socket()
    other.close()
    assert not path.exists()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
