"""Which of a server's certificates a client gets: by the name that it asks for and the keys that it can take.

Envoy's rules: an exact name, then a wildcard of one label, then the first certificate (or any that fits, with
`full_scan_certs_on_sni_mismatch`). Of a name's certificates the ECDSA one goes before RSA where the client can take it.
"""

from __future__ import annotations

from typing import Final

from meshproxy.tls.inspector import ClientHello, numbers, server_name
from meshproxy.tls.x509 import DNS, Certificate

_SUPPORTED_GROUPS: Final = 10
_SIGNATURE_ALGORITHMS: Final = 13
_SUPPORTED_VERSIONS: Final = 43

# The curves of ECDSA certificates by object id, by signature algorithm, and by group (IANA's registries).
CURVES: Final = {"1.2.840.10045.3.1.7": "P-256", "1.3.132.0.34": "P-384", "1.3.132.0.35": "P-521"}
_BY_SIGNATURE: Final = {0x0403: "P-256", 0x0503: "P-384", 0x0603: "P-521"}
_BY_GROUP: Final = {23: "P-256", 24: "P-384", 25: "P-521"}
# Cipher suites before TLS 1.3 that an ECDSA key signs.
_ECDSA_CIPHERS: Final = frozenset(
    {0xC007, 0xC008, 0xC009, 0xC00A, 0xC023, 0xC024, 0xC02B, 0xC02C, 0xC072, 0xC073, 0xC0AC, 0xC0AD, 0xC0AE, 0xC0AF}
    | {0xC05C, 0xC05D, 0xC086, 0xC087, 0xCCA9}
)


def ecdsa_curves(hello: ClientHello, *, tls13: bool) -> frozenset[str]:
    """The curves of the ECDSA certificates that the client can take; `tls13`: whether the server speaks TLS 1.3.

    With TLS 1.3 the signature algorithms say it, before that the groups, together with an ECDSA cipher suite.
    """
    if tls13 and _SUPPORTED_VERSIONS in hello.extensions:
        offered = numbers(hello.extensions.get(_SIGNATURE_ALGORITHMS, b"")[2:])
        return frozenset(_BY_SIGNATURE[each] for each in offered if each in _BY_SIGNATURE)
    if _ECDSA_CIPHERS.isdisjoint(hello.cipher_suites):
        return frozenset()
    groups = numbers(hello.extensions.get(_SUPPORTED_GROUPS, b"")[2:])
    return frozenset(_BY_GROUP[each] for each in groups if each in _BY_GROUP)


class Selector:
    """Picks among the certificates of one context; the answer is an index."""

    def __init__(self, certificates: list[Certificate], *, full_scan: bool, tls13: bool) -> None:
        self._curves = [CURVES.get(each.ec_curve, "") if each.key_type == "ECDSA" else "" for each in certificates]
        self._full_scan = full_scan
        self._tls13 = tls13
        # name → the first certificate of each key type; a wildcard stands without its star
        self._by_name: dict[str, dict[str, int]] = {}
        for index, certificate in enumerate(certificates):
            for name in _names(certificate):
                held = self._by_name.setdefault(name, {})
                held.setdefault(certificate.key_type, index)

    def select(self, hello: ClientHello) -> int:
        """The index of the certificate that this client gets."""
        curves = ecdsa_curves(hello, tls13=self._tls13)
        name = server_name(hello) or ""
        if name:
            index = self._best(list(self._by_name.get(name, {}).values()), curves)
            if index < 0:
                index = self._best(list(self._by_name.get(_wildcard(name), {}).values()), curves)
            if index >= 0 or not self._full_scan:
                return max(index, 0)
        return max(self._best(list(range(len(self._curves))), curves), 0)

    def _best(self, indexes: list[int], curves: frozenset[str]) -> int:
        """An ECDSA certificate that the client can take, else the first RSA one, else -1."""
        for index in indexes:
            if self._curves[index] in curves:
                return index
        return next((index for index in indexes if not self._curves[index]), -1)


def _names(certificate: Certificate) -> list[str]:
    """The DNS names; the common name only of a certificate without any alternative name (RFC 6125 section 6.4.4)."""
    if certificate.has_alt_names:
        names = certificate.alt_names_of(DNS)
    else:
        names = [certificate.common_name] if certificate.common_name else []
    return [name.lower()[1:] if name.startswith("*.") else name.lower() for name in names]


def _wildcard(name: str) -> str:
    position = name.find(".", 1)
    return name[position:] if 0 < position < len(name) - 1 else ""
