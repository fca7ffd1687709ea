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


def custom(*pairs: tuple[int, int]) -> str:
    """`http2_protocol_options` with these parameters."""
    return f"custom_settings_parameters: [{', '.join(f'{{ identifier: {i}, value: {value} }}' for i, value in pairs)}]"


KEEPALIVE = "connection_keepalive"
HTTP2_TAKEN = {
    "empty": "",
    "smallest": "hpack_table_size: 0, max_concurrent_streams: 1, initial_stream_window_size: 65535, "
    "initial_connection_window_size: 65535, max_outbound_frames: 1, max_outbound_control_frames: 1, "
    "max_consecutive_inbound_frames_with_empty_payload: 0, max_inbound_priority_frames_per_stream: 0, "
    "max_inbound_window_update_frames_per_data_frame_sent: 1",
    "largest": "max_concurrent_streams: 2147483647, initial_stream_window_size: 2147483647, "
    "initial_connection_window_size: 2147483647, hpack_table_size: 4294967295",
    "unknown_parameter": custom((77, 7), (77, 7), (0, 1), (65535, 1), (2, 0)),
    "frame_size": custom((5, 20000)),
    "no_interval": f"{KEEPALIVE}: {{ timeout: 1s }}",
    "only_when_idle": f"{KEEPALIVE}: {{ timeout: 1s, connection_idle_interval: 1s }}",
}
HTTP2_REFUSED = {
    "no_streams": ("max_concurrent_streams: 0", "max_concurrent_streams"),
    "too_many_streams": ("max_concurrent_streams: 2147483648", "max_concurrent_streams"),
    "small_stream_window": ("initial_stream_window_size: 65534", "initial_stream_window_size"),
    "large_stream_window": ("initial_stream_window_size: 2147483648", "initial_stream_window_size"),
    "small_connection_window": ("initial_connection_window_size: 65534", "initial_connection_window_size"),
    "no_frames": ("max_outbound_frames: 0", "max_outbound_frames"),
    "no_control_frames": ("max_outbound_control_frames: 0", "max_outbound_control_frames"),
    "no_window_updates": (
        "max_inbound_window_update_frames_per_data_frame_sent: 0",
        "max_inbound_window_update_frames_per_data_frame_sent",
    ),
    "push": (custom((2, 1)), "custom_settings_parameters[0].value"),
    "connect_protocol": (custom((8, 1)), "custom_settings_parameters[0].identifier"),
    "large_identifier": (custom((65536, 1)), "custom_settings_parameters[0].identifier"),
    "two_values": (custom((16, 1), (16, 2)), "custom_settings_parameters[1]"),
    "named_and_custom": (
        f"{custom((3, 5))}, max_concurrent_streams: 5",
        "custom_settings_parameters[0].identifier",
    ),
    "keepalive_without_timeout": (f"{KEEPALIVE}: {{ interval: 1s }}", f"{KEEPALIVE}.timeout"),
    "keepalive_short_timeout": (f"{KEEPALIVE}: {{ interval: 1s, timeout: 0.0005s }}", f"{KEEPALIVE}.timeout"),
    "keepalive_no_interval": (f"{KEEPALIVE}: {{ interval: 0s, timeout: 1s }}", f"{KEEPALIVE}.interval"),
    "keepalive_jitter": (
        f"{KEEPALIVE}: {{ interval: 1s, timeout: 1s, interval_jitter: {{ value: 101 }} }}",
        f"{KEEPALIVE}.interval_jitter",
    ),
}


def validate(command: list[str], routes: str, directory: Path, more: str = "") -> subprocess.CompletedProcess[str]:
    """Let one proxy check a configuration, with more lines for the connection manager."""
    listener = more + "route_config:\n" + "".join(f"  {line}\n" for line in routes.strip().splitlines())
    config = directory / "envoy.yaml"
    config.write_text(Topic(listeners={"main": listener}).bootstrap_yaml(PORTS, str(directory / "access.log")))
    return subprocess.run([*command, "-c", str(config)], capture_output=True, text=True, timeout=60, check=False)


def envoy(routes: str, directory: Path, more: str = "") -> bool:
    """Whether Envoy takes it."""
    command = [envoy_binary(), "--mode", "validate", "--log-level", "error", "--use-dynamic-base-id"]
    return validate(command, routes, directory, more).returncode == 0


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


@pytest.mark.parametrize("name", HTTP2_TAKEN)
def test_http2_options_taken(name: str, tmp_path: Path) -> None:
    more = f"http2_protocol_options: {{ {HTTP2_TAKEN[name]} }}\n"
    assert envoy(direct(1), tmp_path, more)
    result = validate([sys.executable, "-m", "meshproxy", "validate"], direct(1), tmp_path, more)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", HTTP2_REFUSED)
def test_http2_options_refused(name: str, tmp_path: Path) -> None:
    options, path = HTTP2_REFUSED[name]
    more = f"http2_protocol_options: {{ {options} }}\n"
    assert not envoy(direct(1), tmp_path, more)
    result = validate([sys.executable, "-m", "meshproxy", "validate"], direct(1), tmp_path, more)
    assert result.returncode == 1
    assert f"http2_protocol_options.{path}" in result.stdout + result.stderr
