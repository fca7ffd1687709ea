"""Which rule a client obeys: Istio's look-up orders, merging, names in full, and who sees what."""

from __future__ import annotations

import pytest

from meshproxy.pilot.documents.document import Document, Identity
from meshproxy.pilot.mesh.destination_rules import traffic_policy
from meshproxy.pilot.mesh.model import Mesh, parents, sees
from meshproxy.pilot.mesh.names import full_gateway, full_host
from tests.pilot.documents.text import document
from tests.pilot.mesh.worlds import mesh_of, rule, service, virtual_service


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("reviews", "reviews.shop.svc.cluster.local"),
        ("reviews.other", "reviews.other"),  # as in Istio: a name with a dot is taken as it is
        ("Reviews.Example", "reviews.example"),
        ("*", "*"),
        ("*.example", "*.example"),
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
    ],
)
def test_hosts_in_full(name: str, full: str) -> None:
    assert full_host(name, "shop", "cluster.local") == full


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("mesh", "mesh"),
        ("edge", "shop/edge"),
        ("./edge", "shop/edge"),
        ("infra/edge", "infra/edge"),
        ("edge.infra.svc.cluster.local", "infra/edge"),
    ],
)
def test_gateways_in_full(name: str, full: str) -> None:
    assert full_gateway(name, "shop") == full


def test_all_names_of_a_virtual_service_are_in_full() -> None:
    spec = """
    hosts: [reviews, a.example]
    gateways: [edge, mesh]
    http:
      - match: [{gateways: [edge]}]
        route: [{destination: {host: reviews}}]
        mirrors: [{destination: {host: audit}}]
      - route: [{destination: {host: reviews}}]
        mirror: {host: audit}
    tls: [{match: [{sniHosts: [a.example], gateways: [infra/edge]}], route: [{destination: {host: tls}}]}]
    tcp: [{route: [{destination: {host: tcp.example}}]}]
    """
    written = document("VirtualService", spec, "v", "shop")
    mesh = mesh_of(written)
    (found,) = mesh.virtual_services.visible("shop")
    assert (found,) == mesh.virtual_services.visible("shop", "shop/edge")
    made = found.spec
    end = ".shop.svc.cluster.local"
    assert made.hosts == (f"reviews{end}", "a.example")
    assert made.gateways == ("shop/edge", "mesh")
    assert made.http[0].match[0].gateways == ("shop/edge",)
    assert made.http[0].route[0].destination.host == f"reviews{end}"
    assert made.http[0].mirrors[0].destination.host == f"audit{end}"
    assert made.http[1].mirror.host == f"audit{end}"
    assert made.tls[0].match[0].gateways == ("infra/edge",)
    assert made.tls[0].route[0].destination.host == f"tls{end}"
    assert made.tcp[0].route[0].destination.host == "tcp.example"
    assert mesh.documents[written.identity] is written


def test_virtual_services_come_oldest_first_then_by_name() -> None:
    mesh = mesh_of(
        virtual_service("a.example", "b", created="2026-01-02"),
        virtual_service("b.example", "z", created="2026-01-01"),
        virtual_service("c.example", "a", created="2026-01-02"),
    )
    assert [each.name for each in mesh.virtual_services.visible("any")] == ["z", "a", "b"]


def test_of_a_host_the_most_specific_virtual_service_is_heard() -> None:
    mesh = mesh_of(
        virtual_service("'*.example'", "wide", created="2026-01-01"),
        virtual_service("'*.a.example'", "narrow", created="2026-01-02"),
        virtual_service("x.a.example", "exact", created="2026-01-03"),
        virtual_service("x.a.example", "late", created="2026-01-04"),
        virtual_service("hidden.example", "hidden", more="exportTo: [.]"),
    )

    def heard(host: str, client: str = "client") -> str:
        found = mesh.virtual_services.of_host(host, client)
        return found.name if found is not None else ""

    assert [heard(host) for host in ("x.a.example", "y.a.example", "y.example", "other")] == [
        "exact",
        "narrow",
        "wide",
        "",
    ]
    assert (heard("hidden.example"), heard("hidden.example", "shop")) == ("wide", "hidden")


SERVICE = service("a.example", namespace="server")


def obeyed(mesh: Mesh, client: str, labels: dict[str, str] | None = None) -> list[str]:
    """The subsets of the rule that a client obeys for a.example."""
    found = mesh.destination_rule(mesh.services.by_host["a.example"]["server"], client, labels or {})
    return [] if found is None else [subset.name for subset in found.spec.subsets]


def test_a_destination_rule_is_looked_for_at_the_client_then_the_service_then_the_root() -> None:
    rules = [
        rule("a.example", "root", "istio-system"),
        rule("a.example", "server", "server"),
        rule("a.example", "client", "client"),
        rule("a.example", "foreign", "foreign"),
    ]
    mesh = mesh_of(SERVICE, *rules)
    assert [obeyed(mesh, "client"), obeyed(mesh, "foreign"), obeyed(mesh, "other")] == [
        ["client"],
        ["foreign"],
        ["server"],
    ]
    assert obeyed(mesh_of(SERVICE, rules[0]), "other") == ["root"]
    assert obeyed(mesh_of(SERVICE, rules[3]), "other") == []


def test_what_the_root_says_to_all_comes_last_for_its_own_clients_too() -> None:
    """Istio: else the rules for everybody would be the only ones for gateways of the root namespace."""
    public = rule("'*.example'", "public", "istio-system")
    private = rule("'*.example'", "private", "istio-system", "exportTo: [.]")
    server = rule("a.example", "server", "server")
    assert obeyed(mesh_of(SERVICE, public, server), "istio-system") == ["server"]
    assert obeyed(mesh_of(SERVICE, public), "istio-system") == ["public"]
    assert obeyed(mesh_of(SERVICE, public, private, server), "istio-system") == ["private"]
    assert obeyed(mesh_of(SERVICE, public, private, server), "other") == ["server"]


def test_a_destination_rule_that_is_not_exported_is_for_its_namespace() -> None:
    mesh = mesh_of(SERVICE, rule("a.example", "server", "server", "exportTo: [.]"))
    assert [obeyed(mesh, "server"), obeyed(mesh, "client")] == [["server"], []]


def test_the_most_specific_host_of_a_namespace_is_taken() -> None:
    wide, narrow = rule("'*.example'", "wide", "server"), rule("a.example", "narrow", "server")
    assert obeyed(mesh_of(SERVICE, wide, narrow), "client") == ["narrow"]
    assert obeyed(mesh_of(SERVICE, rule("'*'", "all", "server"), wide), "client") == ["wide"]
    hidden = rule("a.example", "narrow", "server", "exportTo: [.]")
    assert obeyed(mesh_of(SERVICE, wide, hidden), "client") == ["wide"]


def test_rules_of_one_host_are_merged_and_the_oldest_is_heard() -> None:
    policy = "trafficPolicy: {loadBalancer: {simple: RANDOM}}"
    mesh = mesh_of(
        SERVICE,
        rule("a.example", "late", "server", "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}", "2026-03-01"),
        rule("a.example", "first", "server", created="2026-01-01"),
        rule("a.example", "second", "server", policy, "2026-02-01"),
    )
    assert obeyed(mesh, "client") == ["first", "second", "late"]
    found = mesh.destination_rule(mesh.services.by_host["a.example"]["server"], "client", {})
    assert found is not None
    assert traffic_policy(found, "", 80).load_balancer.simple == "RANDOM"  # type: ignore[union-attr]
    assert [identity.name for identity in found.documents] == ["first", "second", "late"]
    assert found is mesh.destination_rule(mesh.services.by_host["a.example"]["server"], "client", {})


def test_a_rule_with_a_selector_is_for_those_workloads_of_its_namespace() -> None:
    mesh = mesh_of(
        SERVICE,
        rule("a.example", "all", "client"),
        rule("a.example", "some", "client", "workloadSelector: {matchLabels: {app: web}}"),
    )
    assert obeyed(mesh, "client", {"app": "web", "x": "y"}) == ["some"]
    assert obeyed(mesh, "client", {"app": "api"}) == ["all"]
    only = mesh_of(SERVICE, rule("a.example", "some", "server", "workloadSelector: {matchLabels: {app: web}}"))
    assert obeyed(only, "client", {"app": "web"}) == []
    assert obeyed(only, "server", {"app": "web"}) == ["some"]


POLICY = """
host: a.example
trafficPolicy:
  loadBalancer: {simple: RANDOM}
  connectionPool: {tcp: {maxConnections: 1}}
  portLevelSettings:
    - port: {number: 80}
      loadBalancer: {simple: ROUND_ROBIN}
subsets:
  - name: plain
  - name: own
    trafficPolicy:
      connectionPool: {tcp: {maxConnections: 2}}
      portLevelSettings:
        - port: {number: 81}
          tls: {mode: SIMPLE}
"""


@pytest.mark.parametrize(
    ("subset", "port", "balancer", "connections", "tls"),
    [
        ("", 90, "RANDOM", 1, ""),
        ("", 80, "ROUND_ROBIN", None, ""),  # a port's settings inherit nothing
        ("plain", 90, "RANDOM", 1, ""),
        ("plain", 80, "ROUND_ROBIN", None, ""),
        ("own", 90, "RANDOM", 2, ""),
        ("own", 80, "ROUND_ROBIN", 2, ""),
        ("own", 81, None, None, "SIMPLE"),
        ("unknown", 90, "RANDOM", 1, ""),
    ],
)
def test_traffic_policy(subset: str, port: int, balancer: str | None, connections: int | None, tls: str) -> None:
    mesh = mesh_of(SERVICE, document("DestinationRule", POLICY, "r", "server"))
    found = mesh.destination_rule(mesh.services.by_host["a.example"]["server"], "client", {})
    policy = traffic_policy(found, subset, port)
    assert (policy.load_balancer.simple if policy.load_balancer else None) == balancer
    pool = policy.connection_pool
    assert (pool.tcp.max_connections if pool is not None and pool.tcp is not None else None) == connections
    assert (policy.tls.mode if policy.tls else "") == tls
    assert policy.port_level_settings == ()


def test_no_rule_is_an_empty_policy() -> None:
    assert traffic_policy(None, "v1", 80).load_balancer is None


def sidecar(name: str, namespace: str, hosts: str = "./*", selector: str = "") -> Document:
    more = f"workloadSelector: {{labels: {{{selector}}}}}" if selector else ""
    return document("Sidecar", f"egress: [{{hosts: ['{hosts}']}}]\n{more}", name, namespace)


def test_a_workload_has_the_sidecar_that_selects_it_else_its_namespaces_else_the_roots() -> None:
    mesh = mesh_of(sidecar("root", "istio-system"), sidecar("all", "shop"), sidecar("web", "shop", selector="app: web"))

    def named(namespace: str, labels: dict[str, str]) -> str:
        found = mesh.sidecar(namespace, labels)
        return found.name if found is not None else ""

    assert [named("shop", {"app": "web"}), named("shop", {"app": "api"}), named("other", {})] == ["web", "all", "root"]
    assert mesh_of(sidecar("web", "shop", selector="app: web")).sidecar("shop", {}) is None


@pytest.mark.parametrize(
    ("hosts", "seen"),
    [
        ("./*", ["shop/a.example"]),
        ("*/*", ["shop/a.example", "other/a.example", "other/b.test"]),
        ("other/*.example", ["other/a.example"]),
        ("*/b.test", ["other/b.test"]),
        ("~/*", []),
    ],
)
def test_a_sidecar_says_which_hosts_are_seen(hosts: str, seen: list[str]) -> None:
    there = ["shop/a.example", "other/a.example", "other/b.test"]
    found = sidecar("s", "shop", hosts)
    assert [each for each in there if sees(found, *each.split("/"))] == seen
    assert all(sees(None, *each.split("/")) for each in there)


def test_gateways_are_served_by_proxies_with_their_labels() -> None:
    server = "servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.example]}]"
    mesh = mesh_of(
        document("Gateway", f"{server}\nselector: {{app: edge}}", "one", "shop"),
        document("Gateway", server, "any", "other"),
    )
    assert [each.name for each in mesh.gateways({"app": "edge", "x": "y"})] == ["any", "one"]
    assert [each.name for each in mesh.gateways({})] == ["any"]


def http_route(name: str, namespace: str, parent: str) -> Document:
    return document("HTTPRoute", f"parentRefs: [{{group: '', {parent}}}]\nrules: [{{}}]", name, namespace)


def test_routes_of_the_clients_namespace_come_before_those_of_the_services() -> None:
    mesh = mesh_of(
        service("a.shop.svc.cluster.local"),
        http_route("producer", "shop", "kind: Service, name: a"),
        http_route("consumer", "client", "kind: Service, name: a, namespace: shop"),
        http_route("elsewhere", "other", "kind: Service, name: a"),
    )
    found = mesh.services.by_host["a.shop.svc.cluster.local"]["shop"]
    assert [each.name for each in mesh.routes(found, "client", 80)] == ["consumer"]
    assert [each.name for each in mesh.routes(found, "x", 80)] == ["producer"]
    producer = mesh.routes(found, "x", 80)[0]
    assert mesh.updated([(producer, None)]).routes(found, "x", 80) == ()


def test_routes_of_the_clients_namespace_leave_other_ports_to_those_of_the_services() -> None:
    mesh = mesh_of(
        service("a.shop.svc.cluster.local"),
        http_route("producer", "shop", "kind: Service, name: a"),
        http_route("consumer", "client", "kind: Service, name: a, namespace: shop, port: 80"),
    )
    found = mesh.services.by_host["a.shop.svc.cluster.local"]["shop"]
    assert [each.name for each in mesh.routes(found, "client", 80)] == ["consumer"]
    assert [each.name for each in mesh.routes(found, "client", 81)] == ["producer"]


def test_parents_are_services_and_their_ports() -> None:
    spec = """
    parentRefs:
      - {group: "", kind: Service, name: a, port: 80}
      - {group: "", kind: Service, name: a, port: 81}
      - {group: networking.istio.io, kind: Hostname, name: B.example}
      - {group: "", kind: Service, name: c, namespace: other, port: 80}
      - {group: "", kind: Service, name: c, namespace: other}
    """
    assert parents(document("GRPCRoute", spec, "r", "shop"), "cluster.local") == {
        "a.shop.svc.cluster.local": frozenset({80, 81}),
        "b.example": frozenset(),
        "c.other.svc.cluster.local": frozenset(),
    }


def limit(name: str, namespace: str, selector: str = "") -> Document:
    more = f"workloadSelector: {{labels: {{{selector}}}}}" if selector else ""
    return document("LocalRateLimit", f"tokenBucket: {{maxTokens: 1, fillInterval: 1s}}\n{more}", name, namespace)


def test_policies_are_those_of_the_root_and_the_own_namespace_that_select_the_workload() -> None:
    mesh = mesh_of(
        limit("root", "istio-system"),
        limit("all", "shop"),
        limit("web", "shop", "app: web"),
        limit("other", "other"),
    )

    def names(namespace: str, labels: dict[str, str]) -> list[str]:
        return [each.name for each in mesh.policies("LocalRateLimit", namespace, labels)]

    assert names("shop", {"app": "web"}) == ["root", "all", "web"]
    assert names("shop", {}) == ["root", "all"]
    assert names("istio-system", {}) == ["root"]


def test_a_sticky_split_for_one_route_comes_before_one_for_all() -> None:
    def split(name: str, route: str, header: str) -> Document:
        return document("StickySplit", f"virtualService: v\n{route}\nhashOn: [{{header: {header}}}]", name, "shop")

    mesh = mesh_of(split("a", "", "x-all"), split("b", "route: canary", "x-canary"))
    of = Identity("VirtualService", "shop", "v")
    assert [each.header for each in mesh.sticky_split(of, "canary")] == ["x-canary"]
    assert [each.header for each in mesh.sticky_split(of, "main")] == ["x-all"]
    assert mesh.sticky_split(Identity("VirtualService", "other", "v"), "main") == ()
