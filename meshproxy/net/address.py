"""Socket addresses: Python's tuples and paths, put into words once."""

from __future__ import annotations

import socket
from typing import Any


class Address:
    """A socket address. `ip` and `port` are "" and 0 for a Unix socket, whose `path` (and text) is its file."""

    def __init__(self, ip: str, port: int, path: str = "") -> None:
        self.ip = ip
        self.port = port
        self.path = path
        self.text: str = path or (f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}")

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def socket_name(address: Address) -> Any:
    """What `bind` and `connect` take. A path that begins with "@" is an abstract name, as in Envoy's configuration."""
    if address.path:
        return "\0" + address.path[1:] if address.path.startswith("@") else address.path
    return (address.ip, address.port)


def is_ip(text: str) -> bool:
    """Whether `text` is an IP address (else the C library would look it up as a name)."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text)
        except (OSError, ValueError):
            continue
        return True
    return False


def ip_and_port(text: str) -> Address | None:
    """Of `1.2.3.4:80` or `[::1]:80`; None for what is no IP address with a port."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    fits = is_ip(host) and port.isascii() and port.isdigit() and int(port) < 65536
    return Address(host, int(port)) if fits else None


def address_of(name: Any) -> Address:
    """The `Address` of what `getsockname` or `getpeername` answers; "@" is a Unix socket without a name."""
    if isinstance(name, tuple):
        host = str(name[0])
        if host.startswith("::ffff:") and "." in host:
            host = host[7:]
        return Address(host, int(name[1]))
    path = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name or "")
    return Address("", 0, path.replace("\0", "@", 1) or "@")
