"""The keys that tokens are verified with: a JSON Web Key Set (RFC 7517) in a file, or at an https URL."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import random
import ssl
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from meshproxy.errors import ConfigError, MeshProxyError
from meshproxy.pilot.files import Followed, read_file

MAX_BYTES: Final = 1024 * 1024
MAX_KEYS: Final = 100
_MIN_RSA_BITS: Final = 2048
# By key type or curve (RFC 7518): asymmetric ones only, so that nobody who verifies could sign.
_ALGORITHMS: Final = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
}
_PUBLIC: Final = frozenset({"kty", "n", "e", "crv", "x", "y"})  # what a public key says of itself
FRESH_S: Final = 300.0  # a set is fetched again at this age,
SOONEST_S: Final = 10.0  # or where a token names a key that is not in it, but not before this,
STALE_S: Final = 24 * 3600.0  # and is believed no longer at this one
_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 300.0
_TIMEOUT_S: Final = 10.0
_log: Final = logging.getLogger("meshproxy.pilot")

Clock = Callable[[], float]


class KeySetError(MeshProxyError):
    """A set of keys that is no good, or cannot be had; the reason."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of `cryptography`'s, and the algorithms that it may be used with."""

    id: str
    public: Any
    algorithms: tuple[str, ...]


class KeySource(Protocol):
    """Where keys come from."""

    async def candidates(self, key_id: str) -> list[Key]:
        """The keys of this name; all where a token names none (""). Raises KeySetError when there are none at all."""


def read_keys(data: bytes) -> list[Key]:
    """The keys of a set that verify signatures; others are left out. Raises KeySetError where none is left."""
    if len(data) > MAX_BYTES:
        raise KeySetError(f"the key set has more than {MAX_BYTES} bytes")
    try:
        rows = json.loads(data)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise KeySetError("this is no JSON Web Key Set") from None
    if not isinstance(rows, list) or len(rows) > MAX_KEYS:
        raise KeySetError(f"`keys` is no list of {MAX_KEYS} keys at most")
    found = [key for key in map(_read_key, rows) if key is not None]
    if not found:
        raise KeySetError("no key in it verifies signatures (RSA of 2048 bits or more, P-256, P-384)")
    return found


def _read_key(row: Any) -> Key | None:
    from jwt import PyJWK
    from jwt.exceptions import PyJWTError

    if not isinstance(row, dict) or row.get("use", "sig") != "sig" or "verify" not in row.get("key_ops", ["verify"]):
        return None
    allowed = _ALGORITHMS.get(str(row.get("crv") if row.get("kty") == "EC" else row.get("kty")), ())
    if row.get("alg"):
        allowed = tuple(name for name in allowed if name == row["alg"])
    key_id = row.get("kid", "")
    if not allowed or not isinstance(key_id, str):
        return None
    try:
        # Only the public numbers: a private key in a set is nobody's business here.
        public = PyJWK({name: value for name, value in row.items() if name in _PUBLIC}, algorithm=allowed[0]).key
    except (PyJWTError, ValueError, TypeError):
        return None
    if row["kty"] == "RSA" and public.key_size < _MIN_RSA_BITS:
        return None
    return Key(key_id, public, allowed)


def _named(keys: list[Key], key_id: str) -> list[Key]:
    return [key for key in keys if not key_id or key.id == key_id]


class FileKeys:
    """A file, which is read again when it changes. Raises ConfigError when it cannot be read at first."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._keys = Followed((path,), self._read)

    def _read(self) -> list[Key]:
        try:
            return read_keys(read_file(self._path))
        except KeySetError as error:
            raise ConfigError(self._path, str(error)) from None

    async def candidates(self, key_id: str) -> list[Key]:
        return _named(self._keys.get(), key_id)


class FetchedKeys:
    """An https URL. One request at a time, in a thread; who needs no newer keys does not wait for it. `token_file` has
    the bearer token that each request brings, as Kubernetes' API server asks for: it is read anew, and may change."""

    def __init__(self, url: str, ca_file: str = "", clock: Clock = time.monotonic, *, token_file: str = "") -> None:
        if not url.startswith("https://"):
            raise ConfigError(url, "keys are fetched by https:// only")
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(ca_file, _reason(error)) from None
        self._url = url
        self._token_file = token_file
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirects())
        self._clock = clock
        self._keys: list[Key] = []
        self._fetched_at = float("-inf")
        self._next_at = float("-inf")  # no request before
        self._failures = 0
        self._reason = "not fetched yet"
        self._fetching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Fetch them now, so that nobody has to wait, and an error is told."""
        self._fetch_soon()

    async def candidates(self, key_id: str) -> list[Key]:
        found = _named(self._known(), key_id)
        if found and self._age_s < FRESH_S:
            return found
        self._fetch_soon()
        if not found and self._fetching is not None:
            await asyncio.shield(self._fetching)
            found = _named(self._known(), key_id)
        if not found and not self._known():
            raise KeySetError(f"{self._url}: {self._reason}")
        return found

    @property
    def _age_s(self) -> float:
        return self._clock() - self._fetched_at

    def _known(self) -> list[Key]:
        return self._keys if self._age_s < STALE_S else []

    def _fetch_soon(self) -> None:
        if self._fetching is None and self._clock() >= self._next_at:
            self._fetching = asyncio.ensure_future(self._fetch())

    async def _fetch(self) -> None:
        try:
            self._keys = read_keys(await asyncio.to_thread(self._get))
        except (OSError, ValueError, KeySetError, http.client.HTTPException) as error:
            self._reason = _reason(error)
            self._failures += 1
            pause_s = min(_FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 16), _LAST_RETRY_S)
            self._next_at = self._clock() + pause_s * random.uniform(0.5, 1.0)
            kept = "the keys before stay in force" if self._keys else "no token can be verified"
            _log.warning("%s: %s; %s", self._url, self._reason, kept)
        else:
            self._failures = 0
            self._fetched_at = self._clock()
            self._next_at = self._fetched_at + SOONEST_S
        finally:
            self._fetching = None

    def _get(self) -> bytes:
        """In a thread. What comes is bounded, and so is the time, however slowly it comes."""
        until = time.monotonic() + _TIMEOUT_S
        found = bytearray()
        request = urllib.request.Request(self._url)
        if self._token_file:
            request.add_unredirected_header("authorization", f"Bearer {Path(self._token_file).read_text().strip()}")
        with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
            while data := answer.read1(65536):
                found += data
                if len(found) > MAX_BYTES or time.monotonic() > until:
                    break
            else:
                return bytes(found)
        raise KeySetError(f"the answer has more than {MAX_BYTES} bytes, or takes more than {_TIMEOUT_S:g} s")

    async def close(self) -> None:
        """Fetch no more."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys come from where they were configured to come from."""

    def redirect_request(self, *_: Any) -> None:
        return None


def open_keys(where: str, ca_file: str = "", token_file: str = "") -> FileKeys | FetchedKeys:
    """Of a file, or a URL. Raises ConfigError."""
    return FetchedKeys(where, ca_file, token_file=token_file) if "://" in where else FileKeys(where)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
