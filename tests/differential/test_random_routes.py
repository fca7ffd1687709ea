"""Random route tables and random requests: the route that answers says its number."""

import random
from typing import Any

import pytest
import yaml

from tests.differential.cases import request
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.downstream import RawDownstream

TABLES = 60
ROUTES = 12
REQUESTS = 40
SEED = 20240607

SEGMENTS = ("a", "b", "ab", "A", "aB", "v1", "x.html", "")
VALUES = ("", "a", "b", "ab", "abc", "1", "12", "-3", "A")
REGEXES = ("a.*", "[ab]+", "\\d+", "a|b", ".*c", "(?i)ab?", ".+", "a{1,2}")
PATH_REGEXES = ("/a.*", "/[ab]+", "/(a|b)/.*", "/.*\\.html", "/a/?", "/v\\d+/.+", "/.+")
TEMPLATES = ("/a/*", "/a/{x}", "/{x}/b", "/a/**", "/{x=v1/*}/b", "/*", "/{x}/{y=**}")
DOMAINS = ("{}.test", "*.{}.test", "{}.*", "*-{}.test")
MATCH_TEMPLATE = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"

Yaml = dict[str, Any]


def path(rng: random.Random) -> str:
    """A request path."""
    return "/" + "/".join(rng.choice(SEGMENTS) for _ in range(rng.randint(1, 3)))


def string_match(rng: random.Random, *, regexes: tuple[str, ...] = REGEXES) -> Yaml:
    """A StringMatcher."""
    kind = rng.choice(("exact", "prefix", "suffix", "contains", "safe_regex"))
    if kind == "safe_regex":
        return {kind: {"regex": rng.choice(regexes)}}
    value = rng.choice(VALUES if kind == "exact" else VALUES[1:])
    return {kind: value} | ({"ignore_case": True} if rng.random() < 0.3 else {})


def header_match(rng: random.Random) -> Yaml:
    """A HeaderMatcher."""
    match: Yaml = {"name": rng.choice(("x-a", "x-b"))}
    kind = rng.choice(("present", "range", "string", "string", "string"))
    if kind == "present":
        match["present_match"] = rng.random() < 0.7
    elif kind == "range":
        start = rng.randint(-5, 10)
        match["range_match"] = {"start": start, "end": start + rng.randint(1, 10)}
    else:
        match["string_match"] = string_match(rng)
    match |= {"invert_match": True} if rng.random() < 0.25 else {}
    return match | ({"treat_missing_header_as_empty": True} if rng.random() < 0.25 else {})


def query_match(rng: random.Random) -> Yaml:
    """A QueryParameterMatcher."""
    match: Yaml = {"name": rng.choice(("q", "r"))}
    return match | (
        {"present_match": rng.random() < 0.7} if rng.random() < 0.3 else {"string_match": string_match(rng)}
    )


def route_match(rng: random.Random) -> Yaml:
    """A RouteMatch."""
    kind = rng.choice(("prefix", "prefix", "path", "path_separated_prefix", "safe_regex", "template"))
    match: Yaml
    if kind == "safe_regex":
        match = {kind: {"regex": rng.choice(PATH_REGEXES)}}
    elif kind == "template":
        typed = {"@type": MATCH_TEMPLATE, "path_template": rng.choice(TEMPLATES)}
        match = {"path_match_policy": {"name": "template", "typed_config": typed}}
    elif kind == "path_separated_prefix":
        match = {kind: "/" + "/".join(rng.choice(SEGMENTS[:-1]) for _ in range(rng.randint(1, 2)))}
    else:
        match = {kind: path(rng)}
    if kind in ("prefix", "path", "path_separated_prefix") and rng.random() < 0.3:
        match["case_sensitive"] = False
    if rng.random() < 0.5:
        match["headers"] = [header_match(rng) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.3:
        match["query_parameters"] = [query_match(rng)]
    if rng.random() < 0.1:
        match["runtime_fraction"] = {"default_value": {"numerator": rng.choice((0, 100))}}
    return match


def route(rng: random.Random, text: str) -> Yaml:
    """A route that answers with `text`."""
    return {"match": route_match(rng), "direct_response": {"status": 200, "body": {"inline_string": text}}}


def virtual_host(rng: random.Random, number: int) -> Yaml:
    """A table; its domain is of any kind."""
    domain = DOMAINS[number % len(DOMAINS)].format(f"t{number}")
    return {"name": f"t{number}", "domains": [domain], "routes": [route(rng, f"{number}.{n}") for n in range(ROUTES)]}


def random_request(rng: random.Random, number: int) -> bytes:
    """A request for a table, or sometimes for none."""
    hosts = (f"t{number}.test", f"x.t{number}.test", f"t{number}.com", f"x-t{number}.test")
    host = hosts[number % len(hosts)] if rng.random() < 0.95 else rng.choice(hosts)
    query = "&".join(f"{rng.choice('qr')}={rng.choice(VALUES)}" for _ in range(rng.randint(1, 2)))
    headers = [(rng.choice(("x-a", "x-b")), rng.choice(VALUES)) for _ in range(rng.randint(0, 3))]
    target = path(rng) + (f"?{query}" if rng.random() < 0.5 else "")
    return request(rng.choice(("GET", "POST", "PUT")), target, headers, b"" if rng.random() < 0.3 else None, host=host)


TOPIC = Topic(vhosts=yaml.dump([virtual_host(random.Random(SEED + number), number) for number in range(TABLES)]))


@pytest.mark.parametrize("table", range(TABLES))
def test_table(pair: Pair, table: int) -> None:
    rng = random.Random(SEED * 31 + table)
    requests = [random_request(rng, table) for _ in range(REQUESTS)]
    answers = [ask_all(side.ports["main"], requests) for side in (pair.reference, pair.subject)]
    for sent, expected, actual in zip(requests, *answers, strict=True):
        assert actual == expected, sent


def ask_all(port: int, requests: list[bytes]) -> list[tuple[int, bytes]]:
    """Every request on one connection: status and body."""
    answers = []
    with RawDownstream(port) as downstream:
        for sent in requests:
            downstream.send(sent)
            message = downstream.receive()
            answers.append((message.status, message.body))
    return answers


def test_tables_answer_with_many_routes(pair: Pair) -> None:
    """The generator is worth its time: most requests match, and not always the same route."""
    rng = random.Random(SEED)
    answers = [
        ask_all(pair.reference.ports["main"], [random_request(rng, table) for _ in range(REQUESTS)])
        for table in range(TABLES)
    ]
    matched = [body for table in answers for status, body in table if status == 200]
    assert len(matched) > TABLES * REQUESTS / 3
    assert len(set(matched)) > TABLES * 3
