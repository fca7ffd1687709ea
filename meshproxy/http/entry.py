"""What a request must be before anything matches on it: a host, a path, and both in their normal form."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.headers import FRAGMENT, HeaderMap
from meshproxy.http import path as paths
from meshproxy.http.manager_config import ConnectionManagerConfig
from meshproxy.observe.stream_info import PROTOCOL_HTTP2, StreamInfo


class RejectedRequest:
    """Why a request is answered before the filters.

    `stat` is a dynamic counter's name, `location` a redirect's target. `malformed`: it is answered as the codec
    answers what
    is no HTTP. What is answered 400 is the connection's last request.
    """

    def __init__(
        self, status: int, details: str, stat: str = "", location: bytes = b"", malformed: bool = False
    ) -> None:
        self.status = status
        self.details = details
        self.stat = stat
        self.location = location
        self.malformed = malformed


_MISSING_HOST: Final = RejectedRequest(400, "missing_host_header")
_MISSING_PATH: Final = RejectedRequest(404, "missing_path_rejected")
_ABSOLUTE_PATH: Final = RejectedRequest(404, "absolute_path_rejected", "downstream_rq_non_relative_path")
_UNDERSCORE: Final = RejectedRequest(400, "http1.unexpected_underscore", malformed=True)
_REJECT_UNDERSCORES: Final = 1
_BAD_PATH: Final = RejectedRequest(400, "path_normalization_failed", "downstream_rq_failed_path_normalization")


def check_and_normalize(
    config: ConnectionManagerConfig, headers: HeaderMap, info: StreamInfo
) -> RejectedRequest | None:
    """Check and normalise `:authority` and `:path` in place; the reason when the request cannot go on."""
    if headers.get(b":authority") is None:
        return _MISSING_HOST
    if config.headers_with_underscores_action:
        rejected = _check_underscores(config, headers, info)
        if rejected is not None:
            return rejected
    path = headers.get(b":path")
    if path is None or not path:
        if headers.get(b":method") != b"CONNECT":
            return _MISSING_PATH
        if config.touches_host:
            _strip_host(config, headers, info)
        return None
    if path[0] != 0x2F:
        return _ABSOLUTE_PATH
    if headers.known & FRAGMENT:
        return _BAD_PATH
    if config.touches_host:
        _strip_host(config, headers, info)
    if config.touches_path:
        return _normalize_path(config, headers, path)
    return None


def _check_underscores(
    config: ConnectionManagerConfig, headers: HeaderMap, info: StreamInfo
) -> RejectedRequest | None:
    """HttpProtocolOptions.HeadersWithUnderscoresAction: 1 refuses the request, 2 drops the headers."""
    named = [name for name, _ in headers.fields if b"_" in name]
    if not named:
        return None
    if config.headers_with_underscores_action == _REJECT_UNDERSCORES:
        return _UNDERSCORE
    if info.protocol == PROTOCOL_HTTP2:
        config.http2_stats.counts().dropped_headers_with_underscores += len(named)
    headers.remove_names(frozenset(named))
    return None


def _normalize_path(config: ConnectionManagerConfig, headers: HeaderMap, path: bytes) -> RejectedRequest | None:
    original = path
    action = config.escaped_slashes_action
    redirect = False
    if action >= paths.REJECT_REQUEST and paths.has_escaped_slashes(path):
        path = paths.unescape_slashes(path)
        if action == paths.REJECT_REQUEST:
            headers.set(b":path", path)
            return _BAD_PATH
        redirect = action == paths.UNESCAPE_AND_REDIRECT
    if config.normalize_path:
        normal = paths.normalize(path)
        if normal is None:
            return _BAD_PATH
        path = normal
    if config.merge_slashes:
        path = paths.merge_slashes(path)
    if path != original:
        headers.set(b":path", path)
        if redirect:
            return RejectedRequest(307, "path_normalization_failed", "", path)
    return None


def _strip_host(config: ConnectionManagerConfig, headers: HeaderMap, info: StreamInfo) -> None:
    host = headers.get(b":authority") or b""
    stripped = host
    if config.strip_any_host_port or config.strip_matching_host_port:
        stripped = _without_port(host, None if config.strip_any_host_port else info.connection.local.port)
    if config.strip_trailing_host_dot:
        stripped = _without_dot(stripped)
    if stripped != host:
        headers.set(b":authority", stripped)


def _without_port(host: bytes, only: int | None) -> bytes:
    cut = host.rfind(b":")
    if cut < 0 or host.endswith(b"]"):
        return host
    port = host[cut + 1 :]
    if not port.isdigit() or (only is not None and int(port) != only):
        return host
    return host[:cut]


def _without_dot(host: bytes) -> bytes:
    cut = host.rfind(b":")
    if cut > 0 and host[cut - 1 : cut] == b".":
        return host[: cut - 1] + host[cut:]
    return host[:-1] if host.endswith(b".") else host
