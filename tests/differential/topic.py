"""From a topic (listeners, clusters, cases) to the configuration that both proxies start from."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml

from tests.differential.cases import Case

TYPE = "type.googleapis.com/envoy.extensions."
ROUTER = {"name": "router", "typed_config": {"@type": TYPE + "filters.http.router.v3.Router"}}
SERVERS = ("a", "b", "c")
PROBE_DOMAIN = "probe.test"
LOG_FORMAT = (
    "code=%RESPONSE_CODE% flags=%RESPONSE_FLAGS% details=%RESPONSE_CODE_DETAILS% "
    "attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT% cluster=%UPSTREAM_CLUSTER% route=%ROUTE_NAME% "
    "protocol=%PROTOCOL% method=%REQ(:METHOD)% path=%REQ(:PATH)% authority=%REQ(:AUTHORITY)% "
    "end=%CONNECTION_TERMINATION_DETAILS% rx=%BYTES_RECEIVED% tx=%BYTES_SENT%\n"
)

Yaml = dict[str, Any]


@dataclass(frozen=True)
class Topic:
    """One configuration and the cases that run over it.

    `listeners` maps a name to YAML of HttpConnectionManager fields (`virtual_hosts` and other route configuration
    fields stand under `route_config`; `listener` holds fields of the Listener itself, `chain` of its filter chain;
    access logs come before the harness' own, and to path `@LOG@` their lines are compared too). `clusters` maps a
    name to YAML of Cluster fields, with `hosts` naming servers of the scripted upstream, or `dead` (refuses), or with
    the text `@a@` for the port of server a; clusters `a`,
    `b`, `c`, `dead` and `empty` are always there. `bootstrap` is YAML merged into the bootstrap, `secrets` (YAML list)
    are its static ones. `vhosts` (YAML list) is for every listener.
    """

    cases: Sequence[Case] = ()
    listeners: dict[str, str] = field(default_factory=lambda: {"main": ""})
    clusters: dict[str, str] = field(default_factory=dict)
    vhosts: str = ""
    bootstrap: str = ""
    secrets: str = ""

    def accepted(self) -> "Topic":
        """Without the cases that meshproxy refuses, and without listeners that only they use."""
        used = {case.listener for case in self.cases if not case.refused}
        refused = {case.listener for case in self.cases if case.refused} - used
        listeners = {name: text for name, text in self.listeners.items() if name not in refused}
        return replace(self, cases=[case for case in self.cases if not case.refused], listeners=listeners)

    def only(self, case: Case) -> "Topic":
        """A single case and its listener."""
        return replace(self, cases=[case], listeners={case.listener: self.listeners[case.listener]})

    def bootstrap_yaml(self, ports: dict[str, int], log_path: str) -> str:
        """The bootstrap for one proxy: `ports` are its upstream's, `log_path` its access log."""
        names = {name: f"hosts: [{name}]" for name in SERVERS} | {"dead": "hosts: [dead]", "empty": "hosts: []"}
        tree: Yaml = {
            "node": {"id": "differential", "cluster": "differential"},
            "admin": {"address": address(0)},
            "static_resources": {
                "listeners": [self._listener(name, text, log_path) for name, text in self.listeners.items()],
                "clusters": [cluster(name, text, ports) for name, text in (names | self.clusters).items()],
                "secrets": yaml.safe_load(self.secrets) or [],
            },
        }
        tree |= mapping(self.bootstrap)
        return yaml.dump(tree, sort_keys=False, width=1000).replace("@LOG@", log_path)

    def _listener(self, name: str, text: str, log_path: str) -> Yaml:
        manager = mapping(text)
        listener, more = (cast(Yaml, manager.pop(key, {})) for key in ("listener", "chain"))
        routes = cast(Yaml, manager.pop("route_config", {}))
        logs = cast(list[Yaml], manager.pop("access_log", []))
        hosts = cast(list[Yaml], routes.pop("virtual_hosts", [])) + cast(list[Yaml], yaml.safe_load(self.vhosts) or [])
        hosts += [case_vhost(case) for case in self.cases if case.listener == name and (case.route or case.vhost)]
        hosts.append(probe_vhost())
        defaults: Yaml = {
            "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "delayed_close_timeout": "0.05s",
            "http_filters": [ROUTER],
            "access_log": [*logs, file_log(log_path)],
            "route_config": {"name": f"{name}_routes", **routes, "virtual_hosts": hosts},
        }
        chain = {"filters": [{"name": "hcm", "typed_config": defaults | manager}], **more}
        return {"name": name, "address": address(0), **listener, "filter_chains": [chain]}


def all_topics() -> dict[str, Topic]:
    """Every topic of this folder by its name."""
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    names = [path.stem for path in files if "\nTOPIC = " in path.read_text()]
    modules = {name.removeprefix("test_"): importlib.import_module(f"tests.differential.{name}") for name in names}
    return {name: module.TOPIC for name, module in modules.items()}


def case_vhost(case: Case) -> Yaml:
    """The virtual host of one case."""
    routes = yaml.safe_load(case.route) if case.route else {"match": {"prefix": "/"}, "route": {"cluster": "a"}}
    routes = routes if isinstance(routes, list) else [routes]
    return {"name": case.name, "domains": [case.domain], "routes": routes} | mapping(case.vhost)


def probe_vhost() -> Yaml:
    """Where the harness asks whether a connection still works."""
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 204}}
    return {"name": "probe", "domains": [PROBE_DOMAIN], "routes": [route]}


def file_log(log_path: str) -> Yaml:
    """The access log that the harness reads."""
    source = {"inline_string": LOG_FORMAT}
    config = {"@type": TYPE + "access_loggers.file.v3.FileAccessLog", "path": log_path}
    return {"name": "file", "typed_config": config | {"log_format": {"text_format_source": source}}}


def cluster(name: str, text: str, ports: dict[str, int]) -> Yaml:
    """A STATIC cluster whose `hosts` are names of scripted servers."""
    for server, port in ports.items():
        text = text.replace(f"@{server}@", str(port))
    fields = mapping(text)
    hosts = cast(list[str], fields.pop("hosts", ["a"]))
    endpoints = [{"endpoint": {"address": address(ports[host])}} for host in hosts]
    defaults: Yaml = {"name": name, "type": "STATIC", "connect_timeout": "1s"}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}] if endpoints else []}
    return defaults | {"load_assignment": assignment} | fields


def address(port: int) -> Yaml:
    """A loopback address."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def mapping(text: str) -> Yaml:
    """YAML text as a mapping; empty text as an empty one."""
    return cast(Yaml, yaml.safe_load(text) or {})
