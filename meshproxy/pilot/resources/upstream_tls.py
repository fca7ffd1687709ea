"""TLS to a cluster's hosts: a traffic policy's `tls`, and what endpoints of the mesh say that they take."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.proxy_protocol_pb2 import ProxyProtocolConfig
from envoy.extensions.transport_sockets.proxy_protocol.v3.upstream_proxy_protocol_pb2 import (
    ProxyProtocolUpstreamTransport,
)
from envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2 import RawBuffer
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import SubjectAltNameMatcher, TlsParameters
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import SdsSecretConfig
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import CommonTlsContext, UpstreamTlsContext
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from meshproxy.pilot.resources.connection_pool import DOWNSTREAM, HTTP1, HTTP2, HTTP_OPTIONS
from meshproxy.pilot.resources.messages import agent, pack, transport_socket
from meshproxy.xds.secret_streams import IDENTITY, ROOTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envoy.config.core.v3.base_pb2 import TransportSocket

    from meshproxy.pilot.documents.destination_rule import ClientTLSSettings, TrafficPolicy

TLS: Final = "envoy.transport_sockets.tls"
RAW: Final = "envoy.transport_sockets.raw_buffer"
PROXY_PROTOCOL: Final = "envoy.transport_sockets.upstream_proxy_protocol"

# Who a proxy is, and whom it believes: the names under which an agent, or the authority, gives them.
_NO_HASH: Final = "00" * 32  # a SHA-256 that no certificate has

# What clients of the mesh offer (ALPN), by which proxies tell its mutual TLS from other TLS, and HTTP from other bytes.
MESH_HTTP: Final = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
MESH_TCP: Final = ("istio-peer-exchange", "istio")
# By the version of HTTP. Where that is the request's own nothing may be agreed on: the bytes say it.
_OFFERED: Final = {
    HTTP1: ("istio-http/1.1", "istio", "http/1.1"),
    HTTP2: ("istio-h2", "istio", "h2"),
    DOWNSTREAM: ("istio-http/1.1", "istio"),
    "": ("istio",),
}

_SAN_TYPES: Final = (SubjectAltNameMatcher.DNS, SubjectAltNameMatcher.URI, SubjectAltNameMatcher.IP_ADDRESS)


def set_transport_socket(
    cluster: Cluster,
    policy: TrafficPolicy,
    *,
    sni: str,
    version: str,
    mesh_endpoints: bool,
    others: bool,
    sans: tuple[str, ...],
    identities: tuple[str, ...],
    sds: str,
) -> None:
    """`version` is that of HTTP, as `connection_pool.version_of` has it. `mesh_endpoints`: some say that they take the
    mesh's own TLS: they get it; `others`: some do not. `sans` is who a service may prove to be, where no rule says so;
    in the mesh else the `identities` of its endpoints. `sds` is the proxy's cluster for secrets; "": it has none."""
    tls = policy.tls
    if tls is not None and not tls.subject_alt_names and not tls.insecure_skip_verify:
        tls = replace(tls, subject_alt_names=sans)
    sans = sans or identities
    if tls is not None and tls.mode != "DISABLE":
        cluster.transport_socket.CopyFrom(_socket(tls, sni, version, sans=sans, sds=sds))
        if tls.mode in ("SIMPLE", "MUTUAL") and not tls.sni:
            _set_name_of_request(cluster, proves=not tls.subject_alt_names and not tls.insecure_skip_verify)
    elif tls is None and mesh_endpoints:
        context = mesh_context(sni, version, sans=sans, sds=sds) if sds else nobody()
        if cluster.type != Cluster.ORIGINAL_DST:
            _set_matches(cluster, context)
        elif not others:  # nothing is known of whom a connection was going to: it is all, or nobody
            cluster.transport_socket.CopyFrom(transport_socket(TLS, context))
    if policy.proxy_protocol is not None:
        _wrap(cluster, policy.proxy_protocol.version)


def _set_name_of_request(cluster: Cluster, *, proves: bool) -> None:
    """As Istio: without a server name in the rule it is the host of the request, and without names that a server may
    prove to have, it has to be that one. Connections that are passed on have no such host."""
    if HTTP_OPTIONS not in cluster.typed_extension_protocol_options:
        return
    packed = cluster.typed_extension_protocol_options[HTTP_OPTIONS]
    options = HttpProtocolOptions.FromString(packed.value)
    options.upstream_http_protocol_options.auto_sni = True
    options.upstream_http_protocol_options.auto_san_validation = proves
    packed.CopyFrom(pack(options))


def needs_secrets(policy: TrafficPolicy, *, mesh_endpoints: bool) -> bool:
    return mesh_endpoints if policy.tls is None else policy.tls.needs_secrets


def _socket(tls: ClientTLSSettings, sni: str, version: str, *, sans: Iterable[str], sds: str) -> TransportSocket:
    if tls.needs_secrets and not sds:
        return transport_socket(TLS, nobody())
    if tls.mode == "ISTIO_MUTUAL":
        context = mesh_context(tls.sni or sni, version, sans=tls.subject_alt_names or sans, sds=sds)
        return transport_socket(TLS, context)
    context = UpstreamTlsContext(sni=tls.sni or "")
    common = context.common_tls_context
    if version == HTTP2:
        common.alpn_protocols.append("h2")
    if tls.mode == "MUTUAL":
        _set_certificate(common, tls, sds)
    if not tls.insecure_skip_verify:
        _set_validation(common, tls, sds)
    return transport_socket(TLS, context)


def _set_certificate(common: CommonTlsContext, tls: ClientTLSSettings, sds: str) -> None:
    if tls.credential_name:
        common.tls_certificate_sds_secret_configs.append(secret(credential(tls.credential_name), sds))
        return
    certificate = common.tls_certificates.add()
    certificate.certificate_chain.filename = tls.client_certificate
    certificate.private_key.filename = tls.private_key


def _set_validation(common: CommonTlsContext, tls: ClientTLSSettings, sds: str) -> None:
    """Without any authorities of its own, those of the system."""
    if tls.credential_name:
        combined = common.combined_validation_context
        validation = combined.default_validation_context
        validation.SetInParent()
        authorities = secret(credential(tls.credential_name) + "-cacert", sds)
        combined.validation_context_sds_secret_config.CopyFrom(authorities)
    else:
        validation = common.validation_context
        if tls.ca_certificates:
            validation.trusted_ca.filename = tls.ca_certificates
        else:
            validation.system_root_certs.SetInParent()
        if tls.ca_crl:
            validation.crl.filename = tls.ca_crl
    validation.match_typed_subject_alt_names.extend(san_matchers(tls.subject_alt_names))


def mesh_context(sni: str, version: str, *, sans: Iterable[str], sds: str) -> UpstreamTlsContext:
    """Both sides prove who they are by the mesh's certificates."""
    context = UpstreamTlsContext(sni=sni)
    common = context.common_tls_context
    common.alpn_protocols.extend(_OFFERED[version])
    set_versions(common)
    common.tls_certificate_sds_secret_configs.append(secret(IDENTITY, sds))
    combined = common.combined_validation_context
    combined.validation_context_sds_secret_config.CopyFrom(secret(ROOTS, sds))
    combined.default_validation_context.match_typed_subject_alt_names.extend(san_matchers(sans))
    return context


def set_versions(common: CommonTlsContext) -> None:
    """What proxies of the mesh speak among themselves, as with Istio; Envoy's clients else go no further than 1.2."""
    common.tls_params.tls_minimum_protocol_version = TlsParameters.TLSv1_2
    common.tls_params.tls_maximum_protocol_version = TlsParameters.TLSv1_3


def nobody() -> UpstreamTlsContext:
    """TLS that no server can end: a proxy that cannot prove who it is neither goes without it nor waits."""
    context = UpstreamTlsContext()
    context.common_tls_context.validation_context.verify_certificate_hash.append(_NO_HASH)
    return context


def secret(name: str, sds: str) -> SdsSecretConfig:
    """From the agent behind the proxy's cluster `sds`."""
    return SdsSecretConfig(name=name, sds_config=agent(sds))


def credential(name: str) -> str:
    """The secret's name for a `credentialName`, as Istio has it."""
    return name if "://" in name else f"kubernetes://{name}"


def san_matchers(names: Iterable[str]) -> list[SubjectAltNameMatcher]:
    """A name of any kind that a certificate may have; an identity of the mesh is a URI."""
    return [
        SubjectAltNameMatcher(san_type=kind, matcher=StringMatcher(exact=name))
        for name in names
        for kind in ((SubjectAltNameMatcher.URI,) if "://" in name else _SAN_TYPES)
    ]


def _set_matches(cluster: Cluster, context: UpstreamTlsContext) -> None:
    encrypted = cluster.transport_socket_matches.add(name="tlsMode-istio")
    encrypted.match["tlsMode"] = "istio"
    encrypted.transport_socket.CopyFrom(transport_socket(TLS, context))
    plain = cluster.transport_socket_matches.add(name="tlsMode-disabled")
    plain.match.SetInParent()
    plain.transport_socket.CopyFrom(transport_socket(RAW, RawBuffer()))


def _wrap(cluster: Cluster, version: str) -> None:
    """A PROXY protocol header goes before whatever else there is."""
    config = ProxyProtocolConfig(version=ProxyProtocolConfig.Version.Value(version))
    sockets = [match.transport_socket for match in cluster.transport_socket_matches] or [cluster.transport_socket]
    for socket in sockets:
        if not socket.name:
            socket.CopyFrom(transport_socket(RAW, RawBuffer()))
        wrapped = ProxyProtocolUpstreamTransport(config=config, transport_socket=socket)
        socket.CopyFrom(transport_socket(PROXY_PROTOCOL, wrapped))
