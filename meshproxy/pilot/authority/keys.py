"""Keys: made, judged, and locked away.

What is stored is locked by two keys that scrypt (RFC 7914) derives from the passphrase: one encrypts private keys
(PKCS#8), one authenticates the state as a whole (HMAC-SHA256), so that who can write to the store, but does not know
the passphrase, cannot slip a root of his own in.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshproxy.pilot.authority.settings import MIN_PASSPHRASE_BYTES, AuthorityError

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

SALT_BYTES: Final = 16
_SCRYPT_N: Final = 2**15
_SCRYPT_MEMORY: Final = 64 * 1024 * 1024
_RSA_BITS: Final = (2048, 8192)  # a longer one only costs whoever checks its signatures
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def make_key(kind: str) -> SigningKey:
    """`kind` is one of settings.KEY_TYPES."""
    if kind == "P-256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "P-384":
        return ec.generate_private_key(ec.SECP384R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=int(kind.removeprefix("RSA-")))


def hash_for(key: SigningKey) -> hashes.SHA256 | hashes.SHA384:
    """As strong as the key that signs with it."""
    is_long = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256
    return hashes.SHA384() if is_long else hashes.SHA256()


def why_not(public_key: object) -> str:
    """Why a workload may not have a certificate for this key; "" where it may. Ed25519 is refused since Envoy takes no
    such certificate."""
    if isinstance(public_key, rsa.RSAPublicKey):
        low, high = _RSA_BITS
        fits = low <= public_key.key_size <= high
        return "" if fits else f"an RSA key of {public_key.key_size} bits: it must have {low} to {high}"
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        return "" if isinstance(public_key.curve, _CURVES) else f"the curve {public_key.curve.name} is not taken"
    return "keys are ECDSA P-256, P-384, P-521, or RSA"


def key_pem(key: SigningKey) -> bytes:
    """In plain: for the one to whom the key belongs, never for a file."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_der(key: SigningKey) -> bytes:
    """SubjectPublicKeyInfo: equal for keys that belong together."""
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


class Seal:
    """What the passphrase and a salt make. Deriving takes a tenth of a second: not in an event loop."""

    __slots__ = ("_key_password", "_mac_key", "salt")

    def __init__(self, passphrase: bytes, salt: bytes = b"") -> None:
        if len(passphrase) < MIN_PASSPHRASE_BYTES:
            raise AuthorityError(
                f"the passphrase has less than {MIN_PASSPHRASE_BYTES} bytes; make one with: openssl rand -base64 32"
            )
        self.salt = salt or secrets.token_bytes(SALT_BYTES)
        derived = hashlib.scrypt(passphrase, salt=self.salt, n=_SCRYPT_N, r=8, p=1, maxmem=_SCRYPT_MEMORY, dklen=64)
        self._key_password = derived[:32].hex().encode()
        self._mac_key = derived[32:]

    def __repr__(self) -> str:
        return "Seal(…)"

    def mac(self, data: bytes) -> str:
        """What proves that `data` was written by one who knows the passphrase."""
        return hmac.new(self._mac_key, data, hashlib.sha256).hexdigest()

    def proves(self, data: bytes, mac: str) -> bool:
        return hmac.compare_digest(self.mac(data).encode(), mac.encode())

    def lock(self, key: SigningKey) -> bytes:
        """The key as encrypted PEM."""
        return key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(self._key_password),
        )

    def unlock(self, pem: bytes) -> SigningKey:
        """Raises AuthorityError."""
        try:
            key = serialization.load_pem_private_key(pem, self._key_password)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise AuthorityError("a key of the authority cannot be decrypted") from None
        if not isinstance(key, SigningKey):
            raise AuthorityError("a key of the authority is of a kind that it never makes")
        return key
