"""Which resources of a type a client asks for. Equal ones are one object, so that a thousand clients cost one set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from weakref import WeakValueDictionary

from meshproxy.pilot.server.kinds import WILDCARD


class Wanted:
    """Names, and whether everything else is asked for too. Made by `wanted`, compared by identity."""

    __slots__ = ("__weakref__", "names", "wildcard")

    def __init__(self, names: frozenset[str], wildcard: bool) -> None:
        self.names = names
        self.wildcard = wildcard

    def __bool__(self) -> bool:
        return self.wildcard or bool(self.names)

    def covers(self, name: str) -> bool:
        """Whether the client wants to hear of this one."""
        return self.wildcard or name in self.names

    def gains_over(self, before: Wanted) -> bool:
        """Whether anything is asked for that was not before."""
        return (self.wildcard and not before.wildcard) or not self.names <= before.names


_interned: WeakValueDictionary[tuple[frozenset[str], bool], Wanted] = WeakValueDictionary()


def wanted(names: Iterable[str] = (), wildcard: bool = False) -> Wanted:
    """The object for these. The name `*` among them means the wildcard."""
    chosen = frozenset(names)
    if WILDCARD in chosen:
        chosen, wildcard = chosen - {WILDCARD}, True
    key = (chosen, wildcard)
    found = _interned.get(key)
    if found is None:
        found = _interned[key] = Wanted(chosen, wildcard)
    return found


NOTHING: Final = wanted()
EVERYTHING: Final = wanted(wildcard=True)
