"""Short ways to write documents in tests."""

from __future__ import annotations

import textwrap

from meshproxy.pilot.documents.document import Document, RawDocument, parse_document
from meshproxy.pilot.documents.kinds import BY_NAME


def document_text(kind: str, spec: str, name: str = "x", namespace: str = "default", more: str = "") -> str:
    """A document whose spec begins at line 5."""
    body = textwrap.indent(textwrap.dedent(spec).strip(), "  ")
    metadata = f"{{name: {name}, namespace: {namespace}{more}}}"
    return f"apiVersion: {BY_NAME[kind].api_version}\nkind: {kind}\nmetadata: {metadata}\nspec:\n{body}\n"


def document(kind: str, spec: str, name: str = "x", namespace: str = "default", more: str = "") -> Document:
    """A document that is fine."""
    parsed = parse_document(RawDocument("f.yaml", 1, document_text(kind, spec, name, namespace, more)))
    assert parsed.document is not None, [str(error) for error in parsed.errors]
    return parsed.document


def errors_of(kind: str, spec: str) -> list[str]:
    """What is wrong with it: `line path: reason`; the spec begins at line 5."""
    parsed = parse_document(RawDocument("f.yaml", 1, document_text(kind, spec)))
    return [
        str(error).removeprefix("f.yaml:").replace(": ", " ", 1).replace(" spec.", " ", 1) for error in parsed.errors
    ]
