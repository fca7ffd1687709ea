"""Headers of which a message has one field at most: Envoy joins their values by a comma wherever one is added.

The lists are measured on Envoy 1.40: a value appended to a header that is there, by configuration, lands in the same
field for these, and in a field of its own for all others (`cookie`, `x-app` …).
"""

from __future__ import annotations

from typing import Final

from meshproxy.codec.headers import HeaderMap

_BOTH: Final = frozenset(
    (
        b"cache-control",
        b"content-encoding",
        b"content-type",
        b"via",
        b"x-envoy-attempt-count",
        b"x-envoy-decorator-operation",
        b"x-request-id",
    )
)
INLINE_REQUEST_HEADERS: Final = _BOTH | frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"access-control-request-headers",
        b"access-control-request-method",
        b"access-control-request-private-network",
        b"authorization",
        b"cdn-loop",
        b"grpc-accept-encoding",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"origin",
        b"pragma",
        b"referer",
        b"user-agent",
        b"x-client-trace-id",
        b"x-envoy-downstream-service-cluster",
        b"x-envoy-downstream-service-node",
        b"x-envoy-external-address",
        b"x-envoy-is-timeout-retry",
        b"x-envoy-original-host",
        b"x-envoy-original-path",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
    )
)
INLINE_RESPONSE_HEADERS: Final = _BOTH | frozenset(
    (
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-allow-origin",
        b"access-control-allow-private-network",
        b"access-control-expose-headers",
        b"access-control-max-age",
        b"age",
        b"date",
        b"etag",
        b"expires",
        b"grpc-message",
        b"grpc-status",
        b"last-modified",
        b"location",
        b"proxy-status",
        b"vary",
        b"x-envoy-degraded",
        b"x-envoy-immediate-health-check-fail",
        b"x-envoy-ratelimited",
        b"x-envoy-upstream-canary",
        b"x-envoy-upstream-healthchecked-cluster",
        b"x-envoy-upstream-service-time",
    )
)


def append_field(headers: HeaderMap, name: bytes, value: bytes, inline: frozenset[bytes]) -> None:
    """Add a field, or its value to the field that is there when `name` is one of `inline`."""
    old = headers.joined(name) if name in inline else None
    if old is None:
        headers.add(name, value)
    else:
        headers.set(name, old + b"," + value if old else value)
