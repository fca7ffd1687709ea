"""All errors of a configuration at once, each with its path."""

from __future__ import annotations

from meshproxy.errors import ConfigError


class ConfigErrors:
    """What `build_*` functions collect into. `warnings` are told to the operator and stop nothing."""

    def __init__(self) -> None:
        self.items: list[ConfigError] = []
        self.warnings: list[ConfigError] = []

    def add(self, path: str, reason: str) -> None:
        self.items.append(ConfigError(path, reason))

    def warn(self, path: str, reason: str) -> None:
        self.warnings.append(ConfigError(path, reason))

    def __bool__(self) -> bool:
        """True when there is an error."""
        return bool(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.items)


def child(path: str, name: str) -> str:
    """The path of a field: `a.b`."""
    return f"{path}.{name}" if path else name


def item(path: str, name: str, index: int) -> str:
    """The path of an element of a repeated field: `a.b[3]`."""
    return f"{child(path, name)}[{index}]"
