"""A snapshot as it is served: what each client that has this much is sent next, worked out once for all of them.

Clients of one scope that connected alike hold the same resources, the same *object*: then the next response is the same
one too, and so is what they hold after it. So all of it is remembered by identity, and the bytes are made once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from meshproxy.pilot.server import responses
from meshproxy.pilot.server.kinds import FULL_STATE
from meshproxy.pilot.server.wanted import Wanted
from meshproxy.pilot.snapshot import Resource, Snapshot

Held = Mapping[str, Resource]
T = TypeVar("T")

NONE_HELD: Final[Held] = {}
# What is remembered of one view at most: it only costs time to work it out again.
_MAX_REMEMBERED: Final = 512
_MAX_REMEMBERED_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """What a client should have: the resources that it asked for and that there are, and the names of no resource."""

    resources: Held
    absent: tuple[str, ...]
    version: str


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The next response. `body` is without its nonce, and empty where there is nothing to say."""

    body: bytes
    version: str
    held: Held  # what the client has then; of a name that it was told to be absent, a `Resource` without a version
    sent: tuple[str, ...]
    gone: tuple[str, ...]  # what it has and should not have: removed by this response, or kept for now


_Targets = WeakKeyDictionary[Wanted, Target]


class View:
    """The snapshot of a scope, and what was worked out from it. `changed_at`: when what it comes from changed, on the
    monotonic clock."""

    def __init__(
        self, snapshot: Snapshot, identifier: str, changed_at: float = 0.0, before: View | None = None
    ) -> None:
        self.snapshot = snapshot
        self.changed_at = changed_at
        self._identifier = identifier
        self._targets: dict[str, _Targets] = {}
        self._old: dict[str, _Targets] = {} if before is None else before._targets
        self._remembered: dict[Any, tuple[Any, Any]] = {}  # with what it was worked out from, whose id is in the key
        self._bytes = 0

    def close(self) -> None:
        """A newer one takes over: nothing of this one is asked for any more."""
        self._old = {}
        self._remembered = {}
        self._bytes = 0

    def target(self, type_url: str, wanted: Wanted) -> Target:
        """What a client that wants these should have."""
        targets = self._targets.get(type_url)
        if targets is None:
            targets = self._targets[type_url] = WeakKeyDictionary()
        found = targets.get(wanted)
        if found is None:
            found = targets[wanted] = self._new_target(type_url, wanted)
        return found

    def _new_target(self, type_url: str, wanted: Wanted) -> Target:
        present = self.snapshot.types.get(type_url, NONE_HELD)
        absent = tuple(sorted(name for name in wanted.names if name not in present))
        chosen = present if wanted.wildcard else {name: present[name] for name in wanted.names if name in present}
        before = self._old[type_url].get(wanted) if type_url in self._old else None
        if before is not None and before.absent == absent and _same(before.resources, chosen):
            return before
        return Target(chosen, absent, version_of(chosen))

    def plan(self, type_url: str, held: Held, target: Target, *, delta: bool, keep: bool, answer: bool) -> Plan:
        """What to send to whom has `held`. `keep`: nothing is taken away yet. `answer`: even if there is no news."""
        if held is target.resources and not target.absent and not answer:
            return Plan(b"", target.version, held, (), ())
        key = (type_url, id(held), id(target), delta, keep, answer)
        return self._remember(key, (held, target), lambda: self._plan(type_url, held, target, delta, keep, answer))

    def without(self, held: Held, names: tuple[str, ...]) -> Held:
        """What is held, less these."""
        if held.keys().isdisjoint(names):
            return held
        return self._remember((id(held), id(names)), (held, names), lambda: _less(held, frozenset(names)))

    def restricted(self, held: Held, wanted: Wanted) -> Held:
        """What is held, less what is not wanted."""
        if wanted.wildcard or held.keys() <= wanted.names:
            return held
        return self._remember((id(held), wanted), (held, wanted), lambda: _only(held, wanted.names))

    def _remember(self, key: Any, source: Any, work_out: Callable[[], T]) -> T:
        found = self._remembered.get(key)
        if found is None:
            found = self._remembered[key] = (source, work_out())
            self._bytes += _weight(found[1])
            while len(self._remembered) > _MAX_REMEMBERED or self._bytes > _MAX_REMEMBERED_BYTES:
                _, oldest = self._remembered.pop(next(iter(self._remembered)))
                self._bytes -= _weight(oldest)
        result: T = found[1]
        return result

    def _plan(self, type_url: str, held: Held, target: Target, delta: bool, keep: bool, answer: bool) -> Plan:
        changed = [resource for name, resource in target.resources.items() if _is_news(resource, held.get(name))]
        gone = tuple(name for name, resource in held.items() if resource.version and name not in target.resources)
        if delta:
            return self._delta(type_url, held, target, changed, gone, keep, answer)
        return self._state_of_the_world(type_url, held, target, changed, gone, keep, answer)

    def _state_of_the_world(
        self,
        type_url: str,
        held: Held,
        target: Target,
        changed: list[Resource],
        gone: tuple[str, ...],
        keep: bool,
        answer: bool,
    ) -> Plan:
        if type_url not in FULL_STATE:
            return self._some_of_the_world(type_url, held, target, changed, answer)
        after = _with_kept(target.resources, held, gone) if keep and gone else target.resources
        version = target.version if after is target.resources else version_of(after)
        body = b""
        if changed or answer or (gone and not keep):
            body = responses.state_of_the_world(type_url, version, after.values(), (), self._identifier)
        elif after is not target.resources:
            after = held
        return Plan(body, version, after, _names(changed), gone)

    def _some_of_the_world(
        self, type_url: str, held: Held, target: Target, changed: list[Resource], answer: bool
    ) -> Plan:
        """Of these types a response need not have all there is, and says in `resource_errors` what there is not: nobody
        waits for it. What a client has is not taken away from it like this."""
        missing = [name for name in target.absent if name not in held]
        if not (changed or missing or answer):
            return Plan(b"", target.version, held if target.absent else target.resources, (), ())
        after = target.resources
        if target.absent:
            after = {**after, **{name: Resource(name, "", b"") for name in target.absent}}
        body = responses.state_of_the_world(type_url, target.version, changed, missing, self._identifier)
        return Plan(body, target.version, after, _names(changed), ())

    def _delta(
        self,
        type_url: str,
        held: Held,
        target: Target,
        changed: list[Resource],
        gone: tuple[str, ...],
        keep: bool,
        answer: bool,
    ) -> Plan:
        untold = [name for name in target.absent if name not in held]
        removed = untold if keep else [*gone, *untold]
        after = target.resources
        if target.absent or (keep and gone):
            told = [name for name in target.absent if not (keep and name in gone)]
            after = {**target.resources, **{name: Resource(name, "", b"") for name in told}}
            if keep:
                after.update((name, held[name]) for name in gone)
        body = b""
        if changed or removed or answer:
            body = responses.delta(type_url, target.version, changed, removed, self._identifier)
        elif after is not target.resources:
            after = held
        return Plan(body, target.version, after, _names(changed), gone)


def version_of(resources: Held) -> str:
    """A hash of what there is: the same wherever it is worked out."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update("".join(sorted(f"{name}\0{resource.version}\n" for name, resource in resources.items())).encode())
    return digest.hexdigest()


def _is_news(resource: Resource, held: Resource | None) -> bool:
    return held is None or (held is not resource and held.version != resource.version)


def _names(resources: Iterable[Resource]) -> tuple[str, ...]:
    return tuple(resource.name for resource in resources)


def _same(one: Held, other: Held) -> bool:
    return len(one) == len(other) and all(other.get(name) is resource for name, resource in one.items())


def _less(held: Held, names: frozenset[str]) -> Held:
    return {name: resource for name, resource in held.items() if name not in names}


def _only(held: Held, names: frozenset[str]) -> Held:
    return {name: resource for name, resource in held.items() if name in names}


def _with_kept(resources: Held, held: Held, gone: tuple[str, ...]) -> Held:
    return {**resources, **{name: held[name] for name in gone}}


def _weight(result: Any) -> int:
    return len(result.body) if isinstance(result, Plan) else 0
