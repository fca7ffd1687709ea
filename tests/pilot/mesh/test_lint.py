"""Documents that do not fit together are told of, and accepted all the same."""

from __future__ import annotations

from meshproxy.pilot.documents.problems import path_text
from meshproxy.pilot.mesh.lint import lint
from tests.pilot.documents.text import document
from tests.pilot.mesh.worlds import mesh_of, rule, service, virtual_service

END = "shop.svc.cluster.local"


def doubts(*documents: object) -> list[str]:
    mesh = mesh_of(*documents)  # type: ignore[arg-type]
    return [f"{doubt.identity}: {path_text(doubt.steps)}: {doubt.reason}" for doubt in lint(mesh)]


def test_what_fits_together_raises_no_doubts() -> None:
    spec = """
    hosts: [a]
    gateways: [mesh, edge]
    http: [{name: r, route: [{destination: {host: a, subset: v1, port: {number: 80}}}], mirror: {host: a}}]
    """
    assert (
        doubts(
            service(f"a.{END}"),
            rule("a", "v1"),
            document("VirtualService", spec, "v", "shop"),
            document(
                "Gateway", "servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [a]}]", "edge", "shop"
            ),
            document("StickySplit", "virtualService: v\nroute: r\nhashOn: [{header: x}]", "s", "shop"),
            document(
                "HTTPRoute",
                "parentRefs: [{kind: Service, name: a, port: 80}]\nrules: [{backendRefs: [{name: a, port: 80}]}]",
                "h",
                "shop",
            ),
        )
        == []
    )


def test_a_virtual_service_that_names_what_is_not_there() -> None:
    spec = """
    hosts: [a]
    gateways: [mesh, edge]
    http:
      - route: [{destination: {host: b}}, {destination: {host: a, subset: v2, port: {number: 81}}, weight: 1}]
        mirrors: [{destination: {host: c}}]
    tcp: [{route: [{destination: {host: d}}]}]
    """
    of = "VirtualService shop/v: "
    assert doubts(service(f"a.{END}"), document("VirtualService", spec, "v", "shop")) == [
        "VirtualService shop/v: spec.gateways[1]: there is no Gateway shop/edge",
        f"VirtualService shop/v: spec.http[0].route[0].destination.host: there is no service b.{END}",
        f"VirtualService shop/v: spec.http[0].route[1].destination.port: a.{END} has no port 81",
        f"{of}spec.http[0].route[1].destination.subset: no DestinationRule has a subset v2 of a.{END}",
        f"VirtualService shop/v: spec.tcp[0].route[0].destination.host: there is no service d.{END}",
        f"VirtualService shop/v: spec.http[0].mirrors[0].destination.host: there is no service c.{END}",
    ]


def test_a_virtual_service_that_is_not_heard() -> None:
    older = "VirtualService shop/old"
    assert doubts(
        service("a.example"),
        virtual_service("a.example", "old", created="2026-01-01"),
        virtual_service("a.example", "young", created="2026-02-01"),
    ) == [f"VirtualService shop/young: spec.hosts[0]: {older} speaks of a.example already, and is heard first"]


def test_other_kinds_that_name_what_is_not_there() -> None:
    assert doubts(
        rule("b", "v1"),
        service("short", "short"),
        document("StickySplit", "virtualService: v\nhashOn: [{header: x}]", "s", "shop"),
        document("StickySplit", "virtualService: w\nroute: r\nhashOn: [{header: x}]", "t", "shop"),
        virtual_service("short", "w", more="exportTo: [other]"),
        document(
            "GRPCRoute",
            "parentRefs: [{kind: Service, name: a, port: 80}]\nrules: [{backendRefs: [{name: b, port: 80}]}]",
            "g",
            "shop",
        ),
        document(
            "HTTPRoute",
            "parentRefs: [{group: networking.istio.io, kind: Hostname, name: short, port: 9}]\nrules: [{}]",
            "h",
            "shop",
        ),
    ) == [
        f"DestinationRule shop/v1: spec.host: there is no service b.{END}",
        f"GRPCRoute shop/g: spec.parentRefs: there is no service a.{END}",
        f"GRPCRoute shop/g: spec.rules[0].backendRefs[0]: there is no service b.{END}",
        "HTTPRoute shop/h: spec.parentRefs: short has no port 9",
        "HTTPRoute shop/h: spec.rules[0]: has neither backends nor filters: requests get 500",
        f'ServiceEntry shop/short: spec.hosts[0]: "short" stays as it is: write short.{END}',
        "StickySplit shop/s: spec.virtualService: there is no VirtualService shop/v",
        "StickySplit shop/t: spec.route: VirtualService shop/w has no http route r",
        f"VirtualService shop/w: spec.http[0].route[0].destination.host: there is no service short.{END}",
    ]


def policy(spec: str) -> object:
    return document("AuthorizationPolicy", spec, "p", "shop")


ALL = "selector: {matchLabels: {app: web}}\nrules:\n- from: [{source: {principals: [a/b]}}]"
STRICT = document("PeerAuthentication", "mtls: {mode: STRICT}", "strict", "shop")


def web(name: str = "web") -> object:
    endpoint = f"{{address: 10.0.0.1, labels: {{app: {name}}}}}"
    return document(
        "ServiceEntry",
        f"hosts: [{name}.{END}]\nports: [{{number: 80, name: http}}]\nresolution: STATIC\nendpoints: [{endpoint}]",
        name,
        "shop",
    )


def test_a_policy_that_does_what_it_says_raises_no_doubts() -> None:
    assert doubts(web(), policy(ALL)) == []
    assert doubts(web(), STRICT, policy(f"action: DENY\n{ALL}")) == []


def test_a_policy_that_selects_nothing() -> None:
    reason = "AuthorizationPolicy shop/p: spec.selector: no workload that is listed here has these labels"
    assert doubts(web("other"), policy(ALL)) == [reason]


def test_a_policy_that_allows_nothing() -> None:
    reason = "allows nothing, since it has no rules: all that it selects is denied"
    assert doubts(policy("{}")) == [f"AuthorizationPolicy shop/p: spec: {reason}"]


def test_rules_behind_one_that_matches_everything() -> None:
    reason = "AuthorizationPolicy shop/p: spec.rules[1]: makes no difference: rules[0] matches everything"
    assert doubts(policy("rules: [{}, {to: [{operation: {paths: [/a]}}]}]")) == [reason]


def test_rules_about_tokens() -> None:
    spec = """
    rules:
    - from: [{source: {requestPrincipals: ['*']}}, {source: {notRequestPrincipals: [a/b]}}]
      when: [{key: request.auth.audiences, values: [a]}]
    """
    reason = "only who shows a JWT has it, and no JWTs are verified yet: nobody has"
    where = ("from[0].source.requestPrincipals", "from[1].source.notRequestPrincipals", "when[0].key")
    assert doubts(policy(spec)) == [f"AuthorizationPolicy shop/p: spec.rules[0].{each}: {reason}" for each in where]


def test_who_is_denied_by_name_may_come_without_one() -> None:
    reason = "a caller in plaintext has no identity, and is not denied: only STRICT mutual TLS refuses it"
    assert doubts(web(), policy(f"action: DENY\n{ALL}")) == [
        f"AuthorizationPolicy shop/p: spec.rules[0].from[0].source.principals: {reason}"
    ]
