"""What a PROXY protocol header says: read from a downstream connection, written to an upstream one."""

from __future__ import annotations

from meshproxy.net.address import Address


class ProxyHeader:
    """The addresses of the connection that a proxy stands for, and the TLVs of its header that are to be passed on."""

    def __init__(self, remote: Address, local: Address, tlvs: list[tuple[int, bytes]]) -> None:
        self.remote = remote
        self.local = local
        self.tlvs = tlvs
