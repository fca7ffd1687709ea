"""What proxies have in sight: the services of a Sidecar, of VirtualServices, and of several namespaces."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from meshproxy.pilot.mesh.model import Mesh
from meshproxy.pilot.proxy import GATEWAY, GRPC
from meshproxy.pilot.resources.translator import Translator
from meshproxy.pilot.snapshot import Proxy, Snapshot
from tests.pilot.resources.static_form import messages
from tests.pilot.resources.support import SHOP_PAGE, changed, mesh_of, resource, snapshot_of


def service(host: str, namespace: str, *, port: int = 8000, more: str = "") -> str:
    return f"""---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: "{host}", namespace: {namespace}}}
spec:
  hosts: [{host}]
  ports: [{{number: {port}, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 10.3.0.1}}]
  {more}
"""


def virtual_service(host: str, to: str, namespace: str, match: str = "") -> str:
    return f"""---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: "{host}", namespace: {namespace}}}
spec:
  hosts: [{host}]
  http:
    - {{{match}route: [{{destination: {{host: {to}, port: {{number: 8000}}}}}}]}}
"""


def sidecar(*hosts: str) -> str:
    return f"""---
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {{name: default, namespace: shop}}
spec: {{egress: [{{hosts: [{", ".join(f'"{host}"' for host in hosts)}]}}]}}
"""


def clusters(snapshot: Snapshot) -> list[str]:
    """The hosts of those for services."""
    return [name.rpartition("|")[2] for name in sorted(snapshot.types[CLUSTER_TYPE]) if name.startswith("outbound|")]


def hosts(snapshot: Snapshot, port: int) -> dict[str, str]:
    """The virtual hosts of a port, and the cluster of each one's first route."""
    found = messages(snapshot, ROUTE_TYPE).get(str(port))
    return {host.name: host.routes[0].route.cluster for host in found.virtual_hosts} if found is not None else {}


def seen(text: str, proxy: Proxy = SHOP_PAGE) -> Snapshot:
    return snapshot_of(mesh_of(text), proxy)


ALL = service("a.example", "shop") + service("b.example", "other")


def test_a_sidecar_is_not_for_the_edge() -> None:
    text = ALL + sidecar("./*")
    assert clusters(seen(text)) == ["a.example"]
    assert clusters(seen(text, replace(SHOP_PAGE, mode=GATEWAY))) == ["a.example", "b.example"]


def test_destinations_of_virtual_services_are_in_sight() -> None:
    text = ALL + service("c.example", "other") + sidecar("./*") + virtual_service("a.example", "b.example", "shop")
    snapshot = seen(text)
    assert clusters(snapshot) == ["a.example", "b.example"]
    assert hosts(snapshot, 8000)["a.example:8000"] == "outbound|8000||b.example"


def test_a_virtual_service_that_comes_later_brings_its_destinations() -> None:
    def built(mesh: Mesh, previous: Snapshot | None) -> Snapshot:
        return snapshot_of(mesh, SHOP_PAGE, translator, previous)

    translator = Translator()
    mesh = mesh_of(ALL + sidecar("./*"))
    first = built(mesh, None)
    assert clusters(first) == ["a.example"]
    mesh = changed(mesh, virtual_service("a.example", "b.example", "shop"))
    second = built(mesh, first)
    assert clusters(second) == ["a.example", "b.example"]
    assert clusters(built(changed(mesh, virtual_service("a.example", "a.example", "shop")), second)) == ["a.example"]


def test_rules_that_a_sidecar_does_not_name_are_not_obeyed() -> None:
    text = ALL + sidecar("./*") + virtual_service("bare.example", "b.example", "other")
    assert [*hosts(seen(text), 80)] == []
    snapshot = seen(text.replace("./*", "*/bare.example"))
    assert [*hosts(snapshot, 80)] == ["bare.example:80", "allow_any"]
    assert clusters(snapshot) == ["b.example"]


@pytest.mark.parametrize("namespace", ["shop", "other"])
def test_a_service_out_of_sight_does_not_become_a_host_of_its_own(namespace: str) -> None:
    """Its rules are for a service that these proxies do not know; those for what is no service are something else."""
    text = ALL + sidecar("./*") + virtual_service("b.example", "a.example", namespace)
    assert hosts(seen(text), 80) == {}
    private = service("b.example", "other", more="exportTo: [.]") + service("a.example", "shop")
    snapshot = seen(private + virtual_service("b.example", "a.example", namespace))
    wanted = {"b.example:80": "outbound|8000||a.example", "allow_any": "PassthroughCluster"}
    assert hosts(snapshot, 80) == ({} if namespace == "other" else wanted)


def test_a_service_out_of_sight_stands_in_nobodys_way() -> None:
    """Two namespaces have the host; that of the client is not in its Sidecar."""
    text = service("a.example", "shop", port=81) + service("a.example", "other", port=82)
    assert [*hosts(seen(text), 81)] == ["a.example:81", "allow_any"]
    assert [*hosts(seen(text + sidecar("other/*")), 82)] == ["a.example:82", "allow_any"]


def test_a_rule_that_is_not_for_these_proxies_leaves_the_service_its_own_route() -> None:
    rule = virtual_service("a.example", "b.example", "shop", "match: [{port: 81}], ")
    snapshot = seen(ALL + rule)
    assert hosts(snapshot, 8000)["a.example:8000"] == "outbound|8000||a.example"
    (route,) = resource(snapshot, ROUTE_TYPE, "8000").virtual_hosts[0].routes
    assert route.name == "default"


def test_a_host_without_any_route_for_these_proxies_is_left_out() -> None:
    rule = virtual_service("bare.example", "b.example", "shop", "match: [{sourceNamespace: else}], ")
    snapshot = seen(ALL + rule)
    assert str(80) not in snapshot.types[ROUTE_TYPE]
    assert "0.0.0.0_80" not in snapshot.types[LISTENER_TYPE]
    with_service = seen(ALL + service("c.example", "shop", port=80) + rule)
    assert [*hosts(with_service, 80)] == ["c.example:80", "allow_any"]


NAMED = """---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: selecting, namespace: shop}
spec:
  hosts: [selecting.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  workloadSelector: {labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: by-name, namespace: shop}
spec: {address: vm.example, labels: {app: web}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: by-address, namespace: shop}
spec: {address: 10.3.0.9, labels: {app: web}}
"""
RESOLVED = """---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: resolved, namespace: shop}
spec:
  hosts: [resolved.example]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
"""


def test_no_names_reach_those_who_take_addresses() -> None:
    """EDS of Envoy refuses a whole assignment in which a host must be resolved."""
    for proxy in (SHOP_PAGE, replace(SHOP_PAGE, mode=GRPC)):
        assignment = resource(seen(NAMED, proxy), ENDPOINT_TYPE, "outbound|80||selecting.example")
        (only,) = [one.endpoint for each in assignment.endpoints for one in each.lb_endpoints]
        assert only.address.socket_address.address == "10.3.0.9"


def test_clients_of_grpc_have_no_services_that_must_be_resolved() -> None:
    snapshot = seen(ALL + RESOLVED, replace(SHOP_PAGE, mode=GRPC))
    assert clusters(snapshot) == ["a.example", "b.example"]
    for type_url in (ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE):
        assert not any("resolved" in name for name in snapshot.types[type_url])
