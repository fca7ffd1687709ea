"""This machine's own addresses."""

from __future__ import annotations

import fcntl
import socket
import struct
from functools import cache
from typing import Final

_SIOCGIFADDR: Final = 0x8915
_IPV6_ADDRESSES: Final = "/proc/net/if_inet6"
_IPV6_LOOPBACK: Final = "0" * 31 + "1"


@cache
def local_address() -> str:
    """The first IPv4 address of an interface that is not loopback; 127.0.0.1 when there is none.

    It is Envoy's node address: what stands for a loopback peer in x-forwarded-for.
    """
    return _first_ipv4()


def routable_families() -> tuple[int, ...]:
    """Which of AF_INET and AF_INET6 an interface that is not loopback has an address of, at present."""
    families: list[int] = []
    if _first_ipv4() != "127.0.0.1":
        families.append(int(socket.AF_INET))
    try:
        with open(_IPV6_ADDRESSES, encoding="ascii") as addresses:
            if any(line.split(" ", 1)[0] != _IPV6_LOOPBACK for line in addresses):
                families.append(int(socket.AF_INET6))
    except OSError:  # a kernel without IPv6
        return tuple(families)
    return tuple(families)


def _first_ipv4() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:  # an interface without an IPv4 address
                continue
            address = socket.inet_ntoa(answer[20:24])
            if not address.startswith("127."):
                return address
    return "127.0.0.1"
