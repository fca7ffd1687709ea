"""Judging a peer's certificate: chain, subject alternative names and pins, in Envoy's order."""

from __future__ import annotations

import ssl
from typing import Final, Protocol

from meshproxy.tls import openssl, x509
from meshproxy.tls.spiffe import trust_domain_of

# What a failed handshake counts under.
NO_FAILURE: Final = 0
CONNECTION_ERROR: Final = 1
NO_CERTIFICATE: Final = 2
VERIFY_ERROR: Final = 3
VERIFY_SAN: Final = 4
VERIFY_HASH: Final = 5

# X509_V_ERR_UNABLE_TO_GET_CRL … CRL_PATH_VALIDATION_ERROR: what is wrong with, or says, a revocation list
_REVOCATION_ERRORS: Final = frozenset({3, 5, 8, 11, 12, 15, 16, 23, 33, 35, 36, 41, 44, 54})

# Bits of the key usage extension (RFC 5280 section 4.2.1.3).
_KEY_CERT_SIGN: Final = 5
_CRL_SIGN: Final = 6

_MAX_JUDGED: Final = 256


class TextMatcher(Protocol):
    """A compiled StringMatcher."""

    def match(self, value: bytes) -> bool: ...


class TrustBundles(Protocol):
    """SPIFFE's trust domains, each with those who sign its members."""

    def find(self, domain: str, issuer: bytes) -> tuple[ssl.SSLContext, int] | None:
        """What holds them, and flags to verify with what `issuer` (a name in DER) has signed; None for a domain that is
        not trusted."""


class SanMatcher:
    """One of `match_typed_subject_alt_names`: the kind of name, and what it must be like.

    `exact_dns` is the text of an exact matcher on DNS names, for which a wildcard in the certificate stands.
    """

    __slots__ = ("exact_dns", "kind", "matcher")

    def __init__(self, kind: int, matcher: TextMatcher | None, exact_dns: str = "") -> None:
        self.kind = kind
        self.matcher = matcher
        self.exact_dns = exact_dns

    def match(self, kind: int, text: str) -> bool:
        if kind != self.kind:
            return False
        if self.exact_dns:
            return dns_name_matches(self.exact_dns, text)
        return self.matcher is not None and self.matcher.match(text.encode("latin-1", "replace"))


def dns_name_matches(name: str, pattern: str) -> bool:
    """Whether a certificate's `pattern` stands for `name`: one `*` may be in its first label (RFC 6125 section 6.4.3),
    and stands for one label or a part of it, but not of an internationalised one."""
    name, pattern = name.lower(), pattern.lower()
    if name == pattern:
        return True
    label, dot, rest = pattern.partition(".")
    own_label, own_dot, own_rest = name.partition(".")
    if not dot or not own_dot or rest != own_rest or label.count("*") != 1 or not own_label:
        return False
    if label.startswith("xn--"):
        return False
    before, _, after = label.partition("*")
    if (before or after) and own_label.startswith("xn--"):
        return False
    return len(own_label) >= len(label) - 1 and own_label.startswith(before) and own_label.endswith(after)


def name_matches(name: str, kind: int, text: str) -> bool:
    """Whether a certificate's alternative name is `name`: as DNS names match, or the very same text."""
    return dns_name_matches(name, text) if kind == x509.DNS else name == text


class Judge:
    """The rules of one validation context. `failure` and `reason` are of the latest handshake: there is one at a time,
    since a handshake never waits halfway within a call. The `reason` of a CONNECTION_ERROR is an OpenSSL-like name."""

    def __init__(
        self,
        *,
        verifies_chain: bool,
        accepts_untrusted: bool,
        ignores_times: bool,
        san_matchers: tuple[SanMatcher, ...],
        hashes: frozenset[bytes],
        public_key_hashes: frozenset[bytes],
        checks_key_usage: bool,
        trust_bundles: TrustBundles | None = None,
    ) -> None:
        self._verifies_chain = verifies_chain
        self._accepts_untrusted = accepts_untrusted
        self._ignores_times = ignores_times
        self._san_matchers = san_matchers
        self._hashes = hashes
        self._public_key_hashes = public_key_hashes
        self._checks_key_usage = checks_key_usage
        self._trust_bundles = trust_bundles
        self._reads_leaf = bool(san_matchers or hashes or public_key_hashes)
        self._judged: dict[tuple[bytes, str, str], tuple[int, str]] = {}
        self.expected_name: str = ""  # the DNS name that the peer of this handshake must have, instead of the matchers'
        self.demanded_name: str = ""  # a name of any kind that it must have too
        self.failure: int = NO_FAILURE
        self.reason: str = ""

    @property
    def verifies(self) -> bool:
        """Whether a peer that passes has been validated by something."""
        return bool(self._verifies_chain or self._hashes or self._public_key_hashes)

    @property
    def verifies_chain(self) -> bool:
        """Whether names of a certificate mean anything: somebody who is trusted has signed it."""
        return self._verifies_chain and not self._accepts_untrusted

    @property
    def checks_times(self) -> bool:
        """Whether a certificate passes only while it is valid."""
        return self.verifies_chain and not self._ignores_times

    def begin(self, expected_name: str, demanded_name: str) -> None:
        """Before each step of a handshake; a name that is "" is not asked for."""
        self.expected_name = expected_name
        self.demanded_name = demanded_name
        self.failure = NO_FAILURE
        self.reason = ""

    def verify(self, store_context: int) -> bool:
        """Called by OpenSSL in the course of a handshake."""
        if self._checks_key_usage and not openssl.key_usage_fits(store_context):
            self.failure, self.reason = CONNECTION_ERROR, "KEY_USAGE_BIT_INCORRECT"
            openssl.set_verify_error(store_context, openssl.X509_V_ERR_CERT_REJECTED)
            return False
        if self._verifies_chain:
            error, depth = self._verify_chain(store_context)
            if self.failure != NO_FAILURE:
                return False
            if error != openssl.X509_V_OK:
                self._fail(VERIFY_ERROR, _chain_error(error, depth))
                if not self._accepts_untrusted:
                    return False
                self.reason = ""
        if not self._reads_leaf and not self.expected_name and not self.demanded_name:
            return True
        failure, self.reason = self._judge(openssl.leaf_certificate(store_context))
        self.failure = failure or self.failure
        if self.reason:
            # OK stands for no reason of the chain: the alert is certificate_unknown, as Envoy's.
            error = openssl.X509_V_ERR_CERT_REJECTED if self.failure == VERIFY_HASH else openssl.X509_V_OK
            openssl.set_verify_error(store_context, error)
            return False
        return True

    def _verify_chain(self, store_context: int) -> tuple[int, int]:
        """(X509_V_OK or the error, the depth where it is); a failure may be set instead."""
        bundles = self._trust_bundles
        if bundles is None:
            return openssl.verify_chain(store_context, ignore_times=self._ignores_times)
        openssl.set_verify_error(store_context, openssl.X509_V_OK)  # as below: the alert never says more
        member = _member(openssl.leaf_certificate(store_context))
        if member is None:
            self._fail(VERIFY_ERROR, "cert precheck")
            return openssl.X509_V_OK, 0
        found = bundles.find(_trust_domain(member), member.raw_issuer)
        if found is None:
            self._fail(VERIFY_ERROR, "no trust bundle store")
            return openssl.X509_V_OK, 0
        return openssl.verify_chain_of(store_context, *found, ignore_times=self._ignores_times)

    def _fail(self, failure: int, reason: str) -> None:
        self.failure = failure
        self.reason = f"verify cert failed: {reason}"

    def _judge(self, der: bytes) -> tuple[int, str]:
        """Peers come again: what was found of a certificate holds, since nothing here goes by the time."""
        key = (der, self.expected_name, self.demanded_name)
        found = self._judged.get(key)
        if found is None:
            found = self._judge_leaf(der)
            if len(self._judged) >= _MAX_JUDGED:
                self._judged.clear()
            self._judged[key] = found
        return found

    def _judge_leaf(self, der: bytes) -> tuple[int, str]:
        """(what to count or NO_FAILURE, why it fails or nothing)."""
        try:
            certificate = x509.Certificate(der)
            names = certificate.alt_names()
        except (x509.DerError, ValueError):
            return VERIFY_ERROR, "verify cert failed: the certificate cannot be read"
        if not self._names_match(names):
            if self._trust_bundles is not None:
                return VERIFY_SAN, "verify cert failed: SAN match"
            shown = ", ".join(text for _, text in names)
            return VERIFY_SAN, f"verify cert failed: SAN matcher, certificate SANs are [{shown}]"
        if (self._hashes or self._public_key_hashes) and not self._is_pinned(certificate):
            return VERIFY_HASH, "verify cert failed: cert hash and spki"
        return NO_FAILURE, ""

    def _names_match(self, names: list[tuple[int, str]]) -> bool:
        if self.demanded_name and not any(name_matches(self.demanded_name, kind, text) for kind, text in names):
            return False
        if self.expected_name:
            return any(kind == x509.DNS and dns_name_matches(self.expected_name, text) for kind, text in names)
        if not self._san_matchers:
            return True
        return any(matcher.match(kind, text) for matcher in self._san_matchers for kind, text in names)

    def _is_pinned(self, certificate: x509.Certificate) -> bool:
        if bytes.fromhex(certificate.fingerprint_sha256()) in self._hashes:
            return True
        return certificate.public_key_sha256() in self._public_key_hashes


def _member(der: bytes) -> x509.Certificate | None:
    """A certificate that can be a member's: it says what its key is for, and signs no others (X509-SVID sections 4.2
    and 5.2). None for any other."""
    try:
        certificate = x509.Certificate(der)
        signs = any(certificate.allows_key_usage(bit) for bit in (_KEY_CERT_SIGN, _CRL_SIGN))
        return None if signs or certificate.is_authority else certificate
    except (x509.DerError, ValueError):
        return None


def _trust_domain(member: x509.Certificate) -> str:
    """That of its SPIFFE ID, which is its only URI (section 2); "" for none."""
    try:
        uris = member.alt_names_of(x509.URI)
    except (x509.DerError, ValueError):
        return ""
    domain = trust_domain_of(uris[0]) if len(uris) == 1 else ""
    return domain if domain and uris[0].startswith(f"spiffe://{domain}/") else ""


def _chain_error(error: int, depth: int) -> str:
    """What Envoy says of a chain that does not verify."""
    of_revocation = error in _REVOCATION_ERRORS
    why = "certificate revocation check against provided CRLs failed: " if of_revocation else ""
    text = openssl.verify_error_text(error)
    return f"X509_verify_cert: certificate verification error at depth {depth}: {why}{text}"
