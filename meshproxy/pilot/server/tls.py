"""The certificate that the pilot shows, and the authority of those that it asks for; read again when a file changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from meshproxy.pilot.files import Followed, read_file


class PortTls(Protocol):
    """What makes a port one with TLS."""

    def credentials(self) -> grpc.ServerCredentials:
        """grpcio's. Raises ConfigError."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `ca`, every client must show a certificate that it has signed."""

    certificate: str
    key: str
    ca: str = ""

    def credentials(self) -> grpc.ServerCredentials:
        """For a port. Raises ConfigError when a file cannot be read."""
        source = CertificateSource(self)
        return grpc.dynamic_ssl_server_credentials(source.read(), source.fetch, bool(self.ca))


class CertificateSource:
    """For gRPC, which asks before each handshake."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigError."""
        names = tuple(name for name in (files.certificate, files.key, files.ca) if name)
        self._files = Followed(names, lambda: [read_file(name) for name in names])
        self._given: list[bytes] | None = None

    def read(self) -> Any:
        """What the files have now."""
        self._given = found = self._files.get()
        certificate, key, *ca = found
        return grpc.ssl_server_certificate_configuration([(key, certificate)], ca[0] if ca else None)

    def fetch(self) -> Any:
        """What the files have now, where it is something else; None where it is not, or cannot be read."""
        return None if self._files.get() is self._given else self.read()
