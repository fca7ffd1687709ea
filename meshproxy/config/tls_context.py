"""DownstreamTlsContext and UpstreamTlsContext: from protobuf to what makes a connection's TLS.

A context that cannot be built is an error, and None: never plaintext in its place.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import ssl
import time
from typing import Any, Final

from meshproxy.config.config_source import build_config_source
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child, item
from meshproxy.config.secrets import (
    CERTIFICATE,
    TICKET_KEYS,
    VALIDATION,
    Material,
    SecretReference,
    loaded,
    static_secret,
)
from meshproxy.config.tls_factory import CertificateGauges, SecretTlsSocketFactory, TlsParts, TlsSocketFactory
from meshproxy.config.tls_material import NO_CA, MaterialBuilder, digest_of
from meshproxy.config.values import bool_or, int_or
from meshproxy.net.transport_socket import TransportSocketFactory
from meshproxy.observe.tls_stats import SocketFactoryStats, TlsCounter, TlsStats
from meshproxy.tls import openssl
from meshproxy.tls.certs import Certified
from meshproxy.tls.context import TlsContext, check_parameters
from meshproxy.tls.material import LoadedCertificate, TlsConfigError, at_once
from meshproxy.tls.options import (
    DEFAULT_CIPHERS,
    DEFAULT_CURVES,
    DEFAULT_SESSION_TIMEOUT_S,
    CertificateOptions,
    TlsOptions,
    ValidationOptions,
)
from meshproxy.tls.validity import untimely

_log: Final = logging.getLogger("meshproxy.config")

_COMMON: Final = "common_tls_context"
_VERSIONS: Final = {
    "TLSv1_0": ssl.TLSVersion.TLSv1,
    "TLSv1_1": ssl.TLSVersion.TLSv1_1,
    "TLSv1_2": ssl.TLSVersion.TLSv1_2,
    "TLSv1_3": ssl.TLSVersion.TLSv1_3,
}
_PEER_EXCHANGE: Final = "istio-peer-exchange"
_SEVERAL: Final = "Multiple TLS certificates are not supported for client contexts"
_MIXED: Final = "SDS and non-SDS TLS certificates may not be mixed in server contexts"


def build_downstream_tls(
    message: Any, path: str, context: BuildContext, server_names: tuple[str, ...] = ()
) -> TransportSocketFactory | None:
    """The context of a filter chain that matches `server_names`; None, with errors, when it cannot be."""
    builder = _Builder(path, context)
    required = bool_or(message, "require_client_certificate", False)
    common = builder.common(message.common_tls_context, is_server=True)
    builder.set_ticket_keys(message)
    if builder.failed:
        return None
    timeout = message.session_timeout.seconds if message.HasField("session_timeout") else DEFAULT_SESSION_TIMEOUT_S
    options = TlsOptions(
        is_server=True,
        **common,
        require_client_certificate=required,
        full_scan_on_sni_mismatch=bool_or(message, "full_scan_certs_on_sni_mismatch", False),
        prefer_client_ciphers=message.prefer_client_ciphers,
        ticket_seed=_ticket_seed(context),
        tickets=not message.disable_stateless_session_resumption,
        session_cache=not message.disable_stateful_session_resumption,
        session_timeout_s=timeout,
    )
    # A session is resumed only where the same was demanded of it: under the same names and the same validation.
    # Certificates of our own do not count, so that their renewal breaks no session.
    scope = digest_of((repr(server_names).encode(), b"required" if required else b""))
    return builder.finish(options, scope, context.listener_stat_prefix)


def build_upstream_tls(
    message: Any, path: str, context: BuildContext, stat_prefix: str
) -> TransportSocketFactory | None:
    """The context of a cluster whose stats stand under `stat_prefix` (`cluster.<name>.`); None, with errors, when it
    cannot be."""
    builder = _Builder(path, context)
    common = builder.common(message.common_tls_context, is_server=False)
    builder.check_server_name(message.sni, "sni")
    if message.auto_sni_san_validation:
        builder.check_auto_sni_san(message)
    if builder.failed:
        return None
    options = TlsOptions(
        is_server=False,
        **common,
        server_name=message.sni,
        auto_host_sni=message.auto_host_sni,
        expects_server_name=message.auto_sni_san_validation,
        allow_renegotiation=message.allow_renegotiation,
        max_sessions=int_or(message, "max_session_keys", 1),
    )
    return builder.finish(options, b"", stat_prefix)


class _Builder(MaterialBuilder):
    """One context under construction: what it is made of stands in `parts`."""

    def __init__(self, path: str, context: BuildContext) -> None:
        super().__init__(path, context.errors, context.load)
        self._context = context
        self._parts = TlsParts()

    def finish(self, base: TlsOptions, session_scope: bytes, owner: str) -> TransportSocketFactory | None:
        try:
            return self._finish(base, session_scope, owner)
        except TlsConfigError as error:
            for field, reason in error.problems:
                self.error(field, reason)
            return None

    def _finish(self, base: TlsOptions, session_scope: bytes, owner: str) -> TransportSocketFactory:
        context, parts = self._context, self._parts
        side = "server" if base.is_server else "client"
        events = TlsCounter(context.scope(f"{owner}ssl.", TlsStats))
        stats = context.scope(f"{owner}{side}_ssl_socket_factory.", SocketFactoryStats)
        gauges = CertificateGauges(context, f"{owner}ssl.certificate.")
        references = parts.references()
        if references:
            check_parameters(base)
            self._load_given()
            context.init_targets += references
            factory = SecretTlsSocketFactory(base, parts, session_scope, events, stats, context.tls, gauges)
            self._warn_of_times(factory)
            return factory
        options = parts.options(base, session_scope)
        assert options is not None
        tls = TlsContext(options)
        self._warn_of_times(tls)
        context.tls.append(tls)
        context.when_in_force(functools.partial(gauges.tell, tls))
        return TlsSocketFactory(tls, events)

    def _warn_of_times(self, tls: Certified) -> None:
        """As Envoy, a file's certificates are used whenever they are valid; but somebody should know."""
        now = time.time()
        for info in (*tls.certificates, *tls.ca_certificates):
            reason = untimely(info.certificate, now)
            if reason:
                _log.warning("%s: %s: %s", self._path, info.source, reason)

    def _load_given(self) -> None:
        """What stands beside secrets is looked at now."""
        parts = self._parts
        parts.certificates = [
            LoadedCertificate(each) if isinstance(each, CertificateOptions) else each for each in parts.certificates
        ]
        if isinstance(parts.validation, ValidationOptions):
            parts.validation = at_once(loaded(parts.validation))
        if parts.default_validation is not None and parts.default_validation.trust_bundles:
            parts.default_validation = at_once(loaded(parts.default_validation))

    # -- CommonTlsContext

    def common(self, message: Any, *, is_server: bool) -> dict[str, Any]:
        """The options that both sides have."""
        params = message.tls_params
        newest = ssl.TLSVersion.TLSv1_3 if is_server else ssl.TLSVersion.TLSv1_2  # Envoy's defaults
        self._add_certificates(message, is_server)
        self._set_validation(message)
        return {
            "min_version": _version(params, "tls_minimum_protocol_version", ssl.TLSVersion.TLSv1_2),
            "max_version": _version(params, "tls_maximum_protocol_version", newest),
            "ciphers": tuple(params.cipher_suites) or DEFAULT_CIPHERS,
            "curves": tuple(params.ecdh_curves) or DEFAULT_CURVES,
            "signature_algorithms": tuple(params.signature_algorithms),
            "application_protocols": self._application_protocols(message),
            "keylog_path": message.key_log.path if message.HasField("key_log") else "",
        }

    def _application_protocols(self, message: Any) -> tuple[str, ...]:
        """An element may hold several, with commas between, as in Envoy. Istio's exchange of metadata over TCP is left
        out: who agrees on it must speak it."""
        names = [name for text in message.alpn_protocols for name in text.split(",")]
        for name in names:
            if not 1 <= len(name.encode()) <= 255:
                self.error(f"{_COMMON}.alpn_protocols", "Invalid ALPN protocol string")
                return ()
        return tuple(name for name in names if name != _PEER_EXCHANGE)

    def _add_certificates(self, message: Any, is_server: bool) -> None:
        given, named = message.tls_certificates, message.tls_certificate_sds_secret_configs
        field = item(_COMMON, "tls_certificate_sds_secret_configs", 0)
        if named and given and is_server:
            self.error(field, _MIXED)
        elif named and len(given) + len(named) > 1 and not is_server:
            self.error(field, _SEVERAL)
        for index, each in enumerate(given):
            self._parts.certificates.append(self.certificate(each, item(_COMMON, "tls_certificates", index)))
        for index, each in enumerate(named):
            found = self._secret(each, item(_COMMON, "tls_certificate_sds_secret_configs", index), CERTIFICATE)
            if isinstance(found, (LoadedCertificate, SecretReference)):
                self._parts.certificates.append(found)

    def _set_validation(self, message: Any) -> None:
        kind = message.WhichOneof("validation_context_type")
        field = f"{_COMMON}.{kind}"
        if kind == "validation_context":
            self.check_names(message.validation_context, field)
            self._parts.validation = self.validation(message.validation_context, field)
        elif kind == "validation_context_sds_secret_config":
            self._take_validation(message.validation_context_sds_secret_config, field)
        elif kind == "combined_validation_context":
            combined = message.combined_validation_context
            default = self.validation(combined.default_validation_context, f"{field}.default_validation_context")
            self._parts.default_validation = default
            self._take_validation(
                combined.validation_context_sds_secret_config, f"{field}.validation_context_sds_secret_config"
            )

    def _take_validation(self, config: Any, field: str) -> None:
        found = self._secret(config, field, VALIDATION)
        if isinstance(found, ValidationOptions):
            found = self._parts.with_default(found)
            self._parts.default_validation = None
            if found.san_matchers and not found.has_authorities:
                self.error(field, NO_CA)
        if isinstance(found, (ValidationOptions, SecretReference)):
            self._parts.validation = found

    # -- SdsSecretConfig

    def _secret(self, config: Any, field: str, kind: str) -> Material | SecretReference | None:
        """What the bootstrap has under this name; or a reference, where a control plane is to be asked."""
        if not config.HasField("sds_config"):
            return static_secret(self._context, kind, config.name, child(self._path, f"{field}.name"))
        source = build_config_source(config.sds_config, child(self._path, f"{field}.sds_config"), self._context)
        if source is None:
            return None
        if not openssl.AVAILABLE:
            self.error(field, "is not possible with this build of Python")
        return SecretReference(kind, config.name, source, self._context)

    # -- one side only

    def set_ticket_keys(self, message: Any) -> None:
        """The first encrypts, all decrypt."""
        kind = message.WhichOneof("session_ticket_keys_type")
        if kind == "session_ticket_keys":
            self._parts.ticket_keys = self.ticket_keys(message.session_ticket_keys, kind)
        elif kind == "session_ticket_keys_sds_secret_config":
            found = self._secret(message.session_ticket_keys_sds_secret_config, kind, TICKET_KEYS)
            if isinstance(found, (tuple, SecretReference)):
                self._parts.ticket_keys = found

    def check_server_name(self, name: str, field: str) -> None:
        """A name that cannot be sent is an error now, and not at each connection."""
        if name and not is_server_name(name):
            self.error(field, f"SNI names containing {name!r} cannot be sent")

    def check_auto_sni_san(self, message: Any) -> None:
        if not message.sni and not message.auto_host_sni:
            self.error("auto_sni_san_validation", "needs sni or auto_host_sni")
        validation = self._parts.validation
        if isinstance(validation, SecretReference):
            return  # its material is asked
        if validation is None or not validation.has_authorities:
            reason = "'auto_sni_san_validation' was configured without a validation context"
            self.error("auto_sni_san_validation", reason)


def is_server_name(name: str) -> bool:
    """Whether `name` can be sent as SNI: no empty label, and none of more than 63 bytes."""
    try:
        _any_client().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except ValueError:  # of the idna codec too
        return False
    return True


@functools.cache
def _any_client() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _version(params: Any, field: str, default: ssl.TLSVersion) -> ssl.TLSVersion:
    name = params.TlsProtocol.Name(getattr(params, field))
    return _VERSIONS.get(name, default)


def _ticket_seed(context: BuildContext) -> bytes:
    """Its own for each listener, as Envoy's random keys are: no session of one is resumed on another."""
    if not context.ticket_seed:
        return b""
    return hashlib.sha256(context.ticket_seed + context.listener_stat_prefix.encode()).digest()
