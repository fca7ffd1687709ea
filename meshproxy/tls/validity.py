"""Whether certificates are good at this time: those of a control plane must be, others are only warned of."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from meshproxy.tls.x509 import Certificate

# By so much the clock of who signed a certificate may be ahead of ours: what is just made is not refused for it.
SKEW_S: Final = 60.0


def is_expired(certificate: Certificate, now: float) -> bool:
    """RFC 5280 section 4.1.2.5: the last second still counts."""
    return now > certificate.not_after.timestamp()


def untimely(certificate: Certificate, now: float) -> str:
    """What is wrong with its time; "" for nothing."""
    if is_expired(certificate, now):
        return f"the certificate has expired, on {_shown(certificate.not_after)}"
    if now + SKEW_S < certificate.not_before.timestamp():
        return f"the certificate is not valid before {_shown(certificate.not_before)}"
    return ""


def none_is_timely(certificates: Iterable[Certificate], now: float) -> str:
    """Why none of these is good now; "" where one is, or there are none."""
    reasons = [untimely(each, now) for each in certificates]
    return "" if not reasons or "" in reasons else f"no authority is valid at this time: {reasons[0]}"


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
