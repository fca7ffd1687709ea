"""Two proxies have one scope exactly where no rule tells them apart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshproxy.pilot.proxy import APPLICATIONS, EXPLICIT, GATEWAY, GRPC, PORTS, SIDECAR
from meshproxy.pilot.resources.scope import InboundPort, ProxyScope
from meshproxy.pilot.resources.translator import Translator
from meshproxy.pilot.snapshot import Proxy
from tests.pilot.resources.support import SHOP_PAGE, changed, mesh_of, sample

SERVICES = sample("services")
LABELLED = {
    "Sidecar": "spec: {workloadSelector: {labels: {app: web}}, egress: [{hosts: ['./*']}]}",
    "DestinationRule": "spec: {host: reviews, workloadSelector: {matchLabels: {app: web}}}",
    "VirtualService": """spec:
  hosts: [reviews]
  http: [{match: [{sourceLabels: {app: web}}], route: [{destination: {host: reviews}}]}]""",
    "LocalRateLimit": "spec: {workloadSelector: {labels: {app: web}}, tokenBucket: {maxTokens: 1, fillInterval: 1s}}",
    "Fault": "spec: {workloadSelector: {labels: {app: web}}, abort: {httpStatus: 503}}",
    "PythonFilter": "spec: {workloadSelector: {labels: {app: web}}, module: m}",
    "AuthorizationPolicy": "spec: {selector: {matchLabels: {app: web}}}",
    "Gateway": "spec: {selector: {app: web}, servers: [{port: {number: 80, name: h, protocol: HTTP}, hosts: ['*']}]}",
}
GROUPS = {
    "LocalRateLimit": "meshproxy.io/v1",
    "Fault": "meshproxy.io/v1",
    "PythonFilter": "meshproxy.io/v1",
    "AuthorizationPolicy": "security.istio.io/v1",
}


def document(kind: str, spec: str, namespace: str = "shop", name: str = "one") -> str:
    group = GROUPS.get(kind, "networking.istio.io/v1")
    return f"apiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n{spec}\n"


def scope(text: str, proxy: Proxy) -> ProxyScope:
    return Translator().scope_of(mesh_of(text), proxy)


def alike(text: str, **fields: object) -> bool:
    """Whether a proxy that differs in these fields has the same scope."""
    one = replace(SHOP_PAGE, ips=("10.9.9.9",))
    return scope(text, one) == scope(text, replace(one, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "another"},
        {"labels": ()},
        {"labels": (("app", "web"),)},
        {"ips": ("10.9.9.8",)},
        {"region": "us", "zone": "", "sub_zone": ""},
        {"cluster": "another"},
        {"service_account": "another"},
        {"metadata": (("product", "envoy"),)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_no_rule_asks_for_makes_no_difference(fields: dict[str, object]) -> None:
    assert alike(SERVICES, **fields)


@pytest.mark.parametrize(
    "fields", [{"namespace": "other"}, {"mode": EXPLICIT}, {"mode": GRPC}, {"mode": GATEWAY}], ids=str
)
def test_namespace_and_mode_always_do(fields: dict[str, object]) -> None:
    assert not alike(SERVICES, **fields)


def test_who_has_secrets_matters_but_to_grpc_clients() -> None:
    agent = (("meshproxy.io/sds-cluster", "sds-grpc"), *SHOP_PAGE.metadata)
    assert not alike(SERVICES, metadata=agent)
    grpc = replace(SHOP_PAGE, mode=GRPC)
    assert scope(SERVICES, grpc) == scope(SERVICES, replace(grpc, metadata=agent))


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_matter_where_a_rule_selects_by_them(kind: str) -> None:
    text = f"{SERVICES}\n---\n{document(kind, LABELLED[kind])}"
    assert not alike(text, labels=(("app", "web"),))
    assert alike(text, labels=(("app", "api"), ("other", "label")))


@pytest.mark.parametrize("kind", ["Sidecar", "DestinationRule", "LocalRateLimit", "PythonFilter"])
def test_selectors_of_another_namespace_do_not_matter(kind: str) -> None:
    text = f"{SERVICES}\n---\n{document(kind, LABELLED[kind], 'other')}"
    assert alike(text, labels=(("app", "web"),))


@pytest.mark.parametrize("kind", ["LocalRateLimit", "PythonFilter"])
def test_selectors_of_the_root_namespace_do(kind: str) -> None:
    text = f"{SERVICES}\n---\n{document(kind, LABELLED[kind], 'istio-system')}"
    assert not alike(text, labels=(("app", "web"),))


def test_locality_matters_where_endpoints_are_preferred_by_it() -> None:
    text = f"{SERVICES}\n---\n{sample('locality')}"
    assert not alike(text, zone="eu-2")
    assert alike(text, labels=(("topology.istio.io/network", "n"),))


def test_labels_that_fail_over_goes_by_matter_whatever_their_value() -> None:
    text = sample("services", "locality").replace("enabled: true", "failoverPriority: [rack]\n        enabled: true")
    assert not alike(text, labels=(("rack", "7"),))


def test_who_takes_python_matters_where_there_is_some() -> None:
    text = sample("services", "python-filter")
    assert not alike(text, metadata=(("product", "envoy"),))


def test_what_the_workload_serves() -> None:
    found = scope(SERVICES, SHOP_PAGE)
    assert found.inbound == (InboundPort(9080, "HTTP", 9080, "productpage.shop.svc.cluster.local"),)
    ratings = replace(SHOP_PAGE, ips=("10.1.0.41",), labels=(("app", "ratings"), ("version", "v1")))
    assert [(port.target, port.protocol, port.number) for port in scope(SERVICES, ratings).inbound] == [
        (8080, "HTTP", 9080),
        (9090, "GRPC", 9090),
    ]


def test_pods_of_one_workload_share_a_scope_behind_interception_only() -> None:
    text = f"{SERVICES}\n---\n" + document(
        "WorkloadEntry", "spec: {address: 10.1.0.77, labels: {app: reviews, version: v1}}", name="reviews-v1b"
    )
    one = replace(SHOP_PAGE, ips=("10.1.0.31",), labels=(("app", "reviews"), ("version", "v1")))
    other = replace(one, ips=("10.1.0.77",))
    assert scope(text, one) == scope(text, other)
    explicit = [scope(text, replace(each, mode=EXPLICIT)) for each in (one, other)]
    assert [each.inbound[0].address for each in explicit] == ["10.1.0.31", "10.1.0.77"]


def test_an_address_alone_is_not_enough_where_labels_say_otherwise() -> None:
    stranger = replace(SHOP_PAGE, labels=(("app", "other"),))
    assert scope(SERVICES, stranger).inbound == ()
    assert scope(SERVICES, replace(SHOP_PAGE, namespace="other")).inbound == ()


def test_explicit_listeners_as_the_node_has_them() -> None:
    metadata = (("product", "envoy"), (f"{APPLICATIONS}.9080", "127.0.0.1:8080"), (f"{PORTS}.9080", "19080"))
    found = scope(SERVICES, replace(SHOP_PAGE, mode=EXPLICIT, metadata=metadata))
    assert found.outbound.ports == (("9080", "19080"),)
    assert [(port.address, port.application) for port in found.inbound] == [("10.1.0.10", "127.0.0.1:8080")]
    assert scope(SERVICES, replace(SHOP_PAGE, mode=SIDECAR, metadata=metadata)).outbound.ports == ()


def test_inbound_ports_follow_the_endpoints() -> None:
    translator = Translator()
    mesh = mesh_of(SERVICES)
    proxy = replace(SHOP_PAGE, ips=("10.1.0.99",), labels=(("app", "reviews"), ("version", "v1")))
    assert translator.scope_of(mesh, proxy).inbound == ()
    moved = changed(
        mesh,
        document("WorkloadEntry", "spec: {address: 10.1.0.99, labels: {app: reviews, version: v1}}", name="reviews-v1"),
    )
    assert [port.hostname for port in translator.scope_of(moved, proxy).inbound] == ["reviews.shop.svc.cluster.local"]
    assert translator.scope_of(mesh, proxy).inbound == ()
    back = moved.updated(
        [(moved.documents[identity], None) for identity in moved.documents if identity.name == "reviews-v1"]
    )
    assert translator.scope_of(back, proxy).inbound == ()
