"""The text of a document -> the document, or what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import yaml

from meshproxy.pilot.documents.kinds import BY_NAME, KINDS, Kind, find_kind
from meshproxy.pilot.documents.problems import At, Problem, Problems, TooLargeError
from meshproxy.pilot.documents.reader import FAILED, is_null, members, read_spec, suggestion
from meshproxy.pilot.documents.rules import Labels, Name, object_name
from meshproxy.pilot.documents.spec import Map, Refused, spec
from meshproxy.pilot.documents.writer import plain_spec

_SEPARATOR: Final = re.compile(r"^(?:---|\.\.\.)(?=\s|$)", re.MULTILINE)
_COMMENT: Final = re.compile(r"\s*(?:#.*)?")
_TOP: Final = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Composes nodes only: what a plain scalar means is the reader's to decide."""

    yaml_implicit_resolvers: dict[str, Any] = {}


class Identity(NamedTuple):
    """What a document is known by."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class RawDocument:
    """One document as a source has it: `line` is where it begins in `source`, which is a file's path or a key."""

    source: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """A document that is fine as such. `created` is its creationTimestamp, "" where it has none. It does not know where
    it stands, so that it is the same wherever that is."""

    identity: Identity
    spec: Any
    labels: Map[str] = ()
    annotations: Map[str] = ()
    created: str = ""

    @property
    def namespace(self) -> str:
        return self.identity.namespace

    @property
    def name(self) -> str:
        return self.identity.name

    @property
    def age(self) -> tuple[str, str, str]:
        """What conflicts are decided by, as Istio does: the oldest first, then by name and namespace."""
        return (self.created, self.identity.name, self.identity.namespace)

    def plain(self) -> dict[str, Any]:
        """As it is written."""
        kind = BY_NAME[self.identity.kind]
        metadata: dict[str, Any] = {"name": self.name, "namespace": self.namespace}
        more = {
            "labels": dict(self.labels),
            "annotations": dict(self.annotations),
            "creationTimestamp": self.created,
        }
        metadata |= {name: value for name, value in more.items() if value}
        return {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "metadata": metadata,
            "spec": plain_spec(self.spec),
        }


@dataclass(frozen=True, slots=True)
class Parsed:
    """What came of a text: a document, or errors; its identity where that much could be read, be it of a kind that is
    not read (unless its name may be misspelt)."""

    identity: Identity | None
    document: Document | None
    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


@spec
class Metadata:
    name: Annotated[str, object_name]
    namespace: Name = "default"
    labels: Labels = ()
    annotations: Map[str] = ()
    creation_timestamp: str = ""
    IGNORED: ClassVar[Refused] = dict.fromkeys(
        ("uid", "resourceVersion", "generation", "managedFields", "ownerReferences", "finalizers", "selfLink"),
        "is Kubernetes' own business",
    )
    REFUSED: ClassVar[Refused] = {"generateName": "a document needs a name of its own"}


def split_documents(source: str, text: str) -> list[RawDocument]:
    """The documents of a file, each with its line; those of comments alone are left out."""
    found: list[RawDocument] = []
    start, line = 0, 1
    for end in (*(match.start() for match in _SEPARATOR.finditer(text)), len(text)):
        part = text[start:end]
        skipped = _separator_length(part)
        if not all(_COMMENT.fullmatch(each) for each in part[skipped:].splitlines()):
            begins = line + part.count("\n", 0, skipped)
            found.append(RawDocument(source, begins, part[skipped:].rstrip() + "\n"))
        start, line = end, line + part.count("\n")
    return found


def _separator_length(part: str) -> int:
    """That of the line that separates it from others, unless the document begins on it."""
    if not _SEPARATOR.match(part):
        return 0
    first = part.partition("\n")[0]
    return len(first) + 1 if _COMMENT.fullmatch(first[3:]) else 0


def parse_document(raw: RawDocument) -> Parsed:
    """The document in a text, with problems at the lines of its source."""
    return located(parse_text(raw.text), raw)


def located(parsed: Parsed, raw: RawDocument) -> Parsed:
    """What `parse_text` gave, with problems at the lines of the source."""
    if not parsed.errors and not parsed.warnings:
        return parsed

    def moved(problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        return tuple(replace(each, source=raw.source, line=each.line + raw.line - 1) for each in problems)

    return replace(parsed, errors=moved(parsed.errors), warnings=moved(parsed.warnings))


def parse_text(text: str) -> Parsed:
    """The document in a text whose first line is 1."""
    problems = Problems("")
    try:
        problems.root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = 1 if mark is None else mark.line + 1
        return Parsed(None, None, (Problem("", line, "", getattr(error, "problem", None) or str(error)),))
    except (ValueError, RecursionError) as error:
        return Parsed(None, None, (Problem("", 1, "", str(error)),))
    try:
        return _parse(problems)
    except (TooLargeError, RecursionError) as error:
        return Parsed(None, None, (Problem("", 1, "", str(error)),))


def line_of(text: str, steps: tuple[str | int, ...]) -> int:
    """The line of a field in the text of a document that parses."""
    problems = Problems("")
    problems.root = yaml.compose(text, Loader=_Loader)
    return problems.line_of(steps)


def _parse(problems: Problems) -> Parsed:
    top = At(problems)
    root = problems.root
    if root is None:
        top.error("is empty")
        return _result(problems, None, None)
    given = members(root, top)
    if given is None:
        return _result(problems, None, None)
    version, name = _text(given, "apiVersion", top), _text(given, "kind", top)
    kind = _kind_of(version, name, top) if version and name else None
    metadata = _metadata_of(given, top)
    identity = None
    if metadata is not FAILED and name and (kind is not None or not suggestion(name, BY_NAME)):
        identity = Identity(name, metadata.namespace, metadata.name)
    if kind is None:
        return _result(problems, identity, None)
    for name in given:
        if name not in _TOP:
            (top / name).error(f"there is no such field{suggestion(name, _TOP)}")
    read = _spec_of(kind, given, top)
    if identity is None or read is FAILED or problems.errors:
        return _result(problems, identity, None)
    document = Document(
        identity,
        read,
        metadata.labels,
        metadata.annotations,
        metadata.creation_timestamp,
    )
    return _result(problems, identity, document)


def _result(problems: Problems, identity: Identity | None, document: Document | None) -> Parsed:
    return Parsed(identity, document, tuple(problems.errors), tuple(problems.warnings))


def _spec_of(kind: Kind, given: dict[str, yaml.Node], top: At) -> Any:
    node = given.get("spec")
    if node is None or is_null(node):
        (top / "spec").error("is required")
        return FAILED
    return read_spec(kind.spec, node, top / "spec")


def _metadata_of(given: dict[str, yaml.Node], top: At) -> Any:
    node = given.get("metadata")
    if node is None or is_null(node):
        (top / "metadata").error("is required")
        return FAILED
    return read_spec(Metadata, node, top / "metadata")


def _text(given: dict[str, yaml.Node], field: str, top: At) -> str:
    node = given.get(field)
    if isinstance(node, yaml.ScalarNode) and node.value:
        return str(node.value)
    (top / field).error("is required: a string")
    return ""


def _kind_of(version: str, name: str, top: At) -> Kind | None:
    kind = find_kind(version, name)
    if kind is not None:
        return kind
    known = BY_NAME.get(name)
    if known is not None:
        versions = ", ".join(known.versions)
        (top / "apiVersion").error(f'{name} is read of {known.group or "Kubernetes"} {versions}, not of "{version}"')
    else:
        names = ", ".join(each.name for each in KINDS)
        (top / "kind").error(f"{name} of {version} is not read{suggestion(name, BY_NAME)}; these kinds are: {names}")
    return None
