"""Configurations of the sidecar's filters on the edge of what is taken: both proxies take them, or neither does."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.differential.test_filters import filters, per_route
from tests.differential.test_load_errors import PORTS
from tests.differential.test_sidecar_filters import buffer, health_check, http_filter, percentages, set_metadata
from tests.differential.topic import Topic
from tests.support.proxy import envoy_binary


def h2m_rule(text: str) -> str:
    """A listener with one rule."""
    return filters(http_filter("h2m", "header_to_metadata.v3.Config", f"request_rules: [{{ {text} }}]"))


def on_route(kind: str, fields: str, name: str = "f") -> str:
    """A route with an override of a filter that is not there."""
    override = per_route(name, kind, fields).strip()
    return (
        f"route_config: {{ virtual_hosts: [{{ name: x, domains: [x.test], routes: [{{ match: {{ prefix: / }}, "
        f"route: {{ cluster: a }}, {override} }}] }}] }}"
    )


TAKEN = {
    "buffer_1": buffer(1),
    "buffer_route_disabled": filters(http_filter("buffer", "buffer.v3.Buffer", "max_request_bytes: 10")),
    "health_no_headers": filters(http_filter("h", "health_check.v3.HealthCheck", "pass_through_mode: true")),
    "health_cache_0": health_check("pass_through_mode: true, cache_time: 0s"),
    "health_101_percent": health_check("pass_through_mode: false, cache_time: null"),
    "health_no_cluster_of_that_name": health_check(percentages(("nowhere", 5))),
    "h2m_nothing": filters(http_filter("h2m", "header_to_metadata.v3.Config", "request_rules: []")),
    "h2m_missing_and_rewrite": h2m_rule(
        "header: a, on_header_missing: { key: k, value: v, regex_value_rewrite: { pattern: { regex: a }, substitution: b } }"
    ),
    "set_nothing": filters(set_metadata()),
}
"""Of listener `main`."""

WHERE = "filters[0].typed_config.http_filters[0].typed_config"
RULE = f"{WHERE}.request_rules[0]"
PRESENT = "on_header_present: { key: k }"
ON_ROUTE = "routes[0].typed_per_filter_config[f]"
REFUSED = {
    "buffer_no_limit": (filters(http_filter("b", "buffer.v3.Buffer", "")), f"{WHERE}.max_request_bytes"),
    "buffer_0": (buffer(0), f"{WHERE}.max_request_bytes"),
    "buffer_route_empty": (on_route("buffer.v3.BufferPerRoute", ""), ON_ROUTE),
    "buffer_route_not_disabled": (on_route("buffer.v3.BufferPerRoute", "disabled: false"), f"{ON_ROUTE}.disabled"),
    "buffer_route_no_limit": (
        on_route("buffer.v3.BufferPerRoute", "buffer: {}"),
        f"{ON_ROUTE}.buffer.max_request_bytes",
    ),
    "health_no_mode": (filters(http_filter("h", "health_check.v3.HealthCheck", "")), f"{WHERE}.pass_through_mode"),
    "health_cache_alone": (health_check("pass_through_mode: false, cache_time: 1s"), f"{WHERE}.cache_time"),
    "health_percent": (health_check(percentages(("a", 101))), f"{WHERE}.cluster_min_healthy_percentages[a].value"),
    "h2m_no_source": (h2m_rule(PRESENT), RULE),
    "h2m_two_sources": (h2m_rule(f"header: a, cookie: b, {PRESENT}"), RULE),
    "h2m_cookie_removed": (h2m_rule(f"cookie: b, remove: true, {PRESENT}"), f"{RULE}.remove"),
    "h2m_no_target": (h2m_rule("header: a"), RULE),
    "h2m_no_key": (h2m_rule("header: a, on_header_present: { value: b }"), f"{RULE}.on_header_present.key"),
    "h2m_missing_without_value": (
        h2m_rule("header: a, on_header_missing: { key: k }"),
        f"{RULE}.on_header_missing.value",
    ),
    "h2m_value_and_rewrite": (
        h2m_rule(
            "header: a, on_header_present: { key: k, value: v, regex_value_rewrite: { pattern: { regex: a }, substitution: b } }"
        ),
        f"{RULE}.on_header_present.regex_value_rewrite",
    ),
    "h2m_bad_regex": (
        h2m_rule(
            "header: a, on_header_present: { key: k, regex_value_rewrite: { pattern: { regex: '(' }, substitution: b } }"
        ),
        f"{RULE}.on_header_present.regex_value_rewrite.pattern.regex",
    ),
    "h2m_bad_header": (h2m_rule(f'header: "a\\nb", {PRESENT}'), f"{RULE}.header"),
    "h2m_route_nothing": (on_route("header_to_metadata.v3.Config", ""), ON_ROUTE),
    "set_no_namespace": (filters(set_metadata("{ value: { a: b } }")), f"{WHERE}.metadata[0].metadata_namespace"),
}


def validate(command: list[str], listener: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Let one proxy check a configuration with this listener."""
    config = directory / "envoy.yaml"
    config.write_text(Topic(listeners={"main": listener}).bootstrap_yaml(PORTS, str(directory / "access.log")))
    return subprocess.run([*command, "-c", str(config)], capture_output=True, text=True, timeout=60, check=False)


def envoy(listener: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """What Envoy says."""
    command = [envoy_binary(), "--mode", "validate", "--log-level", "error", "--use-dynamic-base-id"]
    return validate(command, listener, directory)


def ours(listener: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """What we say."""
    return validate([sys.executable, "-m", "meshproxy", "validate"], listener, directory)


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str, tmp_path: Path) -> None:
    for result in (envoy(TAKEN[name], tmp_path), ours(TAKEN[name], tmp_path)):
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    listener, path = REFUSED[name]
    assert envoy(listener, tmp_path).returncode == 1
    result = ours(listener, tmp_path)
    assert result.returncode == 1
    assert f"{path}: " in result.stdout + result.stderr
