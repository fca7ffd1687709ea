"""Where resources come from, as the client sees it: a control plane, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """How it stands with a source, for whoever looks."""

    target: str
    connected: bool
    identifier: str = ""  # what the control plane calls itself
    failure: str = ""  # why it is not connected, or why what it said last was not taken


class Source:
    """One source. `subscribe` and `unsubscribe` take each name once."""

    def start(self) -> None:
        """Begin to ask."""
        raise NotImplementedError

    def subscribe(self, type_url: str, name: str) -> None:
        """Ask for a resource from now on."""
        raise NotImplementedError

    def unsubscribe(self, type_url: str, name: str) -> None:
        """Ask for it no longer."""
        raise NotImplementedError

    def restore(self, type_url: str, versions: Mapping[str, str]) -> None:
        """These versions are held already: what the source has no more is to be removed."""
        raise NotImplementedError

    @property
    def idle(self) -> bool:
        """Nobody asks for anything."""
        raise NotImplementedError

    @property
    def status(self) -> SourceStatus:
        raise NotImplementedError

    async def close(self) -> None:
        """End what is under way. A second call does nothing."""
        raise NotImplementedError
