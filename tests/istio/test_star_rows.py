"""docs/istio.md: what it says of a default sidecar's types and of our tests is so, and no type is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import check_fields
from meshproxy.config.fields.check import TABLES
from meshproxy.config.fields.table import Verdict
from meshproxy.config.loader import load_bootstrap
from meshproxy.config.messages import find_descriptor, is_map, type_name
from meshproxy.config.registry import Registry
from meshproxy.config.typed_struct import TYPED_STRUCTS, unpack_any
from meshproxy.filters.listener_filter import LISTENER_FILTERS
from meshproxy.http.filter import HTTP_FILTERS
from meshproxy.http.network_filter import NETWORK_FILTERS
from tests.istio.golden import DIRECTORY, resources

ROOT = Path(__file__).resolve().parent.parent.parent
REGISTRIES: dict[str, list[Registry[Any]]] = {
    "envoy.extensions.filters.http.": [HTTP_FILTERS],
    "envoy.extensions.filters.listener.": [LISTENER_FILTERS],
    "envoy.extensions.filters.network.": [NETWORK_FILTERS],
    "envoy.tcp.": [NETWORK_FILTERS],
    "io.istio.http.": [HTTP_FILTERS],
    "istio.": [HTTP_FILTERS],
    "stats.": [HTTP_FILTERS, NETWORK_FILTERS],
}


class Row:
    """One of the page's tables."""

    def __init__(self, line: str) -> None:
        what, behaviour, where, tests = (cell.strip() for cell in line.strip("|\n").split(" | "))
        self.what = what
        self.types: list[str] = [name for name in _quoted(behaviour) if _PACKAGE.match(name)]
        self.files = _quoted(where)
        self.tests = _quoted(tests)


_PACKAGE = re.compile(r"(envoy|udpa|istio|io\.istio|stats)\.[\w.]*[A-Z]\w*$")


def _quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def _rows() -> list[Row]:
    lines = (ROOT / "docs/istio.md").read_text().splitlines()
    return [Row(line) for line in lines if line.startswith("| ") and not line.startswith("| what |")]


ROWS = _rows()
TYPES = sorted({name for row in ROWS for name in row.types})


def test_each_row_says_where_it_is_done_and_what_shows_it() -> None:
    assert [row.what for row in ROWS if not (row.files and row.tests)] == []
    assert [name for row in ROWS for name in row.files if not (ROOT / name).exists()] == []
    named = [name.partition("::") for row in ROWS for name in row.tests]
    assert [path for path, _, _ in named if not (ROOT / path).exists()] == []
    assert [test for path, _, test in named if test and f"def {test}(" not in (ROOT / path).read_text()] == []


@pytest.mark.parametrize("name", [name for name in TYPES if name not in TYPED_STRUCTS])
def test_a_type_is_honoured_or_ignored_with_a_reason(name: str) -> None:
    descriptor = find_descriptor(name)
    assert descriptor is not None
    table = TABLES[name]
    assert table.refused_whole == ""
    verdicts = [table.entry(field.name) for field in descriptor.fields]
    assert not verdicts or any(each.verdict is not Verdict.REFUSED for each in verdicts)
    assert all(each.note for each in verdicts if each.verdict in (Verdict.IGNORED, Verdict.LATER))
    assert f"\n## {name}\n" in (ROOT / "docs/configuration.md").read_text()
    for prefix, registries in REGISTRIES.items():
        if name.startswith(prefix):
            assert all(f"type.googleapis.com/{name}" in registry.type_urls() for registry in registries)


def test_every_type_that_is_sent_stands_there() -> None:
    files = [path.relative_to(DIRECTORY) for path in sorted(DIRECTORY.glob("*/*.yaml"))]
    messages = [each for path in files for each in resources(path.parent.name, path.stem).values()]
    sent = {name for message in messages for name in _types(message)}
    assert len(sent) > 20
    assert sent - set(TYPES) == set()


def _types(message: Message) -> Iterator[str]:
    """Of a message, and of all that its Any's hold; TypedStructs, and what they stand for."""
    if isinstance(message, AnyMessage):
        yield type_name(message.type_url)
        inner = unpack_any(message, "", ConfigErrors(), allow_unknown_fields=True)
        assert inner is not None
        yield inner.DESCRIPTOR.full_name
        yield from _types(inner)
        return
    if not message.DESCRIPTOR.full_name.startswith("google.") and message.DESCRIPTOR.full_name.endswith(_RESOURCES):
        yield message.DESCRIPTOR.full_name
    for field, value in message.ListFields():
        for each in _members(field, value):
            yield from _types(each)


_RESOURCES = (".Cluster", ".ClusterLoadAssignment", ".Listener", ".RouteConfiguration")


def _members(field: Any, value: Any) -> list[Message]:
    if field.message_type is None:
        return []
    found = value.values() if is_map(field) else value if field.is_repeated else [value]
    return [each for each in found if isinstance(each, Message)]


def test_the_bootstrap() -> None:
    """All of it is taken; what is not done of it is known, and the internal listener is none of that."""
    tree = json.loads((DIRECTORY.parent / "bootstrap.json").read_text())
    assert [each["name"] for each in tree["bootstrap_extensions"]] == ["envoy.bootstrap.internal_listener"]
    errors = ConfigErrors()
    bootstrap = load_bootstrap(json.dumps(tree), errors=errors)
    assert bootstrap is not None
    not_yet = check_fields(bootstrap, "", errors)
    assert str(errors) == ""
    assert sorted(path for path, _ in not_yet) == NOT_YET


NOT_YET = ["deferred_stat_options", "overload_manager"]
