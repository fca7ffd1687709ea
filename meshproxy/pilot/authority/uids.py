"""Who the users of this machine are to the mesh: a YAML file of lines `uid: namespace/service account`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import yaml

from meshproxy.config.datasource import file_stamp
from meshproxy.errors import ConfigError
from meshproxy.tls.spiffe import Identity

_MAX_BYTES: Final = 1024 * 1024
_log: Final = logging.getLogger("meshproxy.pilot")


class UidTable:
    """Read again when the file changes; one that is no good changes nothing. Raises ConfigError at first."""

    def __init__(self, path: str, trust_domain: str) -> None:
        self._path = path
        self._trust_domain = trust_domain
        self._stamp = file_stamp(path)
        self._identities = self._read()

    def identity(self, uid: int) -> Identity | None:
        """Whom a process of this user speaks for."""
        stamp = file_stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._identities = self._read()
            except ConfigError as error:
                _log.warning("%s; the table before stays in force", error)
        return self._identities.get(uid)

    def _read(self) -> dict[int, Identity]:
        try:
            with Path(self._path).open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            if len(data) > _MAX_BYTES:
                raise ConfigError(self._path, f"more than {_MAX_BYTES} bytes")
            rows = yaml.safe_load(data)
        except OSError as error:
            raise ConfigError(self._path, error.strerror or str(error)) from None
        except (yaml.YAMLError, ValueError):
            raise ConfigError(self._path, "this is no YAML") from None
        if not isinstance(rows, dict):
            raise ConfigError(self._path, "a mapping is expected: `1000: namespace/service account`")
        return {self._uid(uid): self._identity(uid, name) for uid, name in rows.items()}

    def _uid(self, uid: Any) -> int:
        if isinstance(uid, bool) or not isinstance(uid, int) or not 0 <= uid < 2**32 - 1:
            raise ConfigError(self._path, f"{uid!r} is no uid")
        return uid

    def _identity(self, uid: Any, name: Any) -> Identity:
        namespace, _, account = str(name).partition("/")
        identity = Identity(self._trust_domain, namespace, account)
        if not isinstance(name, str) or not identity.is_valid:
            raise ConfigError(f"{self._path}: {uid}", f"{name!r} is not `namespace/service account`")
        return identity
