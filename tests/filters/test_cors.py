"""The cors filter. What is expected was recorded from Envoy 1.40 on the same configuration and requests."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.cors.v3.cors_pb2 import CorsPolicy

from meshproxy.codec.headers import Field
from meshproxy.config.runtime import Layer
from meshproxy.filters.http import cors
from tests.http.harness import Harness, ScriptedUpstream, get, head, parse

ANSWER: list[Field] = [
    (b":status", b"200"),
    (b"access-control-allow-origin", b"upstream"),
    (b"access-control-expose-headers", b"up"),
    (b"vary", b"origin"),
]
ORIGINS = [{"exact": "http://ok.com"}, {"suffix": ".good.org", "ignore_case": True}]
OK = ("origin", "http://ok.com")
BAD = ("origin", "http://bad.com")
PREFLIGHT = (("access-control-request-method", "PUT"), ("access-control-request-private-network", "true"))
UNTOUCHED = head(
    "200 OK",
    ("access-control-allow-origin", "upstream"),
    ("access-control-expose-headers", "up"),
    ("vary", "origin"),
    ("content-length", "0"),
)
ALWAYS = {"default_value": {"numerator": 100}}
NEVER = {"default_value": {"numerator": 0}}


def per_filter(policy: dict[str, Any] | None) -> dict[str, Any]:
    if policy is None:
        return {}
    kind = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy"
    return {"typed_per_filter_config": {"cors": {"@type": kind, **policy}}}


def harness(
    route: dict[str, Any] | None = None, host: dict[str, Any] | None = None, action: dict[str, Any] | None = None
) -> Harness:
    """One route to a cluster (or with another action) and its virtual host, with their policies."""
    entry = {"match": {"prefix": "/"}, **(action or {"route": {"cluster": "a"}}), **per_filter(route)}
    virtual_host = {"name": "v", "domains": ["*"], "routes": [entry], **per_filter(host)}
    made = Harness({"virtual_hosts": [virtual_host]}, upstream=ScriptedUpstream(ANSWER))
    made.add(cors.build_cors(None, "", made.context), "cors")
    return made


def preflight(*fields: tuple[str, str]) -> bytes:
    return get("/", *fields, *PREFLIGHT, method="OPTIONS")


def counts(made: Harness) -> tuple[int, int]:
    stats = made.registry.acquire("http.test.cors.", cors.CorsStats)
    return stats.origin_valid, stats.origin_invalid


FULL = {
    "allow_origin_string_match": ORIGINS,
    "allow_methods": "GET,PUT",
    "allow_headers": "x-a,x-b",
    "expose_headers": "x-exp",
    "max_age": "600",
    "allow_credentials": True,
    "allow_private_network_access": True,
}


def test_an_allowed_origin_may_read_the_response() -> None:
    made = harness(FULL)
    assert made.exchange(get("/", OK)) == head(
        "200 OK",
        ("access-control-allow-origin", "http://ok.com"),
        ("access-control-expose-headers", "x-exp"),
        ("vary", "origin"),
        ("access-control-allow-credentials", "true"),
        ("content-length", "0"),
    )
    assert counts(made) == (1, 0)


def test_a_preflight_is_answered_and_not_forwarded() -> None:
    made = harness(FULL)
    assert made.exchange(preflight(OK)) == head(
        "200 OK",
        ("access-control-allow-origin", "http://ok.com"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET,PUT"),
        ("access-control-allow-headers", "x-a,x-b"),
        ("access-control-max-age", "600"),
        ("access-control-allow-private-network", "true"),
        ("access-control-expose-headers", "x-exp"),
        ("content-length", "0"),
    )
    assert made.upstream.seen == []
    assert counts(made) == (1, 0)


@pytest.mark.parametrize("wish", [(), (("access-control-request-private-network", "TRUE"),)])
def test_private_network_access_is_granted_only_where_it_is_asked_for(wish: tuple[tuple[str, str], ...]) -> None:
    request = get("/", OK, ("access-control-request-method", "PUT"), *wish, method="OPTIONS")
    answer = harness(FULL).exchange(request)
    assert b"access-control-allow-methods: GET,PUT" in answer
    assert b"private-network" not in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/"),
        get("/", ("origin", "")),
        get("/", ("access-control-request-method", "PUT"), method="OPTIONS"),
    ],
)
def test_without_an_origin_nothing_happens(request_bytes: bytes) -> None:
    made = harness(FULL)
    assert made.exchange(request_bytes) == UNTOUCHED
    assert counts(made) == (0, 0)


@pytest.mark.parametrize("request_bytes", [get("/", BAD), preflight(BAD), get("/", ("origin", "HTTP://OK.com"))])
def test_another_origin_gets_the_response_as_it_is(request_bytes: bytes) -> None:
    made = harness(FULL)
    assert made.exchange(request_bytes) == UNTOUCHED
    assert counts(made) == (0, 1)


def test_several_origins_are_one_that_does_not_match() -> None:
    assert harness(FULL).exchange(get("/", OK, OK)) == UNTOUCHED


def test_the_origin_is_repeated_as_it_was_spelt() -> None:
    answer = harness(FULL).exchange(get("/", ("origin", "HTTP://X.GOOD.ORG")))
    assert b"access-control-allow-origin: HTTP://X.GOOD.ORG\r\n" in answer


@pytest.mark.parametrize("fields", [[OK], [OK, ("access-control-request-method", "")]])
def test_options_without_a_requested_method_is_no_preflight(fields: list[tuple[str, str]]) -> None:
    made = harness(FULL)
    answer = made.exchange(get("/", *fields, method="OPTIONS"))
    assert b"access-control-allow-origin: http://ok.com" in answer
    assert len(made.upstream.seen) == 1


def test_a_preflight_of_another_origin_can_be_answered_with_what_allows_nobody() -> None:
    made = harness(FULL | {"forward_not_matching_preflights": False})
    assert made.exchange(preflight(BAD)) == head(
        "200 OK",
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET,PUT"),
        ("access-control-allow-headers", "x-a,x-b"),
        ("access-control-max-age", "600"),
        ("access-control-allow-private-network", "true"),
        ("content-length", "0"),
    )
    assert made.upstream.seen == []
    assert counts(made) == (0, 1)
    assert made.exchange(get("/", BAD)) == UNTOUCHED


@pytest.mark.parametrize("matcher", [{"exact": "*"}, {"safe_regex": {"regex": ".*"}}])
def test_a_star_stands_for_every_origin(matcher: dict[str, Any]) -> None:
    made = harness({"allow_origin_string_match": [matcher]})
    assert b"access-control-allow-origin: http://bad.com\r\n" in made.exchange(get("/", BAD))
    assert counts(made) == (1, 0)


@pytest.mark.parametrize("asked", ["x-z, X-Y", ""])
def test_where_everything_is_allowed_what_is_asked_for_is_repeated(asked: str) -> None:
    policy = {"allow_origin_string_match": ORIGINS, "allow_methods": "*", "allow_headers": "*", "expose_headers": "*"}
    fields = [OK, ("access-control-request-method", "PUT"), ("access-control-request-headers", asked)]
    assert harness(policy).exchange(get("/", *fields, method="OPTIONS")) == head(
        "200 OK",
        ("access-control-allow-origin", "http://ok.com"),
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", asked),
        ("access-control-expose-headers", "*"),
        ("content-length", "0"),
    )


HOST = {
    "allow_origin_string_match": ORIGINS,
    "allow_methods": "VH,GET",
    "allow_headers": "vh-h",
    "expose_headers": "vh-exp",
    "max_age": "10",
    "allow_credentials": True,
}


def test_what_a_route_leaves_open_comes_from_its_virtual_host() -> None:
    assert harness({"allow_methods": "ROUTE"}, HOST).exchange(preflight(OK)) == head(
        "200 OK",
        ("access-control-allow-origin", "http://ok.com"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "ROUTE"),
        ("access-control-allow-headers", "vh-h"),
        ("access-control-max-age", "10"),
        ("access-control-expose-headers", "vh-exp"),
        ("content-length", "0"),
    )


def test_a_route_may_take_credentials_back() -> None:
    answer = harness({"allow_credentials": False}, HOST).exchange(get("/", OK))
    assert b"access-control-allow-origin: http://ok.com" in answer
    assert b"credentials" not in answer


def test_origins_of_a_route_replace_those_of_the_virtual_host() -> None:
    made = harness({"allow_origin_string_match": [{"exact": "http://route.com"}]}, HOST)
    assert made.exchange(get("/", OK)) == UNTOUCHED
    assert b"access-control-allow-origin: http://route.com" in made.exchange(get("/", ("origin", "http://route.com")))


def test_the_most_specific_policy_alone_says_whether_it_is_enforced() -> None:
    made = harness({"allow_methods": "X"}, HOST | {"filter_enabled": NEVER})
    assert b"access-control-allow-methods: X" in made.exchange(preflight(OK))


def test_a_policy_that_is_not_enforced_does_nothing() -> None:
    made = harness(FULL | {"filter_enabled": NEVER})
    assert made.exchange(get("/", OK)) == UNTOUCHED
    assert made.exchange(preflight(OK)) == UNTOUCHED
    assert counts(made) == (0, 0)


def test_a_shadowed_policy_only_counts() -> None:
    made = harness(FULL | {"filter_enabled": NEVER, "shadow_enabled": ALWAYS, "forward_not_matching_preflights": False})
    assert made.exchange(get("/", OK)) == UNTOUCHED
    assert made.exchange(preflight(BAD)) == UNTOUCHED
    assert counts(made) == (1, 1)


def test_runtime_switches_a_policy_on() -> None:
    made = harness(FULL | {"filter_enabled": {"runtime_key": "cors.on", **NEVER}})
    manager = made.config()
    assert made.connect(manager).send(get("/", OK)) == UNTOUCHED
    made.runtime.replace_layers([Layer("static", {"cors.on": 100})])
    assert b"access-control-allow-origin: http://ok.com" in made.connect(manager).send(get("/", OK))


@pytest.mark.parametrize(
    "action", [{"direct_response": {"status": 403}}, {"redirect": {"path_redirect": "/x"}}], ids=["direct", "redirect"]
)
def test_a_route_that_answers_by_itself_has_no_policy(action: dict[str, Any]) -> None:
    """Envoy does not look at the policies of such routes, nor count their origins."""
    made = harness(FULL, HOST, action)
    made.exchange(preflight(OK))
    assert counts(made) == (0, 0)
    assert len(made.upstream.seen) == 1


def test_no_policy_at_all() -> None:
    made = harness()
    assert made.exchange(preflight(OK)) == UNTOUCHED
    assert counts(made) == (0, 0)


def test_a_matcher_that_does_not_compile_is_an_error_at_its_path() -> None:
    made = Harness()
    message = parse({"allow_origin_string_match": [{"safe_regex": {"regex": "("}}]}, CorsPolicy())
    cors.build_policy(message, "p", made.context)
    assert [error.path for error in made.errors.items] == ["p.allow_origin_string_match[0].safe_regex.regex"]
