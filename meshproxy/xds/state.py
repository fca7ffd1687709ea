"""What the client knows of one type on one source: who is asked for, and what it has. Without any I/O.

`SotwState` and `DeltaState` add how that is said: they are told when a stream begins, what comes on it and what became
of that, and say which request is due.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.rpc.status_pb2 import Status

from meshproxy.config.subscription import VIRTUAL_HOST_TYPE
from meshproxy.xds.decode import Decoder
from meshproxy.xds.resources import WHOLE_TYPES, WILDCARD, Rejection, ResourceUpdate

_INVALID_ARGUMENT: Final = 3
_NOT_FOUND: Final = 5
# After a route configuration's name: all its virtual hosts, as the control plane likes to send them.
_MEMBERS: Final = "/*"
# As Envoy: no error_detail is longer. All resources should find room; what does not is counted.
_LONGEST_DETAIL: Final = 4096
_LONGEST_REASON: Final = 1024


class Change:
    """What a response brings to those who have asked for it."""

    def __init__(self, decoder: Decoder, nonce: str) -> None:
        self.version = decoder.version
        self.nonce = nonce
        self.updates: list[ResourceUpdate] = []
        self.removed: list[str] = []
        self.refreshed: list[tuple[str, int]] = []  # names that live on, and for how many milliseconds (0: for ever)
        self.rejections: list[Rejection] = decoder.rejections
        self.only_heartbeats = False  # there is nothing to apply


class TypeState:
    """The names that are asked for, and the resources that are held. A set: who asks several times counts himself."""

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.names: dict[str, None] = {}
        # The version of each resource that was taken; None for one of which every version was refused.
        self.held: dict[str, str | None] = {}

    # -- who is asked for

    def subscribe(self, name: str) -> None:
        if name not in self.names:
            self.names[name] = None
            self.on_subscribe(name)

    def unsubscribe(self, name: str) -> None:
        if name not in self.names:
            return
        del self.names[name]
        if name == WILDCARD or not self.is_written(name):
            self.held = {each: version for each, version in self.held.items() if self.wants(each)}
        elif WILDCARD not in self.names:
            self.held.pop(name, None)
        self.on_unsubscribe(name)

    def wants(self, name: str, aliases: Iterable[str] = ()) -> bool:
        """Whether somebody asks for the resource. `routes/*` asks for all virtual hosts of a route configuration."""
        names = self.names
        if name in names or WILDCARD in names:
            return True
        if self.type_url == VIRTUAL_HOST_TYPE:
            return name.rpartition("/")[0] + _MEMBERS in names or any(alias in names for alias in aliases)
        return False

    def is_written(self, name: str) -> bool:
        """Whether requests have the name. To ask for all virtual hosts of a route configuration is to say nothing: a
        first request without names, as Envoy's."""
        return not (self.type_url == VIRTUAL_HOST_TYPE and name.endswith(_MEMBERS))

    def restore(self, versions: Mapping[str, str]) -> None:
        """These are held already, from the time before."""
        self.held.update(versions)

    @property
    def legacy_wildcard(self) -> bool:
        """An empty list of names says it: all there is of a type that knows this from of old."""
        return self.type_url in WHOLE_TYPES and len(self.names) == 1 and WILDCARD in self.names

    # -- what comes

    def decoder(self, response: Any) -> Decoder:
        """Reads a response of the type."""
        raise NotImplementedError

    def change(self, decoder: Decoder, response: Any) -> Change:
        """What the response brings, now that it is read."""
        change = Change(decoder, response.nonce)
        change.updates = [each for each in decoder.updates.values() if self.wants(each.name, each.aliases)]
        change.refreshed = [(each.name, each.ttl_ms) for each in change.updates]
        change.removed = self.removed(decoder, response)
        missing = self._take_heartbeats(decoder, change) + errors_of_absence(response)
        change.removed += [name for name in dict.fromkeys(missing) if self._may_go(name, change.removed)]
        beats_alone = bool(decoder.heartbeats) and not decoder.updates
        change.only_heartbeats = beats_alone and not change.removed and not change.rejections
        return change

    def _take_heartbeats(self, decoder: Decoder, change: Change) -> list[str]:
        """A resource that is not in its wrapping lives on where it is held. So it is also said that a virtual host that
        was asked for does not exist: the names of those are returned."""
        missing = []
        for beat in decoder.heartbeats:
            if beat.name in self.held and beat.version in ("", self.held[beat.name]):
                change.refreshed.append((beat.name, beat.ttl_ms))
            elif self.type_url == VIRTUAL_HOST_TYPE:
                missing.append(beat.name)
            elif self.wants(beat.name):
                change.rejections.append(Rejection(beat.name, f"resources[{beat.index}]: has no resource in it"))
        return missing

    def _may_go(self, name: str, removed: list[str]) -> bool:
        return name not in removed and (name in self.held or name in self.names)

    def removed(self, decoder: Decoder, response: Any) -> list[str]:
        """The names that are gone, of those that are held or asked for."""
        raise NotImplementedError

    def conclude(self, change: Change, rejections: list[Rejection], *, same_stream: bool) -> None:
        """It was applied, but for what is refused now (besides what was before): a refused name is not gone. With
        `same_stream` the server is to be told."""
        refused = {each.name for each in rejections}
        for update in change.updates:
            if not self.wants(update.name, update.aliases):
                continue  # nobody asks any more
            if update.name in refused:
                self.held.setdefault(update.name, None)
            else:
                self.held[update.name] = update.version
        for name in change.removed:
            if name not in refused:
                self.held.pop(name, None)
        if same_stream:
            self.answer(change, change.rejections + rejections)

    def expire(self, names: Iterable[str]) -> None:
        """Their time is over."""
        for name in names:
            self.held.pop(name, None)

    # -- what is said

    def on_subscribe(self, name: str) -> None:
        raise NotImplementedError

    def on_unsubscribe(self, name: str) -> None:
        raise NotImplementedError

    def begin_stream(self) -> None:
        """A new stream, whose server knows nothing of us."""
        raise NotImplementedError

    def begin_response(self) -> None:
        """A response of the stream is taken up; `answer` follows, if the stream lasts."""

    def answer(self, change: Change, rejections: list[Rejection]) -> None:
        """Acknowledge it, or say what was wrong."""
        raise NotImplementedError

    @property
    def unanswered(self) -> int:
        """How many responses were taken whose answers are not sent yet."""
        raise NotImplementedError

    @property
    def due(self) -> bool:
        """There is something to say."""
        raise NotImplementedError

    def request(self) -> Any:
        """What is to be said now; there is something."""
        raise NotImplementedError


def errors_of_absence(response: Any) -> list[str]:
    """The names that a server knows it does not have: NOT_FOUND in `resource_errors`. Its other errors may pass."""
    return [each.resource_name.name for each in response.resource_errors if each.error_detail.code == _NOT_FOUND]


def error_detail(rejections: list[Rejection]) -> Status:
    """Why a response is not acknowledged: a line for each resource."""
    lines: list[str] = []
    left = _LONGEST_DETAIL - len("\n… and 1000000 more")
    for each in rejections:
        line = str(each)[:_LONGEST_REASON].encode("utf-8", "replace")
        left -= len(line) + 1
        if left < 0:
            lines.append(f"… and {len(rejections) - len(lines)} more")
            break
        lines.append(line.decode())
    return Status(code=_INVALID_ARGUMENT, message="\n".join(lines))
