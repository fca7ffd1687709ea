"""Rules about requests that come over HTTP/2: what is answered to those that they deny, whatever they ask for."""

from tests.differential.http2 import Head, Http2Pair, Http2Topic, Over, Row, Sync, one
from tests.differential.test_filters import filters
from tests.differential.test_rbac import NEVER, TOLD, header, on_route, path, policy, rbac, rules, text
from tests.support.http2_wire import data

DENIED = on_route(rules=rules("DENY", p=policy()))
POST = Head(method="POST", end=False)
CONNECT = Head(method="CONNECT", end=False, over=((":path", None), (":scheme", None)))
WEBSOCKET = Head([("sec-websocket-version", "13")], method="CONNECT", end=False, over=((":protocol", "websocket"),))
UPGRADES = (
    "http2_protocol_options: { allow_connect: true }\n"
    "upgrade_configs: [{ upgrade_type: websocket }, { upgrade_type: CONNECT }]"
)
TUNNEL = "match: { connect_matcher: {} }\nroute: { cluster: a, upgrade_configs: [{ upgrade_type: CONNECT }] }\n"


def ruled(name: str, permission: dict[str, object], head: Head) -> Row:
    """Whether a request has this permission."""
    return one(name, head, route=on_route(rules=rules(p=policy(permission))), listener="rbac")


ROWS = [
    ruled("allowed", {"any": True}, Head()),
    ruled("path", path(exact="/p"), Head(path="/p?q")),
    ruled("authority", header(":authority", **text(exact="authority.test")), Head()),
    ruled("method", header(":method", **text(exact="GET")), Head()),
    ruled("scheme", header(":scheme", **text(exact="http")), Head()),
    ruled("several_fields", header("x-a", **text(exact="2")), Head([("x-a", "1"), ("x-a", "2")])),
    ruled("several_cookies", header("cookie", **text(exact="a=1; b=2")), Head([("cookie", "a=1"), ("cookie", "b=2")])),
    ruled("one_cookie_of_several", header("cookie", **text(exact="a=1")), Head([("cookie", "a=1"), ("cookie", "b=2")])),
    one("denied", Head(), route=DENIED, listener="rbac"),
    one("denied_head", Head(method="HEAD"), route=DENIED, listener="rbac"),
    one("denied_before_its_body", POST, Sync(), data(1, b"hello", end=True), route=DENIED, listener="rbac"),
    one("denied_grpc", Head([("content-type", "application/grpc")], method="POST"), route=DENIED, listener="rbac"),
    one("denied_websocket", WEBSOCKET, route=DENIED, listener="upgrades"),
    one("denied_connect", CONNECT, route=on_route(TUNNEL, rules=rules("DENY", p=policy())), listener="upgrades"),
    one(
        "connect_has_no_path",
        CONNECT,
        route=on_route(TUNNEL, rules=rules(p=policy(path(prefix="/")))),
        listener="upgrades",
    ),
    Row(
        "each_stream_for_itself",
        (Head(path="/p"), Over(), Head(path="/q", stream=3), Over((3,)), Head(path="/p", stream=5), Over((5,))),
        route=on_route(rules=rules("DENY", p=policy(path(exact="/q")), q=policy(NEVER))),
        listener="rbac",
    ),
]
HTTP2 = Http2Topic(
    ROWS, listeners={"rbac": filters(rbac()) + TOLD, "upgrades": filters(rbac()) + TOLD + "\n" + UPGRADES}
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)
