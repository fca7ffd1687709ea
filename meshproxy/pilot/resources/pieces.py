"""What was made before is good for as long as all that it was made from is the same."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Pieces:
    """Those of one scope for one mesh. They are taken over from the mesh before where they are still good; what nobody
    asks for is left behind."""

    def __init__(self, before: Pieces | None = None) -> None:
        self._before = before._made if before is not None else {}
        self._made: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}

    def keep(self, key: Hashable, inputs: tuple[Any, ...], make: Callable[[], T]) -> T:
        """The piece of that name, made from `inputs`."""
        there = self._before.get(key)
        if there is None or there[0] != inputs:
            there = (inputs, make())
        self._made[key] = there
        made: T = there[1]
        return made

    def finish(self) -> None:
        """All is made: forget what was left behind."""
        self._before = {}


class Same:
    """Equal to itself alone: for what would be dear to compare, and is kept where it has not changed."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)
