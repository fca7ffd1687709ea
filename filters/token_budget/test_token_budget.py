"""Streams are as OpenAI's and Anthropic's references of their APIs show them, and as WHATWG HTML section 9.2 allows."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.testing import ConfigError, FilterTest, Response, load_file

FILE = Path(__file__).with_name("token_budget.py")
MODULE = load_file(FILE)
SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}


class Clock:
    """The wall clock, at the beginning of an hour, which stands still until it is moved."""

    def __init__(self) -> None:
        self.now = time.time() // 3600 * 3600


@pytest.fixture
def clock() -> Iterator[Clock]:
    made = Clock()
    with mock.patch("time.time", side_effect=lambda: made.now):
        yield made


def sse(*messages: Any) -> str:
    return "".join(f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n" for each in messages)


def chunk(text: str, usage: Any = None) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"delta": {"content": text}}], "usage": usage}


OPENAI_USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}}
OPENAI = sse(chunk("Grü"), chunk("ße"), chunk("!"), OPENAI_USAGE, "[DONE]")
ANTHROPIC = "".join(
    f"event: {message['type']}\ndata: {json.dumps(message)}\n\n"
    for message in (
        {"type": "message_start", "message": {"usage": {"input_tokens": 25, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "!"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 15}},
        {"type": "message_stop"},
    )
)


async def call(t: FilterTest, body: Any = None, path: str = "/v1/chat/completions", **headers: str) -> Response:
    fields = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return await t.request("POST", path, fields, body if isinstance(body, (str, bytes)) else json.dumps(body or {}))


def used(response: Response) -> dict[str, Any]:
    return response.metadata["token_budget"]


# -- counting


async def test_a_stream_of_openais_kind() -> None:
    async with FilterTest(FILE, {"budget": 100}) as t:
        t.upstream.respond(200, SSE, [OPENAI])
        response = await call(t)
        assert response.text == OPENAI
        assert used(response) == {
            "tenant": "default",
            "tokens": 12,
            "input": 9,
            "output": 3,
            "estimated": False,
            "left": 88,
        }
        assert (t.stats()["requests"], t.stats()["tokens"]) == (1, 12)


async def test_a_stream_of_anthropics_kind() -> None:
    async with FilterTest(FILE, {"budget": 100}) as t:
        t.upstream.respond(200, SSE, [ANTHROPIC])
        response = await call(t, path="/v1/messages")
        assert response.text == ANTHROPIC
        assert [used(response)[name] for name in ("tokens", "input", "output", "estimated")] == [40, 25, 15, False]


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}, 12),
        ({"type": "message", "usage": {"input_tokens": 5, "output_tokens": 6}}, 11),
        (
            {
                "type": "message",
                "usage": {
                    "input_tokens": 5,
                    "output_tokens": 6,
                    "cache_read_input_tokens": 100,
                    "cache_creation_input_tokens": 10,
                },
            },
            121,
        ),
        ({"usage": {"total_tokens": "many", "prompt_tokens": True, "completion_tokens": -4}}, 0),
    ],
)
async def test_a_response_that_is_no_stream(body: Any, tokens: int) -> None:
    async with FilterTest(FILE, {"budget": 1000}) as t:
        text = json.dumps(body)
        t.upstream.respond(200, JSON, [text[:20], text[20:]])
        response = await call(t)
        assert (response.json(), used(response)["tokens"]) == (body, tokens)


async def test_the_stream_of_openais_newer_api() -> None:
    async with FilterTest(FILE, {"budget": 1000}) as t:
        done = {"type": "response.completed", "response": {"usage": {"input_tokens": 3, "total_tokens": 8}}}
        t.upstream.respond(200, SSE, [sse({"type": "response.output_text.delta", "delta": "a"}, done)])
        assert used(await call(t))["tokens"] == 8


async def test_estimates_where_nobody_says() -> None:
    async with FilterTest(FILE, {"budget": 1000, "tokens_per_event": 4}) as t:
        t.upstream.respond(200, SSE, [sse(chunk("a"), chunk("b"), chunk("c"), "[DONE]")])
        response = await call(t)
        assert (used(response)["tokens"], used(response)["estimated"]) == (12, True)
        assert t.stats()["estimated"] == 1


async def test_a_stream_that_breaks_off_is_paid_for() -> None:
    async with FilterTest(FILE, {"budget": 1000}) as t:
        begin = ANTHROPIC.partition("event: message_delta")[0]
        t.upstream.respond(200, {**SSE, "content-length": "100000"}, begin)
        exchange = t.open("POST", "/v1/messages", JSON)
        while b'"!"' not in exchange.received:
            await exchange.until_received(len(exchange.received) + 1)
        exchange.close()
        t.upstream.respond(200, JSON, "{}")
        response = await call(t)
        assert used(response)["left"] == 1000 - (25 + 2)  # its input, and an event for each piece


@pytest.mark.parametrize("body", ["[" * 100_000, "{", "", "null", '{"usage": 3}'])
async def test_what_is_no_usage_costs_nothing(body: str) -> None:
    async with FilterTest(FILE, {"budget": 1000}) as t:
        t.upstream.respond(200, JSON, [body])
        response = await call(t)
        assert (response.text, used(response)["left"]) == (body, 1000)


async def test_what_cannot_be_read_passes() -> None:
    async with FilterTest(FILE, {"budget": 1000, "max_response_bytes": 10}) as t:
        for headers in ({**JSON, "content-encoding": "br"}, {**SSE, "content-encoding": "gzip"}, JSON):
            t.upstream.respond(200, headers, '{"usage": {"total_tokens": 12}}')
            assert (await call(t, accept_encoding="br")).text == '{"usage": {"total_tokens": 12}}'
        assert t.upstream.requests[0].header("accept-encoding") is None
        assert t.stats()["unreadable"] == 3


# -- budgets


async def test_a_budget_that_is_spent(clock: Clock) -> None:
    async with FilterTest(FILE, {"budget": 12, "window": "600s"}) as t:
        t.upstream.respond(200, SSE, [OPENAI])
        assert (await call(t)).status == 200
        clock.now += 200.5
        refused = await call(t)
        assert (refused.status, refused.header("retry-after"), refused.details) == (
            429,
            "400",
            "token_budget_exhausted",
        )
        assert refused.header("content-type") == "application/json"
        assert refused.json()["error"] == {
            "type": "token_budget_exhausted",
            "message": "The budget of 12 tokens is spent; there is a new one in 400 s.",
        }
        assert (len(t.upstream.requests), t.stats()["rejected"]) == (1, 1)
        clock.now += 400
        assert (await call(t)).status == 200


async def test_tenants(clock: Clock) -> None:
    async with FilterTest(FILE, {"budget": 12, "budgets": {"big": 24}, "tenant_header": "X-Tenant"}) as t:
        t.upstream.respond(200, SSE, [OPENAI])
        statuses = [(await call(t, x_tenant=tenant)).status for tenant in ("a", "a", "b", "big", "big", "big")]
        assert statuses == [200, 429, 200, 200, 200, 429]
        assert [(await call(t)).status for _ in range(2)] == [200, 429]  # those without the header
        assert t.stats()["tokens.big"] == 24


async def test_too_many_tenants_share_a_budget() -> None:
    async with FilterTest(FILE, {"budget": 12, "tenant_header": "x-tenant", "max_tenants": 2}) as t:
        t.upstream.respond(200, SSE, [OPENAI])
        assert [(await call(t, x_tenant=tenant)).status for tenant in "abcdab"] == [200, 200, 200, 429, 429, 429]


async def test_a_budget_of_nothing() -> None:
    async with FilterTest(FILE, {"budget": 0, "budgets": {"a": 1}, "tenant_header": "x-tenant"}) as t:
        assert [(await call(t, x_tenant=tenant)).status for tenant in ("a", "b")] == [200, 429]


async def test_a_route_may_have_another_budget() -> None:
    async with FilterTest(FILE, {"budget": 1}, route_config={"budget": 20}) as t:
        t.upstream.respond(200, SSE, [OPENAI])
        paths = ("/x", "/x", "/route/x", "/route/x")
        assert [(await call(t, path=path)).status for path in paths] == [200, 429, 200, 429]


# -- asking for usage


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (
            '{"model": "m", "stream": true, "n": 1.50}',
            '{"stream_options":{"include_usage":true},"model": "m", "stream": true, "n": 1.50}',
        ),
        (
            '{"stream": true, "stream_options": {"x": 1}}',
            '{"stream": true, "stream_options": {"x": 1, "include_usage": true}}',
        ),
        (
            '{"stream": true, "stream_options": null}',
            '{"stream": true, "stream_options": {"include_usage": true}}',
        ),
        ('{"stream": true, "stream_options": {"include_usage": true}}', None),
        ('{"stream": false}', None),
        ("[true]", None),
        ('{"stream": true', None),
        ("\xff", None),
    ],
)
async def test_asking_for_usage(body: str, sent: str | None) -> None:
    async with FilterTest(FILE, {"budget": 100, "ask_for_usage": ["/chat/completions"]}) as t:
        await call(t, body.encode("latin-1"))
        request = t.upstream.requests[0]
        assert request.body == (sent or body).encode("latin-1")
        assert request.header("content-length") == str(len(request.body))


async def test_only_where_it_is_configured() -> None:
    async with FilterTest(FILE, {"budget": 100, "ask_for_usage": ["/chat/completions"]}) as t:
        await call(t, {"stream": True}, path="/v1/messages")
        await call(t, {"stream": True}, content_type="text/plain")
        assert [request.json() for request in t.upstream.requests] == [{"stream": True}] * 2


@pytest.mark.parametrize("asked", [False, True])
async def test_clients_see_the_usage_that_they_asked_for(asked: bool) -> None:
    async with FilterTest(FILE, {"budget": 100, "ask_for_usage": ["/chat/completions"]}) as t:
        pieces = [OPENAI[i : i + 7] for i in range(0, len(OPENAI), 7)]
        t.upstream.respond(200, SSE, pieces)
        options = {"stream_options": {"include_usage": True}} if asked else {}
        response = await call(t, {"stream": True, **options})
        assert response.text == (OPENAI if asked else sse(chunk("Grü"), chunk("ße"), chunk("!"), "[DONE]"))
        assert used(response)["tokens"] == 12


async def test_a_call_that_is_too_long() -> None:
    async with FilterTest(FILE, {"budget": 100, "ask_for_usage": ["/chat/completions"], "max_request_bytes": 10}) as t:
        assert (await call(t, {"stream": True, "x": "y"})).status == 413


# -- cutting


async def test_a_stream_is_cut_when_the_budget_is_over() -> None:
    async with FilterTest(FILE, {"budget": 2, "cut_streams": True}) as t:
        t.upstream.respond(200, {**SSE, "content-length": "100000"}, OPENAI)
        response = await call(t)
        assert response.header("content-length") is None
        text, _, error = response.text.partition("event: error\n")
        assert text == sse(chunk("Grü"), chunk("ße"))
        assert error.startswith('data: {"type": "error", "error": {"type": "token_budget_exhausted", "message": ')
        assert error.endswith("}\n\n")
        assert (response.details, t.stats()["cut"]) == ("token_budget_cut", 1)
        assert (await call(t)).status == 429


async def test_another_call_may_use_up_the_budget() -> None:
    async with FilterTest(FILE, {"budget": 30, "cut_streams": True}) as t:
        t.upstream.respond(200, SSE, [OPENAI])
        assert [(await call(t)).text for _ in range(2)] == [OPENAI, OPENAI]
        cut = await call(t)
        assert cut.text.startswith(sse(chunk("Grü"), chunk("ße"), chunk("!"), OPENAI_USAGE))
        assert "event: error" in cut.text


async def test_a_stream_within_its_budget_is_whole() -> None:
    async with FilterTest(FILE, {"budget": 1000, "cut_streams": True}) as t:
        stream = OPENAI + "data: the last, without an end"
        t.upstream.respond(200, SSE, [stream[:100], stream[100:]])
        assert (await call(t)).text == stream


# -- reading server-sent events

STREAMS = st.lists(
    st.sampled_from(["data", "data:", "data: ", "data:  x", "event: e", ": c", "id", "é€", "a", '{"b":1}', ""])
    | st.sampled_from(["\r", "\n", "\r\n", "\n\n", "\r\n\r\n"]),
    max_size=30,
).map("".join)


def whole(text: str) -> list[bytes]:
    """The oracle: the rules of WHATWG HTML section 9.2.6, on all of the text."""
    lines = re.split("\r\n|\r|\n", text.removeprefix("\ufeff"))[:-1]
    found: list[bytes] = []
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        if line == "" and data:
            found.append("\n".join(data).encode())
            data = []
        elif name == "data":
            data.append(value.removeprefix(" "))
    return found


@given(STREAMS, st.booleans(), st.data())
def test_events_in_any_pieces(text: str, bom: bool, data: st.DataObject) -> None:
    text = "\ufeff" * bom + text
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    events = MODULE.Events(10_000)
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    found = [each for piece in pieces for each in events.feed(piece)]
    assert [one for _, one in found if one is not None] == whole(text)
    assert b"".join(part for part, _ in found) + events.rest() == raw


@given(st.binary(max_size=200), st.integers(1, 20), st.integers(0, 200))
def test_events_are_bounded(raw: bytes, limit: int, cut: int) -> None:
    events = MODULE.Events(limit)
    found = events.feed(raw[:cut]) + events.feed(raw[cut:])
    assert all(len(data) <= limit for _, data in found if data is not None)
    rest = events.rest()
    assert b"".join(part for part, _ in found) + rest == raw
    assert len(rest) <= limit


def test_an_event_that_is_too_long_is_not_read_and_the_next_one_is() -> None:
    events = MODULE.Events(20)
    found = events.feed(b"data: " + b"x" * 30) + events.feed(b"y\n\ndata: short\n\n")
    assert [data for _, data in found if data is not None] == [b"short"]


# -- configuration


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, "budget: is required"),
        ({"budget": -1}, "none may be below 0"),
        ({"budget": 1, "budgets": {"a": -1}}, "none may be below 0"),
        ({"budget": 1, "window": "0.5s"}, "window: at least 1s"),
        ({"budget": 1, "max_tenants": 0}, "max_tenants: at least 1"),
    ],
)
async def test_configurations_that_are_refused(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        await FilterTest(FILE, fields).start()
