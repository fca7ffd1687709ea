"""What surrounds a spec: files of several documents, metadata, kinds, and YAML itself."""

from __future__ import annotations

from datetime import timedelta

import pytest

from meshproxy.pilot.documents.document import (
    Document,
    Identity,
    RawDocument,
    parse_document,
    parse_text,
    split_documents,
)
from meshproxy.pilot.documents.duration import duration_text, parse_duration
from tests.pilot.documents.text import document, document_text, errors_of

FINE = document_text("Sidecar", "egress: [{hosts: [./*]}]")


def errors_in(text: str) -> list[str]:
    return [str(error) for error in parse_document(RawDocument("a/b.yaml", 1, text)).errors]


def test_a_file_is_split_at_separators_with_the_lines_that_parts_begin_at() -> None:
    text = "# first\n---\n# nothing\n---  # more\na: 1\n...\n---\nb: |\n  ---\n  x\n--- {c: 1}\n"
    assert split_documents("f", text) == [
        RawDocument("f", 5, "a: 1\n"),
        RawDocument("f", 8, "b: |\n  ---\n  x\n"),
        RawDocument("f", 11, "--- {c: 1}\n"),
    ]


def test_a_file_of_comments_has_no_documents() -> None:
    assert split_documents("f", "") == split_documents("f", "# a\n\n---\n# b\n") == []


def test_lines_are_those_of_the_file() -> None:
    raws = split_documents("f.yaml", FINE + "---\n" + document_text("Sidecar", "egress: []\nbad: 1"))
    errors = parse_document(raws[1]).errors
    assert [str(error) for error in errors] == ["f.yaml:12: spec.bad: there is no such field"]


def test_metadata_is_kept() -> None:
    more = ', labels: {a: b}, annotations: {c: d}, creationTimestamp: "2026-01-01T00:00:00Z", uid: x'
    found = document("Sidecar", "egress: [{hosts: [./*]}]", "named", "ns", more)
    assert found == Document(
        Identity("Sidecar", "ns", "named"), found.spec, (("a", "b"),), (("c", "d"),), "2026-01-01T00:00:00Z"
    )
    assert str(found.identity) == "Sidecar ns/named"


def test_the_namespace_is_default_where_none_is_said() -> None:
    parsed = parse_text(FINE.replace(", namespace: default", ""))
    assert parsed.identity == Identity("Sidecar", "default", "x")


@pytest.mark.parametrize("version", ["v1", "v1beta1", "v1alpha3"])
def test_istios_versions_are_read_alike(version: str) -> None:
    assert parse_text(FINE.replace("istio.io/v1", f"istio.io/{version}")).document == parse_text(FINE).document


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            FINE.replace("istio.io/v1", "istio.io/v2"),
            "1: apiVersion: Sidecar is read of networking.istio.io v1, v1beta1, ",
        ),
        (
            FINE.replace("kind: Sidecar", "kind: Sidecra"),
            "2: kind: Sidecra of networking.istio.io/v1 is not read (did you ",
        ),
        (
            FINE.replace("kind: Sidecar", "kind: Deployment"),
            "2: kind: Deployment of networking.istio.io/v1 is not read; ",
        ),
        (FINE.replace("kind: Sidecar\n", ""), "1: kind: is required: a string"),
        (FINE.replace("name: x, ", ""), "3: metadata.name: is required"),
        (FINE.replace("name: x", "name: X"), '3: metadata.name: "X" is no name of small letters'),
        (FINE.replace("name: x", "generateName: x"), "3: metadata.generateName: a document needs a name of its own"),
        (FINE.replace("spec:", "spce:"), '4: spce: there is no such field (did you mean "spec"?)'),
        (FINE[: FINE.index("spec")], "1: spec: is required"),
        (FINE + "kind: Sidecar\n", "2: kind: is given twice"),
        (FINE.replace("egress: [", "egress: [["), "6: did not find expected"),
        ("- 1\n", "1: must be an object, not a list"),
        ("a: &a [*a]\n", "1: apiVersion: is required"),
    ],
)
def test_what_is_no_document_says_why(text: str, error: str) -> None:
    assert any(each.startswith(f"a/b.yaml:{error}") for each in errors_in(text)), errors_in(text)


def test_a_kind_that_is_not_read_still_says_what_it_is() -> None:
    text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {}\n"
    assert parse_text(text).identity == Identity("Deployment", "default", "a")


def test_a_kind_that_is_misspelt_does_not() -> None:
    assert parse_text(FINE.replace("kind: Sidecar", "kind: Sidecra")).identity is None


def test_aliases_of_aliases_end_in_an_error() -> None:
    layers = "".join(f"  l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 9))
    head = "apiVersion: meshproxy.io/v1\nkind: PythonFilter\nmetadata: {name: x}\nspec:\n"
    text = f"{head}  l0: &l0 [1]\n{layers}  file: a\n"
    assert "there is no such field" in errors_in(text)[0]  # what is not read is not walked either
    hosts = "&h " + str([f"h{i}.example" for i in range(200)]).replace("'", "")
    more = ", ".join(["{hosts: *h}"] * 5000)
    text = document_text("Sidecar", f"egress: [{{hosts: {hosts}}}, {more}]")
    assert errors_in(text) == ["a/b.yaml:1: the document is too large"]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("5", "must be a string (in quotes), not 5"),
        ("yes", "must be a string (in quotes), not true"),
        ("012", "must be a string (in quotes), not 10"),
        ("[a]", "must be a string, not a list"),
        ("", "must not be null"),
    ],
)
def test_strings_are_not_guessed(value: str, error: str) -> None:
    assert errors_of("WorkloadEntry", f"address: 10.0.0.1\nlabels:\n  version: {value}") == [
        f"7 labels.version: {error}"
    ]


@pytest.mark.parametrize("value", ['"5"', "v1", "1.5", "'yes'", "2026-01-01", "y"])
def test_what_yaml_has_no_other_type_for_is_a_string(value: str) -> None:
    found = document("WorkloadEntry", f"address: 10.0.0.1\nlabels: {{version: {value}}}")
    assert found.spec.labels == (("version", value.strip("\"'")),)


def test_null_is_as_if_it_were_not_there() -> None:
    assert document("Sidecar", "egress: [{hosts: [./*], captureMode: null}]\nworkloadSelector:\nfoo: ~").spec == (
        document("Sidecar", "egress: [{hosts: [./*]}]").spec
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1h", timedelta(hours=1)),
        ("1m30s", timedelta(seconds=90)),
        ("1.5s", timedelta(seconds=1.5)),
        ("250ms", timedelta(milliseconds=250)),
        ("10us", timedelta(microseconds=10)),
        ("0", timedelta()),
        ("0s", timedelta()),
        ("1", None),
        ("s", None),
        ("-1s", None),
        ("1 s", None),
        ("1d", None),
        ("99999999999999999h", None),
    ],
)
def test_durations_are_gos(text: str, value: timedelta | None) -> None:
    found = parse_duration(text)
    assert found == value
    if found is not None:
        assert parse_duration(duration_text(found)) == found
