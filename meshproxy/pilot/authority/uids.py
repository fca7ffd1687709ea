"""Who the users of this machine are to the mesh: a YAML file of lines `uid: namespace/service account`."""

from __future__ import annotations

from typing import Any

import yaml

from meshproxy.errors import ConfigError
from meshproxy.pilot.files import Followed, read_file
from meshproxy.tls.spiffe import Identity


class UidTable:
    """Read again when the file changes; one that is no good changes nothing. Raises ConfigError at first."""

    def __init__(self, path: str, trust_domain: str) -> None:
        self._path = path
        self._trust_domain = trust_domain
        self._identities = Followed((path,), self._read)

    def identity(self, uid: int) -> Identity | None:
        """Whom a process of this user speaks for."""
        return self._identities.get().get(uid)

    def _read(self) -> dict[int, Identity]:
        try:
            rows = yaml.safe_load(read_file(self._path))
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
