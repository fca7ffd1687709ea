"""What a route says about requests for another protocol on their connection: `upgrade_configs`."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.values import bool_or

CONNECT: Final = b"connect"  # in place of a protocol, for requests with this method


class ConnectConfig:
    """`connect_config`: CONNECT ends here, and its payload goes upstream as it is."""

    def __init__(self, allow_post: bool, proxy_protocol: int) -> None:
        self.allow_post = allow_post  # the body of a POST too
        self.proxy_protocol = proxy_protocol  # version of the header that goes first; 0: none


class RouteUpgrades:
    """Which protocols (in lower case) the route allows and forbids; about others the connection manager decides."""

    def __init__(self) -> None:
        self.allowed: dict[bytes, bool] = {}
        self.connect: ConnectConfig | None = None

    def connects(self, method: bytes | None) -> ConnectConfig | None:
        """How a request with this method is passed on as plain bytes; None when it is not."""
        connect = self.connect
        if connect is not None and (method == b"CONNECT" or (connect.allow_post and method == b"POST")):
            return connect
        return None


def build_upgrades(message: Any, path: str, errors: ConfigErrors) -> RouteUpgrades | None:
    """Of a RouteAction; None when it says nothing."""
    if not message.upgrade_configs:
        return None
    upgrades = RouteUpgrades()
    for index, entry in enumerate(message.upgrade_configs):
        where = item(path, "upgrade_configs", index)
        protocol = entry.upgrade_type.lower().encode()
        if protocol in upgrades.allowed:
            errors.add(child(where, "upgrade_type"), f"the upgrade {entry.upgrade_type!r} is there twice")
        upgrades.allowed[protocol] = bool_or(entry, "enabled", True)
        if entry.HasField("connect_config"):
            if protocol != CONNECT:
                errors.add(child(where, "connect_config"), "is for the upgrade_type CONNECT only")
            upgrades.connect = _connect_config(entry.connect_config, child(where, "connect_config"), errors)
    return upgrades


def _connect_config(message: Any, path: str, errors: ConfigErrors) -> ConnectConfig:
    version = 0
    if message.HasField("proxy_protocol_config"):
        config = message.proxy_protocol_config
        version = config.version + 1
        for field in ("pass_through_tlvs", "added_tlvs"):
            if any(descriptor.name == field for descriptor, _ in config.ListFields()):
                errors.add(child(child(path, "proxy_protocol_config"), field), "is not supported for CONNECT")
    return ConnectConfig(message.allow_post, version)
