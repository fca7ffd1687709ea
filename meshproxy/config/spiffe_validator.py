"""`envoy.tls.cert_validator.spiffe`: each trust domain has authorities of its own, by which its members are judged, and
nobody else's (https://github.com/spiffe/spiffe, X509-SVID.md and SPIFFE_Federation.md)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import Any, Final, Protocol

from envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import SPIFFECertValidatorConfig

from meshproxy.config.errors import item
from meshproxy.tls import x509
from meshproxy.tls.options import TrustBundle, ValidationOptions

NO_BUNDLE: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_X509: Final = "x509-svid"  # what a key of a bundle is for; others are for tokens


class Builder(Protocol):
    """A MaterialBuilder."""

    def error(self, field: str, reason: str) -> None: ...

    def unpack(self, config: Any, field: str) -> Any: ...

    def load(self, message: Any, field: str) -> bytes: ...


def build_trust_bundles(message: Any, field: str, builder: Builder) -> tuple[TrustBundle, ...]:
    """Those of the custom validator of a validation context; none where it has none, or, with errors, a bad one."""
    if not message.HasField("custom_validator_config"):
        return ()
    at = f"{field}.typed_config"
    config = builder.unpack(message.custom_validator_config.typed_config, at)
    if config is None:
        return ()
    if not isinstance(config, SPIFFECertValidatorConfig):
        builder.error(at, f"{config.DESCRIPTOR.full_name} is not supported as a validator of certificates")
        return ()
    if config.HasField("trust_bundles"):  # goes before the other, as its documentation says
        return tuple(
            _of_json(builder.load(config.trust_bundles, f"{at}.trust_bundles"), f"{at}.trust_bundles", builder)
        )
    bundles = tuple(_of_domains(config, at, builder))
    if not bundles:
        builder.error(f"{at}.trust_domains", "no trust domain, so that nobody is trusted")
    return bundles


def spiffe_conflict(merged: list[ValidationOptions]) -> str:
    """What stands beside trust bundles that they would leave unheard; "" for nothing. (Envoy does not tell.)"""
    if any(each.hashes or each.public_key_hashes for each in merged):
        return "verify_certificate_hash and verify_certificate_spki are not looked at with trust bundles"
    if any(each.accept_untrusted for each in merged):
        return "trust_chain_verification is always VERIFY_TRUST_CHAIN with trust bundles"
    matchers = [matcher for each in merged for matcher in each.san_matchers]
    if matchers and not any(matcher.kind == x509.URI for matcher in matchers):
        return "only URI is looked for in match_typed_subject_alt_names with trust bundles"
    return ""


def _of_domains(config: Any, field: str, builder: Builder) -> Iterator[TrustBundle]:
    seen: set[str] = set()
    for index, domain in enumerate(config.trust_domains):
        at = item(field, "trust_domains", index)
        if not domain.name:
            builder.error(f"{at}.name", "is empty")
        if domain.name in seen:
            builder.error(f"{at}.name", f"Multiple trust bundles are given for one trust domain for {domain.name}")
        seen.add(domain.name)
        pem = builder.load(domain.trust_bundle, f"{at}.trust_bundle")
        source = f"{domain.name}: {domain.trust_bundle.filename or '<inline>'}"
        if pem:
            yield TrustBundle(field=f"{at}.trust_bundle", domain=domain.name, trusted_ca=pem, source=source)


def _of_json(text: bytes, field: str, builder: Builder) -> Iterator[TrustBundle]:
    """Of a map of SPIFFE bundles by their trust domains: each is a JWK set (SPIFFE_Trust_Domain_and_Bundle.md)."""
    if not text:
        return
    try:
        domains = json.loads(text)["trust_domains"]
        found = {str(name): b"".join(authorities_of(bundle)) for name, bundle in domains.items()}
    except NO_BUNDLE as error:
        kind = "" if isinstance(error, _BadBundle) else "no map of SPIFFE bundles: "
        builder.error(field, f"{kind}{error if isinstance(error, _BadBundle) else type(error).__name__}")
        return
    if not found:
        builder.error(field, "no trust domain, so that nobody is trusted")
    for name, pem in found.items():
        yield TrustBundle(field=field, domain=name, trusted_ca=pem, source=name)


class _BadBundle(ValueError):
    """With a reason that may be shown."""


def authorities_of(bundle: Any) -> Iterator[bytes]:
    """PEM of each authority of a SPIFFE bundle, which JSON was read to. Raises NO_BUNDLE for what is none."""
    is_empty = True
    for key in bundle["keys"]:
        if key.get("use") != _X509:
            continue
        for text in key["x5c"]:
            is_empty = False
            yield _pem(text)
    if is_empty:
        raise _BadBundle("a bundle without an authority that signs certificates")


def _pem(text: Any) -> bytes:
    try:
        return x509.Certificate(base64.b64decode(text, validate=True)).pem().encode()
    except (binascii.Error, ValueError, TypeError):
        raise _BadBundle("x5c: no certificate in base64") from None
