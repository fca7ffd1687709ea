"""The chains of inbound listeners: what a PeerAuthentication lets in, and how callers prove who they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import INBOUND
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext, UpstreamTlsContext

from meshproxy.config.subscription import CLUSTER_TYPE, LISTENER_TYPE
from meshproxy.pilot.mesh.model import MeshConfig
from meshproxy.pilot.proxy import EXPLICIT, SIDECAR
from meshproxy.pilot.resources.translator import Translator
from meshproxy.pilot.snapshot import Proxy
from tests.pilot.mesh.test_mutual_tls import OF_MESH, SERVICE, WEB, mode, peer
from tests.pilot.resources.golden import WITH_AGENT
from tests.pilot.resources.static_form import messages
from tests.pilot.resources.support import SHOP_PAGE, changed, mesh_of, snapshot_of

SERVER = replace(SHOP_PAGE, labels=(("app", "web"),), ips=("10.0.0.1",), metadata=WITH_AGENT)
WITHOUT_AGENT = replace(SERVER, metadata=())
HTTP_PORT, TCP_PORT = 8080, 90
HTTP = "istio-http/1.0 istio-http/1.1 istio-h2"
TCP = "istio-peer-exchange istio"
OF_HTTP = f"inbound|{HTTP_PORT}||"
OF_TCP = f"inbound|{TCP_PORT}||"
REST = "InboundPassthroughCluster"
PLAIN = "http/1.1 h2c"
# What a chain matches, behind what (mutual TLS, plaintext), and where it leads to.
CHAINS: dict[str, dict[str, list[str]]] = {
    "STRICT": {
        "8080": [f"tls: mutual http {OF_HTTP}"],
        "90": [f"tls: mutual tcp {OF_TCP}"],
        "": [f"tls {HTTP}: mutual http {REST}", f"tls: mutual tcp {REST}"],
    },
    "PERMISSIVE": {
        "8080": [f"tls {TCP} {HTTP}: mutual http {OF_HTTP}", f"raw_buffer: plain http {OF_HTTP}"],
        "90": [
            f"tls {TCP} {HTTP}: mutual tcp {OF_TCP}",
            f"raw_buffer: plain tcp {OF_TCP}",
            f"tls: plain tcp {OF_TCP}",
        ],
        "": [
            f"tls {HTTP}: mutual http {REST}",
            f"raw_buffer {PLAIN}: plain http {REST}",
            f"tls {TCP}: mutual tcp {REST}",
            f"raw_buffer: plain tcp {REST}",
            f"tls: plain tcp {REST}",
        ],
    },
    "DISABLE": {
        "8080": [f": plain http {OF_HTTP}"],
        "90": [f": plain tcp {OF_TCP}"],
        "": [
            f"raw_buffer {PLAIN}: plain http {REST}",
            f"raw_buffer: plain tcp {REST}",
            f"tls: plain tcp {REST}",
        ],
    },
    "nothing": {port: [": plain tcp BlackHoleCluster"] for port in ("8080", "90", "")},
}


def inbound(text: str, proxy: Proxy = SERVER, config: MeshConfig | None = None) -> dict[str, Any]:
    found = messages(snapshot_of(mesh_of(SERVICE + text, config), proxy), LISTENER_TYPE)
    return {name: one for name, one in found.items() if one.traffic_direction == INBOUND}


def chains(listener: Any, number: str) -> list[str]:
    """Those of a port; "": of no port in particular."""
    assert not listener.HasField("default_filter_chain")  # what a port does not take must not get in behind it
    found = []
    for chain in listener.filter_chains:
        match = chain.filter_chain_match
        if (str(match.destination_port.value) if match.HasField("destination_port") else "") == number:
            matched = " ".join(
                [*([match.transport_protocol] if match.transport_protocol else []), *match.application_protocols]
            )
            found.append(f"{matched}: {_secured(chain)} {_end(chain.filters[-1])}")
    return found


def _secured(chain: Any) -> str:
    if not chain.HasField("transport_socket"):
        return "plain"
    context = DownstreamTlsContext.FromString(chain.transport_socket.typed_config.value)
    common = context.common_tls_context
    assert context.require_client_certificate.value
    assert [one.name for one in common.tls_certificate_sds_secret_configs] == ["default"]
    assert common.combined_validation_context.validation_context_sds_secret_config.name == "ROOTCA"
    return "mutual"


def _end(filter_: Any) -> str:
    if filter_.typed_config.Is(TcpProxy.DESCRIPTOR):
        return f"tcp {TcpProxy.FromString(filter_.typed_config.value).cluster}"
    manager = HttpConnectionManager.FromString(filter_.typed_config.value)
    assert manager.forward_client_cert_details == HttpConnectionManager.APPEND_FORWARD
    return f"http {manager.route_config.virtual_hosts[0].routes[0].route.cluster}"


def of(name: str) -> str:
    return peer("peer", "shop", mode(name))


@pytest.mark.parametrize("name", ["STRICT", "PERMISSIVE", "DISABLE"])
def test_behind_interception(name: str) -> None:
    (listener,) = inbound(of(name)).values()
    assert {port: chains(listener, port) for port in CHAINS[name]} == CHAINS[name]
    assert chains(listener, "15006") == [": plain tcp BlackHoleCluster"]


@pytest.mark.parametrize("name", ["STRICT", "PERMISSIVE", "DISABLE"])
def test_explicit_listeners(name: str) -> None:
    found = inbound(of(name), replace(SERVER, mode=EXPLICIT))
    for port in ("8080", "90"):
        listener = found[f"10.0.0.1_{port}"]
        assert chains(listener, "") == CHAINS[name][port]
        inspectors = [one.name for one in listener.listener_filters]
        assert inspectors == ([] if name == "DISABLE" else ["envoy.filters.listener.tls_inspector"])


def test_without_a_rule_it_is_permissive() -> None:
    assert inbound("") == inbound(of("PERMISSIVE"))


@pytest.mark.parametrize("way", [SIDECAR, EXPLICIT])
@pytest.mark.parametrize(
    ("name", "comes_to"), [("STRICT", "nothing"), ("PERMISSIVE", "DISABLE"), ("DISABLE", "DISABLE")]
)
def test_a_proxy_without_secrets_takes_plaintext_or_nothing(name: str, comes_to: str, way: str) -> None:
    found = inbound(of(name), replace(WITHOUT_AGENT, mode=way))
    for port in ("8080", "90"):
        made = chains(found["virtualInbound"], port) if way == SIDECAR else chains(found[f"10.0.0.1_{port}"], "")
        assert made == CHAINS[comes_to][port]
    if way == SIDECAR:
        assert chains(found["virtualInbound"], "") == CHAINS[comes_to][""]


def test_ports_that_differ_from_their_workload() -> None:
    ports = "8080: {mode: DISABLE}, 9999: {mode: PERMISSIVE}, 15006: {mode: DISABLE}"
    text = peer("web", "shop", f"{WEB}{mode('STRICT')}, portLevelMtls: {{{ports}}}")
    (listener,) = inbound(OF_MESH + text).values()
    assert chains(listener, "8080") == CHAINS["DISABLE"]["8080"]
    assert chains(listener, "90") == CHAINS["STRICT"]["90"]
    assert chains(listener, "9999") == CHAINS["PERMISSIVE"][""]
    assert chains(listener, "15006") == [": plain tcp BlackHoleCluster"]
    assert chains(listener, "") == CHAINS["STRICT"][""]


def test_who_speaks_last_is_not_waited_for_where_nothing_has_to_be_found_out() -> None:
    (listener,) = inbound(peer("web", "shop", f"{WEB}portLevelMtls: {{90: {{mode: DISABLE}}}}")).values()
    off = {one.name.rpartition(".")[2]: _ports(one.filter_disabled) for one in listener.listener_filters}
    assert off == {"original_dst": set(), "tls_inspector": {90}, "http_inspector": {90, 8080}}


def _ports(predicate: Any) -> set[int]:
    rules = predicate.or_match.rules or ([predicate] if predicate.HasField("destination_port_range") else [])
    return {one.destination_port_range.start for one in rules}


def contexts(listener: Any) -> list[DownstreamTlsContext]:
    secured = [chain for chain in listener.filter_chains if chain.HasField("transport_socket")]
    return [DownstreamTlsContext.FromString(chain.transport_socket.typed_config.value) for chain in secured]


def test_callers_are_of_the_trust_domain_of_its_aliases_or_of_a_federated_one() -> None:
    config = MeshConfig(trust_domain="new", trust_domain_aliases=("old",), federated_domains=("friend",))
    (listener,) = inbound(of("STRICT"), config=config).values()
    for context in contexts(listener):
        default = context.common_tls_context.combined_validation_context.default_validation_context
        prefixes = [one.matcher.prefix for one in default.match_typed_subject_alt_names]
        assert prefixes == ["spiffe://new/", "spiffe://old/", "spiffe://friend/"]
        assert {one.san_type for one in default.match_typed_subject_alt_names} == {
            default.match_typed_subject_alt_names[0].URI
        }


def upstream(
    text: str, config: MeshConfig | None = None, port: int = 80
) -> tuple[set[str], dict[str, UpstreamTlsContext]]:
    """The modes of the cluster's endpoints that the assignment tells of, and its contexts by name."""
    snapshot = snapshot_of(mesh_of(SERVICE + text, config), SERVER)
    cluster = messages(snapshot, CLUSTER_TYPE)[f"outbound|{port}||web.shop.svc.cluster.local"]
    found = {
        one.name: UpstreamTlsContext.FromString(one.transport_socket.typed_config.value)
        for one in cluster.transport_socket_matches
    }
    return {one.name for one in cluster.transport_socket_matches}, found


def test_servers_are_who_their_service_accounts_say_in_any_of_the_trust_domains() -> None:
    _, found = upstream("", MeshConfig(trust_domain="new", trust_domain_aliases=("old",)))
    context = found["tlsMode-istio"].common_tls_context.combined_validation_context.default_validation_context
    names = [one.matcher.exact for one in context.match_typed_subject_alt_names]
    assert names == ["spiffe://new/ns/shop/sa/web", "spiffe://old/ns/shop/sa/web"]


POOL = "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r, namespace: shop}\nspec: "


@pytest.mark.parametrize(
    ("http", "port", "offered"),
    [
        ("", 80, "istio-http/1.1 istio http/1.1"),
        ("h2UpgradePolicy: UPGRADE", 80, "istio-h2 istio h2"),
        ("useClientProtocol: true", 80, "istio-http/1.1 istio"),
        ("", 90, "istio"),
        ("useClientProtocol: true", 90, "istio"),
    ],
)
def test_what_clients_offer_says_what_they_will_speak(http: str, port: int, offered: str) -> None:
    rule = f"{POOL}{{host: web, trafficPolicy: {{connectionPool: {{http: {{{http}}}}}}}}}" if http else ""
    _, found = upstream(rule, port=port)
    assert " ".join(found["tlsMode-istio"].common_tls_context.alpn_protocols) == offered


def sockets(takes: str, second: str) -> tuple[str, list[str]]:
    """Of a service whose connections go where they were going."""
    endpoints = f"[{{address: 10.0.0.1, serviceAccount: web}}, {{address: 10.0.0.2, {second}}}]"
    service = SERVICE.partition("  endpoints:")[0] + f"  endpoints: {endpoints}\n"
    rule = f"{POOL}{{host: web, trafficPolicy: {{loadBalancer: {{simple: PASSTHROUGH}}}}}}"
    snapshot = snapshot_of(mesh_of(service + rule + of(takes)), SERVER)
    cluster = messages(snapshot, CLUSTER_TYPE)["outbound|80||web.shop.svc.cluster.local"]
    return cluster.transport_socket.name, [one.name for one in cluster.transport_socket_matches]


def test_where_nobody_knows_whom_a_connection_was_going_to_all_must_take_it() -> None:
    assert sockets("STRICT", "serviceAccount: web") == ("envoy.transport_sockets.tls", [])
    assert sockets("STRICT", "weight: 1") == ("", [])
    assert sockets("DISABLE", "serviceAccount: web") == ("", [])


def test_where_nobody_takes_it_clusters_know_nothing_of_mutual_tls() -> None:
    assert upstream(of("DISABLE"))[0] == set()
    assert upstream(of("STRICT"))[0] == {"tlsMode-istio", "tlsMode-disabled"}


def test_a_rule_that_comes_changes_what_the_proxy_has() -> None:
    translator = Translator()
    before = mesh_of(SERVICE)
    scope = translator.scope_of(before, SERVER)
    after = changed(before, of("STRICT"))
    assert translator.scope_of(after, SERVER) != scope
    other = replace(SERVER, namespace="other")
    assert translator.scope_of(after, other) == translator.scope_of(before, other)
