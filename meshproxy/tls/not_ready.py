"""In the place of TLS where a secret is missing: a connection that fails at once. Never plain bytes."""

from __future__ import annotations

from typing import Final

from meshproxy.net.transport_socket import TransportSocket

_REASON: Final = "TLS error: Secret is not supplied by SDS"


class NotReadySocket(TransportSocket):
    """Fails as soon as it is connected, before anything went either way."""

    def start(self) -> None:
        self.failure = _REASON

    def receive(self, data: bytes) -> list[bytes]:
        return []

    def receive_eof(self) -> None:
        """It has failed already."""

    def send(self, data: bytes) -> None:
        """There is nobody to send it to."""

    def take_output(self) -> bytes:
        return b""
