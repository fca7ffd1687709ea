"""What a connection manager does to a response's headers before they go downstream."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final

from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap
from meshproxy.http.manager_config import APPEND_IF_ABSENT, OVERWRITE, ConnectionManagerConfig

if TYPE_CHECKING:
    from meshproxy.http.connection_manager import ConnectionManager
    from meshproxy.http.stream import Stream

_HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"http2-settings")
)


_HOP_BY_HOP_OF_TUNNELS: Final = _HOP_BY_HOP - {b"connection", b"upgrade"}

_HOP_BY_HOP_BITS: Final = h.CONNECTION | h.PROXY_CONNECTION | h.TRANSFER_ENCODING | h.UPGRADE


class _Date:
    """The `date` field, made once a second."""

    def __init__(self) -> None:
        self._second: int = -1
        self._field: Any = None

    def now(self) -> Any:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._field = (b"date", formatdate(second, usegmt=True).encode())
        return self._field


_DATE: Final = _Date()


def mutate_response_headers(
    config: ConnectionManagerConfig, manager: ConnectionManager, stream: Stream, headers: HeaderMap
) -> None:
    """Hop-by-hop fields go; date, server, via and `connection: close` come (Envoy's order)."""
    known = headers.known
    if known & (h.CONNECTION | h.TRANSFER_ENCODING | h.UPGRADE):
        if stream.tunnel_open:
            headers.remove_names(_HOP_BY_HOP_OF_TUNNELS)
        else:
            _remove_hop_by_hop(headers)
    if not known & h.DATE or headers.get(b"date") is None:
        headers.append(_DATE.now(), h.DATE)
    mode = config.server_header_transformation
    if mode == OVERWRITE:
        if known & h.SERVER:
            headers.replace(config.server_field, h.SERVER)
        else:
            headers.append(config.server_field, h.SERVER)
    elif mode == APPEND_IF_ABSENT and headers.get(b"server") is None:
        headers.append(config.server_field, h.SERVER)
    if config.via:
        old = headers.joined(b"via")
        headers.set(b"via", config.via if old is None else old + b", " + config.via)
    forced = stream.info.internal and stream.request_headers.get(b"x-envoy-force-trace") is not None
    if (config.always_set_request_id_in_response or forced) and stream.info.request_id:
        headers.set(b"x-request-id", stream.info.request_id)
    if manager.closes_after(stream) and not stream.tunnel_open:
        headers.set(b"connection", b"close")


def _remove_hop_by_hop(headers: HeaderMap) -> None:
    fields = headers.fields
    rare = headers.known & _HOP_BY_HOP_BITS != h.CONNECTION  # nearly always there is `connection: keep-alive`, no more
    nominated = b""
    for at in range(len(fields) - 1, -1, -1):
        name = fields[at][0]
        if name == b"connection":
            nominated = fields[at][1] + b"," + nominated if nominated else fields[at][1]
            del fields[at]
        elif name == b"keep-alive" or (rare and name in _HOP_BY_HOP):
            del fields[at]
    headers.known &= ~_HOP_BY_HOP_BITS
    if nominated != b"keep-alive" and nominated != b"close":  # noqa: PLR1714  a tuple is searched more slowly
        for token in nominated.lower().split(b","):
            name = token.strip()
            if name and name not in (b"close", b"content-length", b"date", b"server"):
                headers.remove(name)
