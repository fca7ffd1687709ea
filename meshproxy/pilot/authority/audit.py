"""A line of JSON for everything that the authority does or refuses: who, how proved, what, why.

Never a key, a CSR or a token. What callers sent is escaped as JSON asks, and cut: a line stays a line.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from datetime import UTC, datetime
from typing import Final

from meshproxy.pilot.authority.settings import AuthorityError

_LONGEST: Final = 2048  # characters of one value: a SPIFFE ID


class Audit:
    """To a file (appended to, made with mode 0600, found again after it was rotated away), or to stderr. It may be used
    by any thread."""

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = -1
        self._inode = 0

    def issued(
        self, identity: str, proof: str, address: str, *, serial: int, issuer: str, not_after: float, lifetime_s: float
    ) -> None:
        """A certificate. Raises AuthorityError when the line cannot be written: then there is no certificate."""
        self._write(
            "issued",
            identity=identity,
            proof=proof,
            address=address,
            serial=f"{serial:x}",
            issuer=issuer,
            not_after=_time(not_after),
            lifetime_s=round(lifetime_s, 3),
        )

    def refused(self, reason: str, identity: str = "", proof: str = "", address: str = "", code: str = "") -> None:
        """None, and why; `code` is the metrics' word for it."""
        self._write("refused", identity=identity, proof=proof, address=address, code=code, reason=reason)

    def changed(self, what: str, **details: str | float) -> None:
        """Something of the authority itself: a root made, trusted, retired; a certificate revoked."""
        self._write(what, **details)

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def _write(self, event: str, **details: str | float) -> None:
        line: dict[str, str | float] = {"time": _time(datetime.now(UTC).timestamp()), "event": event}
        line |= {key: value[:_LONGEST] if isinstance(value, str) else value for key, value in details.items()}
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                if os.write(self._open(), data) != len(data):
                    raise AuthorityError(f"{self._path or 'stderr'}: an audit line could not be written as a whole")
        except OSError as error:
            raise AuthorityError(f"{self._path or 'stderr'}: {error.strerror}: no audit line, no certificate") from None

    def _open(self) -> int:
        if not self._path:
            return sys.stderr.fileno()
        try:
            inode = os.stat(self._path).st_ino
        except FileNotFoundError:
            inode = 0
        if self._file < 0 or inode != self._inode:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._inode = os.fstat(self._file).st_ino
        return self._file


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")
