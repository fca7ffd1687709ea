"""Pools of HTTP/2 connections: who shares one, when there is another, and what limits them."""

from tests.differential.http2 import (
    OPTIONS,
    Fire,
    Head,
    Http2Pair,
    Http2Topic,
    Over,
    Reached,
    Request1,
    Row,
    WholeUpstream,
    http2_cluster,
    one,
)
from tests.support.http2_upstream import OK, SILENT, Http2Answer
from tests.support.http2_wire import data

HELD = Http2Answer(OK.frames, wait_for="go")
GET = b"GET / HTTP/1.1\r\nhost: $HOST\r\n\r\n"


def to(cluster: str, more: str = "") -> str:
    """A route."""
    return f"match: {{ prefix: / }}\nroute: {{ cluster: {cluster}{more} }}"


def limited(**limits: int) -> str:
    """`circuit_breakers` of a cluster."""
    fields = ", ".join(f"{name}: {value}" for name, value in limits.items())
    return f"\ncircuit_breakers: {{ thresholds: [{{ {fields} }}] }}"


def as_downstream(host: str, http2: str = "") -> str:
    """A cluster that speaks as the downstream does."""
    fields = f"'@type': type.googleapis.com/{OPTIONS}, use_downstream_protocol_config: {{ {http2} }}"
    return f"hosts: [{host}]\ntyped_extension_protocol_options: {{ {OPTIONS}: {{ {fields} }} }}"


def per_connection(requests: int) -> str:
    """Fields of HttpProtocolOptions."""
    return f"common_http_protocol_options: {{ max_requests_per_connection: {requests} }}"


CLUSTERS = {
    "shared": http2_cluster("h"),
    "peer_one": http2_cluster("h_one"),
    "peer_one_only": http2_cluster("h_one") + limited(max_connections=1),
    "peer_none": http2_cluster("h_none"),
    "own_one": http2_cluster("h", "max_concurrent_streams: 1"),
    "own_one_only": http2_cluster("h", "max_concurrent_streams: 1") + limited(max_connections=1, max_pending_requests=1),
    "requests_two": http2_cluster("h") + limited(max_requests=2),
    "twice": http2_cluster("h", more=per_connection(2)),
    "once": http2_cluster("h", more=per_connection(1)),
    "brief": http2_cluster("h", more="common_http_protocol_options: { max_stream_duration: 0.1s }"),
    "old_field": "hosts: [h]\nhttp2_protocol_options: {}",
    "old_selection": "hosts: [h]\nprotocol_selection: USE_DOWNSTREAM_PROTOCOL",
    "down": as_downstream("h"),
    "down_plain": as_downstream("a"),
    "down_own": as_downstream("h", "http2_protocol_options: {}"),
    "mirrored": as_downstream("a", "http2_protocol_options: {}"),
}
THREE = (Head(), Reached(), Head(stream=3), Reached(2), Head(stream=5), Reached(3), Fire("go"), Over((1, 3, 5)))
ROWS = [
    Row("shared_by_three", THREE, route=to("shared"), answers=(HELD,)),
    Row("shared_one_after_the_other", (Head(), Over(), Head(stream=3), Over((3,)), Request1(GET)), route=to("shared")),
    Row("peer_allows_one", (Head(), Over(), *THREE[2:4], Head(stream=5), Reached(3), Fire("go"), Over((3, 5))),
        route=to("peer_one"), answers=(OK, HELD)),
    Row("peer_allows_one_and_waits", (Head(), Over(), Head(stream=3), Reached(2), Head(stream=5), Fire("go"), Over((3, 5))),
        route=to("peer_one_only"), answers=(OK, HELD, OK)),
    Row("peer_allows_none", (Head(), Over(), Head(stream=3), Over((3,))), route=to("peer_none")),
    Row("own_limit", THREE, route=to("own_one"), answers=(HELD,)),
    Row("own_limit_and_pending", (Head(), Reached(), Head(stream=3), Head(stream=5), Over((5,)), Fire("go"), Over((1, 3))),
        route=to("own_one_only"), answers=(HELD, OK)),
    Row("max_requests", (Head(), Reached(), Head(stream=3), Reached(2), Head(stream=5), Over((5,)), Fire("go"), Over((1, 3))),
        route=to("requests_two"), answers=(HELD,)),
    Row("two_requests_a_connection", (Head(), Over(), Head(stream=3), Over((3,)), Head(stream=5), Over((5,))), route=to("twice"),
        differs="protocol-error-of-own-close", envoy=("stat cluster.twice.upstream_cx_protocol_error: +1",)),
    Row("two_requests_at_once", THREE, route=to("twice"), answers=(HELD,), ignore=("stat cluster.twice.upstream_cx_protocol_error",)),
    Row("one_request_a_connection", (Head(), Over(), Head(stream=3), Over((3,))), route=to("once"),
        ignore=("stat cluster.once.upstream_cx_protocol_error",)),
    Row("reset_of_one", (Head(), Reached(), Head(stream=3), Reached(2), Head(stream=5), Over((5,))), route=to("shared", ", timeout: 0.2s"),
        answers=(SILENT, OK, OK), ignore=("stat",)),
    one("max_stream_duration", Head(), route=to("brief"), answers=(SILENT,)),
    one("max_stream_duration_incomplete", Head(method="POST", end=False), route=to("brief"), answers=(SILENT,)),
    one("old_field", Head(), route=to("old_field")),
    one("old_selection", Head(), route=to("old_selection")),
    Row("as_downstream", (Head(), Over(), Head(stream=3), Over((3,))), route=to("down")),
    Row("as_plain_downstream", (Request1(GET), Request1(GET)), route=to("down_plain"), opening=None),
    Row("mirrored_as_downstream", (Head(), Over(), Reached(plain=True), Head(method="POST", stream=3, end=False), data(3, b"x", end=True),
        Over((3,)), Reached(2, plain=True)), route=to("down_own", ", request_mirror_policies: [{ cluster: mirrored }]")),
    Row("requests_with_bodies", (Head(method="POST", end=False), Reached(), Head(method="PUT", stream=3, end=False), Reached(2),
        data(3, b"second", end=True), Over((3,)), data(1, b"first", end=True), WholeUpstream(2), Over((1, 3))), route=to("shared")),
]
HTTP2 = Http2Topic(ROWS, clusters=CLUSTERS)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
