"""Envoy's `ssl.` stats of a listener or a cluster."""

from __future__ import annotations

from typing import ClassVar

from meshproxy.observe.stats import StatsScope
from meshproxy.tls.engine import TlsEvents
from meshproxy.tls.facts import TlsFacts
from meshproxy.tls.verify import NO_CERTIFICATE, VERIFY_ERROR, VERIFY_HASH, VERIFY_SAN


class TlsStats(StatsScope):
    """Stands under `listener.<address>.ssl.` or `cluster.<name>.ssl.`; ciphers, curves, signature algorithms and
    versions count under their names."""

    COUNTERS = (
        "connection_error",
        "fail_verify_cert_hash",
        "fail_verify_error",
        "fail_verify_no_cert",
        "fail_verify_san",
        "handshake",
        "no_certificate",
        "ocsp_staple_failed",
        "ocsp_staple_omitted",
        "ocsp_staple_requests",
        "ocsp_staple_responses",
        "session_reused",
    )

    def __init__(self) -> None:
        super().__init__()
        self.connection_error: int = 0
        self.fail_verify_cert_hash: int = 0
        self.fail_verify_error: int = 0
        self.fail_verify_no_cert: int = 0
        self.fail_verify_san: int = 0
        self.handshake: int = 0
        self.no_certificate: int = 0
        self.ocsp_staple_failed: int = 0
        self.ocsp_staple_omitted: int = 0
        self.ocsp_staple_requests: int = 0
        self.ocsp_staple_responses: int = 0
        self.session_reused: int = 0


class CertificateStats(StatsScope):
    """Stands under `<owner>.ssl.certificate.<name>.`."""

    LEVELS: ClassVar[tuple[str, ...]] = ("expiration_unix_time_seconds",)
    SET_AT_START: ClassVar[tuple[str, ...]] = LEVELS

    def __init__(self) -> None:
        super().__init__()
        self.expiration_unix_time_seconds: int = 0


class SocketFactoryStats(StatsScope):
    """Stands under `listener.<address>.server_ssl_socket_factory.` or `cluster.<name>.client_ssl_socket_factory.`: what
    becomes of secrets there. Envoy has all three on both sides."""

    COUNTERS = (
        "downstream_context_secrets_not_ready",
        "ssl_context_update_by_sds",
        "upstream_context_secrets_not_ready",
    )

    def __init__(self) -> None:
        super().__init__()
        self.downstream_context_secrets_not_ready: int = 0  # connections that were closed for want of a secret
        self.ssl_context_update_by_sds: int = 0
        self.upstream_context_secrets_not_ready: int = 0


class SecretStats(StatsScope):
    """Stands under `sds.<name>.`; `Subscriptions` counts in it, but for `key_rotation_failed`: files that a secret
    names and that cannot be taken."""

    COUNTERS = (
        "init_fetch_timeout",
        "key_rotation_failed",
        "update_attempt",
        "update_failure",
        "update_rejected",
        "update_success",
    )
    LEVELS = ("update_time", "version")

    def __init__(self) -> None:
        super().__init__()
        self.init_fetch_timeout: int = 0
        self.key_rotation_failed: int = 0
        self.update_attempt: int = 0
        self.update_failure: int = 0
        self.update_rejected: int = 0
        self.update_success: int = 0
        self.update_time: int = 0
        self.version: int = 0


class TlsCounter(TlsEvents):
    """Counts what becomes of connections into `stats`."""

    def __init__(self, stats: TlsStats) -> None:
        self.stats = stats

    def on_handshake(self, facts: TlsFacts) -> None:
        stats = self.stats
        stats.handshake += 1
        if facts.resumed:
            stats.session_reused += 1
        stats.count(f"ciphers.{facts.cipher}")
        stats.count(f"versions.{facts.version}")
        group = facts.group
        if group:
            stats.count(f"curves.{group}")
        if not facts.peer_certificate_presented:
            stats.no_certificate += 1
            return  # and nothing was signed with it
        algorithm = facts.peer_signature_algorithm
        if algorithm:
            stats.count(f"sigalgs.{algorithm}")

    def on_failure(self, failure: int) -> None:
        stats = self.stats
        if failure == VERIFY_ERROR:
            stats.fail_verify_error += 1
        elif failure == VERIFY_SAN:
            stats.fail_verify_san += 1
        elif failure == VERIFY_HASH:
            stats.fail_verify_cert_hash += 1
        elif failure == NO_CERTIFICATE:
            stats.fail_verify_no_cert += 1
        else:
            stats.connection_error += 1

    def on_staple(self, sent: bool) -> None:
        stats = self.stats
        stats.ocsp_staple_requests += 1
        if sent:
            stats.ocsp_staple_responses += 1
        else:
            stats.ocsp_staple_omitted += 1
