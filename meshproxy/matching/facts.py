"""What conditions are asked about."""

from __future__ import annotations

from meshproxy.codec.headers import HeaderMap
from meshproxy.observe.stream_info import StreamInfo


class Facts:
    """Who asks, and for what. For a connection `headers` are empty."""

    def __init__(self, headers: HeaderMap, info: StreamInfo) -> None:
        self.headers = headers
        self.info = info
