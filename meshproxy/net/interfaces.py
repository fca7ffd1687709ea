"""This machine's own address, as Envoy's node address: what stands for a loopback peer in x-forwarded-for."""

from __future__ import annotations

import fcntl
import socket
import struct
from functools import cache
from typing import Final

_SIOCGIFADDR: Final = 0x8915


@cache
def local_address() -> str:
    """The first IPv4 address of an interface that is not loopback; 127.0.0.1 when there is none."""
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
