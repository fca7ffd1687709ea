"""The PROXY protocol header: what one says, read from a downstream connection, and how one is written to an upstream.

Its form is haproxy.org/download/2.1/doc/proxy-protocol.txt, sections 2.1 (a line of text) and 2.2 (binary, with TLVs).
"""

from __future__ import annotations

import socket
from typing import Final

from meshproxy.net.address import Address

Tlv = tuple[int, bytes]  # type, value

_V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_LOCAL: Final = 0x20  # version 2, no addresses of another connection
_V2_PROXY: Final = 0x21
_V2_TCP4: Final = 0x11
_V2_TCP6: Final = 0x21
_V2_MOST_BYTES: Final = 0xFFFF  # behind the length


class ProxyHeader:
    """The addresses of the connection that a proxy stands for, and the TLVs of its header that are to be passed on."""

    def __init__(self, remote: Address, local: Address, tlvs: list[Tlv]) -> None:
        self.remote = remote
        self.local = local
        self.tlvs = tlvs


def v1_header(header: ProxyHeader) -> bytes:
    """The line of text. A connection without IP addresses (a Unix socket) is of an unknown protocol."""
    remote, local = header.remote, header.local
    if not remote.ip or not local.ip:
        return b"PROXY UNKNOWN\r\n"
    if ":" in remote.ip or ":" in local.ip:
        line = f"PROXY TCP6 {_as_v6(remote.ip)} {_as_v6(local.ip)} {remote.port} {local.port}\r\n"
    else:
        line = f"PROXY TCP4 {remote.ip} {local.ip} {remote.port} {local.port}\r\n"
    return line.encode()


def v2_header(header: ProxyHeader, tlvs: list[Tlv]) -> bytes:
    """The binary header with these TLVs; those that there is no room for are left out."""
    remote, local = header.remote, header.local
    command, family, addresses = _V2_LOCAL, 0, b""
    if remote.ip and local.ip:
        command = _V2_PROXY
        v6 = ":" in remote.ip or ":" in local.ip
        family = _V2_TCP6 if v6 else _V2_TCP4
        addresses = _packed(remote.ip, v6) + _packed(local.ip, v6)
        addresses += remote.port.to_bytes(2, "big") + local.port.to_bytes(2, "big")
    body = bytearray(addresses)
    for kind, value in tlvs:
        if len(body) + 3 + len(value) <= _V2_MOST_BYTES:
            body += bytes((kind,)) + len(value).to_bytes(2, "big") + value
    return _V2_SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + bytes(body)


def _as_v6(ip: str) -> str:
    return ip if ":" in ip else f"::ffff:{ip}"


def _packed(ip: str, v6: bool) -> bytes:
    return socket.inet_pton(socket.AF_INET6, _as_v6(ip)) if v6 else socket.inet_pton(socket.AF_INET, ip)
