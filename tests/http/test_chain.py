"""The filter chain: order, holding and resuming, replacing and keeping data, coroutines, and filters that raise."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.chain import FilterChain
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter
from meshproxy.http.stream import Stream
from tests.http.harness import Downstream, Harness, ScriptedUpstream, get, head

Hook = Callable[..., Any]
OK = head("200 OK", ("content-length", "0"))


class Recorder(HttpFilter):
    """Writes down each hook that is called, and does what `hooks` says: hook -> result, or a function."""

    def __init__(self, log: list[str], **hooks: Any) -> None:
        self.log = log
        self.hooks = hooks

    def act(self, hook: str, stream: Stream, part: Any, end: bool) -> Any:
        text = part.decode() if isinstance(part, bytes) else ""
        self.log.append(f"{self.name}.{hook}{'(' + text + ')' if text else ''}{'.' if end else ''}")
        result = self.hooks.get(hook, CONTINUE)
        return result(stream, part, end) if callable(result) else result

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Any:
        return self.act("request_headers", stream, headers, end)

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Any:
        return self.act("response_headers", stream, headers, end)

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> Any:
        return self.act("response_data", stream, data, end)

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Any:
        return self.act("response_trailers", stream, trailers, True)

    def on_stream_done(self, stream: Stream) -> None:
        self.log.append(f"{self.name}.done")


class Chain(Harness):
    """Filters `a`, `b` … in this order; `log` is what they saw."""

    def __init__(
        self, *filters: dict[str, Any], answer: bool = True, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(upstream=ScriptedUpstream([(b":status", b"200")] if answer else None), loop=loop)
        self.log: list[str] = []
        for name, hooks in zip("abcd", filters, strict=False):
            self.add(Recorder(self.log, **hooks), name)

    @property
    def stream(self) -> Stream:
        return self.upstream.streams[-1]


def begin(made: Chain) -> Downstream:
    """A connection whose request the upstream has, and whose response's head is out."""
    connection = made.connect()
    connection.send(get("/"))
    made.stream.send_response_headers(HeaderMap([(b":status", b"200"), (b"content-length", b"9")]), False)
    connection.received()
    made.log.clear()
    return connection


def test_requests_pass_in_order_and_responses_in_reverse() -> None:
    made = Chain({}, {})
    assert made.exchange(get("/")) == OK
    assert made.log == [
        "a.request_headers.",
        "b.request_headers.",
        "b.response_headers.",
        "a.response_headers.",
        "a.done",
        "b.done",
    ]


def test_a_held_request_goes_on_behind_the_filter_that_held_it() -> None:
    streams: list[Stream] = []

    def hold(stream: Stream, part: Any, end: bool) -> int:
        streams.append(stream)
        return STOP

    made = Chain({"request_headers": hold}, {})
    connection = made.connect()
    assert connection.send(get("/")) == b""
    assert made.log == ["a.request_headers."]
    streams[0].resume_request()
    assert connection.received() == OK
    assert made.log[1] == "b.request_headers."
    streams[0].resume_request()
    assert len(made.upstream.seen) == 1


def test_two_filters_that_hold_one_after_the_other() -> None:
    made = Chain({"response_data": STOP}, {"response_data": STOP}, answer=False)
    connection = begin(made)
    made.stream.send_response_data(b"123456789", True)
    made.stream.resume_response()
    assert connection.received() == b""
    made.stream.resume_response()
    assert connection.received() == b"123456789"
    assert made.log == ["b.response_data(123456789).", "a.response_data(123456789).", "a.done", "b.done"]


def test_what_comes_while_a_direction_is_held_waits_in_order() -> None:
    held = [STOP]
    made = Chain({"response_data": lambda *_: held.pop() if held else CONTINUE}, answer=False)
    connection = begin(made)
    made.stream.send_response_data(b"123", False)
    made.stream.send_response_data(b"456", False)
    made.stream.send_response_data(b"789", True)
    assert connection.received() == b""
    assert made.log == ["a.response_data(123)"]
    made.stream.resume_response()
    assert connection.received() == b"123456789"
    assert made.log[1:3] == ["a.response_data(456)", "a.response_data(789)."]


def test_data_that_is_replaced() -> None:
    made = Chain({}, {"response_data": lambda stream, data, end: data.upper()}, answer=False)
    connection = begin(made)
    made.stream.send_response_data(b"abcdefghi", True)
    assert connection.received() == b"ABCDEFGHI"
    assert made.log[:2] == ["b.response_data(abcdefghi).", "a.response_data(ABCDEFGHI)."]


def test_data_that_is_swallowed_is_not_told_to_anyone() -> None:
    made = Chain({"response_data": lambda stream, data, end: data if end else b""}, answer=False)
    connection = begin(made)
    made.stream.send_response_data(b"drop", False)
    assert connection.received() == b""
    made.stream.send_response_data(b"123456789", True)
    assert connection.received() == b"123456789"


def in_threes(stream: Stream, data: bytes, end: bool) -> Any:
    if len(data) <= 3:
        return CONTINUE
    stream.keep_response_data(data[3:])
    return data[:3]


def test_the_rest_of_data_comes_to_the_same_hook_again() -> None:
    made = Chain({}, {"response_data": in_threes}, answer=False)
    connection = begin(made)
    made.stream.send_response_data(b"12345678", False)
    made.stream.send_response_data(b"9", True)
    assert connection.received() == b"123456789"
    assert made.log == [
        "b.response_data(12345678)",
        "a.response_data(123)",
        "b.response_data(45678)",
        "a.response_data(456)",
        "b.response_data(78)",
        "a.response_data(78)",
        "b.response_data(9).",
        "a.response_data(9).",
        "a.done",
        "b.done",
    ]


def test_the_rest_waits_while_a_later_filter_holds_the_beginning() -> None:
    held = [STOP]
    made = Chain(
        {"response_data": lambda *_: held.pop() if held else CONTINUE}, {"response_data": in_threes}, answer=False
    )
    connection = begin(made)
    made.stream.send_response_data(b"123456789", True)
    assert connection.received() == b""
    made.stream.resume_response()
    assert connection.received() == b"123456789"
    assert [entry for entry in made.log if entry.startswith("a.response")] == [
        "a.response_data(123)",
        "a.response_data(456)",
        "a.response_data(789).",
    ]


def test_a_hook_may_keep_everything_until_it_is_resumed() -> None:
    tokens: list[int] = []

    def paced(stream: Stream, data: bytes, end: bool) -> Any:
        if tokens:
            tokens.pop()
            return CONTINUE
        stream.keep_response_data(data)
        return STOP

    made = Chain({"response_data": paced}, answer=False)
    connection = begin(made)
    made.stream.send_response_data(b"123456789", True)
    made.stream.resume_response()
    assert connection.received() == b""
    tokens.append(1)
    made.stream.resume_response()
    assert connection.received() == b"123456789"
    assert made.log[:3] == ["a.response_data(123456789)."] * 3


def test_a_local_reply_ends_the_request_and_passes_the_response_filters() -> None:
    def refuse(stream: Stream, headers: HeaderMap, end: bool) -> int:
        stream.send_local_reply(403, b"no", "refused")
        return STOP

    made = Chain({}, {"request_headers": refuse}, {})
    answer = made.exchange(get("/"))
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert answer.endswith(b"\r\n\r\nno")
    assert made.upstream.seen == []
    assert [entry for entry in made.log if "request" in entry] == ["a.request_headers.", "b.request_headers."]
    assert [entry for entry in made.log if "response_headers" in entry] == [
        "c.response_headers",
        "b.response_headers",
        "a.response_headers",
    ]
    assert sorted(made.log[-3:]) == ["a.done", "b.done", "c.done"]


@pytest.mark.parametrize("hook", ["request_headers", "response_headers"])
def test_a_filter_that_raises_is_a_500(hook: str) -> None:
    def fail(stream: Stream, part: Any, end: bool) -> int:
        if stream.local_reply:
            return CONTINUE
        raise ValueError("bug")

    made = Chain({hook: fail})
    connection = made.connect()
    assert connection.send(get("/")).startswith(b"HTTP/1.1 500 ")
    assert made.stats.downstream_rq_filter_error == 1
    assert made.log.count("a.done") == 1


def test_a_filter_that_raises_when_it_is_told_of_the_end_does_not_keep_the_others_from_theirs() -> None:
    made = Chain({}, {})

    class Bad(HttpFilter):
        def on_stream_done(self, stream: Stream) -> None:
            raise ValueError("bug")

    made.filters.insert(0, Bad())
    assert made.exchange(get("/")) == OK
    assert made.log[-2:] == ["a.done", "b.done"]


def test_hooks_that_a_filter_leaves_alone_are_not_called() -> None:
    class OnlyDone(HttpFilter):
        def on_stream_done(self, stream: Stream) -> None:
            """Nothing."""

    chain = FilterChain((OnlyDone(), HttpFilter()))
    assert not chain.has_request_hooks
    assert not chain.has_response_hooks
    assert len(chain.done) == 1


# -- coroutines


async def turns(made: Harness) -> None:
    """Let the loop run what is ready."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_coroutine_holds_its_direction_until_it_returns() -> None:
    gate = asyncio.Event()

    async def wait() -> int:
        await gate.wait()
        return CONTINUE

    made = Chain({"request_headers": lambda *_: wait()}, {}, loop=asyncio.get_running_loop())
    connection = made.connect()
    connection.feed(get("/"))
    await turns(made)
    assert made.upstream.seen == []
    gate.set()
    await turns(made)
    assert connection.received() == OK
    await made.dispatcher.close()


async def test_a_coroutine_of_data_returns_what_replaces_it() -> None:
    async def shout(data: bytes) -> bytes:
        return data.upper()

    made = Chain(
        {"response_data": lambda stream, data, end: shout(data)}, answer=False, loop=asyncio.get_running_loop()
    )
    connection = begin(made)
    made.stream.send_response_data(b"abc", False)
    made.stream.send_response_data(b"defghi", True)
    for _ in range(3):
        await turns(made)
    assert connection.received().endswith(b"\r\n\r\nABCDEFGHI")
    await made.dispatcher.close()


async def test_a_coroutine_that_raises_is_a_500() -> None:
    async def fail() -> int:
        raise ValueError("bug")

    made = Chain({"request_headers": lambda *_: fail()}, loop=asyncio.get_running_loop())
    connection = made.connect()
    connection.feed(get("/"))
    await turns(made)
    assert connection.received().startswith(b"HTTP/1.1 500 ")
    await made.dispatcher.close()


async def test_a_coroutine_is_cancelled_when_its_stream_ends() -> None:
    ended: list[str] = []

    async def wait() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return CONTINUE

    made = Chain({"request_headers": lambda *_: wait()}, loop=asyncio.get_running_loop())
    connection = made.connect()
    connection.feed(get("/"))
    await turns(made)
    connection.leave()
    await turns(made)
    assert ended == ["cancelled"]
    assert made.log.count("a.done") == 1
    await made.dispatcher.close()


async def test_a_coroutine_is_never_left_unawaited_when_the_hook_itself_ended_the_stream() -> None:
    async def never() -> int:
        return CONTINUE

    def refuse(stream: Stream, headers: HeaderMap, end: bool) -> Any:
        stream.send_local_reply(403, b"", "refused")
        return never()

    made = Chain({"request_headers": refuse}, loop=asyncio.get_running_loop())
    connection = made.connect()
    connection.feed(get("/"))
    assert connection.received().startswith(b"HTTP/1.1 403 ")
    await made.dispatcher.close()
