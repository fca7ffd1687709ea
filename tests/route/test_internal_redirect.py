"""The internal redirect policy: what it follows, its predicates, and what is refused."""

from __future__ import annotations

from envoy.config.route.v3.route_components_pb2 import RouteAction

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.route.internal_redirect import (
    InternalRedirectPolicy,
    PreviousRoutes,
    RedirectHistory,
    build_internal_redirect,
)

OTHER = "type.googleapis.com/envoy.config.core.v3.Address"
PREDICATES = "type.googleapis.com/envoy.extensions.internal_redirect."


def build(**fields: object) -> tuple[InternalRedirectPolicy | None, list[str]]:
    """The policy of a route action, and the paths of its errors."""
    errors = ConfigErrors()
    message = RouteAction()
    MessageParser(errors).fill(message, {"cluster": "a", **fields}, "p")
    policy = build_internal_redirect(message, "p", errors)
    return policy, [str(error).partition(": ")[0] for error in errors.items]


def predicate(kind: str, **fields: object) -> dict[str, object]:
    return {"name": "x", "typed_config": {"@type": PREDICATES + kind, **fields}}


def test_nothing_is_followed_unless_it_says_so() -> None:
    assert build() == (None, [])
    assert build(max_internal_redirects=2) == (None, [])
    assert build(internal_redirect_action="PASS_THROUGH_INTERNAL_REDIRECT") == (None, [])


def test_defaults() -> None:
    policy, errors = build(internal_redirect_policy={})
    assert policy is not None
    assert not errors
    assert (policy.max_redirects, set(policy.statuses), policy.allows_cross_scheme) == (1, {302}, False)


def test_only_redirects_are_redirects() -> None:
    policy, _ = build(internal_redirect_policy={"redirect_response_codes": [200, 301, 304, 308]})
    assert policy is not None
    assert set(policy.statuses) == {301, 308}


def test_the_deprecated_fields() -> None:
    policy, _ = build(internal_redirect_action="HANDLE_INTERNAL_REDIRECT", max_internal_redirects=3)
    assert policy is not None
    assert (policy.max_redirects, set(policy.statuses)) == (3, {302})
    policy, _ = build(internal_redirect_policy={}, max_internal_redirects=3)
    assert policy is not None
    assert policy.max_redirects == 1


def test_predicates() -> None:
    listed = predicate("allow_listed_routes.v3.AllowListedRoutesConfig", allowed_route_names=["x", "y"])
    policy, errors = build(
        internal_redirect_policy={"predicates": [listed, predicate("safe_cross_scheme.v3.SafeCrossSchemeConfig")]}
    )
    assert policy is not None
    assert not errors
    routes, safe = policy.predicates
    history = RedirectHistory()
    assert [routes.accepts("s", target, history, False, False) for target in ("x", "y", "z")] == [True, True, False]
    secure = [safe.accepts("s", "x", history, now, then) for now in (False, True) for then in (False, True)]
    assert secure == [True, False, True, True]


def test_previous_routes_are_those_of_one_source() -> None:
    history = RedirectHistory()
    accepts = [
        PreviousRoutes().accepts(source, target, history, False, False)
        for source, target in (("a", "x"), ("a", "y"), ("a", "x"), ("b", "x"), ("b", "x"))
    ]
    assert accepts == [True, True, False, True, False]


def test_refused() -> None:
    _, errors = build(
        internal_redirect_policy={
            "response_headers_to_copy": ["x-a", ":path", "Host"],
            "predicates": [{"name": "x", "typed_config": {"@type": OTHER}}],
        }
    )
    at = "p.internal_redirect_policy."
    assert errors == [
        f"{at}response_headers_to_copy[1]",
        f"{at}response_headers_to_copy[2]",
        f"{at}predicates[0].typed_config",
    ]
