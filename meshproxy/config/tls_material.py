"""Certificates, validation contexts and ticket keys: from protobuf to what a TLS context is made of.

They stand in the context itself, or in a Secret: the same message, the same rules.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.spiffe_validator import build_trust_bundles, spiffe_conflict
from meshproxy.config.string_matcher import build_string_matcher
from meshproxy.config.typed_struct import unpack_any
from meshproxy.tls import x509
from meshproxy.tls.options import CertificateOptions, ValidationOptions
from meshproxy.tls.verify import SanMatcher

_KINDS: Final = {"EMAIL": x509.EMAIL, "DNS": x509.DNS, "URI": x509.URI, "IP_ADDRESS": x509.IP_ADDRESS}
_SHA256_BYTES: Final = 32
_TICKET_KEY_BYTES: Final = 80
NO_CA: Final = "SAN-based verification of peer certificates without trusted CA is insecure and not allowed"


class MaterialBuilder:
    """Of one message at `path`, below which all fields are named. `load` gives the bytes of a DataSource, or None with
    an error."""

    def __init__(self, path: str, errors: ConfigErrors, load: Callable[[Any, str], bytes | None]) -> None:
        self._path = path
        self._errors = errors
        self._load = load
        self._errors_before = len(errors)

    @property
    def failed(self) -> bool:
        return len(self._errors) > self._errors_before

    def error(self, field: str, reason: str) -> None:
        self._errors.add(child(self._path, field), reason)

    def unpack(self, config: Any, field: str) -> Any:
        """The message of an Any; None, with an error, where there is none that we know."""
        return unpack_any(config, child(self._path, field), self._errors)

    def load(self, message: Any, field: str) -> bytes:
        """The bytes of a DataSource; nothing, with an error, where there are none. Its file is watched: links on the
        way to it are followed, so that a `watched_directory` says nothing more."""
        data = self._load(message, child(self._path, field))
        if data == b"":
            self.error(field, "is empty")
        return data or b""

    # -- TlsCertificate

    def certificate(self, message: Any, field: str) -> CertificateOptions:
        for name in ("certificate_chain", "private_key"):
            if not message.HasField(name):
                self.error(f"{field}.{name}", "No certificate chain, or no private key, for a TLS certificate")
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

    # -- TlsSessionTicketKeys

    def ticket_keys(self, message: Any, field: str) -> tuple[bytes, ...]:
        """The first encrypts, all decrypt."""
        found: list[bytes] = []
        for index, each in enumerate(message.keys):
            key = self.load(each, item(field, "keys", index))
            if key and len(key) != _TICKET_KEY_BYTES:
                reason = f"incorrect TLS session ticket key length; {len(key)} bytes instead of {_TICKET_KEY_BYTES}"
                self.error(item(field, "keys", index), reason)
            found.append(key)
        return tuple(found)

    # -- CertificateValidationContext

    def validation(self, message: Any, field: str) -> ValidationOptions:
        """What is demanded of a peer's certificate. `check_names` is still to be asked."""
        trusted_ca = self.load(message.trusted_ca, f"{field}.trusted_ca") if message.HasField("trusted_ca") else b""
        crl = self.load(message.crl, f"{field}.crl") if message.HasField("crl") else b""
        bundles = build_trust_bundles(message, f"{field}.custom_validator_config", self)
        held = (message.SerializeToString(deterministic=True), trusted_ca, crl)
        validation = ValidationOptions(
            field=field,
            digest=digest_of((*held, *(part for each in bundles for part in (each.domain.encode(), each.trusted_ca)))),
            trusted_ca=trusted_ca,
            source=_source(message.trusted_ca),
            system_roots=message.HasField("system_root_certs"),
            trust_bundles=bundles,
            crl=crl,
            only_leaf_crl=message.only_verify_leaf_cert_crl,
            san_matchers=self._san_matchers(message, field),
            hashes=self._hashes(message, field),
            public_key_hashes=self._public_key_hashes(message, field),
            ignore_times=message.allow_expired_certificate,
            accept_untrusted=message.trust_chain_verification == message.ACCEPT_UNTRUSTED,
            max_verify_depth=message.max_verify_depth.value if message.HasField("max_verify_depth") else None,
        )
        conflict = spiffe_conflict([validation]) if bundles else ""
        if conflict:
            self.error(f"{field}.custom_validator_config", conflict)
        return validation

    def check_names(self, message: Any, field: str) -> None:
        """Names, and revocations, mean nothing where nobody is trusted."""
        if any(message.HasField(name) for name in ("trusted_ca", "system_root_certs", "custom_validator_config")):
            return
        for name in ("match_typed_subject_alt_names", "match_subject_alt_names"):
            if getattr(message, name):
                self.error(f"{field}.{name}", NO_CA)
        if message.HasField("crl"):
            self.error(f"{field}.crl", "a revocation list says nothing without a trusted CA")

    def _san_matchers(self, message: Any, field: str) -> tuple[SanMatcher, ...]:
        found: list[SanMatcher] = []
        for index, each in enumerate(message.match_typed_subject_alt_names):
            at = item(field, "match_typed_subject_alt_names", index)
            kind = _KINDS.get(each.SanType.Name(each.san_type))
            if kind is None:
                self.error(f"{at}.san_type", "only EMAIL, DNS, URI and IP_ADDRESS are supported")
            else:
                self._add_san_matchers(found, [kind], each.matcher, f"{at}.matcher")
        for index, each in enumerate(message.match_subject_alt_names):  # deprecated: a name of any kind
            self._add_san_matchers(found, _KINDS.values(), each, item(field, "match_subject_alt_names", index))
        return tuple(found)

    def _add_san_matchers(self, found: list[SanMatcher], kinds: Iterable[int], message: Any, field: str) -> None:
        matcher = build_string_matcher(message, child(self._path, field), self._errors)
        if matcher is not None:
            found += [SanMatcher(kind, matcher, message.exact if kind == x509.DNS else "") for kind in kinds]

    def _hashes(self, message: Any, field: str) -> frozenset[bytes]:
        """SHA-256 in hexadecimal, with or without colons."""
        found: list[bytes] = []
        for index, text in enumerate(message.verify_certificate_hash):
            digest = _from_hexadecimal(text)
            if len(digest) != _SHA256_BYTES:
                self.error(item(field, "verify_certificate_hash", index), f"Invalid hex-encoded SHA-256 {text}")
            found.append(digest)
        return frozenset(found)

    def _public_key_hashes(self, message: Any, field: str) -> frozenset[bytes]:
        """SHA-256 in base64."""
        found: list[bytes] = []
        for index, text in enumerate(message.verify_certificate_spki):
            digest = _from_base64(text)
            if len(digest) != _SHA256_BYTES:
                self.error(item(field, "verify_certificate_spki", index), f"Invalid base64-encoded SHA-256 {text}")
            found.append(digest)
        return frozenset(found)


def digest_of(parts: Iterable[bytes]) -> bytes:
    """Tells apart what differs in any part."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _source(message: Any) -> str:
    return message.filename or "<inline>"


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
