"""The certificate that the pilot shows, and the authority of those that it asks for; read again when a file changes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import grpc

from meshproxy.config.datasource import FileStamp, file_stamp
from meshproxy.errors import ConfigError

_log: Final = logging.getLogger("meshproxy.pilot")


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
        self._files = files
        self._stamps = self._look()

    def _look(self) -> tuple[FileStamp | None, ...]:
        return tuple(file_stamp(name) for name in (self._files.certificate, self._files.key, self._files.ca) if name)

    def read(self) -> Any:
        """What the files have now. Raises ConfigError."""
        certificate, key = _read(self._files.certificate), _read(self._files.key)
        ca = _read(self._files.ca) if self._files.ca else None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], ca)

    def fetch(self) -> Any:
        """What the files have now, where it is something else; None where it is not, or cannot be read."""
        stamps = self._look()
        if stamps == self._stamps:
            return None
        try:
            found = self.read()
        except ConfigError as error:
            _log.warning("the certificate in use stays: %s", error)
            return None
        self._stamps = stamps
        return found


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise ConfigError(name, error.strerror or str(error)) from None
