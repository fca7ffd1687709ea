"""What the agent has, as the proxies of its pod see it: `default` and `ROOTCA`, the names of Istio's."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from envoy.config.core.v3.base_pb2 import DataSource
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import SPIFFECertValidatorConfig
from google.protobuf.message import DecodeError

from meshproxy.agent.material import KeyPair, MaterialError, certificates, revocation_lists, stands
from meshproxy.rpc.server.call import ServerCall
from meshproxy.xds.secret_streams import IDENTITY, ROOTS, SecretValue


class AgentSecrets:
    """The newest of each. A certificate that has expired is given to nobody."""

    def __init__(self, trust_domain: str, now: Callable[[], float] = time.time) -> None:
        self.pair: KeyPair | None = None
        self.trusted: bytes = b""  # PEM: the newest roots of our own domain, by which the authority is believed too
        self._trust_domain = trust_domain
        self._now = now
        self._values: dict[str, SecretValue] = {}
        self._watchers: list[Watcher] = []
        self._told: Trust | None = None  # whom the mesh trusts, once it has told

    @property
    def ready(self) -> bool:
        """Whether proxies have all that they ask for."""
        return self.get(IDENTITY) is not None and ROOTS in self._values

    @property
    def left_s(self) -> float:
        """Of the certificate's life; below 0 when it is over, or there is none."""
        return -1.0 if self.pair is None else self.pair.not_after - self._now()

    @property
    def stands(self) -> bool:
        """Whether the mesh takes our certificate, as far as it has told whom it trusts, and apart from its time."""
        pair, told = self.pair, self._told
        return pair is None or told is None or stands(pair, told.roots, told.crl)

    def set_identity(self, pair: KeyPair) -> None:
        """A new certificate."""
        self.pair = pair
        secret = Secret(name=IDENTITY)
        secret.tls_certificate.certificate_chain.inline_bytes = pair.chain
        secret.tls_certificate.private_key.inline_bytes = pair.key
        self._set(IDENTITY, hashlib.sha256(pair.chain), secret)

    def set_roots(self, roots: bytes) -> None:
        """What is known of the roots as long as nobody has told the mesh's bundle."""
        if not roots:
            return
        self.trusted = roots
        if self._told is None:
            secret = Secret(name=ROOTS)
            secret.validation_context.trusted_ca.inline_bytes = roots
            self._set(ROOTS, hashlib.sha256(roots), secret)

    def set_bundle(self, data: bytes) -> None:
        """The mesh's bundle, a serialised Secret: from now on it alone says who is trusted. Raises MaterialError."""
        secret = Secret()
        try:
            secret.ParseFromString(data)
        except DecodeError:
            raise MaterialError("no Secret") from None
        self._told = _checked(secret, self._trust_domain)
        self.trusted = self._told.roots
        secret.name = ROOTS
        self._set(ROOTS, hashlib.sha256(secret.SerializeToString(deterministic=True)), secret)

    def _set(self, name: str, digest: hashlib._Hash, secret: Secret) -> None:
        version = digest.hexdigest()[:16]
        known = self._values.get(name)
        if known is not None and known.version == version:
            return
        self._values[name] = SecretValue(version, secret.SerializeToString())
        for watcher in list(self._watchers):
            watcher.tell()

    # -- for those who ask

    async def open(self, call: ServerCall) -> Watcher:
        """For one stream: who may connect may have both."""
        watcher = Watcher(self)
        self._watchers.append(watcher)
        return watcher

    def forget(self, watcher: Watcher) -> None:
        """It asks no more."""
        self._watchers.remove(watcher)

    def get(self, name: str) -> SecretValue | None:
        """As it is now."""
        if name == IDENTITY and self.left_s <= 0.0:
            return None
        return self._values.get(name)


class Watcher:
    """One stream's view of the secrets: see `xds.secret_server.Secrets`."""

    def __init__(self, secrets: AgentSecrets) -> None:
        self._secrets = secrets
        self._on_change: Callable[[], None] | None = None

    def want(self, names: frozenset[str]) -> None:
        """There is nothing to be made for it."""

    def get(self, name: str) -> SecretValue | None:
        return self._secrets.get(name)

    def watch(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change

    def tell(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def close(self) -> None:
        self._secrets.forget(self)


@dataclass(frozen=True, slots=True)
class Trust:
    """Of our own trust domain, in PEM."""

    roots: bytes
    crl: bytes


def _checked(secret: Secret, trust_domain: str) -> Trust:
    """Raises MaterialError where it trusts nobody, which would be no bundle, or has proxies read files of theirs."""
    context = secret.validation_context
    roots, crl = _inline(context.trusted_ca), _inline(context.crl)
    if context.HasField("custom_validator_config"):
        roots = roots or _of_domain(context.custom_validator_config.typed_config, trust_domain)
    if not roots:
        raise MaterialError("a bundle without roots of ours")
    certificates(roots)
    revocation_lists(crl)
    return Trust(roots, crl)


def _of_domain(config: Any, trust_domain: str) -> bytes:
    """The roots that a SPIFFE validator has for one domain; none for another kind of validator."""
    spiffe = SPIFFECertValidatorConfig()
    try:
        is_spiffe = config.Unpack(spiffe)
    except DecodeError:
        raise MaterialError("a validator that cannot be read") from None
    domains = spiffe.trust_domains if is_spiffe else ()
    return b"".join([_inline(domain.trust_bundle) for domain in domains if domain.name == trust_domain])


def _inline(source: DataSource) -> bytes:
    if source.WhichOneof("specifier") not in (None, "inline_bytes", "inline_string"):
        raise MaterialError("a bundle that is not inline")
    return bytes(source.inline_bytes or source.inline_string.encode())
