"""original_dst: with iptables in a network namespace of the test's own, and with sockets that nobody redirected."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from meshproxy.filters.listener.original_dst import original_destination
from meshproxy.filters.listener_filter import CONTINUE, AcceptedSocket, ListenerFilterRun
from meshproxy.net.address import Address, address_of
from tests.filters.listener.harness import Filters, socket_of

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ("unshare", "ip", "iptables", "ip6tables")


def may_redirect() -> bool:
    """Whether this user may have network namespaces, and iptables is there."""
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in TOOLS):
        return False
    probe = ["unshare", "-n", "iptables", "-t", "nat", "-L", "-n"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def test_redirected_connections() -> None:
    if not may_redirect():
        pytest.skip("needs root, unshare and iptables")
    command = ["unshare", "-n", sys.executable, "-m", "tests.filters.listener.redirected"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen["redirected"][1:] == ["192.0.2.55:8080", True]
    assert seen["redirected"][0] != "192.0.2.55:8080"
    assert seen["another"][1:] == ["192.0.2.77:8080", True]
    assert seen["redirected_v6"][1:] == ["[2001:db8::55]:8080", True]
    assert seen["redirected_to_v6"][1:] == ["192.0.2.55:8081", True]
    for name in ("not_redirected", "not_redirected_v6"):
        socket_address, local, restored = seen[name]
        assert (local, restored) == (socket_address, False)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_a_connection_that_is_not_tracked_is_left_alone(family: socket.AddressFamily) -> None:
    left, right = socket.socketpair() if family == socket.AF_UNIX else _connected(family)
    with left, right:
        local = address_of(right.getsockname())
        accepted = AcceptedSocket(right, address_of(right.getpeername()), local)
        assert ListenerFilterRun(Filters(("original_dst", "")).filters, accepted).start() == CONTINUE
        assert (accepted.local, accepted.local_restored) == (local, False)


def test_a_socket_that_is_gone_fails_nothing() -> None:
    sock = socket.socket()
    sock.close()
    assert original_destination(sock, Address("127.0.0.1", 1)) is None


def test_without_a_socket() -> None:
    accepted = socket_of()
    assert ListenerFilterRun(Filters(("original_dst", "")).filters, accepted).start() == CONTINUE
    assert not accepted.local_restored


def _connected(family: socket.AddressFamily) -> tuple[socket.socket, socket.socket]:
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.create_server((host, 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        return client, server.accept()[0]
