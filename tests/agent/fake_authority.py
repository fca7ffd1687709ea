"""An authority by grpcio: IstioCertificateService, and where it is wanted the mesh's bundle by SDS."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from meshproxy.api.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshproxy.config.subscription import SECRET_TYPE
from tests.tls.certificates import Issued, dns, issue

URI = "spiffe://mesh.test/ns/shop/sa/web"
ROOT = issue("root", ca=True)
SERVER = issue("authority", ROOT, names=dns("authority.test"))


class FakeAuthority:
    """What it does is set by its attributes; `calls` are the metadata of those who asked, `keys` what they had."""

    def __init__(self) -> None:
        self.port = 0
        self.token = "token-1"
        self.root = ROOT
        self.lifetime_s = 3600.0  # at most
        self.roots = ROOT.pem  # the last element of an answer
        self.names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(URI)]
        self.status: grpc.StatusCode | None = None  # that every call fails with
        self.foreign_key = False
        self.tells_bundle = False
        self.ends_streams = False  # of bundles, at the next change, once
        self.calls: list[dict[str, str]] = []
        self.requests: list[IstioCertificateRequest] = []
        self.certificates: list[x509.Certificate] = []
        self.answers: list[DiscoveryRequest] = []  # to bundles
        self.common_names: list[str] = []  # of those who showed a certificate
        self._bundle = b""
        self._changed = asyncio.Event()

    def set_bundle(self, secret: Secret) -> None:
        """From now on."""
        self._bundle = secret.SerializeToString()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def sign(self, csr_pem: str, seconds: float) -> x509.Certificate:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        assert csr.is_signature_valid
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.certificate.subject)
            .public_key(ROOT.key.public_key() if self.foreign_key else csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(seconds=5))
            .not_valid_after(now + dt.timedelta(seconds=seconds))
            .add_extension(x509.SubjectAlternativeName(self.names), critical=True)
            .sign(self.root.key, hashes.SHA256())
        )

    # -- grpcio's

    def service(self, details: Any) -> Any:
        if details.method == "/istio.v1.auth.IstioCertificateService/CreateCertificate":
            return grpc.unary_unary_rpc_method_handler(
                self._create, IstioCertificateRequest.FromString, IstioCertificateResponse.SerializeToString
            )
        if details.method.endswith("/StreamSecrets") and self.tells_bundle:
            return grpc.stream_stream_rpc_method_handler(
                self._bundles, DiscoveryRequest.FromString, DiscoveryResponse.SerializeToString
            )
        return None

    async def _check(self, context: Any) -> None:
        self.calls.append(dict(context.invocation_metadata()))
        auth = context.auth_context()
        self.common_names += [name.decode() for name in auth.get("x509_common_name", [])]
        if self.status is not None:
            await context.abort(self.status, "not now")
        authorization = self.calls[-1].get("authorization")
        if authorization != f"Bearer {self.token}" and "x509_common_name" not in auth:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

    async def _create(self, request: IstioCertificateRequest, context: Any) -> IstioCertificateResponse:
        await self._check(context)
        self.requests.append(request)
        made = self.sign(request.csr, min(request.validity_duration or self.lifetime_s, self.lifetime_s))
        self.certificates.append(made)
        leaf = made.public_bytes(serialization.Encoding.PEM).decode()
        return IstioCertificateResponse(cert_chain=[leaf, self.roots.decode()])

    async def _bundles(self, requests: AsyncIterator[DiscoveryRequest], context: Any) -> AsyncIterator[Any]:
        await self._check(context)
        await anext(requests)
        version = 0
        while True:
            changed = self._changed
            if self._bundle:
                version += 1
                yield DiscoveryResponse(
                    version_info=str(version),
                    nonce=str(version),
                    type_url=SECRET_TYPE,
                    resources=[{"type_url": SECRET_TYPE, "value": self._bundle}],
                )
                self.answers.append(await anext(requests))
            await changed.wait()
            if self.ends_streams:
                self.ends_streams = False
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "your proof has ended")


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, authority: FakeAuthority) -> None:
        self._authority = authority

    def service(self, details: Any) -> Any:
        return self._authority.service(details)


@asynccontextmanager
async def authority(*, shown: Issued = SERVER, asks: Issued | None = None) -> AsyncIterator[FakeAuthority]:
    """On TLS, by the certificate `shown`; who calls must have one of `asks`, if it is given."""
    made = FakeAuthority()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Handlers(made),))
    roots = None if asks is None else asks.pem
    credentials = grpc.ssl_server_credentials([(shown.key_pem, shown.pem)], roots, asks is not None)
    made.port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield made
    finally:
        await server.stop(None)


def bundle(*roots: Issued, crl: bytes = b"") -> Secret:
    made = Secret(name="ROOTCA")
    made.validation_context.trusted_ca.inline_bytes = b"".join(root.pem for root in roots)
    if crl:
        made.validation_context.crl.inline_bytes = crl
        made.validation_context.only_verify_leaf_cert_crl = True
    return made
