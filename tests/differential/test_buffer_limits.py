"""How much of a request's body is kept for another attempt, and what becomes of the request when it is more."""

from tests.differential.cases import AwaitEnded, Case, Receive, Step, chunked, post, request
from tests.differential.counted import check_counted_alike
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import OK, Answer, reply

QUICK = "{ base_interval: 0.002s, max_interval: 0.004s }"
SLOW = "{ base_interval: 1s, max_interval: 1s }"
CHUNKED = request("POST", "/", [("transfer-encoding", "chunked")])
EARLY_503 = reply(503, b"", early=True, then="close")


def limited(
    name: str,
    size: int,
    vhost: str = "",
    route: str = "",
    listener: str = "main",
    fields: str = "",
    answers: tuple[Answer, ...] = (reply(503), OK),
) -> Case:
    """A body of `size` bytes whose first attempt fails. Comes in one piece, so that nothing depends on its cutting."""
    retry = f"retry_policy: {{ retry_on: 5xx, num_retries: 1, retry_back_off: {QUICK} }}"
    return Case(
        name,
        post("/", b"x" * size),
        answers,
        route=f"match: {{ prefix: / }}\nroute: {{ cluster: a, {fields or retry} }}\n{route}",
        vhost=vhost,
        listener=listener,
        log_bytes=False,
    )


def waiting(name: str, data: bytes, fields: str, *, first: bytes = b"") -> Case:
    """More of the body comes while the next attempt waits for its turn."""
    steps: tuple[Step, ...] = (CHUNKED + first, AwaitEnded(), data, Receive())
    return Case(
        name,
        steps,
        (EARLY_503, OK),
        route="match: { prefix: / }\nroute: { cluster: a, retry_policy: "
        f"{{ retry_on: 5xx, num_retries: 1, retry_back_off: {SLOW} }} }}",
        vhost=fields,
        log_bytes=False,
    )


OLD, NEW = "per_request_buffer_limit_bytes", "request_body_buffer_limit"
REDIRECT = "internal_redirect_policy: {}"
CASES = [
    *(
        limited(
            f"{place}_{name}_{size}",
            size,
            vhost=f"{field}: 1000" if place == "vhost" else "",
            route=f"{field}: 1000" if place == "route" else "",
        )
        for place in ("vhost", "route")
        for name, field in (("old", OLD), ("new", NEW))
        for size in (999, 1000, 1001)
    ),
    limited("zero_old", 1, vhost=f"{OLD}: 0"),
    limited("zero_new", 1, vhost=f"{NEW}: 0"),
    limited("zero_no_body", 0, vhost=f"{NEW}: 0"),
    limited("route_over_vhost", 1500, vhost=f"{NEW}: 1000", route=f"{NEW}: 2000"),
    limited("route_under_vhost", 1500, vhost=f"{NEW}: 2000", route=f"{NEW}: 1000"),
    limited("old_route_new_vhost", 1500, vhost=f"{NEW}: 2000", route=f"{OLD}: 1000"),
    limited("new_route_old_vhost", 1500, vhost=f"{OLD}: 1000", route=f"{NEW}: 2000"),
    limited("connection_limit", 1500, listener="small"),
    limited("connection_limit_within", 900, listener="small"),
    limited("old_over_connection_limit", 1500, listener="small", vhost=f"{OLD}: 2000"),
    limited("new_over_connection_limit", 1500, listener="small", vhost=f"{NEW}: 2000"),
    limited("new_under_connection_limit", 900, listener="small", vhost=f"{NEW}: 800"),
    limited("no_connection_limit", 1_500, listener="unlimited"),
    limited("over_first_succeeds", 2000, vhost=f"{NEW}: 1000", answers=(OK,)),
    limited("no_policy", 2000, vhost=f"{NEW}: 1000", fields="timeout: 5s"),
    limited("redirect_over", 2000, vhost=f"{NEW}: 1000", fields=REDIRECT, answers=(OK,)),
    limited("mirrored_over", 2000, vhost=f"{NEW}: 1000", fields="request_mirror_policies: [{ cluster: dead }]"),
    waiting("waiting_over", b"800\r\n" + b"x" * 2048 + b"\r\n", f"{NEW}: 1000"),
    waiting(
        "waiting_over_in_all",
        b"300\r\n" + b"x" * 768 + b"\r\n",
        f"{NEW}: 1000",
        first=b"200\r\n" + b"x" * 512 + b"\r\n",
    ),
    waiting("waiting_within", chunked(b"x" * 300), f"{NEW}: 1000"),
]

TOPIC = Topic(
    CASES,
    {
        "main": "",
        "small": "listener: { per_connection_buffer_limit_bytes: 1000 }",
        "unlimited": "listener: { per_connection_buffer_limit_bytes: 0 }",
    },
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_counted_alike(pair: Pair) -> None:
    check_counted_alike(pair, "http.main.", "http.small.", "cluster.a.")
