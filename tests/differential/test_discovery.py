"""Resources from files (`path_config_source`), which both proxies read without a server: routes, filters, runtime,
and listeners with their clusters. What a row writes, it replaces by renaming; requests follow on one connection."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.topic import ROUTER, TYPE, Yaml, address
from tests.support.downstream import RawDownstream
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.wire import ConnectionEnded

DEADLINE_S = 10.0
CONFIG = "type.googleapis.com/envoy.config."
FILTER = TYPE + "filters.http."
FORMAT = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %ROUTE_NAME% %REQ(:PATH)%\n"
# key in docs/envoy-differences.md: what Envoy logs, and what we do
DIFFERENCES = {"missing-filter-config": (" NFCF  ", " NFCF filter_config_not_found ")}
MUTATION = FILTER + "header_mutation.v3.HeaderMutation"
BUFFER = FILTER + "buffer.v3.Buffer"


@dataclass(frozen=True)
class Put:
    """Replace a file by a response with these resources; wait until a statistic has (at least) this value."""

    name: str
    resources: Sequence[Yaml]
    stat: str
    value: int = 1


@dataclass(frozen=True)
class Ask:
    """A request; its status, body and `x-mark` are compared. `fresh`: on a new connection."""

    path: str = "/"
    fresh: bool = False


@dataclass(frozen=True)
class Stat:
    """A statistic, which is compared."""

    name: str


@dataclass(frozen=True)
class Gone:
    """Wait until nobody listens any more where the row's listener did."""


@dataclass(frozen=True)
class Row:
    """`manager` holds fields of the HttpConnectionManager of a listener by the row's name, and `@F@` in it, as in the
    steps' file names, is the row's own folder; empty: the files bring the listener. `files` are there at the start.
    `differs` is a key of `DIFFERENCES`."""

    name: str
    manager: Mapping[str, Any]
    files: Mapping[str, Sequence[Yaml]]
    steps: Sequence[Put | Ask | Stat | Gone]
    bootstrap: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""


def source(name: str) -> Yaml:
    return {"path_config_source": {"path": f"@F@/{name}"}, "resource_api_version": "V3", "initial_fetch_timeout": "1s"}


def routes(*virtual_hosts: Yaml, name: str = "routes", **fields: Any) -> Yaml:
    return {"@type": CONFIG + "route.v3.RouteConfiguration", "name": name, "virtual_hosts": [*virtual_hosts], **fields}


def host(*entries: Yaml, domains: Sequence[str] = ("*",), **fields: Any) -> Yaml:
    return {"name": domains[0], "domains": [*domains], "routes": [*entries], **fields}


def says(body: str, **match: Any) -> Yaml:
    """A route that answers with `body`, and is called so."""
    answer = {"status": 200, "body": {"inline_string": body}}
    return {"name": body, "match": match or {"prefix": "/"}, "direct_response": answer}


def to(cluster: str, **fields: Any) -> Yaml:
    return {"name": "to", "match": {"prefix": "/"}, "route": {"cluster": cluster, **fields}}


def mark(value: str) -> Yaml:
    """A filter that marks responses."""
    append = {"header": {"key": "x-mark", "value": value}}
    return {"@type": MUTATION, "mutations": {"response_mutations": [{"append": append}]}}


def extension(config: Yaml, name: str = "mark") -> Yaml:
    return {"@type": CONFIG + "core.v3.TypedExtensionConfig", "name": name, "typed_config": config}


def discovered(name: str, **fields: Any) -> Yaml:
    return {
        "name": name,
        "config_discovery": {"config_source": source(f"{name}.yaml"), "type_urls": [MUTATION, BUFFER], **fields},
    }


def runtime(**layer: Any) -> Yaml:
    return {"@type": "type.googleapis.com/envoy.service.runtime.v3.Runtime", "name": "rt", "layer": layer}


def listener(manager: Mapping[str, Any], name: str = "main") -> Yaml:
    """A listener that writes the log which is compared."""
    log = {"log_format": {"text_format_source": {"inline_string": FORMAT}}, "path": "@F@/access.log"}
    config = {
        "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "access_log": [
            {"name": "file", "typed_config": {"@type": TYPE + "access_loggers.file.v3.FileAccessLog", **log}}
        ],
        "http_filters": [ROUTER],
        **manager,
    }
    return {
        "name": name,
        "address": address(0),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": config}]}],
    }


def dynamic_listener(body: str, name: str = "main") -> Yaml:
    made = listener({"route_config": {"name": "r", "virtual_hosts": [host(says(body))]}}, name)
    return {"@type": CONFIG + "listener.v3.Listener", **made}


RDS: Yaml = {"rds": {"route_config_name": "routes", "config_source": source("rds.yaml")}}
RELOADS = "http.in.rds.routes.config_reload"
REJECTED = "http.in.rds.routes.update_rejected"
STATIC: Yaml = {"route_config": {"name": "r", "virtual_hosts": [host(says("ok"))]}}
ECDS: Yaml = {**STATIC, "http_filters": [discovered("mark"), ROUTER]}
MARKS = "extension_config_discovery.http_filter.mark."
DEFAULT: Yaml = {"default_config": mark("default")}
LAYERS: Yaml = {
    "layered_runtime": {
        "layers": [
            {"name": "base", "static_layer": {"share": 0}},
            {"name": "rt", "rtds_layer": {"name": "rt", "rtds_config": source("rt.yaml")}},
            {"name": "admin", "admin_layer": {}},
        ]
    }
}
SHARED: Yaml = {
    "route_config": {
        "name": "r",
        "virtual_hosts": [
            host(
                says("in", prefix="/", runtime_fraction={"default_value": {"numerator": 0}, "runtime_key": "share"}),
                says("out"),
            )
        ],
    }
}
LDS: Yaml = {"dynamic_resources": {"lds_config": source("lds.yaml")}}
TAKEN = (host(says("first")), host(says("second")))

ROWS = (
    Row(
        "routes_under_an_open_connection",
        RDS,
        {"rds.yaml": [routes(host(says("one")))]},
        [
            Ask(),
            Put("rds.yaml", [routes(host(says("two")))], RELOADS, 2),
            Ask(),
            Put("rds.yaml", [routes(host(says("two", prefix="/a")))], RELOADS, 3),
            Ask(),
            Ask("/a"),
            Stat(RELOADS),
            Stat(REJECTED),
        ],
    ),
    Row(
        "routes_that_come_late",
        RDS,
        {"rds.yaml": []},
        [Ask(), Put("rds.yaml", [routes(host(says("one")))], RELOADS), Ask(), Stat(RELOADS)],
    ),
    Row(
        "routes_that_are_refused",
        RDS,
        {"rds.yaml": [routes(host(says("one")))]},
        [
            Put("rds.yaml", [routes(*TAKEN)], REJECTED),
            Ask(),
            Put("rds.yaml", [routes(host(says("two")))], RELOADS, 2),
            Ask(),
            Stat(REJECTED),
        ],
    ),
    Row(
        "first_routes_that_are_refused",
        RDS,
        {"rds.yaml": [routes(*TAKEN)]},
        [Ask(), Stat(REJECTED), Stat(RELOADS), Put("rds.yaml", [routes(host(says("one")))], RELOADS), Ask()],
    ),
    Row(
        "routes_to_no_cluster",
        RDS,
        {"rds.yaml": [routes(host(to("nobody")))]},
        [
            Ask(),
            Put("rds.yaml", [routes(host(to("nobody", cluster_not_found_response_code="NOT_FOUND")))], RELOADS, 2),
            Ask(),
            Put("rds.yaml", [routes(host(to("nobody")), validate_clusters=False)], RELOADS, 3),
            Ask(),
        ],
    ),
    Row(
        "routes_that_want_their_clusters_checked",
        RDS,
        {"rds.yaml": [routes(host(says("one")))]},
        [Put("rds.yaml", [routes(host(to("nobody")), validate_clusters=True)], REJECTED), Ask(), Stat(RELOADS)],
    ),
    Row(
        "a_filter_under_an_open_connection",
        ECDS,
        {"mark.yaml": [extension(mark("one"))]},
        [
            Ask(),
            Put("mark.yaml", [extension(mark("two"))], MARKS + "config_reload", 2),
            Ask(),
            Put("mark.yaml", [extension({"@type": BUFFER, "max_request_bytes": 9})], MARKS + "config_reload", 3),
            Ask(),
            Stat(MARKS + "config_fail"),
        ],
    ),
    Row(
        "a_filter_of_a_type_that_is_not_expected",
        ECDS,
        {"mark.yaml": [extension(mark("one"))]},
        [
            Put("mark.yaml", [extension({"@type": FILTER + "router.v3.Router"})], MARKS + "update_rejected"),
            Ask(),
            Put("mark.yaml", [extension({"@type": BUFFER})], MARKS + "update_rejected", 2),
            Ask(),
            Stat(MARKS + "config_reload"),
            Stat(MARKS + "config_fail"),
        ],
    ),
    Row(
        "a_filter_that_comes_late",
        ECDS,
        {"mark.yaml": []},
        [Ask(), Put("mark.yaml", [extension(mark("one"))], MARKS + "config_reload"), Ask()],
        differs="missing-filter-config",
    ),
    Row(
        "a_first_filter_that_is_refused",
        ECDS,
        {"mark.yaml": [extension({"@type": FILTER + "router.v3.Router"})]},
        [Ask(), Put("mark.yaml", [extension(mark("one"))], MARKS + "config_reload"), Ask()],
        differs="missing-filter-config",
    ),
    Row(
        "a_default_while_there_is_no_filter",
        {**STATIC, "http_filters": [discovered("mark", **DEFAULT), ROUTER]},
        {"mark.yaml": []},
        [Ask(), Put("mark.yaml", [extension(mark("one"))], MARKS + "config_reload"), Ask()],
    ),
    Row(
        "a_default_without_warming",
        {
            **STATIC,
            "http_filters": [discovered("mark", **DEFAULT, apply_default_config_without_warming=True), ROUTER],
        },
        {"mark.yaml": []},
        [Ask(), Put("mark.yaml", [extension(mark("one"))], MARKS + "config_reload"), Ask()],
    ),
    Row(
        "runtime_of_a_control_plane",
        SHARED,
        {"rt.yaml": [runtime(share=100)]},
        [
            Ask(),
            Put("rt.yaml", [runtime(share={"numerator": 0})], "runtime.update_success", 2),
            Ask(),
            Put("rt.yaml", [runtime(share=[100])], "runtime.update_rejected"),
            Ask(),
            Put("rt.yaml", [runtime(share=100)], "runtime.update_success", 3),
            Ask(),
            Stat("runtime.num_keys"),
            Stat("runtime.num_layers"),
        ],
        LAYERS,
    ),
    Row(
        "listeners_that_change_and_go",
        {},
        {"lds.yaml": [dynamic_listener("one")]},
        [
            Ask(),
            Put("lds.yaml", [dynamic_listener("two")], "listener_manager.listener_modified"),
            Ask(fresh=True),
            Put("lds.yaml", [], "listener_manager.listener_removed"),
            Gone(),
            Stat("listener_manager.total_listeners_active"),
        ],
        LDS,
    ),
)


class Side:
    """One proxy on a row."""

    def __init__(self, row: Row, start: Callable[[str], ProxyProcess]) -> None:
        self.row = row
        self.directory = Path(tempfile.mkdtemp(prefix="discovery-"))
        for name, resources in row.files.items():
            self._write(name, resources, 0)
        tree = {
            "node": {"id": "node", "cluster": "cluster"},
            "admin": {"address": address(0)},
            "static_resources": {"listeners": [listener(row.manager)] if row.manager else []},
            **row.bootstrap,
        }
        self.lines: list[str] = []
        self._downstream: RawDownstream | None = None
        try:
            self._proxy = start(self._placed(tree))
        except BaseException:
            shutil.rmtree(self.directory)
            raise

    def run(self) -> list[str]:
        """What came of the steps, and the access log."""
        for number, step in enumerate(self.row.steps, 1):
            match step:
                case Put(name, resources, stat, value):
                    self._write(name, resources, number)
                    wait_for(lambda: self._proxy.stats().get(stat, 0) >= value, f"{stat} to be {value}", DEADLINE_S)
                case Ask(path, fresh):
                    if fresh:
                        self._leave()
                    self.lines.append(self._ask(path))
                case Stat(name):
                    self.lines.append(f"{name}: {self._proxy.stats().get(name)}")
                case Gone():
                    wait_for(lambda: not self._listens(), "the listener to go", DEADLINE_S)
        asked = sum(isinstance(step, Ask) for step in self.row.steps)
        log = self.directory / "access.log"
        wait_for(lambda: log.read_text().count("\n") == asked, f"{asked} lines in the log", DEADLINE_S)
        return [*self.lines, *log.read_text().splitlines()]

    def _ask(self, path: str) -> str:
        if self._downstream is None:
            port = wait_for(lambda: self._proxy.listener_ports().get("main", 0), "the listener", DEADLINE_S)
            self._downstream = RawDownstream(port)
        self._downstream.send(f"GET {path} HTTP/1.1\r\nhost: a.test\r\n\r\n".encode())
        try:
            message = self._downstream.receive()
        except ConnectionEnded:
            return "closed"
        if b"close" in (message.get(b"connection") or b""):
            self._leave()
        return f"{message.status} {message.get(b'x-mark')!r} {message.body!r}"

    def _listens(self) -> bool:
        return "main" in self._proxy.listener_ports()

    def _placed(self, tree: Any) -> str:
        return yaml.dump(tree, width=1000).replace("@F@", str(self.directory))

    def _write(self, name: str, resources: Sequence[Yaml], version: int) -> None:
        response = {"version_info": str(version), "resources": [*resources]}
        draft = self.directory / f"{name}.new"
        draft.write_text(self._placed(response))
        draft.rename(self.directory / name)

    def _leave(self) -> None:
        if self._downstream is not None:
            self._downstream.close()
            self._downstream = None

    def close(self) -> None:
        self._leave()
        self._proxy.stop()
        shutil.rmtree(self.directory)


def outcome(row: Row, start: Callable[[str], ProxyProcess]) -> list[str]:
    """The whole row on one proxy."""
    side = Side(row, start)
    try:
        return side.run()
    finally:
        side.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_as_envoy(row: Row, pool: ThreadPoolExecutor) -> None:
    subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    expected, actual = pool.submit(outcome, row, start_envoy), pool.submit(outcome, row, subject)
    envoys, ours = DIFFERENCES.get(row.differs, ("", ""))
    assert actual.result() == [line.replace(envoys, ours) if envoys else line for line in expected.result()]
    assert not envoys or any(envoys in line for line in expected.result())
