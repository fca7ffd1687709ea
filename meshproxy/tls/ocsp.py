"""OCSP responses (RFC 6960) that a server sends along with its certificate; who verifies them is the client."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

from meshproxy.tls.x509 import Certificate, Der, DerError, parse_time

NOT_ASKED: Final = 0
SENT: Final = 1
OMITTED: Final = 2

_SUCCESSFUL: Final = b"\0"
_VERSION: Final = 0xA0
_NEXT_UPDATE: Final = 0xA0


class OcspStaple:
    """The response for one certificate. Raises DerError for one that is malformed, or about another certificate."""

    def __init__(self, response: bytes, certificate: Certificate, now: Callable[[], float] = time.time) -> None:
        self._response = response
        self._now = now
        single = _single_response(response)
        if single.child(0).child(3).content.lstrip(b"\0") != bytes.fromhex(certificate.serial_content):
            raise DerError("OCSP response does not match its TLS certificate")
        self.this_update: datetime = parse_time(single.child(2))
        later = [parse_time(each.child(0)) for each in single.children()[3:] if each.tag == _NEXT_UPDATE]
        self.next_update: datetime | None = later[0] if later else None
        self.outcome: int = NOT_ASKED  # of the latest handshake

    @property
    def is_expired(self) -> bool:
        """Without a time of the next one, the response is good for this moment only."""
        return self.next_update is None or self.next_update.timestamp() < self._now()

    def current(self) -> bytes:
        """What a client that asks gets: nothing once the response is outdated (LENIENT_STAPLING)."""
        self.outcome = OMITTED if self.is_expired else SENT
        return self._response if self.outcome == SENT else b""


def _single_response(response: bytes) -> Der:
    """The one SingleResponse in an OCSPResponse."""
    outer = Der(response, 0, len(response))
    if outer.child(0).content != _SUCCESSFUL:
        raise DerError("OCSP response was unsuccessful")
    basic = outer.child(1).child(0).child(1).content
    fields = Der(basic, 0, len(basic)).child(0).children()
    if fields and fields[0].tag == _VERSION:
        fields = fields[1:]
    if len(fields) < 3:
        raise DerError("OCSP response is malformed")
    responses = fields[2].children()
    if len(responses) != 1:
        raise DerError("OCSP Response must be for one certificate only")
    return responses[0]
