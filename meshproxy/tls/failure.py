"""Why a TLS connection failed, in the shape of Envoy's transport failure reason."""

from __future__ import annotations

import _ssl
import ssl
from typing import Final

_SSL_ALERT: Final = 1000  # both libraries number an alert from the peer 1000 + alert
_BORINGSSL_LIBRARY: Final = 16 << 24
_OPENSSL_LIBRARY: Final = 20
# BoringSSL's numbers where both libraries have a name for the same; any other reason keeps OpenSSL's number.
_REASONS: Final = {
    "CERTIFICATE_VERIFY_FAILED": 125,
    "HTTP_REQUEST": 156,
    "NO_SHARED_CIPHER": 184,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": 192,
    "UNSUPPORTED_PROTOCOL": 240,
    "WRONG_VERSION_NUMBER": 247,
    "NO_SHARED_GROUP": 266,
    "KEY_USAGE_BIT_INCORRECT": 302,
}
# Where only the names differ. (OpenSSL 3.2 and later say no more of a record that cannot be decrypted.)
_RENAMED: Final = {
    "NO_SUITABLE_KEY_SHARE": "NO_SHARED_GROUP",
    "RECORD_LAYER_FAILURE": "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
}
_NUMBERS: Final[dict[str, int]] = {
    name: reason for (library, reason), name in _ssl.err_codes_to_names.items() if library == _OPENSSL_LIBRARY
}
_DETAILS: Final = {"PEER_DID_NOT_RETURN_A_CERTIFICATE": "peer did not provide required client certificate"}


def failure_text(error: ssl.SSLError, verification: str) -> str:
    """`TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:…:TLS_error_end`."""
    given = error.reason or _in_words(str(error))
    reason = _RENAMED.get(given, given)
    return failure_of(reason, verification if reason == "CERTIFICATE_VERIFY_FAILED" else _DETAILS.get(reason, ""))


def failure_of(reason: str, detail: str = "") -> str:
    """The text for a reason by its name."""
    shown = f"{reason}:{detail}" if detail else reason
    return f"TLS_error:|{_code(reason)}:SSL routines:OPENSSL_internal:{shown}:TLS_error_end"


def _in_words(text: str) -> str:
    """A reason that is newer than this Python, which only quotes it: `[SSL] record layer failure (_ssl.c:2580)`."""
    words = text.partition("] ")[2].partition(" (")[0]
    return words.upper().replace(" ", "_") or "UNKNOWN_ERROR"


def _code(reason: str) -> int:
    number = _REASONS.get(reason)
    if number is not None:
        return _BORINGSSL_LIBRARY | number
    number = _NUMBERS.get(reason, 0)
    if number > _SSL_ALERT:
        return _BORINGSSL_LIBRARY | number
    return _OPENSSL_LIBRARY << 23 | number
