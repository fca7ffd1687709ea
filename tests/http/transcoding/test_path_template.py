"""Path templates of google.api.http: what one is, which paths it matches, and what its variables hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.http.transcoding.path_template import (
    RESERVED,
    SLASH,
    PathTree,
    TemplateError,
    parse_template,
    unescape,
)


@pytest.mark.parametrize(
    ("text", "segments", "verb", "variables"),
    [
        ("/a", ["a"], "", []),
        ("/a/*/**", ["a", "*", "**"], "", []),
        ("/a/**/b:c", ["a", "**", "b"], "c", []),
        ("/{x}", ["*"], "", [(["x"], 0, 1)]),
        ("/a/{x.y}/b", ["a", "*", "b"], "", [(["x", "y"], 1, 2)]),
        ("/{x=a/*}/{y}", ["a", "*", "*"], "", [(["x"], 0, 2), (["y"], 2, 3)]),
        ("/{x=**}", ["**"], "", [(["x"], 0, -1)]),
        ("/{x=a/**/b}/c:d", ["a", "**", "b", "c"], "d", [(["x"], 0, -2)]),
    ],
)
def test_a_template(text: str, segments: list[str], verb: str, variables: list[tuple[list[str], int, int]]) -> None:
    template = parse_template(text)
    assert (template.segments, template.verb) == (segments, verb)
    assert [(each.field_path, each.start, each.end) for each in template.variables] == variables


@pytest.mark.parametrize(
    "text",
    ["", "a", "/", "/a/", "//", "/a//b", "/{}", "/{x", "/{x=}", "/{x.}", "/{.x}", "/{x=a/{y}}", "/a:", "/a:b/c", "/a}",
     "/**/*", "/**/**", "/{x=**}/{y}", "/{x}y"],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    with pytest.raises(TemplateError):
        parse_template(text)


def found(tree: PathTree, path: str, method: str = "GET") -> object:
    return tree.find(method, path)[0]


def tree_of(*templates: str, any_verb: bool = False) -> PathTree:
    tree = PathTree(any_verb)
    for text in templates:
        method, _, path = text.rpartition(" ")
        tree.add(method or "GET", parse_template(path), text)
    return tree


def test_literals_come_before_one_and_that_before_the_rest() -> None:
    tree = tree_of("/a/b", "/a/*", "/a/**", "/**")
    assert [found(tree, path) for path in ("/a/b", "/a/c", "/a/b/c", "/b")] == ["/a/b", "/a/*", "/a/**", "/**"]


def test_a_branch_that_ends_in_nothing_is_left() -> None:
    tree = tree_of("/a/b/c", "/a/*/d")
    assert found(tree, "/a/b/d") == "/a/*/d"
    assert found(tree, "/a/b") is None


def test_the_rest_may_be_empty() -> None:
    tree = tree_of("/a/**", "/b/**/c")
    assert found(tree, "/a") == "/a/**"
    assert found(tree, "/b/c") is None
    assert found(tree, "/b/x/y/c") == "/b/**/c"


def test_methods() -> None:
    tree = tree_of("GET /a", "* /a", "POST /b")
    assert found(tree, "/a") == "GET /a"
    assert found(tree, "/a", "PUT") == "* /a"
    assert found(tree, "/b") is None


def test_verbs() -> None:
    tree = tree_of("/a/*:go", "/a/*", "/b/*", "/c/*/d")
    assert found(tree, "/a/x:go") == "/a/*:go"
    assert found(tree, "/a/x:stop") == "/a/*"  # no verb that there is
    assert found(tree, "/b/x:go") is None
    assert found(tree, "/c/x:go/d") == "/c/*/d"
    assert found(tree_of("/a/*", any_verb=True), "/a/x:stop") is None


def test_of_two_alike_none_is_found() -> None:
    tree = tree_of("/a/{x}", "/a/{y}")
    assert found(tree, "/a/b") is None


@pytest.mark.parametrize(
    ("template", "path", "kept", "value"),
    [
        ("/{x}", "/a%2Fb%20c", RESERVED, "a/b c"),
        ("/{x=*/*}", "/a%2Fb/c%20d%21", RESERVED, "a%2Fb/c d%21"),
        ("/{x=*/*}", "/a%2fb/c%20d%21", SLASH, "a%2fb/c d!"),
        ("/{x=*/*}", "/a%2Fb/c", "", "a/b/c"),
        ("/{x=**}", "/a%2Fb", RESERVED, "a%2Fb"),
        ("/{x=**}", "/", RESERVED, ""),
        ("/{x=a/**}/b:c", "/a/1/2/b:c", RESERVED, "a/1/2"),
        ("/{x}", "/%zz%4", RESERVED, "%zz%4"),
        ("/{x}", "/gr%C3%BCn", RESERVED, "grün"),
        ("/{x}", "/%FF", RESERVED, "\udcff"),
        ("/{x}", "/gr\xc3\xbcn", RESERVED, "grün"),
        ("/{x}", "/\xff", RESERVED, "\udcff"),
    ],
)
def test_variables(template: str, path: str, kept: str, value: str) -> None:
    parsed = parse_template(template)
    tree = PathTree()
    tree.add("GET", parsed, parsed)
    target, parts = tree.find("GET", path)
    assert target is parsed
    assert parsed.variables[0].value(parts, kept) == value


def test_what_is_kept_is_kept_in_either_case() -> None:
    assert unescape("%2f%2F%41%3a", RESERVED) == "%2f%2FA%3a"
    assert unescape("%252F", RESERVED) == "%2F"


PIECES = st.lists(st.sampled_from(["/", "a", "b", "*", "**", "{", "}", "=", ":", ".", "x", "%41"]), max_size=10)


@given(PIECES, PIECES)
def test_any_template_is_one_or_none_and_finds_or_not(template: list[str], path: list[str]) -> None:
    try:
        parsed = parse_template("".join(template))
    except TemplateError:
        return
    tree = PathTree()
    tree.add("GET", parsed, parsed)
    target, parts = tree.find("GET", "/" + "".join(path))
    if target is not None:
        for variable in parsed.variables:
            assert isinstance(variable.value(parts, RESERVED), str)
