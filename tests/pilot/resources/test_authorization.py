"""What AuthorizationPolicies come to: filters, their order and names, and where they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import INBOUND as INBOUND_DIRECTION
from envoy.config.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.extensions.rbac.principals.mtls_authenticated.v3.mtls_authenticated_pb2 import Config as MtlsAuthenticated
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import SubjectAltNameMatcher
from google.protobuf.json_format import MessageToDict

from meshproxy.config.subscription import LISTENER_TYPE
from meshproxy.pilot.documents.document import Document
from meshproxy.pilot.mesh.model import MeshConfig
from meshproxy.pilot.proxy import EXPLICIT
from meshproxy.pilot.resources.authorization import HTTP_RBAC, NETWORK_RBAC, authorization
from meshproxy.pilot.resources.http_manager import MANAGER
from meshproxy.pilot.resources.names import BLACK_HOLE
from meshproxy.pilot.resources.tcp import TCP_PROXY
from meshproxy.pilot.snapshot import Proxy
from tests.pilot.documents.text import document, document_text
from tests.pilot.resources.golden import EDGE, WITH_AGENT
from tests.pilot.resources.static_form import messages
from tests.pilot.resources.support import SHOP_PAGE, changed, mesh_of, sample, snapshot_of

DRY_RUN = ', annotations: {istio.io/dry-run: "true"}'
ANY = "rules: [{}]"
DENY_ALL = "action: DENY\nrules: [{}]"


def policy(spec: str, name: str = "p", namespace: str = "shop", more: str = "") -> Document:
    return document("AuthorizationPolicy", spec, name, namespace, more)


def http(*policies: Document, domains: Sequence[str] = ("cluster.local",)) -> list[Any]:
    found = []
    for filter_ in authorization(policies, domains).http:
        found.append(http_rbac.RBAC())
        assert filter_.typed_config.Unpack(found[-1])
    return found


def tcp(*policies: Document, domains: Sequence[str] = ("cluster.local",)) -> list[Any]:
    found = []
    for filter_ in authorization(policies, domains).network:
        found.append(network_rbac.RBAC())
        assert filter_.typed_config.Unpack(found[-1])
    return found


def only(spec: str, *, domains: Sequence[str] = ("cluster.local",)) -> Any:
    """The only rule of a policy, as JSON."""
    (message,) = http(policy(spec), domains=domains)
    (made,) = message.rules.policies.values()
    return MessageToDict(made, preserving_proto_field_name=True)


def principal(source: str, *, domains: Sequence[str] = ("cluster.local",)) -> Any:
    (found,) = only(f"rules: [{{from: [{{source: {{{source}}}}}]}}]", domains=domains)["principals"]
    return found


def named(**matcher: Any) -> Any:
    return {"authenticated": {"principal_name": matcher}}


def regex(text: str) -> Any:
    return {"safe_regex": {"regex": text}}


def test_audit_comes_first_then_deny_then_allow() -> None:
    found = http(policy(ANY, "a"), policy(DENY_ALL, "b"), policy("action: AUDIT\nrules: [{}]", "c"))
    assert [(one.rules.action, list(one.rules.policies)) for one in found] == [
        (RBAC.LOG, ["ns[shop]-policy[c]-rule[0]"]),
        (RBAC.DENY, ["ns[shop]-policy[b]-rule[0]"]),
        (RBAC.ALLOW, ["ns[shop]-policy[a]-rule[0]"]),
    ]
    assert [one.rules.action for one in tcp(policy(ANY), policy(DENY_ALL, "b"))] == [RBAC.DENY, RBAC.ALLOW]


def test_one_filter_for_all_policies_of_an_action() -> None:
    (found,) = http(policy("rules: [{}, {}]", "a"), policy(ANY, "b", "istio-system"))
    assert sorted(found.rules.policies) == [
        "ns[istio-system]-policy[b]-rule[0]",
        "ns[shop]-policy[a]-rule[0]",
        "ns[shop]-policy[a]-rule[1]",
    ]
    assert not found.HasField("shadow_rules")


def test_no_policy_no_filter() -> None:
    made = authorization((), ("cluster.local",))
    assert (made.http, made.network) == ((), ())


def test_a_dry_run_is_only_told() -> None:
    (told,) = http(policy(DENY_ALL, more=DRY_RUN))
    assert (told.HasField("rules"), told.shadow_rules.action) == (False, RBAC.DENY)
    assert told.shadow_rules_stat_prefix == "istio_dry_run_deny_"
    (both,) = tcp(policy(ANY), policy(ANY, "q", more=DRY_RUN))
    assert (list(both.rules.policies), list(both.shadow_rules.policies)) == (
        ["ns[shop]-policy[p]-rule[0]"],
        ["ns[shop]-policy[q]-rule[0]"],
    )
    assert (both.shadow_rules_stat_prefix, both.stat_prefix) == ("istio_dry_run_allow_", "tcp.")


def test_an_allow_without_rules_never_matches() -> None:
    for (found,) in (http(policy("{}")), tcp(policy("{}"))):
        (made,) = found.rules.policies.values()
        assert MessageToDict(made) == {
            "permissions": [{"notRule": {"any": True}}],
            "principals": [{"notId": {"any": True}}],
        }


ONLY_REQUESTS = (
    "to: [{operation: {paths: [/a], ports: ['80']}}]",
    "to: [{operation: {notMethods: [GET], ports: ['80']}}]",
    "to: [{operation: {hosts: [a], ports: ['80']}}]",
    "from: [{source: {requestPrincipals: ['*']}}]\n  to: [{operation: {ports: ['80']}}]",
    "to: [{operation: {ports: ['80']}}]\n  when: [{key: 'request.headers[a]', values: [b]}]",
    "to: [{operation: {ports: ['80']}}]\n  when: [{key: 'request.auth.claims[a]', notValues: [b]}]",
)


@pytest.mark.parametrize("rule", ONLY_REQUESTS)
def test_of_what_only_requests_have_a_connection_is_never_let_in_and_is_refused_all_the_more(rule: str) -> None:
    (allowing,) = tcp(policy(f"rules:\n- {rule}"))
    assert (allowing.rules.action, dict(allowing.rules.policies)) == (RBAC.ALLOW, {})
    (denying,) = tcp(policy(f"action: DENY\nrules:\n- {rule}"))
    (made,) = denying.rules.policies.values()
    assert MessageToDict(made) == {"permissions": [{"destinationPort": 80}], "principals": [{"any": True}]}


def test_principals_are_meant_in_all_trust_domains_of_the_mesh() -> None:
    new = ("new.example", "old.example")
    both = {"or_ids": {"ids": [named(exact=f"spiffe://{one}/ns/a/sa/b") for one in new]}}
    for domain in (*new, "cluster.local"):
        assert principal(f"principals: [{domain}/ns/a/sa/b]", domains=new) == both
    assert principal("principals: [other.example/ns/a/sa/b]", domains=new) == named(
        exact="spiffe://other.example/ns/a/sa/b"
    )
    assert principal("principals: ['*.example/ns/a/sa/b']", domains=new) == named(
        **regex(r"spiffe://.*\.example/ns/a/sa/b")
    )
    assert principal("principals: ['*']", domains=new) == named(**regex(".+"))
    assert principal("principals: ['old.example/*']", domains=new) == {
        "or_ids": {"ids": [named(prefix=f"spiffe://{one}/") for one in new]}
    }


def test_identities() -> None:
    assert principal("namespaces: [a]") == named(**regex("spiffe://[^/]+/ns/a/.*"))
    assert principal("namespaces: ['a-*']") == named(**regex(r"spiffe://[^/]+/ns/a\-[^/]*/.*"))
    assert principal("serviceAccounts: [a/b]") == named(**regex("spiffe://[^/]+/ns/a/sa/b"))
    assert principal("serviceAccounts: [b]") == named(**regex("spiffe://[^/]+/ns/shop/sa/b"))
    assert principal("notPrincipals: [a/b]") == {"not_id": named(exact="spiffe://a/b")}


def test_with_other_trust_domains_an_identity_is_a_uri_and_nothing_else() -> None:
    """Their authorities sign DNS names and subjects as they like, `spiffe://cluster.local/ns/a/sa/b` among them."""
    for source in ("principals: [cluster.local/ns/a/sa/b]", "namespaces: [a]", "serviceAccounts: [a/b]"):
        spec = f"rules: [{{from: [{{source: {{{source}}}}}]}}]"
        made = authorization([policy(spec)], ("cluster.local",), federated=True)
        message = http_rbac.RBAC()
        assert made.http[0].typed_config.Unpack(message)
        (found,) = message.rules.policies["ns[shop]-policy[p]-rule[0]"].principals
        config = MtlsAuthenticated()
        assert found.custom.typed_config.Unpack(config)
        assert config.san_matcher.san_type == SubjectAltNameMatcher.URI
        assert {
            "authenticated": {
                "principal_name": MessageToDict(config.san_matcher.matcher, preserving_proto_field_name=True)
            }
        } == principal(source)


def test_a_request_principal_is_cut_wherever_it_may_be() -> None:
    def claims(issuer: Any, subject: Any) -> Any:
        both = (("iss", issuer), ("sub", subject))
        return {
            "and_ids": {
                "ids": [
                    {
                        "metadata": {
                            "filter": "envoy.filters.http.jwt_authn",
                            "path": [{"key": "payload"}, {"key": key}],
                            "value": {"string_match": value},
                        }
                    }
                    for key, value in both
                ]
            }
        }

    assert principal("requestPrincipals: ['*']") == claims(regex(".+"), regex(".+"))
    assert principal("requestPrincipals: [a/b]") == claims({"exact": "a"}, {"exact": "b"})
    assert principal("requestPrincipals: [a/b/c]") == {
        "or_ids": {"ids": [claims({"exact": "a"}, {"exact": "b/c"}), claims({"exact": "a/b"}, {"exact": "c"})]}
    }
    assert principal("requestPrincipals: ['a/*']") == {
        "or_ids": {"ids": [claims({"exact": "a"}, regex(".+")), claims({"prefix": "a/"}, regex(".+"))]}
    }
    assert principal("requestPrincipals: ['*/b']") == {
        "or_ids": {"ids": [claims(regex(".+"), {"exact": "b"}), claims(regex(".+"), {"suffix": "/b"})]}
    }
    assert principal("requestPrincipals: [nobody]") == {"not_id": {"any": True}}


# -- for whom they are


def selected(namespace: str, labels: dict[str, str], *texts: str) -> list[str]:
    mesh = mesh_of("---\n".join(texts))
    return [one.name for one in mesh.authorization_policies(namespace, labels)]


def text(spec: str, name: str, namespace: str) -> str:
    return document_text("AuthorizationPolicy", spec, name, namespace)


def test_whom_they_select() -> None:
    web = "selector: {matchLabels: {app: web}}"
    front = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: front}]"
    texts = (
        text("{}", "all", "istio-system"),
        text(web, "all-web", "istio-system"),
        text(front, "no-front", "istio-system"),
        text("{}", "shop", "shop"),
        text(web, "web", "shop"),
        text(front, "front", "shop"),
        text("{}", "other", "other"),
    )
    gateway = {"gateway.networking.k8s.io/gateway-name": "front"}
    assert selected("shop", {}, *texts) == ["all", "shop"]
    assert selected("shop", {"app": "web", "version": "v1"}, *texts) == ["all", "all-web", "shop", "web"]
    assert selected("other", {"app": "web"}, *texts) == ["all", "all-web", "other"]
    assert selected("shop", gateway, *texts) == ["all", "front", "shop"]
    assert selected("istio-system", {}, *texts) == ["all"]


# -- where they stand

GATEWAY = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  selector: {app: edge}
  servers:
    - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}
    - {port: {number: 9000, name: tcp, protocol: TCP}, hosts: ["*"]}
    - {port: {number: 443, name: tls, protocol: TLS}, hosts: ["*"], tls: {mode: PASSTHROUGH}}
    - {port: {number: 444, name: ended, protocol: TLS}, hosts: ["*"], tls: {mode: SIMPLE, credentialName: c}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge, namespace: shop}
spec:
  hosts: [a.example]
  gateways: [edge]
  http: [{route: [{destination: {host: reviews}}]}]
  tcp: [{route: [{destination: {host: reviews}}]}]
  tls: [{match: [{sniHosts: [a.example]}], route: [{destination: {host: reviews}}]}]
---
"""
PEERS = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: one, namespace: shop}
spec:
  selector: {matchLabels: {app: productpage}}
  mtls: {mode: %s}
  portLevelMtls: {8080: {mode: DISABLE}}
"""
NOWHERE = "nowhere"
INBOUND = [
    pytest.param(replace(SHOP_PAGE, mode=mode, metadata=metadata), peers, id=f"{mode}-{name}-{peers}")
    for mode in ("sidecar", EXPLICIT)
    for name, metadata in (("agent", WITH_AGENT), ("alone", SHOP_PAGE.metadata))
    for peers in ("STRICT", "PERMISSIVE", "DISABLE")
]


def ways_in(proxy: Proxy, rules: str) -> Iterator[tuple[str, list[str]]]:
    """Every chain through which something comes in, and the names of its filters, those of requests in line."""
    mesh = mesh_of(rules)
    for name, listener in messages(snapshot_of(mesh, proxy), LISTENER_TYPE).items():
        if proxy is not EDGE and listener.traffic_direction != INBOUND_DIRECTION:
            continue
        chains = list(listener.filter_chains)
        chains += [listener.default_filter_chain] if listener.HasField("default_filter_chain") else []
        for chain in chains:
            yield f"{name} {chain.name}", list(filters_of(chain))


def filters_of(chain: Any) -> Iterator[str]:
    for filter_ in chain.filters:
        if filter_.name == MANAGER:
            manager = HttpConnectionManager.FromString(filter_.typed_config.value)
            yield from (each.name for each in manager.http_filters)
        elif filter_.name == TCP_PROXY and TcpProxy.FromString(filter_.typed_config.value).cluster == BLACK_HOLE:
            yield NOWHERE
        else:
            yield filter_.name


@pytest.mark.parametrize(("proxy", "peers"), INBOUND)
def test_no_way_in_leads_around_them(proxy: Proxy, peers: str) -> None:
    rules = "\n---\n".join([sample("services"), text(DENY_ALL, "d", "shop"), PEERS % peers])
    found = dict(ways_in(proxy, rules))
    assert found
    for name, filters in found.items():
        assert filters[0] in (HTTP_RBAC, NETWORK_RBAC) or filters == [NOWHERE], name


def test_no_way_through_the_edge_leads_around_them() -> None:
    rules = "\n---\n".join([sample("services"), text(DENY_ALL, "d", "shop"), GATEWAY])
    found = dict(ways_in(EDGE, rules))
    assert len(found) == 4
    assert {filters[0] for filters in found.values()} == {HTTP_RBAC, NETWORK_RBAC}


def test_what_leaves_is_none_of_their_business() -> None:
    before = mesh_of(sample("services"))
    after = changed(before, text(DENY_ALL, "d", "shop"))
    old, new = (messages(snapshot_of(mesh, SHOP_PAGE), LISTENER_TYPE) for mesh in (before, after))
    assert [name for name in new if old[name] != new[name]] == ["virtualInbound"]


def test_the_trust_domain_of_the_mesh() -> None:
    config = MeshConfig(trust_domain="new.example", trust_domain_aliases=("old.example",))
    spec = "rules: [{from: [{source: {principals: [old.example/ns/a/sa/b]}}]}]"
    mesh = mesh_of("\n---\n".join([sample("services"), text(spec, "d", "shop")]), config)
    listener = messages(snapshot_of(mesh, replace(SHOP_PAGE, mode=EXPLICIT)), LISTENER_TYPE)["10.1.0.10_9080"]
    assert b"spiffe://new.example/ns/a/sa/b" in listener.SerializeToString()
    assert b"mtls_authenticated" not in listener.SerializeToString()


def test_a_mesh_that_is_federated() -> None:
    config = MeshConfig(federated_domains=("other.example",))
    spec = "rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]"
    mesh = mesh_of("\n---\n".join([sample("services"), text(spec, "d", "shop")]), config)
    listener = messages(snapshot_of(mesh, replace(SHOP_PAGE, mode=EXPLICIT)), LISTENER_TYPE)["10.1.0.10_9080"]
    assert b"mtls_authenticated" in listener.SerializeToString()
