"""Retry policies: which outcomes are tried again, how often, and how long to wait in between."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.typed_struct import unpack_any
from meshproxy.config.values import milliseconds, milliseconds_or
from meshproxy.route.header_matcher import HeaderMatcher, build_header_matchers

# Bits of retry_on. The gRPC ones judge `grpc-status`.
RETRY_5XX: Final = 1 << 0
RETRY_GATEWAY_ERROR: Final = 1 << 1  # 502, 503, 504
RETRY_CONNECT_FAILURE: Final = 1 << 2
RETRY_4XX: Final = 1 << 3  # retriable-4xx: 409
RETRY_REFUSED_STREAM: Final = 1 << 4
RETRY_STATUS_CODES: Final = 1 << 5
RETRY_HEADERS: Final = 1 << 6
RETRY_RESET: Final = 1 << 7
RETRY_RESET_BEFORE_REQUEST: Final = 1 << 8
RETRY_HTTP3_POST_CONNECT_FAILURE: Final = 1 << 9
RETRY_ENVOY_RATE_LIMITED: Final = 1 << 10
RETRY_GRPC_CANCELLED: Final = 1 << 16
RETRY_GRPC_DEADLINE_EXCEEDED: Final = 1 << 17
RETRY_GRPC_RESOURCE_EXHAUSTED: Final = 1 << 18
RETRY_GRPC_UNAVAILABLE: Final = 1 << 19
RETRY_GRPC_INTERNAL: Final = 1 << 20

_RETRY_ON: Final = {
    "5xx": RETRY_5XX,
    "gateway-error": RETRY_GATEWAY_ERROR,
    "connect-failure": RETRY_CONNECT_FAILURE,
    "retriable-4xx": RETRY_4XX,
    "refused-stream": RETRY_REFUSED_STREAM,
    "retriable-status-codes": RETRY_STATUS_CODES,
    "retriable-headers": RETRY_HEADERS,
    "reset": RETRY_RESET,
    "reset-before-request": RETRY_RESET_BEFORE_REQUEST,
    "http3-post-connect-failure": RETRY_HTTP3_POST_CONNECT_FAILURE,
    "envoy-ratelimited": RETRY_ENVOY_RATE_LIMITED,
}
_RETRY_GRPC_ON: Final = {
    "cancelled": RETRY_GRPC_CANCELLED,
    "deadline-exceeded": RETRY_GRPC_DEADLINE_EXCEEDED,
    "resource-exhausted": RETRY_GRPC_RESOURCE_EXHAUSTED,
    "unavailable": RETRY_GRPC_UNAVAILABLE,
    "internal": RETRY_GRPC_INTERNAL,
}

# RetryPolicy.ResetHeaderFormat
RESET_SECONDS: Final = 0
RESET_UNIX_TIMESTAMP: Final = 1

_DEFAULT_BASE_MS: Final = 25
_DEFAULT_RATE_LIMITED_MAX_MS: Final = 300_000

_HOST_PREDICATES: Final = "envoy.extensions.retry.host."
_PREVIOUS_HOSTS: Final = _HOST_PREDICATES + "previous_hosts.v3.PreviousHostsPredicate"
_OMIT_CANARY_HOSTS: Final = _HOST_PREDICATES + "omit_canary_hosts.v3.OmitCanaryHostsPredicate"
_OMIT_HOST_METADATA: Final = _HOST_PREDICATES + "omit_host_metadata.v3.OmitHostMetadataConfig"


def parse_retry_on(text: str) -> int:
    """The bits of an HTTP retry_on (a route's, or x-envoy-retry-on). Unknown words do nothing, as in Envoy."""
    return _parse(text, _RETRY_ON)


def parse_retry_grpc_on(text: str) -> int:
    """The bits of an x-envoy-retry-grpc-on."""
    return _parse(text, _RETRY_GRPC_ON)


def _parse(text: str, words: dict[str, int]) -> int:
    bits = 0
    for word in text.split(","):
        bits |= words.get(word.strip(), 0)
    return bits


def parse_status_codes(text: str) -> frozenset[int]:
    """The codes of an x-envoy-retriable-status-codes; what is no number is passed over."""
    codes = [word.strip() for word in text.split(",")]
    return frozenset(int(code) for code in codes if code.isdecimal() and code.isascii())


class ResetHeader:
    """A response header that says when to try again: in seconds, or at a Unix time."""

    def __init__(self, name: bytes, unix_timestamp: bool) -> None:
        self.name = name
        self.unix_timestamp = unix_timestamp


class RetryPolicy:
    """A route's (or virtual host's) retry policy; 0 ms says "no limit of its own"."""

    def __init__(self) -> None:
        self.retry_on: int = 0
        self.num_retries: int = 1
        self.per_try_timeout_ms: int = 0
        self.per_try_idle_timeout_ms: int = 0
        self.retriable_status_codes: frozenset[int] = frozenset()
        self.retriable_headers: list[HeaderMatcher] = []  # on the response: one that holds is enough
        self.retriable_request_headers: list[HeaderMatcher] = []  # on the request: one must hold, if there are any
        self.back_off_base_ms: int = _DEFAULT_BASE_MS
        self.back_off_max_ms: int = 10 * _DEFAULT_BASE_MS
        self.reset_headers: list[ResetHeader] = []
        self.reset_max_ms: int = _DEFAULT_RATE_LIMITED_MAX_MS
        self.avoid_previous_hosts: bool = False
        self.omit_canary_hosts: bool = False
        self.omit_labels: list[dict[str, Any]] = []  # hosts that carry all labels of one of these
        self.host_selection_retry_max_attempts: int = 1

    def allows_request(self, headers: HeaderMap) -> bool:
        """False when the policy names request headers and none of them holds."""
        return not self.retriable_request_headers or any_matches(self.retriable_request_headers, headers)

    def retriable_response_headers(self, headers: HeaderMap) -> bool:
        """True when one of the policy's response header conditions holds (for RETRY_HEADERS)."""
        return any_matches(self.retriable_headers, headers)


def any_matches(matchers: list[HeaderMatcher], headers: HeaderMap) -> bool:
    return any(matcher.matches(headers) for matcher in matchers)


def build_retry_policy(message: Any, path: str, errors: ConfigErrors) -> RetryPolicy:
    """Compile an `envoy.config.route.v3.RetryPolicy`; errors go to `errors`."""
    policy = RetryPolicy()
    policy.retry_on = parse_retry_on(message.retry_on) | parse_retry_grpc_on(message.retry_on)
    if message.HasField("num_retries"):
        policy.num_retries = message.num_retries.value
    policy.per_try_timeout_ms = milliseconds(message.per_try_timeout)
    policy.per_try_idle_timeout_ms = milliseconds(message.per_try_idle_timeout)
    policy.retriable_status_codes = frozenset(message.retriable_status_codes)
    policy.retriable_headers = build_header_matchers(message.retriable_headers, path, "retriable_headers", errors)
    policy.retriable_request_headers = build_header_matchers(
        message.retriable_request_headers, path, "retriable_request_headers", errors
    )
    policy.host_selection_retry_max_attempts = message.host_selection_retry_max_attempts or 1
    _build_back_off(policy, message, path, errors)
    _build_host_predicates(policy, message, path, errors)
    if message.HasField("retry_priority"):
        errors.add(child(path, "retry_priority"), "retry priorities are not supported")
    if message.retry_options_predicates:
        errors.add(child(path, "retry_options_predicates"), "retry options predicates are not supported")
    return policy


def build_back_off(policy: RetryPolicy, message: Any, path: str, errors: ConfigErrors) -> None:
    """From a message with `base_interval` and `max_interval`."""
    base_ms = max(milliseconds(message.base_interval), 1)
    max_ms = milliseconds(message.max_interval) if message.HasField("max_interval") else None
    if max_ms is not None and max_ms < base_ms:
        errors.add(child(path, "max_interval"), "must be greater than or equal to the base_interval")
    policy.back_off_base_ms = base_ms
    policy.back_off_max_ms = 10 * base_ms if max_ms is None else max_ms


def _build_back_off(policy: RetryPolicy, message: Any, path: str, errors: ConfigErrors) -> None:
    if message.HasField("retry_back_off"):
        build_back_off(policy, message.retry_back_off, child(path, "retry_back_off"), errors)
    if message.HasField("rate_limited_retry_back_off"):
        limited = message.rate_limited_retry_back_off
        policy.reset_headers = [
            ResetHeader(header.name.lower().encode(), header.format == RESET_UNIX_TIMESTAMP)
            for header in limited.reset_headers
        ]
        policy.reset_max_ms = milliseconds_or(limited, "max_interval", _DEFAULT_RATE_LIMITED_MAX_MS)


def _build_host_predicates(policy: RetryPolicy, message: Any, path: str, errors: ConfigErrors) -> None:
    for i in range(len(message.retry_host_predicate)):
        predicate = message.retry_host_predicate[i]
        name: str = predicate.typed_config.type_url.rpartition("/")[2]
        if name == _PREVIOUS_HOSTS:
            policy.avoid_previous_hosts = True
        elif name == _OMIT_CANARY_HOSTS:
            policy.omit_canary_hosts = True
        elif name == _OMIT_HOST_METADATA:
            where = child(item(path, "retry_host_predicate", i), "typed_config")
            config: Any = unpack_any(predicate.typed_config, where, errors)
            if config is not None and "envoy.lb" in config.metadata_match.filter_metadata:
                policy.omit_labels.append(MessageToDict(config.metadata_match.filter_metadata["envoy.lb"]))
        else:
            errors.add(item(path, "retry_host_predicate", i), f"{name or predicate.name} is not supported")
