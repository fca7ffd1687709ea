"""Listening sockets: made by the one process that owns them, handed to those that accept on them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
import struct
from typing import Final

from meshproxy.net.address import Address, socket_name
from meshproxy.net.connect import SocketOption

_SO_ATTACH_FILTER: Final = 26


def bind_listener(
    address: Address,
    *,
    reuse_port: bool,
    options: tuple[SocketOption, ...] = (),
    mode: int = 0,
    ipv4_compat: bool = False,
) -> socket.socket:
    """A bound socket, not yet listening. Raises OSError."""
    if address.path:
        return _bind_unix(address, mode)
    family = socket.AF_INET6 if ":" in address.ip else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if ipv4_compat else 1)
        for level, name, value in options:
            sock.setsockopt(level, name, value)
        sock.bind(socket_name(address))
    except OSError:
        sock.close()
        raise
    return sock


def _bind_unix(address: Address, mode: int) -> socket.socket:
    path = address.path
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if not path.startswith("@"):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.stat(path).st_mode):
                    os.unlink(path)  # left by a process that is gone; Envoy does the same
        sock.bind(socket_name(address))
        if mode and not path.startswith("@"):
            os.chmod(path, mode)
    except OSError:
        sock.close()
        raise
    return sock


def refuse_new_connections(sock: socket.socket) -> bool:
    """Let a listening TCP socket ignore new SYNs, so that its accept queue can be emptied before it is closed.

    Closing a listener resets what waits in its queue: requests would be lost. A classic BPF filter drops segments that
    have SYN without ACK; handshakes under way still complete. A client that comes now tries again, and finds the port
    closed. False where the kernel refuses (a Unix socket, a sandbox).
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    program = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, 13),  # A = the TCP flags
            (0x54, 0, 0, 0x12),  # A &= SYN | ACK
            (0x15, 0, 1, 0x02),  # SYN alone?
            (0x06, 0, 0, 0),  # drop
            (0x06, 0, 0, 0xFFFFFFFF),  # keep
        )
    )
    buffer = ctypes.create_string_buffer(program)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 5, ctypes.addressof(buffer)))
    except OSError:
        return False
    return len(buffer) > 0  # named after the call: compiled, a local is freed after its last use
