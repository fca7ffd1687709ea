"""Random route tables and random requests: which route answers, how it redirects, and what it makes of the request.

The gate draws the same tables every time; `make test-long` draws others on every run and names the seed of what fails.
"""

import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.differential.cases import request
from tests.differential.conftest import runnable
from tests.differential.outcome import Outcome
from tests.differential.pair import Pair, Side, start_pair
from tests.differential.topic import Topic
from tests.support.downstream import RawDownstream
from tests.support.upstream import reply

TABLES = 60
ROUTES = 12
REQUESTS = 40
SEED = 20240607
LONG_ROUNDS = 15

SEGMENTS = ("a", "b", "ab", "A", "aB", "v1", "x.html", "")
VALUES = ("", "a", "b", "ab", "abc", "1", "12", "-3", "A")
REGEXES = ("a.*", "[ab]+", "\\d+", "a|b", ".*c", "(?i)ab?", ".+", "a{1,2}")
PATH_REGEXES = ("/a.*", "/[ab]+", "/(a|b)/.*", "/.*\\.html", "/a/?", "/v\\d+/.+", "/.+")
TEMPLATES = ("/a/*", "/a/{x}", "/{x}/b", "/a/**", "/{x=v1/*}/b", "/*", "/{x}/{y=**}")
DOMAINS = ("{}.test", "*.{}.test", "{}.*", "*-{}.test")
CLUSTERS = ("a", "b", "c")
FORMATS = ("v", "%REQ(x-a)%", "%REQ(X-None?x-b)%-%REQ(:PATH)%", "%REQ(:METHOD):2%", "%PROTOCOL%", "100%%")
APPEND_ACTIONS = ("APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS")
REWRITES = (("a", "z"), ("^/([^/]+)", "/r-\\1"), ("/+", "/"), ("(.)\\.html$", "\\1"), ("none", "x"))
REDIRECT_CODES = ("MOVED_PERMANENTLY", "FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT")
MATCH_TEMPLATE = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
REWRITE_TEMPLATE = {
    "@type": "type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig",
    "path_template_rewrite": "/rewritten",
}
UPSTREAM = (reply(200, b"from upstream", [("x-up", "1"), ("x-up", "2")]),)

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
    if rng.random() < 0.3:
        match["headers"] = [header_match(rng) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.2:
        match["query_parameters"] = [query_match(rng)]
    if rng.random() < 0.1:
        match["runtime_fraction"] = {"default_value": {"numerator": rng.choice((0, 100))}}
    return match


def route(rng: random.Random, text: str) -> Yaml:
    """A route that answers with `text`, redirects, or sends the request upstream."""
    match = route_match(rng)
    kind = rng.choice(("direct", "direct", "redirect", "cluster", "cluster"))
    if kind == "direct":
        return {"match": match, "direct_response": {"status": 200, "body": {"inline_string": text}}} | some(
            rng, responses
        )
    if kind == "redirect":
        action = redirect(rng)
        if "path_match_policy" in match:
            action.pop("prefix_rewrite", None)  # Envoy refuses the two together
        return {"match": match, "redirect": action} | some(rng, responses)
    action = cluster_action(rng)
    if "path_match_policy" in match and action.pop("prefix_rewrite", None):
        action["path_rewrite_policy"] = {"name": "rewrite", "typed_config": REWRITE_TEMPLATE}
    return {"match": match, "name": text, "route": action} | some(rng, requests) | some(rng, responses)


def some(rng: random.Random, fields: Callable[[random.Random], Yaml]) -> Yaml:
    """These fields, or not."""
    return fields(rng) if rng.random() < 0.4 else {}


def header_option(rng: random.Random, names: tuple[str, ...]) -> Yaml:
    """A HeaderValueOption."""
    header = {"key": rng.choice(names), "value": rng.choice(FORMATS)}
    return {"header": header, "append_action": rng.choice(APPEND_ACTIONS)}


def requests(rng: random.Random) -> Yaml:
    """Header operations on requests."""
    added = [header_option(rng, ("x-a", "x-b", "x-new", "X-Upper")) for _ in range(rng.randint(1, 3))]
    return {"request_headers_to_add": added} | rng.choice(({}, {"request_headers_to_remove": ["x-b"]}))


def responses(rng: random.Random) -> Yaml:
    """Header operations on responses."""
    added = [header_option(rng, ("x-up", "x-new", "server")) for _ in range(rng.randint(1, 2))]
    return {"response_headers_to_add": added} | rng.choice(({}, {"response_headers_to_remove": ["x-up"]}))


def redirect(rng: random.Random) -> Yaml:
    """A RedirectAction."""
    action: Yaml = {"response_code": rng.choice(REDIRECT_CODES)}
    if rng.random() < 0.4:
        action["host_redirect"] = "elsewhere.test"
    action |= rng.choice(({}, {"https_redirect": True}, {"scheme_redirect": "ftp"}))
    action |= rng.choice(
        (
            {},
            {"path_redirect": "/p"},
            {"path_redirect": "/p?s=1"},
            {"prefix_rewrite": "/q"},
            {"regex_rewrite": regex(rng)},
        )
    )
    return action | rng.choice(({}, {"strip_query": True}, {"port_redirect": 8443}))


def regex(rng: random.Random) -> Yaml:
    """A RegexMatchAndSubstitute."""
    pattern, substitution = rng.choice(REWRITES)
    return {"pattern": {"regex": pattern}, "substitution": substitution}


def cluster_action(rng: random.Random) -> Yaml:
    """A RouteAction; where the cluster is a matter of weights, one has all of it."""
    action: Yaml = rng.choice(({"cluster": rng.choice(CLUSTERS)}, {"cluster_header": "x-b"}, weighted(rng)))
    action |= rng.choice(({}, {"prefix_rewrite": "/n"}, {"prefix_rewrite": "/"}, {"regex_rewrite": regex(rng)}))
    action |= rng.choice(
        (
            {},
            {"host_rewrite_literal": "new.test"},
            {"host_rewrite_header": "x-a"},
            {"host_rewrite_path_regex": {"pattern": {"regex": "^/([^/?]*).*"}, "substitution": "\\1.test"}},
        )
    )
    return action | rng.choice(({}, {"append_x_forwarded_host": True}, {"timeout": "3s"}))


def weighted(rng: random.Random) -> Yaml:
    """Clusters of which one has all of the weight."""
    heavy = rng.choice(CLUSTERS)
    clusters = [
        {"name": name, "weight": 7 if name == heavy else 0} | some(rng, requests) | some(rng, responses)
        for name in CLUSTERS
    ]
    return {"weighted_clusters": {"clusters": clusters}}


def virtual_host(rng: random.Random, number: int) -> Yaml:
    """A table; its domain is of any kind."""
    domain = DOMAINS[number % len(DOMAINS)].format(f"t{number}")
    host: Yaml = {
        "name": f"t{number}",
        "domains": [domain],
        "routes": [route(rng, f"{number}.{n}") for n in range(ROUTES)],
    }
    if rng.random() < 0.2:
        host["include_request_attempt_count"] = True
    return host | some(rng, requests) | some(rng, responses)


def random_request(rng: random.Random, number: int) -> bytes:
    """A request for a table, or sometimes for none."""
    hosts = (f"t{number}.test", f"x.t{number}.test", f"t{number}.com", f"x-t{number}.test")
    host = hosts[number % len(hosts)] if rng.random() < 0.95 else rng.choice(hosts)
    query = "&".join(f"{rng.choice('qr')}={rng.choice(VALUES)}" for _ in range(rng.randint(1, 2)))
    headers = [(rng.choice(("x-a", "x-b")), rng.choice(VALUES)) for _ in range(rng.randint(0, 3))]
    target = path(rng) + (f"?{query}" if rng.random() < 0.5 else "")
    return request(rng.choice(("GET", "POST", "PUT")), target, headers, b"" if rng.random() < 0.3 else None, host=host)


def topic(seed: int) -> Topic:
    """The tables of a seed."""
    return Topic(vhosts=yaml.dump([virtual_host(random.Random(seed + number), number) for number in range(TABLES)]))


def requests_of(seed: int, table: int) -> list[bytes]:
    """The requests of a table."""
    rng = random.Random(seed * 31 + table)
    return [random_request(rng, table) for _ in range(REQUESTS)]


TOPIC = topic(SEED)


@pytest.mark.parametrize("table", range(TABLES))
def test_table(pair: Pair, table: int) -> None:
    check(pair, SEED, table)


@pytest.mark.long
@pytest.mark.parametrize("round_number", range(LONG_ROUNDS))
def test_other_tables(round_number: int) -> None:
    """MESHPROXY_ROUTES_SEED repeats what failed."""
    seed = int(os.environ.get("MESHPROXY_ROUTES_SEED", random.randrange(1 << 30)))
    print(f"MESHPROXY_ROUTES_SEED={seed}")
    with start_pair(runnable(topic(seed))) as pair:
        for table in range(TABLES):
            check(pair, seed, table)


def check(pair: Pair, seed: int, table: int) -> None:
    """Both proxies do the same with every request of a table."""
    requests = requests_of(seed, table)
    answers = [ask_all(side, requests) for side in (pair.reference, pair.subject)]
    for sent, expected, actual in zip(requests, *answers, strict=True):
        assert actual == expected, f"MESHPROXY_ROUTES_SEED={seed}: table {table}, {sent!r}"


def ask_all(side: Side, requests: list[bytes]) -> list[list[str]]:
    """Every request on one connection: what came back, and what reached the upstream."""
    answers = []
    with RawDownstream(side.ports["main"]) as downstream:
        for sent in requests:
            script = side.upstream.play(UPSTREAM)
            downstream.send(sent)
            message = downstream.receive()
            ports = side.port_names | {downstream.local_port: "<downstream>"}
            outcome = Outcome([message], seen=list(script.seen), ports=ports, given=sent)
            answers.append(outcome.lines(ordered=True))
    return answers


def test_tables_answer_with_many_routes(pair: Pair) -> None:
    """The generator is worth its time: requests match, not always the same route, and go every way that there is."""
    answers = [answer for table in range(TABLES) for answer in ask_all(pair.reference, requests_of(SEED, table))]
    words = Counter(line for answer in answers for line in answer if line.startswith(("response 1: ", "  body: ")))
    statuses = Counter(line.split()[3] for line in words.elements() if line.startswith("response"))
    assert statuses["404"] < len(answers) / 2
    assert min(statuses[status] for status in ("200", "301", "302", "303", "307", "308")) > 5
    assert sum(1 for word in words if word.startswith("  body")) > TABLES * 1.5
    for server in CLUSTERS:
        assert sum(any(f" at {server}: " in line for line in answer) for answer in answers) > 50
