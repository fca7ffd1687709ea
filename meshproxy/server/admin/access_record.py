"""One request of the admin for its access logs, as Envoy's admin describes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from meshproxy.clock import monotonic
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.request_headers import is_loopback
from meshproxy.net.connection import Connection
from meshproxy.net.interfaces import local_address
from meshproxy.observe.access_log import AccessLog
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo

HANDLED: Final = "admin_filter_response"  # Envoy's response code details


class AccessRecord:
    """Filled as the exchange goes on; `write` logs it."""

    def __init__(self, logs: Sequence[AccessLog], connection: Connection) -> None:
        self._logs = logs
        self.info = StreamInfo(ConnectionInfo(connection.id, connection.remote, connection.local), monotonic())
        self.info.log_type = "DownstreamEnd"

    def request(self, headers: HeaderMap, path: bytes, body_bytes: int) -> None:
        """The request is complete. Its headers get what a connection manager adds that trusts nobody before it."""
        info = self.info
        remote = info.connection.remote
        if remote.ip:
            own = local_address() if is_loopback(remote.ip) else remote.ip
            before = headers.get(b"x-forwarded-for")
            headers.set(b"x-forwarded-for", (before + b"," if before else b"") + own.encode())
        headers.set(b"x-forwarded-proto", b"http")
        headers.set(b":path", path)
        info.request_headers = headers
        info.request_end = monotonic()
        info.bytes_received = body_bytes

    def response(self, headers: HeaderMap, status: int, details: str, flags: int = 0) -> None:
        """The answer's head."""
        info = self.info
        info.response_headers = headers
        info.response_code = status
        info.response_code_details = details
        info.response_flags |= flags

    def write(self, flags: int = 0) -> None:
        """The exchange is over."""
        self.info.response_flags |= flags
        self.info.end = monotonic()
        for log in self._logs:
            log.log(self.info)
