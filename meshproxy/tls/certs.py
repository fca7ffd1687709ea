"""What `/certs` tells of contexts, and when the first of their certificates expires."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from meshproxy.tls.material import CertificateInfo
from meshproxy.tls.options import ValidationOptions
from meshproxy.tls.x509 import DNS, IP_ADDRESS, URI

_DAY_S: Final = 86_400
_FIELDS: Final = {DNS: "dns", URI: "uri", IP_ADDRESS: "ip_address"}  # in Envoy's order


class Certified(Protocol):
    """A context, or what will be one: its certificates, and those whom it trusts, as of now."""

    @property
    def certificates(self) -> list[CertificateInfo]: ...

    @property
    def ca_certificates(self) -> list[CertificateInfo]: ...

    @property
    def validations(self) -> list[ValidationOptions]: ...


def describe(context: Certified, now: Callable[[], float] = time.time) -> dict[str, Any]:
    """One element of `certificates`, as the JSON of envoy.admin.v3.Certificate."""
    return {
        "ca_cert": [_details(each, now()) for each in context.ca_certificates],
        "cert_chain": [_details(each, now()) for each in context.certificates],
    }


def days_until_first_expires(contexts: Iterable[Certified], now: Callable[[], float] = time.time) -> int | None:
    """`server.days_until_first_cert_expiring`; 0 when one has expired, None where there is no certificate."""
    infos = (info for context in contexts for info in (*context.ca_certificates, *context.certificates))
    first = min((info.expires for info in infos), default=None)
    return None if first is None else _days_until(first, now())


def seconds_until_first_staple_expires(
    contexts: Iterable[Certified], now: Callable[[], float] = time.time
) -> int | None:
    """`server.seconds_until_first_ocsp_response_expiring`; 0 when one has expired, None where there is none."""
    staples = (info.staple for context in contexts for info in context.certificates if info.staple is not None)
    ends = [each.next_update.timestamp() if each.next_update is not None else 0.0 for each in staples]
    return max(0, int(min(ends) - now())) if ends else None


def _details(info: CertificateInfo, now: float) -> dict[str, Any]:
    certificate = info.certificate
    details: dict[str, Any] = {
        "path": info.source,
        "serial_number": certificate.serial,
        "subject_alt_names": [
            {field: name} for kind, field in _FIELDS.items() for name in certificate.alt_names_of(kind)
        ],
        "days_until_expiration": str(_days_until(info.expires, now)),
        "valid_from": _time(certificate.not_before),
        "expiration_time": _time(certificate.not_after),
    }
    if info.staple is not None and info.staple.next_update is not None:
        details["ocsp_details"] = {
            "valid_from": _time(info.staple.this_update),
            "expiration": _time(info.staple.next_update),
        }
    return details


def _days_until(moment: float, now: float) -> int:
    """Whole days; 0 when it is over."""
    return max(0, int((moment - int(now)) // _DAY_S))


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
