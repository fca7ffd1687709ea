"""A pilot with an authority for tests, who asks it, and a proxy that has its secrets of it."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from meshproxy.api.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshproxy.config.subscription import CLUSTER_TYPE, SECRET_TYPE
from tests.pilot.authority.fakes import AUDIENCE, ISSUER, TRUST_DOMAIN, Signer, jwks
from tests.pilot.authority.test_services import CSR
from tests.pilot.processes import DEADLINE_S, PilotProcess, pilot

CREATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
SDS = "/envoy.service.secret.v3.SecretDiscoveryService/"
ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"
WEB = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"
NAME = "pilot.test"
NOBODY = (grpc.StatusCode.UNAUTHENTICATED, "no valid proof of identity")
_TYPES = "type.googleapis.com/envoy.extensions."
SECRETS_OF: dict[str, Any] = {
    "resource_api_version": "V3",
    "api_config_source": {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds"}}],
    },
}


class Mesh:
    """A pilot with an authority, its files, and who signs its tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signer = Signer()
        self.audit = folder / "audit"
        self.sockets = folder / "authority.sock"
        (folder / "rules").mkdir()
        (folder / "passphrase").write_text("a passphrase of some length")
        (folder / "passphrase").chmod(0o600)
        (folder / "jwks.json").write_bytes(jwks(self.signer))
        (folder / "uids.yaml").write_text(f"{os.getuid()}: shop/local\n")
        self.command("init")
        self.roots = self.command("roots")

    @property
    def _authority(self) -> tuple[str, ...]:
        return (
            "--authority", str(self.folder / "ca"), "--authority-passphrase-file", str(self.folder / "passphrase"),
            "--trust-domain", TRUST_DOMAIN, "--authority-audit", str(self.audit),
        )  # fmt: skip

    def command(self, *arguments: str) -> bytes:
        """`meshproxy authority …`."""
        argv = [sys.executable, "-m", "meshproxy", "authority", *arguments, *self._authority]
        return subprocess.run(argv, check=True, stdout=subprocess.PIPE, timeout=60).stdout

    @contextmanager
    def pilot(self, *flags: str) -> Iterator[PilotProcess]:
        proofs = (
            "--jwks", str(self.folder / "jwks.json"), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE,
            "--uid-table", str(self.folder / "uids.yaml"), "--tls-from-authority", f"{NAME},127.0.0.1",
            "--authority-listen", "127.0.0.1:0", "--authority-socket", str(self.sockets),
        )  # fmt: skip
        with pilot(self.folder / "rules", self.folder, "pilot", *self._authority, *proofs, *flags) as running:
            yield running

    def refusals(self) -> list[str]:
        """Reasons in the audit."""
        lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
        return [line["reason"] for line in lines if line["event"] == "refused"]


def own_port(running: PilotProcess) -> str:
    return str(running.addresses["authority"][0])


def tls_ports(running: PilotProcess) -> dict[str, str]:
    """Our own server's, and grpcio's."""
    return {"own": own_port(running), "grpcio": str(running.addresses["xds"][0])}


class Caller:
    """A channel, without TLS where there are no `roots`, and what it says of itself. `certificate` is a chain and its
    key."""

    def __init__(
        self, target: str, roots: bytes, *, token: str = "", certificate: tuple[bytes, bytes] | None = None
    ) -> None:
        chain, key = certificate or (None, None)
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", NAME)]
        if not roots:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(roots, key, chain), options)
        self._metadata = [("authorization", f"Bearer {token}")] if token else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def unary(self, path: str, message: bytes) -> bytes:
        call = self._channel.unary_unary(path)
        return bytes(call(message, metadata=self._metadata, timeout=DEADLINE_S))

    def certificate(self, **more: Any) -> list[bytes]:
        """The chain for KEY."""
        request = IstioCertificateRequest(csr=CSR, **more)
        answer = IstioCertificateResponse.FromString(self.unary(CREATE, request.SerializeToString()))
        return [each.encode() for each in answer.cert_chain]

    def first(self, path: str, request: Any) -> Any:
        """The first response of a stream that is refused, or ends soon."""
        call = self._channel.stream_stream(path)(iter([request.SerializeToString()]), metadata=self._metadata)
        kind = discovery.DeltaDiscoveryResponse if "/Delta" in path else discovery.DiscoveryResponse
        return kind.FromString(next(call))

    def secret(self, name: str) -> Any:
        """By state of the world, on a stream that stays open until it has come."""
        asked = discovery.DiscoveryRequest(type_url=SECRET_TYPE, resource_names=[name])
        with self.stream(SDS + "StreamSecrets", asked) as call:
            (resource,) = discovery.DiscoveryResponse.FromString(next(call)).resources
        return Secret.FromString(resource.value)

    @contextmanager
    def stream(self, path: str, *requests: Any) -> Iterator[Any]:
        queue: SimpleQueue[bytes | None] = SimpleQueue()
        for request in requests:
            queue.put(request.SerializeToString())
        call = self._channel.stream_stream(path)(iter(queue.get, None), metadata=self._metadata, timeout=DEADLINE_S)
        call.send = lambda request: queue.put(request.SerializeToString())
        try:
            yield call
        finally:
            call.cancel()
            queue.put(None)


def refused(ask: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    return caught.value.code(), caught.value.details()


def uris(pem: bytes) -> list[str]:
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return list(names.get_values_for_type(x509.UniformResourceIdentifier))


def key_pem(key: Any) -> bytes:
    return bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def clusters(namespace: str = "shop", account: str = "web") -> Any:
    request = discovery.DiscoveryRequest(type_url=CLUSTER_TYPE)
    request.node.id = f"sidecar~127.0.0.1~web-1.{namespace}~{namespace}.svc.cluster.local"
    request.node.metadata.update({"NAMESPACE": namespace, "SERVICE_ACCOUNT": account, "INTERCEPTION_MODE": "NONE"})
    return request


def sds_cluster(mesh: Mesh, address: str) -> dict[str, Any]:
    """The pilot's authority, over TLS or a Unix socket."""
    http2 = {
        "@type": _TYPES + "upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    host, _, port = address.rpartition(":")
    where: dict[str, Any] = {"socket_address": {"address": host, "port_value": int(port) if port.isdigit() else 0}}
    if address.startswith("unix:"):
        where = {"pipe": {"path": address.removeprefix("unix:")}}
    cluster: dict[str, Any] = {
        "name": "sds",
        "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {
            "cluster_name": "sds",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": where}}]}],
        },
    }
    if not address.startswith("unix:"):
        san = {"san_type": "DNS", "matcher": {"exact": NAME}}
        cluster["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": _TYPES + "transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": NAME,
                "common_tls_context": {
                    "validation_context": {
                        "trusted_ca": {"inline_string": mesh.roots.decode()},
                        "match_typed_subject_alt_names": [san],
                    }
                },
            },
        }
    return cluster


def bare_proxy(mesh: Mesh, address: str, token: str) -> str:
    """A listener that has its certificate and its roots of the authority, and asks for a client's."""
    source = json.loads(json.dumps(SECRETS_OF))
    if token:
        service = source["api_config_source"]["grpc_services"][0]
        service["initial_metadata"] = [{"key": "authorization", "value": f"Bearer {token}"}]
    tls = {
        "@type": _TYPES + "transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": source}],
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": source},
        },
    }
    manager = {
        "@type": _TYPES + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": _TYPES + "filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {
                "filters": [{"name": "http", "typed_config": manager}],
                "transport_socket": {"name": "tls", "typed_config": tls},
            }
        ],
    }
    return yaml.safe_dump(
        {
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "node": {"id": "web-1", "cluster": "web"},
            "static_resources": {"clusters": [sds_cluster(mesh, address)], "listeners": [listener]},
        }
    )


def handshake(port: int, roots: bytes, folder: Path, mine: tuple[bytes, bytes] | None) -> bytes:
    """The server's certificate (DER) and a request answered. Raises OSError."""
    context = ssl.create_default_context(cadata=roots.decode())
    context.check_hostname = False
    if mine is not None:
        (folder / "client.pem").write_bytes(mine[0] + mine[1])
        context.load_cert_chain(folder / "client.pem")
    with (
        socket.create_connection(("127.0.0.1", port), DEADLINE_S) as raw,
        context.wrap_socket(raw, server_hostname="web") as secured,
    ):
        secured.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        if not secured.recv(1000).startswith(b"HTTP/1.1 200"):
            raise ConnectionResetError
        return secured.getpeercert(binary_form=True) or b""


def answered(port: int, roots: bytes, folder: Path, mine: tuple[bytes, bytes]) -> bytes:
    try:
        return handshake(port, roots, folder, mine)
    except OSError:
        return b""
