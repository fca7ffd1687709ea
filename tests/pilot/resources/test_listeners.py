"""Which listeners there are, which chains they have, and what stands in front of whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2 import TcpProxy

from meshproxy.api.http_filter_pb2 import Python
from meshproxy.config.subscription import CLUSTER_TYPE, LISTENER_TYPE, ROUTE_TYPE
from meshproxy.pilot.proxy import APPLICATIONS, EXPLICIT, PORTS
from meshproxy.pilot.snapshot import Proxy, Snapshot
from tests.pilot.resources.golden import EDGE
from tests.pilot.resources.static_form import messages
from tests.pilot.resources.support import SHOP_PAGE, changed, mesh_of, resource, sample, snapshot_of

TCP = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: one, namespace: shop}
spec:
  hosts: [one.example]
  ports: [{number: 5000, name: tcp, protocol: TCP}, {number: 443, name: tls, protocol: TLS}]
  resolution: STATIC
  endpoints: [{address: 10.2.0.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: two, namespace: shop}
spec:
  hosts: [two.example]
  addresses: [10.96.1.0/24, 10.96.2.1]
  ports: [{number: 5000, name: tcp, protocol: TCP}, {number: 443, name: tls, protocol: HTTPS}]
  resolution: STATIC
  endpoints: [{address: 10.2.0.2}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp, namespace: shop}
spec:
  hosts: [one.example]
  tcp:
    - match: [{port: 5000, destinationSubnets: [10.7.0.0/16]}]
      route: [{destination: {host: two.example, port: {number: 5000}}}]
    - route:
        - {destination: {host: one.example, port: {number: 5000}}, weight: 9}
        - {destination: {host: two.example, port: {number: 5000}}, weight: 1}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tls, namespace: shop}
spec:
  hosts: [two.example]
  tls:
    - match: [{port: 443, sniHosts: [two.example]}]
      route: [{destination: {host: one.example}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: one, namespace: shop}
spec:
  host: one.example
  trafficPolicy:
    connectionPool: {tcp: {idleTimeout: 90s}}
    loadBalancer: {consistentHash: {useSourceIp: true}}
"""


def listener(snapshot: Snapshot, name: str) -> Any:
    return resource(snapshot, LISTENER_TYPE, name)


def chains(snapshot: Snapshot, name: str) -> list[tuple[str, str]]:
    """What each chain matches, and its cluster or routes; the default chain last."""
    message = listener(snapshot, name)
    default = [message.default_filter_chain] if message.HasField("default_filter_chain") else []
    return [(_match(chain.filter_chain_match), _end(chain.filters[0])) for chain in [*message.filter_chains, *default]]


def _match(match: Any) -> str:
    networks = [f"{one.address_prefix}/{one.prefix_len.value}" for one in match.prefix_ranges]
    port = [f":{match.destination_port.value}"] if match.HasField("destination_port") else []
    return " ".join(
        [*match.server_names, *networks, *port, *match.application_protocols, match.transport_protocol]
    ).strip()


def _end(filter_: Any) -> str:
    if filter_.typed_config.Is(TcpProxy.DESCRIPTOR):
        proxy = TcpProxy.FromString(filter_.typed_config.value)
        weighted = [f"{one.name}={one.weight}" for one in proxy.weighted_clusters.clusters]
        return proxy.cluster or " ".join(weighted)
    manager = manager_of(filter_)
    return f"rds {manager.rds.route_config_name}" if manager.HasField("rds") else f"routes {manager.route_config.name}"


def manager_of(filter_: Any) -> HttpConnectionManager:
    return HttpConnectionManager.FromString(filter_.typed_config.value)


def filters_of(message: Any) -> list[str]:
    return [one.name for one in manager_of(message.filter_chains[0].filters[0]).http_filters]


def explicit(**metadata: str) -> Proxy:
    facts = (("product", "meshproxy"), *sorted(metadata.items()))
    return replace(SHOP_PAGE, mode=EXPLICIT, metadata=facts)


def test_behind_interception_everything_has_its_place() -> None:
    snapshot = snapshot_of(mesh_of(sample("services")), SHOP_PAGE)
    assert chains(snapshot, "virtualOutbound") == [(":15001", "BlackHoleCluster"), ("", "PassthroughCluster")]
    assert listener(snapshot, "virtualOutbound").use_original_dst.value
    assert chains(snapshot, "0.0.0.0_9080") == [("http/1.1 h2c raw_buffer", "rds 9080"), ("", "PassthroughCluster")]
    assert chains(snapshot, "10.96.0.14_3306") == [("", "outbound|3306||mysql.shop.svc.cluster.local")]
    assert chains(snapshot, "0.0.0.0_443") == [
        ("api.payments.example tls", "outbound|443||api.payments.example"),
        ("", "PassthroughCluster"),
    ]
    assert chains(snapshot, "virtualInbound") == [
        (":15006", "BlackHoleCluster"),
        (":9080", "routes inbound|9080||"),
        ("http/1.1 h2c raw_buffer", "routes InboundPassthroughCluster"),
        ("raw_buffer", "InboundPassthroughCluster"),
        ("tls", "InboundPassthroughCluster"),
    ]
    bound = {name for name, one in messages(snapshot, LISTENER_TYPE).items() if not one.HasField("bind_to_port")}
    assert bound == {"virtualOutbound", "virtualInbound"}


def test_what_is_no_service_goes_nowhere_where_the_sidecar_says_so() -> None:
    snapshot = snapshot_of(mesh_of(sample("services", "sidecar")), SHOP_PAGE)
    assert chains(snapshot, "virtualOutbound")[-1] == ("", "BlackHoleCluster")
    assert chains(snapshot, "0.0.0.0_9080")[-1] == ("", "BlackHoleCluster")
    routes = resource(snapshot, ROUTE_TYPE, "9080")
    assert routes.virtual_hosts[-1].name == "block_all"
    assert routes.virtual_hosts[-1].routes[0].direct_response.status == 502


def test_the_applications_own_cluster_keeps_its_address_from_interception() -> None:
    cluster = resource(snapshot_of(mesh_of(sample("services")), SHOP_PAGE), CLUSTER_TYPE, "inbound|9080||")
    assert cluster.type == cluster.ORIGINAL_DST
    assert cluster.upstream_bind_config.source_address.address == "127.0.0.6"


def test_tcp_and_tls_by_address_network_and_name() -> None:
    snapshot = snapshot_of(mesh_of(TCP), SHOP_PAGE)
    one, two = "outbound|5000||one.example", "outbound|5000||two.example"
    assert chains(snapshot, "10.96.2.1_5000") == [("", two)]
    assert chains(snapshot, "0.0.0.0_5000") == [
        ("10.7.0.0/16", two),
        ("10.96.1.0/24", two),
        ("", f"{one}=9 {two}=1"),
    ]
    assert chains(snapshot, "0.0.0.0_443") == [
        ("one.example tls", "outbound|443||one.example"),
        ("two.example tls", "outbound|443||one.example"),
        ("", "PassthroughCluster"),
    ]
    assert chains(snapshot, "10.96.2.1_443") == [
        ("two.example tls", "outbound|443||one.example"),
        ("", "PassthroughCluster"),
    ]


OVERLAPPING = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tls, namespace: shop}
spec:
  hosts: [two.example]
  tls:
    - match: [{port: 443, sniHosts: [two.example], destinationSubnets: [10.7.0.0/16, 10.8.0.1/16]}]
      route: [{destination: {host: one.example}}]
    - match: [{port: 443, sniHosts: [two.example], destinationSubnets: [10.8.0.0/16, 10.9.0.0/16]}]
      route: [{destination: {host: two.example}}]
    - match: [{port: 443, sniHosts: [two.example], destinationSubnets: [10.7.0.0/16]}]
      route: [{destination: {host: two.example}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: tcp, namespace: shop}
spec:
  hosts: [one.example]
  tcp:
    - match: [{destinationSubnets: [10.96.1.7/24, 10.7.0.0/16, 10.7.0.0/16]}]
      route: [{destination: {host: one.example, port: {number: 5000}}}]
"""


def test_of_chains_that_claim_one_thing_the_first_has_it() -> None:
    snapshot = snapshot_of(changed(mesh_of(TCP), OVERLAPPING), SHOP_PAGE)
    assert chains(snapshot, "0.0.0.0_443") == [
        ("one.example tls", "outbound|443||one.example"),
        ("two.example 10.7.0.0/16 10.8.0.0/16 tls", "outbound|443||one.example"),
        ("two.example 10.9.0.0/16 tls", "outbound|443||two.example"),
        ("", "PassthroughCluster"),
    ]
    # The network of two.example is claimed by the rule for one.example.
    assert chains(snapshot, "0.0.0.0_5000") == [
        ("10.96.1.0/24 10.7.0.0/16", "outbound|5000||one.example"),
        ("", "outbound|5000||one.example"),
    ]


EDGES = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edges, namespace: shop}
spec:
  servers:
    - {port: {number: 9444, name: any, protocol: TLS}, hosts: ["*"], tls: {mode: PASSTHROUGH}}
    - {port: {number: 9443, name: a, protocol: TLS}, hosts: ["*.example", one.shop.test], tls: {mode: PASSTHROUGH}}
    - port: {number: 9443, name: b, protocol: HTTPS}
      hosts: [one.example, web.shop.test]
      tls: {mode: SIMPLE, serverCertificate: /c.pem, privateKey: /k.pem}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: first, namespace: shop}
spec:
  hosts: [one.example]
  gateways: [edges]
  tls: [{match: [{sniHosts: [one.example]}], route: [{destination: {host: one.example, port: {number: 443}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: second, namespace: shop}
spec:
  hosts: [one.example, two.example]
  gateways: [edges]
  tls:
    - match: [{sniHosts: [one.example, two.example]}]
      route: [{destination: {host: two.example, port: {number: 443}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: third, namespace: shop}
spec:
  hosts: ["*"]
  gateways: [edges]
  tls:
    - match: [{port: 9444, sniHosts: ["*"]}]
      route: [{destination: {host: two.example, port: {number: 443}}}]
"""


def test_servers_of_the_edge_that_claim_one_name() -> None:
    snapshot = snapshot_of(mesh_of(f"{TCP}\n---\n{EDGES}"), EDGE)
    assert chains(snapshot, "0.0.0.0_9443") == [
        ("one.example tls", "outbound|443||one.example"),
        ("two.example tls", "outbound|443||two.example"),
        ("web.shop.test tls", "rds https.9443.b.edges.shop"),
    ]
    assert chains(snapshot, "0.0.0.0_9444")[-1] == ("tls", "outbound|443||two.example")


def test_a_policy_for_tcp_stands_in_the_listener() -> None:
    snapshot = snapshot_of(mesh_of(TCP), SHOP_PAGE)
    chain = listener(snapshot, "0.0.0.0_5000").default_filter_chain
    proxy = TcpProxy.FromString(chain.filters[0].typed_config.value)
    assert proxy.idle_timeout.seconds == 90
    assert proxy.hash_policy[0].HasField("source_ip")


def test_without_interception_there_is_a_loopback_port_for_each_port() -> None:
    snapshot = snapshot_of(mesh_of(f"{sample('services')}\n---\n{TCP}"), explicit())
    assert chains(snapshot, "127.0.0.1_9080") == [("", "rds 9080")]
    assert [match for match, _ in chains(snapshot, "127.0.0.1_443")] == [
        "api.payments.example tls",
        "one.example tls",
        "two.example tls",
    ]
    assert "127.0.0.1_3306" not in snapshot.types[LISTENER_TYPE]
    assert chains(snapshot, "10.1.0.10_9080") == [("", "routes inbound|9080||")]


def test_the_node_says_which_ports_there_are() -> None:
    ports = {f"{PORTS}.9080": "19080", f"{PORTS}.mysql.shop.svc.cluster.local:3306": "13306"}
    ports[f"{PORTS}.reviews.shop.svc.cluster.local:9080"] = "0"
    snapshot = snapshot_of(mesh_of(sample("services")), explicit(**ports))
    outbound = {
        name: one.address.socket_address.port_value
        for name, one in messages(snapshot, LISTENER_TYPE).items()
        if name.startswith("127.0.0.1")
    }
    assert outbound == {
        "127.0.0.1_9080": 19080,
        "127.0.0.1_mysql.shop.svc.cluster.local_3306": 13306,
        "127.0.0.1_reviews.shop.svc.cluster.local_9080": 0,
    }
    reviews = "reviews.shop.svc.cluster.local:9080"
    assert chains(snapshot, "127.0.0.1_reviews.shop.svc.cluster.local_9080") == [("", f"rds {reviews}")]
    (host,) = resource(snapshot, ROUTE_TYPE, reviews).virtual_hosts
    assert list(host.domains) == ["*"]
    assert host.routes[0].route.cluster == "outbound|9080||reviews.shop.svc.cluster.local"


def test_the_node_says_where_the_application_is() -> None:
    snapshot = snapshot_of(mesh_of(sample("services")), explicit(**{f"{APPLICATIONS}.9080": "127.0.0.3:8080"}))
    cluster = resource(snapshot, CLUSTER_TYPE, "inbound|9080||")
    place = cluster.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address
    assert (place.address, place.port_value) == ("127.0.0.3", 8080)


def test_filters_in_python_are_for_those_who_take_them() -> None:
    mesh = mesh_of(sample("services", "python-filter"))
    ours = listener(snapshot_of(mesh, explicit()), "10.1.0.10_9080")
    theirs = replace(explicit(), metadata=(("product", "envoy"),))
    assert filters_of(ours)[0] == "meshproxy.io/PythonFilter/shop/who"
    assert filters_of(listener(snapshot_of(mesh, theirs), "10.1.0.10_9080")) == filters_of(ours)[1:]
    assert not filters_of(listener(snapshot_of(mesh, explicit()), "127.0.0.1_9080"))[0].startswith("meshproxy")
    message = Python.FromString(manager_of(ours.filter_chains[0].filters[0]).http_filters[0].typed_config.value)
    assert message.file == "/etc/meshproxy/filters/who.py"
    assert dict(message.config) == {"header": "x-user"}
    assert message.hook_timeout.seconds == 1


def test_limits_stand_where_they_are_for() -> None:
    snapshot = snapshot_of(mesh_of(sample("services", "rate-limit")), explicit())
    assert filters_of(listener(snapshot, "10.1.0.10_9080"))[0] == "meshproxy.io/LocalRateLimit/shop/productpage"
    assert filters_of(listener(snapshot, "127.0.0.1_9080"))[0] == "meshproxy.io/LocalRateLimit/shop/to-details"
    hosts = resource(snapshot, ROUTE_TYPE, "9080").virtual_hosts
    limited = [host.name for host in hosts if host.typed_per_filter_config]
    assert limited == ["details.shop.svc.cluster.local:9080"]


def test_the_edge_ends_tls_and_redirects() -> None:
    snapshot = snapshot_of(mesh_of(sample("services", "gateway")), EDGE)
    assert chains(snapshot, "0.0.0.0_8080") == [("", "rds http.8080")]
    assert chains(snapshot, "0.0.0.0_8443") == [
        ("shop.example tls", "rds https.8443.https.edge.shop"),
        ("db.shop.example tls", "outbound|3306||mysql.shop.svc.cluster.local"),
    ]
    (plain,) = resource(snapshot, ROUTE_TYPE, "http.8080").virtual_hosts
    assert plain.require_tls == plain.ALL
    (secure,) = resource(snapshot, ROUTE_TYPE, "https.8443.https.edge.shop").virtual_hosts
    assert [route.route.cluster for route in secure.routes] == [
        "outbound|9080||reviews.shop.svc.cluster.local",
        "outbound|9080||productpage.shop.svc.cluster.local",
    ]
    assert manager_of(listener(snapshot, "0.0.0.0_8443").filter_chains[0].filters[0]).use_remote_address.value


def test_nobody_waits_for_an_inspection_who_needs_none() -> None:
    snapshot = snapshot_of(mesh_of(f"{sample('services')}\n---\n{TCP}"), SHOP_PAGE)
    names = {
        name: [one.name for one in listener(snapshot, name).listener_filters]
        for name in ("0.0.0.0_5000", "0.0.0.0_443")
    }
    assert names == {"0.0.0.0_5000": [], "0.0.0.0_443": ["envoy.filters.listener.tls_inspector"]}
    original, tls, http = listener(snapshot, "virtualInbound").listener_filters
    assert not original.HasField("filter_disabled")
    for inspector in (tls, http):
        ports = inspector.filter_disabled.destination_port_range
        assert (ports.start, ports.end) == (9080, 9081)


SECRETIVE = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: secretive, namespace: shop}
spec:
  selector: {app: edge}
  servers:
    - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [a.example], tls: {mode: SIMPLE, credentialName: a}}
    - {port: {number: 444, name: mesh, protocol: HTTPS}, hosts: [a.example], tls: {mode: ISTIO_MUTUAL}}
    - port: {number: 443, name: files, protocol: HTTPS}
      hosts: [b.example]
      tls: {mode: SIMPLE, serverCertificate: /c.pem, privateKey: /k.pem}
"""


def test_a_gateway_without_an_agent_does_not_serve_what_needs_its_secrets() -> None:
    mesh = mesh_of(f"{sample('services')}\n---\n{SECRETIVE}")
    served = {
        metadata: {
            name: [list(chain.filter_chain_match.server_names) for chain in message.filter_chains]
            for name, message in messages(snapshot_of(mesh, replace(EDGE, metadata=metadata)), LISTENER_TYPE).items()
        }
        for metadata in (EDGE.metadata, ())
    }
    assert served == {
        EDGE.metadata: {"0.0.0.0_443": [["a.example"], ["b.example"]], "0.0.0.0_444": [["a.example"]]},
        (): {"0.0.0.0_443": [["b.example"]]},
    }
