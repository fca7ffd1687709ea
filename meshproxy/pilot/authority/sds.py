"""Secrets for those who prove who they are: `default`, a certificate of theirs with its key, and `ROOTCA`, whom the
mesh trusts. For proxies that have no agent; an agent takes `ROOTCA` alone, and keeps its key to itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable
from typing import Final

from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import SPIFFECertValidatorConfig

from meshproxy.codec import grpc as codes
from meshproxy.pilot.authority.contract import Authority, Issued, TrustBundle
from meshproxy.pilot.authority.proof import Proved, Prover
from meshproxy.pilot.authority.renewed import RenewedCertificate
from meshproxy.rpc.server.call import RpcFailure, ServerCall
from meshproxy.xds.secret_streams import IDENTITY, ROOTS, SecretValue

_LONGEST_S: Final = 30 * 86400.0
_SPIFFE: Final = "envoy.tls.cert_validator.spiffe"


def certificate_secret(issued: Issued) -> SecretValue:
    """`default`."""
    secret = Secret(name=IDENTITY)
    secret.tls_certificate.certificate_chain.inline_bytes = issued.chain
    secret.tls_certificate.private_key.inline_bytes = issued.key
    return SecretValue(f"{issued.serial:x}", secret.SerializeToString())


def roots_secret(bundle: TrustBundle, trust_domains: tuple[str, ...]) -> SecretValue:
    """`ROOTCA`. With federated domains each domain's roots are believed about that domain only, as SPIFFE wants it."""
    secret = Secret(name=ROOTS)
    context = secret.validation_context
    if bundle.federated:
        ours = [(domain, bundle.roots) for domain in trust_domains]
        context.custom_validator_config.CopyFrom(_spiffe(ours + list(bundle.federated)))
    else:
        context.trusted_ca.inline_bytes = bundle.roots
    if bundle.crl:
        context.crl.inline_bytes = bundle.crl
        context.only_verify_leaf_cert_crl = True  # an outside root's own list is not ours to give
    data = secret.SerializeToString(deterministic=True)
    return SecretValue(hashlib.sha256(data).hexdigest()[:16], data)


def _spiffe(bundles: list[tuple[str, bytes]]) -> TypedExtensionConfig:
    config = SPIFFECertValidatorConfig()
    for domain, roots in bundles:
        config.trust_domains.add(name=domain).trust_bundle.inline_bytes = roots
    found = TypedExtensionConfig(name=_SPIFFE)
    found.typed_config.Pack(config)
    return found


class AuthoritySecrets:
    """A `SecretSource`."""

    def __init__(self, authority: Authority, prover: Prover, trust_domains: tuple[str, ...]) -> None:
        self._authority = authority
        self._prover = prover
        self._trust_domains = trust_domains
        self._made_of: TrustBundle | None = None
        self._roots: SecretValue | None = None

    async def open(self, call: ServerCall) -> CallerSecrets:
        """Raises RpcFailure for whoever proves nothing."""
        return self.secrets_of(await self._prover.prove(call))

    def secrets_of(self, proved: Proved) -> CallerSecrets:
        """For whoever has proved it already."""
        return CallerSecrets(self, self._authority, self._prover, proved)

    def roots(self) -> SecretValue:
        """One for all who ask."""
        bundle = self._authority.bundle()
        if self._roots is None or bundle is not self._made_of:
            self._roots = roots_secret(bundle, self._trust_domains)
            self._made_of = bundle
        return self._roots


class CallerSecrets:
    """`Secrets` of one stream. When its caller's proof holds no longer the stream ends: another one may bring a new
    proof."""

    def __init__(self, source: AuthoritySecrets, authority: Authority, prover: Prover, proved: Proved) -> None:
        self._source = source
        self._authority = authority
        self._prover = prover
        self._proved = proved
        self._certificate: RenewedCertificate | None = None
        self._secret: tuple[Issued, SecretValue] | None = None
        self._on_change: Callable[[], None] | None = None
        self._unwatch = authority.watch(self._changed)
        self._end = None if proved.ends == math.inf else _at(proved.ends, self._changed)

    def want(self, names: frozenset[str]) -> None:
        if IDENTITY in names and self._certificate is None:
            self._certificate = RenewedCertificate(self._authority, self._proved.caller, self._changed)
            self._certificate.begin()
        elif IDENTITY not in names and self._certificate is not None:
            self._certificate.close()
            self._certificate = self._secret = None

    def get(self, name: str) -> SecretValue | None:
        """Raises RpcFailure when the caller has to prove again who it is."""
        if not self._prover.holds(self._proved):
            raise RpcFailure(codes.UNAUTHENTICATED, "the proof of identity has ended")
        if name == ROOTS:
            return self._source.roots()
        return self._own() if name == IDENTITY else None

    def _own(self) -> SecretValue | None:
        issued = None if self._certificate is None else self._certificate.current
        if issued is None:
            return None
        if self._secret is None or self._secret[0] is not issued:
            self._secret = issued, certificate_secret(issued)
        return self._secret[1]

    def watch(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def close(self) -> None:
        self._unwatch()
        if self._end is not None:
            self._end.cancel()
        if self._certificate is not None:
            self._certificate.close()


def _at(unix_s: float, call: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(max(0.0, min(unix_s - time.time(), _LONGEST_S)), call)
