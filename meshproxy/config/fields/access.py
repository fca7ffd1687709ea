"""What may be passed over in a resource of a control plane, and what guards access, so that it must not be.

A file is read by whoever wrote it: it asks for nothing that we cannot do. A control plane asks all its proxies for the
same, and one resource that is refused is traffic that does not flow. So a field that we cannot do is left out of its
resource, is counted and listed, and the rest of the resource is taken; but never where more would get through without
it. There the resource is refused, and the last good one stays.

The rule goes by the message that has the field, and what nobody thought of is on the safe side:

- In all messages that are not named here, each field guards: those of TLS, of filters, of matchers, of filter chains.
- In the messages named `_OPEN` (or in one of the packages) only those `_NEEDED` do.
- It is the same with fields that the API has got since, which we do not know.
- What is in a field named `_SPARED` may be whatever it is: when it cannot be done, the field (of a list: the element)
  is left out.
"""

from __future__ import annotations

import functools
from typing import Final

_CORE: Final = "envoy.config.core.v3."
_ROUTE: Final = "envoy.config.route.v3."
_CLUSTER: Final = "envoy.config.cluster.v3."
_LISTENER: Final = "envoy.config.listener.v3."
_LOG: Final = "envoy.config.accesslog.v3."
_HCM: Final = "envoy.extensions.filters.network.http_connection_manager.v3."
_TCP_PROXY: Final = "envoy.extensions.filters.network.tcp_proxy.v3."
_HTTP: Final = "envoy.extensions.filters.http."
_UPSTREAM: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_PEER_METADATA: Final = "io.istio.http.peer_metadata."

_OPEN_PACKAGES: Final = (
    _CLUSTER,
    _LOG,
    "envoy.config.endpoint.v3.",
    "envoy.config.trace.v3.",
    "envoy.extensions.access_loggers.",
    "envoy.extensions.clusters.",
    "envoy.extensions.filters.common.fault.v3.",
    "envoy.extensions.load_balancing_policies.",
    "envoy.extensions.network.dns_resolver.",
    "envoy.extensions.retry.",
    "envoy.extensions.tracers.",
    "envoy.extensions.upstreams.http.",
    "envoy.service.runtime.v3.",
    "envoy.type.tracing.v3.",
    _HTTP + "fault.v3.",
    _HTTP + "grpc_stats.v3.",
    _HTTP + "router.v3.",
    _TCP_PROXY,
    _PEER_METADATA,
    "stats.",
)


def _named(prefix: str, names: str) -> frozenset[str]:
    return frozenset(prefix + name for name in names.split())


_OPEN: Final = (
    _named(
        _CORE,
        "BackoffStrategy BindConfig DnsResolutionConfig DnsResolverOptions ExtraSourceAddress Http1ProtocolOptions "
        "Http1ProtocolOptions.HeaderKeyFormat Http2ProtocolOptions HttpProtocolOptions KeepaliveSettings Locality "
        "Metadata Node RetryPolicy SocketOption SubstitutionFormatString TcpKeepalive UpstreamHttpProtocolOptions",
    )
    | _named(
        _ROUTE,
        "Decorator DirectResponseAction HedgePolicy InternalRedirectPolicy RedirectAction RetryPolicy "
        "RetryPolicy.RateLimitedRetryBackOff RetryPolicy.ResetHeader RetryPolicy.RetryBackOff "
        "RetryPolicy.RetryHostPredicate Route RouteAction RouteAction.HashPolicy RouteAction.HashPolicy.Cookie "
        "RouteAction.HashPolicy.Header RouteAction.MaxStreamDuration RouteAction.RequestMirrorPolicy "
        "RouteConfiguration Tracing VirtualCluster VirtualHost WeightedCluster WeightedCluster.ClusterWeight",
    )
    | _named(
        _HCM,
        "HttpConnectionManager HttpConnectionManager.HcmAccessLogOptions HttpConnectionManager.Tracing "
        "LocalReplyConfig RequestIDExtension ResponseMapper",
    )
    | _named(_LISTENER, "AdditionalAddress Listener")
)

# Of open messages: what lets more through when it is left out, or without which the rest has no meaning.
_NEEDED: Final = {
    _LOG + "AccessLogFilter": "extension_filter",
    _CLUSTER + "Cluster": "type cluster_type eds_cluster_config transport_socket transport_socket_matches "
    "transport_socket_matcher filters upstream_config",
    "envoy.config.endpoint.v3.LocalityLbEndpoints": "load_balancer_endpoints leds_cluster_locality_config",
    _UPSTREAM: "header_validation_config",
    _UPSTREAM + ".ExplicitHttpConfig": "http3_protocol_options",
    _LISTENER + "Listener": "filter_chain_matcher fcds_config udp_listener_config api_listener internal_listener "
    "deprecated_v1",
    _HCM + "HttpConnectionManager": "codec_type rds scoped_routes original_ip_detection_extensions "
    "early_header_mutation_extensions forward_client_cert_matcher path_normalization_options "
    "typed_header_validation_config",
    _ROUTE + "RouteConfiguration": "vhds",
    _ROUTE + "VirtualHost": "matcher",
    _ROUTE + "Route": "filter_action non_forwarding_action",
    _ROUTE + "RouteAction": "cluster_specifier_plugin inline_cluster_specifier_plugin",
    _ROUTE + "RouteAction.HashPolicy": "filter_state",
    _TCP_PROXY + "TcpProxy": "on_demand",
    _HTTP + "router.v3.Router": "upstream_http_filters",
    _CORE + "Http1ProtocolOptions.HeaderKeyFormat": "stateful_formatter",
}

# Of messages that guard: what nobody's access hangs on.
_PASSED: Final = {
    _HTTP + "local_ratelimit.v3.LocalRateLimit": "local_cluster_rate_limit",
    _ROUTE + "RateLimit": "limit apply_on_stream_done",
    "envoy.extensions.transport_sockets.tls.v3.TlsCertificate": "signed_certificate_timestamp",
}

# What goes as a whole when something in it cannot be done.
_SPARED: Final = {
    _LOG + "AccessLog": "filter",
    _HCM + "HttpConnectionManager": "access_log tracing request_id_extension",
    _LISTENER + "Listener": "access_log socket_options",
    _TCP_PROXY + "TcpProxy": "access_log hash_policy",
    _HTTP + "router.v3.Router": "upstream_log",
    _CORE + "Http1ProtocolOptions": "header_key_format",
    _CLUSTER + "LoadBalancingPolicy": "policies",
    _ROUTE + "VirtualHost": "rate_limits request_mirror_policies",
    _ROUTE + "RouteAction": "rate_limits request_mirror_policies hash_policy",
    _ROUTE + "RetryPolicy": "retry_host_predicate",
    _UPSTREAM: "hash_policy request_mirror_policies",
}


@functools.cache
def is_open(message: str) -> bool:
    """Whether a field of this message may be passed over, unless it is needed. `message` is a full name."""
    return message in _OPEN or message.startswith(_OPEN_PACKAGES)


@functools.cache
def guards(message: str, field: str) -> bool:
    """Whether a resource is refused for a field that we cannot do."""
    if is_open(message):
        return field in _NEEDED.get(message, "").split()
    return field not in _PASSED.get(message, "").split()


@functools.cache
def is_spared(message: str, field: str) -> bool:
    """Whether the field goes, or the element of a list, when something in it cannot be done."""
    return field in _SPARED.get(message, "").split()


def rules() -> dict[str, str]:
    """All names of messages in these lists, with the fields that are named of each: for the test that they exist."""
    named = dict.fromkeys(_OPEN, "")
    for fields_of in (_NEEDED, _PASSED, _SPARED):
        for message, fields in fields_of.items():
            named[message] = f"{named.get(message, '')} {fields}".strip()
    return named
