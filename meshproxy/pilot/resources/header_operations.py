"""What a rule does with headers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption

if TYPE_CHECKING:
    from meshproxy.pilot.documents.virtual_service import HeaderOperations, Headers

_HOST = (":authority", "host")


def set_headers(message: Any, headers: Headers | None) -> None:
    """On a Route, a ClusterWeight or a VirtualHost: they have the four fields alike."""
    if headers is None:
        return
    if headers.request is not None:
        message.request_headers_to_add.extend(_additions(headers.request))
        message.request_headers_to_remove.extend(headers.request.remove)
    if headers.response is not None:
        message.response_headers_to_add.extend(_additions(headers.response))
        message.response_headers_to_remove.extend(headers.response.remove)


def host_of(headers: Headers | None) -> str:
    """The host that the rule sets: in Envoy's API a rewrite, not a header. Empty where it sets none."""
    if headers is None or headers.request is None:
        return ""
    pairs = [*headers.request.add, *headers.request.set]
    return next((value for name, value in reversed(pairs) if name.lower() in _HOST), "")


def _additions(operations: HeaderOperations) -> list[HeaderValueOption]:
    return [
        *_options(operations.add, HeaderValueOption.APPEND_IF_EXISTS_OR_ADD),
        *_options(operations.set, HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD),
    ]


def _options(pairs: Iterable[tuple[str, str]], action: int) -> list[HeaderValueOption]:
    return [
        HeaderValueOption(header=HeaderValue(key=name, value=value), append_action=action, keep_empty_value=not value)
        for name, value in pairs
        if name.lower() not in _HOST
    ]
