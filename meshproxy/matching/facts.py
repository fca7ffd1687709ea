"""What conditions are asked about."""

from __future__ import annotations

from typing import Any

from meshproxy.codec.headers import HeaderMap
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.tls.x509 import DerError


class Facts:
    """Who asks, and for what. For a connection `headers` are empty."""

    def __init__(self, headers: HeaderMap, info: StreamInfo) -> None:
        self.headers = headers
        self.info = info

    def tls(self) -> Any:
        """Facts of the TLS session; None on plaintext. Raises DerError where the peer's certificate cannot be read:
        nobody may get past a condition by one."""
        tls: Any = self.info.connection.tls
        if tls is not None and tls.peer is None and tls.peer_certificate_presented:
            raise DerError("the peer's certificate cannot be read")
        return tls
