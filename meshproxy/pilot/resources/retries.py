"""When a request is tried again: Istio's default, and what a rule says instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from envoy.config.route.v3.route_components_pb2 import RetryPolicy
from envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2 import PreviousHostsPredicate

from meshproxy.pilot.resources.messages import duration_of, pack, uint32

if TYPE_CHECKING:
    from meshproxy.pilot.documents.virtual_service import HTTPRetry

_DEFAULT_ON: Final = "connect-failure,refused-stream,unavailable,cancelled"
DEFAULT_ATTEMPTS: Final = 2
_HOST_ATTEMPTS: Final = 5  # how often a host is picked anew that is one of those that failed
_PREVIOUS_HOSTS: Final = pack(PreviousHostsPredicate())


def retry_policy(rule: HTTPRetry | None) -> RetryPolicy | None:
    """None: the rule forbids retries."""
    if rule is None:
        return _policy(_DEFAULT_ON, DEFAULT_ATTEMPTS)
    if rule.attempts == 0:
        return None
    policy = _policy(rule.retry_on or _DEFAULT_ON, rule.attempts or DEFAULT_ATTEMPTS)
    if rule.per_try_timeout is not None:
        policy.per_try_timeout.CopyFrom(duration_of(rule.per_try_timeout))
    if rule.backoff is not None:
        policy.retry_back_off.base_interval.CopyFrom(duration_of(rule.backoff))
    if rule.retry_ignore_previous_hosts is False:
        policy.ClearField("retry_host_predicate")
        policy.host_selection_retry_max_attempts = 0
    return policy


def inbound_retry_policy() -> RetryPolicy:
    """At the application's own side: what a connection that it closed in time has not seen."""
    return RetryPolicy(retry_on="reset-before-request", num_retries=uint32(2))


def _policy(conditions: str, attempts: int) -> RetryPolicy:
    """Numbers among the conditions are status codes."""
    words = [word.strip() for word in conditions.split(",") if word.strip()]
    codes = [int(word) for word in words if word.isdigit()]
    names = [word for word in words if not word.isdigit()]
    if codes and "retriable-status-codes" not in names:
        names.append("retriable-status-codes")
    policy = RetryPolicy(retry_on=",".join(names), num_retries=uint32(attempts), retriable_status_codes=codes)
    predicate = policy.retry_host_predicate.add(name="envoy.retry_host_predicates.previous_hosts")
    predicate.typed_config.CopyFrom(_PREVIOUS_HOSTS)
    policy.host_selection_retry_max_attempts = _HOST_ATTEMPTS
    return policy
