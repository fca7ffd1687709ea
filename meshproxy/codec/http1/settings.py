"""What configuration decides about an HTTP/1 codec."""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class UpgradeFilter:
    """Which protocols no request is upgraded to (`ignore_http_11_upgrade`)."""

    def ignores(self, protocol: bytes) -> bool:
        raise NotImplementedError


class Http1Settings:
    """One object per connection manager or cluster, shared by its connections; read only.

    Names and defaults are those of Envoy's `Http1ProtocolOptions` and `HttpProtocolOptions`, but for
    `max_headers_bytes` (`max_request_headers_kb` in bytes) and `max_buffered_bytes`, which is ours.
    """

    def __init__(
        self,
        *,
        accept_http_10: bool = False,
        default_host_for_http_10: bytes = b"",
        enable_trailers: bool = False,
        allow_absolute_url: bool = True,
        allow_chunked_length: bool = False,
        allow_custom_methods: bool = False,
        proper_case: bool = False,
        send_fully_qualified_url: bool = False,
        max_headers_count: int = 100,
        max_headers_bytes: int = 60 * 1024,
        ignored_upgrades: UpgradeFilter | None = None,
        max_buffered_bytes: int = 256 * 1024,
    ) -> None:
        self.accept_http_10: Final = accept_http_10
        self.default_host_for_http_10: Final = default_host_for_http_10
        self.enable_trailers: Final = enable_trailers
        self.allow_absolute_url: Final = allow_absolute_url
        self.allow_chunked_length: Final = allow_chunked_length
        self.allow_custom_methods: Final = allow_custom_methods
        # header_key_format.proper_case_words: names leave as `Content-Type`, not `content-type`
        self.proper_case: Final = proper_case
        self.send_fully_qualified_url: Final = send_fully_qualified_url  # of a client: targets in absolute form
        self.max_headers_count: Final = max_headers_count
        self.max_headers_bytes: Final = max_headers_bytes
        self.ignored_upgrades: Final = ignored_upgrades
        # Received bytes that may wait (pipelined requests, a read-disabled stream) before the socket is to pause.
        self.max_buffered_bytes: Final = max_buffered_bytes
