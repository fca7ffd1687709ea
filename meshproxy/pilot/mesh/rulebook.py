"""The documents in force: each new set is compared with what was before, and a document that is refused keeps its last
good version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from meshproxy.pilot.documents.closed import closed_spec
from meshproxy.pilot.documents.document import Document, Identity, Parsed, RawDocument, located, parse_text
from meshproxy.pilot.documents.problems import Problem
from meshproxy.pilot.mesh.model import Mesh, MeshConfig, empty_mesh
from meshproxy.pilot.sources.source import RuleSet

Check: TypeAlias = Callable[[Document], list[str]]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A document (or a whole file) that is not accepted. `keeps`: an earlier version of it stays in force. `denies`:
    it says who may do what, and nobody may until it is mended."""

    source: str
    identity: Identity | None
    problems: tuple[Problem, ...]
    keeps: bool
    denies: bool = False


class RuleBook:
    """`mesh` is what is in force, `rejections` and `warnings` what is wrong with the last set. `check` says what else
    may be wrong with a document that is fine as such."""

    def __init__(self, config: MeshConfig | None = None, check: Check | None = None) -> None:
        self.mesh: Mesh = empty_mesh(config or MeshConfig())
        self.rejections: tuple[Rejection, ...] = ()
        self.warnings: tuple[Problem, ...] = ()
        self.revision = ""
        self._check = check
        self._parsed: dict[str, Parsed] = {}  # by text: what did not change is not read again
        self._sources: dict[Identity, str] = {}  # of what is in force
        self._closed: frozenset[Identity] = frozenset()  # what stands there in place of refused documents

    def update(self, rules: RuleSet) -> Mesh:
        """Take a new set of documents; returns the mesh, the same object when nothing changed."""
        for _ in self.steps(rules):
            pass
        return self.mesh

    def steps(self, rules: RuleSet) -> Iterator[None]:
        """The same bit by bit, with other work in between, a step for each document that is new; the set takes effect
        with the last one."""
        reading = _Reading(self._parsed, self._check)
        for raw in rules.documents:
            if reading.read(raw):
                yield
        kept = self._kept(reading, {problem.source for problem in rules.unreadable})
        unreadable = [Rejection(problem.source, None, (problem,), bool(kept)) for problem in rules.unreadable]
        closed = reading.closed(kept)
        self.mesh = self._changed(kept | reading.accepted | closed)
        self._closed = frozenset(closed) | (self._closed & kept.keys())
        self.rejections = (*unreadable, *(reading.rejection(each, kept, closed) for each in reading.refused))
        self.warnings = tuple(reading.warnings)
        self.revision = rules.revision
        self._parsed = reading.parsed
        sources = {identity: raw.source for identity, raw in reading.claimed.items()}
        self._sources = {identity: self._sources[identity] for identity in kept} | sources

    def _kept(self, reading: _Reading, unreadable: set[str]) -> dict[Identity, Document]:
        """What stays in force though it was not read: a refused document's last good version, and all that stood in a
        file that is unreadable, or of which some document does not even say what it is."""
        unknown = reading.unknown | unreadable
        return {
            identity: document
            for identity, document in self.mesh.documents.items()
            if identity not in reading.accepted
            and (identity not in self._closed if identity in reading.claimed else self._sources[identity] in unknown)
        }

    def _changed(self, in_force: dict[Identity, Document]) -> Mesh:
        there = self.mesh.documents
        known = there.get
        changes: list[tuple[Document | None, Document | None]] = [
            (old, document)
            for identity, document in in_force.items()
            if (old := known(identity)) is not document and old != document
        ]
        changes += [(document, None) for identity, document in there.items() if identity not in in_force]
        return self.mesh.updated(changes) if changes else self.mesh


class _Reading:
    """What one set of documents comes to, before it is compared with what is in force."""

    def __init__(self, before: dict[str, Parsed], check: Check | None) -> None:
        self._before = before
        self._check = check
        self.parsed: dict[str, Parsed] = {}
        self.accepted: dict[Identity, Document] = {}
        self.claimed: dict[Identity, RawDocument] = {}  # by the first that says it is that, accepted or not
        self.unknown: set[str] = set()  # sources with a document that does not say what it is
        self.refused: list[tuple[RawDocument, Parsed]] = []
        self.warnings: list[Problem] = []

    def read(self, raw: RawDocument) -> bool:
        """Whether it was a text that was not known before."""
        text = raw.text
        parsed = self._before.get(text)
        is_new = parsed is None
        if parsed is None:
            parsed = self.parsed.get(text) or self._checked(parse_text(text))
        self.parsed[text] = parsed
        document, identity = parsed.document, parsed.identity
        if document is None or identity is None or identity in self.claimed or parsed.warnings:
            self._read_slowly(raw, located(parsed, raw))
        else:
            self.claimed[identity] = raw
            self.accepted[identity] = document
        return is_new

    def _checked(self, parsed: Parsed) -> Parsed:
        reasons = self._reasons_against(parsed.document)
        if not reasons:
            return parsed
        return replace(parsed, document=None, errors=tuple(Problem("", 1, "spec", reason) for reason in reasons))

    def _reasons_against(self, document: Document | None) -> list[str]:
        """A value that no message can hold is the document's fault as well."""
        if document is None or self._check is None:
            return []
        try:
            return self._check(document)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one document, the others are in force
            return [f"cannot be made into resources: {error}"]

    def _read_slowly(self, raw: RawDocument, parsed: Parsed) -> None:
        """One that is not simply fine."""
        identity = parsed.identity
        if identity is None:
            self.unknown.add(raw.source)
        elif identity in self.claimed:
            parsed = self._duplicate(identity, raw)
        else:
            self.claimed[identity] = raw
        if parsed.document is not None and identity is not None:
            self.accepted[identity] = parsed.document
            self.warnings += parsed.warnings
        else:
            self.refused.append((raw, parsed))

    def _duplicate(self, identity: Identity, raw: RawDocument) -> Parsed:
        first = self.claimed[identity]
        reason = f"{identity} stands in {first.source}:{first.line} already"
        return Parsed(identity, None, (Problem(raw.source, raw.line, "metadata.name", reason),))

    def closed(self, kept: dict[Identity, Document]) -> dict[Identity, Document]:
        """What stands in force in place of refused documents that guard something, where no good version does."""
        found: dict[Identity, Document] = {}
        for raw, parsed in self.refused:
            identity = parsed.identity
            if identity is not None and identity not in kept and self.claimed.get(identity) is raw:
                spec = closed_spec(identity.kind, raw.text)
                if spec is not None:
                    found[identity] = Document(identity, spec)
        return found

    def rejection(
        self, refused: tuple[RawDocument, Parsed], kept: dict[Identity, Document], closed: dict[Identity, Document]
    ) -> Rejection:
        raw, parsed = refused
        if parsed.identity in closed and self.claimed.get(parsed.identity) is raw:
            return Rejection(raw.source, parsed.identity, parsed.errors, keeps=False, denies=True)
        keeps = parsed.identity in kept and self.claimed.get(parsed.identity) is raw if parsed.identity else bool(kept)
        return Rejection(raw.source, parsed.identity, parsed.errors, keeps)
