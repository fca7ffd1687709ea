"""Filters that rules of ours ask for: local rate limits, faults, and filters in Python."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault
from envoy.extensions.filters.http.local_ratelimit.v3.local_rate_limit_pb2 import LocalRateLimit
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from envoy.type.v3.percent_pb2 import FractionalPercent

from meshproxy.api.http_filter_pb2 import Python
from meshproxy.pilot.documents.common import covers
from meshproxy.pilot.mesh.names import full_host
from meshproxy.pilot.resources.actions import injected_fault
from meshproxy.pilot.resources.matches import header_matcher
from meshproxy.pilot.resources.messages import duration_of, pack, uint32

if TYPE_CHECKING:
    from meshproxy.pilot.documents.document import Document
    from meshproxy.pilot.documents.meshproxy_api import Fault, PythonFilter
    from meshproxy.pilot.documents.meshproxy_api import LocalRateLimit as LimitRule

INBOUND: Final = "INBOUND"
OUTBOUND: Final = "OUTBOUND"

_PREFIX: Final = "http_local_rate_limiter"
_TOO_MANY: Final = 429
_ALWAYS: Final = FractionalPercent(numerator=100)
_IDLE: Final = {"LocalRateLimit": pack(LocalRateLimit(stat_prefix=_PREFIX)), "Fault": pack(HTTPFault())}


def inbound_policies(policies: Iterable[Document], port: int) -> list[HttpFilter]:
    """One filter for each limit and each fault: the requests of a port share a limit's tokens."""
    return [
        HttpFilter(name=_name(policy), typed_config=pack(_message_of(policy)))
        for policy in policies
        if policy.spec.direction == INBOUND and policy.spec.port in (None, port)
    ]


def outbound_policies(policies: Iterable[Document], port: int) -> list[HttpFilter]:
    """Filters that do nothing but where a virtual host says what (see `set_host_policies`)."""
    return [
        HttpFilter(name=_name(policy), typed_config=_IDLE[policy.identity.kind])
        for policy in policies
        if policy.spec.direction == OUTBOUND and policy.spec.port in (None, port)
    ]


def set_host_policies(
    message: VirtualHost, policies: Iterable[Document], hostname: str, port: int, domain: str
) -> None:
    """Every service that an outbound limit is for has tokens of its own."""
    for policy in policies:
        rule = policy.spec
        if rule.direction != OUTBOUND or rule.port not in (None, port):
            continue
        hosts = [full_host(host, policy.namespace, domain) for host in rule.hosts]
        if not hosts or any(covers(host, hostname) for host in hosts):
            message.typed_per_filter_config[_name(policy)].CopyFrom(pack(_message_of(policy)))


def python_filters(filters: Iterable[Document], direction: str) -> list[HttpFilter]:
    """In the order that they say, then by name."""
    wanted = [one for one in filters if one.spec.direction in (direction, "BOTH")]
    wanted.sort(key=lambda one: (one.spec.order, one.identity))
    return [HttpFilter(name=_name(one), typed_config=pack(python_filter(one.spec))) for one in wanted]


def _name(document: Document) -> str:
    identity = document.identity
    return f"meshproxy.io/{identity.kind}/{identity.namespace}/{identity.name}"


def _message_of(policy: Document) -> LocalRateLimit | HTTPFault:
    return fault(policy.spec) if policy.identity.kind == "Fault" else rate_limit(policy.spec)


def fault(rule: Fault) -> HTTPFault:
    message = injected_fault(rule.delay, rule.abort)
    if rule.match is not None:
        message.headers.extend(header_matcher(name.lower(), wanted) for name, wanted in rule.match.headers)
    if rule.max_active_faults is not None:
        message.max_active_faults.CopyFrom(uint32(rule.max_active_faults))
    return message


def rate_limit(rule: LimitRule) -> LocalRateLimit:
    message = LocalRateLimit(stat_prefix=_PREFIX)
    message.token_bucket.max_tokens = rule.token_bucket.max_tokens
    message.token_bucket.tokens_per_fill.CopyFrom(uint32(rule.token_bucket.tokens_per_fill))
    message.token_bucket.fill_interval.CopyFrom(duration_of(rule.token_bucket.fill_interval))
    message.filter_enabled.default_value.CopyFrom(_ALWAYS)
    message.filter_enforced.default_value.CopyFrom(_ALWAYS)
    if rule.status != _TOO_MANY:
        message.status.code = rule.status
    message.local_rate_limit_per_downstream_connection = rule.per_connection
    for name, value in rule.response_headers:
        header = HeaderValueOption(header=HeaderValue(key=name, value=value))
        header.append_action = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        message.response_headers_to_add.append(header)
    return message


def python_filter(rule: PythonFilter) -> Python:
    message = Python(fail_open=rule.fail_open)
    if rule.file:
        message.file = rule.file
    elif rule.module:
        message.module = rule.module
    else:
        message.entry_point = rule.entry_point
    setattr(message, "class", rule.class_)
    message.config.update(json.loads(rule.config))
    if rule.hook_timeout is not None:
        message.hook_timeout.CopyFrom(duration_of(rule.hook_timeout))
    if rule.slow_hook is not None:
        message.slow_hook.CopyFrom(duration_of(rule.slow_hook))
    return message
