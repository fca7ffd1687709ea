"""`envoy.filters.http.router`: what its message says about the router, which itself stands in http/router.py."""

from __future__ import annotations

from typing import Any

from envoy.extensions.filters.http.router.v3.router_pb2 import Router

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import child
from meshproxy.http.build import build_access_logs
from meshproxy.http.filter import HttpFilterType, register_http_filter
from meshproxy.http.router_options import RouterOptions

# Set in a file they would change what is forwarded, and we do not do what they say.
_NOT_SUPPORTED = ("strict_check_headers", "upstream_http_filters")


def build_router(message: Any, path: str, context: BuildContext) -> RouterOptions | None:
    """The options; None, with an error at its path, for a field that cannot be honoured."""
    refused = [field for field in _NOT_SUPPORTED if getattr(message, field)]
    for field in refused:
        context.errors.add(child(path, field), "is not supported")
    options = RouterOptions()
    options.suppress_envoy_headers = message.suppress_envoy_headers
    options.respect_expected_rq_timeout = message.respect_expected_rq_timeout
    options.suppress_grpc_codes = message.suppress_grpc_request_failure_code_stats
    options.dynamic_stats = message.dynamic_stats.value if message.HasField("dynamic_stats") else True
    options.upstream_log = tuple(build_access_logs(message.upstream_log, child(path, "upstream_log"), context))
    return None if refused else options


register_http_filter(Router, HttpFilterType(build_router))
