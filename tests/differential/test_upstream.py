"""Clusters: circuit breakers, outlier ejection, connection reuse, and bodies of many sizes both ways."""

from collections.abc import Mapping, Sequence

from tests.differential.cases import AwaitUpstream, Case, Receive, chunked, get, post, request
from tests.differential.pair import Pair, Side
from tests.differential.topic import Topic
from tests.support.downstream import RawDownstream, exchange
from tests.support.polling import wait_for
from tests.support.upstream import OK, RESET, STALL, Answer, reply

ROUTE = "match: { prefix: / }\nroute: { cluster: %s }\n"
SIZES = (0, 1, 2, 1000, 4096, 16384, 65536, 100000, 1 << 20)


def body(size: int) -> bytes:
    """Bytes that show when a piece is lost, doubled or out of place."""
    return (b"".join(b"%08d" % number for number in range(size // 8 + 1)))[:size]


def pieces(data: bytes, size: int) -> list[bytes]:
    """A body cut into chunks."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def chunked_reply(data: bytes, size: int) -> Answer:
    """A chunked answer."""
    return Answer((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(*pieces(data, size)),))


BODIES = [
    *(Case(f"request_length_{size}", post("/", body(size)), route=ROUTE % "a") for size in SIZES),
    *(
        Case(
            f"request_chunked_{size}_by_{chunk}",
            request("POST", "/", [("transfer-encoding", "chunked")]) + chunked(*pieces(body(size), chunk)),
            route=ROUTE % "a",
        )
        for size in SIZES
        for chunk in (1000, 70000)
        if size > 1
    ),
    *(Case(f"response_length_{size}", get("/"), (reply(200, body(size)),), route=ROUTE % "a") for size in SIZES),
    *(
        Case(f"response_chunked_{size}_by_{chunk}", get("/"), (chunked_reply(body(size), chunk),), route=ROUTE % "a")
        for size in SIZES
        for chunk in (1000, 70000)
        if size > 1
    ),
    *(
        Case(
            f"response_until_close_{size}",
            get("/"),
            (Answer((b"HTTP/1.1 200 OK\r\n\r\n" + body(size),), then="close"),),
            route=ROUTE % "a",
        )
        for size in SIZES
    ),
    *(
        Case(f"both_ways_{size}", post("/", body(size)), (reply(200, body(size)[::-1]),), route=ROUTE % "a")
        for size in SIZES
    ),
    Case(
        "small_buffers_both_ways",
        post("/", body(1 << 20)),
        (reply(200, body(1 << 20)),),
        route=ROUTE % "small_buffers",
        listener="small_buffers",
    ),
    Case("one_byte_chunks", get("/"), (chunked_reply(body(500), 1),), route=ROUTE % "a"),
    Case(
        "response_in_pieces",
        get("/"),
        (Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n", *pieces(body(100), 7))),),
        route=ROUTE % "a",
    ),
    Case(
        "request_in_pieces",
        (request("POST", "/", [("content-length", "100")]), AwaitUpstream(), *pieces(body(100), 7), Receive()),
        route=ROUTE % "a",
    ),
]

BREAKERS = [
    Case("breaker_connections_0", get("/"), route=ROUTE % "no_connections"),
    Case("breaker_pending_0", get("/"), route=ROUTE % "no_pending"),
    Case("breaker_requests_0", get("/"), route=ROUTE % "no_requests"),
    Case("breaker_requests_0_post", post("/", b"x" * 1000), route=ROUTE % "no_requests"),
    Case(
        "breaker_high_priority_open",
        get("/"),
        route="match: { prefix: / }\nroute: { cluster: high_only, priority: HIGH }",
    ),
    Case("breaker_default_priority_shut", get("/"), route="match: { prefix: / }\nroute: { cluster: high_only }"),
    Case(
        "breaker_overflow_retried",
        get("/"),
        route="match: { prefix: / }\nroute: { cluster: no_requests, retry_policy: { retry_on: 5xx, num_retries: 1, "
        "retry_back_off: { base_interval: 0.002s } } }",
    ),
]

CONNECTIONS = [
    Case(
        "reused",
        (get("/"), Receive(), get("/"), Receive(), post("/"), Receive()),
        route=ROUTE % "alone",
        connections=True,
    ),
    Case(
        "one_request_per_connection",
        (get("/"), Receive(), get("/"), Receive()),
        route=ROUTE % "one_request",
        connections=True,
    ),
    Case(
        "two_requests_per_connection",
        (get("/"), Receive(), get("/"), Receive(), get("/"), Receive()),
        route=ROUTE % "two_requests",
        connections=True,
    ),
    Case(
        "not_reused_after_close_header",
        (get("/"), Receive(), get("/"), Receive()),
        (reply(200, b"ok", [("connection", "close")], then="close"), OK),
        route=ROUTE % "alone",
        connections=True,
    ),
    Case(
        "not_reused_after_proxy_connection_close",
        (get("/"), Receive(), get("/"), Receive()),
        (reply(200, b"ok", [("proxy-connection", "Close")]), OK),
        route=ROUTE % "alone",
        connections=True,
    ),
    Case(
        "reused_after_proxy_connection_keep_alive",
        (get("/"), Receive(), get("/"), Receive()),
        (reply(200, b"ok", [("proxy-connection", "keep-alive"), ("keep-alive", "timeout=5")]), OK),
        route=ROUTE % "alone",
        connections=True,
    ),
    Case(
        "not_reused_after_http_1_0",
        (get("/"), Receive(), get("/"), Receive()),
        (Answer((b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",), then="close"), OK),
        route=ROUTE % "alone",
        connections=True,
    ),
    Case(
        "not_reused_after_timeout",
        (get("/"), Receive(), get("/"), Receive()),
        (STALL, OK),
        route="match: { prefix: / }\nroute: { cluster: alone, timeout: 0.05s }",
        connections=True,
    ),
    Case(
        "not_reused_after_early_answer",
        (post("/", b"x" * 10), Receive(), get("/"), Receive()),
        (reply(200, b"early", early=True), OK),
        route=ROUTE % "alone",
        log_bytes=False,
    ),
    Case(
        "reset_then_new_connection",
        (post("/"), Receive(), get("/"), Receive()),
        (RESET, OK),
        route=ROUTE % "alone",
        connections=True,
    ),
    Case("connect_refused_then_again", (get("/"), Receive(), get("/"), Receive()), route=ROUTE % "dead"),
]

def of_cluster(fields: str) -> str:
    """YAML of a cluster whose HttpProtocolOptions have these fields."""
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return (
        f"typed_extension_protocol_options: {{ {kind}: {{ '@type': type.googleapis.com/{kind}, "
        f"explicit_http_config: {{ http_protocol_options: {{}} }}, {fields} }} }}"
    )


RETRIED = "match: { prefix: / }\nroute: { cluster: retries, retry_policy: { retry_on: %s, num_retries: 1 } }"
OF_CLUSTER = [
    Case("cluster_retries", get("/"), (reply(503), reply(503), OK), route=ROUTE % "retries"),
    Case("cluster_retries_exhausted", get("/"), (reply(503), reply(502), reply(500), OK), route=ROUTE % "retries"),
    Case("cluster_retries_of_post", post("/", b"body"), (reply(503), OK), route=ROUTE % "retries"),
    Case("cluster_retries_more", get("/", ("x-envoy-max-retries", "3")), (*[reply(503)] * 3, OK), route=ROUTE % "retries"),
    Case("route_retries_first", get("/"), (reply(503), reply(503), OK), route=RETRIED % "5xx"),
    Case("route_retries_otherwise", get("/"), (reply(503), OK), route=RETRIED % "reset"),
    Case("vhost_retries_first", get("/"), (reply(503), reply(503), OK), route=ROUTE % "retries",
         vhost="retry_policy: { retry_on: 5xx, num_retries: 1 }"),
    Case("cluster_per_try_timeout", get("/"), (STALL, OK), route=ROUTE % "retries_tries"),
]

PANIC_OFF = "common_lb_config: { healthy_panic_threshold: { value: 0 } }\n"

TOPIC = Topic(
    [*BODIES, *BREAKERS, *CONNECTIONS, *OF_CLUSTER],
    listeners={"main": "", "small_buffers": "listener: { per_connection_buffer_limit_bytes: 1024 }"},
    clusters={
        "alone": "",
        "mirrors": of_cluster("request_mirror_policies: [{ cluster: b }]"),
        "retries": of_cluster("retry_policy: { retry_on: 5xx, num_retries: 2, retry_back_off: { base_interval: 0.002s } }"),
        "retries_tries": of_cluster("retry_policy: { retry_on: 5xx, num_retries: 2, per_try_timeout: 0.1s }"),
        "hashes": "hosts: [a, b, c]\nlb_policy: RING_HASH\n"
        + of_cluster("hash_policy: [{ header: { header_name: x-cluster } }]"),
        "small_buffers": "per_connection_buffer_limit_bytes: 1024",
        "no_connections": "circuit_breakers: { thresholds: [{ max_connections: 0 }] }",
        "no_pending": "circuit_breakers: { thresholds: [{ max_pending_requests: 0 }] }",
        "no_requests": "circuit_breakers: { thresholds: [{ max_requests: 0 }] }",
        "high_only": "circuit_breakers: { thresholds: [{ max_requests: 0 }, { priority: HIGH, max_requests: 5 }] }",
        "one_request": "max_requests_per_connection: 1",
        "two_requests": "max_requests_per_connection: 2",
        "one_active": "circuit_breakers: { thresholds: [{ max_requests: 1 }] }",
        "one_connection": "circuit_breakers: { thresholds: [{ max_connections: 1, max_pending_requests: 1 }] }",
        "ejects": PANIC_OFF
        + "hosts: [b]\noutlier_detection: { consecutive_5xx: 3, interval: 0.02s, base_ejection_time: 60s, max_ejection_percent: 100 }",
        "panics": "hosts: [b]\noutlier_detection: { consecutive_5xx: 3, interval: 0.02s, base_ejection_time: 60s, max_ejection_percent: 100 }",
        "ejects_gateway": PANIC_OFF
        + "hosts: [b]\noutlier_detection: { consecutive_5xx: 100, consecutive_gateway_failure: 2, enforcing_consecutive_gateway_failure: 100, "
        "interval: 0.02s, base_ejection_time: 60s, max_ejection_percent: 100 }",
        "ejects_local": PANIC_OFF
        + "hosts: [dead]\noutlier_detection: { split_external_local_origin_errors: true, consecutive_local_origin_failure: 2, interval: 0.02s, "
        "base_ejection_time: 60s, max_ejection_percent: 100 }",
        "ejects_local_b": PANIC_OFF
        + "hosts: [b]\noutlier_detection: { split_external_local_origin_errors: true, consecutive_local_origin_failure: 2, interval: 0.02s, "
        "base_ejection_time: 60s, max_ejection_percent: 100 }",
        "ejects_one_of_two": PANIC_OFF
        + "hosts: [b, c]\noutlier_detection: { consecutive_5xx: 2, interval: 0.02s, base_ejection_time: 60s, max_ejection_percent: 50 }",
        "ejects_none": PANIC_OFF
        + "hosts: [b]\noutlier_detection: { consecutive_5xx: 2, interval: 0.02s, base_ejection_time: 60s, max_ejection_percent: 0 }",
        "ejects_briefly": PANIC_OFF
        + "hosts: [b]\noutlier_detection: { consecutive_5xx: 2, interval: 0.02s, base_ejection_time: 0.02s, max_ejection_percent: 100 }",
    },
    vhosts="[{ name: mirrored, domains: [mirrored.test], routes: [{ match: { prefix: / }, route: { cluster: mirrors, "
    "request_mirror_policies: [{ cluster: c }] } }] }, { name: hashed, domains: [hashed.test], routes: [{ match: { prefix: / }, route: { cluster: hashes, "
    "hash_policy: [{ header: { header_name: x-route } }] } }] }, { name: by_path, domains: [by-path.test], routes: ["
    + ", ".join(
        f"{{ match: {{ prefix: /{name} }}, route: {{ cluster: {name} }} }}"
        for name in (
            "panics",
            "one_active",
            "one_connection",
            "ejects_gateway",
            "ejects_local_b",
            "ejects_local",
            "ejects_one_of_two",
            "ejects_none",
            "ejects_briefly",
            "ejects",
        )
    )
    + "] }]",
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    pair.check_order()


def sides(pair: Pair) -> tuple[Side, Side]:
    """Envoy and the subject."""
    return pair.reference, pair.subject


def ask(side: Side, cluster: str) -> tuple[int, bytes]:
    """One POST, which no rule repeats, on a connection of its own: status and body."""
    message = exchange(side.ports["main"], post(f"/{cluster}", b"x", host="by-path.test"))
    return message.status, message.body


def ask_in_turn(side: Side, cluster: str, count: int, answers: Mapping[str, Sequence[Answer]]) -> list[int]:
    """Statuses of several requests, one after the other."""
    side.upstream.play((OK,), answers)
    return [ask(side, cluster)[0] for _ in range(count)]


def second_while_first_runs(side: Side, cluster: str) -> list[tuple[int, bytes]]:
    """A request that comes while the cluster's only place is taken; then the first one's answer."""
    side.upstream.play((Answer(OK.pieces, wait_for="go"),))
    with RawDownstream(side.ports["main"]) as first:
        first.send(get(f"/{cluster}", host="by-path.test"))
        side.upstream.wait_seen(1)
        second = ask(side, cluster)
        side.upstream.fire("go")
        message = first.receive()
        return [second, (message.status, message.body)]


def third_while_two_wait(side: Side) -> list[tuple[int, bytes]]:
    """One connection, one pending request: the third is refused, the two others are answered."""
    side.upstream.play((Answer(OK.pieces, wait_for="go"),))
    port = side.ports["main"]
    pending = "cluster.one_connection.upstream_rq_pending_active"
    with RawDownstream(port) as first, RawDownstream(port) as second:
        first.send(get("/one_connection", host="by-path.test"))
        side.upstream.wait_seen(1)
        second.send(get("/one_connection", host="by-path.test"))
        wait_for(lambda: side.proxy.stats(pending).get(pending) == 1, "the second request to wait")
        third = ask(side, "one_connection")
        side.upstream.fire("go")
        answers = [first.receive(), second.receive()]
        return [third, *((message.status, message.body) for message in answers)]


def test_max_requests_overflow(pair: Pair) -> None:
    expected, actual = (second_while_first_runs(side, "one_active") for side in sides(pair))
    assert [status for status, _ in expected] == [503, 200]
    assert actual == expected


def test_max_connections_and_pending_overflow(pair: Pair) -> None:
    expected, actual = (third_while_two_wait(side) for side in sides(pair))
    assert [status for status, _ in expected] == [503, 200, 200]
    assert actual == expected


def servers_by_key(side: Side, name: str, others: str) -> dict[str, set[str]]:
    """The servers that requests with a key in the header `name` came to, whatever the header `others` said."""
    found: dict[str, set[str]] = {}
    script = side.upstream.play((OK,))
    for key in "abcdefgh":
        for other in "xyz":
            exchange(side.ports["main"], get("/", (name, key), (others, other), host="hashed.test"))
            found.setdefault(key, set()).add(script.seen[-1].server)
    return found


def test_hash_policy_of_a_cluster_goes_before_the_routes(pair: Pair) -> None:
    for side in sides(pair):
        by_cluster = servers_by_key(side, "x-cluster", "x-route")
        assert all(len(servers) == 1 for servers in by_cluster.values()), by_cluster
        assert len({min(servers) for servers in by_cluster.values()}) > 1


def test_mirroring_of_a_cluster_goes_before_the_routes(pair: Pair) -> None:
    for side in sides(pair):
        script = side.upstream.play((OK,))
        exchange(side.ports["main"], get("/", host="mirrored.test"))
        side.upstream.wait_seen(2)
        assert sorted(seen.server for seen in script.seen) == ["a", "b"]


def ask_until_ejected(side: Side, cluster: str, count: int, answers: Mapping[str, Sequence[Answer]]) -> list[int]:
    """Statuses of `count` requests, after which one host is ejected; then those of three more."""
    statuses = ask_in_turn(side, cluster, count, answers)
    name = f"cluster.{cluster}.outlier_detection.ejections_active"
    wait_for(lambda: side.proxy.stats(name).get(name) == 1, f"{side.name} to eject a host of {cluster}")
    return statuses + [ask(side, cluster)[0] for _ in range(3)]


def test_ejected_after_consecutive_5xx(pair: Pair) -> None:
    expected, actual = (ask_until_ejected(side, "ejects", 3, {"b": (reply(500),)}) for side in sides(pair))
    assert expected == [500] * 3 + [503] * 3
    assert actual == expected


def test_panic_uses_ejected_hosts(pair: Pair) -> None:
    expected, actual = (ask_until_ejected(side, "panics", 3, {"b": (reply(500),)}) for side in sides(pair))
    assert expected == [500] * 6
    assert actual == expected


def test_success_between_starts_counting_again(pair: Pair) -> None:
    answers = {"b": (reply(502), reply(200), reply(502), reply(200), reply(502), reply(502), reply(200))}
    expected, actual = (ask_until_ejected(side, "ejects_gateway", 6, answers) for side in sides(pair))
    assert expected == [502, 200, 502, 200, 502, 502] + [503] * 3
    assert actual == expected


def test_ejected_after_refused_connections(pair: Pair) -> None:
    expected, actual = (ask_until_ejected(side, "ejects_local", 2, {}) for side in sides(pair))
    assert expected == [503] * 5
    assert actual == expected
    assert [ask(side, "ejects_local")[1] for side in sides(pair)] == [b"no healthy upstream"] * 2


def test_status_codes_are_not_local_origin_failures(pair: Pair) -> None:
    expected, actual = (ask_in_turn(side, "ejects_local_b", 4, {"b": (reply(500),)}) for side in sides(pair))
    assert expected == [500] * 4
    assert actual == expected


def test_max_ejection_percent_0(pair: Pair) -> None:
    expected, actual = (ask_in_turn(side, "ejects_none", 4, {"b": (reply(500),)}) for side in sides(pair))
    assert expected == [500] * 4
    assert actual == expected


def test_one_of_two_hosts_ejected(pair: Pair) -> None:
    answers = {"b": (reply(500),), "c": (reply(200),)}
    expected, actual = (ask_until_ejected(side, "ejects_one_of_two", 4, answers) for side in sides(pair))
    assert sorted(expected[:4]) == sorted(actual[:4]) == [200, 200, 500, 500]
    assert expected[4:] == actual[4:] == [200] * 3


def test_ejection_ends(pair: Pair) -> None:
    for side in sides(pair):
        answers = {"b": (reply(500), reply(500), reply(200))}
        assert ask_in_turn(side, "ejects_briefly", 2, answers) == [500, 500]
        wait_until_taken_back(side)


def wait_until_taken_back(side: Side) -> None:
    """Ask until the ejected host answers again."""
    wait_for(lambda: ask(side, "ejects_briefly")[0] == 200, f"{side.name} to take the host back")
