"""TLVs of a PROXY protocol header that configuration adds."""

from __future__ import annotations

from typing import Any

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.net.proxy_protocol import Tlv


def build_tlvs(messages: Any, path: str, field: str, errors: ConfigErrors) -> list[Tlv]:
    """Of the TlvEntry messages in `field`; errors are added below `path`."""
    made: list[Tlv] = []
    for index, entry in enumerate(messages):
        where = item(path, field, index)
        if entry.type > 255:
            errors.add(child(where, "type"), "must not exceed 255")
        elif not entry.value:
            errors.add(child(where, "value"), "is required")
        else:
            made.append((entry.type, entry.value))
    return made
