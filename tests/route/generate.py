"""Random virtual hosts and requests, and the plainest possible reading of them."""

from __future__ import annotations

import random
import re
from typing import Any

SEGMENTS = ("a", "b", "ab", "A", "foo", "")
VALUES = ("x", "xy", "y", "", "X")
REGEXES = ("x", "x.*", ".*y", "[xy]+", "x?")
PATH_REGEXES = ("/a.*", "/.*b", "/(a|foo)/?.*", "/[ab]+", ".*")
NAMES = ("x-1", "x-2")


def random_path(rng: random.Random) -> str:
    """A path of up to three segments."""
    return "/" + "/".join(rng.choice(SEGMENTS) for _ in range(rng.randint(0, 3)))


def random_header(rng: random.Random) -> dict[str, Any]:
    """A HeaderMatcher."""
    kind = rng.choice(("exact", "prefix", "suffix", "contains", "regex", "present", "range"))
    matcher: dict[str, Any] = {"name": rng.choice(NAMES)}
    if kind == "present":
        matcher["present_match"] = rng.random() < 0.5
    elif kind == "range":
        matcher["range_match"] = {"start": 0, "end": rng.randint(1, 9)}
    elif kind == "regex":
        matcher["string_match"] = {"safe_regex": {"regex": rng.choice(REGEXES)}}
    else:
        matcher["string_match"] = {kind: rng.choice(VALUES[:3]), "ignore_case": rng.random() < 0.3}
    if rng.random() < 0.3:
        matcher["invert_match"] = True
    if rng.random() < 0.3:
        matcher["treat_missing_header_as_empty"] = True
    return matcher


def random_match(rng: random.Random) -> dict[str, Any]:
    """A RouteMatch, most often with a literal path."""
    kind = rng.choice(("prefix", "prefix", "path", "path", "path", "path_separated_prefix", "safe_regex"))
    match: dict[str, Any] = {}
    if kind == "safe_regex":
        match[kind] = {"regex": rng.choice(PATH_REGEXES)}
    elif kind == "path_separated_prefix":
        match[kind] = "/" + rng.choice(SEGMENTS[:5])
    else:
        match[kind] = random_path(rng)
    if rng.random() < 0.15 and kind != "safe_regex":
        match["case_sensitive"] = False
    if rng.random() < 0.3:
        match["headers"] = [random_header(rng) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.1:
        match["query_parameters"] = [{"name": "q", "string_match": {"exact": rng.choice(VALUES)}}]
    return match


def random_routes(rng: random.Random, most: int) -> list[dict[str, Any]]:
    """Routes that answer with their index; at least one."""
    count = rng.randint(1, most)
    return [
        {"match": random_match(rng), "direct_response": {"status": 200, "body": {"inline_string": f"r{i}"}}}
        for i in range(count)
    ]


def random_request(rng: random.Random) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A path with or without query, and fields."""
    path = random_path(rng)
    if rng.random() < 0.3:
        path += "?q=" + rng.choice(VALUES)
    fields = [(rng.choice(NAMES), rng.choice((*VALUES, "3", "7"))) for _ in range(rng.randint(0, 3))]
    return path, tuple(fields)


def text_holds(matcher: dict[str, Any], value: str) -> bool:
    """A StringMatcher."""
    (kind,) = matcher.keys() - {"ignore_case"}
    if kind == "safe_regex":
        return re.fullmatch(matcher[kind]["regex"], value) is not None
    text = matcher[kind]
    if matcher.get("ignore_case"):
        text, value = text.lower(), value.lower()
    found: bool = {
        "exact": value == text,
        "prefix": value.startswith(text),
        "suffix": value.endswith(text),
        "contains": text in value,
    }[kind]
    return found


def header_holds(matcher: dict[str, Any], fields: tuple[tuple[str, str], ...]) -> bool:
    """A HeaderMatcher."""
    values = [value for name, value in fields if name == matcher["name"]]
    if not values and matcher.get("treat_missing_header_as_empty"):
        values = [""]
    invert = matcher.get("invert_match", False)
    if "present_match" in matcher:
        return bool((bool(values) == matcher["present_match"]) != invert)
    if not values:
        return False
    if "range_match" in matcher:
        found = any(value.isdigit() and int(value) < matcher["range_match"]["end"] for value in values)
    else:
        found = any(text_holds(matcher["string_match"], value) for value in values)
    return bool(found != invert)


def path_holds(match: dict[str, Any], path: str) -> bool:
    """The path condition of a RouteMatch."""
    if "safe_regex" in match:
        return re.fullmatch(match["safe_regex"]["regex"], path) is not None
    (kind,) = match.keys() & {"prefix", "path", "path_separated_prefix"}
    text: str = match[kind]
    if not match.get("case_sensitive", True):
        text, path = text.lower(), path.lower()
    if kind == "prefix":
        return path.startswith(text)
    if kind == "path":
        return path == text
    return path == text or path.startswith(text + "/")


def first_route(routes: list[dict[str, Any]], target: str, fields: tuple[tuple[str, str], ...]) -> str | None:
    """The body of the first route that holds, tried one after the other."""
    path, _, query = target.partition("?")
    for route in routes:
        match = route["match"]
        holds = path_holds(match, path) and all(header_holds(each, fields) for each in match.get("headers", ()))
        for each in match.get("query_parameters", ()):
            holds = holds and query.startswith("q=") and query[2:] == each["string_match"]["exact"]
        if holds:
            body: str = route["direct_response"]["body"]["inline_string"]
            return body
    return None


def best_domain(domains: list[str], host: str) -> str | None:
    """The domain that a host belongs to: exact, the longest suffix, the longest prefix, any."""
    host = host.lower()
    if host in domains:
        return host
    suffixes = [each for each in domains if each[0] == "*" and len(each) > 1]
    prefixes = [each for each in domains if each[-1] == "*" and len(each) > 1 and each[0] != "*"]
    ends = [each for each in suffixes if host.endswith(each[1:]) and len(host) >= len(each)]
    starts = [each for each in prefixes if host.startswith(each[:-1]) and len(host) >= len(each)]
    for found in (ends, starts):
        if found:
            return max(found, key=len)
    return "*" if "*" in domains else None
