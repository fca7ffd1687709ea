"""`istio.v1.auth.IstioCertificateService`: certificates for keys that never leave their pod."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from google.protobuf.message import DecodeError

from meshproxy.api.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from meshproxy.codec import grpc as codes
from meshproxy.pilot.authority.contract import Authority, Refused
from meshproxy.pilot.authority.proof import Prover
from meshproxy.rpc.server.call import Handlers, RpcFailure, ServerCall

CREATE_CERTIFICATE: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
# What Istio's clients may say in the metadata of a request, and what we do not do.
_IMPERSONATED: Final = "ImpersonatedIdentity"
_SIGNER: Final = "CertSigner"
_REQUEST_S: Final = 20.0  # that a caller has to say what it wants


class CertificateService:
    """Signs for whoever proves who it is."""

    def __init__(self, authority: Authority, prover: Prover) -> None:
        self._authority = authority
        self._prover = prover

    def handlers(self) -> Handlers:
        """For a server."""
        return {CREATE_CERTIFICATE: self._create}

    async def _create(self, call: ServerCall) -> None:
        caller = (await self._prover.prove(call)).caller
        request = _read(await _only_message(call))
        try:
            issued = await self._authority.sign(request.csr.encode(), caller, float(request.validity_duration))
        except Refused as refused:
            raise RpcFailure(refused.status, refused.reason) from None
        # As Istio's: the leaf, its intermediates, and last the roots, all in one.
        chain = [found.decode() for found in _CERTIFICATE.findall(issued.chain)]
        roots = self._authority.bundle().roots.decode()
        await call.send(IstioCertificateResponse(cert_chain=[*chain, roots]).SerializeToString())


async def _only_message(call: ServerCall) -> bytes | None:
    try:
        async with asyncio.timeout(_REQUEST_S):
            return await call.receive()
    except TimeoutError:
        raise RpcFailure(codes.DEADLINE_EXCEEDED, "nothing was asked for") from None


def _read(data: bytes | None) -> IstioCertificateRequest:
    try:
        request = IstioCertificateRequest.FromString(data or b"")
    except DecodeError:
        raise RpcFailure(codes.INVALID_ARGUMENT, "this is no IstioCertificateRequest") from None
    if not request.csr:
        raise RpcFailure(codes.INVALID_ARGUMENT, "csr: is required")
    if request.validity_duration < 0:
        raise RpcFailure(codes.INVALID_ARGUMENT, "validity_duration: is negative")
    if _IMPERSONATED in request.metadata.fields:
        raise RpcFailure(codes.PERMISSION_DENIED, f"metadata.{_IMPERSONATED}: nobody gets another's certificate")
    if _SIGNER in request.metadata.fields:
        raise RpcFailure(codes.INVALID_ARGUMENT, f"metadata.{_SIGNER}: there is one authority")
    return request
