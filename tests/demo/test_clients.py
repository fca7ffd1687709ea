"""The clients count each request once, and take nothing but the right answer for an answer."""

import shutil
from collections.abc import Callable, Iterator

import pytest

from meshproxy.demo.application import page
from meshproxy.demo.clients import (
    IPHONE,
    TESTER,
    PipeliningConnection,
    Reply,
    ReplyReader,
    Visit,
    visit_with_curl,
    visit_with_urllib,
)
from meshproxy.demo.tally import Ledger
from tests.support.upstream import CLOSE, Answer, ScriptedUpstream, reply


def visit(number: int = 1) -> tuple[Visit, Ledger]:
    ledger = Ledger()
    ledger.act = "Act 1"
    return Visit(IPHONE, number, ledger), ledger


def answer(instance: str, body: bytes, status: int = 200) -> Reply:
    made = Reply(status)
    made.instance, made.body = instance, body
    return made


def test_the_right_answer_counts_for_its_instance_in_the_act_in_which_it_was_asked() -> None:
    asked, ledger = visit()
    ledger.act = "Act 2"
    asked.judge(answer("v2-a", page("v2-a", b"GET", b"/items/1", b"")))
    assert ledger.total({"Act 1"}, {IPHONE.name}).by_instance == {"v2-a": 1}
    assert ledger.total({"Act 2"}).requests == 0


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (answer("v1-a", page("v1-a", b"GET", b"/items/1", b""), 503), "status 503"),
        (answer("v1-a", page("v1-a", b"GET", b"/items/2", b"")), "the answer of v1-a"),
        (answer("v1-a", page("v2-a", b"GET", b"/items/1", b"")), "the answer of v1-a"),
        (answer("v1-a", page("v1-a", b"GET", b"/items/1", b"")[:-1]), "the answer of v1-a"),
        (answer("", page("", b"GET", b"/items/1", b"")), "the answer of nobody"),
    ],
    ids=["status", "another's answer", "another instance", "cut short", "no instance"],
)
def test_a_wrong_answer_is_a_failure(wrong: Reply, why: str) -> None:
    asked, ledger = visit()
    asked.judge(wrong)
    assert (ledger.total().answered, ledger.total().failed) == (0, 1)
    assert why in ledger.failures[0]


def test_one_request_in_eight_has_a_body_and_the_tester_asks_for_the_fault() -> None:
    assert visit(8)[0].encoded().endswith(b"content-length: 7\r\n\r\ncount=8")
    assert b"x-chaos" not in visit(7)[0].encoded()
    assert b"\r\nx-chaos: slow\r\n" in Visit(TESTER, 7, Ledger()).encoded()


def test_replies_are_read_in_whatever_pieces_they_come() -> None:
    wire = b"HTTP/1.1 200 OK\r\nx-shop-instance: v1-a\r\ncontent-length: 2\r\n\r\nok"
    wire += b"HTTP/1.1 503 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    reader = ReplyReader()
    for at in range(len(wire)):
        reader.feed(wire[at : at + 1])
    assert [(one.status, one.instance, one.body, one.closes) for one in reader.replies] == [
        (200, "v1-a", b"ok", False),
        (503, "", b"", True),
    ]
    with pytest.raises(EOFError):
        reader.feed(b"")


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    server = ScriptedUpstream()
    yield server
    server.close()
    assert server.errors == []


def page_reply(number: int) -> Answer:
    """The right answer to the GET of that number."""
    return reply(body=page("v1-a", b"GET", b"/items/%d" % number, b""), headers=[("x-shop-instance", "v1-a")])


def test_a_pipelining_client_counts_what_came_out_of_order_and_what_was_cut_off(upstream: ScriptedUpstream) -> None:
    upstream.play([page_reply(1), page_reply(3), CLOSE])
    ledger = Ledger()
    connection = PipeliningConnection(upstream.ports["a"], ledger)
    connection.exchange([Visit(IPHONE, number, ledger) for number in (1, 2, 3)])
    connection.close()
    assert (ledger.total().answered, ledger.total().failed) == (1, 2)
    assert "the answer of v1-a" in ledger.failures[0]


def test_a_pipelining_client_keeps_its_connection(upstream: ScriptedUpstream) -> None:
    script = upstream.play([page_reply(number) for number in (1, 2, 3, 4)])
    ledger = Ledger()
    connection = PipeliningConnection(upstream.ports["a"], ledger)
    for numbers in ((1, 2), (3, 4)):
        connection.exchange([Visit(IPHONE, number, ledger) for number in numbers])
    connection.close()
    assert (ledger.total().answered, ledger.total().failed) == (4, 0)
    assert [seen.connection for seen in script.seen] == [1, 1, 1, 1]


def with_urllib(visit: Visit, port: int) -> None:
    visit_with_urllib(visit, port)


def with_curl(visit: Visit, port: int) -> None:
    visit_with_curl([visit], port)


ONE_BY_ONE = [
    with_urllib,
    pytest.param(with_curl, marks=pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")),
]


@pytest.mark.parametrize("ask", ONE_BY_ONE)
def test_other_peoples_clients_count_what_they_got(
    ask: Callable[[Visit, int], None], upstream: ScriptedUpstream
) -> None:
    for script, answered, failed in (([page_reply(1)], 1, 0), ([page_reply(2)], 0, 1), ([reply(503)], 0, 1)):
        upstream.play([*script])
        ledger = Ledger()
        ask(Visit(IPHONE, 1, ledger), upstream.ports["a"])
        assert (ledger.total().answered, ledger.total().failed) == (answered, failed), ledger.failures


@pytest.mark.parametrize("ask", ONE_BY_ONE)
def test_a_connection_that_ends_without_an_answer_is_one_failure_and_is_not_tried_again(
    ask: Callable[[Visit, int], None], upstream: ScriptedUpstream
) -> None:
    script = upstream.play([CLOSE])
    ledger = Ledger()
    ask(Visit(IPHONE, 1, ledger), upstream.ports["a"])
    assert (ledger.total().answered, ledger.total().failed) == (0, 1)
    assert len(script.seen) == 1
