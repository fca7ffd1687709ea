"""The authority as the agent asks it: our own gRPC client on a cluster of our own, so that TLS, the names in its
certificate and DNS are those of the proxy."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.address_pb2 import Address as AddressMessage
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import SubjectAltNameMatcher
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import UpstreamTlsContext
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from google.protobuf.message import DecodeError

from meshproxy.agent.material import KeyPair, MaterialError
from meshproxy.agent.settings import CaSettings
from meshproxy.api.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshproxy.codec.headers import Field
from meshproxy.config.context import BuildContext, Services
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.config.subscription import SECRET_TYPE
from meshproxy.http.grpc.client import RpcClient, open_client
from meshproxy.http.grpc.service import GrpcServiceConfig
from meshproxy.net.address import is_ip
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.stats import StatsRegistry
from meshproxy.pilot.authority.services import CREATE_CERTIFICATE
from meshproxy.rpc.clients import open_rpc_client
from meshproxy.upstream.build import build_cluster
from meshproxy.upstream.manager import ClusterManager
from meshproxy.xds.secret_server import STREAM_SECRETS
from meshproxy.xds.secret_streams import ROOTS

_SIGN: Final = CREATE_CERTIFICATE.encode()
_BUNDLES: Final = STREAM_SECRETS.encode()
_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TIMEOUT_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
_MAX_FILE_BYTES: Final = 1024 * 1024
_MAX_TOKEN_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Proof:
    """How a connection proves who we are: `pair` by its TLS, the token with each call, or (all empty) our user's number
    by the Unix socket."""

    pair: KeyPair | None = None
    with_token: bool = False


class AuthorityClient:
    """Connections to one authority, each by the files as they are then."""

    def __init__(self, dispatcher: Dispatcher, settings: CaSettings) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._registry = StatsRegistry()
        self._runtime = Runtime()
        self._clusters = ClusterManager(dispatcher, self._registry, self._runtime)
        self._services = Services(dispatcher, self._clusters, open_rpc_client)
        self._numbers = itertools.count()

    async def sign(self, request: bytes, lifetime_s: float, proof: Proof, trusted: bytes) -> list[str]:
        """The chain for a CSR, as the authority gives it. Raises RpcError, OSError, MaterialError."""
        message = IstioCertificateRequest(csr=request.decode(), validity_duration=int(lifetime_s))
        async with self._connected(proof, trusted) as client:
            answer = await client.unary(
                _SIGN, message.SerializeToString(), timeout_ms=_TIMEOUT_S * 1000.0, metadata=self._metadata(proof)
            )
        try:
            return list(IstioCertificateResponse.FromString(answer.message).cert_chain)
        except DecodeError:
            raise MaterialError("the authority's answer cannot be read") from None

    async def bundles(self, proof: Proof, trusted: bytes) -> AsyncGenerator[Bundle, None]:
        """The mesh's bundle now, and whenever it is another one: each is to be answered. Raises RpcError, OSError,
        MaterialError."""
        async with (
            self._connected(proof, trusted) as client,
            client.call(_BUNDLES, metadata=self._metadata(proof)) as call,
        ):
            request = DiscoveryRequest(resource_names=[ROOTS], type_url=SECRET_TYPE)
            await call.send(request.SerializeToString())
            while (message := await call.receive()) is not None:
                response = _response(message)
                request.response_nonce = response.nonce
                for resource in response.resources:
                    bundle = Bundle(resource.value)
                    yield bundle
                    if bundle.refusal:
                        request.error_detail.message = bundle.refusal
                    else:
                        request.ClearField("error_detail")
                        request.version_info = response.version_info
                await call.send(request.SerializeToString())

    async def close(self) -> None:
        """End all connections."""
        await self._clusters.close()

    # -- connections

    @asynccontextmanager
    async def _connected(self, proof: Proof, trusted: bytes) -> AsyncIterator[RpcClient]:
        name = f"ca.{next(self._numbers)}"
        self._add_cluster(self._cluster(name, proof, trusted))
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._clusters.warmed()
            config = GrpcServiceConfig(name)
            config.limit_bytes = _MAX_ANSWER_BYTES
            config.envoy_headers = False
            config.authority = (self._settings.name or "localhost").encode()
            client = open_client(self._services, config)
            try:
                yield client
            finally:
                client.close()
        finally:
            self._clusters.remove(name)

    def _add_cluster(self, message: Cluster) -> None:
        context = BuildContext(ConfigErrors(), self._runtime, self._registry)
        context.services = self._services
        config = build_cluster(message, "ca", context)
        if config is None:
            reasons = "; ".join(error.reason for error in context.errors.items)
            context.close()
            raise MaterialError(f"the authority cannot be asked: {reasons}")
        self._clusters.add_or_update(config)

    def _cluster(self, name: str, proof: Proof, trusted: bytes) -> Cluster:
        settings = self._settings
        is_fixed = bool(settings.path) or is_ip(settings.host)
        cluster = Cluster(name=name, type="STATIC" if is_fixed else "STRICT_DNS", dns_lookup_family="ALL")
        cluster.connect_timeout.FromSeconds(5)
        cluster.load_assignment.cluster_name = name
        endpoint = cluster.load_assignment.endpoints.add().lb_endpoints.add().endpoint
        endpoint.address.CopyFrom(_address(settings))
        options = HttpProtocolOptions()
        keepalive = options.explicit_http_config.http2_protocol_options.connection_keepalive
        keepalive.interval.FromSeconds(30)
        keepalive.timeout.FromSeconds(10)
        cluster.typed_extension_protocol_options[_OPTIONS].Pack(options)
        if not settings.path:
            cluster.transport_socket.name = "tls"
            cluster.transport_socket.typed_config.Pack(self._tls(proof, trusted))
        return cluster

    def _tls(self, proof: Proof, trusted: bytes) -> UpstreamTlsContext:
        name, root_file = self._settings.name, self._settings.root_file
        context = UpstreamTlsContext(sni="" if is_ip(name) else name)
        common = context.common_tls_context
        common.alpn_protocols.append("h2")
        validation = common.validation_context
        validation.trusted_ca.inline_bytes = _read(root_file, _MAX_FILE_BYTES) + b"\n" + trusted
        kind = SubjectAltNameMatcher.SanType.IP_ADDRESS if is_ip(name) else SubjectAltNameMatcher.SanType.DNS
        validation.match_typed_subject_alt_names.add(san_type=kind).matcher.exact = name
        if proof.pair is not None:
            certificate = common.tls_certificates.add()
            certificate.certificate_chain.inline_bytes = proof.pair.chain
            certificate.private_key.inline_bytes = proof.pair.key
        return context

    def _metadata(self, proof: Proof) -> list[Field]:
        found: list[Field] = []
        settings = self._settings
        if proof.with_token:
            token = _read(settings.token_file, _MAX_TOKEN_BYTES).strip()
            if not token or any(byte <= 0x20 or byte >= 0x7F for byte in token):
                raise MaterialError(f"{settings.token_file} holds no token")
            found.append((b"authorization", b"Bearer " + token))
        if settings.cluster_id:
            found.append((b"clusterid", settings.cluster_id.encode()))
        return found

    def bootstrap_pair(self) -> KeyPair:
        """What `--bootstrap-cert` and `--bootstrap-key` hold now. Raises OSError, MaterialError."""
        settings = self._settings
        return KeyPair(_read(settings.bootstrap_cert, _MAX_FILE_BYTES), _read(settings.bootstrap_key, _MAX_FILE_BYTES))


class Bundle:
    """A serialised Secret that came. Who takes it says in `refusal` why, where it does not."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.refusal = ""


def _response(message: bytes) -> DiscoveryResponse:
    try:
        return DiscoveryResponse.FromString(message)
    except DecodeError:
        raise MaterialError("the authority's answer cannot be read") from None


def _address(settings: CaSettings) -> AddressMessage:
    address = AddressMessage()
    if settings.path:
        address.pipe.path = settings.path
    else:
        address.socket_address.address = settings.host
        address.socket_address.port_value = settings.port
    return address


def _read(path: str, most: int) -> bytes:
    """A regular file of ours, or what stands for one. Raises OSError, MaterialError."""
    with Path(path).open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise MaterialError(f"{path} has more than {most} bytes")
    return data
