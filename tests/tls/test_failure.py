"""The words for what failed, whichever OpenSSL and Python say them."""

from __future__ import annotations

import ssl

import pytest

from meshproxy.tls.failure import failure_text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("[SSL] record layer failure (_ssl.c:2580)", "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
        ("[SSL] something quite new (_ssl.c:1000)", "SOMETHING_QUITE_NEW"),
        ("nothing is known", "UNKNOWN_ERROR"),
    ],
)
def test_a_reason_that_is_newer_than_this_python(words: str, reason: str) -> None:
    """It has no name then, but OpenSSL's words (3.2 and later for a record that cannot be decrypted)."""
    error = ssl.SSLError(1, words)
    error.reason = None  # type: ignore[assignment]  # as `_ssl` sets it
    text = failure_text(error, "")
    assert text.startswith("TLS_error:|")
    assert text.endswith(f":SSL routines:OPENSSL_internal:{reason}:TLS_error_end")
