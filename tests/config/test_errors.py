"""Errors of several looks at one configuration: each mistake once, in order."""

from __future__ import annotations

from meshproxy.config.errors import ConfigErrors, parent


def _errors(*pairs: tuple[str, str]) -> ConfigErrors:
    errors = ConfigErrors()
    for path, reason in pairs:
        errors.add(path, reason)
    return errors


def _absorbed(known: list[tuple[str, str]], later: list[tuple[str, str]]) -> list[str]:
    errors = _errors(*known)
    errors.absorb(_errors(*later))
    return [error.path for error in errors.items[len(known) :]]


def test_what_follows_from_a_known_error_is_not_told_again() -> None:
    known = [("a.b[1]", "expected an object"), ("c.typo", "unknown field"), ("d.@type", "unknown type")]
    assert _absorbed(known, [("a.b[1]", "value is required"), ("a.b[1].c", "too short")]) == []
    assert _absorbed(known, [("c.required", "value is required")]) == []  # under another name, it seems
    assert _absorbed(known, [("d", "the @type is missing"), ("d.x", "too long")]) == []


def test_what_is_another_mistake_is_told() -> None:
    known = [("a.b[1].c", "expected a number"), ("x.typo", "unknown field")]
    later = [("a.b[1]", "is used twice"), ("a.b[11].c", "too large"), ("a.b[1].cd", "too large"), ("x.y", "too large")]
    assert _absorbed(known, later) == [path for path, _ in later]


def test_warnings_are_kept() -> None:
    errors, later = _errors(("a", "bad")), ConfigErrors()
    later.warn("a.b", "not done yet")
    errors.absorb(later)
    assert [warning.path for warning in errors.warnings] == ["a.b"]


def test_sorted_once_and_lists_by_number() -> None:
    errors = _errors(
        ("a[10].x", "1"), ("a[9].x", "1"), ("b", "1"), ("a[9].x", "1"), ("a[9].x", "0"), ("a", "1"), ("", "1")
    )
    assert [(error.path, error.reason) for error in errors.sorted()] == [
        ("", "1"),
        ("a", "1"),
        ("a[9].x", "0"),
        ("a[9].x", "1"),
        ("a[10].x", "1"),
        ("b", "1"),
    ]
    assert str(errors).startswith("1\na: 1\na[9].x: 0\n")


def test_parents() -> None:
    assert [parent(path) for path in ("a.b[3].c", "a.b[3]", "a.b", "a", "")] == ["a.b[3]", "a.b", "a", "", ""]
