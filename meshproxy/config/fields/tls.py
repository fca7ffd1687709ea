"""TLS contexts of listeners and clusters."""

from __future__ import annotations

from typing import Final

from meshproxy.config.fields.table import MessageTable, Tables

_TLS = "envoy.extensions.transport_sockets.tls.v3."
_PROVIDERS = "certificate providers are not supported"
_WATCHED = "the files themselves are watched, through links on the way to them"

TABLES: Final[Tables] = {
    _TLS + "DownstreamTlsContext": MessageTable(
        "common_tls_context require_client_certificate session_ticket_keys disable_stateless_session_resumption "
        "disable_stateful_session_resumption session_timeout full_scan_certs_on_sni_mismatch prefer_client_ciphers "
        "session_ticket_keys_sds_secret_config",
        only={"require_sni": "false", "ocsp_staple_policy": "LENIENT_STAPLING"},
    ),
    _TLS + "UpstreamTlsContext": MessageTable(
        "common_tls_context sni auto_host_sni auto_sni_san_validation allow_renegotiation max_session_keys",
        ignored={"enforce_rsa_key_usage": "where a certificate is validated, so is its key usage, as in Envoy today"},
    ),
    _TLS + "CommonTlsContext": MessageTable(
        "tls_params tls_certificates tls_certificate_sds_secret_configs validation_context "
        "validation_context_sds_secret_config combined_validation_context alpn_protocols key_log",
        refused={
            "tls_certificate_provider_instance tls_certificate_certificate_provider "
            "tls_certificate_certificate_provider_instance validation_context_certificate_provider "
            "validation_context_certificate_provider_instance": _PROVIDERS,
            "custom_tls_certificate_selector custom_handshaker": "extensions of TLS are not supported",
        },
    ),
    _TLS + "CommonTlsContext.CombinedCertificateValidationContext": MessageTable(
        "default_validation_context validation_context_sds_secret_config",
        refused={
            "validation_context_certificate_provider validation_context_certificate_provider_instance": _PROVIDERS
        },
    ),
    _TLS + "SdsSecretConfig": MessageTable("name sds_config"),
    _TLS + "Secret": MessageTable("name tls_certificate session_ticket_keys validation_context generic_secret"),
    _TLS + "GenericSecret": MessageTable("secret secrets"),
    _TLS + "TlsParameters": MessageTable(
        "tls_minimum_protocol_version tls_maximum_protocol_version cipher_suites ecdh_curves signature_algorithms",
        refused={"compliance_policies": "OpenSSL has no compliance policies"},
    ),
    _TLS + "TlsCertificate": MessageTable(
        "certificate_chain private_key password ocsp_staple",
        ignored={"watched_directory": _WATCHED},
        refused={
            "pkcs12": "use certificate_chain and private_key",
            "private_key_provider": "private key providers are not supported",
            "signed_certificate_timestamp": "Envoy does not send them either",
        },
    ),
    _TLS + "TlsSessionTicketKeys": MessageTable("keys"),
    _TLS + "TlsKeyLog": MessageTable(
        "path",
        refused={"local_address_range remote_address_range": "the keys of all connections are logged, or none"},
    ),
    _TLS + "CertificateValidationContext": MessageTable(
        "trusted_ca system_root_certs verify_certificate_spki verify_certificate_hash "
        "match_typed_subject_alt_names match_subject_alt_names crl allow_expired_certificate trust_chain_verification "
        "only_verify_leaf_cert_crl max_verify_depth custom_validator_config",
        ignored={"watched_directory": _WATCHED},
        only={"require_signed_certificate_timestamp": "false"},
        refused={"ca_certificate_provider_instance": _PROVIDERS},
    ),
    _TLS + "SPIFFECertValidatorConfig": MessageTable("trust_domains trust_bundles"),
    _TLS + "SPIFFECertValidatorConfig.TrustDomain": MessageTable("name trust_bundle"),
    _TLS + "CertificateValidationContext.SystemRootCerts": MessageTable(),
    _TLS + "SubjectAltNameMatcher": MessageTable(
        "matcher",
        only={"san_type": "EMAIL DNS URI IP_ADDRESS"},
        refused={"oid": "other names are not supported"},
    ),
    "envoy.config.core.v3.WatchedDirectory": MessageTable("path"),
}
