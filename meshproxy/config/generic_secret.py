"""Generic secrets: bytes that filters need, such as a token to send on, or the key of a signature."""

from __future__ import annotations

from typing import Any

from meshproxy.config.tls_material import MaterialBuilder


class GenericSecret:
    """`value` is its `secret`, b"" where it has none; `values` are its `secrets`, by their names."""

    def __init__(self, value: bytes, values: dict[str, bytes]) -> None:
        self.value = value
        self.values = values


def read_generic_secret(builder: MaterialBuilder, message: Any, field: str) -> GenericSecret:
    """From the message at `field`. One that holds nothing, or something empty, is an error."""
    value = builder.load(message.secret, f"{field}.secret") if message.HasField("secret") else b""
    values = {key: builder.load(message.secrets[key], f"{field}.secrets[{key}]") for key in sorted(message.secrets)}
    if not message.HasField("secret") and not values:
        builder.error(field, "is empty")
    return GenericSecret(value, values)
