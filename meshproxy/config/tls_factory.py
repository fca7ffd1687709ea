"""What makes the TLS of each connection of a filter chain, or of a cluster's hosts."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import Final, cast

from meshproxy.config.context import BuildContext
from meshproxy.config.secrets import Material, SecretReference
from meshproxy.config.spiffe_validator import spiffe_conflict
from meshproxy.config.tls_material import NO_CA, digest_of
from meshproxy.net.transport_socket import TransportSocket, TransportSocketFactory
from meshproxy.observe.tls_stats import CertificateStats, SocketFactoryStats
from meshproxy.tls.certs import Certified
from meshproxy.tls.context import TlsContext
from meshproxy.tls.engine import TlsEvents, TlsTransportSocket
from meshproxy.tls.material import CertificateInfo, LoadedCertificate, TlsConfigError
from meshproxy.tls.not_ready import NotReadySocket
from meshproxy.tls.options import CertificateOptions, TlsOptions, ValidationOptions

_log: Final = logging.getLogger("meshproxy.config")
_UNNAMED: Final = hashlib.sha256(b"").hexdigest()[:8]  # of the name of a secret, where there is none


class TlsSocketFactory(TransportSocketFactory):
    """A built context."""

    def __init__(self, context: TlsContext, events: TlsEvents) -> None:
        super().__init__()
        self.asks_for_host = context.options.auto_host_sni
        self.context = context
        self.events = events

    def new(
        self,
        server_name: str = "",
        demanded_name: str = "",
        protocols: tuple[str, ...] = (),
        instead: bool = False,
    ) -> TlsTransportSocket:
        """For one connection; names and protocols are a client's, see TlsTransportSocket."""
        return TlsTransportSocket(self.context, self.events, server_name, demanded_name, protocols, instead)


class TlsParts:
    """What a context is made of beside its parameters: given, or a secret that is referred to."""

    def __init__(self) -> None:
        self.certificates: list[CertificateOptions | LoadedCertificate | SecretReference] = []
        self.validation: ValidationOptions | SecretReference | None = None
        self.default_validation: ValidationOptions | None = None  # what a secret is merged into
        self.ticket_keys: tuple[bytes, ...] | SecretReference = ()

    def references(self) -> list[SecretReference]:
        """The secrets of a control plane."""
        found = [*self.certificates, self.validation, self.ticket_keys]
        return [each for each in found if isinstance(each, SecretReference)]

    def options(self, base: TlsOptions, session_scope: bytes) -> TlsOptions | None:
        """`base` with all of it; None while a secret is missing."""
        if any(reference.material is None for reference in self.references()):
            return None
        validation = self._validation()
        demanded = b"" if validation is None else validation.digest
        return replace(
            base,
            certificates=tuple(_certificate(each) for each in self.certificates),
            validation=validation,
            ticket_keys=self._ticket_keys(),
            session_id_context=digest_of((session_scope, demanded)) if base.is_server else b"",
        )

    def with_default(self, validation: ValidationOptions) -> ValidationOptions:
        """What a secret says, together with what stands beside it."""
        return validation if self.default_validation is None else validation.merged_into(self.default_validation)

    def _validation(self) -> ValidationOptions | None:
        if isinstance(self.validation, SecretReference):
            return self.with_default(cast(ValidationOptions, self.validation.material))
        return self.validation

    def _ticket_keys(self) -> tuple[bytes, ...]:
        if isinstance(self.ticket_keys, SecretReference):
            return cast(tuple[bytes, ...], self.ticket_keys.material)
        return self.ticket_keys


def _certificate(
    given: CertificateOptions | LoadedCertificate | SecretReference,
) -> CertificateOptions | LoadedCertificate:
    return cast(LoadedCertificate, given.material) if isinstance(given, SecretReference) else given


class CertificateGauges:
    """`<owner>.ssl.certificate.<name>.expiration_unix_time_seconds`, by the names of secrets."""

    def __init__(self, context: BuildContext, prefix: str) -> None:
        self._context = context
        self._prefix = prefix
        self._scopes: dict[str, CertificateStats] = {}

    def tell(self, tls: Certified) -> None:
        """As Envoy: of certificates under one name the latest, but of a CA bundle the one that expires first. Those of
        SPIFFE's bundles have a number each."""
        for info in tls.certificates:
            self._set(info.secret_name or f"unnamed_cert_{_UNNAMED}", info.expires)
        trusted = tls.ca_certificates
        if trusted and trusted[0].trust_domain:
            for index, info in enumerate(trusted):
                self._set(f"{info.secret_name or 'unnamed_ca_cert'}_{index}", info.expires)
        elif trusted:
            name = trusted[0].secret_name or f"unnamed_ca_cert_{_UNNAMED}"
            self._set(name, min(info.expires for info in trusted))

    def _set(self, name: str, expires: float) -> None:
        scope = self._scopes.get(name)
        if scope is None:
            scope = self._scopes[name] = self._context.scope(f"{self._prefix}{name}.", CertificateStats)
        scope.expiration_unix_time_seconds = int(expires)


class SecretTlsSocketFactory(TransportSocketFactory):
    """A context of which secrets of a control plane are a part. It is made at the first connection that needs it after
    they came, or changed: a thousand clusters that share a certificate are no work before they are used. Open
    connections go on as they began."""

    def __init__(
        self,
        base: TlsOptions,
        parts: TlsParts,
        session_scope: bytes,
        events: TlsEvents,
        stats: SocketFactoryStats,
        certified: list[Certified],
        gauges: CertificateGauges,
    ) -> None:
        super().__init__()
        self.asks_for_host = base.auto_host_sni
        self._base = base
        self._parts = parts
        self._session_scope = session_scope
        self._events = events
        self._stats = stats
        self._certified = certified  # where it belongs once its secrets are there
        self._gauges = gauges
        self._context: TlsContext | None = None
        self._is_stale: bool = True
        for reference in parts.references():
            reference.user = self

    def new(
        self,
        server_name: str = "",
        demanded_name: str = "",
        protocols: tuple[str, ...] = (),
        instead: bool = False,
    ) -> TransportSocket:
        """For one connection; it fails where a secret is missing."""
        if self._is_stale:
            self._is_stale = False
            self._context = self._build()
        if self._context is not None:
            return TlsTransportSocket(self._context, self._events, server_name, demanded_name, protocols, instead)
        if self._base.is_server:
            self._stats.downstream_context_secrets_not_ready += 1
        else:
            self._stats.upstream_context_secrets_not_ready += 1
        return NotReadySocket()

    def _build(self) -> TlsContext | None:
        options = self._parts.options(self._base, self._session_scope)
        try:
            return None if options is None else TlsContext(options)
        except TlsConfigError as error:
            _log.error("no TLS context can be made of secrets that came: %s", error)
            return None

    # -- for /certs

    @property
    def certificates(self) -> list[CertificateInfo]:
        """Those that there are."""
        given = (each.material if isinstance(each, SecretReference) else each for each in self._parts.certificates)
        return [each.info for each in given if isinstance(each, LoadedCertificate)]

    @property
    def ca_certificates(self) -> list[CertificateInfo]:
        """Of those who are trusted."""
        given = self._parts.validation
        validation = given.material if isinstance(given, SecretReference) else given
        if not isinstance(validation, ValidationOptions) or validation.authorities is None:
            return []
        return validation.authorities.infos

    @property
    def validations(self) -> list[ValidationOptions]:
        """What is demanded of peers, with what a secret is merged into."""
        given = self._parts.validation
        held = given.material if isinstance(given, SecretReference) else given
        return [each for each in (held, self._parts.default_validation) if isinstance(each, ValidationOptions)]

    # -- as the user of secrets

    def refusal(self, material: Material) -> str:
        """Why it cannot use this; "" if it can."""
        if isinstance(material, LoadedCertificate):
            certificate, staple = material.info.certificate, material.info.staple
            if self._base.is_server and certificate.must_staple and staple is None:
                return "OCSP response is required for must-staple certificate"
        elif isinstance(material, ValidationOptions):
            default = self._parts.default_validation
            return self._refusal_of_validation([material] if default is None else [material, default])
        return ""

    def _refusal_of_validation(self, merged: list[ValidationOptions]) -> str:
        """Of what will be one."""
        if any(each.trust_bundles for each in merged):
            return spiffe_conflict(merged)
        if any(each.has_authorities for each in merged):
            return ""
        if any(each.san_matchers for each in merged):
            return NO_CA
        if self._base.expects_server_name:
            return "'auto_sni_san_validation' was configured without a validation context"
        return "a revocation list says nothing without a trusted CA" if any(each.crl for each in merged) else ""

    def on_secret(self, material: Material) -> None:
        """It is there, or another one than before."""
        self._stats.ssl_context_update_by_sds += 1
        self._is_stale = True
        if any(reference.material is None for reference in self._parts.references()):
            return
        if self not in self._certified:
            self._certified.append(self)
        self._gauges.tell(self)
