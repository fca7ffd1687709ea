"""One table of requests, two data planes: what the pilot makes of rules leads the real Envoy and us to the same
answers, and to those that the rules mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from envoy.config.accesslog.v3.accesslog_pb2 import AccessLog
from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.route.v3.route_components_pb2 import VirtualHost
from envoy.extensions.access_loggers.file.v3.file_pb2 import FileAccessLog
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from google.protobuf.json_format import MessageToJson, ParseDict

from meshproxy.pilot.proxy import EXPLICIT
from tests.differential.cases import AwaitWhole, Case, Receive, get, post, request
from tests.differential.pair import Pair, start_pair
from tests.differential.topic import LOG_FORMAT, Topic, probe_vhost
from tests.pilot.resources.static_form import static_bootstrap
from tests.pilot.resources.support import SHOP_PAGE, mesh_of, sample, snapshot_of
from tests.support.upstream import OK, STALL, reply

RULES = "\n---\n".join([sample("services", "canary", "tls"), (Path(__file__).parent / "routing.yaml").read_text()])
# Where the endpoints of the subsets are played; all others are at a.
PLACES = {"10.1.0.31": "a", "10.1.0.32": "b", "10.1.0.33": "c"}
V1, V2, V3 = (f"cluster=outbound|9080|v{number}|reviews.shop.svc.cluster.local; " for number in (1, 2, 3))
REVIEWS = "cluster=outbound|9080||reviews.shop.svc.cluster.local; "
RATINGS = "cluster=outbound|9080||ratings.shop.svc.cluster.local; "
DETAILS = "cluster=outbound|9080||details.shop.svc.cluster.local; "
NOWHERE = "cluster=- "


@dataclass(frozen=True)
class SnapshotTopic(Topic):
    """The static form of a snapshot, with endpoints of the harness' own, its log and its probe."""

    rules: str = ""
    unused: tuple[str, ...] = field(default=())

    def bootstrap_yaml(self, ports: dict[str, int], log_path: str) -> str:
        bootstrap = static_bootstrap(snapshot_of(mesh_of(self.rules), replace(SHOP_PAGE, mode=EXPLICIT)))
        bootstrap.admin.address.socket_address.address = "127.0.0.1"
        bootstrap.admin.address.socket_address.port_value = 0
        for cluster in bootstrap.static_resources.clusters:
            _play(cluster, ports)
        for listener in _played(bootstrap):
            listener.address.socket_address.address = "127.0.0.1"
            listener.address.socket_address.port_value = 0
            for chain in listener.filter_chains:
                for filter_ in chain.filters:
                    _listen(filter_, log_path)
        return MessageToJson(bootstrap, preserving_proto_field_name=True)


def _played(bootstrap: Bootstrap) -> Any:
    """The listeners of requests; those of passed-on TLS are of no use here."""
    kept = [one for one in bootstrap.static_resources.listeners if not one.listener_filters]
    del bootstrap.static_resources.listeners[:]
    bootstrap.static_resources.listeners.extend(kept)
    return bootstrap.static_resources.listeners


def _play(cluster: Any, ports: dict[str, int]) -> None:
    """The upstream of the harness speaks HTTP/1.1."""
    cluster.ClearField("transport_socket")
    cluster.typed_extension_protocol_options.clear()
    if cluster.type == cluster.STRICT_DNS:
        cluster.type = cluster.STATIC
    for locality in cluster.load_assignment.endpoints:
        for one in locality.lb_endpoints:
            place = one.endpoint.address.socket_address
            place.port_value = ports[PLACES.get(place.address, "a") if "|v" in cluster.name else "a"]
            place.address = "127.0.0.1"


def _listen(filter_: Any, log_path: str) -> None:
    manager = HttpConnectionManager.FromString(filter_.typed_config.value)
    log = AccessLog(name="file")
    log.typed_config.Pack(
        FileAccessLog(path=log_path, log_format={"text_format_source": {"inline_string": LOG_FORMAT}})
    )
    manager.access_log.append(log)
    manager.route_config.virtual_hosts.insert(0, ParseDict(probe_vhost(), VirtualHost()))
    manager.delayed_close_timeout.FromMilliseconds(50)
    filter_.typed_config.Pack(manager)


def row(name: str, given: Any, *expected: str, host: str = "details", **fields: Any) -> tuple[Case, tuple[str, ...]]:
    """A request to `host` on port 9080 (or another `listener`), and what its outcome has to hold."""
    if isinstance(given, str):
        given = get(given)
    given = given.replace(b"$HOST", host.encode()) if isinstance(given, bytes) else given
    return Case(name, given, **{"listener": "127.0.0.1_9080", **fields}), expected


def header(*headers: tuple[str, str], target: str = "/") -> bytes:
    return get(target, *headers)


SECRET = reply(headers=[("x-secret", "1"), ("x-hidden", "1")])

ROWS = [
    # Names of hosts.
    row("full-name", "/", DETAILS, "route=rest", host="details.shop.svc.cluster.local"),
    row("full-name-and-port", "/", DETAILS, host="details.shop.svc.cluster.local:9080"),
    row("short-name", "/", DETAILS, host="details"),
    row("short-name-and-another-port", "/", DETAILS, host="details:1234"),
    row("name-and-namespace", "/", DETAILS, host="details.shop"),
    row("name-namespace-and-svc", "/", DETAILS, host="DETAILS.shop.svc"),
    row("virtual-address", "/", DETAILS, host="10.96.0.11:9080"),
    row("nobody", "/", "502", NOWHERE, "route=block_all", host="nobody"),
    row("bare-host", "/", V2, host="bare.example", listener="127.0.0.1_80"),
    row("bare-wildcard", "/", V2, host="a.b.wild.example", listener="127.0.0.1_80"),
    row("bare-host-on-another-port", "/", "502", host="bare.example"),
    row(
        "external",
        "/",
        "cluster=outbound|80||api.payments.example; ",
        host="api.payments.example",
        listener="127.0.0.1_80",
    ),
    # Conditions of a VirtualService.
    row("exact", "/exact", V2, "route=exact"),
    row("exact-with-query", "/exact?a=b", V2, "route=exact"),
    row("exact-and-more", "/exact/more", DETAILS, "route=rest"),
    row("prefix-in-other-case", "/PREFIX/x?q=1", V2, "GET /new/x?q=1", "host: other.example"),
    row("regex", "/items/42", V2, "GET /item-42 "),
    row("regex-is-of-the-whole-path", "/items/42/x", DETAILS),
    row("method", request("DELETE", "/m"), V2, "route=method"),
    row("another-method", "/m", DETAILS),
    row("authority", "/a", V2, "route=authority", host="details.shop"),
    row("another-authority", "/a", DETAILS),
    row("scheme", "/s", DETAILS),
    row("query-exact", "/?page=2", V2, "route=query.page"),
    row("query-other-value", "/?page=3", DETAILS),
    row("query-present", "/?x=1&any", V2, "route=query.any"),
    row("query-regex", "/?n=17", V2, "route=query.regex"),
    row("query-regex-is-of-the-whole-value", "/?n=17a", DETAILS),
    row("all-headers", header(("x-a", "1"), ("x-b", "best"), ("x-c", "")), V2, "route=headers"),
    row("one-header-is-missing", header(("x-a", "1"), ("x-b", "best")), DETAILS),
    row("one-header-is-another", header(("x-a", "2"), ("x-b", "best"), ("x-c", "1")), DETAILS),
    row("without-headers", "/w", V2, "route=without"),
    row("with-a-header-that-must-not-be-there", header(("x-internal", "1"), target="/w"), DETAILS),
    row("with-a-value-that-must-not-be-there", header(("x-tier", "gold"), target="/w"), DETAILS),
    row("with-another-value", header(("x-tier", "silver"), target="/w"), V2, "route=without"),
    row("source-labels", "/from", V2, "route=mine"),
    row("source-labels-of-others", "/other", DETAILS),
    row("port-of-others", "/port", DETAILS),
    row("gateway-of-others", "/edge", DETAILS),
    # What routes do.
    row(
        "header-operations",
        header(("x-gone", "1"), ("x-set", "0"), ("x-added", "0"), target="/headers"),
        *(
            V2,
            "  x-set: destination",
            "  x-added: one",
            "  x-answer: two",
            "  x-of: v2",
            "  x-empty: ",
            "  x-secret: 2",
        ),
        upstream=[SECRET],
    ),
    row("host-header", "/hosted", V2, "  host: set.example"),
    row("redirect", "/go?a=b", "307", "  location: https://new.example:8443/gone", NOWHERE),
    row("redirect-derived-port", "/derive/x", "301", "  location: https://new.example/derive/x"),
    row("direct-response", "/answer", "418", "teapot"),
    row("abort", "/abort", "555", "flags=FI"),
    row("abort-of-nobody", "/never", V2, "code=200"),
    row("abort-grpc", header(("content-type", "application/grpc"), target="/grpc"), "  grpc-status: 8"),
    row("retry", "/retry", V2, "code=200", "attempts=2", upstream=[reply(503), OK]),
    row("retry-is-forbidden", "/once", V2, "code=503", "attempts=1", upstream=[reply(503), OK]),
    row("timeout", "/slow", V2, "code=504", "flags=UT", upstream=[STALL]),
    row("mirror", (get("/mirror", host="details"), Receive(), AwaitWhole(2)), V2, "upstream 2 at c", by_name=True),
    row(
        "preflight",
        request("OPTIONS", "/cors", [("origin", "https://shop.example"), ("access-control-request-method", "GET")]),
        *("200", "  access-control-allow-methods: GET,PUT", "  access-control-max-age: 600", "cors_response"),
    ),
    row(
        "preflight-of-others",
        request("OPTIONS", "/cors", [("origin", "https://other.example"), ("access-control-request-method", "GET")]),
        "cors_response",
    ),
    row(
        "cors",
        header(("origin", "https://shop.example"), target="/cors"),
        V2,
        "  access-control-expose-headers: x-answer",
    ),
    row("weight-0", "/split", V3),
    # The canary: testers by their browser, users by who they are.
    row("tester", header(("user-agent", "Mozilla Firefox 1")), V3, "route=testers", host="reviews"),
    *(row(f"user-{user}", header(("x-user", user)), "route=everyone", host="reviews") for user in "abcdefghijklmnop"),
    row("user-by-cookie", header(("cookie", "reviews-user=anna")), "route=everyone", host="reviews"),
    # Ratings are limited to one request.
    row("first-request", "/", RATINGS, "code=200", host="ratings"),
    row("one-too-many", "/", "code=429", "  retry-after: 60", host="ratings"),
    # Faults.
    row("fault-abort", header(("x-fault", "abort"), ("x-who", "me")), "509", "flags=FI", "attempts=0"),
    row("fault-abort-of-others", header(("x-fault", "abort")), DETAILS, "code=200"),
    row(
        "fault-abort-of-another-service",
        header(("x-fault", "abort"), ("x-who", "me"), ("user-agent", "Mozilla Firefox 1")),
        *(V3, "code=200"),
        host="reviews",
    ),
    row("fault-delay", header(("x-fault", "delay")), DETAILS, "code=200", "flags=DI"),
    row("fault-of-no-request", header(("x-fault", "never")), DETAILS, "code=200"),
    row("fault-beyond-those-at-one-time", header(("x-fault", "at-most-none")), DETAILS, "code=200"),
    row(
        "fault-inbound",
        header(("x-fault", "inbound"), ("content-type", "application/grpc")),
        *("  grpc-status: 14", "flags=FI"),
        listener="10.1.0.10_9080",
    ),
    # What comes in to the application itself.
    row("inbound", "/in", "cluster=inbound|9080||; ", "route=default", host="any", listener="10.1.0.10_9080"),
    row("inbound-passes-errors-on", "/in", "code=503", "attempts=1", listener="10.1.0.10_9080", upstream=[reply(503)]),
    # Routes of the Gateway API.
    row("gw-prefix", "/api/x?q", REVIEWS, "GET /x?q ", "  host: api.example", host="productpage"),
    row("gw-prefix-alone", "/api", REVIEWS, "GET / ", host="productpage"),
    row("gw-prefix-is-of-segments", "/apis", "404", host="productpage"),
    row("gw-longer-prefix", "/api/v2/x", REVIEWS, "GET /two/x ", host="productpage"),
    row("gw-exact", "/api/v2/exact?q=1", REVIEWS, "GET /whole?q=1 ", host="productpage"),
    row("gw-method", post("/api/x"), RATINGS, host="productpage"),
    row("gw-header", header(("x-beta", "yes"), target="/api/x"), DETAILS, host="productpage"),
    row("gw-redirect", "/moved/x?q", "301", "  location: http://new.example:9080/to/x?q", host="productpage"),
    row("gw-no-backend", "/nobody", "code=500", host="productpage"),
    row("gw-regex", "/123", REVIEWS, "  x-number: yes", "  x-backend: reviews", host="productpage"),
    row("gw-unmatched", "/other", "404", "details=route_not_found", host="productpage"),
]
EXPECTED = {case.name: expected for case, expected in ROWS}
TOPIC = SnapshotTopic(cases=[case for case, _ in ROWS], rules=RULES)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with start_pair(TOPIC) as both:
        yield both


@pytest.mark.parametrize("case", TOPIC.cases, ids=[case.name for case in TOPIC.cases])
def test_both_proxies_do_what_the_rule_means(pair: Pair, case: Case) -> None:
    envoy, ours = pair.run(case)
    assert ours.lines(log=case.log) == envoy.lines(log=case.log)
    text = "\n".join(envoy.lines(log=case.log))
    for part in EXPECTED[case.name]:
        assert part in text, text
