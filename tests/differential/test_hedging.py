"""Hedging: another attempt while the slow one goes on, and the first good answer wins."""

from tests.differential.cases import (
    AwaitEnded,
    AwaitUpstream,
    Case,
    Close,
    Differs,
    Expect,
    Fire,
    Receive,
    Step,
    get,
    post,
    request,
)
from tests.differential.counted import check_counted_alike
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.upstream import CLOSE, STALL, Answer, reply

BACK_OFF = "retry_back_off: { base_interval: 0.002s, max_interval: 0.004s }"
HEDGE = "hedge_policy: { hedge_on_per_try_timeout: true }"


def retry(fields: str) -> str:
    """A retry policy."""
    return f"retry_policy: {{ {fields}, {BACK_OFF} }}"


ONCE = retry("retry_on: 5xx, num_retries: 1, per_try_timeout: 0.08s")
TWICE = retry("retry_on: 5xx, num_retries: 2, per_try_timeout: 0.08s")


def hedged(
    name: str,
    *answers: Answer,
    steps: tuple[Step, ...] = (),
    req: bytes = get("/"),
    policy: str = ONCE,
    hedge: str = HEDGE,
    vhost: str = "",
    cluster: str = "a",
    fields: str = "",
    listener: str = "main",
    differs: Differs | None = None,
) -> Case:
    """A request on a route with a per-try timeout."""
    parts = ", ".join(part for part in (f"cluster: {cluster}", policy, hedge, fields) if part)
    return Case(
        name,
        steps or (req, Receive()),
        answers,
        route=f"match: {{ prefix: / }}\nroute: {{ {parts} }}",
        vhost="include_request_attempt_count: true\ninclude_attempt_count_in_response: true\n"
        "include_is_timeout_retry_header: true\n" + vhost,
        listener=listener,
        log_bytes=False,
        differs=differs,
    )


def waits(status: int = 200, event: str = "first", then: str = "keep", nothing: bool = False) -> Answer:
    """An answer that comes when the event is fired."""
    pieces = () if nothing else reply(status, event.encode()).pieces
    return Answer(pieces, wait_for=event, then=then)


SECOND = reply(200, b"second")
FIRST_WINS: tuple[Step, ...] = (get("/"), AwaitUpstream(2), Fire("first"), Receive())
FIRST_THEN_SECOND: tuple[Step, ...] = (
    get("/"),
    AwaitUpstream(2),
    Fire("first"),
    AwaitEnded(),
    Fire("second"),
    Receive(),
)
SECOND_THEN_FIRST: tuple[Step, ...] = (get("/"), AwaitUpstream(2), AwaitEnded(), Fire("first"), Receive())
CASES = [
    hedged("second_answers", STALL, SECOND),
    hedged("first_answers_later", waits(), STALL, steps=FIRST_WINS),
    hedged("first_fails_later", waits(503, then="close"), waits(event="second"), steps=FIRST_THEN_SECOND),
    hedged("both_fail", waits(503, then="close"), waits(500, event="second"), steps=FIRST_THEN_SECOND),
    hedged("second_fails", STALL, reply(503, b"second"), fields="timeout: 0.3s"),
    hedged("second_fails_first_answers", waits(), reply(503, then="close"), steps=SECOND_THEN_FIRST),
    hedged("second_fails_first_fails", waits(503), reply(500, then="close"), steps=SECOND_THEN_FIRST),
    hedged("second_closes_first_answers", waits(), CLOSE, steps=SECOND_THEN_FIRST),
    hedged("second_closes", STALL, CLOSE, fields="timeout: 0.3s"),
    hedged("first_closes", waits(then="close", nothing=True), waits(event="second"), steps=FIRST_THEN_SECOND),
    hedged("both_stall", STALL, STALL, fields="timeout: 0.3s"),
    hedged("three_stall", STALL, STALL, STALL, policy=TWICE, fields="timeout: 0.4s"),
    hedged("third_answers", STALL, STALL, SECOND, policy=TWICE),
    hedged("second_fails_third_answers", STALL, reply(503), SECOND, policy=TWICE),
    hedged(
        "first_of_three_answers",
        waits(),
        STALL,
        STALL,
        policy=TWICE,
        steps=(get("/"), AwaitUpstream(3), Fire("first"), Receive()),
    ),
    hedged("first_404", waits(404), STALL, steps=FIRST_WINS),
    hedged(
        "no_retry_condition",
        STALL,
        SECOND,
        policy=retry("retry_on: connect-failure, num_retries: 1, per_try_timeout: 0.08s"),
    ),
    hedged("without_hedging", STALL, SECOND, hedge=""),
    hedged("hedging_false", STALL, SECOND, hedge="hedge_policy: { hedge_on_per_try_timeout: false }"),
    hedged("no_per_try_timeout", STALL, SECOND, policy=retry("retry_on: 5xx, num_retries: 1"), fields="timeout: 0.2s"),
    hedged("no_retry_policy", STALL, SECOND, policy="", fields="timeout: 0.2s"),
    hedged(
        "no_retries_left",
        STALL,
        SECOND,
        policy=retry("retry_on: 5xx, num_retries: 0, per_try_timeout: 0.08s"),
        fields="timeout: 0.3s",
    ),
    hedged(
        "retries_overflow",
        STALL,
        SECOND,
        cluster="no_retries",
        fields="timeout: 0.3s",
        differs=Differs(
            "flag-order",
            Expect((504,), "kept", ("GET / HTTP/1.1",), ("flags=UT,UO",)),
            Expect((504,), "kept", ("GET / HTTP/1.1",), ("flags=UO,UT",)),
        ),
    ),
    hedged("post", STALL, SECOND, req=post("/", b"hello")),
    hedged(
        "post_over_limit",
        STALL,
        SECOND,
        req=post("/", b"x" * 2000),
        vhost="per_request_buffer_limit_bytes: 1000",
        fields="timeout: 0.3s",
    ),
    hedged(
        "waits_for_the_request",
        STALL,
        SECOND,
        steps=(
            request("POST", "/", [("transfer-encoding", "chunked")]) + b"5\r\nhello\r\n",
            AwaitUpstream(1),
            b"0\r\n\r\n",
            Receive(),
        ),
    ),
    hedged("downstream_leaves", STALL, STALL, steps=(get("/"), AwaitUpstream(2), Close())),
    hedged("vhost_policy", STALL, SECOND, hedge="", vhost=HEDGE),
    hedged(
        "route_over_vhost",
        STALL,
        SECOND,
        hedge="hedge_policy: { initial_requests: 1 }",
        vhost=HEDGE,
        fields="timeout: 0.5s",
    ),
    hedged("vhost_retry_policy", STALL, SECOND, policy="", vhost=ONCE),
    hedged(
        "first_begins_late",
        Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfi", b"rst"), wait_for="first"),
        STALL,
        steps=FIRST_WINS,
    ),
    hedged("per_try_idle", STALL, SECOND, policy=retry("retry_on: 5xx, num_retries: 1, per_try_idle_timeout: 0.08s")),
    *(
        hedged(
            f"asked_{number}_{value.lower()}",
            STALL,
            SECOND,
            hedge="",
            req=get("/", ("x-envoy-hedge-on-per-try-timeout", value)),
            listener="internal",
        )
        for number, value in enumerate(("true", "True", "1", "false"))
    ),
    hedged(
        "asked_off", STALL, SECOND, req=get("/", ("x-envoy-hedge-on-per-try-timeout", "false")), listener="internal"
    ),
    hedged(
        "asked_from_outside",
        STALL,
        SECOND,
        hedge="",
        req=get("/", ("x-envoy-hedge-on-per-try-timeout", "true")),
        listener="edge",
    ),
    hedged(
        "redirected",
        STALL,
        reply(302, b"moved", [("location", "http://redirected.test/to")]),
        SECOND,
        fields="internal_redirect_policy: {}",
    ),
]

TOPIC = Topic(
    CASES,
    {
        "main": "",
        "internal": "use_remote_address: true\ninternal_address_config: { cidr_ranges: [{ address_prefix: 127.0.0.0, prefix_len: 8 }] }",
        "edge": "use_remote_address: true",
    },
    clusters={"no_retries": "circuit_breakers: { thresholds: [{ max_retries: 0 }] }"},
)


def test_case(pair: Pair, case: Case) -> None:
    pair.check(case)


def test_counted_alike(pair: Pair) -> None:
    check_counted_alike(pair, "http.main.", "cluster.a.", "cluster.no_retries.")


def test_later_attempts_are_told_the_time_that_is_left(pair: Pair) -> None:
    case = next(case for case in CASES if case.name == "three_stall")
    for outcome in pair.run(case):
        told = [int(seen.message.get(b"x-envoy-expected-rq-timeout-ms") or b"0") for seen in outcome.seen]
        assert 400 == told[0] > told[1] > told[2] > 0
