"""TLS contexts: built once from frozen options, then only asked for new connections.

There is one `ssl.SSLContext` for each certificate.
"""

from __future__ import annotations

import functools
import hashlib
import ssl
import warnings
from dataclasses import replace
from typing import Final

from meshproxy.tls import openssl
from meshproxy.tls.ciphers import PRIORITIZE_CHACHA, CipherError, to_openssl
from meshproxy.tls.inspector import ClientHello
from meshproxy.tls.material import (
    CertificateInfo,
    LoadedCertificate,
    Problem,
    TlsConfigError,
    at_once,
    has_revocations,
    load_authorities,
    load_certificate,
    load_staple,
    load_store,
    memory_file,
    read_authorities,
)
from meshproxy.tls.ocsp import OcspStaple
from meshproxy.tls.options import CertificateOptions, TlsOptions, ValidationOptions
from meshproxy.tls.selection import Selector
from meshproxy.tls.verify import Judge
from meshproxy.tls.x509 import Certificate

_LEGACY: Final = frozenset({ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1})
# Before TLS 1.3 its order is configured; this is BoringSSL's as a client where AES is in hardware. A server saves a
# tenth of the handshake by it: SHA-256 is in hardware too.
TLS13_CIPHERS: Final = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
# Of TLS 1.3, after a full handshake: a sidecar keeps one, and gets another with each connection. Each costs 20 µs.
_TICKETS: Final = 1
_TICKET_KEY_BYTES: Final = 80
_PARAMETERS: Final = "common_tls_context.tls_params"


class Identity:
    """A certificate of ours, and the context that presents it."""

    def __init__(self, ssl_context: ssl.SSLContext, certificate: Certificate | None, staple: OcspStaple | None) -> None:
        self.ssl_context = ssl_context
        self.certificate = certificate
        self.staple = staple


class TlsContext:
    """One side of TLS for a filter chain or a cluster. Raises TlsConfigError."""

    def __init__(self, options: TlsOptions) -> None:
        self.options = replace(options, certificates=(), ticket_keys=(), ticket_seed=b"")  # OpenSSL has them
        self.is_server: bool = options.is_server
        self.ca_certificates: list[CertificateInfo] = []
        self.certificates: list[CertificateInfo] = []
        self.judge: Judge | None = None
        self._offered: tuple[str, ...] = ()
        self._sessions: list[tuple[str, openssl.Session, bool]] = []  # the newest first
        problems: list[Problem] = []
        _check(options, problems)
        _check_certificates(options, problems)
        self._build_judge(problems)
        self.identities: list[Identity] = []
        if not problems:
            wanted: tuple[CertificateOptions | LoadedCertificate | None, ...] = options.certificates or (None,)
            for certificate in wanted:
                self._add_identity(options, certificate, problems)
        if problems:
            raise TlsConfigError(problems)
        self.selector: Selector | None = self._build_selector()

    @property
    def validations(self) -> list[ValidationOptions]:
        """What is demanded of peers."""
        return [] if self.options.validation is None else [self.options.validation]

    # -- connections

    def select(self, hello: ClientHello | None) -> Identity:
        """What a server presents to this client; `hello` is None for one that cannot be read."""
        if self.selector is None or hello is None:
            return self.identities[0]
        return self.identities[self.selector.select(hello)]

    def take_session(self, key: str) -> openssl.Session | None:
        """The latest session under `key`, for a client to resume. One of TLS 1.3 is used once (RFC 8446 appendix
        C.4), and none when the server's certificate has expired since, where times count."""
        for index, (held, session, single_use) in enumerate(self._sessions):
            if held == key:
                is_over = self.checks_times and session.is_of_expired_peer
                if single_use or is_over:
                    del self._sessions[index]
                return None if is_over else session
        return None

    @property
    def checks_times(self) -> bool:
        """Whether peers are let in only while their certificates are valid."""
        return self.judge is not None and self.judge.checks_times

    def keep_session(self, key: str, session: openssl.Session, *, single_use: bool) -> None:
        """Offer it to later connections; the oldest gives way beyond `max_session_keys`."""
        self._sessions.insert(0, (key, session, single_use))
        del self._sessions[self.options.max_sessions :]

    def offer(self, protocols: tuple[str, ...], instead: bool) -> None:
        """What the next connection of a client offers (ALPN) where no protocols are configured, or `instead` of those:
        OpenSSL copies it when a connection is made."""
        if not instead:
            protocols = self.options.application_protocols or protocols
        if protocols != self._offered:
            self._offered = protocols
            self.identities[0].ssl_context.set_alpn_protocols(list(protocols))

    # -- building

    def _build_judge(self, problems: list[Problem]) -> None:
        validation = self._load_trust_bundles(problems)
        if validation is None:
            return
        loaded = validation.authorities
        self.ca_certificates = read_authorities(validation, problems) if loaded is None else loaded.infos
        if not openssl.AVAILABLE:
            return
        self.judge = Judge(
            verifies_chain=validation.has_authorities,
            accepts_untrusted=validation.accept_untrusted,
            ignores_times=validation.ignore_times,
            san_matchers=validation.san_matchers,
            hashes=validation.hashes,
            public_key_hashes=validation.public_key_hashes,
            checks_key_usage=not self.is_server,
            trust_bundles=_Bundles(validation) if validation.trust_bundles else None,
        )

    def _load_trust_bundles(self, problems: list[Problem]) -> ValidationOptions | None:
        """They are always loaded apart from the context, which trusts nobody itself."""
        validation = self.options.validation
        if validation is None or not validation.trust_bundles or validation.authorities is not None:
            return validation
        if not openssl.AVAILABLE:
            return None  # there is a problem already
        try:
            validation = replace(validation, authorities=at_once(load_authorities(validation)))
        except TlsConfigError as error:
            problems += error.problems
            return None
        self.options = replace(self.options, validation=validation)
        return validation

    def _add_identity(
        self, options: TlsOptions, certificate: CertificateOptions | LoadedCertificate | None, problems: list[Problem]
    ) -> None:
        context = _new_ssl_context(options, problems)
        leaf: Certificate | None = None
        staple: OcspStaple | None = None
        info = None if certificate is None else _load_certificate(context, certificate, problems)
        if certificate is not None and info is not None:
            leaf = info.certificate
            if options.is_server:
                staple = _set_staple(context, certificate, info, problems)
            self.certificates.append(info)
        self._set_validation(context, problems)
        if options.is_server:
            _set_server_sessions(context, options, problems)
            if self.checks_times:
                openssl.ignore_tickets_of_expired_peers(context)
        self.identities.append(Identity(context, leaf, staple))

    def _set_validation(self, context: ssl.SSLContext, problems: list[Problem]) -> None:
        options, validation = self.options, self.options.validation
        if validation is not None:
            _load_authorities(context, validation, options.is_server, problems)
            context.verify_mode = ssl.CERT_OPTIONAL if options.is_server else ssl.CERT_REQUIRED
        if options.is_server and (options.require_client_certificate or (validation and validation.trust_bundles)):
            context.verify_mode = ssl.CERT_REQUIRED  # SPIFFE's validator demands a certificate in any case, as Envoy's
        if context.verify_mode == ssl.CERT_NONE or not openssl.AVAILABLE:
            return
        if self.judge is None:  # a certificate is demanded, and anything that is one is good
            self.judge = Judge(
                verifies_chain=False,
                accepts_untrusted=False,
                ignores_times=False,
                san_matchers=(),
                hashes=frozenset(),
                public_key_hashes=frozenset(),
                checks_key_usage=False,
                trust_bundles=None,
            )
        openssl.set_verifier(context, self.judge)

    def _build_selector(self) -> Selector | None:
        options = self.options
        if not options.is_server or len(self.identities) < 2:
            return None
        leaves = [identity.certificate for identity in self.identities if identity.certificate is not None]
        tls13 = options.max_version == ssl.TLSVersion.TLSv1_3
        return Selector(leaves, full_scan=options.full_scan_on_sni_mismatch, tls13=tls13)


def check_parameters(options: TlsOptions) -> None:
    """That a context can be made of these, once there are certificates. Raises TlsConfigError."""
    problems: list[Problem] = []
    _check(options, problems)
    problems += _parameter_problems(
        TlsOptions(
            is_server=options.is_server,
            min_version=options.min_version,
            max_version=options.max_version,
            ciphers=options.ciphers,
            curves=options.curves,
            signature_algorithms=options.signature_algorithms,
            application_protocols=options.application_protocols,
            keylog_path=options.keylog_path,
        )
    )
    if problems:
        raise TlsConfigError(problems)


@functools.lru_cache(maxsize=64)
def _parameter_problems(options: TlsOptions) -> tuple[Problem, ...]:
    """A thousand clusters have the same few."""
    problems: list[Problem] = []
    _new_ssl_context(options, problems)
    return tuple(problems)


def _check(options: TlsOptions, problems: list[Problem]) -> None:
    """What can be said without OpenSSL."""
    if options.min_version > options.max_version:
        problems.append((f"{_PARAMETERS}.tls_minimum_protocol_version", "greater than the maximum"))
    if len(b"".join(bytes([len(each)]) + each.encode() for each in options.application_protocols)) > 65535:
        problems.append(("common_tls_context.alpn_protocols", "longer than 65535 bytes"))
    if not openssl.AVAILABLE:
        problems.extend((field, "is not possible with this build of Python") for field in _unavailable(options))


def _check_certificates(options: TlsOptions, problems: list[Problem]) -> None:
    if options.is_server and not options.certificates:
        problems.append(("common_tls_context", "No TLS certificates found for server context"))
    if not options.is_server and len(options.certificates) > 1:
        reason = "Multiple TLS certificates are not supported for client contexts"
        problems.append(("common_tls_context.tls_certificates", reason))


def _unavailable(options: TlsOptions) -> list[str]:
    """The fields that only ctypes can honour, and that are set."""
    validation = options.validation
    found: list[str] = []
    if validation is not None:
        asked = {
            "match_typed_subject_alt_names": bool(validation.san_matchers),
            "verify_certificate_hash": bool(validation.hashes),
            "verify_certificate_spki": bool(validation.public_key_hashes),
            "trust_chain_verification": validation.accept_untrusted,
            "allow_expired_certificate": validation.ignore_times,
            "max_verify_depth": validation.max_verify_depth is not None,
            "custom_validator_config": bool(validation.trust_bundles),
            "trusted_ca": options.is_server,  # without a session id context of its own it could be bypassed
        }
        found = [f"{validation.field}.{name}" for name, is_set in asked.items() if is_set]
    if options.curves != TlsOptions(is_server=options.is_server).curves:
        found.append(f"{_PARAMETERS}.ecdh_curves")
    if options.signature_algorithms:
        found.append(f"{_PARAMETERS}.signature_algorithms")
    if options.ticket_keys:
        found.append("session_ticket_keys")
    if options.require_client_certificate:
        found.append("require_client_certificate")
    if options.expects_server_name:
        found.append("auto_sni_san_validation")
    return found


def _new_ssl_context(options: TlsOptions, problems: list[Problem]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if options.is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.options |= ssl.OP_NO_COMPRESSION
    if not options.allow_renegotiation:
        context.options |= ssl.OP_NO_RENEGOTIATION
    if options.prefer_client_ciphers:
        context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    elif options.is_server:
        context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    _set_parameters(context, options, problems)
    if options.application_protocols:
        context.set_alpn_protocols(list(options.application_protocols))
    if options.keylog_path:
        try:
            context.keylog_filename = options.keylog_path
        except OSError as error:
            problems.append(("common_tls_context.key_log.path", f"cannot be written: {error.strerror}"))
    return context


def _set_parameters(context: ssl.SSLContext, options: TlsOptions, problems: list[Problem]) -> None:
    """Versions, ciphers, curves and signature algorithms."""
    # OpenSSL's security level 1 refuses what TLS 1.0 and 1.1 sign with, SHA-1.
    level = 0 if options.min_version in _LEGACY else 1
    try:
        names, prioritize_chacha = to_openssl(options.ciphers)
        context.set_ciphers(f"{names}:@SECLEVEL={level}")
        if prioritize_chacha and options.is_server:
            context.options |= PRIORITIZE_CHACHA
    except (CipherError, ssl.SSLError) as error:
        problems.append((f"{_PARAMETERS}.cipher_suites", f"Failed to initialize cipher suites: {error}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # who configures TLS 1.0 knows
        context.minimum_version = options.min_version
        context.maximum_version = options.max_version
    if not openssl.AVAILABLE:
        return
    openssl.send_chain_as_given(context)
    openssl.set_tls13_ciphers(context, TLS13_CIPHERS)
    try:
        openssl.set_curves(context, ":".join(options.curves))
    except ssl.SSLError:
        problems.append((f"{_PARAMETERS}.ecdh_curves", f"Failed to initialize ECDH curves {':'.join(options.curves)}"))
    if options.signature_algorithms:
        names = ":".join(options.signature_algorithms)
        try:
            openssl.set_signature_algorithms(context, names)
        except ssl.SSLError:
            field = f"{_PARAMETERS}.signature_algorithms"
            problems.append((field, f"Failed to initialize TLS signature algorithms {names}"))


def _load_certificate(
    context: ssl.SSLContext, certificate: CertificateOptions | LoadedCertificate, problems: list[Problem]
) -> CertificateInfo | None:
    if isinstance(certificate, CertificateOptions):
        return load_certificate(context, certificate, problems)
    openssl.share_certificate(certificate.holder, context)
    return certificate.info


def _set_staple(
    context: ssl.SSLContext,
    certificate: CertificateOptions | LoadedCertificate,
    info: CertificateInfo,
    problems: list[Problem],
) -> OcspStaple | None:
    """The OCSP response that clients get who ask."""
    has_one = info.staple is not None
    if isinstance(certificate, CertificateOptions) and certificate.ocsp_staple:
        has_one = True
        info.staple = load_staple(certificate, info.certificate, problems)
    if info.staple is not None:
        openssl.set_staple(context, info.staple)
    elif info.certificate.must_staple and not has_one:
        reason = "OCSP response is required for must-staple certificate"
        problems.append((f"{certificate.field}.ocsp_staple", reason))
    return info.staple


def _load_authorities(
    context: ssl.SSLContext, validation: ValidationOptions, is_server: bool, problems: list[Problem]
) -> None:
    """Trusted certificates and revocation lists."""
    if validation.authorities is not None:
        openssl.share_authorities(validation.authorities.holder, context)
    else:
        load_store(context, validation, problems)
        if validation.trusted_ca and is_server and openssl.AVAILABLE and not problems:
            with memory_file(validation.trusted_ca) as path:
                openssl.set_client_ca_list(context, path)
    context.verify_flags |= ssl.VERIFY_X509_TRUSTED_FIRST
    if not validation.trust_bundles:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate certificate may be what is trusted
        if validation.crl or has_revocations(validation.trusted_ca):
            context.verify_flags |= _revocation_flags(validation)
    if validation.max_verify_depth is not None and openssl.AVAILABLE:
        openssl.set_verify_depth(context, validation.max_verify_depth)


def _revocation_flags(validation: ValidationOptions) -> ssl.VerifyFlags:
    return ssl.VERIFY_CRL_CHECK_LEAF if validation.only_leaf_crl else ssl.VERIFY_CRL_CHECK_CHAIN


class _Bundles:
    """Those of trust domains, loaded, for a Judge."""

    def __init__(self, validation: ValidationOptions) -> None:
        assert validation.authorities is not None
        self._by_domain = validation.authorities.by_domain
        self._issuers = validation.authorities.revocation_issuers
        self._revocation_flags = int(_revocation_flags(validation))

    def find(self, domain: str, issuer: bytes) -> tuple[ssl.SSLContext, int] | None:
        """What holds whom the domain's members are verified against, and the flags to do it with, for a certificate
        that `issuer` has signed."""
        found = self._by_domain.get(domain)
        if found is None:
            return None
        if found.has_revocations:
            return found.holder, self._revocation_flags
        return found.holder, int(ssl.VERIFY_CRL_CHECK_LEAF) if issuer in self._issuers else 0


def _set_server_sessions(context: ssl.SSLContext, options: TlsOptions, problems: list[Problem]) -> None:
    context.num_tickets = _TICKETS
    if not options.tickets:
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0  # TLS 1.3 resumes by tickets only, in BoringSSL
    if not openssl.AVAILABLE:
        return
    openssl.accept_server_names(context)
    if options.session_id_context:
        openssl.set_session_id_context(context, options.session_id_context)
    openssl.set_session_timeout(context, options.session_timeout_s)
    if not options.session_cache:
        openssl.disable_session_cache(context)
    keys = options.ticket_keys
    if not keys and options.ticket_seed:
        keys = (_own_ticket_key(options),)
    _set_ticket_keys(context, keys, problems)


def _own_ticket_key(options: TlsOptions) -> bytes:
    """Made of the seed; another one for each session id context, so that no other context can read its tickets."""
    return hashlib.shake_256(options.ticket_seed + options.session_id_context).digest(_TICKET_KEY_BYTES)


def _set_ticket_keys(context: ssl.SSLContext, keys: tuple[bytes, ...], problems: list[Problem]) -> None:
    wrong = [(index, len(key)) for index, key in enumerate(keys) if len(key) != _TICKET_KEY_BYTES]
    for index, size in wrong:
        field = f"session_ticket_keys.keys[{index}]"
        problems.append((field, f"incorrect TLS session ticket key length; {size} bytes instead of 80"))
    if len(keys) > 1 and not openssl.SEVERAL_TICKET_KEYS:
        problems.append(("session_ticket_keys.keys[1]", "more than one key is not possible with this build of Python"))
    elif keys and not wrong:
        openssl.set_ticket_keys(context, keys)
