"""ApiConfigSource: what is taken of it, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.config.subscription import RUNTIME_TYPE, SECRET_TYPE, VIRTUAL_HOST_TYPE
from meshproxy.observe.stats import StatsRegistry
from meshproxy.xds.api_source import ApiSource, build_api_source, stream_path
from tests.xds.harness import api


def build(**fields: Any) -> tuple[ApiSource | None, ConfigErrors]:
    context = BuildContext(ConfigErrors(), Runtime(), StatsRegistry())
    return build_api_source(api(**fields), "s", context), context.errors


def built(**fields: Any) -> ApiSource:
    source, errors = build(**fields)
    assert source is not None, str(errors)
    return source


def service(**policy: Any) -> dict[str, Any]:
    return {"envoy_grpc": {"cluster_name": "c", **({"retry_policy": policy} if policy else {})}}


@pytest.mark.parametrize(
    ("api_type", "delta"),
    [("GRPC", False), ("DELTA_GRPC", True), ("AGGREGATED_GRPC", False), ("AGGREGATED_DELTA_GRPC", True)],
)
def test_the_form_of_the_protocol(api_type: str, delta: bool) -> None:
    assert built(api_type=api_type).delta == delta


def test_envoy_s_defaults() -> None:
    source = built(grpc_services=[service()])
    assert (source.back_off_base_ms, source.back_off_max_ms, source.max_tokens) == (500.0, 30_000.0, 0)
    source = built(rate_limit_settings={})
    assert (source.max_tokens, source.tokens_per_s) == (100, 10.0)


def test_what_is_configured() -> None:
    back_off = service(retry_back_off={"base_interval": "0.2s", "max_interval": "1s"})
    source = built(grpc_services=[back_off], rate_limit_settings={"max_tokens": 3, "fill_rate": 0.5})
    assert (source.back_off_base_ms, source.back_off_max_ms) == (200.0, 1000.0)
    assert (source.max_tokens, source.tokens_per_s) == (3, 0.5)
    assert built(grpc_services=[service(retry_back_off={"base_interval": "0.2s"})]).back_off_max_ms == 2000.0


def test_what_is_refused() -> None:
    source, errors = build(api_type="REST", grpc_services=[], config_validators=[{"name": "v"}])
    assert source is None
    assert {error.path: error.reason for error in errors.items} == {
        "s.api_type": "only GRPC and DELTA_GRPC are supported",
        "s.config_validators": "are not supported",
        "s.grpc_services": "at least one is required",
    }
    assert [error.path for error in build(grpc_services=[service(), {}])[1].items] == ["s.grpc_services[1]"]


@pytest.mark.parametrize(
    ("type_url", "delta", "path"),
    [
        ("", False, b"/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"),
        ("", True, b"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"),
        (SECRET_TYPE, False, b"/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"),
        (VIRTUAL_HOST_TYPE, True, b"/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts"),
        (VIRTUAL_HOST_TYPE, False, None),
        (RUNTIME_TYPE, False, b"/envoy.service.runtime.v3.RuntimeDiscoveryService/StreamRuntime"),
        ("type.googleapis.com/no.Such", False, None),
    ],
)
def test_the_methods(type_url: str, delta: bool, path: bytes | None) -> None:
    assert stream_path(type_url, delta=delta) == path
