"""TLS that a proxy ends: the `tls` of a Gateway's server, and what proxies of the mesh speak among themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateValidationContext,
    SubjectAltNameMatcher,
    TlsParameters,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import CommonTlsContext, DownstreamTlsContext

from meshproxy.pilot.resources.messages import boolean, transport_socket
from meshproxy.pilot.resources.upstream_tls import (
    TLS,
    credential,
    san_matchers,
    secret,
    set_versions,
)
from meshproxy.xds.secret_streams import IDENTITY, ROOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from envoy.config.core.v3.base_pb2 import TransportSocket

    from meshproxy.pilot.documents.gateway import ServerTLSSettings

_MUTUAL: Final = ("MUTUAL", "ISTIO_MUTUAL")
_VERIFIES: Final = (*_MUTUAL, "OPTIONAL_MUTUAL")
_VERSIONS: Final = {
    "TLS_AUTO": TlsParameters.TLS_AUTO,
    "TLSV1_0": TlsParameters.TLSv1_0,
    "TLSV1_1": TlsParameters.TLSv1_1,
    "TLSV1_2": TlsParameters.TLSv1_2,
    "TLSV1_3": TlsParameters.TLSv1_3,
}


def downstream_socket(tls: ServerTLSSettings, alpn: Sequence[str], sds: str) -> TransportSocket:
    """For every mode but PASSTHROUGH. `sds` is the proxy's cluster for secrets, not empty where it needs some."""
    context = DownstreamTlsContext(require_client_certificate=boolean(tls.mode in _MUTUAL))
    common = context.common_tls_context
    common.alpn_protocols.extend(alpn)
    _set_parameters(common, tls)
    _set_certificate(common, tls, sds)
    if tls.mode in _VERIFIES:
        _set_validation(common, tls, sds)
    return transport_socket(TLS, context)


def mesh_socket(alpn: Sequence[str], trust_domains: Sequence[str], sds: str) -> TransportSocket:
    """For callers that prove to be of these trust domains, by the mesh's certificates."""
    context = DownstreamTlsContext(require_client_certificate=boolean(True))
    common = context.common_tls_context
    common.alpn_protocols.extend(alpn)
    set_versions(common)
    common.tls_certificate_sds_secret_configs.append(secret(IDENTITY, sds))
    combined = common.combined_validation_context
    combined.validation_context_sds_secret_config.CopyFrom(secret(ROOTS, sds))
    for domain in trust_domains:
        matcher = combined.default_validation_context.match_typed_subject_alt_names.add()
        matcher.san_type = SubjectAltNameMatcher.URI
        matcher.matcher.prefix = f"spiffe://{domain}/"
    return transport_socket(TLS, context)


def _set_parameters(common: CommonTlsContext, tls: ServerTLSSettings) -> None:
    """Without a rule nothing older than TLS 1.2, as with Istio."""
    parameters = common.tls_params
    least = "TLSV1_2" if tls.min_protocol_version == "TLS_AUTO" else tls.min_protocol_version
    parameters.tls_minimum_protocol_version = _VERSIONS[least]
    parameters.tls_maximum_protocol_version = _VERSIONS[tls.max_protocol_version]
    parameters.cipher_suites.extend(tls.cipher_suites)


def _set_certificate(common: CommonTlsContext, tls: ServerTLSSettings, sds: str) -> None:
    if tls.mode == "ISTIO_MUTUAL":
        common.tls_certificate_sds_secret_configs.append(secret(IDENTITY, sds))
    elif tls.credential_name:
        common.tls_certificate_sds_secret_configs.append(secret(credential(tls.credential_name), sds))
    else:
        certificate = common.tls_certificates.add()
        certificate.certificate_chain.filename = tls.server_certificate
        certificate.private_key.filename = tls.private_key


def _set_validation(common: CommonTlsContext, tls: ServerTLSSettings, sds: str) -> None:
    """Whose certificates count; OPTIONAL_MUTUAL lets those in who show none."""
    name = ROOTS if tls.mode == "ISTIO_MUTUAL" else _authorities(tls)
    if name:
        combined = common.combined_validation_context
        combined.validation_context_sds_secret_config.CopyFrom(secret(name, sds))
        _set_conditions(combined.default_validation_context, tls)
    else:
        common.validation_context.trusted_ca.filename = tls.ca_certificates
        if tls.ca_crl:
            common.validation_context.crl.filename = tls.ca_crl
        _set_conditions(common.validation_context, tls)


def _authorities(tls: ServerTLSSettings) -> str:
    return f"{credential(tls.credential_name)}-cacert" if tls.credential_name else ""


def _set_conditions(validation: CertificateValidationContext, tls: ServerTLSSettings) -> None:
    validation.SetInParent()
    validation.match_typed_subject_alt_names.extend(san_matchers(tls.subject_alt_names))
    validation.verify_certificate_spki.extend(tls.verify_certificate_spki)
    validation.verify_certificate_hash.extend(tls.verify_certificate_hash)
