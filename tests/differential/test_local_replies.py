"""Answers that the proxy makes itself: bodies, response flags and response code details."""

from tests.differential.cases import (
    AwaitUpstream,
    Case,
    Close,
    Differs,
    Expect,
    Receive,
    Reset,
    get,
    post,
    request,
)
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import CLOSE, RESET, STALL, Answer, reply


def to(cluster: str, more: str = "") -> str:
    """A route to a cluster."""
    return f"match: {{ prefix: / }}\nroute: {{ cluster: {cluster}{', ' + more if more else ''} }}\n"


GRPC = ("content-type", "application/grpc")
HALF = Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello",), then="close")
BUFFER = "match: { prefix: / }\nroute: { cluster: a, retry_policy: { retry_on: 5xx, num_retries: 1 } }\n"

CASES = [
    Case("no_virtual_host", get("/", host="none.test")),
    Case("no_route", get("/b"), route="match: { prefix: /a }\nroute: { cluster: a }"),
    Case("no_route_pipelined", get("/b") * 2, route="match: { prefix: /a }\nroute: { cluster: a }", responses=2),
    Case(
        "no_route_pipelined_many",
        get("/b") * 4,
        route="match: { prefix: /a }\nroute: { cluster: a }",
        responses=4,
        log=False,
        differs=Differs("pipelined-replies", Expect((404,) * 4, "kept"), Expect((404,) * 2, "closed")),
    ),
    Case("no_route_head", request("HEAD", "/b"), route="match: { prefix: /a }\nroute: { cluster: a }"),
    Case("no_route_post", post("/b", b"x" * 100), route="match: { prefix: /a }\nroute: { cluster: a }"),
    Case("no_route_grpc", post("/b", b"", GRPC), route="match: { prefix: /a }\nroute: { cluster: a }"),
    Case("bad_request", get("/"), route="match: { prefix: / }\ndirect_response: { status: 400 }"),
    Case("bad_request_grpc", get("/", GRPC), route="match: { prefix: / }\ndirect_response: { status: 400 }"),
    Case("no_healthy_host", get("/"), route=to("empty")),
    Case("no_healthy_host_head", request("HEAD", "/"), route=to("empty")),
    Case("no_healthy_host_post", post("/", b"x" * 5000), route=to("empty")),
    Case("no_healthy_host_grpc", post("/", b"", GRPC), route=to("empty")),
    Case(
        "no_healthy_host_grpc_status_only",
        post("/", b"", ("content-type", "application/grpc+proto")),
        route=to("empty"),
    ),
    Case("no_cluster", get("/", ("x-c", "none")), route="match: { prefix: / }\nroute: { cluster_header: x-c }"),
    Case(
        "no_cluster_500",
        get("/", ("x-c", "none")),
        route="match: { prefix: / }\nroute: { cluster_header: x-c, cluster_not_found_response_code: INTERNAL_SERVER_ERROR }",
    ),
    Case("refused", get("/"), route=to("dead")),
    Case("refused_head", request("HEAD", "/"), route=to("dead")),
    Case("refused_grpc", post("/", b"", GRPC), route=to("dead")),
    Case("refused_post_large", post("/", b"x" * 20000), route=to("dead")),
    Case("upstream_closes", post("/"), (CLOSE,), route=to("a")),
    Case("upstream_closes_grpc", post("/", b"", GRPC), (CLOSE,), route=to("a")),
    Case("upstream_resets", post("/"), (RESET,), route=to("a")),
    Case("upstream_speaks_nonsense", get("/"), (Answer((b"nonsense\r\n\r\n",), then="stall"),), route=to("a")),
    Case("upstream_closes_mid_body", get("/"), (HALF,), route=to("a")),
    Case(
        "upstream_closes_mid_chunked",
        get("/"),
        (Answer((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",), then="close"),),
        route=to("a"),
    ),
    Case("timeout", get("/"), (STALL,), route=to("a", "timeout: 0.1s")),
    Case("timeout_head", request("HEAD", "/"), (STALL,), route=to("a", "timeout: 0.1s")),
    Case("timeout_grpc", post("/", b"", GRPC), (STALL,), route=to("a", "timeout: 0.1s")),
    Case(
        "timeout_204_alternative",
        get("/", ("x-envoy-upstream-rq-timeout-alt-response", "1")),
        (STALL,),
        route=to("a", "timeout: 0.1s"),
    ),
    Case("upstream_500_passed", get("/"), (reply(500, b"boom"),), route=to("a")),
    Case(
        "upstream_grpc_error",
        post("/", b"", GRPC),
        (reply(200, b"", [("content-type", "application/grpc"), ("grpc-status", "5")]),),
        route=to("a"),
    ),
    Case("upstream_http_error_to_grpc", post("/", b"", GRPC), (reply(503, b"down"),), route=to("a")),
    Case("downstream_leaves", (get("/"), AwaitUpstream(), Close()), (STALL,), route=to("a")),
    Case("downstream_resets", (get("/"), AwaitUpstream(), Reset()), (STALL,), route=to("a")),
    Case(
        "downstream_leaves_mid_body",
        (request("POST", "/", [("content-length", "10")]) + b"hello", AwaitUpstream(), Close()),
        (STALL,),
        route=to("a"),
        log_bytes=False,
        compare_upstream="heads",
    ),
    Case("require_tls", get("/a?b"), vhost="require_tls: ALL", route=to("a")),
    Case(
        "direct_response",
        get("/"),
        route="match: { prefix: / }\ndirect_response: { status: 403, body: { inline_string: denied } }",
    ),
    Case("redirect", get("/"), route="match: { prefix: / }\nredirect: { path_redirect: /x }"),
    Case(
        "vhost_retry_shadow_buffer_limit",
        post("/", b"x" * 2000),
        vhost="per_request_buffer_limit_bytes: 1000",
        route=BUFFER,
    ),
    Case("overload_keeps_connection", (get("/"), Receive(), get("/"), Receive()), route=to("empty")),
]

TOPIC = Topic(CASES)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()
