"""Istio's exchange of metadata in headers. What is expected is what Istio's own proxy documents and does."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from meshproxy.api.istio_peer_metadata_pb2 import Config
from meshproxy.filters.http.istio_peer_metadata import Peer, build_peer_metadata, header_of, peer_of
from tests.http.harness import Harness, get, parse

HEADERS: dict[str, Any] = {"istio_headers": {}}
SIDECAR_IN = {"downstream_discovery": [HEADERS], "downstream_propagation": [HEADERS]}
SIDECAR_OUT = {
    "upstream_discovery": [HEADERS],
    "upstream_propagation": [{"istio_headers": {"skip_external_clusters": True}}],
}
NODE = {
    "NAME": "reviews-v1-1",
    "NAMESPACE": "shop",
    "CLUSTER_ID": "Kubernetes",
    "WORKLOAD_NAME": "reviews-v1",
    "OWNER": "kubernetes://apis/apps/v1/namespaces/shop/deployments/reviews-v1",
    "LABELS": {
        "app": "reviews",
        "version": "v1",
        "service.istio.io/canonical-name": "reviews",
        "service.istio.io/canonical-revision": "v1",
        "role": "canary",
        "pod-template-hash": "1",
    },
    "ISTIO_VERSION": "1.27",
}
FIELDS = {
    "type": "deployment",
    "workload": "reviews-v1",
    "name": "reviews-v1-1",
    "cluster": "Kubernetes",
    "namespace": "shop",
    "service": "reviews",
    "revision": "v1",
    "app": "reviews",
    "version": "v1",
}
PEER_ID = b"sidecar~10.0.0.1~a.b~b.svc.cluster.local"
OWN_ID = "sidecar~10.0.0.2~c.d~d.svc.cluster.local"


def encoded(metadata: dict[str, Any]) -> bytes:
    return base64.b64encode(json_format.ParseDict(metadata, Struct()).SerializeToString(deterministic=True))


class Exchange(Harness):
    """A chain with the filter; `metadata` is the upstream cluster's, under `istio`."""

    def __init__(self, config: dict[str, Any], *, answer: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__()
        self.context.node_metadata = NODE
        self.context.service_node = OWN_ID
        self.upstream.answer_fields = ((b":status", b"200"), *answer)
        self.add(build_peer_metadata(parse(config, Config()), "p", self.context), "mx")

    def ask(self, *headers: tuple[bytes, bytes]) -> bytes:
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        return self.exchange(get("/").replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n"))

    def seen(self) -> dict[bytes, bytes]:
        """What the upstream was sent."""
        return dict(self.upstream.seen[-1])

    def state(self, key: str) -> Peer | None:
        state = self.upstream.streams[-1].info.filter_state
        peer = None if state is None else state.get(key)
        assert peer is None or isinstance(peer, Peer)
        return peer


def test_who_the_downstream_is_becomes_filter_state_and_goes_no_further() -> None:
    exchange = Exchange(SIDECAR_IN)
    answer = exchange.ask((b"x-envoy-peer-metadata", encoded(NODE)), (b"x-envoy-peer-metadata-id", PEER_ID))
    peer = exchange.state("downstream_peer")
    assert peer is not None
    assert peer.structure() == FIELDS
    assert peer.text() == ",".join(f"{name}={value}" for name, value in FIELDS.items())
    assert not [name for name in exchange.seen() if name.startswith(b"x-envoy-peer")]
    assert b"x-envoy-peer-metadata-id: " + OWN_ID.encode() in answer
    assert b"x-envoy-peer-metadata: " + header_of(peer_of(NODE, frozenset())) in answer


def test_who_tells_nothing_is_told_nothing() -> None:
    exchange = Exchange(SIDECAR_IN)
    assert b"peer-metadata" not in exchange.ask()
    assert exchange.state("downstream_peer") is None


def test_each_header_is_answered_by_its_own() -> None:
    answer = Exchange(SIDECAR_IN).ask((b"x-envoy-peer-metadata-id", PEER_ID))
    assert b"x-envoy-peer-metadata-id: " in answer
    assert b"x-envoy-peer-metadata: " not in answer


def test_the_upstream_is_told_who_we_are_and_what_it_says_goes_no_further() -> None:
    told = (b"x-envoy-peer-metadata", encoded(NODE)), (b"x-envoy-peer-metadata-id", PEER_ID)
    exchange = Exchange(SIDECAR_OUT, answer=told)
    answer = exchange.ask()
    assert exchange.seen()[b"x-envoy-peer-metadata-id"] == OWN_ID.encode()
    metadata = Struct.FromString(base64.b64decode(exchange.seen()[b"x-envoy-peer-metadata"]))
    labels = {name: NODE["LABELS"][name] for name in NODE["LABELS"] if name not in ("role", "pod-template-hash")}  # type: ignore[index]
    expected = {name: value for name, value in NODE.items() if name != "ISTIO_VERSION"} | {"LABELS": labels}
    assert json_format.MessageToDict(metadata) == expected
    assert b"peer-metadata" not in answer
    peer = exchange.state("upstream_peer")
    assert peer is not None
    assert peer.structure() == FIELDS


def test_what_a_client_pretends_to_be_does_not_reach_the_upstream() -> None:
    exchange = Exchange(SIDECAR_OUT)
    exchange.ask((b"x-envoy-peer-metadata", encoded({"NAME": "other"})), (b"x-envoy-peer-metadata-id", PEER_ID))
    assert exchange.seen()[b"x-envoy-peer-metadata-id"] == OWN_ID.encode()
    assert exchange.seen()[b"x-envoy-peer-metadata"] == header_of(peer_of(NODE, frozenset()))


@pytest.mark.parametrize("metadata", [b"", b"%%%", b"bm8=", encoded({})])
def test_what_is_no_metadata_is_no_peer_that_matters(metadata: bytes) -> None:
    exchange = Exchange(SIDECAR_IN)
    answer = exchange.ask((b"x-envoy-peer-metadata", metadata))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    peer = exchange.state("downstream_peer")
    assert peer is None or peer.structure() == {}
    assert b"x-envoy-peer-metadata" not in exchange.seen()


def test_labels_that_are_asked_for() -> None:
    exchange = Exchange(SIDECAR_IN | {"additional_labels": ["role", "absent", "app"]})
    answer = exchange.ask((b"x-envoy-peer-metadata", encoded(NODE)))
    peer = exchange.state("downstream_peer")
    assert peer is not None
    assert peer.structure() == FIELDS | {"labels": {"role": "canary"}}
    assert peer.text().endswith(",version=v1,labels[]role=canary")
    own = answer.split(b"x-envoy-peer-metadata: ")[1].split(b"\r\n")[0]
    labels = json_format.MessageToDict(Struct.FromString(base64.b64decode(own)))["LABELS"]
    assert labels["role"] == "canary"
    assert "pod-template-hash" not in labels


def test_a_peer_is_known_by_its_id() -> None:
    exchange = Exchange(SIDECAR_IN)
    exchange.ask((b"x-envoy-peer-metadata", encoded(NODE)), (b"x-envoy-peer-metadata-id", PEER_ID))
    first = exchange.state("downstream_peer")
    exchange.ask((b"x-envoy-peer-metadata", b"unread"), (b"x-envoy-peer-metadata-id", PEER_ID))
    assert exchange.state("downstream_peer") is first


def test_what_may_be_remembered_is_bounded() -> None:
    exchange = Exchange(SIDECAR_IN)
    connection = exchange.connect()
    for index in range(600):
        header = b"x-envoy-peer-metadata: %s\r\nx-envoy-peer-metadata-id: %d\r\n" % (encoded(NODE), index)
        connection.send(get("/").replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n"))
    assert len(exchange.filters[0]._peers) == 500  # type: ignore[attr-defined]


@pytest.mark.parametrize("owner", ["", "x", "kubernetes://apis/apps/v1/namespaces/shop/daemonsets/reviews-v1", 3])
def test_an_owner_of_another_kind_is_none(owner: object) -> None:
    assert "type" not in peer_of(NODE | {"OWNER": owner}, frozenset()).fields


def test_discovery_that_is_not_there_finds_nobody() -> None:
    exchange = Exchange({"downstream_discovery": [{"workload_discovery": {}}, {"baggage": {}}]})
    exchange.ask((b"x-envoy-peer-metadata", encoded(NODE)))
    assert exchange.state("downstream_peer") is None
    assert b"x-envoy-peer-metadata" in exchange.seen()
