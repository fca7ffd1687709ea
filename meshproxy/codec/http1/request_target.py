"""The request target (RFC 9112 section 3.2) and the authority it is for (RFC 9110 section 7.2)."""

from __future__ import annotations

import re
from typing import Final

from meshproxy.codec.http1.details import (
    CODEC_ERROR,
    FRAGMENT,
    INVALID_AUTHORITY,
    INVALID_CHARACTERS,
    INVALID_SCHEME,
    INVALID_URL,
)
from meshproxy.errors import ProtocolError

SLASH: Final = 0x2F
# Printable ASCII without "#": a fragment never stands in a request (RFC 9110 section 4.2.5).
TARGET_BYTES: Final = bytes([byte for byte in range(0x21, 0x7F) if byte != 0x23])
# Leaves only those alone: `translate` by a table is a primitive of mypyc, deleting bytes is four times as dear.
_TARGET_TABLE: Final = bytes([byte if byte in TARGET_BYTES else 0x21 for byte in range(256)])
# What a host, a bracketed address and a port are made of (RFC 3986 section 3.2, without user information).
AUTHORITY_BYTES: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=%:[]"
_CONNECT_TARGET: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9\-._~!$&'()*+,;=%]+):[0-9]{1,5}")
_SCHEME: Final = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*)://")


def is_plain_target(target: bytes) -> bool:
    """Whether `check_target` lets it pass."""
    return target.translate(_TARGET_TABLE) == target


def check_target(target: bytes) -> None:
    """Raise ProtocolError for a target with a byte that no URI has."""
    if b"#" in target:
        raise ProtocolError(400, FRAGMENT, "a fragment in the request target")
    if target.translate(None, TARGET_BYTES):
        control = any(byte < 0x20 or byte == 0x7F for byte in target)
        raise ProtocolError(400, INVALID_CHARACTERS if control else CODEC_ERROR, "invalid character in the target")


def check_authority(authority: bytes) -> None:
    """Raise ProtocolError for what cannot be a Host (RFC 9112 section 3.2)."""
    if authority.translate(None, AUTHORITY_BYTES):
        raise ProtocolError(400, INVALID_AUTHORITY, "invalid character in the authority")


def check_connect_target(target: bytes) -> None:
    """Raise ProtocolError unless `target` is `host:port` (section 3.2.3)."""
    if _CONNECT_TARGET.fullmatch(target) is None:
        raise ProtocolError(400, INVALID_URL, "the target of CONNECT is host:port")


def split_absolute(target: bytes) -> tuple[bytes, bytes, bytes]:
    """Scheme, authority and path of a target in absolute-form.

    Raises ProtocolError for a scheme other than http and https (as Envoy does), a missing host, and for user
    information (RFC 9110 section 4.2.4 has it treated as an error).
    """
    match = _SCHEME.match(target)
    if match is None:
        raise ProtocolError(400, CODEC_ERROR, "the request target is neither a path nor a URI")
    scheme = match.group(1).lower()
    if scheme not in (b"http", b"https"):
        raise ProtocolError(400, INVALID_SCHEME, "unknown scheme")
    start = match.end()
    ends = [at for at in (target.find(b"/", start), target.find(b"?", start)) if at >= 0]
    end = min(ends) if ends else len(target)
    authority, path = target[start:end], target[end:]
    if not authority:
        raise ProtocolError(400, INVALID_URL, "a URI without a host")
    check_authority(authority)
    if not path.startswith(b"/"):
        path = b"/" + path
    return scheme, authority, path
