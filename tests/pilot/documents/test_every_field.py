"""The files in full/ set every field that is honoured; each field that is refused is refused with its reason."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.pilot.documents.document import Metadata, RawDocument, parse_document, parse_text, split_documents
from meshproxy.pilot.documents.kinds import KINDS
from meshproxy.pilot.documents.problems import At, Problems
from meshproxy.pilot.documents.reader import read_spec
from meshproxy.pilot.documents.spec import field_name
from meshproxy.pilot.documents.writer import yaml_text

ROOT: Final = Path(__file__).resolve().parents[3]
FILES: Final = sorted([*(Path(__file__).parent / "full").glob("*.yaml"), *(ROOT / "xds" / "rules").glob("*.yaml")])
# Values that are the only ones there are, or stand for "not said".
ALWAYS_DEFAULT: Final = {
    "EgressListener.capture_mode",
    "KubernetesService.session_affinity",
    "KubernetesServicePort.protocol",
}


def raw_documents() -> list[RawDocument]:
    return [raw for path in FILES for raw in split_documents(path.name, path.read_text())]


def spec_classes(kind: type[Any]) -> Iterator[type[Any]]:
    """`kind` and the classes of its fields."""
    yield kind
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]), {})
    for field in dataclasses.fields(kind):
        for inner in classes_in(hints[field.name]):
            yield from spec_classes(inner)


def classes_in(annotation: Any) -> Iterator[type[Any]]:
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        yield annotation
    elif isinstance(annotation, types.GenericAlias | types.UnionType) or typing.get_origin(annotation) is not None:
        for each in typing.get_args(annotation):
            yield from classes_in(each)


CLASSES: Final = sorted(
    {each for kind in KINDS for each in spec_classes(kind.spec)} | {Metadata},
    key=lambda each: f"{each.__module__}.{each.__name__}",
)


def values_of(value: Any) -> Iterator[Any]:
    """`value` and all specs inside."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from values_of(getattr(value, field.name))
    elif isinstance(value, tuple):
        for each in value:
            yield from values_of(each)


@pytest.mark.parametrize("raw", raw_documents(), ids=lambda raw: f"{raw.source}-{raw.line}")
def test_the_files_are_read(raw: RawDocument) -> None:
    parsed = parse_document(raw)
    assert [str(error) for error in parsed.errors] == []
    assert parsed.document is not None


def test_every_field_is_set_somewhere() -> None:
    documents = [parse_document(raw).document for raw in raw_documents()]
    there = {
        f"{type(value).__name__}.{field.name}"
        for document in documents
        if document is not None
        for value in values_of(document.spec)
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    }
    wanted = {f"{kind.__name__}.{field.name}" for kind in CLASSES for field in dataclasses.fields(kind)}
    metadata = {f"Metadata.{field.name}" for field in dataclasses.fields(Metadata)}
    assert wanted - there - ALWAYS_DEFAULT - metadata == set()


@pytest.mark.parametrize("raw", raw_documents(), ids=lambda raw: f"{raw.source}-{raw.line}")
def test_a_document_written_reads_as_the_same(raw: RawDocument) -> None:
    document = parse_document(raw).document
    assert document is not None
    again = parse_text(yaml_text(document.plain()))
    assert again.errors == ()
    assert again.document == document


REFUSALS: Final = [(kind, name) for kind in CLASSES for name in getattr(kind, "REFUSED", {})]


@pytest.mark.parametrize(("kind", "name"), REFUSALS, ids=lambda each: each if isinstance(each, str) else each.__name__)
def test_a_refused_field_is_told_with_its_reason(kind: type[Any], name: str) -> None:
    problems = Problems("f.yaml")
    root = yaml.compose(f"{name}: x\n", Loader=yaml.SafeLoader)
    assert root is not None
    problems.root = root
    read_spec(kind, root, At(problems))
    assert f"f.yaml:1: {name}: {kind.REFUSED[name]}" in [str(error) for error in problems.errors]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda each: each.__name__)
def test_no_field_has_two_verdicts(kind: type[Any]) -> None:
    honoured = {field_name(field.name) for field in dataclasses.fields(kind)}
    refused, ignored = set(getattr(kind, "REFUSED", {})), set(getattr(kind, "IGNORED", {}))
    assert not honoured & refused
    assert not honoured & ignored
    assert not refused & ignored
    assert {name for group in getattr(kind, "ONE_OF", ()) for name in group} <= honoured


def pruned(draw: st.DrawFn, value: Any) -> Any:
    """`value` with some of its members and elements left out."""
    if isinstance(value, dict):
        return {key: pruned(draw, each) for key, each in value.items() if draw(st.integers(0, 5))}
    if isinstance(value, list):
        return [pruned(draw, each) for each in value if draw(st.integers(0, 5))]
    return value


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    raw = draw(st.sampled_from(raw_documents()))
    value = yaml.safe_load(raw.text)
    return {**value, "spec": pruned(draw, value["spec"])}


@given(documents())
def test_what_is_accepted_reads_back_and_what_is_not_says_why(value: dict[str, Any]) -> None:
    parsed = parse_text(yaml_text(value))
    assert (parsed.document is None) == bool(parsed.errors)
    for error in parsed.errors:
        assert error.path.startswith("spec")
    if parsed.document is not None:
        assert parse_text(yaml_text(parsed.document.plain())).document == parsed.document
