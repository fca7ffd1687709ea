"""How a connection breaks: what travels from where a rule is checked to where GOAWAY is said."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.http2 import constants as h2
from meshproxy.codec.http2 import details
from meshproxy.errors import ProtocolError


class Http2Error(ProtocolError):
    """A connection error (RFC 9113 section 5.4.1): `code` is what GOAWAY says."""

    def __init__(self, code: int, reason: str, error_details: str = details.CODEC_ERROR) -> None:
        super().__init__(400, error_details, reason)
        self.code: Final = code


class Http2Flood(Http2Error):
    """Nothing is wrong with the frames but their number, which Envoy does not count as a protocol error."""

    def __init__(self, reason: str, error_details: str) -> None:
        super().__init__(h2.ENHANCE_YOUR_CALM, reason, error_details)
