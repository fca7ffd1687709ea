"""`meshproxy rules`: checks documents, and brings them to where pilots read them."""

from __future__ import annotations

import argparse
import asyncio
import difflib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from meshproxy.pilot.documents.document import Document, Identity, RawDocument, line_of, parse_document
from meshproxy.pilot.documents.kinds import KINDS, Kind
from meshproxy.pilot.documents.problems import Problem, path_text
from meshproxy.pilot.documents.writer import yaml_text
from meshproxy.pilot.mesh.lint import lint
from meshproxy.pilot.mesh.model import MeshConfig
from meshproxy.pilot.mesh.rulebook import RuleBook
from meshproxy.pilot.resources.trial import reasons_against
from meshproxy.pilot.sources.directory import DirectorySource
from meshproxy.pilot.sources.open import open_source
from meshproxy.pilot.sources.source import RuleSet, RuleSource, SourceError, Write

_SHORT: Final = {
    "vs": "VirtualService",
    "dr": "DestinationRule",
    "se": "ServiceEntry",
    "we": "WorkloadEntry",
    "gw": "Gateway",
    "svc": "Service",
}


def run_rules(options: argparse.Namespace) -> int:
    """Do what the verb says; the exit code."""
    verbs: dict[str, Callable[[argparse.Namespace], Any]] = {
        "validate": _validate,
        "apply": _apply,
        "diff": _diff,
        "get": _get,
        "delete": _delete,
    }
    try:
        return int(asyncio.run(verbs[options.verb](options)))
    except SourceError as error:
        print(f"meshproxy rules: {error}", file=sys.stderr)
        return 2


@dataclass(frozen=True, slots=True)
class _Stored:
    """A document with its text, as it is read or is to be stored."""

    document: Document
    raw: RawDocument


# -- the verbs


async def _validate(options: argparse.Namespace) -> int:
    there = await _read_source(options) if options.rules or options.etcd else RuleSet("", ())
    given = await _read_files(options) if options.filename else RuleSet("", ())
    if not options.filename and not options.rules and not options.etcd:
        raise SourceError("say what to check: -f PATH, --rules PATH or --etcd HOST:PORT")
    fine = _check(there, given, options.domain)
    if fine:
        count = len(there.documents) + len(given.documents)
        print(f"{count} document{'' if count == 1 else 's'}: fine")
    return 0 if fine else 1


async def _apply(options: argparse.Namespace) -> int:
    return await _with_source(options, _apply_to)


async def _apply_to(options: argparse.Namespace, source: RuleSource) -> int:
    there, given = await source.read(), await _read_files(options)
    if not _check(there, given, options.domain):
        return 1
    stored = _by_identity(there)
    writes: list[Write] = []
    for identity, new in _by_identity(given).items():
        old = stored.get(identity)
        difference = _difference(old, new)
        print(f"{identity}: {'created' if old is None else 'changed' if difference else 'unchanged'}")
        print(difference, end="")
        if difference:
            writes.append(Write(identity, new.raw.text, None if old is None else old.raw.text))
    if writes and not options.dry_run:
        await source.write(writes)
    if options.dry_run:
        print("nothing was written (--dry-run)")
    return 0


async def _diff(options: argparse.Namespace) -> int:
    return await _with_source(options, _diff_with)


async def _diff_with(options: argparse.Namespace, source: RuleSource) -> int:
    there, given = await source.read(), await _read_files(options)
    if not _check(there, given, options.domain):
        return 1
    stored = _by_identity(there)
    differences = [_difference(stored.get(identity), new) for identity, new in _by_identity(given).items()]
    print("".join(differences), end="")
    return 1 if any(differences) else 0


async def _get(options: argparse.Namespace) -> int:
    return await _with_source(options, _get_from)


async def _get_from(options: argparse.Namespace, source: RuleSource) -> int:
    kind = _kind(options.kind) if options.kind else None
    found = [
        stored.document
        for identity, stored in sorted(_by_identity(await source.read()).items())
        if (kind is None or identity.kind == kind.name)
        and (not options.name or identity.name == options.name)
        and (not options.namespace or identity.namespace == options.namespace)
    ]
    print(_shown(found, options.output), end="")
    if options.name and not found:
        print(f"meshproxy rules: there is no {options.kind} {options.name}", file=sys.stderr)
        return 1
    return 0


async def _delete(options: argparse.Namespace) -> int:
    return await _with_source(options, _delete_from)


async def _delete_from(options: argparse.Namespace, source: RuleSource) -> int:
    if options.filename:
        wanted = list(_by_identity(await _read_files(options)))
    elif options.kind and options.name:
        wanted = [Identity(_kind(options.kind).name, options.namespace or "default", options.name)]
    else:
        raise SourceError("say what to delete: KIND NAME, or -f PATH")
    stored = _by_identity(await source.read())
    writes = [Write(identity, None, stored[identity].raw.text) for identity in wanted if identity in stored]
    for identity in wanted:
        print(f"{identity}: {'deleted' if identity in stored else 'is not there'}")
    if writes and not options.dry_run:
        await source.write(writes)
    if options.dry_run:
        print("nothing was written (--dry-run)")
    return 0 if len(writes) == len(wanted) else 1


# -- reading


async def _with_source(options: argparse.Namespace, verb: Callable[[argparse.Namespace, RuleSource], Any]) -> int:
    source = open_source(options)
    try:
        return int(await verb(options, source))
    finally:
        await source.close()


async def _read_source(options: argparse.Namespace) -> RuleSet:
    source = open_source(options)
    try:
        return await source.read()
    finally:
        await source.close()


async def _read_files(options: argparse.Namespace) -> RuleSet:
    if not options.filename:
        raise SourceError("say which documents: -f PATH")
    parts = [await DirectorySource(path).read() for path in options.filename]
    documents = tuple(raw for part in parts for raw in part.documents)
    return RuleSet("", documents, tuple(problem for part in parts for problem in part.unreadable))


def _by_identity(rules: RuleSet) -> dict[Identity, _Stored]:
    """Those that are fine; of several the first."""
    found: dict[Identity, _Stored] = {}
    for raw in rules.documents:
        document = parse_document(raw).document
        if document is not None:
            found.setdefault(document.identity, _Stored(document, raw))
    return found


def _check(there: RuleSet, given: RuleSet, domain: str) -> bool:
    """Whether all given documents are fine, and together with those that are there (which they take the place of);
    tells of what is not."""
    given_identities = {parse_document(raw).identity for raw in given.documents}
    stay = tuple(raw for raw in there.documents if parse_document(raw).identity not in given_identities)
    book = RuleBook(MeshConfig(domain), reasons_against)
    book.update(RuleSet("", given.documents + stay, given.unreadable + there.unreadable))
    problems = [problem for rejection in book.rejections for problem in rejection.problems]
    doubts = [*book.warnings, *_doubts(book, given.documents + stay)]
    for problem in sorted(problems, key=_place):
        print(problem, file=sys.stderr)
    for problem in sorted(doubts, key=_place):
        print(f"{problem} (warning)", file=sys.stderr)
    return not problems


def _place(problem: Problem) -> tuple[str, int, str]:
    return problem.source, problem.line, problem.path


def _doubts(book: RuleBook, documents: Sequence[RawDocument]) -> list[Problem]:
    raws = {parse_document(raw).identity: raw for raw in reversed(documents)}
    found = []
    for doubt in lint(book.mesh):
        raw = raws[doubt.identity]
        line = raw.line + line_of(raw.text, doubt.steps) - 1
        found.append(Problem(raw.source, line, path_text(doubt.steps), doubt.reason))
    return found


def _kind(text: str) -> Kind:
    word = text.lower()
    for kind in KINDS:
        if word in (kind.name.lower(), kind.plural) or _SHORT.get(word) == kind.name:
            return kind
    raise SourceError(f"there is no kind {text}; these are: {', '.join(kind.name for kind in KINDS)}")


# -- writing


def _difference(old: _Stored | None, new: _Stored) -> str:
    """As a unified diff; "" when they say the same."""
    if old is not None and old.document == new.document:
        return ""
    before = [] if old is None else yaml_text(old.document.plain()).splitlines(keepends=True)
    after = yaml_text(new.document.plain()).splitlines(keepends=True)
    name = str(new.document.identity)
    return "".join(difflib.unified_diff(before, after, name, f"{name} (new)"))


def _shown(documents: list[Document], output: str) -> str:
    if output == "json":
        return json.dumps([each.plain() for each in documents], indent=2, ensure_ascii=False) + "\n"
    if output == "yaml":
        return "---\n".join(yaml_text(each.plain()) for each in documents)
    rows = [("NAMESPACE", "KIND", "NAME")]
    rows += [(each.namespace, each.identity.kind, each.name) for each in documents]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "".join(f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}\n" for row in rows)
