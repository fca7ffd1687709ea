"""IstioCertificateService: what is asked, what is refused, and what comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshproxy.api.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshproxy.codec import grpc as codes
from meshproxy.pilot.authority.contract import Caller, Refused, TrustBundle
from meshproxy.pilot.authority.jwks import FileKeys
from meshproxy.pilot.authority.proof import Prover
from meshproxy.pilot.authority.services import CREATE_CERTIFICATE, CertificateService
from meshproxy.pilot.authority.tokens import TokenVerifier
from meshproxy.rpc.server.call import Peer, RpcFailure
from meshproxy.tls.spiffe import Identity
from tests.pilot.authority.fakes import AUDIENCE, ISSUER, TRUST_DOMAIN, FakeAuthority, FakeCall, Signer, bearer, jwks
from tests.tls.certificates import issue

WEB = Caller(Identity(TRUST_DOMAIN, "shop", "web"), "jwt", "10.0.0.1:4711")
TLS = Peer("10.0.0.1:4711", is_encrypted=True)
KEY = ec.generate_private_key(ec.SECP256R1())
CSR = (
    x509.CertificateSigningRequestBuilder()
    .subject_name(x509.Name([]))
    .sign(KEY, hashes.SHA256())
    .public_bytes(serialization.Encoding.PEM)
    .decode()
)


class Service:
    """The service, with an authority that signs everything."""

    def __init__(self, folder: Path) -> None:
        self.authority = FakeAuthority()
        self.signer = Signer()
        (folder / "jwks.json").write_bytes(jwks(self.signer))
        tokens = TokenVerifier(FileKeys(str(folder / "jwks.json")), ISSUER, (AUDIENCE,), TRUST_DOMAIN)
        prover = Prover((TRUST_DOMAIN,), self.authority, lambda *_: None, tokens)
        self._create = CertificateService(self.authority, prover).handlers()[CREATE_CERTIFICATE]

    async def ask(self, *messages: bytes, **metadata: Any) -> Any:
        call = FakeCall(TLS, *messages, metadata=metadata or bearer(self.signer.token()))
        await self._create(call)
        (answer,) = call.sent
        return IstioCertificateResponse.FromString(answer)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def wish(csr: str = CSR, **more: Any) -> Any:
    return IstioCertificateRequest(csr=csr, **more)


async def test_a_chain_with_the_roots_at_its_end(service: Service) -> None:
    other = issue("next root", ca=True)
    service.authority.set_bundle(TrustBundle(service.authority.root.pem + other.pem, b""))
    answer = await service.ask(wish(validity_duration=600).SerializeToString())
    leaf, roots = answer.cert_chain
    made = x509.load_pem_x509_certificate(leaf.encode())
    assert made.public_key() == KEY.public_key()
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [WEB.identity.uri]
    assert roots.encode() == service.authority.root.pem + other.pem
    assert service.authority.calls == [(WEB, 600.0, CSR.encode())]


async def test_intermediates_stand_between(service: Service) -> None:
    intermediate = issue("intermediate", service.authority.root, ca=True)
    sign = service.authority.sign

    async def sign_with_chain(csr: bytes, caller: Caller, lifetime_s: float) -> Any:
        from dataclasses import replace

        issued = await sign(csr, caller, lifetime_s)
        return replace(issued, chain=issued.chain + intermediate.pem)

    service.authority.sign = sign_with_chain  # type: ignore[method-assign]
    answer = await service.ask(wish().SerializeToString())
    assert [each.encode() for each in answer.cert_chain[1:]] == [intermediate.pem, service.authority.root.pem]


@pytest.mark.parametrize(
    ("message", "status", "why"),
    [
        (b"\xff\xff\xff", codes.INVALID_ARGUMENT, "this is no IstioCertificateRequest"),
        (b"", codes.INVALID_ARGUMENT, "csr: is required"),
        (wish("").SerializeToString(), codes.INVALID_ARGUMENT, "csr: is required"),
        (wish(validity_duration=-1).SerializeToString(), codes.INVALID_ARGUMENT, "validity_duration: is negative"),
        (
            wish(metadata={"ImpersonatedIdentity": "spiffe://mesh.test/ns/shop/sa/db"}).SerializeToString(),
            codes.PERMISSION_DENIED,
            "metadata.ImpersonatedIdentity: nobody gets another's certificate",
        ),
        (
            wish(metadata={"CertSigner": "x"}).SerializeToString(),
            codes.INVALID_ARGUMENT,
            "metadata.CertSigner: there is one authority",
        ),
    ],
)
async def test_what_is_refused(service: Service, message: bytes, status: int, why: str) -> None:
    with pytest.raises(RpcFailure) as caught:
        await service.ask(message)
    assert (caught.value.status, caught.value.message) == (status, why)
    assert service.authority.calls == []


async def test_a_call_without_a_request(service: Service) -> None:
    with pytest.raises(RpcFailure, match="csr: is required"):
        await service.ask()


async def test_other_metadata_says_nothing_here(service: Service) -> None:
    answer = await service.ask(wish(metadata={"ClusterID": "Kubernetes"}).SerializeToString())
    assert len(answer.cert_chain) == 2


async def test_what_the_authority_refuses(service: Service) -> None:
    service.authority.refusal = Refused(codes.RESOURCE_EXHAUSTED, "too many")
    with pytest.raises(RpcFailure) as caught:
        await service.ask(wish().SerializeToString())
    assert (caught.value.status, caught.value.message) == (codes.RESOURCE_EXHAUSTED, "too many")


async def test_who_proves_nothing_is_not_read(service: Service) -> None:
    with pytest.raises(RpcFailure) as caught:
        await service.ask(b"\xff", **bearer(Signer().token()))
    assert caught.value.status == codes.UNAUTHENTICATED
    assert service.authority.calls == []
