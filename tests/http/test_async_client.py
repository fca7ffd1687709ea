"""Requests of the proxy itself, through real clusters to an upstream that the test speaks for."""

from __future__ import annotations

import asyncio

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.async_client import CallError, HttpCall, HttpClient, HttpResponse, start_call
from tests.support.garbage import only_collected
from tests.upstream.harness import OK, World, cluster_dict, endpoint, until, upstream, world
from tests.upstream.http2_peer import accept_http2, goaway, speaking_http2

CALLER_FIELDS = ((b"x-a", b"1"),)


class Started:
    """A call by callback: what came of it."""

    def __init__(self, w: World, timeout_ms: float = 5000.0, limit_bytes: int = 1 << 20, body: bytes = b"") -> None:
        self.outcomes: list[HttpResponse | CallError] = []
        headers = HeaderMap([(b":method", b"POST"), (b":path", b"/p"), (b":authority", b"a")])
        self.call: HttpCall = start_call(
            w.manager, w.dispatcher.timers, "c", headers, body, timeout_ms, limit_bytes, self.outcomes.append
        )

    async def error(self) -> CallError:
        await until(lambda: self.outcomes)
        (outcome,) = self.outcomes
        assert isinstance(outcome, CallError)
        return outcome

    async def response(self) -> HttpResponse:
        await until(lambda: self.outcomes)
        (outcome,) = self.outcomes
        assert isinstance(outcome, HttpResponse)
        return outcome


async def test_a_response_with_everything() -> None:
    async with world() as w, upstream() as server:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        task = asyncio.create_task(
            HttpClient(w.manager, w.dispatcher.timers)(
                "c", method=b"POST", path=b"/p", headers=CALLER_FIELDS, body=b"hello"
            )
        )
        peer = await server.accept()
        assert await peer.request() == b"POST /p HTTP/1.1\r\nhost: c\r\nx-a: 1\r\ncontent-length: 5\r\n\r\n"
        assert await peer.read(5) == b"hello"
        peer.send(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        peer.send(b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\nx-b: 2\r\n\r\n")
        peer.send(b"3\r\nabc\r\n2\r\nde\r\n0\r\nx-t: 3\r\n\r\n")
        response = await task
        assert (response.status, response.body) == (201, b"abcde")
        assert response.headers.get(b"x-b") == b"2"
        assert response.trailers is None or response.trailers.get(b"x-t") == b"3"
        counters = w.counters()
        assert counters["upstream_rq_total"] == counters["upstream_rq_completed"] == 1
        assert counters["internal.upstream_rq_201"] == counters["upstream_rq_2xx"] == 1
        assert counters["upstream_cx_active"] == 1
        assert "upstream_rq_active" not in counters


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
    ],
)
async def test_a_response_without_content(method: bytes, answer: bytes) -> None:
    async with world() as w, upstream() as server:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        peer = None
        for _ in range(2):
            task = asyncio.create_task(HttpClient(w.manager, w.dispatcher.timers)("c", method=method))
            peer = peer or await server.accept()
            await peer.request()
            peer.send(answer)
            assert (await task).body == b""
        assert w.counters()["upstream_cx_total"] == 1  # the connection was fit for another


async def test_no_cluster_and_no_host() -> None:
    async with world() as w:
        with pytest.raises(CallError) as none:
            await HttpClient(w.manager, w.dispatcher.timers)("c")
        assert none.value.reason == "no_cluster"
        w.add({"name": "c"})
        with pytest.raises(CallError) as empty:
            await HttpClient(w.manager, w.dispatcher.timers)("c")
        assert (empty.value.reason, empty.value.details) == ("no_host", "no_healthy_upstream")
        assert w.counters()["upstream_cx_none_healthy"] == w.counters()["upstream_rq_503"] == 1


async def test_a_connection_that_is_refused() -> None:
    async with world() as w, upstream() as server:
        await server.stop()
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        error = await Started(w).error()
        assert error.reason == "connect_failure"
        assert error.details.startswith("upstream_reset_before_response_started{remote_connection_failure")
        assert w.counters()["internal.upstream_rq_503"] == 1


async def test_circuit_breakers_count_calls() -> None:
    async with world() as w, upstream() as server:
        breakers = {"thresholds": [{"max_pending_requests": 1, "max_connections": 1}]}
        w.add(cluster_dict(endpoint("127.0.0.1", server.port), circuit_breakers=breakers))
        first = Started(w)
        error = await Started(w).error()
        assert error.reason == "overflow"
        peer = await server.accept()
        await peer.request()
        peer.send(OK)
        assert (await first.response()).body == b"ok"
        assert w.counters()["upstream_rq_pending_overflow"] == 1


async def test_the_timeout_is_over_all() -> None:
    async with world() as w, upstream() as server:
        cluster = w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        silent = Started(w, timeout_ms=20.0)
        error = await silent.error()
        assert (error.reason, error.details) == ("timeout", "response_timeout")
        begun = Started(w, timeout_ms=200.0)
        peer = await server.accept()
        if b"POST" not in await peer.read_some():
            peer = await server.accept()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")
        assert (await begun.error()).reason == "timeout"
        counters = w.counters()
        assert counters["upstream_rq_timeout"] == cluster.hosts[0].stats.rq_timeout == 2
        assert "upstream_rq_active" not in counters


async def test_a_response_that_is_too_large() -> None:
    async with world() as w, upstream() as server:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        started = Started(w, limit_bytes=4)
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde")
        assert (await started.error()).reason == "too_large"
        assert await peer.eof() == b""  # the rest is not read: the connection goes


@pytest.mark.parametrize(
    ("answer", "reason", "details"),
    [
        (b"", "reset", "upstream_reset_before_response_started{connection_termination}"),
        (b"HTTP/1.1 x\r\n\r\n", "protocol_error", "upstream_reset_before_response_started{protocol_error}"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab",
            "protocol_error",
            "upstream_reset_after_response_started{protocol_error}",
        ),
    ],
)
async def test_a_response_that_is_cut_short(answer: bytes, reason: str, details: str) -> None:
    async with world() as w, upstream() as server:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        started = Started(w)
        peer = await server.accept()
        await peer.request()
        peer.send(answer)
        peer.close()
        error = await started.error()
        assert (error.reason, error.details) == (reason, details)


@pytest.mark.parametrize("method", [b"GET", b"POST"])
async def test_only_an_idempotent_request_goes_once_more(method: bytes) -> None:
    """The peer closes the reused connection as it sees the request."""
    async with world() as w, upstream() as server:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        first = asyncio.create_task(HttpClient(w.manager, w.dispatcher.timers)("c"))
        peer = await server.accept()
        await peer.request()
        peer.send(OK)
        await first
        second = asyncio.create_task(HttpClient(w.manager, w.dispatcher.timers)("c", method=method))
        await peer.request()
        peer.close()
        if method == b"GET":
            again = await server.accept()
            await again.request()
            again.send(OK)
            assert (await second).status == 200
        else:
            with pytest.raises(CallError) as error:
                await second
            assert error.value.reason == "reset"
            assert server.waiting == 0


async def test_what_an_http2_upstream_has_not_looked_at_goes_once_more() -> None:
    async with world() as w, upstream() as server:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port), **speaking_http2()))
        call = Started(w, body=b"hello")
        old = await accept_http2(server)
        await old.request()
        old.go_away(0)
        new = await accept_http2(server)
        new.answer(await new.request(), b"done", 201)
        response = await call.response()
        assert (response.status, response.body) == (201, b"done")
        assert w.counters()["upstream_rq_stale_connection_retry"] == 1
        again = Started(w)
        stream_id = await new.request()
        new.h2.reset_stream(stream_id, 8)
        new.send_raw(goaway(stream_id) + new.h2.data_to_send())  # it has looked at this one
        error = await again.error()
        assert (error.reason, error.details) == ("reset", "upstream_reset_before_response_started{remote_reset}")


async def test_a_task_that_is_cancelled_cancels_its_call() -> None:
    async with world() as w, upstream() as server:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        task = asyncio.create_task(HttpClient(w.manager, w.dispatcher.timers)("c"))
        peer = await server.accept()
        await peer.request()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await peer.eof() == b""
        assert "upstream_rq_active" not in w.counters()


async def test_cancelled_calls_hear_nothing() -> None:
    async with world() as w, upstream() as server:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        waiting = Started(w)
        waiting.call.cancel()
        assert w.counters()["upstream_rq_cancelled"] == 1
        sent = Started(w)
        peer = await server.accept()
        request = await peer.read_some()
        if not request:
            peer = await server.accept()
            request = await peer.read_some()
        assert request
        sent.call.cancel()
        sent.call.cancel()
        assert await peer.eof() == b""
        assert waiting.outcomes == sent.outcomes == []
        assert sent.call.done


async def test_a_call_from_the_callback_of_another() -> None:
    async with world() as w, upstream() as server:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        outcomes: list[HttpResponse | CallError] = []

        def on_first(outcome: HttpResponse | CallError) -> None:
            outcomes.append(outcome)
            headers = HeaderMap([(b":method", b"GET"), (b":path", b"/2"), (b":authority", b"a")])
            start_call(w.manager, w.dispatcher.timers, "c", headers, b"", 5000.0, 100, outcomes.append)

        headers = HeaderMap([(b":method", b"GET"), (b":path", b"/1"), (b":authority", b"a")])
        start_call(w.manager, w.dispatcher.timers, "c", headers, b"", 5000.0, 100, on_first)
        peer = await server.accept()
        for _ in range(2):  # the connection of the first is free as soon as it is over
            await peer.request()
            peer.send(OK)
        await until(lambda: len(outcomes) == 2)
        assert [outcome.body for outcome in outcomes if isinstance(outcome, HttpResponse)] == [b"ok", b"ok"]


async def test_an_outlier_takes_no_calls() -> None:
    async with world() as w, upstream() as server:
        detection = {"consecutive_5xx": 1, "max_ejection_percent": 100, "enforcing_consecutive_5xx": 100}
        no_panic = {"healthy_panic_threshold": {"value": 0}}
        w.add(cluster_dict(endpoint("127.0.0.1", server.port), outlier_detection=detection, common_lb_config=no_panic))
        started = Started(w)
        peer = await server.accept()
        await peer.request()
        peer.send(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n")
        assert (await started.response()).status == 500
        assert (await Started(w).error()).reason == "no_host"


async def test_a_finished_call_is_freed_at_once() -> None:
    async with world() as w, upstream() as server:
        w.add(cluster_dict(endpoint("127.0.0.1", server.port)))
        peer = None
        with only_collected("meshproxy.http") as found:
            for _ in range(2):
                task = asyncio.create_task(HttpClient(w.manager, w.dispatcher.timers)("c"))
                peer = peer or await server.accept()
                await peer.request()
                peer.send(OK)
                await task
                del task
        assert found == []
