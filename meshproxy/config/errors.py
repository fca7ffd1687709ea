"""All errors of a configuration at once, each with its path."""

from __future__ import annotations

import re
from typing import Final

from meshproxy.errors import ConfigError

_STEPS: Final = re.compile(r"\[(\d+)\]|[^.\[\]]+|\[")
_REQUIRED: Final = "value is required"


class ConfigErrors:
    """What `build_*` functions collect into. `warnings` are told to the operator and stop nothing."""

    def __init__(self) -> None:
        self.items: list[ConfigError] = []
        self.warnings: list[ConfigError] = []

    def add(self, path: str, reason: str) -> None:
        self.items.append(ConfigError(path, reason))

    def warn(self, path: str, reason: str) -> None:
        self.warnings.append(ConfigError(path, reason))

    def absorb(self, later: ConfigErrors) -> None:
        """Add what a later look at the same message found, but not what follows from an error that is known already: at
        or below the path of one, or a field that is missing beside one (it has another name, or could not be read)."""
        known = {error.path.removesuffix(".@type") for error in self.items}
        beside = {parent(path) for path in known}
        for error in later.items:
            if error.reason.startswith(_REQUIRED) and parent(error.path) in beside:
                continue
            if not any(path in known for path in _upwards(error.path)):
                self.items.append(error)
        self.warnings += later.warnings

    def sorted(self) -> list[ConfigError]:
        """Each error once, by its path: elements in the order of their lists."""
        once = {(error.path, error.reason): error for error in self.items}
        return sorted(once.values(), key=lambda error: (_order(error.path), error.reason))

    def __bool__(self) -> bool:
        """True when there is an error."""
        return bool(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.sorted())


def child(path: str, name: str) -> str:
    """The path of a field: `a.b`."""
    return f"{path}.{name}" if path else name


def item(path: str, name: str, index: int) -> str:
    """The path of an element of a repeated field: `a.b[3]`."""
    return f"{child(path, name)}[{index}]"


def parent(path: str) -> str:
    """The path without its last step: of `a.b[3].c` it is `a.b[3]`, of that `a.b`."""
    return path[: max(path.rfind("."), path.rfind("["), 0)]


def _upwards(path: str) -> list[str]:
    """A path and those of all that it lies in, without the whole."""
    found = []
    while path:
        found.append(path)
        path = parent(path)
    return found


def _order(path: str) -> list[tuple[int, str]]:
    return [(int(step[1]), "") if step[1] else (-1, step[0]) for step in _STEPS.finditer(path)]
