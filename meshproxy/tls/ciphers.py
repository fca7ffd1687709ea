"""Envoy's lists of cipher suites, which follow BoringSSL's syntax, in OpenSSL's."""

from __future__ import annotations

import functools
import ssl
from typing import Final

# SSL_OP_PRIORITIZE_CHACHA: a client that puts ChaCha20 first (it has no AES in hardware) gets it.
PRIORITIZE_CHACHA: Final = 0x200000
_OPERATORS: Final = "!-+"


class CipherError(ValueError):
    """A list that cannot be honoured; the text names the element."""


@functools.lru_cache(maxsize=64)
def to_openssl(elements: tuple[str, ...]) -> tuple[str, bool]:
    """(the list in OpenSSL's syntax, whether a client's wish for ChaCha20 goes before our order). Raises CipherError.

    BoringSSL's `[A|B]` leaves the choice among equals to the client. OpenSSL has no groups, but just what they are for:
    the choice between AES-GCM and ChaCha20, by whether the client has AES in hardware.
    """
    scratch = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    out: list[str] = []
    prioritize_chacha = False
    for element in (part for text in elements for part in _split(text)):
        names = element[1:-1].split("|") if element.startswith("[") else [element]
        if element.startswith("[") and not _is_aes_or_chacha(element, names):
            raise CipherError(f"{element}: only AES-GCM and CHACHA20 can be equals in a group")
        prioritize_chacha = prioritize_chacha or element.startswith("[")
        for name in names:
            _check(scratch, name)
        out.extend(names)
    return ":".join(out), prioritize_chacha


def _split(text: str) -> list[str]:
    """The elements of one string: colons stand between them, but not within brackets."""
    return [part for part in text.replace(" ", ":").replace(",", ":").replace(";", ":").split(":") if part]


def _is_aes_or_chacha(element: str, names: list[str]) -> bool:
    if not element.endswith("]"):
        raise CipherError(f"{element}: a group has no end")
    return all("CHACHA20" in name or "GCM" in name for name in names)


def _check(scratch: ssl.SSLContext, name: str) -> None:
    bare = name.lstrip(_OPERATORS)
    if name.startswith("@"):
        raise CipherError(f"{name} is not supported")
    try:
        scratch.set_ciphers(bare)
    except ssl.SSLError:
        raise CipherError(f"unknown cipher {name}") from None
