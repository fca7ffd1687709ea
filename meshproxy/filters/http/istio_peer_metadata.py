"""`istio.metadata_exchange` for HTTP: two proxies tell each other who they are, in the headers `x-envoy-peer-metadata`
and `x-envoy-peer-metadata-id`.

What a peer says becomes filter state, `downstream_peer` and `upstream_peer`, for logs and matchers; its headers go no
further. What we say is made of the node's metadata, once. A response says it only to who said it in the request.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from meshproxy.api.istio_peer_metadata_pb2 import Config
from meshproxy.codec import headers as h
from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.values import struct_fields
from meshproxy.http.filter import CONTINUE, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.observe.stream_info import StateObject
from meshproxy.upstream.cluster import Cluster

_HEADER: Final = b"x-envoy-peer-metadata"
_ID_HEADER: Final = b"x-envoy-peer-metadata-id"
_DOWNSTREAM: Final = "downstream_peer"
_UPSTREAM: Final = "upstream_peer"
_EXTERNAL: Final = "PassthroughCluster"  # leads out of the mesh
_MOST_PEERS: Final = 500  # that are remembered

# The names in a node's metadata and in its labels, and those in filter state.
_FIELDS: Final = {"WORKLOAD_NAME": "workload", "NAME": "name", "CLUSTER_ID": "cluster", "NAMESPACE": "namespace"}
_LABELS: Final = {
    "service.istio.io/canonical-name": "service",
    "service.istio.io/canonical-revision": "revision",
    "app": "app",
    "version": "version",
}
_OWNERS: Final = ("pod", "deployment", "job", "cronjob")


class Peer(StateObject):
    """What is known of a workload: `fields` by the names of filter state, and what labels it has beside them."""

    def __init__(self, fields: dict[str, str], labels: dict[str, str]) -> None:
        self.fields = fields
        self.labels = labels

    def text(self) -> str:
        parts = [f"{name}={value}" for name, value in self.fields.items()]
        return ",".join(parts + [f"labels[]{name}={value}" for name, value in self.labels.items()])

    def structure(self) -> dict[str, Any]:
        return {**self.fields, "labels": dict(self.labels)} if self.labels else dict(self.fields)


def peer_of(metadata: dict[str, Any], additional_labels: frozenset[str]) -> Peer:
    """Of a node's metadata, as the node itself or a header tells it."""
    fields: dict[str, str] = {}
    owner, workload = metadata.get("OWNER"), metadata.get("WORKLOAD_NAME")
    if isinstance(owner, str) and isinstance(workload, str):
        kind = owner.removesuffix(f"s/{workload}").rpartition("/")[2]  # …/namespaces/<namespace>/deployments/<workload>
        if kind in _OWNERS:
            fields["type"] = kind
    _take(fields, metadata, _FIELDS)
    labels = metadata.get("LABELS")
    further: dict[str, str] = {}
    if isinstance(labels, dict):
        _take(fields, labels, _LABELS)
        _take(further, labels, {name: name for name in additional_labels if name not in _LABELS})
    return Peer(fields, further)


def _take(into: dict[str, str], values: dict[str, Any], names: dict[str, str]) -> None:
    for name, key in names.items():
        value = values.get(name)
        if isinstance(value, str) and value:
            into[key] = value


def header_of(peer: Peer) -> bytes:
    """As a peer reads it."""
    fields = peer.fields
    metadata: dict[str, Any] = {name: fields[key] for name, key in _FIELDS.items() if key in fields}
    metadata["LABELS"] = {name: fields[key] for name, key in _LABELS.items() if key in fields} | peer.labels
    if "type" in fields:
        place = f"kubernetes://apis/apps/v1/namespaces/{fields.get('namespace', '')}"
        metadata["OWNER"] = f"{place}/{fields['type']}s/{fields.get('workload', '')}"
    message = json_format.ParseDict(metadata, Struct())
    return base64.b64encode(message.SerializeToString(deterministic=True))


def _read(header: bytes, additional_labels: frozenset[str]) -> Peer | None:
    """None for what is no metadata."""
    try:
        data = base64.b64decode(header + b"=" * (-len(header) % 4), validate=True)
        return peer_of(struct_fields(Struct.FromString(data)), additional_labels)
    except (binascii.Error, DecodeError):
        return None


class Asked:
    """Which of its headers the request brought, and so which the response will have."""

    def __init__(self, metadata: bool, identity: bool) -> None:
        self.metadata = metadata
        self.identity = identity


class PeerMetadata(HttpFilter):
    """Whether headers are read, and removed, from the downstream and from the upstream; and written to them."""

    def __init__(self, own: bytes, own_id: bytes, additional_labels: frozenset[str]) -> None:
        self._own = own
        self._own_id = own_id
        self._additional_labels = additional_labels
        self._peers: dict[bytes, Peer] = {}
        self.reads_downstream: bool = False
        self.reads_upstream: bool = False
        self.writes_downstream: bool = False
        self.writes_upstream: bool = False
        self.skips_external_downstream: bool = False
        self.skips_external_upstream: bool = False

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if self.reads_downstream and headers.known & h.ENVOY:
            metadata, identity = headers.get(_HEADER), headers.get(_ID_HEADER)
            if metadata is not None or identity is not None:
                stream.state[self.slot] = Asked(metadata is not None, identity is not None)
                self._discover(stream, _DOWNSTREAM, metadata, identity)
                headers.remove(_HEADER)
                headers.remove(_ID_HEADER)
        if self.writes_upstream:
            stream.current_route()
            if not _is_skipped(stream.cluster, self.skips_external_upstream):
                headers.set(_ID_HEADER, self._own_id)
                headers.set(_HEADER, self._own)
        return CONTINUE

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if self.reads_upstream and headers.known & h.ENVOY:
            metadata, identity = headers.get(_HEADER), headers.get(_ID_HEADER)
            if metadata is not None or identity is not None:
                self._discover(stream, _UPSTREAM, metadata, identity)
                headers.remove(_HEADER)
                headers.remove(_ID_HEADER)
        asked = stream.state[self.slot]
        if self.writes_downstream and asked is not None:
            assert isinstance(asked, Asked)
            if not _is_skipped(stream.cluster, self.skips_external_downstream):
                self._answer(headers, asked)
        return CONTINUE

    def _answer(self, headers: HeaderMap, asked: Asked) -> None:
        if asked.identity:
            headers.set(_ID_HEADER, self._own_id)
        if asked.metadata:
            headers.set(_HEADER, self._own)

    def _discover(self, stream: Stream, key: str, metadata: bytes | None, identity: bytes | None) -> None:
        if not metadata:
            return
        peer = self._peer(metadata, identity or b"")
        if peer is not None:
            stream.filter_state().setdefault(key, peer)

    def _peer(self, metadata: bytes, identity: bytes) -> Peer | None:
        """One that gave its id is remembered by it, and its metadata not read again."""
        peers = self._peers
        peer = peers.get(identity)
        if peer is None:
            peer = _read(metadata, self._additional_labels)
            if peer is not None and identity:
                if len(peers) >= _MOST_PEERS:
                    del peers[next(iter(peers))]
                peers[identity] = peer
        return peer


def _is_skipped(cluster: Cluster | None, skips_external: bool) -> bool:
    """Whether the cluster leads where nobody is to be told who we are."""
    if cluster is None:
        return False
    if skips_external and cluster.name == _EXTERNAL:
        return True
    metadata = cluster.info.metadata
    istio = None if metadata is None else metadata.get("istio")
    if istio is None:
        return False
    return istio.get("disable_mx") is True or (skips_external and istio.get("external") is True)


def build_peer_metadata(message: Any, path: str, context: BuildContext) -> HttpFilter:
    additional_labels = frozenset(message.additional_labels)
    own = header_of(peer_of(context.node_metadata, additional_labels))
    made = PeerMetadata(own, context.service_node.encode(), additional_labels)
    made.reads_downstream = any(each.HasField("istio_headers") for each in message.downstream_discovery)
    made.reads_upstream = any(each.HasField("istio_headers") for each in message.upstream_discovery)
    for each in message.downstream_propagation:
        if each.HasField("istio_headers"):
            made.writes_downstream = True
            made.skips_external_downstream = each.istio_headers.skip_external_clusters
    for each in message.upstream_propagation:
        if each.HasField("istio_headers"):
            made.writes_upstream = True
            made.skips_external_upstream = each.istio_headers.skip_external_clusters
    return made


register_http_filter(Config, HttpFilterType(build_peer_metadata))
