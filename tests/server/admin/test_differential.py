"""The real Envoy is the judge: the same questions to both, on the same configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.loader import load_bootstrap
from meshproxy.net.address import Address
from meshproxy.server.admin.backend import ListenerStatus
from meshproxy.server.admin.config_sections import ConfigEntry, config_sections
from tests.server.admin.backend import FakeBackend
from tests.server.admin.client import Answer, ask
from tests.support.proxy import ProxyProcess, start_envoy

CONFIG = """
node: {id: n1, cluster: c1}
admin:
  address: {socket_address: {address: 127.0.0.1, port_value: 0}}
layered_runtime:
  layers:
  - {name: static, static_layer: {foo: {bar: 7}, health_check: {min_interval: 5}, flag: true, share: 1.5}}
  - {name: adm, admin_layer: {}}
static_resources:
  listeners:
  - name: ingress
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    additional_addresses:
    - address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress_http
          route_config:
            name: local_route
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: v1, timeout: 1.5s}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: v1
    connect_timeout: 1s
    type: STATIC
    outlier_detection: {consecutive_5xx: 3}
    load_assignment:
      cluster_name: v1
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9}}}
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 10}}}
          health_status: UNHEALTHY
  - name: v2
    alt_stat_name: other
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 7}]}
    load_assignment:
      cluster_name: v2
      endpoints:
      - locality: {region: r, zone: z, sub_zone: s}
        lb_endpoints:
        - endpoint: {hostname: foo.example, address: {socket_address: {address: "::1", port_value: 10}}}
          load_balancing_weight: 3
          metadata: {filter_metadata: {envoy.lb: {canary: true}}}
"""

SAME_HEADERS = ("content-type", "cache-control", "x-content-type-options")


@pytest.fixture(scope="module")
def envoy() -> Iterator[ProxyProcess]:
    with start_envoy(CONFIG, "--disable-hot-restart") as process:
        yield process


def body_of(envoy: ProxyProcess, path: str, method: str = "GET") -> str:
    status, body = envoy.admin(path, method)
    assert status == 200
    return body


async def both(envoy: ProxyProcess, admin: str, target: str, method: str = "GET") -> tuple[Answer, Answer]:
    """(Envoy's, ours), with the same status and headers."""
    theirs = await ask(envoy.admin_address, target, method)
    ours = await ask(admin, target, method)
    assert ours.status == theirs.status
    for name in SAME_HEADERS:
        assert ours.headers.get(name) == theirs.headers.get(name), name
    return theirs, ours


# -- status, content type and short texts of everything


SAME_ANSWER = [
    ("GET", "/ready"),
    ("PUT", "/ready?x=y"),
    ("GET", "/hot_restart_version"),
    ("GET", "/certs"),
    ("GET", "/init_dump"),
    ("GET", "/reset_counters"),
    ("GET", "/healthcheck/fail"),
    ("DELETE", "/healthcheck/ok"),
    ("GET", "/drain_listeners"),
    ("GET", "/quitquitquit"),
    ("GET", "/runtime_modify?a=b"),
    ("GET", "/logging"),
    ("GET", "/reopen_logs"),
    ("POST", "/reset_counters"),
    ("POST", "/reopen_logs"),
    ("POST", "/runtime_modify"),
    ("GET", "/stats?filter=["),
    ("GET", "/stats?filter=a**"),
    ("GET", "/stats/prometheus?filter=["),
    ("GET", "/stats?filter=%ff"),
    ("GET", "/stats?type=Foo"),
    ("GET", "/stats?filter=^server.live$"),
    ("GET", "/stats?filter=^server.live$&filter=nothing"),
    ("GET", "/stats?filter=server%2elive&&=&format=text"),
    ("GET", "/stats?format=json&filter=^server.live$"),
    ("GET", "/stats?format=json&filter=nothing"),
    ("GET", "/stats?format=prometheus&filter=^server.live$"),
    ("GET", "/stats/prometheus?filter=^server.live$"),
    ("GET", "/clusters?filter=["),
    ("GET", "/clusters?filter=nothing"),
    ("GET", "/clusters?filter=nothing&format=json"),
    ("GET", "/config_dump?name_regex=["),
    ("GET", "/config_dump?resource=foo"),
    ("GET", "/config_dump?resource=static_endpoint_configs"),
    ("GET", "/config_dump?resource=bootstrap"),
    ("GET", "/config_dump?resource=bootstrap&mask=bootstrap.node.id"),
    ("GET", "/config_dump?mask=foo"),
    ("GET", "/config_dump?mask=static_clusters.cluster.name,static_listeners.name"),
    ("GET", "/config_dump?mask=bootstrap.admin,static_clusters"),
    ("GET", "/config_dump?resource=dynamic_listeners"),
    ("GET", "/config_dump?resource=dynamic_active_secrets"),
    ("GET", "/config_dump?resource=static_clusters&name_regex=v"),
]


@pytest.mark.parametrize(("method", "target"), SAME_ANSWER)
async def test_same_answer(envoy: ProxyProcess, admin: str, sections: None, method: str, target: str) -> None:
    theirs, ours = await both(envoy, admin, target, method)
    assert ours.body == theirs.body


@pytest.mark.parametrize("target", ["/nope", "/ready/", "/READY", "/stats/", "/ready%3f"])
async def test_an_unknown_path(envoy: ProxyProcess, admin: str, target: str) -> None:
    theirs, ours = await both(envoy, admin, target)
    assert ours.body.splitlines()[0] == theirs.body.splitlines()[0]


async def test_help_has_envoys_layout(envoy: ProxyProcess, admin: str) -> None:
    theirs, ours = await both(envoy, admin, "/help")
    command, parameter = re.compile(r"  (/\S*)( \(POST\))?: "), re.compile(r"      (\w+): ")

    def parsed(text: str) -> dict[str, tuple[bool, list[str]]]:
        first, *lines = text.splitlines()
        assert first == "admin commands are:"
        commands: dict[str, tuple[bool, list[str]]] = {}
        last = ""
        for line in lines:
            if found := command.match(line):
                last = found[1]
                commands[last] = (found[2] is not None, [])
            elif found := parameter.match(line):
                commands[last][1].append(found[1])
        return commands

    known = parsed(theirs.body)
    for path, (mutates, params) in parsed(ours.body).items():
        if path == "/explain":  # ours alone
            continue
        assert known[path][0] == mutates, path
        # Envoy's help forgets that /clusters takes a format.
        assert set(params) - {"format"} <= set(known[path][1]), path


async def test_healthcheck_fail_and_ok(envoy: ProxyProcess, admin: str) -> None:
    for command in ("fail", "ok"):
        for method, target in (("POST", f"/healthcheck/{command}"), ("GET", "/ready")):
            theirs, ours = await both(envoy, admin, target, method)
            assert ours.body == theirs.body


@pytest.mark.parametrize(
    "query",
    [
        "level=foo",
        "level=",
        "paths=",
        "foo=debug",
        "paths=nope:debug",
        "paths=admin",
        "paths=admin:",
        "paths=:debug",
        "paths=admin:nope",
        "admin=debug&level=info",
        "group=admin:debug",
        "admin=error",
        "paths=admin:error,upstream:error",
        "level=error",
    ],
)
async def test_logging(envoy: ProxyProcess, admin: str, query: str) -> None:
    theirs, ours = await both(envoy, admin, f"/logging?{query}", "POST")
    assert ours.body.splitlines()[0] == theirs.body.splitlines()[0]
    for line in ours.body.splitlines():
        assert line in theirs.body.splitlines()


async def test_server_info_has_envoys_fields(envoy: ProxyProcess, admin: str) -> None:
    theirs, ours = await both(envoy, admin, "/server_info")
    known, info = json.loads(theirs.body), json.loads(ours.body)
    missing = known.keys() - info.keys()
    assert missing <= {"hot_restart_initializing"}
    for name in ("version", "state", "uptime_current_epoch", "uptime_all_epochs", "hot_restart_version"):
        assert type(info[name]) is type(known[name])
    assert info["hot_restart_version"] == known["hot_restart_version"] == "disabled"
    newer = {"skip_hot_restart_on_no_parent", "file_flush_min_size", "log_stacktrace_single_entry"}
    assert known["command_line_options"].keys() - info["command_line_options"].keys() <= newer


async def test_usage_of_stats(envoy: ProxyProcess, admin: str) -> None:
    for target in ("/stats?format=foo", "/stats?histogram_buckets=foo"):
        theirs, ours = await both(envoy, admin, target)
        assert ours.body.partition("(")[0] == theirs.body.partition("(")[0]


# -- listeners, runtime, clusters: the fake server says what Envoy says of itself


async def test_listeners(envoy: ProxyProcess, admin: str, backend: FakeBackend) -> None:
    statuses = json.loads(body_of(envoy, "/listeners?format=json"))["listener_statuses"]

    def address(value: dict[str, Any]) -> Address:
        return Address(value["socket_address"]["address"], value["socket_address"]["port_value"])

    backend.listener_statuses = [
        ListenerStatus(one["name"], [address(one["local_address"]), *map(address, one["additional_local_addresses"])])
        for one in statuses
    ]
    for target in ("/listeners", "/listeners?format=json", "/listeners?format=foo"):
        theirs, ours = await both(envoy, admin, target)
        assert ours.body == theirs.body


async def test_runtime(envoy: ProxyProcess, admin: str, backend: FakeBackend) -> None:
    shown = json.loads(body_of(envoy, "/runtime"))
    backend.layers = shown["layers"]
    backend.values = {name: (entry["layer_values"], entry["final_value"]) for name, entry in shown["entries"].items()}
    theirs, ours = await both(envoy, admin, "/runtime")
    assert json.loads(ours.body) == json.loads(theirs.body)
    assert sorted(line.rstrip(",") for line in ours.body.splitlines()) == sorted(
        line.rstrip(",") for line in theirs.body.splitlines()
    )


def fake_clusters(envoy: ProxyProcess) -> list[dict[str, Any]]:
    """Envoy's clusters with the fields that its JSON leaves out."""
    statuses: list[dict[str, Any]] = json.loads(body_of(envoy, "/clusters?format=json"))["cluster_statuses"]
    for status in statuses:
        text: dict[str, Any] = {"hosts": [], "outlier": None}
        if status["name"] == "v1":
            kinds = ("success_rate", "local_origin_success_rate")
            text["outlier"] = {f"{kind}_{what}": -1 for kind in kinds for what in ("average", "ejection_threshold")}
        for host in status["host_statuses"]:
            sock = host["address"]["socket_address"]
            text["hosts"].append(
                {
                    "address": Address(sock["address"], sock["port_value"]).text,
                    "health_flags": "/failed_eds_health"
                    if host["health_status"]["eds_health_status"] == "UNHEALTHY"
                    else "healthy",
                    "canary": status["name"] == "v2",
                    "success_rate": -1.0,
                    "local_origin_success_rate": -1.0,
                }
            )
            host.setdefault("priority", 0)
            host.setdefault("hostname", "")
            for stat in host["stats"]:
                stat.setdefault("type", "COUNTER")
                stat.setdefault("value", 0)
        status["added_via_api"] = False
        status["text"] = text
    return statuses


async def test_clusters(envoy: ProxyProcess, admin: str, backend: FakeBackend) -> None:
    backend.cluster_statuses = fake_clusters(envoy)
    for target in ("/clusters", "/clusters?format=foo", "/clusters?filter=^v1$"):
        theirs, ours = await both(envoy, admin, target)
        # Envoy's order of clusters is another one each time; within a cluster it is fixed.
        assert sorted(ours.body.splitlines(), key=cluster_of) == sorted(theirs.body.splitlines(), key=cluster_of)
    for target in ("/clusters?format=json", "/clusters?format=json&filter=1"):
        theirs, ours = await both(envoy, admin, target)
        assert by_name(ours) == by_name(theirs)
        assert sorted(line.rstrip(",") for line in ours.body.splitlines()) == sorted(
            line.rstrip(",") for line in theirs.body.splitlines()
        )


def cluster_of(line: str) -> str:
    return line.partition("::")[0]


def by_name(answer: Answer) -> dict[str, Any]:
    return {status["name"]: status for status in json.loads(answer.body)["cluster_statuses"]}


# -- config dump: the same bootstrap, and Envoy's times


@pytest.fixture
def sections(envoy: ProxyProcess, backend: FakeBackend) -> None:
    """Let the fake server have Envoy's configuration, with the times and the defaults that Envoy added."""
    shown = json.loads(body_of(envoy, "/config_dump?include_eds"))["configs"]
    errors = ConfigErrors()
    bootstrap = load_bootstrap(CONFIG, errors=errors)
    assert bootstrap is not None, errors.items
    json_format.ParseDict(shown[0]["bootstrap"]["node"], bootstrap.node, ignore_unknown_fields=True)
    static = bootstrap.static_resources
    manager = HttpConnectionManager()
    static.listeners[0].filter_chains[0].filters[0].typed_config.Unpack(manager)
    updated = shown[0]["last_updated"]
    bootstrap_entry = entry("", bootstrap, updated)
    clusters = [entry(one.name, one, updated) for one in static.clusters]
    listeners = [entry(one.name, one, updated) for one in static.listeners]
    routes = [entry(manager.route_config.name, manager.route_config, updated)]
    endpoints = [assignment(one["endpoint_config"]) for one in shown[2]["static_endpoint_configs"]]
    backend.sections = config_sections(bootstrap_entry, clusters, listeners, routes)
    backend.sections_with_eds = config_sections(bootstrap_entry, clusters, listeners, routes, endpoints)


def entry(name: str, message: Any, updated: str) -> ConfigEntry:
    timestamp = Timestamp()
    timestamp.FromJsonString(updated)
    return ConfigEntry(name, message, timestamp.ToMilliseconds() / 1000)


def assignment(shown: dict[str, Any]) -> ConfigEntry:
    """An endpoint configuration, which has no time."""
    del shown["@type"]
    message = json_format.ParseDict(shown, ClusterLoadAssignment())
    return ConfigEntry(shown["cluster_name"], message.SerializeToString(), 0.0)


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?include_eds",
        "?include_eds=false",
        "?resource=",
        "?mask=",
        "?resource=static_clusters",
        "?resource=static_listeners",
        "?resource=static_route_configs&mask=route_config.name,last_updated",
        "?resource=static_endpoint_configs&include_eds",
        "?resource=static_endpoint_configs&include_eds&mask=endpoint_config.cluster_name",
        "?resource=static_clusters&mask=cluster.name",
        "?resource=static_clusters&mask=cluster.load_assignment.cluster_name,cluster.load_assignment.endpoints",
        "?resource=static_clusters&mask=last_updated",
        "?resource=static_clusters&name_regex=v1&mask=cluster.name",
        "?resource=static_clusters&name_regex=v.",
        "?resource=static_route_configs&name_regex=local_r.*",
        "?mask=bootstrap",
        "?mask=bootstrap.admin",
        "?mask=bootstrap.node.id,last_updated",
        "?mask=bootstrap.node.id",
        "?mask=static_clusters",
        "?mask=static_clusters&name_regex=v2",
        "?mask=static_listeners,version_info",
        "?mask=static_endpoint_configs&include_eds",
        "?mask=last_updated",
        "?mask=version_info",
        "?mask=dynamic_listeners",
        "?name_regex=v1",
        "?name_regex=v1&include_eds",
        "?name_regex=ingress",
        "?name_regex=nothing&include_eds",
    ],
)
async def test_config_dump(envoy: ProxyProcess, admin: str, sections: None, query: str) -> None:
    theirs, ours = await both(envoy, admin, f"/config_dump{query}")
    expected, answered = json.loads(theirs.body), json.loads(ours.body)
    for dump in (expected, answered):
        for config in dump.get("configs", ()):
            config.get("bootstrap", {}).get("node", {}).pop("extensions", None)
    assert theirs.body.count('"last_updated"') == ours.body.count('"last_updated"')
    one_time(expected)
    one_time(answered)
    assert answered == expected
    if "bootstrap" not in theirs.body:  # where the order of map entries is anyone's
        assert ours.body.splitlines()[:4] == theirs.body.splitlines()[:4]


@pytest.mark.parametrize(
    "mask", ["foo", "cluster", "cluster.nope", "cluster.name,nope", "cluster.load_assignment.endpoints.priority"]
)
async def test_a_mask_that_names_nothing(envoy: ProxyProcess, admin: str, sections: None, mask: str) -> None:
    theirs, ours = await both(envoy, admin, f"/config_dump?resource=static_clusters&mask={mask}")
    assert ours.status == 400
    debug = re.compile(r"goo\.gle/\S+ *\n")  # what protobuf puts in front lest anyone compares it
    assert ours.body == debug.sub("", theirs.body)


def one_time(dump: Any) -> None:
    """Envoy's static resources are some milliseconds apart: only the form of their times is compared."""
    for value in dump.values() if isinstance(dump, dict) else dump:
        if isinstance(value, (dict, list)):
            one_time(value)
    if isinstance(dump, dict) and "last_updated" in dump:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", dump["last_updated"])
        del dump["last_updated"]
