"""Configurations on the edge of what is taken: both proxies take them, or neither does."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.differential.topic import SERVERS, TYPE, Topic
from tests.support.proxy import envoy_binary

PORTS = dict.fromkeys((*SERVERS, "dead"), 9)


def direct(size: int, more: str = "") -> str:
    """A direct response with a body of `size` bytes."""
    body = f"body: {{ inline_string: '{'x' * size}' }}" if size else "body: { inline_string: '' }"
    return f"{more}\nvirtual_hosts: [{host(f'direct_response: {{ status: 200, {body} }}')}]"


def forward(fields: str, vhost: str = "", table: str = "") -> str:
    """A route to a with more fields."""
    return f"{table}\nvirtual_hosts: [{host(f'route: {{ cluster: a, {fields} }}', vhost)}]"


def host(action: str, more: str = "") -> str:
    """A virtual host with one route."""
    more = f", {more}" if more else ""
    return f"{{ name: x, domains: [x.test], routes: [{{ match: {{ prefix: / }}, {action} }}]{more} }}"


LIMIT = "max_direct_response_body_size_bytes"
MIRRORS = "request_mirror_policies"
TAKEN = {
    "body_of_4096": direct(4096),
    "body_of_limit": direct(10, f"{LIMIT}: 10"),
    "body_over_default_within_limit": direct(5000, f"{LIMIT}: 5000"),
    "empty_body_and_limit_0": direct(0, f"{LIMIT}: 0"),
    "limit_0_is_none": direct(5000, f"{LIMIT}: 0"),
    "mirror_to_itself": forward(f"{MIRRORS}: [{{ cluster: a }}]"),
    "mirror_unknown_not_validated": forward(f"{MIRRORS}: [{{ cluster: nope }}]", table="validate_clusters: false"),
    "redirect_status_that_is_none": forward("internal_redirect_policy: { redirect_response_codes: [200] }"),
    "both_forms_of_redirects": forward(
        "internal_redirect_policy: {}, internal_redirect_action: HANDLE_INTERNAL_REDIRECT"
    ),
    "upgrade_unknown": forward("upgrade_configs: [{ upgrade_type: whatever }, { upgrade_type: other }]"),
    "upgrade_connect_disabled": forward(
        "upgrade_configs: [{ upgrade_type: CONNECT, enabled: false, connect_config: {} }]"
    ),
    "six_statuses": forward("internal_redirect_policy: { redirect_response_codes: [301, 302, 303, 304, 307] }"),
}
REFUSED = {
    "body_of_4097": (direct(4097), "virtual_hosts[0].routes[0].direct_response.body"),
    "body_over_limit": (direct(11, f"{LIMIT}: 10"), "virtual_hosts[0].routes[0].direct_response.body"),
    "mirror_to_nowhere": (forward(f"{MIRRORS}: [{{}}]"), f"routes[0].route.{MIRRORS}[0]"),
    "mirror_twice": (
        forward(f"{MIRRORS}: [{{ cluster: a, cluster_header: x-c }}]"),
        f"routes[0].route.{MIRRORS}[0]",
    ),
    "mirror_unknown": (forward(f"{MIRRORS}: [{{ cluster: nope }}]"), f"routes[0].route.{MIRRORS}[0].cluster"),
    "mirror_unknown_of_host": (
        forward("timeout: 1s", vhost=f"{MIRRORS}: [{{ cluster: nope }}]"),
        f"virtual_hosts[0].{MIRRORS}[0].cluster",
    ),
    "mirror_unknown_of_table": (
        forward("timeout: 1s", table=f"{MIRRORS}: [{{ cluster: nope }}]"),
        f"route_config.{MIRRORS}[0].cluster",
    ),
    "redirect_copies_path": (
        forward("internal_redirect_policy: { response_headers_to_copy: [':path'] }"),
        "internal_redirect_policy.response_headers_to_copy[0]",
    ),
    "redirect_copies_host": (
        forward("internal_redirect_policy: { response_headers_to_copy: [a, Host] }"),
        "internal_redirect_policy.response_headers_to_copy[1]",
    ),
    "too_many_statuses": (
        forward("internal_redirect_policy: { redirect_response_codes: [301, 302, 303, 304, 307, 308] }"),
        "internal_redirect_policy.redirect_response_codes",
    ),
    "predicate_of_other_kind": (
        forward(
            "internal_redirect_policy: { predicates: [{ name: x, typed_config: "
            f"{{ '@type': {TYPE}filters.http.router.v3.Router }} }}] }}"
        ),
        "internal_redirect_policy.predicates[0].typed_config",
    ),
    "upgrade_twice": (
        forward("upgrade_configs: [{ upgrade_type: websocket }, { upgrade_type: WebSocket }]"),
        "upgrade_configs[1].upgrade_type",
    ),
    "upgrade_with_connect_config": (
        forward("upgrade_configs: [{ upgrade_type: websocket, connect_config: {} }]"),
        "upgrade_configs[0].connect_config",
    ),
    "no_initial_requests": (forward("hedge_policy: { initial_requests: 0 }"), "hedge_policy.initial_requests"),
}


def validate(command: list[str], routes: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Let one proxy check a configuration."""
    listener = "route_config:\n" + "".join(f"  {line}\n" for line in routes.strip().splitlines())
    config = directory / "envoy.yaml"
    config.write_text(Topic(listeners={"main": listener}).bootstrap_yaml(PORTS, str(directory / "access.log")))
    return subprocess.run([*command, "-c", str(config)], capture_output=True, text=True, timeout=60, check=False)


def envoy(routes: str, directory: Path) -> bool:
    """Whether Envoy takes it."""
    command = [envoy_binary(), "--mode", "validate", "--log-level", "error", "--use-dynamic-base-id"]
    return validate(command, routes, directory).returncode == 0


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str, tmp_path: Path) -> None:
    assert envoy(TAKEN[name], tmp_path)
    result = validate([sys.executable, "-m", "meshproxy", "validate"], TAKEN[name], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    routes, path = REFUSED[name]
    assert not envoy(routes, tmp_path)
    result = validate([sys.executable, "-m", "meshproxy", "validate"], routes, tmp_path)
    assert result.returncode == 1
    assert path in result.stdout + result.stderr
