"""The real Envoy as the judge of route tables: the same virtual hosts and the same requests on it and in our table.

Each case has a virtual host of its own. A route answers by itself (a direct response, a redirect), or forwards to an
upstream that answers with the request as it came.
"""

from __future__ import annotations

import http.client
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

from meshproxy.codec.headers import HeaderMap
from meshproxy.route.route import ROUTE_CLUSTER, ROUTE_REDIRECT
from meshproxy.route.table import RouteTable
from tests.route.support import Fields, new_headers, new_info
from tests.support.proxy import ProxyProcess, start_envoy

TYPE = "type.googleapis.com/envoy.extensions.filters."
# What the proxy around the route table adds.
NOISE = frozenset(
    ("x-forwarded-proto", "x-envoy-expected-rq-timeout-ms", "x-request-id", "date", "server", "content-length")
)


@dataclass(frozen=True)
class Request:
    """One request to a case's virtual host."""

    path: str = "/"
    fields: tuple[tuple[str, str], ...] = ()
    authority: str = ""  # the case's own domain when empty
    method: str = "GET"


@dataclass
class Case:
    """Routes of one virtual host (YAML), and requests. `host` holds further fields of the virtual host."""

    name: str
    routes: str
    requests: list[Request]
    host: dict[str, Any] = field(default_factory=dict)
    table: str = "default"  # listeners differ in the fields of their RouteConfiguration: see TABLES

    @property
    def domain(self) -> str:
        """The domain of the case's virtual host."""
        return f"{self.name}.test"

    def virtual_host(self) -> dict[str, Any]:
        """The VirtualHost message, as a tree."""
        return {"name": self.name, "domains": [self.domain], "routes": yaml.safe_load(self.routes)} | self.host


TABLES: dict[str, dict[str, Any]] = {
    "default": {},
    "operations": {
        "request_headers_to_add": [{"header": {"key": "x-order", "value": "table"}}],
        "response_headers_to_add": [{"header": {"key": "x-order", "value": "table"}}],
    },
    "specific": {
        "most_specific_header_mutations_wins": True,
        "request_headers_to_add": [{"header": {"key": "x-order", "value": "table"}}],
        "response_headers_to_add": [{"header": {"key": "x-order", "value": "table"}}],
    },
    "parameters": {"ignore_path_parameters_in_path_matching": True},
    "no_port": {"ignore_port_in_host_matching": True},
}


@dataclass
class Answer:
    """What became of a request: `forwarded` is what the upstream saw, pseudo-headers first."""

    status: int
    body: str = ""
    location: str | None = None
    fields: Fields = field(default_factory=list)
    forwarded: Fields = field(default_factory=list)


def route_configuration(table: str, cases: list[Case]) -> dict[str, Any]:
    """The RouteConfiguration of all cases of one table."""
    hosts = [case.virtual_host() for case in cases if case.table == table]
    return {"name": table, "virtual_hosts": hosts, "validate_clusters": False} | TABLES[table]


class Echo(BaseHTTPRequestHandler):
    """Answers with the request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        target = self.requestline.split(" ")[1]  # self.path has its leading slashes merged
        seen = [(":method", self.command), (":path", target)]
        fields = [(name.lower(), value) for name, value in self.headers.items()]
        body = json.dumps(seen + fields).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


class Oracle:
    """An Envoy with one listener per table."""

    def __init__(self, cases: list[Case]) -> None:
        self.echo = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
        self.echo.daemon_threads = True
        self.thread = threading.Thread(target=self.echo.serve_forever, args=(0.02,))
        self.thread.start()
        try:
            self.envoy: ProxyProcess = start_envoy(json.dumps(self.bootstrap(cases)))
        except BaseException:
            self._close_echo()
            raise
        self.ports = self.envoy.listener_ports()

    def bootstrap(self, cases: list[Case]) -> dict[str, Any]:
        """Static listeners, and two clusters that are the echo."""
        tables = sorted({case.table for case in cases})
        return {
            "admin": {"address": address(0)},
            "static_resources": {
                "listeners": [self.listener(table, cases) for table in tables],
                "clusters": [self.cluster(name) for name in ("echo", "other")],
            },
        }

    def listener(self, table: str, cases: list[Case]) -> dict[str, Any]:
        """An HTTP listener on the table's routes."""
        manager = {
            "@type": TYPE + "network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": table,
            "generate_request_id": False,
            "use_remote_address": False,
            "http_filters": [{"name": "router", "typed_config": {"@type": TYPE + "http.router.v3.Router"}}],
            "route_config": route_configuration(table, cases),
        }
        chain = {"filters": [{"name": "http", "typed_config": manager}]}
        return {"name": table, "address": address(0), "filter_chains": [chain]}

    def cluster(self, name: str) -> dict[str, Any]:
        """A cluster of the echo alone."""
        endpoint = {"endpoint": {"address": address(self.echo.server_address[1])}}
        load = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
        return {"name": name, "type": "STATIC", "load_assignment": load}

    def ask(self, case: Case, request: Request) -> Answer:
        """Envoy's answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[case.table], timeout=10)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("host", request.authority or case.domain)
            for name, value in request.fields:
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            body = response.read().decode()
        finally:
            connection.close()
        fields = [(name.lower(), value) for name, value in response.getheaders()]
        answer = Answer(response.status, body, response.getheader("location"))
        if any(name == "x-envoy-upstream-service-time" for name, _ in fields):
            answer.forwarded = cleaned([(name, value) for name, value in json.loads(body)])
            answer.body = ""
            answer.fields = [(name, value) for name, value in fields if name == "x-order"]
        else:
            answer.fields = cleaned(fields)
        return answer

    def _close_echo(self) -> None:
        self.echo.shutdown()
        self.thread.join()
        self.echo.server_close()

    def close(self) -> None:
        """Stop both."""
        self.envoy.stop()
        self._close_echo()


def address(port: int) -> dict[str, Any]:
    """A loopback address."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cleaned(fields: Fields) -> Fields:
    """The fields without what the proxy around the table adds."""
    return [(name, value) for name, value in fields if name not in NOISE]


def ours(table: RouteTable, case: Case, request: Request) -> Answer:
    """Our answer, from the route table alone."""
    authority = request.authority or case.domain
    headers = new_headers(request.path, authority, request.method, list(request.fields))
    info = new_info(headers)
    route = table.match(headers, info, 0)
    if route is None:
        return Answer(404)
    if route.kind == ROUTE_CLUSTER:
        route.finalize_request(headers, info)
        forwarded = as_seen(headers.fields)
        response = HeaderMap()
        route.finalize_response(response, info)
        return Answer(200, fields=[(name.decode(), value.decode()) for name, value in response], forwarded=forwarded)
    if route.kind == ROUTE_REDIRECT:
        status, location = route.redirect(headers, info)
        answer = Answer(status, "", location.decode())
    else:
        status, body = route.direct_response(info)
        answer = Answer(status, body.decode())
    response = new_headers(None)
    response.fields = []
    if answer.location is not None:
        response.add(b"location", answer.location.encode())
    else:
        own = route.direct_location(headers, info)
        if own is not None:
            response.add(b"location", own)
    route.finalize_response(response, info)
    if answer.body:
        response.set_default(b"content-type", b"text/plain")
        if route.direct_content_type:
            response.remove(b"content-type")
            response.add(b"content-type", route.direct_content_type)
    answer.location = (response.get(b"location") or b"").decode() or None
    answer.fields = cleaned([(name.decode(), value.decode()) for name, value in response.fields])
    return answer


def as_seen(fields: list[tuple[bytes, bytes]]) -> Fields:
    """Our request as an HTTP/1 upstream sees it: Host stands first."""
    known = {name.decode(): value.decode() for name, value in fields if name.startswith(b":")}
    seen = [(":method", known[":method"]), (":path", known[":path"]), ("host", known[":authority"])]
    rest = [(name.decode(), value.decode()) for name, value in fields if not name.startswith(b":")]
    return cleaned(seen + rest)
