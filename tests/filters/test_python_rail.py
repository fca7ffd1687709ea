"""The rail around filters in Python: what they get wrong ends in a clear error of one stream, and of nothing else."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meshproxy import CONTINUE, STOP, FilterContext, HeaderMap, HttpFilter, Stream
from meshproxy.config.python_class import loaded_modules
from meshproxy.testing import Answer, FilterTest, Request, Response


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0)


async def outcome(t: FilterTest, *args: Any, **kwargs: Any) -> Response | None:
    """None: the connection ended before the response was complete."""
    try:
        return await t.request(*args, **kwargs)
    except ConnectionError:
        return None


class AnyHook(HttpFilter):
    """Does in one hook what the test says."""

    hook = ""
    acts: Any = None
    ends: list[str] = []

    def _act(self, hook: str, *args: Any) -> Any:
        return AnyHook.acts(*args) if hook == AnyHook.hook else CONTINUE

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Any:
        return self._act("request_headers", stream, headers)

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> Any:
        return self._act("request_data", stream, data)

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> Any:
        return self._act("request_trailers", stream, trailers)

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Any:
        return self._act("response_headers", stream, headers)

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> Any:
        return self._act("response_data", stream, data)

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Any:
        return self._act("response_trailers", stream, trailers)

    def on_stream_done(self, stream: Stream) -> None:
        AnyHook.ends.append("done")


BEFORE_RESPONSE = ("request_headers", "request_data", "request_trailers", "response_headers")
IN_RESPONSE = ("response_data", "response_trailers")
HOOKS = BEFORE_RESPONSE + IN_RESPONSE


async def ask(t: FilterTest, path: str = "/") -> Response | None:
    t.upstream.respond(200, None, ["some", "thing"], trailers={"x-end": "1"})
    return await outcome(t, "POST", path, body=["a", "b"], trailers={"x-end": "1"})


async def returned_later(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


def generator() -> Iterator[int]:
    yield 1


NONSENSE: list[Any] = ["text", 1.5, [1], True, 7, bytearray(b"x")]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("hook", HOOKS)
async def test_what_a_hook_may_not_return(hook: str, later: bool) -> None:
    values = [*NONSENSE, generator(), asyncio.get_running_loop().create_future()]
    if not hook.endswith("data"):
        values.append(b"bytes")
    for value in values:
        AnyHook.hook, AnyHook.acts = hook, lambda *_, value=value: returned_later(value) if later else value
        AnyHook.ends = []
        async with FilterTest(AnyHook) as t:
            response = await ask(t)
            if hook in BEFORE_RESPONSE:
                assert response is not None
                assert (response.status, response.details) == (500, "filter_error{AnyHook|TypeError}"), value
            else:
                assert response is None, value
            assert (t.stats()["errors"], t.stats()["streams_active"]) == (1, 0)
            AnyHook.hook = ""
            response = await ask(t)
            assert response is not None
            assert (response.status, response.text) == (200, "something")
        assert AnyHook.ends == ["done", "done"]


@pytest.mark.parametrize("value", NONSENSE)
async def test_a_wrong_result_may_fail_open(value: Any) -> None:
    AnyHook.hook, AnyHook.acts = "request_headers", lambda *_: value
    async with FilterTest(AnyHook, options={"fail_open": True}) as t:
        assert (await t.request("GET", "/")).status == 200
        assert t.stats()["failed_open"] == 1


def raising(error: BaseException) -> Any:
    def act(*_: Any) -> Any:
        raise error

    return act


def raising_later(error: BaseException) -> Any:
    async def act(*_: Any) -> Any:
        await asyncio.sleep(0)
        raise error

    return act


ERRORS = [ValueError("bug"), SystemExit(1), asyncio.CancelledError(), RecursionError(), MemoryError(), StopIteration()]


@pytest.mark.parametrize("fail_open", [False, True])
@pytest.mark.parametrize("make", [raising, raising_later])
@pytest.mark.parametrize("hook", HOOKS)
async def test_whatever_a_hook_raises(hook: str, make: Any, fail_open: bool) -> None:
    for error in ERRORS:
        AnyHook.hook, AnyHook.acts, AnyHook.ends = hook, make(error), []
        async with FilterTest(AnyHook, options={"fail_open": fail_open}) as t:
            response = await ask(t)
            if fail_open:
                assert response is not None
                assert (response.status, response.text) == (200, "something")
                assert response.trailers.fields == [(b"x-end", b"1")]
                assert t.upstream.requests[0].body == b"ab"
                assert t.upstream.requests[0].trailers.fields == [(b"x-end", b"1")]
            elif hook in BEFORE_RESPONSE:
                assert response is not None
                assert response.status == 500
                assert response.details.startswith("filter_error{AnyHook|")
            else:
                assert response is None
            assert (t.stats()["errors"], t.stats()["failed_open"]) == (1, int(fail_open))
            assert t.stats()["streams_active"] == 0
        assert AnyHook.ends == ["done"]  # it is told of the end, so that it can give back what it took


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_reply_in_any_hook(hook: str) -> None:
    def act(stream: Stream, *_: Any) -> int:
        if stream.local_reply:
            return CONTINUE
        stream.send_local_reply(418, b"tea", "tea")
        return STOP

    AnyHook.hook, AnyHook.acts, AnyHook.ends = hook, act, []
    async with FilterTest(AnyHook) as t:
        response = await ask(t)
        if hook in BEFORE_RESPONSE:
            assert response is not None
            assert (response.status, response.text, response.details) == (418, "tea", "tea")
        else:
            assert response is None
    assert AnyHook.ends == ["done"]


async def test_a_reply_whose_headers_the_filter_itself_fails_on_is_a_500() -> None:
    AnyHook.hook, AnyHook.acts = "response_headers", raising(ValueError("bug"))
    async with FilterTest(AnyHook, clusters=[]) as t:
        t._ports["upstream"] = 9  # nobody listens there
        await t.reload()
        response = await ask(t)
        assert response is not None
        assert (response.status, response.details) == (500, "filter_error{AnyHook|ValueError}")


# -- verbs in the wrong place


VERBS = {
    "buffer_request": lambda stream: stream.buffer_request(100),
    "buffer_response": lambda stream: stream.buffer_response(100),
    "keep": lambda stream: stream.keep_response_data(b"x"),
    "add_request_data": lambda stream: stream.add_to_request(b"x"),
    "add_request_trailers": lambda stream: stream.add_to_request(HeaderMap([(b"x-more", b"1")])),
    "add_response_data": lambda stream: stream.add_to_response(b"x"),
    "add_response_trailers": lambda stream: stream.add_to_response(HeaderMap([(b"x-more", b"1")])),
    "resume_request": lambda stream: stream.resume_request(),
    "resume_response": lambda stream: stream.resume_response(),
    "send_data": lambda stream: stream.send_response_data(b"x", False),
    "send_end": lambda stream: stream.send_response_data(b"x", True),
}


ENDLESS = {("response_data", "keep"), ("response_data", "send_data")}  # who does so always, waits or sends for ever


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(("hook", "verb"), [(h, v) for h in HOOKS for v in VERBS if (h, v) not in ENDLESS])
async def test_every_verb_in_every_hook(hook: str, verb: str, later: bool) -> None:
    """Each works, or is refused with an error of its filter; none breaks a message."""

    async def act_later(stream: Stream) -> None:
        await asyncio.sleep(0)
        VERBS[verb](stream)

    def act(stream: Stream, *_: Any) -> Any:
        if stream.local_reply:
            return CONTINUE
        return act_later(stream) if later else VERBS[verb](stream)

    AnyHook.hook, AnyHook.acts, AnyHook.ends = hook, act, []
    async with FilterTest(AnyHook) as t:
        response = await ask(t)
        if response is not None:
            text = response.text.replace("x", "")
            assert (response.status, text) in ((200, "something"), (200, "some"), (200, ""), (500, "")), response.text
            if response.status == 500:
                assert response.details == "filter_error{AnyHook|MeshProxyError}"
        assert t.stats()["streams_active"] == 0
    assert AnyHook.ends == ["done"]


class AsksLate(HttpFilter):
    """Asks for the whole body when the headers have waited."""

    async def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        await asyncio.sleep(0)
        stream.buffer_request(10)

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> None:
        stream.request_headers[b"x-body"] = data


@pytest.mark.parametrize("body", [[], ["a"], ["a", "b", "c"]])
async def test_a_coroutine_may_ask_for_the_whole_body(body: list[str]) -> None:
    async with FilterTest(AsksLate) as t:
        await t.request("POST", "/", body=body)
        assert t.upstream.requests[0].header("x-body") == "".join(body)
        assert t.upstream.requests[0].body == "".join(body).encode()
        assert (await t.request("GET", "/")).status == 200  # there is no body to wait for


class KeepsLate(HttpFilter):
    async def on_response_data(self, stream: Stream, data: bytes, end: bool) -> Any:
        await asyncio.sleep(0)
        if len(data) <= 2:
            return CONTINUE
        stream.keep_response_data(data[2:])
        return data[:2].upper()


async def test_a_coroutine_may_keep_the_rest() -> None:
    async with FilterTest(KeepsLate) as t:
        t.upstream.respond(200, None, ["abcde", "fg"])
        response = await t.request("GET", "/")
        assert response.chunks == [b"AB", b"CD", b"e", b"fg"]


class AddsLate(HttpFilter):
    async def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> None:
        stream.add_to_response(b"added")
        await asyncio.sleep(0)


class AddsTrailers(HttpFilter):
    buffer_response = 100

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        stream.add_to_response(HeaderMap([(b"x-end", b"added")]))
        return data.upper()


async def test_what_is_added_by_a_filter_with_the_one_hook_only() -> None:
    async with FilterTest(AddsLate) as t:
        t.upstream.respond(200, None, ["a"], trailers={"x-end": "1"})
        response = await t.request("GET", "/")
        assert (response.text, response.trailers.fields) == ("aadded", [(b"x-end", b"1")])
    async with FilterTest(AddsTrailers) as t:
        t.upstream.respond(200, None, ["a", "b"])
        response = await t.request("GET", "/")
        assert (response.text, response.trailers.fields) == ("AB", [(b"x-end", b"added")])


class SendsInHook(HttpFilter):
    """Adds to the response in its hooks; what it adds comes behind the part that they were called with."""

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        stream.send_response_data(b"<", False)

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> Any:
        if data == b"a":
            stream.send_response_data(b"+", False)
            return b"A"
        return CONTINUE


async def test_what_a_hook_sends_comes_behind_its_part() -> None:
    async with FilterTest(SendsInHook) as t:
        t.upstream.respond(200, None, ["a", "b"])
        assert (await t.request("GET", "/")).text == "<A+b"


# -- broken heads

BROKEN_REQUEST: list[tuple[str, Any]] = [
    ("line break", lambda headers: headers.add(b"x-a", b"1\r\nx-b: 2")),
    ("line feed", lambda headers: headers.set(b"x-a", b"1\n2")),
    ("nul", lambda headers: headers.add(b"x-a", b"1\x002")),
    ("line break in a name", lambda headers: headers.add(b"x-a\r\nx-b", b"1")),
    ("space in a name", lambda headers: headers.add(b"x a", b"1")),
    ("colon in a name", lambda headers: headers.add(b"x-a: 1", b"1")),
    ("empty name", lambda headers: headers.add(b"", b"1")),
    ("name is str", lambda headers: headers.add("x-a", b"1")),
    ("value is str", lambda headers: headers.add(b"x-a", "1")),
    ("set value is str", lambda headers: headers.__setitem__(b"x-a", "1")),
    ("value is int", lambda headers: headers.add(b"x-a", 1)),
    ("value is None", lambda headers: headers.__setitem__(b"x-a", None)),
    ("no path", lambda headers: headers.remove(b":path")),
    ("no method", lambda headers: headers.remove(b":method")),
    ("path in two lines", lambda headers: headers.set(b":path", b"/ HTTP/1.1\r\nx: y\r\n\r\nGET /")),
    ("path with a space", lambda headers: headers.set(b":path", b"/a b")),
    ("path empty", lambda headers: headers.set(b":path", b"")),
    ("method with a space", lambda headers: headers.set(b":method", b"GET / HTTP/1.1\r\n")),
    ("authority in two lines", lambda headers: headers.set(b":authority", b"a\r\nx-b: 2")),
    ("no authority", lambda headers: headers.remove(b":authority")),
]
BROKEN_RESPONSE: list[tuple[str, Any]] = [
    *BROKEN_REQUEST[:12],
    ("no status", lambda headers: headers.remove(b":status")),
    ("status is a word", lambda headers: headers.set(b":status", b"fine")),
    ("status is empty", lambda headers: headers.set(b":status", b"")),
    ("status of an interim response", lambda headers: headers.set(b":status", b"100")),
    ("status in two lines", lambda headers: headers.set(b":status", b"200\r\nx: y")),
]


@pytest.mark.parametrize(("hook", "what", "breaks"), [
    *[("request_headers", *broken) for broken in BROKEN_REQUEST],
    *[("response_headers", *broken) for broken in BROKEN_RESPONSE],
])  # fmt: skip
async def test_a_broken_head_is_a_500_with_the_name_of_its_filter(hook: str, what: str, breaks: Any) -> None:
    def act(stream: Stream, headers: HeaderMap, *_: Any) -> Any:
        if not stream.local_reply:
            breaks(headers)

    AnyHook.hook, AnyHook.acts = hook, act
    async with FilterTest(AnyHook) as t:
        response = await ask(t)
        assert response is not None
        assert response.status == 500, (response.status, t.upstream.requests and t.upstream.requests[0].headers)
        assert response.details.startswith("filter_error{AnyHook|")
        assert not t.upstream.requests or hook == "response_headers"
        AnyHook.hook = ""
        assert (await t.request("GET", "/")).status == 200


@pytest.mark.parametrize("name", [b"X-Upper", b"x_y", b"x!#$%&'*+.^`|~"])
async def test_names_that_are_tokens(name: bytes) -> None:
    AnyHook.hook, AnyHook.acts = "request_headers", lambda stream, headers: headers.add(name, b"\x80 \t~")
    async with FilterTest(AnyHook) as t:
        assert (await t.request("GET", "/")).status == 200
        assert t.upstream.requests[0].headers[name.lower()] == b"\x80 \t~"


@pytest.mark.parametrize("body", [b"", b"1234", b"123456"])
async def test_a_body_that_no_longer_fits_its_length_is_not_sent(body: bytes) -> None:
    AnyHook.hook, AnyHook.acts = "response_data", lambda *_: body
    async with FilterTest(AnyHook) as t:
        t.upstream.respond(200, None, "12345")
        assert await outcome(t, "GET", "/") is None
        assert t._log.last is not None
        assert t._log.last.response_code_details == "http1.content_length_mismatch"
    AnyHook.hook = "request_data"
    async with FilterTest(AnyHook) as t:
        response = await t.request("POST", "/", body="12345")
        assert (response.status, t.upstream.requests) == (503, [])
        assert response.details.endswith("{local_reset|http1.content_length_mismatch}")


# -- instances


@dataclass(frozen=True)
class Config:
    value: str = "own"


class SharedConfigured(HttpFilter):
    shared = True
    config: Config
    made: list[str] = []

    def __init__(self) -> None:
        SharedConfigured.made.append(self.config.value)

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        headers[b"x-value"] = self.config.value.encode()


async def test_a_shared_instance_has_the_configuration_of_its_route() -> None:
    SharedConfigured.made = []
    async with FilterTest(SharedConfigured, route_config={"value": "route"}) as t:
        paths = ["/route/", "/", "/route/", "/"]
        values = [(await t.request("GET", path)).header("x-value") for path in paths]
        assert values == ["route", "own", "route", "own"]
        assert SharedConfigured.made == ["route", "own"]


class BufferedTunnel(HttpFilter):
    """Wants bodies at once; what passes a tunnel is no body."""

    buffer_request = 10
    buffer_response = 10

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        return data.upper()

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        return data.upper()


async def test_a_tunnel_is_not_collected() -> None:
    async with FilterTest(BufferedTunnel) as t:
        t.upstream.respond(101, {"upgrade": "websocket", "connection": "upgrade"})
        t.upstream.echoes = True
        exchange = t.open("GET", "/", {"upgrade": "websocket", "connection": "upgrade"})
        async with asyncio.timeout(10):
            await exchange.finish()
        assert exchange.response.status == 101


class SendsForEver(HttpFilter):
    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> None:
        stream.send_response_data(data, False)


async def test_a_hook_that_answers_itself_for_ever_is_stopped() -> None:
    async with FilterTest(SendsForEver) as t:
        t.upstream.respond(200, None, ["a"])
        assert await outcome(t, "GET", "/") is None
        assert t.stats()["errors"] == 1


class KnowsStream(HttpFilter):
    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        self.stream = stream
        KnowsStream.last = weakref.ref(self)

    last: Any = None


async def test_an_instance_that_knows_its_stream_goes_with_it() -> None:
    async with FilterTest(KnowsStream) as t:
        gc.collect()
        gc.disable()
        try:
            await t.request("GET", "/")
            await until(lambda: KnowsStream.last() is None)
        finally:
            gc.enable()


# -- reloads


STATES = """
from dataclasses import dataclass
from meshproxy import HttpFilter

@dataclass
class Config:
    value: str = "own"

class States(HttpFilter):
    config: Config

    def on_request_headers(self, stream, headers, end):
        if headers[b":path"].endswith(b"collect"):
            stream.buffer_request(100)
        return self.wait(stream) if headers[b":path"].endswith(b"wait") else None

    async def wait(self, stream):
        await stream.call("gate")

    def on_request_data(self, stream, data, end):
        return data + b"%(version)d"

    def on_response_headers(self, stream, headers, end):
        headers[b"x-said"] = b"%(version)d " + self.config.value.encode()
"""


@pytest.mark.parametrize("path", ["/collect", "/wait", "/route/wait", "/piece"])
async def test_a_reload_finds_streams_in_every_state(path: str, tmp_path: Path) -> None:
    source = tmp_path / "states.py"
    source.write_text(STATES % {"version": 1})
    opened = asyncio.Event()

    async def gate(request: Request) -> Answer:
        await opened.wait()
        return Answer()

    async with FilterTest(source, clusters=["gate"], route_config={"value": "route"}) as t:
        t.cluster["gate"].handler = gate
        exchange = t.open("POST", path, chunked=True)
        await exchange.send("a")
        await until(lambda: t.stats()["streams_active"] == 1)
        for version in (2, 3):
            source.write_text(STATES % {"version": version})
            await t.reload({"value": f"value {version}"})
        opened.set()
        await exchange.send("b")
        response = await exchange.finish()
        value = "route" if path.startswith("/route") else "own"
        assert (response.status, response.header("x-said")) == (200, f"1 {value}")
        body = t.upstream.requests[0].body
        assert body.replace(b"1", b"") == b"ab"
        assert path != "/collect" or body == b"ab1"
        response = await t.request("GET", "/")
        assert response.header("x-said") == "3 value 3"
    assert loaded_modules() == 0


class Unruly(HttpFilter):
    """Its context's code is no better than its hooks."""

    calls: list[str] = []

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        cls.calls.append("start")
        context.spawn(cls.exit())
        context.spawn(cls.never_ends())
        context.call_later(0.0, cls.fail)

    @classmethod
    def on_stop(cls, context: FilterContext) -> None:
        cls.calls.append("stop")
        raise SystemExit(1)

    @classmethod
    async def exit(cls) -> None:
        raise SystemExit(1)

    @classmethod
    async def never_ends(cls) -> None:
        await asyncio.get_running_loop().create_future()

    @classmethod
    def fail(cls) -> None:
        cls.calls.append("timer")
        raise SystemExit(1)

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        headers[b"x-mark"] = b"1"


async def test_what_a_context_runs_ends_nothing_but_itself() -> None:
    Unruly.calls = []
    async with FilterTest(Unruly) as t:
        await until(lambda: t.stats()["task_errors"] == 2)
        assert (await t.request("GET", "/")).status == 200
        assert t.upstream.requests[0].header("x-mark") == "1"
    assert sorted(Unruly.calls) == ["start", "stop", "timer"]
