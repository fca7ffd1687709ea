"""Whatever filters do, in whatever order things happen: what must hold of a chain (hypothesis)."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any, Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.filter import CONTINUE, STOP, HttpFilter
from meshproxy.http.stream import Stream
from tests.http.harness import Downstream, Harness, ScriptedUpstream

HEADERS: Final = "headers"
DATA: Final = "data"
TRAILERS: Final = "trailers"
ORDER: Final = {HEADERS: 0, DATA: 1, TRAILERS: 2}

# What a hook does. The last are for some kinds of parts only; elsewhere they go on.
HARMLESS: Final = ["go_on", "nothing", "stop", "now", "later", "collect", "collect_later", "replace", "replace_later"]
ADDING: Final = ["keep", "keep_later", "add"]
FATAL: Final = ["raise", "raise_later", "reply", "nonsense", "nonsense_later", "collect_little"]


class Acting(HttpFilter):
    """Does in each of its hooks what its script says; keeps what it saw."""

    def __init__(self, script: list[str], made: Chain, fail_open: bool) -> None:
        self.script = script
        self.made = made
        self.fail_open = fail_open
        self.hook_timeout_ms = 1000.0
        self.left_out = False
        self.done = 0
        self.seen: dict[str, list[tuple[str, bytes, bool]]] = {"request": [], "response": []}
        self.late: list[str] = []  # hooks that were called after the end of their direction

    def goes_on(self, stream: Stream, error: BaseException) -> bool:
        self.left_out = True
        return self.fail_open

    def act(self, way: str, kind: str, stream: Stream, part: Any, end: bool) -> Any:
        self.seen[way].append((kind, part if kind == DATA else b"", end))
        if stream.done or (way == "request" and stream.local_reply):
            self.late.append(kind)
        action = self.script.pop() if self.script and not self.left_out else "go_on"
        if stream.local_reply and action in FATAL:
            action = "go_on"
        return self.perform(action, way, kind, stream, part)

    def perform(self, action: str, way: str, kind: str, stream: Stream, part: Any) -> Any:
        if action.endswith("later"):
            return self.perform_later(action.removesuffix("later").rstrip("_"), way, kind, stream, part)
        if action in ("collect", "collect_little") and kind == HEADERS:
            limit = 3 if action == "collect_little" else 1000
            stream.buffer_request(limit) if way == "request" else stream.buffer_response(limit)
        elif action == "replace" and kind == DATA:
            return bytes(part).upper()
        elif action == "keep" and kind == DATA and way == "response" and len(part) > 1 and not self.collected(stream):
            stream.keep_response_data(part[1:])
            return part[:1]
        elif action == "add" and kind == TRAILERS:
            stream.add_to_request(b"+") if way == "request" else stream.add_to_response(b"+")
        elif action == "raise":
            raise ValueError("bug")
        elif action == "reply":
            stream.send_local_reply(403, b"no", "denied")
            return STOP
        elif action == "nonsense":
            return "nonsense"
        elif action == "stop":
            return STOP
        elif action == "now":
            return self.perform_now()
        return None if action == "nothing" else CONTINUE

    def collected(self, stream: Stream) -> bool:
        path: Any = stream.response_path
        return path._collected is not None

    async def perform_now(self) -> int:
        return CONTINUE

    async def perform_later(self, action: str, way: str, kind: str, stream: Stream, part: Any) -> Any:
        gate = asyncio.get_running_loop().create_future()
        self.made.gates.append(gate)
        await gate
        return self.perform(action, way, kind, stream, part)

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Any:
        return self.act("request", HEADERS, stream, headers, end)

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> Any:
        return self.act("request", DATA, stream, data, end)

    def on_request_trailers(self, stream: Stream, trailers: HeaderMap) -> Any:
        return self.act("request", TRAILERS, stream, trailers, True)

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Any:
        self.seen["response"].clear()  # of a response that a local reply took the place of
        return self.act("response", HEADERS, stream, headers, end)

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> Any:
        return self.act("response", DATA, stream, data, end)

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Any:
        return self.act("response", TRAILERS, stream, trailers, True)

    def on_stream_done(self, stream: Stream) -> None:
        self.done += 1


class Origin(ScriptedUpstream):
    """Stands last in the chain: takes the whole request, and answers when it is told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.body: bytes | None = None

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> int:
        super().on_request_headers(stream, headers, end)
        stream.buffer_request(1000)
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> int:
        assert self.body is None
        self.body = data
        return STOP


class Chain(Harness):
    def __init__(self, scripts: list[tuple[list[str], bool]], loop: asyncio.AbstractEventLoop) -> None:
        self.origin = Origin()
        super().__init__(upstream=self.origin, loop=loop)
        self.gates: list[asyncio.Future[None]] = []
        self.acting = [Acting(list(script), self, fail_open) for script, fail_open in scripts]
        for number, acting in enumerate(self.acting):
            self.add(acting, f"f{number}")
        self.connection: Downstream = self.connect()
        self.answered = 0
        self.patient = False
        self.received = b""

    @property
    def stream(self) -> Stream | None:
        streams = self.connection.manager._streams
        return next(iter(streams)) if streams else None

    def feed(self, data: bytes) -> None:
        self.connection.feed(data)

    def resume(self) -> None:
        stream = self.stream
        if stream is not None:
            stream.resume_response()
            if self.origin.body is None:  # else it is the origin that holds it
                stream.resume_request()

    def respond(self) -> bool:
        """The next part of the response; False when there is none."""
        stream = self.origin.streams[-1] if self.origin.streams else None
        if stream is None or stream.done or stream.local_reply or self.answered > 3:
            return False
        if self.answered == 3 and self.patient and self.origin.body is None:
            return False  # an end of the response is the end of the stream
        self.answered += 1
        if self.answered == 1:
            stream.send_response_headers(HeaderMap([(b":status", b"200")]), False)
        elif self.answered < 4:
            stream.send_response_data(b"abcd" if self.answered == 2 else b"efgh", False)
        else:
            stream.send_response_trailers(HeaderMap([(b"x-end", b"1")]))
        return True

    def open_gates(self) -> None:
        gates, self.gates = self.gates, []
        for gate in gates:
            if not gate.done():
                gate.set_result(None)


REQUEST: Final = [
    b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n",
    b"3\r\nabc\r\n",
    b"3\r\ndef\r\n",
    b"0\r\nx-end: 1\r\n\r\n",
]


async def turns(made: Chain) -> None:
    for _ in range(4):
        await asyncio.sleep(0)
    made.received += made.connection.received()


async def play(made: Chain, steps: list[str]) -> None:
    parts = list(REQUEST)
    made.feed(parts.pop(0))
    for step in steps:
        if step == "send" and parts:
            made.feed(parts.pop(0))
        elif step == "respond":
            made.respond()
        elif step == "resume":
            made.resume()
        elif step == "gates":
            made.open_gates()
        elif step == "turn":
            await turns(made)
        elif step == "leave":
            made.connection.leave()
            await turns(made)
            return
        elif step == "time_out":
            made.advance(1500)
    for _ in range(60):  # what began must come to an end
        if parts:
            made.feed(parts.pop(0))
        else:
            made.respond()
        made.resume()
        made.open_gates()
        await turns(made)


async def run(scripts: list[tuple[list[str], bool]], steps: list[str]) -> Chain:
    made = Chain(scripts, asyncio.get_running_loop())
    made.patient = True
    await play(made, steps)
    return made


SCRIPTS = st.lists(st.tuples(st.lists(st.sampled_from(HARMLESS), max_size=8), st.booleans()), min_size=1, max_size=4)
WILD = st.lists(
    st.tuples(st.lists(st.sampled_from(HARMLESS + ADDING + FATAL), max_size=8), st.booleans()), min_size=1, max_size=4
)
CALM_STEPS = st.lists(st.sampled_from(["send", "respond", "resume", "gates", "turn"]), max_size=25)
WILD_STEPS = st.lists(st.sampled_from(["send", "respond", "resume", "gates", "turn", "leave", "time_out"]), max_size=25)
MANY = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@MANY
@given(SCRIPTS, CALM_STEPS)
def test_what_harmless_filters_pass_on_is_whole_and_in_order(
    scripts: list[tuple[list[str], bool]], steps: list[str]
) -> None:
    async def main() -> None:
        made = await run(scripts, steps)
        origin = made.origin
        assert origin.body is not None
        assert origin.body.lower() == b"abcdef"
        head, _, rest = made.received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"".join(dechunked(rest)).lower() == b"abcdefgh"
        assert rest.endswith(b"0\r\nx-end: 1\r\n\r\n")
        for acting in made.acting:
            for way, whole in (("request", b"abcdef"), ("response", b"abcdefgh")):
                parts = acting.seen[way]
                order = [ORDER[kind] for kind, _, _ in parts]
                assert order == sorted(order)
                assert order.count(0) == order.count(2) == 1
                assert b"".join(data for kind, data, _ in parts if kind == DATA).lower() == whole
        check_end(made)
        codec: Any = made.connection.manager.codec
        assert codec._read_disabled == 0
        made.origin.streams.clear()
        assert not [one for one in gc.get_objects() if isinstance(one, Stream)]  # without a collection

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def dechunked(rest: bytes) -> list[bytes]:
    pieces = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            break
        pieces.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return pieces


def check_end(made: Chain) -> None:
    assert made.stream is None  # it is done
    assert made.origin.done == 1
    for acting in made.acting:
        assert acting.done == 1
        assert acting.late == []
    assert made.stats.downstream_rq_active == 0
    assert not [task for task in made.dispatcher._tasks if not task.done()]


@MANY
@given(WILD, WILD_STEPS)
def test_wild_filters_break_nothing(scripts: list[tuple[list[str], bool]], steps: list[str]) -> None:
    async def main() -> None:
        made = Chain(scripts, asyncio.get_running_loop())
        await play(made, steps)
        await turns(made)
        check_end(made)
        for acting in made.acting:
            for parts in acting.seen.values():
                order = [ORDER[kind] for kind, _, _ in parts]
                assert order == sorted(order), parts
        received = made.received
        if received:
            status = received.split(b" ", 2)[1]
            assert status in (b"200", b"403", b"408", b"413", b"500", b"504")
            assert received.count(b"HTTP/1.1 ") == 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a coroutine that nobody awaited
        asyncio.run(main())
        gc.collect()
