"""What a build gives and what it refuses; what matching alone cannot show."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2

from meshproxy.config.context import BuildContext
from meshproxy.config.json_message import MessageParser
from meshproxy.config.registry import Registry
from meshproxy.config.runtime import Layer, Runtime
from meshproxy.route.build import OverrideBuilder, build_route_configuration
from meshproxy.route.route import DISABLED, ENABLED, Route, VirtualHost
from meshproxy.route.table import RouteTable
from tests.route.support import build, build_routes, new_context, new_headers, new_info, try_build

FAULT = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
FILTER_CONFIG = "type.googleapis.com/envoy.config.route.v3.FilterConfig"


def match(table: RouteTable, path: str = "/", random: int = 0, **fields: str) -> Route:
    """The route of a request that has one."""
    headers = new_headers(path, fields=list(fields.items()))
    route = table.match(headers, new_info(headers), random)
    assert route is not None
    return route


def test_all_errors_with_their_paths() -> None:
    _, errors = try_build(
        """
        name: r
        virtual_hosts:
        - name: a
          domains: ["a", "A"]
          routes:
          - match: {safe_regex: {regex: "("}}
            route: {cluster: c}
          - match: {prefix: "/"}
            request_headers_to_add: [{header: {key: ":path", value: x}}, {header: {key: a, value: "%NOPE%"}}]
            request_headers_to_remove: [Host]
            route: {cluster: c, prefix_rewrite: /a, path_rewrite: /b}
          - match: {prefix: "/"}
            route: {weighted_clusters: {clusters: [{name: a, weight: 0}]}}
          - match: {prefix: "/"}
          - match: {path_match_policy: {name: t, typed_config: {"@type": TEMPLATE, path_template: "/a/*"}}}
            redirect: {prefix_rewrite: /b}
        """.replace(
            "TEMPLATE", "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
        )
    )
    routes = "route_config.virtual_hosts[0].routes"
    starts = [
        f"{routes}[0].match.safe_regex.regex: ",
        f"{routes}[1].route: only one of ",
        f"{routes}[1].request_headers_to_add[0].header.key: :-prefixed or host headers may not be modified",
        f"{routes}[1].request_headers_to_add[1].header.value: ",
        f"{routes}[1].request_headers_to_remove[0]: :-prefixed or host headers may not be removed",
        f"{routes}[2].route.weighted_clusters: Sum of weights in the weighted_cluster must be greater than 0.",
        f"{routes}[3]: an action is required",
        f"{routes}[4].redirect.prefix_rewrite: must not stand beside path_match_policy",
        "route_config.virtual_hosts[0].domains[1]: Only unique values for domains are permitted.",
    ]
    missing = [start for start in starts if not any(error.startswith(start) for error in errors)]
    assert not missing, errors
    assert len(errors) == len(starts), errors


def test_clusters_are_named_with_their_paths() -> None:
    table = build_routes(
        """
        - match: {path: /a}
          route: {cluster: one}
        - match: {path: /b}
          route: {weighted_clusters: {clusters: [{name: two, weight: 1}, {cluster_header: X-C, weight: 1}]}}
        - match: {path: /c}
          route: {cluster_header: X-C, cluster_not_found_response_code: NOT_FOUND}
        """
    )
    at = "route_config.virtual_hosts[0].routes"
    assert table.referenced == [
        ("one", f"{at}[0].route.cluster"),
        ("two", f"{at}[1].route.weighted_clusters.clusters[0].name"),
    ]
    assert table.clusters == {"one", "two"}
    assert table.check_clusters(lambda name: name == "one") == table.referenced[1:]
    by_header = match(table, "/c")
    assert by_header.resolve_cluster(new_headers(fields=[("x-c", "three"), ("x-c", "four")])) == "three"
    assert by_header.resolve_cluster(new_headers()) == ""
    assert by_header.cluster_not_found_status == 404
    assert match(table, "/b", random=1).cluster_header == b"x-c"


def test_timeouts() -> None:
    table = build_routes(
        """
        - match: {path: /a}
          route: {cluster: c}
        - match: {path: /b}
          route:
            cluster: c
            timeout: 0s
            idle_timeout: 1.5s
            max_stream_duration: {max_stream_duration: 2s}
        """
    )
    plain, own = match(table, "/a"), match(table, "/b")
    assert (plain.timeout_ms, plain.idle_timeout_ms, plain.max_stream_duration_ms) == (15_000, None, None)
    assert (own.timeout_ms, own.idle_timeout_ms, own.max_stream_duration_ms) == (0, 1500, 2000)


def test_runtime_changes_fractions_and_weights() -> None:
    runtime = Runtime([Layer("admin", is_admin=True)])
    context = new_context()
    context.runtime = runtime
    table = build(
        """
        name: r
        virtual_hosts:
        - name: v
          domains: ["*"]
          routes:
          - match: {prefix: /f, runtime_fraction: {default_value: {numerator: 30}, runtime_key: f.share}}
            route: {cluster: share}
          - match: {prefix: /}
            route: {weighted_clusters: {runtime_key_prefix: w, clusters: [{name: a, weight: 9}, {name: b, weight: 1}]}}
        """,
        context,
    )
    assert [match(table, "/f", random=n).cluster_name for n in (129, 130)] == ["share", "a"]
    assert [match(table, random=n).cluster_name for n in (8, 9, 10)] == ["a", "b", "a"]
    runtime.modify({"f.share": "31", "w.a": "1"})
    assert match(table, "/f", random=130).cluster_name == "share"
    assert [match(table, random=n).cluster_name for n in (0, 1, 2)] == ["a", "b", "a"]


class Built:
    """What an override's builder made."""

    def __init__(self, percentage: int) -> None:
        self.percentage = percentage


def build_fault(message: Any, path: str, context: BuildContext) -> object:
    """The builder that a filter registers."""
    return Built(message.abort.percentage.numerator)


def fault(percentage: int) -> dict[str, Any]:
    """An override of the fault filter."""
    return {"@type": FAULT, "abort": {"http_status": 500, "percentage": {"numerator": percentage}}}


def test_overrides_merge_from_the_table_to_the_weight() -> None:
    tree = {
        "name": "r",
        "typed_per_filter_config": {"f": fault(1), "g": fault(2), "off": {"@type": FILTER_CONFIG, "disabled": True}},
        "virtual_hosts": [
            {
                "name": "v",
                "domains": ["*"],
                "typed_per_filter_config": {"f": fault(3), "on": {"@type": FILTER_CONFIG, "config": {}}},
                "routes": [
                    {
                        "match": {"prefix": "/"},
                        "typed_per_filter_config": {"f": {"@type": FILTER_CONFIG, "config": fault(4)}},
                        "route": {
                            "weighted_clusters": {
                                "clusters": [
                                    {"name": "a", "weight": 1},
                                    {"name": "b", "weight": 1, "typed_per_filter_config": {"f": fault(5)}},
                                ]
                            }
                        },
                    }
                ],
            }
        ],
    }
    context = new_context()
    message = route_pb2.RouteConfiguration()
    MessageParser(context.errors).fill(message, tree, "r")
    overrides: Registry[OverrideBuilder] = Registry("override")
    overrides.register(fault_pb2.HTTPFault, build_fault)
    table = build_route_configuration(message, "r", context, overrides)
    assert table is not None, context.errors.items
    seen = []
    for random in (0, 1):
        route = match(table, random=random)
        seen.append([each.percentage for each in route.all_filter_configs["f"] if isinstance(each, Built)])
        assert route.filter_configs["f"] is route.all_filter_configs["f"][-1]
        assert route.filter_configs["off"] is DISABLED
        assert route.filter_configs["on"] is ENABLED
        assert route.toggles_filters
    assert seen == [[1, 3, 4], [1, 3, 4, 5]]


def test_deprecated_cors_is_built_as_the_override() -> None:
    policy = route_components_pb2.CorsPolicy(max_age="7", allow_methods="GET")
    policy.allow_origin_string_match.add(exact="a")
    policy.allow_credentials.value = True
    message = route_pb2.RouteConfiguration(name="r")
    host = message.virtual_hosts.add(name="v", domains=["*"])
    host.cors.CopyFrom(policy)
    host.routes.add().match.prefix = "/"
    host.routes[0].route.cluster = "c"
    overrides: Registry[OverrideBuilder] = Registry("override")
    overrides.register(cors_pb2.CorsPolicy, lambda message, path, context: message)
    table = build_route_configuration(message, "r", new_context(), overrides)
    assert table is not None
    expected = cors_pb2.CorsPolicy(max_age="7", allow_methods="GET")
    expected.allow_origin_string_match.add(exact="a")
    expected.allow_credentials.value = True
    assert match(table).cors == [expected]


def test_a_weighted_cluster_takes_all_that_the_route_says() -> None:
    table = build_routes(
        """
        - match: {prefix: /}
          name: n
          stat_prefix: s
          metadata: {filter_metadata: {f: {k: v}}}
          request_body_buffer_limit: 9
          route:
            weighted_clusters: {clusters: [{name: a, weight: 1}]}
            cluster_not_found_response_code: INTERNAL_SERVER_ERROR
            timeout: 1s
            idle_timeout: 2s
            max_stream_duration: {max_stream_duration: 4s}
            retry_policy: {retry_on: 5xx}
            priority: HIGH
            append_x_forwarded_host: true
            auto_host_rewrite: true
            prefix_rewrite: /n
        """
    )
    route = match(table)
    plain = Route("", VirtualHost(""), 0)
    checked = """
        name stats has_stats metadata request_body_buffer_limit cluster_not_found_status timeout_ms
        idle_timeout_ms max_stream_duration_ms retry priority append_x_forwarded_host auto_host_rewrite path_rewrite
        cluster_name
    """
    left = [name for name in checked.split() if getattr(route, name) == getattr(plain, name)]
    assert not left


@pytest.mark.parametrize(("internal", "status"), [(False, 301), (True, 200)])
def test_require_tls_of_external_requests_only(internal: bool, status: int) -> None:
    table = build(
        """
        name: r
        virtual_hosts:
        - name: v
          domains: ["*"]
          require_tls: EXTERNAL_ONLY
          routes: [{match: {prefix: /}, direct_response: {status: 200}}]
        """
    )
    headers = new_headers("/a?b")
    info = new_info(headers)
    info.internal = internal
    route = table.match(headers, info, 0)
    assert route is not None
    answer = route.redirect(headers, info) if route.kind == 1 else (route.direct_status, b"")
    assert answer == (status, b"https://test.example/a?b" if status == 301 else b"")


def test_virtual_clusters() -> None:
    table = build(
        """
        name: r
        virtual_hosts:
        - name: v
          domains: ["*"]
          virtual_clusters:
          - {name: posts, headers: [{name: ":method", string_match: {exact: POST}}]}
          - {name: a, headers: [{name: ":path", string_match: {prefix: /a}}]}
          routes: [{match: {prefix: /}, direct_response: {status: 200}}]
        """
    )
    host = match(table).virtual_host
    requests = [new_headers("/a", method="POST"), new_headers("/a"), new_headers("/b")]
    found = [host.virtual_cluster(headers) for headers in requests]
    assert [cluster.name for cluster in found if cluster is not None] == ["posts", "a", ""]


def test_stats_of_routes_and_virtual_clusters() -> None:
    context = new_context()
    table = build(
        """
        name: r
        virtual_hosts:
        - name: v
          domains: ["*"]
          virtual_clusters: [{name: posts, headers: [{name: ":method", string_match: {exact: POST}}]}]
          routes:
          - {match: {prefix: /a}, route: {cluster: c}, stat_prefix: x.y}
          - {match: {prefix: /b}, redirect: {path_redirect: /c}, stat_prefix: x.y}
          - {match: {prefix: /}, route: {cluster: c}}
        - {name: w, domains: [w], routes: [{match: {prefix: /}, route: {cluster: c}}]}
        """,
        context,
    )
    one, same, other = match(table, "/a"), match(table, "/b"), match(table, "/")
    assert one.stats is same.stats is not None
    assert (other.stats, other.has_stats) == (None, True)
    headers = new_headers(authority="w")
    plain = table.match(headers, new_info(headers), 0)
    assert plain is not None
    assert not plain.has_stats
    assert one.stats is not None
    one.stats.charge_response(404)
    one.stats.charge_response(200)
    counters = context.stats.snapshot().counters
    assert {name: value for name, value in counters.items() if value} == {
        "vhost.v.route.x.y.upstream_rq_completed": 2,
        "vhost.v.route.x.y.upstream_rq_200": 1,
        "vhost.v.route.x.y.upstream_rq_2xx": 1,
        "vhost.v.route.x.y.upstream_rq_404": 1,
        "vhost.v.route.x.y.upstream_rq_4xx": 1,
    }
    assert {name.rpartition(".")[0] for name in counters} == {
        "vhost.v.route.x.y",
        "vhost.v.vcluster.posts",
        "vhost.v.vcluster.other",
    }
    context.close()
    assert not context.stats.snapshot().counters
