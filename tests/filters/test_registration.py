"""Which filters there are, and the router's options."""

from __future__ import annotations

import pytest
from envoy.extensions.filters.http.router.v3.router_pb2 import Router

from meshproxy.filters.builtin import HTTP_FILTER_MODULES
from meshproxy.filters.http.router import build_router
from meshproxy.http.filter import HTTP_FILTER_OVERRIDES, HTTP_FILTERS
from tests.http.harness import Harness, parse

EXTENSIONS = "type.googleapis.com/envoy.extensions.filters.http"


@pytest.mark.parametrize(
    "message", ["cors.v3.Cors", "fault.v3.HTTPFault", "header_mutation.v3.HeaderMutation", "router.v3.Router"]
)
def test_a_filter_is_found_by_its_message(message: str) -> None:
    assert HTTP_FILTER_MODULES
    assert f"{EXTENSIONS}.{message}" in HTTP_FILTERS.type_urls()


@pytest.mark.parametrize(
    "message", ["cors.v3.CorsPolicy", "fault.v3.HTTPFault", "header_mutation.v3.HeaderMutationPerRoute"]
)
def test_overrides_are_found_by_their_message(message: str) -> None:
    assert f"{EXTENSIONS}.{message}" in HTTP_FILTER_OVERRIDES.type_urls()


def test_the_options_of_the_router() -> None:
    made = Harness()
    plain = build_router(Router(), "r", made.context)
    assert plain is not None
    assert (plain.suppress_envoy_headers, plain.respect_expected_rq_timeout, plain.dynamic_stats) == (
        False,
        False,
        True,
    )
    message = {"suppress_envoy_headers": True, "respect_expected_rq_timeout": True, "dynamic_stats": False}
    options = build_router(parse(message, Router()), "r", made.context)
    assert options is not None
    assert (options.suppress_envoy_headers, options.respect_expected_rq_timeout, options.dynamic_stats) == (
        True,
        True,
        False,
    )


def test_what_the_router_cannot_do_is_refused_by_its_path() -> None:
    made = Harness()
    message = {"strict_check_headers": ["x-envoy-max-retries"], "upstream_http_filters": [{"name": "f"}]}
    assert build_router(parse(message, Router()), "r", made.context) is None
    assert [error.path for error in made.errors.items] == ["r.strict_check_headers", "r.upstream_http_filters"]
