"""Filters that are classes in Python: the contract, as their authors see it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from meshproxy import CONTINUE, STOP, CallError, FilterContext, HeaderMap, HttpFilter, Stream
from meshproxy.config.python_class import loaded_modules
from meshproxy.errors import ConfigError
from meshproxy.http.filter import HttpFilter as BuiltinFilter
from meshproxy.testing import Answer, FilterTest, Request


@dataclass(frozen=True)
class Config:
    value: str = "one"
    limits: list[int] = field(default_factory=list)


class Marks(HttpFilter):
    """Ten lines."""

    config: Config

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        headers[b"x-request"] = self.config.value.encode()

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        headers[b"x-response"] = self.config.value.encode()
        return CONTINUE


async def test_headers_both_ways() -> None:
    async with FilterTest(Marks, {"value": "two"}) as t:
        t.upstream.respond(200, {"x-from": "upstream"}, "body")
        response = await t.request("GET", "/x")
        assert (response.status, response.text, response.details) == (200, "body", "via_upstream")
        assert response.headers[b"x-response"] == b"two"
        assert t.upstream.requests[0].header("x-request") == "two"


async def test_defaults_and_the_configuration_of_a_route() -> None:
    async with FilterTest(Marks, route_config={"value": "of the route"}) as t:
        assert (await t.request("GET", "/x")).header("x-response") == "one"
        assert (await t.request("GET", "/route/x")).header("x-response") == "of the route"


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"valu": 1}, "config.valu: there is no such field (did you mean 'value'?)"),
        ({"value": 1}, "config.value: must be a string, not 1"),
        ({"limits": "x"}, "config.limits: must be a list, not 'x'"),
        ({"limits": [1, 2.5]}, "config.limits[1]: must be a whole number, not 2.5"),
    ],
)
async def test_a_configuration_is_checked(config: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await FilterTest(Marks, config).start()
    assert str(caught.value) == error


class Own(HttpFilter):
    """`self` is the stream's own."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        self.seen.append(headers[b":path"])

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        headers[b"x-seen"] = b" ".join(self.seen)


class Shared(Own):
    shared = True


async def test_an_instance_of_each_stream() -> None:
    async with FilterTest(Own) as t:
        seen = [(await t.request("GET", path)).header("x-seen") for path in ("/a", "/b")]
        assert seen == ["/a", "/b"]


async def test_one_instance_where_it_is_asked_for() -> None:
    async with FilterTest(Shared) as t:
        seen = [(await t.request("GET", path)).header("x-seen") for path in ("/a", "/b")]
        assert seen == ["/a", "/a /b"]


class Reply(HttpFilter):
    done = 0

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        stream.send_local_reply(403, b"no", "denied_by_test")
        return STOP

    def on_stream_done(self, stream: Stream) -> None:
        Reply.done += 1


async def test_a_local_reply() -> None:
    Reply.done = 0
    async with FilterTest(Reply) as t:
        response = await t.request("GET", "/")
        assert (response.status, response.text, response.details) == (403, "no", "denied_by_test")
        assert t.upstream.requests == []
    assert Reply.done == 1


class Upper(HttpFilter):
    """A streaming transform of both bodies."""

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        return data.upper()

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        return data.upper()


async def test_data_is_replaced_piece_by_piece() -> None:
    async with FilterTest(Upper) as t:
        t.upstream.respond(200, None, ["some", "thing"])
        response = await t.request("POST", "/", body=["a", "b", "c"])
        assert t.upstream.requests[0].body == b"ABC"
        assert response.chunks == [b"SOME", b"THING"]


class Whole(HttpFilter):
    """Both bodies at once; the headers wait, so that they can still be changed."""

    buffer_request = 10
    buffer_response = 10

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        stream.request_headers[b"x-length"] = b"%d" % len(data)
        return data[::-1]

    async def on_response_data(self, stream: Stream, data: bytes, end: bool) -> bytes:
        await asyncio.sleep(0)
        assert stream.response_headers is not None
        stream.response_headers[b"x-length"] = b"%d" % len(data)
        return data * 2


async def test_bodies_in_one_piece() -> None:
    async with FilterTest(Whole) as t:
        t.upstream.respond(200, None, "abc")
        response = await t.request("POST", "/", body=["1", "2", "3"])
        assert t.upstream.requests[0].body == b"321"
        assert t.upstream.requests[0].header("x-length") == "3"
        assert (response.header("x-length"), response.header("content-length"), response.text) == ("3", "6", "abcabc")


async def test_a_body_in_one_piece_keeps_its_trailers() -> None:
    async with FilterTest(Whole) as t:
        t.upstream.respond(200, None, ["abc"], trailers={"x-end": "of response"})
        response = await t.request("POST", "/", body=["12"], trailers={"x-end": "of request"})
        assert t.upstream.requests[0].trailers.fields == [(b"x-end", b"of request")]
        assert (response.text, response.trailers.fields) == ("abcabc", [(b"x-end", b"of response")])


async def test_a_content_length_follows_the_body() -> None:
    async with FilterTest(Whole) as t:
        await t.request("POST", "/", body="1234")
        request = t.upstream.requests[0]
        assert (request.header("content-length"), request.body) == ("4", b"4321")


async def test_bodies_over_the_limit() -> None:
    async with FilterTest(Whole) as t:
        response = await t.request("POST", "/", body="12345678901")
        assert (response.status, response.details) == (413, "request_payload_too_large")
        t.upstream.respond(200, None, "12345678901")
        response = await t.request("GET", "/")
        assert (response.status, response.details) == (500, "response_payload_too_large")


class Asks(HttpFilter):
    """Waits for an answer through another cluster."""

    async def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        try:
            answer = await stream.call("users", path=b"/who", headers=[(b"x-id", headers[b"x-id"])], timeout_ms=1000)
        except CallError as error:
            stream.send_local_reply(503, error.reason.encode(), "no_user")
            return STOP
        headers[b"x-user"] = answer.body
        return CONTINUE


async def test_a_request_through_a_cluster() -> None:
    async with FilterTest(Asks, clusters=["users"]) as t:
        t.cluster["users"].respond(200, None, "ann")
        await t.request("GET", "/", {"x-id": "7"})
        assert t.upstream.requests[0].header("x-user") == "ann"
        assert t.cluster["users"].requests[0].header("x-id") == "7"


async def test_a_request_through_a_cluster_that_is_not_there() -> None:
    async with FilterTest(Asks) as t:
        response = await t.request("GET", "/", {"x-id": "7"})
        assert (response.status, response.text) == (503, "no_cluster")


class Fails(HttpFilter):
    """In the hook that the path names."""

    def _maybe(self, stream: Stream, hook: bytes) -> None:
        if stream.request_headers[b":path"] == b"/" + hook:
            raise ValueError(hook)

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Any:
        self._maybe(stream, b"request")
        return self._wait(stream) if headers[b":path"] == b"/async" else CONTINUE

    async def _wait(self, stream: Stream) -> int:
        await asyncio.sleep(0)
        raise ValueError("async")

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> None:
        self._maybe(stream, b"data")

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        self._maybe(stream, b"response")
        headers[b"x-mark"] = b"1"

    def on_stream_done(self, stream: Stream) -> None:
        self._maybe(stream, b"done")


@pytest.mark.parametrize("hook", ["request", "data", "response", "async"])
async def test_a_hook_that_raises_is_a_500(hook: str) -> None:
    async with FilterTest(Fails) as t:
        response = await t.request("POST", f"/{hook}", body="x")
        assert (response.status, response.details) == (500, "filter_error{Fails|ValueError}")
        assert t.stats()["errors"] == 1
        assert t.stats()["streams_active"] == 0
        assert (await t.request("GET", "/")).status == 200


@pytest.mark.parametrize("hook", ["request", "data", "response", "async"])
async def test_a_hook_that_raises_is_left_out_with_fail_open(hook: str) -> None:
    async with FilterTest(Fails, options={"fail_open": True}) as t:
        response = await t.request("POST", f"/{hook}", body="x")
        assert (response.status, response.header("x-mark")) == (200, None)  # no other hook is called
        assert t.upstream.requests[0].body == b"x"
        assert t.stats()["failed_open"] == 1
        assert t.stats()["streams_active"] == 0


async def test_an_end_that_raises_harms_nobody() -> None:
    async with FilterTest(Fails) as t:
        assert (await t.request("GET", "/done")).status == 200
        assert t.stats()["streams_active"] == 0


class FailsAtOnce(HttpFilter):
    def __init__(self) -> None:
        raise ValueError("init")

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        headers[b"x-mark"] = b"1"


@pytest.mark.parametrize(("fail_open", "status"), [(False, 500), (True, 200)])
async def test_an_instance_that_cannot_be_made(fail_open: bool, status: int) -> None:
    async with FilterTest(FailsAtOnce, options={"fail_open": fail_open}) as t:
        assert (await t.request("GET", "/")).status == status
        assert t.stats()["streams_active"] == 0


class Forever(HttpFilter):
    cancelled = 0

    async def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            Forever.cancelled += 1
            raise
        return CONTINUE


@pytest.mark.parametrize(("fail_open", "status"), [(False, 500), (True, 200)])
async def test_a_hook_that_waits_too_long(fail_open: bool, status: int) -> None:
    Forever.cancelled = 0
    async with FilterTest(Forever, options={"hook_timeout": "0.02s", "fail_open": fail_open}) as t:
        response = await t.request("GET", "/")
        assert response.status == status
        assert t.stats()["hook_timeouts"] == 1
    assert Forever.cancelled == 1


async def test_a_hook_that_waits_ends_with_its_stream() -> None:
    Forever.cancelled = 0
    async with FilterTest(Forever) as t:
        exchange = t.open("GET", "/")
        await _until(lambda: t.stats()["streams_active"] == 1)
        exchange.close()
        await _until(lambda: t.stats()["streams_active"] == 0)
    assert Forever.cancelled == 1


async def _until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0)


class Slow(HttpFilter):
    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Any:
        if headers[b":path"] == b"/async":
            return self._hold()
        self._spin()
        return CONTINUE

    async def _hold(self) -> int:
        self._spin()
        return CONTINUE

    def _spin(self) -> None:
        time.sleep(0.2)


@pytest.mark.parametrize("path", ["/", "/async"])
async def test_a_hook_that_holds_the_loop_is_named_with_its_stack(path: str, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("meshproxy").propagate = True
    async with FilterTest(Slow, options={"slow_hook": "0.02s"}) as t:
        assert (await t.request("GET", path)).status == 200
        assert t.stats()["slow_hooks"] == 1
    (message,) = [record.getMessage() for record in caplog.records if record.name == "meshproxy.filter"]
    assert "filter Slow holds the event loop" in message
    assert "in _spin" in message
    assert "chain.py" not in message


class Background(HttpFilter):
    events: list[str] = []

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        context.state = {"ticks": 0}
        context.spawn(cls._tick(context))
        context.call_later(1.0, lambda: cls.events.append("timer"))

    @classmethod
    async def _tick(cls, context: FilterContext) -> None:
        try:
            while True:
                context.state["ticks"] += 1
                context.count("ticked")
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            cls.events.append("cancelled")
            raise

    @classmethod
    def on_stop(cls, context: FilterContext) -> None:
        cls.events.append("stopped")

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        headers[b"x-ticks"] = b"%d" % self.context.state["ticks"]


async def test_background_tasks_end_with_the_filter() -> None:
    Background.events = []
    async with FilterTest(Background) as t:
        await _until(lambda: "timer" in Background.events)
        await t.request("GET", "/")
        assert int(t.upstream.requests[0].header("x-ticks") or 0) > 0
        assert t.stats()["ticked"] > 0
    assert sorted(Background.events) == ["cancelled", "stopped", "timer"]


class Timers(HttpFilter):
    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        self.stream = stream
        stream.call_later(1.0, self._go_on if headers[b":path"] == b"/" else self._fail)
        stream.call_later(60_000.0, self._fail)
        return STOP

    def _go_on(self) -> None:
        self.stream.resume_request()

    def _fail(self) -> None:
        raise ValueError("timer")


async def test_timers() -> None:
    async with FilterTest(Timers) as t:
        assert (await t.request("GET", "/")).status == 200
        assert (await t.request("GET", "/fail")).details == "filter_error{timer|ValueError}"


class Tells(HttpFilter):
    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        stream.metadata("app")["tier"] = "gold"
        stream.filter_state()["user"] = "ann"


async def test_metadata_and_filter_state() -> None:
    async with FilterTest(Tells) as t:
        response = await t.request("GET", "/")
        assert response.metadata == {"app": {"tier": "gold"}}
        assert response.info is not None
        assert response.info.filter_state == {"user": "ann"}


class Misspelt(HttpFilter):
    def on_requst_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None: ...


class OtherArguments(HttpFilter):
    def on_request_headers(self, headers: HeaderMap) -> None: ...  # type: ignore[override]


class Final(HttpFilter):
    def __init_subclass__(cls) -> None:
        raise TypeError("it is final")


class AsyncStart(HttpFilter):
    @classmethod
    async def on_start(cls, context: FilterContext) -> None: ...  # type: ignore[override]


class MisspeltSwitch(HttpFilter):
    buffer_reqest = 1024


class WrongSwitch(HttpFilter):
    buffer_request = "64k"  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (AsyncStart, "AsyncStart.on_start cannot be async: nothing waits for it"),
        (MisspeltSwitch, "MisspeltSwitch.buffer_reqest means nothing (did you mean buffer_request?)"),
        (WrongSwitch, "WrongSwitch.buffer_request must be int, not '64k'"),
        (Final, "Final cannot be used: it is final"),
        (Misspelt, "Misspelt.on_requst_headers is no hook of HttpFilter (did you mean on_request_headers?)"),
        (OtherArguments, "OtherArguments.on_request_headers must take (self, stream, headers, end)"),
        (Config, "Config is not derived from HttpFilter"),
    ],
)
async def test_a_class_is_checked(kind: Any, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await FilterTest(kind).start()
    assert caught.value.reason == error


def test_the_hooks_of_both_kinds_of_filter_are_the_same() -> None:
    for name in (name for name in dir(BuiltinFilter) if name.startswith("on_")):
        one, other = (inspect.signature(getattr(kind, name)).parameters for kind in (BuiltinFilter, HttpFilter))
        assert list(one) == list(other)


# -- files and their versions

VERSION = """
from meshproxy import HttpFilter

class Versioned(HttpFilter):
    def on_request_headers(self, stream, headers, end):
        return self.wait(stream) if headers[b":path"] == b"/wait" else None

    async def wait(self, stream):
        await stream.call("gate")

    def on_response_headers(self, stream, headers, end):
        headers[b"x-version"] = b"%(version)d"
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "versioned.py"
    path.write_text(VERSION % {"version": 0})
    return path


async def test_a_stream_finishes_on_the_version_that_it_began_on(source: Path) -> None:
    async with FilterTest(source, clusters=["gate"]) as t:
        opened = asyncio.Event()
        t.cluster["gate"].handler = _when(opened)
        waiting = asyncio.ensure_future(t.request("GET", "/wait"))
        await _until(lambda: len(t.cluster["gate"].requests) == 1)
        _write(source, VERSION % {"version": 1})
        await t.reload()
        assert (await t.request("GET", "/")).header("x-version") == "1"
        assert loaded_modules() == 1  # the old one goes with its stream
        opened.set()
        assert (await waiting).header("x-version") == "0"


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _when(opened: asyncio.Event) -> Any:
    async def answer(request: Request) -> Answer:
        await opened.wait()
        return Answer()

    return answer


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("def broken(:", ":1: SyntaxError: invalid syntax"),
        ("\n\n1 / 0", ":3: ZeroDivisionError: division by zero"),
        ("import nothing.of.that.name", ":1: ModuleNotFoundError: No module named 'nothing'"),
    ],
)
async def test_a_file_that_does_not_load_leaves_the_old_one(source: Path, text: str, error: str) -> None:
    async with FilterTest(source) as t:
        _write(source, text)
        with pytest.raises(ConfigError) as caught:
            await t.reload()
        assert str(caught.value) == f"file: {source}{error}"
        assert (await t.request("GET", "/")).header("x-version") == "0"


async def test_a_hundred_versions_leave_nothing_behind(source: Path) -> None:
    classes: list[weakref.ref[type]] = []
    async with FilterTest(source) as t:
        for version in range(1, 101):
            _write(source, VERSION % {"version": version})
            await t.reload()
            assert (await t.request("GET", "/")).header("x-version") == str(version)
            classes += [weakref.ref(kind) for kind in HttpFilter.__subclasses__() if kind.__name__ == "Versioned"]
            assert loaded_modules() == 1
        gc.collect()
        assert len({id(ref()) for ref in classes if ref() is not None}) == 1
    gc.collect()
    assert not any(ref() for ref in classes)
    assert loaded_modules() == 0


async def test_a_changed_configuration_keeps_the_class_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "configured.py"
    path.write_text(
        "from dataclasses import dataclass\nfrom meshproxy import HttpFilter\n"
        "@dataclass\nclass Config:\n    value: str\n"
        "class Configured(HttpFilter):\n    config: Config\n"
        "    def on_response_headers(self, stream, headers, end):\n"
        "        headers[b'x-value'] = self.config.value.encode()\n"
    )
    async with FilterTest(path, {"value": "a"}) as t:
        assert (await t.request("GET", "/")).header("x-value") == "a"
        with pytest.raises(ConfigError, match=r"config.value: is required: a string"):
            await t.reload({})
        assert (await t.request("GET", "/")).header("x-value") == "a"
        await t.reload({"value": "b"})
        assert (await t.request("GET", "/")).header("x-value") == "b"


STARTS = """
from meshproxy import HttpFilter

class Starts(HttpFilter):
    @classmethod
    def on_start(cls, context):
        context.spawn(cls.ask(context))
        %(more)s

    @classmethod
    async def ask(cls, context):
        context.state = (await context.call("upstream")).status

    def on_response_headers(self, stream, headers, end):
        headers[b"x-state"] = str(self.context.state).encode()
"""


async def test_a_start_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "starts.py"
    _write(path, STARTS % {"more": "pass"})
    async with FilterTest(path) as t:
        await _until(lambda: t.upstream.requests)  # what it spawned began when its clusters were there
        assert (await t.request("GET", "/")).header("x-state") == "200"
        _write(path, STARTS % {"more": "raise ValueError('not today')"})
        with pytest.raises(ConfigError) as caught:
            await t.reload()
        assert str(caught.value) == f"class: Starts.on_start: {path}:8: ValueError: not today"
        assert (await t.request("GET", "/")).header("x-state") == "200"
        assert len(t.upstream.requests) == 3  # what the other spawned never began


async def test_what_streams_share_survives_an_update_of_something_else() -> None:
    Background.events = []
    async with FilterTest(Background) as t:
        await t.reload()
        await t.request("GET", "/")
        assert "stopped" not in Background.events
