"""Conditions of RBAC's policies in the Common Expression Language: what holds in Envoy holds here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.differential.topic import ROUTER, TYPE, address
from tests.matching.expressions import as_json
from tests.matching.rows import HEADERS, HOST, METADATA, TARGET, Row, rows
from tests.support.downstream import RawDownstream
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

DEADLINE_S = 20.0
ROWS = rows()
ANY = [{"any": True}]
DIFFERENCES = {"cel-unknown"}
UNKNOWN = ("request.foo == 'a'", "response.code == 200", "foo", "'a'.matches(request.path)")


def bootstrap() -> str:
    """A listener whose route for each row, by a header, asks for its condition."""
    routes = []
    for number, row in enumerate(ROWS):
        routes.append(route(f"{number}", row.expression, row.option))
        routes.append(route(f"{number}-not", f"!({row.expression})", row.option))
    return with_routes(routes)


def with_routes(routes: list[dict[str, Any]]) -> str:
    hosts = [{"name": "all", "domains": ["*"], "routes": routes}]
    set_metadata = [{"metadata_namespace": name, "value": value} for name, value in METADATA.items()]
    filters = [
        {
            "name": "metadata",
            "typed_config": {"@type": TYPE + "filters.http.set_metadata.v3.Config", "metadata": set_metadata},
        },
        {"name": "rbac", "typed_config": {"@type": TYPE + "filters.http.rbac.v3.RBAC"}},
        ROUTER,
    ]
    manager = {
        "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "preserve_external_request_id": True,
        "route_config": {"virtual_hosts": hosts},
        "http_filters": filters,
    }
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "cel", "address": address(0), "filter_chains": [chain]}
    return json.dumps({"admin": {"address": address(0)}, "static_resources": {"listeners": [listener]}})


def route(name: str, expression: str, option: str) -> dict[str, Any]:
    policy: dict[str, Any] = {"permissions": ANY, "principals": ANY, "condition": as_json(expression)}
    if option:
        policy["cel_config"] = {option: True}
    rules = {"rules": {"action": "ALLOW", "policies": {"p": policy}}}
    return {
        "match": {"prefix": "/", "headers": [{"name": "x-row", "string_match": {"exact": name}}]},
        "direct_response": {"status": 200},
        "typed_per_filter_config": {"rbac": {"@type": TYPE + "filters.http.rbac.v3.RBACPerRoute", "rbac": rules}},
    }


@pytest.fixture(scope="module")
def connections() -> Iterator[dict[str, RawDownstream]]:
    with ExitStack() as stack:
        proxies: dict[str, ProxyProcess] = {
            "envoy": stack.enter_context(start_envoy(bootstrap())),
            "meshproxy": stack.enter_context(start_meshproxy(bootstrap())),
        }
        yield {
            name: stack.enter_context(RawDownstream(proxy.listener_ports()["cel"], timeout_s=DEADLINE_S))
            for name, proxy in proxies.items()
        }


def holds(connection: RawDownstream, name: str) -> bool:
    fields = "".join(f"{key}: {value}\r\n" for key, value in (*HEADERS, ("x-row", name)))
    connection.send(f"GET {TARGET} HTTP/1.1\r\nhost: {HOST}\r\n{fields}\r\n".encode())
    status = connection.receive().status
    assert status in (200, 403), status
    return status == 200


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[row.expression for row in ROWS])
def test_both_make_the_same_of_it(connections: dict[str, RawDownstream], number: int) -> None:
    row: Row = ROWS[number]
    found = {
        name: (holds(connection, f"{number}"), holds(connection, f"{number}-not"))
        for name, connection in connections.items()
    }
    assert found == dict.fromkeys(connections, (row.holds, row.negation_holds))


@pytest.mark.parametrize("expression", UNKNOWN)
def test_what_never_has_a_value_is_refused(expression: str, tmp_path: Path) -> None:
    """The row `cel-unknown` of docs/envoy-differences.md: Envoy takes it, and then it matches nobody."""
    text = with_routes([route("x", expression, "")])
    file = tmp_path / "bootstrap.json"
    file.write_text(text)
    with start_envoy(text) as envoy, RawDownstream(envoy.listener_ports()["cel"], timeout_s=DEADLINE_S) as connection:
        assert not holds(connection, "x")
    command = [sys.executable, "-m", "meshproxy", "validate", "-c", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert ".condition." in done.stdout + done.stderr
