"""Who a proxy is, by the node that it names."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import Node
from google.protobuf.json_format import ParseDict

from meshproxy.pilot.proxy import APPLICATIONS, EXPLICIT, GATEWAY, GRPC, PORTS, SDS, SIDECAR, entries, proxy_of
from meshproxy.pilot.snapshot import Proxy

SIDECAR_ID = "sidecar~10.1.0.10~page-1.shop~shop.svc.mesh.local"


def proxy(service_account: str = "", **fields: Any) -> Proxy:
    return proxy_of(ParseDict(fields, Node()), service_account)


def test_all_that_an_agent_tells() -> None:
    found = proxy(
        id=SIDECAR_ID,
        cluster="page.shop",
        user_agent_name="envoy",
        locality={"region": "eu", "zone": "eu-1", "sub_zone": "a"},
        metadata={
            "NAMESPACE": "shop",
            "LABELS": {"version": "v1", "app": "page"},
            "INSTANCE_IPS": "10.1.0.10, fd00::1,not-an-address",
            "SERVICE_ACCOUNT": "page",
        },
    )
    assert found == Proxy(
        id=SIDECAR_ID,
        namespace="shop",
        service_account="page",
        labels=(("app", "page"), ("version", "v1")),
        ips=("10.1.0.10", "fd00::1"),
        mode=SIDECAR,
        cluster="page.shop",
        region="eu",
        zone="eu-1",
        sub_zone="a",
        domain="mesh.local",
        metadata=(("product", "envoy"),),
    )


def test_an_id_alone_says_namespace_address_and_domain() -> None:
    found = proxy(id=SIDECAR_ID)
    assert (found.namespace, found.ips, found.domain) == ("shop", ("10.1.0.10",), "mesh.local")


@pytest.mark.parametrize("identity", ["", "anything", "a~b", "a~b~c~d~e", "sidecar~nowhere~x~y"])
def test_another_id_is_taken_as_it_is(identity: str) -> None:
    found = proxy(id=identity)
    assert (found.id, found.ips, found.domain) == (identity, (), "cluster.local")


def test_a_proven_service_account_wins() -> None:
    assert proxy("proven", metadata={"SERVICE_ACCOUNT": "said"}).service_account == "proven"


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({}, SIDECAR),
        ({"metadata": {"INTERCEPTION_MODE": "REDIRECT"}}, SIDECAR),
        ({"metadata": {"INTERCEPTION_MODE": "none"}}, EXPLICIT),
        ({"metadata": {"GENERATOR": "grpc"}}, GRPC),
        ({"user_agent_name": "gRPC Python"}, GRPC),
        ({"id": "router~10.0.0.1~edge.shop~shop.svc.cluster.local"}, GATEWAY),
    ],
)
def test_the_mode(fields: dict[str, Any], mode: str) -> None:
    assert proxy(**fields).mode == mode


def test_ports_and_applications_are_facts_of_their_own() -> None:
    found = proxy(metadata={PORTS: {"80": 15080, "db.x:5432": "5433"}, APPLICATIONS: {"9080": "127.0.0.1:8080"}})
    assert entries(found, PORTS) == {"80": "15080", "db.x:5432": "5433"}
    assert entries(found, APPLICATIONS) == {"9080": "127.0.0.1:8080"}


@pytest.mark.parametrize("key", [PORTS, APPLICATIONS])
@pytest.mark.parametrize("value", ["", "http", "127.0.0.1:", 65536, 1.5, -1])
def test_what_is_no_port_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match='of "80"'):
        proxy(metadata={key: {"80": value}})


def test_a_listener_may_have_any_port_that_is_free_but_no_application_has() -> None:
    assert entries(proxy(metadata={PORTS: {"80": 0}}), PORTS) == {"80": "0"}
    with pytest.raises(ValueError, match="names no port"):
        proxy(metadata={APPLICATIONS: {"80": 0}})


@pytest.mark.parametrize("value", ["text", 7, None, ["a"], {"a": {"b": "c"}}])
def test_metadata_of_another_shape_are_left_out(value: Any) -> None:
    found = proxy(metadata={"LABELS": value, PORTS: value, "NAMESPACE": {}, "INSTANCE_IPS": 7})
    assert (found.labels, entries(found, PORTS), found.namespace, found.ips) == ((), {}, "default", ())


@pytest.mark.parametrize(
    ("fields", "cluster"),
    [
        ({"id": SIDECAR_ID}, None),
        ({"id": SIDECAR_ID, "metadata": {"ISTIO_VERSION": "1.29.0"}}, "sds-grpc"),
        ({"id": "another", "metadata": {"ISTIO_VERSION": "1.29.0"}}, None),
        ({"id": "another", "metadata": {SDS: "agent"}}, "agent"),
        ({"id": SIDECAR_ID, "metadata": {"ISTIO_VERSION": "1.29.0", SDS: "agent"}}, "agent"),
        ({"id": SIDECAR_ID, "metadata": {"ISTIO_VERSION": "1.29.0", SDS: ""}}, None),
    ],
)
def test_where_it_has_its_secrets_from(fields: dict[str, Any], cluster: str | None) -> None:
    assert dict(proxy(**fields).metadata).get(SDS) == cluster


@pytest.mark.parametrize("place", ["127.0.0.1:19080", "x19080", "\u0661\u0662", ""])
def test_a_listener_has_a_port_and_nothing_else(place: str) -> None:
    with pytest.raises(ValueError, match="names no port"):
        proxy(metadata={PORTS: {"80": place}})
