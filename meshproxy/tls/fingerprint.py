"""JA3 and JA4: hashes of what a ClientHello offers, which tell one TLS library from another.

JA3 is the MD5 of five lists of decimal numbers, in the client's order; JA4 a readable part and SHA-256 of sorted lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from meshproxy.tls.inspector import ALPN, SERVER_NAME, ClientHello, numbers

_SUPPORTED_GROUPS: Final = 10
_POINT_FORMATS: Final = 11
_SIGNATURE_ALGORITHMS: Final = 13
_SUPPORTED_VERSIONS: Final = 43
_VERSIONS: Final = {0x0301: "10", 0x0302: "11", 0x0303: "12", 0x0304: "13"}
_NOTHING: Final = "0" * 12


def ja3(hello: ClientHello) -> str:
    """The JA3 hash. Like Envoy, GREASE is left out of cipher suites and extensions, but not of the groups."""
    lists = (
        [hello.version],
        _without_grease(hello.cipher_suites),
        _without_grease(hello.extensions),
        numbers(hello.extensions.get(_SUPPORTED_GROUPS, b"")[2:]),
        list(hello.extensions.get(_POINT_FORMATS, b"")[1:]),
    )
    text = ",".join("-".join(map(str, values)) for values in lists)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def ja4(hello: ClientHello) -> str:
    """The JA4 fingerprint of TLS over TCP."""
    ciphers = _without_grease(hello.cipher_suites)
    extensions = _without_grease(hello.extensions)
    named = "d" if SERVER_NAME in hello.extensions else "i"
    counts = f"{min(len(ciphers), 99):02d}{min(len(extensions), 99):02d}"
    signatures = numbers(hello.extensions.get(_SIGNATURE_ALGORITHMS, b"")[2:])
    hashed = _hexadecimal(sorted(set(extensions) - {SERVER_NAME, ALPN}))
    if hashed and signatures:
        hashed += "_" + _hexadecimal(signatures)
    first = f"t{_version(hello)}{named}{counts}{_alpn(hello)}"
    return f"{first}_{_short_hash(_hexadecimal(sorted(ciphers)))}_{_short_hash(hashed)}"


def _without_grease(values: Iterable[int]) -> list[int]:
    """Without the numbers that stand for nothing: 0x0a0a, 0x1a1a … (RFC 8701)."""
    return [value for value in values if value & 0x0F0F != 0x0A0A or value >> 8 != value & 0xFF]


def _version(hello: ClientHello) -> str:
    """The highest of supported_versions, else the legacy version."""
    data = hello.extensions.get(_SUPPORTED_VERSIONS, b"")
    offered = _without_grease(numbers(data[1 : 1 + data[0]])) if data and len(data) > data[0] else []
    if data and len(data) <= data[0]:
        return "00"
    return _VERSIONS.get(max(offered, default=hello.version), "00")


def _alpn(hello: ClientHello) -> str:
    """The first and the last character of the first protocol; of hexadecimal digits where one is not alphanumeric."""
    data = hello.extensions.get(ALPN, b"")
    name = data[3 : 3 + data[2]] if len(data) > 3 else b""
    if not name or len(name) < data[2]:
        return "00"
    ends = bytes((name[0], name[-1]))
    return ends.decode("ascii") if ends.isalnum() else f"{ends[0] >> 4:x}{ends[1] & 15:x}"


def _hexadecimal(values: Iterable[int]) -> str:
    return ",".join(f"{value:04x}" for value in values)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12] if text else _NOTHING
