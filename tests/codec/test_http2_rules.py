"""docs/rfc9113.md and docs/rfc7541.md: every test that they name exists, and so does the case of its section."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.codec import test_http2_framing, test_http2_messages

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"\| ([\d.]+) \| (.+) \| (both|client|server|encoder|decoder) \| (.+) \|")
NAMED = re.compile(r"`([\w./]+)::(\w+)`")
# Tests that are tables of cases, and the sections that stand in front of each.
CASES = {
    "test_connection_errors": [rule for rule, _, _ in test_http2_framing.CONNECTION_ERRORS],
    "test_stream_errors": [rule for rule, _, _ in test_http2_framing.STREAM_ERRORS],
    "test_what_is_ignored": [rule for rule, _ in test_http2_framing.IGNORED],
    "test_a_malformed_request_ends_its_stream": list(test_http2_messages.MALFORMED_REQUESTS),
    "test_a_malformed_response_is_not_taken": list(test_http2_messages.MALFORMED_RESPONSES),
    "test_bodies_and_trailers": list(test_http2_messages.BODIES),
}


def rows(page: str) -> list[tuple[str, str, str, str]]:
    """(number, rule, end, held by)."""
    text = (ROOT / "docs" / page).read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| number")]
    found = [ROW.fullmatch(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if match is None]
    return [match.groups() for match in found if match is not None]  # type: ignore[misc]


@cache
def names_in(path: Path) -> frozenset[str]:
    """The names of a file's tests."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


@pytest.mark.parametrize("page", ["rfc9113.md", "rfc7541.md"])
def test_every_test_that_is_named_exists(page: str) -> None:
    missing = []
    for number, _, _, held in rows(page):
        for file, test in NAMED.findall(held):
            path = ROOT / file if "/" in file else ROOT / "tests" / "codec" / file
            if not path.is_file() or test not in names_in(path):
                missing.append(f"{number}: {file}::{test}")
    assert not missing


@pytest.mark.parametrize("page", ["rfc9113.md", "rfc7541.md"])
def test_every_rule_is_held_or_says_why_not(page: str) -> None:
    numbers = [number for number, _, _, _ in rows(page)]
    assert len(numbers) == len(set(numbers))
    for number, _, _, held in rows(page):
        tests = NAMED.findall(held)
        assert tests or len(held) > 20, number


def test_tables_of_cases_have_one_of_the_section() -> None:
    """`5.1.9` stands for the cases `5.1 …` and `5.1.1 …`, or for those of the sections that the rule names."""
    for number, rule, _, held in rows("rfc9113.md"):
        section = number.rpartition(".")[0]
        for _, test in NAMED.findall(held):
            if test in CASES and section not in ("5.4", "8441.3", "8441.4"):  # 5.4 is of all errors
                wanted = [section, *re.findall(r"\d+\.\d+(?:\.\d+)?", rule)]
                assert [case for case in CASES[test] if case.startswith(tuple(wanted))], (number, test)


def test_every_case_belongs_to_a_rule() -> None:
    """No section has cases, and no row."""
    sections = {number.rpartition(".")[0] for number, _, _, _ in rows("rfc9113.md")}
    for cases in CASES.values():
        for case in cases:
            if case[0].isdigit():
                section = case.split(" ")[0]
                assert {section, ".".join(section.split(".")[:2])} & sections, case
