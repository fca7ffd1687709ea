"""The text of a document -> the document, or what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Final

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


@dataclass(frozen=True, slots=True, order=True)
class Identity:
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
    """A document that is fine as such. `created` is its creationTimestamp, "" where it has none."""

    identity: Identity
    spec: Any
    labels: Map[str] = ()
    annotations: Map[str] = ()
    created: str = ""
    source: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)

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
        for name, value in (("labels", dict(self.labels)), ("annotations", dict(self.annotations))):
            if value:
                metadata[name] = value
        if self.created:
            metadata["creationTimestamp"] = self.created
        return {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "metadata": metadata,
            "spec": plain_spec(self.spec),
        }


@dataclass(frozen=True, slots=True)
class Parsed:
    """What came of a text: a document, or errors; its identity where that much could be read."""

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
        if _says_something(part):
            found.append(RawDocument(source, line, part.rstrip() + "\n"))
        start, line = end, line + part.count("\n")
    return found


def _says_something(part: str) -> bool:
    """Whether there is more than comments and the separator that it may begin with."""
    first, *others = part.splitlines() or [""]
    if _SEPARATOR.match(first):
        first = first[3:]
    return not all(_COMMENT.fullmatch(line) for line in (first, *others))


def parse_document(raw: RawDocument) -> Parsed:
    """The document in a text."""
    problems = Problems(raw.source, raw.line)
    try:
        problems.root = yaml.compose(raw.text, Loader=_Loader)
    except yaml.YAMLError as error:
        return _unreadable(raw, error)
    except (ValueError, RecursionError) as error:
        return Parsed(None, None, (Problem(raw.source, raw.line, "", str(error)),))
    try:
        return _parse(problems)
    except (TooLargeError, RecursionError) as error:
        return Parsed(None, None, (Problem(raw.source, raw.line, "", str(error)),))


def _unreadable(raw: RawDocument, error: yaml.YAMLError) -> Parsed:
    mark = getattr(error, "problem_mark", None)
    line = raw.line + (mark.line if mark is not None else 0)
    return Parsed(None, None, (Problem(raw.source, line, "", getattr(error, "problem", None) or str(error)),))


def _parse(problems: Problems) -> Parsed:
    top = At(problems)
    root = problems.root
    if root is None:
        top.error("is empty")
        return _result(problems, None, None)
    given = members(root, top)
    kind = _kind_of(given, top) if given is not None else None
    metadata = _metadata_of(given, top) if given is not None else FAILED
    identity = None
    if kind is not None and metadata is not FAILED:
        identity = Identity(kind.name, metadata.namespace, metadata.name)
    if kind is None or given is None:
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
        problems.source,
        problems.line_of(()),
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


def _kind_of(given: dict[str, yaml.Node], top: At) -> Kind | None:
    words = []
    for name in ("apiVersion", "kind"):
        node = given.get(name)
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            (top / name).error("is required: a string")
            return None
        words.append(node.value)
    version, name = words
    kind = find_kind(version, name)
    if kind is not None:
        return kind
    known = BY_NAME.get(name)
    if known is not None:
        (top / "apiVersion").error(f'{name} is read of {known.group or "v1"} {", ".join(known.versions)}, not of "{version}"')
    else:
        names = ", ".join(each.name for each in KINDS)
        (top / "kind").error(f"{name} of {version} is not read here; these are: {names}")
    return None
