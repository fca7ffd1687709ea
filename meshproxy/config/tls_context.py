"""DownstreamTlsContext and UpstreamTlsContext: from protobuf to what makes a connection's TLS.

A context that cannot be built is an error, and None: never plaintext in its place.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import ssl
from typing import Any, Final

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.string_matcher import build_string_matcher
from meshproxy.config.values import bool_or, int_or
from meshproxy.net.transport_socket import TransportSocketFactory
from meshproxy.observe.tls_stats import CertificateStats, TlsCounter, TlsStats
from meshproxy.tls import x509
from meshproxy.tls.context import TlsConfigError, TlsContext
from meshproxy.tls.engine import TlsEvents, TlsTransportSocket
from meshproxy.tls.options import (
    DEFAULT_CIPHERS,
    DEFAULT_CURVES,
    DEFAULT_SESSION_TIMEOUT_S,
    CertificateOptions,
    TlsOptions,
    ValidationOptions,
)
from meshproxy.tls.verify import SanMatcher

_COMMON: Final = "common_tls_context"
_VERSIONS: Final = {
    "TLSv1_0": ssl.TLSVersion.TLSv1,
    "TLSv1_1": ssl.TLSVersion.TLSv1_1,
    "TLSv1_2": ssl.TLSVersion.TLSv1_2,
    "TLSv1_3": ssl.TLSVersion.TLSv1_3,
}
_KINDS: Final = {"EMAIL": x509.EMAIL, "DNS": x509.DNS, "URI": x509.URI, "IP_ADDRESS": x509.IP_ADDRESS}
_SHA256_BYTES: Final = 32
_UNNAMED: Final = hashlib.sha256(b"").hexdigest()[:8]  # of the name of a secret, where there is none
_NO_CA: Final = "SAN-based verification of peer certificates without trusted CA is insecure and not allowed"


class TlsSocketFactory(TransportSocketFactory):
    """A built context: makes the transport socket of each connection."""

    def __init__(self, context: TlsContext, events: TlsEvents) -> None:
        super().__init__()
        self.asks_for_host = context.options.auto_host_sni
        self.context = context
        self.events = events

    def new(
        self, server_name: str = "", demanded_name: str = "", protocols: tuple[str, ...] = ()
    ) -> TlsTransportSocket:
        """For one connection; names and protocols are a client's, see TlsTransportSocket."""
        return TlsTransportSocket(self.context, self.events, server_name, demanded_name, protocols)


def build_downstream_tls(
    message: Any, path: str, context: BuildContext, server_names: tuple[str, ...] = ()
) -> TlsSocketFactory | None:
    """The context of a filter chain that matches `server_names`; None, with errors, when it cannot be."""
    builder = _Builder(path, context)
    require_certificate = bool_or(message, "require_client_certificate", False)
    common = builder.common(message.common_tls_context, is_server=True)
    ticket_keys = builder.ticket_keys(message)
    if builder.failed:
        return None
    timeout = message.session_timeout.seconds if message.HasField("session_timeout") else DEFAULT_SESSION_TIMEOUT_S
    options = TlsOptions(
        is_server=True,
        **common,
        require_client_certificate=require_certificate,
        full_scan_on_sni_mismatch=bool_or(message, "full_scan_certs_on_sni_mismatch", False),
        prefer_client_ciphers=message.prefer_client_ciphers,
        ticket_keys=ticket_keys,
        ticket_seed=_ticket_seed(context),
        tickets=not message.disable_stateless_session_resumption,
        session_cache=not message.disable_stateful_session_resumption,
        session_timeout_s=timeout,
        session_id_context=_session_id_context(message, common["validation"], server_names),
    )
    return builder.finish(options, context, f"{context.listener_stat_prefix}ssl.")


def build_upstream_tls(message: Any, path: str, context: BuildContext, stat_prefix: str) -> TlsSocketFactory | None:
    """The context of a cluster whose stats stand under `stat_prefix` (`cluster.<name>.`); None, with errors, when it
    cannot be."""
    builder = _Builder(path, context)
    common = builder.common(message.common_tls_context, is_server=False)
    builder.check_server_name(message.sni, "sni")
    if message.auto_sni_san_validation:
        builder.check_auto_sni_san(message, common["validation"])
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
    return builder.finish(options, context, f"{stat_prefix}ssl.")


class _Builder:
    """One context under construction: knows its path, and remembers failure."""

    def __init__(self, path: str, context: BuildContext) -> None:
        self._path = path
        self._context = context
        self._errors: ConfigErrors = context.errors
        self._errors_before = len(context.errors)

    @property
    def failed(self) -> bool:
        return len(self._errors) > self._errors_before

    def _error(self, field: str, reason: str) -> None:
        self._errors.add(child(self._path, field), reason)

    def finish(self, options: TlsOptions, context: BuildContext, stat_prefix: str) -> TlsSocketFactory | None:
        try:
            tls = TlsContext(options)
        except TlsConfigError as error:
            for field, reason in error.problems:
                self._error(field, reason)
            return None
        events = TlsCounter(context.scope(stat_prefix, TlsStats))
        context.tls.append(tls)
        _tell_expiry(tls, context, stat_prefix)
        return TlsSocketFactory(tls, events)

    def load(self, message: Any, field: str) -> bytes:
        """The bytes of a DataSource; nothing, with an error, where there are none. Its file is watched: links on the
        way to it are followed, so that a `watched_directory` says nothing more."""
        data = self._context.load(message, child(self._path, field))
        if data == b"":
            self._error(field, "is empty")
        return data or b""

    # -- CommonTlsContext

    def common(self, message: Any, *, is_server: bool) -> dict[str, Any]:
        """The options that both sides have."""
        params = message.tls_params
        certificates = [
            self._certificate(each, item(_COMMON, "tls_certificates", index))
            for index, each in enumerate(message.tls_certificates)
        ]
        newest = ssl.TLSVersion.TLSv1_3 if is_server else ssl.TLSVersion.TLSv1_2  # Envoy's defaults
        validation = None
        if message.HasField("validation_context"):
            validation = self._validation(message.validation_context, f"{_COMMON}.validation_context")
        return {
            "min_version": _version(params, "tls_minimum_protocol_version", ssl.TLSVersion.TLSv1_2),
            "max_version": _version(params, "tls_maximum_protocol_version", newest),
            "ciphers": tuple(params.cipher_suites) or DEFAULT_CIPHERS,
            "curves": tuple(params.ecdh_curves) or DEFAULT_CURVES,
            "signature_algorithms": tuple(params.signature_algorithms),
            "application_protocols": self._application_protocols(message),
            "certificates": tuple(certificates),
            "validation": validation,
            "keylog_path": message.key_log.path if message.HasField("key_log") else "",
        }

    def _application_protocols(self, message: Any) -> tuple[str, ...]:
        """An element may hold several, with commas between, as in Envoy."""
        names = [name for text in message.alpn_protocols for name in text.split(",")]
        for name in names:
            if not 1 <= len(name.encode()) <= 255:
                self._error(f"{_COMMON}.alpn_protocols", "Invalid ALPN protocol string")
                return ()
        return tuple(names)

    def _certificate(self, message: Any, field: str) -> CertificateOptions:
        for name in ("certificate_chain", "private_key"):
            if not message.HasField(name):
                self._error(f"{field}.{name}", "No certificate chain, or no private key, for a TLS certificate")
                return CertificateOptions(field=field, chain=b"", key=b"")
        password = self.load(message.password, f"{field}.password") if message.HasField("password") else None
        staple = self.load(message.ocsp_staple, f"{field}.ocsp_staple") if message.HasField("ocsp_staple") else b""
        return CertificateOptions(
            field=field,
            chain=self.load(message.certificate_chain, f"{field}.certificate_chain"),
            key=self.load(message.private_key, f"{field}.private_key"),
            password=password,
            ocsp_staple=staple,
            source=_source(message.certificate_chain),
        )

    # -- CertificateValidationContext

    def _validation(self, message: Any, field: str) -> ValidationOptions:
        has_ca = message.HasField("trusted_ca")
        trusted_ca = self.load(message.trusted_ca, f"{field}.trusted_ca") if has_ca else b""
        has_ca = has_ca or message.HasField("system_root_certs")
        matchers = self._san_matchers(message, field)
        for name in ("match_typed_subject_alt_names", "match_subject_alt_names"):
            if getattr(message, name) and not has_ca:
                self._error(f"{field}.{name}", _NO_CA)
        if message.HasField("crl") and not has_ca:
            self._error(f"{field}.crl", "a revocation list says nothing without a trusted CA")
        return ValidationOptions(
            field=field,
            trusted_ca=trusted_ca,
            source=_source(message.trusted_ca),
            system_roots=message.HasField("system_root_certs"),
            crl=self.load(message.crl, f"{field}.crl") if message.HasField("crl") else b"",
            only_leaf_crl=message.only_verify_leaf_cert_crl,
            san_matchers=matchers,
            hashes=self._hashes(message, field),
            public_key_hashes=self._public_key_hashes(message, field),
            ignore_times=message.allow_expired_certificate,
            accept_untrusted=message.trust_chain_verification == message.ACCEPT_UNTRUSTED,
            max_verify_depth=message.max_verify_depth.value if message.HasField("max_verify_depth") else None,
        )

    def _san_matchers(self, message: Any, field: str) -> tuple[SanMatcher, ...]:
        found: list[SanMatcher] = []
        for index, each in enumerate(message.match_typed_subject_alt_names):
            at = item(field, "match_typed_subject_alt_names", index)
            kind = _KINDS.get(each.SanType.Name(each.san_type))
            if kind is None:
                self._error(f"{at}.san_type", "only EMAIL, DNS, URI and IP_ADDRESS are supported")
            else:
                self._add_san_matcher(found, kind, each.matcher, f"{at}.matcher")
        for index, each in enumerate(message.match_subject_alt_names):  # deprecated: a name of any kind
            for kind in _KINDS.values():
                self._add_san_matcher(found, kind, each, item(field, "match_subject_alt_names", index))
        return tuple(found)

    def _add_san_matcher(self, found: list[SanMatcher], kind: int, message: Any, field: str) -> None:
        matcher = build_string_matcher(message, child(self._path, field), self._errors)
        if matcher is not None:
            exact = message.exact if kind == x509.DNS else ""
            found.append(SanMatcher(kind, matcher, exact))

    def _hashes(self, message: Any, field: str) -> frozenset[bytes]:
        """SHA-256 in hexadecimal, with or without colons."""
        found: list[bytes] = []
        for index, text in enumerate(message.verify_certificate_hash):
            digest = _from_hexadecimal(text)
            if len(digest) != _SHA256_BYTES:
                self._error(item(field, "verify_certificate_hash", index), f"Invalid hex-encoded SHA-256 {text}")
            found.append(digest)
        return frozenset(found)

    def _public_key_hashes(self, message: Any, field: str) -> frozenset[bytes]:
        """SHA-256 in base64."""
        found: list[bytes] = []
        for index, text in enumerate(message.verify_certificate_spki):
            digest = _from_base64(text)
            if len(digest) != _SHA256_BYTES:
                self._error(item(field, "verify_certificate_spki", index), f"Invalid base64-encoded SHA-256 {text}")
            found.append(digest)
        return frozenset(found)

    # -- one side only

    def ticket_keys(self, message: Any) -> tuple[bytes, ...]:
        """The first encrypts, all decrypt."""
        if message.WhichOneof("session_ticket_keys_type") != "session_ticket_keys":
            return ()
        keys = message.session_ticket_keys.keys
        return tuple(self.load(key, item("session_ticket_keys", "keys", index)) for index, key in enumerate(keys))

    def check_server_name(self, name: str, field: str) -> None:
        """A name that cannot be sent is an error now, and not at each connection."""
        if name and not is_server_name(name):
            self._error(field, f"SNI names containing {name!r} cannot be sent")

    def check_auto_sni_san(self, message: Any, validation: ValidationOptions | None) -> None:
        if not message.sni and not message.auto_host_sni:
            self._error("auto_sni_san_validation", "needs sni or auto_host_sni")
        if validation is None or not (validation.trusted_ca or validation.system_roots):
            reason = "'auto_sni_san_validation' was configured without a validation context"
            self._error("auto_sni_san_validation", reason)


def _tell_expiry(tls: TlsContext, context: BuildContext, stat_prefix: str) -> None:
    """As Envoy: the gauge is of the latest certificate, but of that of a CA bundle that expires first."""
    found = {}
    if tls.certificates:
        found["cert"] = tls.certificates[-1].expires
    if tls.ca_certificates:
        found["ca_cert"] = min(certificate.expires for certificate in tls.ca_certificates)
    for kind, expires in found.items():
        scope = context.scope(f"{stat_prefix}certificate.unnamed_{kind}_{_UNNAMED}.", CertificateStats)
        context.when_in_force(functools.partial(setattr, scope, "expiration_unix_time_seconds", int(expires)))


def is_server_name(name: str) -> bool:
    """Whether `name` can be sent as SNI: no empty label, and none of more than 63 bytes."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except ValueError:  # of the idna codec too
        return False
    return True


def _version(params: Any, field: str, default: ssl.TLSVersion) -> ssl.TLSVersion:
    name = params.TlsProtocol.Name(getattr(params, field))
    return _VERSIONS.get(name, default)


def _source(message: Any) -> str:
    return message.filename or "<inline>"


def _session_id_context(message: Any, validation: ValidationOptions | None, server_names: tuple[str, ...]) -> bytes:
    """A session is resumed only where the same was demanded of it: under the same names and the same validation.

    Certificates of our own do not count, so that their renewal breaks no session.
    """
    digest = hashlib.sha256()
    validated = b"" if validation is None else b"\0".join((validation.trusted_ca, validation.crl))
    context = message.common_tls_context.validation_context
    for part in (
        repr(server_names).encode(),
        b"required" if bool_or(message, "require_client_certificate", False) else b"",
        context.SerializeToString(deterministic=True),
        validated,
    ):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _ticket_seed(context: BuildContext) -> bytes:
    """Its own for each listener, as Envoy's random keys are: no session of one is resumed on another."""
    if not context.ticket_seed:
        return b""
    return hashlib.sha256(context.ticket_seed + context.listener_stat_prefix.encode()).digest()


def _from_hexadecimal(text: str) -> bytes:
    try:
        return bytes.fromhex(text.replace(":", ""))
    except ValueError:
        return b""


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
