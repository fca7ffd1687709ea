"""Certificates, keys and authorities, as they are handed to OpenSSL: read, checked, and loaded.

All that is loaded goes through a memfd: keys never touch a file.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, TypeVar

from meshproxy.errors import MeshProxyError
from meshproxy.tls import openssl
from meshproxy.tls.ocsp import OcspStaple
from meshproxy.tls.options import CertificateOptions, TrustBundle, ValidationOptions
from meshproxy.tls.selection import CURVES
from meshproxy.tls.validity import is_expired, none_is_timely
from meshproxy.tls.x509 import (
    CRL_BEGIN,
    PEM_BEGIN,
    PEM_END,
    Certificate,
    DerError,
    certificates_of_pem,
    issuers_of_revocations,
)

Problem = tuple[str, str]  # path of a field below the context, and what is wrong with it

T = TypeVar("T")

_log: Final = logging.getLogger("meshproxy.tls")

_MIN_RSA_BITS: Final = 2048
_CERTIFICATES_IN_A_STEP: Final = 4
_NO_REVOCATIONS: Final = "Failed to load CRL"


class TlsConfigError(MeshProxyError):
    """A context that cannot be built; `problems` names all that is wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{field}: {reason}" for field, reason in problems))
        self.problems = problems


class CertificateInfo:
    """One certificate of a context, for /certs."""

    def __init__(self, source: str, certificate: Certificate) -> None:
        self.source = source
        self.secret_name: str = ""  # of the secret that it came in
        self.trust_domain: str = ""  # SPIFFE's, of one in its bundle
        self.certificate = certificate
        self.expires: float = certificate.not_after.timestamp()  # Unix time
        self.staple: OcspStaple | None = None


class LoadedCertificate:
    """A certificate that many contexts present: OpenSSL has it, with its chain and its key, and nobody keeps their
    bytes. Raises TlsConfigError. Needs `openssl.AVAILABLE`."""

    def __init__(self, options: CertificateOptions, secret_name: str = "") -> None:
        problems: list[Problem] = []
        self.holder = _new_holder()
        info = load_certificate(self.holder, options, problems)
        if info is not None and options.ocsp_staple:
            info.staple = load_staple(options, info.certificate, problems)
        if info is None or problems:
            raise TlsConfigError(problems)
        info.secret_name = secret_name
        self.field = options.field
        self.info = info


class LoadedAuthorities:
    """Whom many contexts trust, and the revocation lists: one store for all of them. See `load_authorities`.

    Of trust bundles there is one for each domain, in `by_domain`; what has these trusts nobody itself.
    """

    def __init__(self) -> None:
        self.infos: list[CertificateInfo] = []
        self.holder = _new_holder()
        self.has_revocations: bool = False
        self.by_domain: dict[str, LoadedAuthorities] = {}
        self.revocation_issuers: frozenset[bytes] = frozenset()  # in DER, of the lists beside the bundles


def load_authorities(
    options: ValidationOptions, secret_name: str = "", now: float | None = None
) -> Generator[None, None, LoadedAuthorities]:
    """In steps of about a millisecond: there may be hundreds. Raises TlsConfigError. Needs `openssl.AVAILABLE`.

    With `now` (Unix time), those that have expired are left out, with a warning, and one of the others must be valid.
    """
    if options.trust_bundles:
        return (yield from _load_domains(options, secret_name, now))
    if options.ignore_times:
        now = None
    loaded = LoadedAuthorities()
    problems: list[Problem] = []
    for part in _parts(options.trusted_ca):
        _add_authorities(loaded, part, options, problems, now)
        if problems:
            break
        yield
    for info in loaded.infos:
        info.secret_name = secret_name
    if not problems and options.trusted_ca and now is not None:
        _check_times(loaded, options, now, problems)
    if not problems:
        load_store(loaded.holder, replace(options, trusted_ca=b""), problems)
    if problems:
        raise TlsConfigError(problems)
    loaded.has_revocations = bool(options.crl) or has_revocations(options.trusted_ca)
    return loaded


def _load_domains(
    options: ValidationOptions, secret_name: str, now: float | None
) -> Generator[None, None, LoadedAuthorities]:
    """A store for each domain, apart from the others."""
    whole = LoadedAuthorities()
    whole.revocation_issuers = _issuers_of_revocations(options)
    for bundle in options.trust_bundles:
        own = replace(options, trust_bundles=(), trusted_ca=bundle.trusted_ca, system_roots=False, source=bundle.source)
        try:
            loaded = yield from load_authorities(own, secret_name, now)
        except TlsConfigError as error:
            raise TlsConfigError([_of_bundle(bundle, problem) for problem in error.problems]) from None
        # A list is about those whom its issuer has signed: members of other domains cannot be looked up in it.
        is_about = not whole.revocation_issuers.isdisjoint(info.certificate.raw_subject for info in loaded.infos)
        loaded.has_revocations = is_about or has_revocations(bundle.trusted_ca)
        with memory_file(bundle.trusted_ca) as path:
            openssl.add_client_ca_names(whole.holder, path)
        for info in loaded.infos:
            info.trust_domain = bundle.domain
        whole.infos += loaded.infos
        whole.by_domain[bundle.domain] = loaded
        yield
    return whole


def _issuers_of_revocations(options: ValidationOptions) -> frozenset[bytes]:
    try:
        return frozenset(issuers_of_revocations(options.crl))
    except DerError:
        raise TlsConfigError([(f"{options.field}.crl", _NO_REVOCATIONS)]) from None


def _of_bundle(bundle: TrustBundle, problem: Problem) -> Problem:
    field, reason = problem
    return problem if field.endswith(".crl") else (bundle.field, f"{reason} (of {bundle.domain})")


def _check_times(loaded: LoadedAuthorities, options: ValidationOptions, now: float, problems: list[Problem]) -> None:
    """Somebody must be left who is trusted now."""
    reason = none_is_timely((info.certificate for info in loaded.infos), now)
    if not loaded.infos:
        reason = "all authorities have expired"
    if reason:
        problems.append((f"{options.field}.trusted_ca", reason))


def at_once(steps: Generator[None, None, T]) -> T:
    """What comes of all the steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


def _parts(pem: bytes) -> Iterator[bytes]:
    """A few certificates each."""
    begin = 0
    while begin < len(pem):
        end = begin
        for _ in range(_CERTIFICATES_IN_A_STEP):
            found = pem.find(PEM_END, end)
            end = len(pem) if found < 0 else found + len(PEM_END)
        rest = pem[end:]
        if PEM_END not in rest:
            end = len(pem)
        yield pem[begin:end]
        begin = end


def _add_authorities(
    loaded: LoadedAuthorities, pem: bytes, options: ValidationOptions, problems: list[Problem], now: float | None
) -> None:
    found = read_authorities(replace(options, trusted_ca=pem), problems)
    if problems:
        return
    expired = [info for info in found if now is not None and is_expired(info.certificate, now)]
    if expired:
        pem = _without(pem, [found.index(info) for info in expired])
        found = [info for info in found if info not in expired]
        for info in expired:
            _log.warning("an authority of %s is left out: it has expired (%s)", info.source, info.certificate.subject)
    loaded.infos += found
    if not found and not has_revocations(pem):
        return
    with memory_file(pem) as path:
        try:
            loaded.holder.load_verify_locations(cafile=path)
            openssl.add_client_ca_names(loaded.holder, path)
        except ssl.SSLError:
            problems.append(_no_authorities(options))


def _without(pem: bytes, indices: list[int]) -> bytes:
    """Without the certificates at these places; the rest stays as it is."""
    kept: list[bytes] = []
    begin = 0
    for index in range(pem.count(PEM_BEGIN)):
        first = pem.index(PEM_BEGIN, begin)
        end = pem.index(PEM_END, first) + len(PEM_END)
        kept.append(pem[begin : first if index in indices else end])
        begin = end
    return b"".join([*kept, pem[begin:]])


def _new_holder() -> ssl.SSLContext:
    """A context that only holds what others share. Security level 1 is that of contexts in use."""
    holder = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    holder.set_ciphers("ALL:@SECLEVEL=1")
    return holder


# -- our own certificates


def load_certificate(
    context: ssl.SSLContext, certificate: CertificateOptions, problems: list[Problem]
) -> CertificateInfo | None:
    """Chain and key into the context; the first certificate, or None where something is no good."""
    chain_field = f"{certificate.field}.certificate_chain"
    failed = f"Failed to load certificate chain from {certificate.source}"
    try:
        found = [CertificateInfo(certificate.source, each) for each in certificates_of_pem(certificate.chain)[:1]]
        weakness = _weakness(found[0].certificate) if found else "no certificate"
    except (DerError, ValueError):
        found, weakness = [], "malformed"
    if weakness:
        problems.append((chain_field, f"{failed}, {weakness}"))
        return None
    password = certificate.password or b""
    try:
        with memory_file(certificate.chain) as chain_path, memory_file(certificate.key) as key_path:
            context.load_cert_chain(chain_path, key_path, lambda: password)
    except (ssl.SSLError, ValueError) as error:
        cause = getattr(error, "reason", None) or str(error)
        reason = f"Failed to load private key from {certificate.source}, Cause: {cause}"
        problems.append((f"{certificate.field}.private_key", reason))
        return None
    return found[0]


def load_staple(certificate: CertificateOptions, leaf: Certificate, problems: list[Problem]) -> OcspStaple | None:
    """The OCSP response that goes with it, where there is one."""
    field = f"{certificate.field}.ocsp_staple"
    try:
        staple = OcspStaple(certificate.ocsp_staple, leaf)
    except DerError as error:
        problems.append((field, str(error)))
        return None
    if not openssl.AVAILABLE:
        problems.append((field, "is not possible with this build of Python"))
        return None
    return staple


def _weakness(certificate: Certificate) -> str:
    """What Envoy refuses in a certificate of its own."""
    if certificate.key_type == "RSA":
        weak = certificate.rsa_bits < _MIN_RSA_BITS
        return "only RSA certificates with 2048-bit or larger keys are supported" if weak else ""
    if certificate.key_type == "ECDSA":
        known = certificate.ec_curve in CURVES
        return "" if known else "only P-256, P-384 or P-521 ECDSA certificates are supported"
    return "only RSA and ECDSA certificates are supported"


# -- those whom we trust


def read_authorities(validation: ValidationOptions, problems: list[Problem]) -> list[CertificateInfo]:
    """The certificates of `trusted_ca`, to be told about."""
    try:
        found = [CertificateInfo(validation.source, each) for each in certificates_of_pem(validation.trusted_ca)]
    except (DerError, ValueError):
        found = []
    if validation.trusted_ca and not found:
        problems.append(_no_authorities(validation))
    return found


def load_store(context: ssl.SSLContext, validation: ValidationOptions, problems: list[Problem]) -> None:
    """Trusted certificates and revocation lists into the context's store."""
    if validation.trusted_ca:
        with memory_file(validation.trusted_ca) as path:
            try:
                context.load_verify_locations(cafile=path)
            except ssl.SSLError:
                problems.append(_no_authorities(validation))
    if validation.system_roots:
        context.set_default_verify_paths()
    if validation.crl:
        _load_crl(context, validation, problems)


def has_revocations(pem: bytes) -> bool:
    """Whether there are revocation lists among certificates: they count, as in Envoy."""
    return CRL_BEGIN in pem


def _load_crl(context: ssl.SSLContext, validation: ValidationOptions, problems: list[Problem]) -> None:
    before = context.cert_store_stats()["crl"]
    with memory_file(validation.crl) as path:
        try:
            context.load_verify_locations(cafile=path)
        except ssl.SSLError:
            before = -1
    if before < 0 or context.cert_store_stats()["crl"] == before:
        problems.append((f"{validation.field}.crl", _NO_REVOCATIONS))


def _no_authorities(validation: ValidationOptions) -> Problem:
    return f"{validation.field}.trusted_ca", f"Failed to load trusted CA certificates from {validation.source}"


@contextmanager
def memory_file(data: bytes) -> Iterator[str]:
    """A path under which `data` can be read for as long as this lasts, and that is in no file system."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
