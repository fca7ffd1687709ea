"""Envoy's response-code details of what a codec refuses (`%RESPONSE_CODE_DETAILS%`)."""

from __future__ import annotations

from typing import Final

CODEC_ERROR: Final = "http1.codec_error"
INVALID_CHARACTERS: Final = "http1.invalid_characters"
INVALID_URL: Final = "http1.invalid_url"
FRAGMENT: Final = "path_normalization_failed"  # what Envoy says of a "#" in a target
INVALID_SCHEME: Final = "http1.invalid_scheme"
INVALID_AUTHORITY: Final = "http.invalid_authority"
INVALID_TRANSFER_ENCODING: Final = "http1.invalid_transfer_encoding"
CHUNKED_CONTENT_LENGTH: Final = "http1.content_length_and_chunked_not_allowed"
TRANSFER_ENCODING_NOT_ALLOWED: Final = "http1.transfer_encoding_not_allowed"
CONTENT_LENGTH_NOT_ALLOWED: Final = "http1.content_length_not_allowed"
BODY_DISALLOWED: Final = "http1.body_disallowed"
HEADERS_TOO_LARGE: Final = "http1.headers_too_large"
TOO_MANY_HEADERS: Final = "http1.too_many_headers"
TRAILERS_TOO_LARGE: Final = "http1.trailers_too_large"
TOO_MANY_TRAILERS: Final = "http1.too_many_trailers"
MISSING_HOST: Final = "missing_host_header"
LOW_VERSION: Final = "low_version"
