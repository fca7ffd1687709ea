"""Durations of a configuration as whole milliseconds."""

from __future__ import annotations

from typing import Any

from meshproxy.config.values import milliseconds


def optional_ms(message: Any, field: str) -> int | None:
    """The Duration in `field` in milliseconds, rounded down as Envoy does; None when it is not set."""
    return milliseconds(getattr(message, field)) if message.HasField(field) else None
