"""Retry policies: Envoy's words, defaults and limits."""

from __future__ import annotations

import pytest
import yaml
from envoy.config.route.v3 import route_components_pb2

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.route import retry_policy as rp


def parse(text: str) -> tuple[rp.RetryPolicy, list[str]]:
    """The policy of a YAML text, and the errors."""
    errors = ConfigErrors()
    message = route_components_pb2.RetryPolicy()
    MessageParser(errors).fill(message, yaml.safe_load(text), "p")
    policy = rp.build_retry_policy(message, "p", errors)
    return policy, [str(error) for error in errors.items]


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("", 0),
        ("5xx", rp.RETRY_5XX),
        ("5xx,gateway-error", rp.RETRY_5XX | rp.RETRY_GATEWAY_ERROR),
        (" reset , connect-failure ", rp.RETRY_RESET | rp.RETRY_CONNECT_FAILURE),
        ("retriable-4xx,nonsense,,refused-stream", rp.RETRY_4XX | rp.RETRY_REFUSED_STREAM),
        ("retriable-status-codes,retriable-headers", rp.RETRY_STATUS_CODES | rp.RETRY_HEADERS),
        ("reset-before-request,envoy-ratelimited", rp.RETRY_RESET_BEFORE_REQUEST | rp.RETRY_ENVOY_RATE_LIMITED),
        ("cancelled", 0),
    ],
)
def test_retry_on(text: str, bits: int) -> None:
    assert rp.parse_retry_on(text) == bits


def test_retry_grpc_on() -> None:
    text = "cancelled,deadline-exceeded,resource-exhausted,unavailable,internal,5xx"
    assert rp.parse_retry_grpc_on(text) == (
        rp.RETRY_GRPC_CANCELLED
        | rp.RETRY_GRPC_DEADLINE_EXCEEDED
        | rp.RETRY_GRPC_RESOURCE_EXHAUSTED
        | rp.RETRY_GRPC_UNAVAILABLE
        | rp.RETRY_GRPC_INTERNAL
    )


def test_status_codes() -> None:
    assert rp.parse_status_codes("503, 429,x,,²") == {503, 429}


def test_defaults() -> None:
    policy, errors = parse("{retry_on: '5xx,unavailable'}")
    assert not errors
    assert policy.retry_on == rp.RETRY_5XX | rp.RETRY_GRPC_UNAVAILABLE
    assert (policy.num_retries, policy.per_try_timeout_ms, policy.per_try_idle_timeout_ms) == (1, 0, 0)
    assert (policy.back_off_base_ms, policy.back_off_max_ms, policy.reset_max_ms) == (25, 250, 300_000)
    assert (policy.host_selection_retry_max_attempts, policy.avoid_previous_hosts) == (1, False)


def test_everything_set() -> None:
    policy, errors = parse(
        """
        num_retries: 0
        per_try_timeout: 0.25s
        per_try_idle_timeout: 1s
        retriable_status_codes: [503, 418]
        host_selection_retry_max_attempts: 5
        retry_back_off: {base_interval: 0.0001s, max_interval: 1s}
        rate_limited_retry_back_off:
          max_interval: 9s
          reset_headers: [{name: Retry-After}, {name: X-Reset, format: UNIX_TIMESTAMP}]
        retry_host_predicate:
        - name: a
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate
        - name: b
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate
        """
    )
    assert not errors
    assert (policy.num_retries, policy.per_try_timeout_ms, policy.per_try_idle_timeout_ms) == (0, 250, 1000)
    assert policy.retriable_status_codes == {503, 418}
    assert (policy.back_off_base_ms, policy.back_off_max_ms, policy.reset_max_ms) == (1, 1000, 9000)
    assert [(each.name, each.unix_timestamp) for each in policy.reset_headers] == [
        (b"retry-after", False),
        (b"x-reset", True),
    ]
    assert policy.avoid_previous_hosts
    assert policy.omit_canary_hosts
    assert policy.host_selection_retry_max_attempts == 5


def test_refused() -> None:
    _, errors = parse(
        """
        retry_back_off: {base_interval: 1s, max_interval: 0.5s}
        retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}]
        retry_priority: {name: x}
        retry_options_predicates: [{name: x}]
        """
    )
    assert [error.partition(":")[0] for error in errors] == [
        "p.retry_back_off.max_interval",
        "p.retry_host_predicate[0]",
        "p.retry_priority",
        "p.retry_options_predicates",
    ]


def test_headers_that_decide() -> None:
    policy, errors = parse(
        """
        retriable_headers: [{name: x-a, present_match: true}, {name: x-b, string_match: {exact: "1"}}]
        retriable_request_headers: [{name: ":method", string_match: {exact: GET}}]
        """
    )
    assert not errors
    assert policy.allows_request(HeaderMap([(b":method", b"GET")]))
    assert not policy.allows_request(HeaderMap([(b":method", b"POST")]))
    assert policy.retriable_response_headers(HeaderMap([(b"x-b", b"1")]))
    assert not policy.retriable_response_headers(HeaderMap([(b"x-b", b"2")]))
    assert rp.RetryPolicy().allows_request(HeaderMap())
