"""Listening sockets, and how one is emptied before it is closed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from meshproxy.net.address import Address, address_of, is_ip
from meshproxy.net.sockets import bind_listener, refuse_new_connections


def test_port_0_and_reuse() -> None:
    with bind_listener(Address("127.0.0.1", 0), reuse_port=True) as first:
        place = address_of(first.getsockname())
        with bind_listener(place, reuse_port=True) as second:
            assert second.getsockname() == first.getsockname()
        first.listen()
        with pytest.raises(OSError, match="Address already in use"):
            bind_listener(place, reuse_port=False)


def test_ipv6_is_not_ipv4_unless_it_is_said() -> None:
    with bind_listener(Address("::1", 0), reuse_port=False) as sock:
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        assert address_of(sock.getsockname()).text == f"[::1]:{sock.getsockname()[1]}"
    with bind_listener(Address("::", 0), reuse_port=False, ipv4_compat=True) as sock:
        sock.listen()
        with socket.create_connection(("127.0.0.1", sock.getsockname()[1])):
            sock.setblocking(True)
            connection, peer = sock.accept()
            connection.close()
            assert address_of(peer).ip == "127.0.0.1"


def test_options_and_a_refused_one() -> None:
    options = ((socket.IPPROTO_TCP, socket.TCP_MAXSEG, 700),)
    with bind_listener(Address("127.0.0.1", 0), reuse_port=False, options=options) as sock:
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 700
    with pytest.raises(OSError, match="Protocol not available"):
        bind_listener(Address("127.0.0.1", 0), reuse_port=False, options=((socket.SOL_SOCKET, 99999, 1),))


def test_unix_mode_and_what_a_dead_process_left(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    bind_listener(Address("", 0, str(path)), reuse_port=False).close()
    assert path.is_socket()
    with bind_listener(Address("", 0, str(path)), reuse_port=False, mode=0o640):
        assert path.stat().st_mode & 0o777 == 0o640
    ordinary = tmp_path / "file"
    ordinary.write_text("precious")
    with pytest.raises(OSError, match="Address already in use"):
        bind_listener(Address("", 0, str(ordinary)), reuse_port=False)
    assert ordinary.read_text() == "precious"


def test_an_abstract_unix_socket_leaves_no_file(tmp_path: Path) -> None:
    with bind_listener(Address("", 0, f"@{tmp_path}/x"), reuse_port=False, mode=0o600) as sock:
        assert sock.getsockname() == f"\0{tmp_path}/x".encode()
        assert list(tmp_path.iterdir()) == []


def test_refused_connections_find_nobody_and_those_that_wait_are_kept() -> None:
    with bind_listener(Address("127.0.0.1", 0), reuse_port=False) as sock:
        sock.listen()
        place = sock.getsockname()
        with socket.create_connection(place) as waiting, socket.socket() as late:
            assert refuse_new_connections(sock)
            late.settimeout(0.2)
            with pytest.raises(TimeoutError):
                late.connect(place)
            waiting.sendall(b"request")  # established: the filter lets its segments pass
            sock.setblocking(True)
            connection, _ = sock.accept()
            with connection:
                connection.settimeout(5)
                assert connection.recv(7) == b"request"
                connection.sendall(b"answer")
                waiting.settimeout(5)
                assert waiting.recv(6) == b"answer"


def test_a_unix_socket_has_no_such_filter(tmp_path: Path) -> None:
    with bind_listener(Address("", 0, str(tmp_path / "x")), reuse_port=False) as sock:
        assert not refuse_new_connections(sock)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (("10.0.0.1", 80), "10.0.0.1:80"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("::ffff:10.0.0.1", 80, 0, 0), "10.0.0.1:80"),
        ("/run/x.sock", "/run/x.sock"),
        (b"\0abstract", "@abstract"),
        ("", "@"),
        (None, "@"),
    ],
)
def test_addresses_in_words(name: object, text: str) -> None:
    assert address_of(name).text == text


def test_what_is_an_ip() -> None:
    for text in ("127.0.0.1", "::1", "fe80::1", "0.0.0.0"):
        assert is_ip(text)
    for text in ("localhost", "", "127.0.0.1:80", "1.2.3", "127.1", "::1]", "a\0b"):
        assert not is_ip(text)


