"""The Location of a redirect, by Envoy's rules for scheme, host, port, path and query."""

from __future__ import annotations

from meshproxy.codec.headers import HeaderMap
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.rewrite import PathRewrite


class Redirect:
    """A RedirectAction. Empty fields leave the request's own."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.scheme: bytes = b""
        self.host: bytes = b""
        self.port: bytes = b""  # with its colon
        self.path: bytes = b""
        self.path_rewrite: PathRewrite | None = None
        self.strip_query: bool = False

    def location(self, headers: HeaderMap, info: StreamInfo) -> bytes:
        scheme = self.scheme or headers.get(b":scheme") or b"http"
        host = self.host or kept_host(headers, scheme, bool(self.port))
        return scheme + b"://" + host + self.port + self._path(headers, info)

    def _path(self, headers: HeaderMap, info: StreamInfo) -> bytes:
        path = headers.get(b":path") or b""
        if self.path:
            # A query of its own takes precedence over the request's, and is never stripped.
            if b"?" in self.path:
                return self.path
            query_at = path.find(b"?")
            path = self.path + path[query_at:] if query_at >= 0 else self.path
        elif self.path_rewrite is not None:
            path = self.path_rewrite.rewrite(path, info)
        return path.partition(b"?")[0] if self.strip_query else path


def kept_host(headers: HeaderMap, new_scheme: bytes, new_port: bool) -> bytes:
    """The request's host; without its port when the redirect brings one, or when it was the old scheme's default."""
    host = headers.get(b":authority") or b""
    port_at = host.rfind(b"]:") + 1 if host.startswith(b"[") else host.rfind(b":")
    if port_at <= 0:
        return host
    port = host[port_at:]
    old_scheme = headers.get(b"x-forwarded-proto") or b""
    remove = new_port
    if new_scheme != old_scheme:
        remove = remove or (old_scheme == b"https" and port == b":443") or (old_scheme == b"http" and port == b":80")
    return host[:port_at] if remove else host


def tls_location(headers: HeaderMap) -> bytes:
    """Where a virtual host's `require_tls` sends a request that came without TLS."""
    return b"https://" + (headers.get(b":authority") or b"") + (headers.get(b":path") or b"")
