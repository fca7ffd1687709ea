"""What an authority goes by. All pilots that share one should be told the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meshproxy.errors import MeshProxyError

KEY_TYPES: Final = ("P-256", "P-384", "RSA-2048", "RSA-3072", "RSA-4096")
MIN_PASSPHRASE_BYTES: Final = 16
_HOUR_S: Final = 3600.0
_DAY_S: Final = 24 * _HOUR_S


class AuthorityError(MeshProxyError):
    """The authority cannot do what it is told, or cannot be opened. The text never holds a key or a passphrase."""


@dataclass(frozen=True, slots=True)
class AuthoritySettings:
    """Times of seconds work; `rotate_after_s` is the age at which a root of ours gets a successor, 0: two thirds of
    its lifetime. `overlap_s` is for how long both are trusted before the new one signs: proxies that learn of roots
    only when they renew need the longest lifetime. `federated` are other trust domains and the PEM files of their
    roots."""

    trust_domain: str = "cluster.local"
    lifetime_s: float = 6 * _HOUR_S
    longest_lifetime_s: float = _DAY_S
    skew_s: float = 60.0
    root_lifetime_s: float = 3650 * _DAY_S
    rotate_after_s: float = 0.0
    overlap_s: float = _DAY_S
    crl_lifetime_s: float = 7 * _DAY_S
    key_type: str = "P-256"
    federated: tuple[tuple[str, str], ...] = ()
    identity_rate: float = 20.0  # certificates a second, for one identity
    identity_burst: float = 200.0
    rate: float = 200.0  # … for all of them
    burst: float = 2000.0

    def __post_init__(self) -> None:
        """Raises AuthorityError where the times do not fit one another."""
        if not 1.0 <= self.lifetime_s <= self.longest_lifetime_s <= self.root_lifetime_s:
            raise AuthorityError(
                "the lifetime of certificates is at least a second, at most the longest, and that at most the root's"
            )
        if self.root_lifetime_s <= self.overlap_s + self.longest_lifetime_s:
            raise AuthorityError("a root outlives the overlap with its successor, and then the longest certificate")
        if self.root_lifetime_s > 100 * 366 * _DAY_S:
            raise AuthorityError("a root lives for a hundred years at most")
        if min(self.skew_s, self.rotate_after_s, self.overlap_s) < 0.0 or self.crl_lifetime_s < 2.0:
            raise AuthorityError("times are not negative, and a CRL lives for two seconds at least")
        if min(self.identity_rate, self.rate) <= 0.0 or min(self.identity_burst, self.burst) < 1.0:
            raise AuthorityError("rates are positive, and a burst is one certificate at least")
        if self.key_type not in KEY_TYPES:
            raise AuthorityError(f"the key of an authority is one of {', '.join(KEY_TYPES)}")
