"""HTTPRoute and GRPCRoute as routes: their order, and what is not in the table of requests (test_same_routing.py)."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from meshproxy.config.subscription import ROUTE_TYPE
from meshproxy.pilot.snapshot import Proxy
from tests.pilot.resources.support import SHOP_PAGE, mesh_of, resource, sample, snapshot_of

SERVICES = sample("services")


def routes(kind: str, *rules: str, port: int = 9080, name: str = "reviews", proxy: Proxy = SHOP_PAGE) -> list[Any]:
    """The routes of a service with one document of these rules."""
    text = f"""
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: one, namespace: shop}}
spec:
  parentRefs: [{{group: "", kind: Service, name: {name}}}]
  rules: [{", ".join(rules)}]
"""
    found = resource(snapshot_of(mesh_of(f"{SERVICES}\n---\n{text}"), proxy), ROUTE_TYPE, str(port))
    (host,) = [host for host in found.virtual_hosts if host.name.startswith(f"{name}.")]
    return list(host.routes)


def matches(*rules: str, kind: str = "HTTPRoute", **more: Any) -> list[str]:
    """What the routes match, in their order."""
    return [str(_shown(MessageToDict(route.match))) for route in routes(kind, *rules, **more)]


def _shown(match: dict[str, Any]) -> str:
    path = next(match[key] for key in ("prefix", "path", "pathSeparatedPrefix", "safeRegex") if key in match)
    headers = [header["name"] for header in match.get("headers", [])]
    queries = [query["name"] for query in match.get("queryParameters", [])]
    return " ".join([path["regex"] if isinstance(path, dict) else path, *headers, *queries])


TO = "backendRefs: [{name: reviews, port: 9080}]"


def test_more_exact_conditions_come_first_wherever_they_stand() -> None:
    order = matches(
        f"{{{TO}}}",
        f"{{matches: [{{path: {{value: /a}}, queryParams: [{{name: q, value: v}}]}}], {TO}}}",
        f"{{matches: [{{path: {{value: /a}}, headers: [{{name: h, value: v}}]}}], {TO}}}",
        f"{{matches: [{{path: {{value: /a}}, method: GET}}], {TO}}}",
        f"{{matches: [{{path: {{value: /a/long}}}}, {{path: {{value: /a}}}}], {TO}}}",
        f"{{matches: [{{path: {{type: RegularExpression, value: '/[a-z]'}}}}], {TO}}}",
        f"{{matches: [{{path: {{type: Exact, value: /a}}}}], {TO}}}",
    )
    assert order == ["/a", "/a/long", "/a :method", "/a h", "/a q", "/a", "/[a-z]", "/"]


def test_the_exact_root_is_more_exact_than_any_prefix() -> None:
    exact, prefix = "{path: {type: Exact, value: /}}", "{path: {type: PathPrefix, value: /}, method: GET}"
    (first, _) = routes("HTTPRoute", f"{{matches: [{prefix}], {TO}}}", f"{{matches: [{exact}], {TO}}}")
    assert first.match.path == "/"


def test_methods_of_grpc() -> None:
    to = "backendRefs: [{name: ratings, port: 9090}]"
    order = matches(
        f"{{{to}}}",
        f"{{matches: [{{method: {{service: a.B}}}}], {to}}}",
        f"{{matches: [{{method: {{method: Get}}}}], {to}}}",
        f"{{matches: [{{method: {{service: a.B, method: Get}}}}], {to}}}",
        f"{{matches: [{{method: {{service: a.B, method: Get}}, headers: [{{name: h, value: v}}]}}], {to}}}",
        f"{{matches: [{{method: {{type: RegularExpression, service: 'a\\..', method: 'G.*|P.*'}}}}], {to}}}",
        kind="GRPCRoute",
        name="ratings",
        port=9090,
    )
    assert order == ["/a.B/Get h", "/a.B/Get", "/a.B/", "/[^/]+/Get", "/(?:a\\..)/(?:G.*|P.*)", "/"]


@pytest.mark.parametrize(
    ("fields", "timeout", "per_try", "attempts"),
    [
        ("", "0s", None, 2),
        ("timeouts: {request: 5s}", "5s", None, 2),
        ("timeouts: {request: 0s}", "0s", None, 2),
        ("timeouts: {backendRequest: 2s}", "0s", "2s", 2),
        ("timeouts: {request: 5s, backendRequest: 2s}", "5s", "2s", 2),
        ("timeouts: {request: 5s, backendRequest: 2s}, retry: {attempts: 0}", "2s", None, None),
        ("timeouts: {backendRequest: 2s}, retry: {attempts: 3, codes: [503]}", "0s", "2s", 3),
        ("retry: {codes: [503]}", "0s", None, 1),
    ],
)
def test_times_and_retries(fields: str, timeout: str, per_try: str | None, attempts: int | None) -> None:
    (route,) = routes("HTTPRoute", f"{{{TO}, {fields}}}" if fields else f"{{{TO}}}")
    action = MessageToDict(route.route)
    policy = action.get("retryPolicy", {})
    assert (action["timeout"], policy.get("perTryTimeout"), policy.get("numRetries")) == (timeout, per_try, attempts)
    if "codes" in fields:
        assert policy["retriableStatusCodes"] == [503]


def test_a_mirror_by_its_fraction() -> None:
    mirror = "requestMirror: {backendRef: {name: ratings, port: 9080}, fraction: {numerator: 1, denominator: 1000}}"
    mirror = f"{{type: RequestMirror, {mirror}}}"
    (route,) = routes("HTTPRoute", f"{{{TO}, filters: [{mirror}]}}")
    (policy,) = route.route.request_mirror_policies
    assert policy.cluster == "outbound|9080||ratings.shop.svc.cluster.local"
    assert policy.runtime_fraction.default_value.numerator == 1_000
    assert policy.runtime_fraction.default_value.denominator == policy.runtime_fraction.default_value.MILLION


@pytest.mark.parametrize("rules", ["{}", "{backendRefs: [{name: reviews, port: 9080, weight: 0}]}"])
def test_without_a_backend_it_is_500(rules: str) -> None:
    (route,) = routes("HTTPRoute", rules)
    assert route.direct_response.status == 500


def test_a_route_of_the_callers_namespace_is_for_its_own_calls_alone() -> None:
    text = (
        f"{SERVICES}\n---\n"
        """
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mine, namespace: other}
spec:
  parentRefs: [{group: "", kind: Service, name: reviews, namespace: shop}]
  rules: [{backendRefs: [{name: ratings, namespace: shop, port: 9080}]}]
"""
    )
    seen = {}
    for namespace in ("shop", "other"):
        proxy = Proxy("p", namespace=namespace)
        hosts = resource(snapshot_of(mesh_of(text), proxy), ROUTE_TYPE, "9080").virtual_hosts
        seen[namespace] = [host.routes[0].route.cluster for host in hosts if host.name.startswith("reviews.")]
    assert seen == {
        "shop": ["outbound|9080||reviews.shop.svc.cluster.local"],
        "other": ["outbound|9080||ratings.shop.svc.cluster.local"],
    }
