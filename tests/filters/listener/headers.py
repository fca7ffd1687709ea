"""Headers of the PROXY protocol (haproxy.org/download/2.1/doc/proxy-protocol.txt)."""

import ipaddress
from collections.abc import Sequence

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
LOCAL = 0
PROXY = 1
STREAM = 1


def v1(source: str = "1.2.3.4:1000", destination: str = "5.6.7.8:2000") -> bytes:
    """The line of version 1 (§2.1) for two addresses with ports."""
    source_ip, _, source_port = source.rpartition(":")
    destination_ip, _, destination_port = destination.rpartition(":")
    family = "TCP6" if ":" in source_ip else "TCP4"
    return f"PROXY {family} {source_ip} {destination_ip} {source_port} {destination_port}\r\n".encode()


def v2(
    source: str = "1.2.3.4:1000",
    destination: str = "5.6.7.8:2000",
    tlvs: Sequence[tuple[int, bytes]] = (),
    *,
    version: int = 2,
    command: int = PROXY,
    family: int | None = None,
    transport: int = STREAM,
    length: int | None = None,
    raw_tlvs: bytes = b"",
) -> bytes:
    """The binary header of version 2 (§2.2) with TLVs (type, value)."""
    source_ip, _, source_port = source.rpartition(":")
    destination_ip, _, destination_port = destination.rpartition(":")
    body = ipaddress.ip_address(source_ip).packed + ipaddress.ip_address(destination_ip).packed
    body += int(source_port).to_bytes(2, "big") + int(destination_port).to_bytes(2, "big")
    body += b"".join(bytes([kind]) + len(value).to_bytes(2, "big") + value for kind, value in tlvs) + raw_tlvs
    if family is None:
        family = 2 if ":" in source_ip else 1
    head = bytes([version << 4 | command, family << 4 | transport])
    return SIGNATURE + head + (len(body) if length is None else length).to_bytes(2, "big") + body
