"""From the bootstrap's Admin message to what the admin interface is started with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.string_matcher import build_string_matcher
from meshproxy.config.values import socket_options
from meshproxy.http.build import build_access_logs
from meshproxy.net.address import Address, is_ip
from meshproxy.net.connect import SocketOption
from meshproxy.observe.access_log import AccessLog
from meshproxy.server.listener_config import to_address


class AdminConfig:
    """The admin, built. `allow` says of a target (path and query) whether it is served; None: all are."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.mode: int = 0  # of a Unix socket's file
        self.socket_options: tuple[SocketOption, ...] = ()
        self.access_logs: list[AccessLog] = []
        self.allow: Callable[[str], bool] | None = None


def build_admin(message: Any, path: str, context: BuildContext) -> AdminConfig | None:
    """All errors go to the context, with their paths; None when there were any."""
    before = len(context.errors)
    config = AdminConfig(to_address(message.address))
    if not config.address.path and not is_ip(config.address.ip):
        where = f"{path}.address.socket_address.address"
        context.errors.add(where, f"malformed IP address: {config.address.ip!r}")
    config.mode = message.address.pipe.mode
    config.socket_options = socket_options(message)
    config.access_logs = build_access_logs(message.access_log, child(path, "access_log"), context)
    config.allow = _build_allow(message, path, context)
    return config if len(context.errors) == before else None


def _build_allow(message: Any, path: str, context: BuildContext) -> Callable[[str], bool] | None:
    if not message.allow_paths:
        return None
    matchers = [
        build_string_matcher(matcher, item(path, "allow_paths", index), context.errors)
        for index, matcher in enumerate(message.allow_paths)
    ]

    def allow(target: str) -> bool:
        text = target.encode("utf-8", "surrogateescape")
        return any(matcher is not None and matcher.match(text) for matcher in matchers)

    return allow
