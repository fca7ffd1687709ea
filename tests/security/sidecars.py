"""Bootstraps of two sidecars that speak mutual TLS to each other, with secrets by SDS over a Unix socket: of an agent,
or of the pilot. The same text starts the real Envoy and our proxy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.integration.config import Json, bootstrap, cluster, forward, http2_cluster, listener, tcp_listener
from tests.pilot.authority.fakes import TRUST_DOMAIN
from tests.support.proxy import start_envoy, start_meshproxy

START: Final = {"envoy": start_envoy, "meshproxy": start_meshproxy}
PREFIX: Final = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/"
_TLS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_FILE_LOG: Final = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
_SDS: Final = "sds"
_CONNECTION: Final = {"failure": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%", "peer": "%DOWNSTREAM_PEER_URI_SAN%"}
_REQUEST: Final = {
    "path": "%PATH%",
    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "version": "%DOWNSTREAM_TLS_VERSION%",
    "xfcc": "%REQ(X-FORWARDED-CLIENT-CERT)%",
    "upstream_peer": "%UPSTREAM_PEER_URI_SAN%",
    "upstream_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "status": "%RESPONSE_CODE%",
}


@dataclass(frozen=True)
class Secrets:
    """Where a sidecar has them from: a Unix socket, and what it proves itself by where that does not do."""

    path: str
    token: str = ""

    def cluster(self) -> Json:
        return cluster(_SDS, self.path, **http2_cluster())

    def secret(self, name: str) -> Json:
        service: Json = {"envoy_grpc": {"cluster_name": _SDS}}
        if self.token:
            service["initial_metadata"] = [{"key": "authorization", "value": f"Bearer {self.token}"}]
        source = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}
        return {"name": name, "sds_config": {"api_config_source": source, "resource_api_version": "V3"}}

    def context(self, san: Json, *alpn: str) -> Json:
        """A CommonTlsContext: our certificate, and the mesh's roots for a peer that is so called."""
        trust = {
            "default_validation_context": {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": san}]},
            "validation_context_sds_secret_config": self.secret("ROOTCA"),
        }
        certificate = {"tls_certificate_sds_secret_configs": [self.secret("default")]}
        return certificate | {"combined_validation_context": trust, "alpn_protocols": list(alpn)}


def json_log(path: Path, fields: dict[str, str]) -> Json:
    config = {"@type": _FILE_LOG, "path": str(path), "log_format": {"json_format": fields}}
    return {"name": "log", "typed_config": config}


@dataclass(frozen=True)
class Inbound:
    """The sidecar of a server: `http` and `tcp` are where its application listens (0: not at all)."""

    secrets: Secrets
    folder: Path
    http: int = 0
    tcp: int = 0

    @property
    def connections(self) -> Path:
        """A line for each."""
        return self.folder / "connections.log"

    @property
    def requests(self) -> Path:
        return self.folder / "requests.log"

    def text(self) -> str:
        listeners, clusters = [], [self.secrets.cluster()]
        if self.http:
            told: Any = {
                "forward_client_cert_details": "SANITIZE_SET",
                "set_current_client_cert_details": {"uri": True},
            }
            told["access_log"] = [json_log(self.requests, _REQUEST)]
            listeners.append(self._secured(listener("http", [forward("/", "app")], manager=told)))
            clusters.append(cluster("app", self.http))
        if self.tcp:
            listeners.append(self._secured(tcp_listener("tcp", "tcp-app")))
            clusters.append(cluster("tcp-app", self.tcp))
        return bootstrap(listeners, clusters, node={"id": "server", "cluster": "server"})

    def _secured(self, made: Json) -> Json:
        """For nobody but the mesh."""
        context = self.secrets.context({"prefix": f"spiffe://{TRUST_DOMAIN}/"}, "h2", "http/1.1")
        config = {"@type": _TLS + "DownstreamTlsContext", "require_client_certificate": True}
        config["common_tls_context"] = context
        made["filter_chains"][0]["transport_socket"] = {"name": "tls", "typed_config": config}
        made["access_log"] = [json_log(self.connections, _CONNECTION)]
        made["stat_prefix"] = made["name"]
        return made


@dataclass(frozen=True)
class Way:
    """A cluster of a client's sidecar, and the route to it, `/<name>/`. The server must be `account`; `most` requests
    go by one connection; `version` is of TLS: Envoy's clients use 1.2 where nobody tells them."""

    name: str
    account: str
    most: int = 0
    http2: bool = False
    version: str = "TLSv1_3"
    port: int = 0  # another one than where the others go

    def cluster(self, secrets: Secrets, port: int) -> Json:
        context = secrets.context({"exact": PREFIX + self.account}, "h2" if self.http2 else "http/1.1")
        context["tls_params"] = {"tls_maximum_protocol_version": self.version}
        config = {"@type": _TLS + "UpstreamTlsContext", "common_tls_context": context}
        common = {"max_requests_per_connection": self.most} if self.most else None
        fields = http2_cluster(common) if self.http2 else http1_cluster(common)
        return cluster(self.name, self.port or port, **fields, transport_socket={"name": "tls", "typed_config": config})


def http1_cluster(common: Json | None) -> Json:
    fields = http2_cluster(common)
    (options,) = fields["typed_extension_protocol_options"].values()
    options["explicit_http_config"] = {"http_protocol_options": {}}
    return fields


@dataclass(frozen=True)
class Outbound:
    """The sidecar of a client, plaintext on its near side: HTTP goes by `ways`, TCP by one of the same kind."""

    secrets: Secrets
    folder: Path
    ways: Sequence[Way]
    http: int = 0
    tcp: int = 0

    @property
    def requests(self) -> Path:
        return self.folder / "sent.log"

    def text(self) -> str:
        routes = [forward(f"/{way.name}/", way.name, timeout="30s") for way in self.ways]
        logged = {"access_log": [json_log(self.requests, _REQUEST)]}
        listeners = [listener("out", routes, manager=logged)]
        clusters = [self.secrets.cluster(), *(way.cluster(self.secrets, self.http) for way in self.ways)]
        if self.tcp:
            listeners.append(tcp_listener("tcp", "tcp"))
            clusters.append(Way("tcp", self.ways[0].account).cluster(self.secrets, self.tcp))
        return bootstrap(listeners, clusters, node={"id": "client", "cluster": "client"})
