r"""RE2 on bytes, as Envoy 1.40 uses it (the answers on bytes beyond ASCII were asked of it)."""

from __future__ import annotations

import pytest
from envoy.type.matcher.v3 import regex_pb2

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.regex import Regex, RegexError, RegexSet, Substitution, build_substitution, compile_regex


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        (".*abc.*", b"1abc2", True),
        ("abc", b"1abc2", False),
        ("a*", b"", True),
        ("", b"", True),
        ("a", b"", False),
        (".*abc.*", b"\xffabc\xff", True),
        ("é.", "éx".encode(), True),
        ("é.", "éé".encode(), False),
        ("é.", b"\xc3\xa9\xff", True),
        ("(?i)ABC", b"abc", True),
        (".*", b"a\nb", False),
        ("a$", b"a\n", False),
    ],
)
def test_full_match(pattern: str, value: bytes, matches: bool) -> None:
    assert Regex(pattern).full_match(value) is matches
    assert RegexSet(["x", pattern]).match(value) == ([1] if matches else [])


def test_search() -> None:
    assert Regex("b+").search(b"abbc")
    assert Regex("^$").search(b"")
    assert not Regex("d").search(b"abbc")


def test_a_set_tells_all_that_match() -> None:
    patterns = RegexSet(["/a.*", "/.*", "/b", "(/a|/b)"])
    assert patterns.match(b"/a") == [0, 1, 3]
    assert patterns.match(b"/b") == [1, 2, 3]
    assert patterns.match(b"/b\xff") == [1]
    assert patterns.match(b"x") == []


def test_a_set_of_many_long_patterns_forgets_none() -> None:
    patterns = RegexSet([f"/api/v{i}/[a-z]{{1,200}}/{'x' * 300}{i}" for i in range(300)])
    for i in (0, 123, 299):
        assert patterns.match(f"/api/v{i}/abc/{'x' * 300}{i}".encode()) == [i]


# What RE2::GlobalReplace does.
@pytest.mark.parametrize(
    ("pattern", "substitution", "value", "result"),
    [
        ("a", "b", b"banana", b"bbnbnb"),
        ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", b"/service/foo/v1/api", b"/v1/api/instance/foo"),
        ("one", "two", b"/xxx/one/yyy/one/zzz", b"/xxx/two/yyy/two/zzz"),
        ("^(.*?)one(.*)$", r"\1two\2", b"/xxx/one/yyy/one/zzz", b"/xxx/two/yyy/one/zzz"),
        ("(?i)/xxx/", "/yyy/", b"/aaa/XxX/bbb", b"/aaa/yyy/bbb"),
        ("a*", "X", b"baac", b"XbXcX"),
        ("", "-", b"ab", b"-a-b-"),
        ("x", "y", b"", b""),
        ("(a)(b)?", r"<\2\1\0\\>", b"xaby a", b"x<baab\\>y <aa\\>"),
        ("^a", "", b"aaa", b"aa"),
        (".", "<\\0>", b"\xff\xe9", b"<\xff><\xe9>"),
        ("b", "é", b"abc", "aéc".encode()),
    ],
)
def test_substitution(pattern: str, substitution: str, value: bytes, result: bytes) -> None:
    assert Substitution(pattern, substitution).apply(value) == result


def test_bad_patterns_are_errors_with_their_path() -> None:
    errors = ConfigErrors()
    assert compile_regex(regex_pb2.RegexMatcher(regex="a(b"), "m.safe_regex", errors) is None
    assert compile_regex(regex_pb2.RegexMatcher(regex="(?=a)"), "n", errors) is None
    assert [each.path for each in errors.items] == ["m.safe_regex.regex", "n.regex"]
    assert "missing )" in errors.items[0].reason
    with pytest.raises(RegexError):
        RegexSet(["a", "("])


@pytest.mark.parametrize(
    ("pattern", "substitution", "path", "reason"),
    [
        ("a(", "b", "r.pattern.regex", "missing )"),
        ("a", r"\1", "r.substitution", "refers to group 1, but the pattern has 0"),
        ("a", r"\x", "r.substitution", "a backslash must be followed"),
        ("a", "\\", "r.substitution", "a backslash must be followed"),
    ],
)
def test_bad_substitutions(pattern: str, substitution: str, path: str, reason: str) -> None:
    errors = ConfigErrors()
    message = regex_pb2.RegexMatchAndSubstitute(pattern={"regex": pattern}, substitution=substitution)
    assert build_substitution(message, "r", errors) is None
    assert errors.items[0].path == path
    assert reason in errors.items[0].reason


def test_a_good_substitution_is_built() -> None:
    message = regex_pb2.RegexMatchAndSubstitute(pattern={"regex": "a(.)"}, substitution=r"\1a")
    built = build_substitution(message, "r", ConfigErrors())
    assert built is not None
    assert built.apply(b"xab") == b"xba"
