"""The roots of other trust domains, from files: PEM, or a SPIFFE bundle (JSON, SPIFFE Trust Domain and Bundle 4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from meshproxy.config.spiffe_validator import NO_BUNDLE, authorities_of
from meshproxy.observe.log import component_logger
from meshproxy.pilot.authority.certificates import read_certificates, to_pem
from meshproxy.pilot.authority.settings import AuthorityError

_MAX_BYTES: Final = 1 << 20


class Federation:
    """Files are read again whenever asked; what one held last stays, while it cannot be read."""

    def __init__(self, files: Sequence[tuple[str, str]]) -> None:
        self._files = tuple(files)
        self._known: dict[str, bytes] = {}
        self._log = component_logger("authority")

    def read(self, *, strict: bool = False) -> tuple[tuple[str, bytes], ...]:
        """(trust domain, PEM) each. Raises AuthorityError where `strict` and a file cannot be used."""
        for domain, path in self._files:
            try:
                self._known[domain] = read_bundle(path)
            except AuthorityError as error:
                if strict:
                    raise
                self._log.warning("the roots of %s stay as they are: %s", domain, error)
        return self.known

    @property
    def known(self) -> tuple[tuple[str, bytes], ...]:
        """As it was read last."""
        return tuple((domain, self._known[domain]) for domain, _ in self._files if domain in self._known)


def read_bundle(path: str) -> bytes:
    """As PEM. Raises AuthorityError."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise AuthorityError(f"{path}: is larger than {_MAX_BYTES} bytes")
    pem = _from_json(data, path) if data.lstrip()[:1] == b"{" else data
    return to_pem(read_certificates(pem, path))


def _from_json(data: bytes, path: str) -> bytes:
    try:
        return b"".join(authorities_of(json.loads(data)))
    except NO_BUNDLE:
        raise AuthorityError(f"{path}: is no SPIFFE bundle") from None
