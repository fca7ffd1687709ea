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
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import SubjectAltNameMatcher
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import SdsSecretConfig
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import CommonTlsContext, UpstreamTlsContext
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from meshproxy.pilot.resources.connection_pool import HTTP_OPTIONS
from meshproxy.pilot.resources.messages import agent, pack, transport_socket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envoy.config.core.v3.base_pb2 import TransportSocket

    from meshproxy.pilot.documents.destination_rule import ClientTLSSettings, TrafficPolicy

TLS: Final = "envoy.transport_sockets.tls"
RAW: Final = "envoy.transport_sockets.raw_buffer"
PROXY_PROTOCOL: Final = "envoy.transport_sockets.upstream_proxy_protocol"

# Who a proxy is, and whom it believes: the names under which an agent, or the authority, gives them.
IDENTITY: Final = "default"
ROOTS: Final = "ROOTCA"
_NO_HASH: Final = "00" * 32  # a SHA-256 that no certificate has

_SAN_TYPES: Final = (SubjectAltNameMatcher.DNS, SubjectAltNameMatcher.URI, SubjectAltNameMatcher.IP_ADDRESS)


def set_transport_socket(
    cluster: Cluster,
    policy: TrafficPolicy,
    *,
    sni: str,
    http2: bool,
    mesh_endpoints: bool,
    sans: tuple[str, ...],
    identities: tuple[str, ...],
    sds: str,
) -> None:
    """`mesh_endpoints`: some say that they take the mesh's own TLS: they get it, others do not. `sans` is who a service
    may prove to be, where no rule says so; in the mesh else the `identities` of its endpoints. `sds` is the proxy's
    cluster for secrets; "": it has none."""
    tls = policy.tls
    if tls is not None and not tls.subject_alt_names and not tls.insecure_skip_verify:
        tls = replace(tls, subject_alt_names=sans)
    sans = sans or identities
    if tls is not None and tls.mode != "DISABLE":
        cluster.transport_socket.CopyFrom(_socket(tls, sni, http2=http2, sans=sans, sds=sds))
        if tls.mode in ("SIMPLE", "MUTUAL") and not tls.sni:
            _set_name_of_request(cluster, proves=not tls.subject_alt_names and not tls.insecure_skip_verify)
    elif tls is None and mesh_endpoints:
        context = mesh_context(sni, http2=http2, sans=sans, sds=sds) if sds else nobody()
        _set_matches(cluster, context)
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


def _socket(tls: ClientTLSSettings, sni: str, *, http2: bool, sans: Iterable[str], sds: str) -> TransportSocket:
    if tls.needs_secrets and not sds:
        return transport_socket(TLS, nobody())
    if tls.mode == "ISTIO_MUTUAL":
        context = mesh_context(tls.sni or sni, http2=http2, sans=tls.subject_alt_names or sans, sds=sds)
        return transport_socket(TLS, context)
    context = UpstreamTlsContext(sni=tls.sni or "")
    common = context.common_tls_context
    if http2:
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


def mesh_context(sni: str, *, http2: bool, sans: Iterable[str], sds: str) -> UpstreamTlsContext:
    """Both sides prove who they are by the mesh's certificates."""
    context = UpstreamTlsContext(sni=sni)
    common = context.common_tls_context
    common.alpn_protocols.extend(["istio", "h2"] if http2 else ["istio"])
    common.tls_certificate_sds_secret_configs.append(secret(IDENTITY, sds))
    combined = common.combined_validation_context
    combined.validation_context_sds_secret_config.CopyFrom(secret(ROOTS, sds))
    combined.default_validation_context.match_typed_subject_alt_names.extend(san_matchers(sans))
    return context


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
