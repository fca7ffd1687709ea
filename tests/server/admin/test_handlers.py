"""The commands on a fake server: what they tell it, and what they answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshproxy.net.address import Address
from meshproxy.server.admin.backend import DRAINING, INITIALIZING, LIVE, PRE_INITIALIZING, ListenerStatus
from meshproxy.server.admin.commands import COMMANDS
from meshproxy.server.admin.exchange import AdminRequest, parse_params
from meshproxy.server.admin.handlers import AdminHandlers
from tests.server.admin.backend import FakeBackend
from tests.server.admin.client import Answer

POST_ONLY = {
    "/drain_listeners",
    "/healthcheck/fail",
    "/healthcheck/ok",
    "/logging",
    "/quitquitquit",
    "/reopen_logs",
    "/reset_counters",
    "/runtime_modify",
}


async def handle(
    backend: FakeBackend, target: str, method: str = "GET", body: bytes = b"", content_type: str = ""
) -> Answer:
    response = await AdminHandlers(backend).handle(AdminRequest(method, target, content_type, body))
    return Answer(response.status, {"content-type": response.content_type}, "".join(response.body))


async def post(backend: FakeBackend, target: str) -> Answer:
    return await handle(backend, target, "POST")


# -- dispatch


@pytest.mark.parametrize("path", [command.path for command in COMMANDS])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_what_changes_state_is_post(backend: FakeBackend, path: str, method: str) -> None:
    answer = await handle(backend, path, method)
    if path in POST_ONLY:
        assert answer.status == 405
        assert answer.body == f"Method {method} not allowed, POST required."
        assert not backend.told
    else:
        assert answer.status == 200


async def test_only_allowed_targets_are_served(backend: FakeBackend) -> None:
    handlers = AdminHandlers(backend, lambda target: target == "/ready")
    assert (await handlers.handle(AdminRequest("GET", "/ready"))).status == 200
    refused = await handlers.handle(AdminRequest("GET", "/ready?a"))
    assert (refused.status, "".join(refused.body)) == (403, "request to path /ready?a not allowed")


async def test_the_home_page_lists_every_command(backend: FakeBackend) -> None:
    answer = await handle(backend, "/")
    assert answer.headers["content-type"] == "text/html; charset=UTF-8"
    for command in COMMANDS[1:]:
        attribute = "action" if command.path in POST_ONLY else "href"
        assert f'{attribute}="{command.path[1:]}"' in answer.body


async def test_help_lists_every_command(backend: FakeBackend) -> None:
    body = (await handle(backend, "/help")).body
    for command in COMMANDS:
        assert f"  {command.path}{' (POST)' if command.path in POST_ONLY else ''}: " in body


@pytest.mark.parametrize(
    ("query", "params"),
    [
        ("", {}),
        ("a", {"a": ""}),
        ("a=1&a=2", {"a": "1"}),
        ("a=b=c&&=&d=%20%41+1", {"a": "b=c", "": "", "d": " A+1"}),
        ("%66ilter=%5Ea%24", {"filter": "^a$"}),
        ("a=%zz", {"a": "%zz"}),
    ],
)
def test_parameters(query: str, params: dict[str, str]) -> None:
    assert parse_params(query) == params


# -- what it is


@pytest.mark.parametrize(
    ("state", "status"), [(LIVE, 200), (DRAINING, 503), (PRE_INITIALIZING, 503), (INITIALIZING, 503)]
)
async def test_ready_fails_unless_live(backend: FakeBackend, state: str, status: int) -> None:
    backend.server_state = state
    answer = await handle(backend, "/ready")
    assert (answer.status, answer.body) == (status, f"{state}\n")
    assert json.loads((await handle(backend, "/server_info")).body)["state"] == state


async def test_server_info(backend: FakeBackend) -> None:
    info = json.loads((await handle(backend, "/server_info")).body)
    assert info["version"] == "abc/0.1.0/Clean/RELEASE"
    assert info["uptime_current_epoch"] == "7s"
    assert info["hot_restart_version"] == "disabled"
    assert info["node"]["id"] == "n1"
    assert info["command_line_options"]["concurrency"] == 1
    assert info["command_line_options"]["drain_time"] == "20s"


async def test_listeners_on_unix_sockets_and_ipv6(backend: FakeBackend) -> None:
    backend.listener_statuses = [
        ListenerStatus("u", [Address("", 0, "/tmp/l.sock"), Address("::1", 80)]),
    ]
    assert (await handle(backend, "/listeners")).body == "u::/tmp/l.sock\nu::[::1]:80\n"
    assert json.loads((await handle(backend, "/listeners?format=json")).body) == {
        "listener_statuses": [
            {
                "name": "u",
                "local_address": {"pipe": {"path": "/tmp/l.sock"}},
                "additional_local_addresses": [{"socket_address": {"address": "::1", "port_value": 80}}],
            }
        ]
    }


async def test_no_listeners(backend: FakeBackend) -> None:
    backend.listener_statuses = []
    assert not (await handle(backend, "/listeners")).body
    assert (await handle(backend, "/listeners?format=json")).body == "{}\n"


async def test_init_dump_names_what_is_waited_for(backend: FakeBackend) -> None:
    backend.targets = [("init manager Listener-local-init-manager ingress", ["target RDS"])]
    (dump,) = json.loads((await handle(backend, "/init_dump?mask=listener")).body)["configs"]
    assert dump["unready_targets_dumps"] == [
        {"name": "init manager Listener-local-init-manager ingress", "target_names": ["target RDS"]}
    ]
    assert (await handle(backend, "/init_dump?mask=cluster")).body == "{}\n"


# -- stats


async def test_stats_formats(backend: FakeBackend) -> None:
    text = await handle(backend, "/stats?filter=^cluster")
    assert text.body == "cluster.v1.upstream_rq_retry: 0\ncluster.v1.upstream_rq_total: 3\n"
    as_json = await handle(backend, "/stats?format=json&usedonly&filter=upstream")
    assert json.loads(as_json.body) == {"stats": [{"name": "cluster.v1.upstream_rq_total", "value": 3}]}
    assert as_json.headers["content-type"] == "application/json"
    for target in ("/stats/prometheus?filter=total", "/stats?format=prometheus&filter=total"):
        answer = await handle(backend, target)
        assert 'envoy_cluster_upstream_rq_total{envoy_cluster_name="v1"} 3\n' in answer.body
        assert "retry" not in answer.body


async def test_stats_invert_filter(backend: FakeBackend) -> None:
    answer = await handle(backend, "/stats?filter=cluster&invert_filter")
    assert answer.body == "server.live: 1\nserver.uptime: 7\n"


@pytest.mark.parametrize("path", ["/stats", "/stats/prometheus"])
async def test_a_bad_filter_is_400(backend: FakeBackend, path: str) -> None:
    answer = await handle(backend, f"{path}?filter=[")
    assert (answer.status, answer.body) == (400, "Invalid re2 regex: missing ]: [")
    answer = await handle(backend, f"{path}?filter=%ff")
    assert (answer.status, answer.body) == (400, "Invalid re2 regex: invalid UTF-8")


# -- what changes it


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("/reset_counters", ("reset_counters",)),
        ("/reopen_logs", ("reopen_logs",)),
        ("/quitquitquit", ("quit",)),
        ("/healthcheck/fail", ("fail_health_checks", True)),
        ("/healthcheck/ok", ("fail_health_checks", False)),
        ("/drain_listeners", ("drain_listeners", False, False, False)),
        ("/drain_listeners?inboundonly&graceful", ("drain_listeners", True, True, False)),
        ("/drain_listeners?graceful&skip_exit", ("drain_listeners", False, True, True)),
        ("/runtime_modify?a=1&b=", ("modify_runtime", {"a": "1", "b": ""})),
    ],
)
async def test_commands_reach_the_server(backend: FakeBackend, target: str, told: tuple[Any, ...]) -> None:
    answer = await post(backend, target)
    assert (answer.status, answer.body) == (200, "OK\n")
    assert backend.told == [told]


async def test_runtime_modify_takes_a_form(backend: FakeBackend) -> None:
    await handle(backend, "/runtime_modify", "POST", b"a=1&b=x%20y", "application/x-www-form-urlencoded")
    assert backend.told == [("modify_runtime", {"a": "1", "b": "x y"})]


async def test_runtime_modify_without_an_admin_layer(backend: FakeBackend) -> None:
    backend.layers = ["static"]
    answer = await post(backend, "/runtime_modify?a=1")
    assert (answer.status, answer.body) == (503, "No admin layer specified")


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("", None),
        ("?level=", None),
        ("?paths=", None),
        ("?level=debug", {"": "debug"}),
        ("?upstream=trace", {"upstream": "trace"}),
        ("?paths=admin:info,upstream:off", {"admin": "info", "upstream": "off"}),
    ],
)
async def test_logging_changes_levels(backend: FakeBackend, query: str, told: dict[str, str] | None) -> None:
    answer = await post(backend, f"/logging{query}")
    assert answer.status == 200
    assert backend.told == ([] if told is None else [("set_log_levels", told)])
    lines = [f"  {component}: {level}\n" for component, level in backend.levels.items()]
    assert answer.body == "active loggers:\n" + "".join(lines)


@pytest.mark.parametrize(
    "query",
    [
        "?level=loud",
        "?nobody=info",
        "?paths=admin:info,nobody:info",
        "?paths=admin",
        "?paths=admin:loud",
        "?group=a:info",
    ],
)
async def test_a_wrong_level_changes_nothing(backend: FakeBackend, query: str) -> None:
    answer = await post(backend, f"/logging{query}")
    assert answer.status == 400
    assert answer.body.startswith("error: ")
    assert "usage: " in answer.body
    assert not backend.told
