"""Services and endpoints of ServiceEntry, WorkloadEntry and Kubernetes' Service."""

from __future__ import annotations

import pytest

from meshproxy.pilot.documents.document import Document
from meshproxy.pilot.mesh.model import MeshConfig
from meshproxy.pilot.mesh.services import Endpoint, Service, ServicePort
from tests.pilot.documents.text import document
from tests.pilot.mesh.worlds import mesh_of, service

STATIC = """
hosts: [Reviews.Shop.example]
addresses: [10.9.0.1, 10.8.0.0/16]
ports:
  - {number: 80, name: http, protocol: http2, targetPort: 8080}
  - {number: 90, name: db, protocol: MONGO}
location: MESH_INTERNAL
resolution: STATIC
subjectAltNames: [spiffe://a]
exportTo: [.]
endpoints:
  - {address: 10.0.0.1}
  - address: 10.0.0.2
    ports: {http: 8081}
    labels: {version: v2, security.istio.io/tlsMode: istio}
    locality: eu/a
    weight: 7
    network: n
    serviceAccount: sa
  - {address: 10.0.0.3, labels: {istio-locality: us.b.1}}
"""
KEY = ("reviews.shop.example", "shop")


def selected(name: str, address: str, labels: str, more: str = "") -> Document:
    return document("WorkloadEntry", f"address: {address}\nlabels: {{{labels}}}\n{more}", name, "shop")


def test_a_service_entry_is_a_service_for_each_host() -> None:
    mesh = mesh_of(document("ServiceEntry", STATIC, "reviews", "shop", ", labels: {team: a}"))
    assert mesh.services.by_host["reviews.shop.example"]["shop"] == Service(
        "reviews.shop.example",
        "shop",
        (ServicePort(80, "http", "HTTP2", 8080), ServicePort(90, "db", "TCP", 90)),
        ("10.9.0.1", "10.8.0.0/16"),
        "STATIC",
        external=False,
        export_to=(".",),
        labels=(("team", "a"),),
        subject_alt_names=("spiffe://a",),
        name="reviews",
    )


def test_endpoints_are_listed_by_port() -> None:
    mesh = mesh_of(document("ServiceEntry", STATIC, "reviews", "shop"))
    assert mesh.endpoints(KEY)[80] == (
        Endpoint("10.0.0.1", 8080, namespace="shop"),
        Endpoint(
            "10.0.0.2",
            8081,
            (("security.istio.io/tlsMode", "istio"), ("version", "v2")),
            "eu/a",
            7,
            "n",
            "sa",
            "istio",
            namespace="shop",
        ),
        Endpoint("10.0.0.3", 8080, (("istio-locality", "us.b.1"),), "us/b/1", namespace="shop"),
    )
    assert [endpoint.port for endpoint in mesh.endpoints(KEY)[90]] == [90, 90, 90]


def test_workloads_are_selected_by_all_labels_of_their_own_namespace() -> None:
    mesh = mesh_of(
        service("a.example", more="workloadSelector: {labels: {app: a, tier: web}}"),
        selected("both", "10.0.0.1", "app: a, tier: web"),
        selected("one", "10.0.0.2", "app: a"),
        document("WorkloadEntry", "address: 10.0.0.3\nlabels: {app: a, tier: web}", "other", "elsewhere"),
        document("WorkloadEntry", "address: 10.0.0.4\nlabels: {tier: web}", "meta", "shop", ", labels: {app: a}"),
    )
    found = mesh.endpoints(("a.example", "shop"))[80]
    assert [(each.workload, each.address) for each in found] == [("both", "10.0.0.1"), ("meta", "10.0.0.4")]


def test_a_workload_that_comes_moves_or_goes_changes_only_its_services_endpoints() -> None:
    first = mesh_of(service("a.example", more="workloadSelector: {labels: {app: a}}"), service("b.example"))
    old, new = selected("w", "10.0.0.1", "app: a"), selected("w", "10.0.0.2", "app: a")
    moved = selected("w", "10.0.0.2", "app: b")
    second = first.updated([(None, old)])
    third = second.updated([(old, new)])
    assert [each.address for each in third.endpoints(("a.example", "shop"))[80]] == ["10.0.0.2"]
    changes = third.changes(second)
    assert (changes.services, changes.endpoints) == (frozenset(), frozenset({("a.example", "shop")}))
    assert changes.only_endpoints
    assert third.services is first.services
    assert third.updated([(new, moved)]).endpoints(("a.example", "shop")) == {}
    assert third.updated([(new, None)]).endpoints(("a.example", "shop")) == {}


def test_without_endpoints_dns_is_asked_for_the_host() -> None:
    spec = "hosts: [api.example]\nports: [{number: 443, name: tls, protocol: TLS}]\nresolution: DNS"
    mesh = mesh_of(document("ServiceEntry", spec, "api", "shop"))
    assert mesh.endpoints(("api.example", "shop"))[443] == (Endpoint("api.example", 443, namespace="shop"),)
    assert mesh.services.by_host["api.example"]["shop"].external


def test_a_unix_socket_has_no_port() -> None:
    mesh = mesh_of(service("a.example", more='endpoints: [{address: "unix:///run/a"}]'))
    assert mesh.endpoints(("a.example", "shop"))[80] == (Endpoint("unix:///run/a", 0, namespace="shop"),)


def test_entries_of_one_host_are_one_service_of_which_the_oldest_decides() -> None:
    young = "ports: [{number: 80, name: web}, {number: 81, name: more}, {number: 82, name: http}]\nresolution: STATIC"
    mesh = mesh_of(
        document(
            "ServiceEntry",
            f"hosts: [a.example]\naddresses: [10.9.0.2]\n{young}\nendpoints: [{{address: 10.0.0.2}}]",
            "a-first-by-name",
            "shop",
            ', creationTimestamp: "2026-02-01"',
        ),
        service("a.example", "z", more="addresses: [10.9.0.1]\nendpoints: [{address: 10.0.0.1}]", created="2026-01-01"),
    )
    found = mesh.services.by_host["a.example"]["shop"]
    assert found.name == "z"
    assert [(port.number, port.name, port.protocol) for port in found.ports] == [
        (80, "http", "HTTP"),
        (81, "more", "TCP"),
    ]
    assert found.addresses == ("10.9.0.1", "10.9.0.2")
    assert [each.address for each in mesh.endpoints(found.key)[80]] == ["10.0.0.1", "10.0.0.2"]


def test_of_several_namespaces_a_client_sees_its_own_else_the_oldest() -> None:
    mesh = mesh_of(
        service("a.example", "a", "one", created="2026-02-01"),
        service("a.example", "a", "two", created="2026-01-01"),
        service("a.example", "a", "hidden", "exportTo: [.]", created="2025-01-01"),
    )
    seen = {client: mesh.services.visible(client)["a.example"].namespace for client in ("one", "two", "x", "hidden")}
    assert seen == {"one": "one", "two": "two", "x": "two", "hidden": "hidden"}


@pytest.mark.parametrize(
    ("export_to", "clients"),
    [("", "shop other third"), ("['*']", "shop other third"), ("[.]", "shop"), ("[other]", "other"), ("['~']", "")],
)
def test_export_to_says_who_sees_a_service(export_to: str, clients: str) -> None:
    mesh = mesh_of(service("a.example", more=f"exportTo: {export_to}" if export_to else ""))
    assert [
        each for each in ("shop", "other", "third") if "a.example" in mesh.services.visible(each)
    ] == clients.split()


def test_kubernetes_service() -> None:
    spec = """
    clusterIP: 10.96.0.1
    selector: {app: web}
    ports:
      - {name: grpc-api, port: 90, targetPort: 9090}
      - {name: other, port: 91, appProtocol: kubernetes.io/h2c}
      - {name: grpc-web-x, port: 92}
      - {name: plain, port: 93}
    """
    mesh = mesh_of(document("Service", spec, "web", "shop"), selected("w", "10.0.0.1", "app: web"))
    found = mesh.services.by_host["web.shop.svc.cluster.local"]["shop"]
    assert [(port.number, port.protocol, port.target_port) for port in found.ports] == [
        (90, "GRPC", 9090),
        (91, "HTTP2", 91),
        (92, "GRPC-WEB", 92),
        (93, "TCP", 93),
    ]
    assert found.addresses == ("10.96.0.1",)
    assert [(each.address, each.port) for each in mesh.endpoints(found.key)[90]] == [("10.0.0.1", 9090)]


def test_kubernetes_headless_and_external_services() -> None:
    mesh = mesh_of(
        document("Service", "clusterIP: None\nports: [{port: 80, name: http}]\nselector: {a: b}", "web", "shop"),
        document("Service", "type: ExternalName\nexternalName: api.example\nports: [{port: 80}]", "api", "shop"),
        document(
            "Service", "ports: [{port: 80}]", "mine", "shop", ', annotations: {networking.istio.io/exportTo: ".,a"}'
        ),
        config=MeshConfig("mesh.test"),
    )
    services = mesh.services.by_host
    assert services["web.shop.svc.mesh.test"]["shop"].addresses == ()
    assert services["api.shop.svc.mesh.test"]["shop"].resolution == "DNS"
    assert mesh.endpoints(("api.shop.svc.mesh.test", "shop"))[80][0].address == "api.example"
    assert services["mine.shop.svc.mesh.test"]["shop"].export_to == (".", "a")


def test_a_workload_is_served_by_the_services_that_select_it() -> None:
    mesh = mesh_of(
        service("a.example", more="workloadSelector: {labels: {app: a}}"),
        service("b.example", more="workloadSelector: {labels: {app: b}}"),
        service("c.example", namespace="other", more="workloadSelector: {labels: {app: a}}"),
        service("listed.example", more="endpoints: [{address: 10.0.0.1}]"),
    )
    assert [each.hostname for each in mesh.served_by("shop", {"app": "a", "more": "x"})] == ["a.example"]
