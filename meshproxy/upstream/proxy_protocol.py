"""The transport socket that tells an upstream for whom a connection is: a PROXY protocol header, then plain bytes or
TLS."""

from __future__ import annotations

from meshproxy.net.proxy_protocol import ProxyHeader, Tlv, v1_header, v2_header
from meshproxy.net.transport_socket import TransportSocket, TransportSocketFactory


class ProxyProtocolFactory(TransportSocketFactory):
    """`ProxyProtocolUpstreamTransport`: which header, with which TLVs, and what comes behind it (None: plain bytes)."""

    def __init__(self, inner: TransportSocketFactory | None, version: int) -> None:
        super().__init__()
        self.inner = inner
        self.version = version
        self.added: list[Tlv] = []
        self.passes_all: bool = False
        self.passed: frozenset[int] = frozenset()  # types of the downstream's TLVs that are passed on
        self.keyed_by_tlvs: bool = False

    def header(self, header: ProxyHeader) -> bytes:
        """The bytes that open a connection. Of a type that is added, the downstream's TLV is not passed on."""
        if self.version == 1:
            return v1_header(header)
        tlvs = list(self.added)
        added = {kind for kind, _ in tlvs}
        for kind, value in header.tlvs:
            if (self.passes_all or kind in self.passed) and kind not in added:
                tlvs.append((kind, value))
        return v2_header(header, tlvs)


class ProxyProtocolSocket(TransportSocket):
    """One connection's. The header is its first output; after it everything is `inner`'s, where there is one."""

    def __init__(self, header: bytes, inner: TransportSocket | None) -> None:
        super().__init__()
        self._out: list[bytes] = [header]
        self._inner = inner

    def start(self) -> None:
        inner = self._inner
        if inner is None:
            self.established = True
        else:
            inner.start()
            self._follow(inner)

    def receive(self, data: bytes) -> list[bytes]:
        inner = self._inner
        if inner is None:
            return [data]
        pieces = inner.receive(data)
        self._follow(inner)
        return pieces

    def receive_eof(self) -> None:
        if self._inner is not None:
            self._inner.receive_eof()
            self._follow(self._inner)

    def send(self, data: bytes) -> None:
        if self._inner is None:
            self._out.append(data)
        else:
            self._inner.send(data)
            self._follow(self._inner)

    def shut(self) -> None:
        if self._inner is not None:
            self._inner.shut()

    def take_output(self) -> bytes:
        out, self._out = self._out, []
        if self._inner is not None:
            out.append(self._inner.take_output())
        return out[0] if len(out) == 1 else b"".join(out)

    def _follow(self, inner: TransportSocket) -> None:
        self.established = inner.established
        self.failure = inner.failure
        self.at_end = inner.at_end
        self.facts = inner.facts
