from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from meshproxy.testing import Answer, ConfigError, FilterTest, Request

FILE = Path(__file__).with_name("enrich.py")
CONFIG = {"cluster": "users", "key_header": "x-api-key", "header": "x-tenant", "path": "/keys/{key}"}


def enriched(**fields: Any) -> FilterTest:
    return FilterTest(FILE, CONFIG | fields, class_name="Enrich", clusters=["users"])


async def test_an_answer_is_asked_for_once_and_told() -> None:
    async with enriched() as t:
        t.cluster["users"].respond(200, None, "acme\n")
        for _ in range(2):
            await t.request("GET", "/", {"x-api-key": "k/1 ü"})
        assert [request.header("x-tenant") for request in t.upstream.requests] == ["acme", "acme"]
        assert [request.path for request in t.cluster["users"].requests] == ["/keys/k%2F1%20%C3%BC"]
        assert (t.stats()["lookups"], t.stats()["hits"]) == (1, 1)


async def test_many_wait_for_one_answer_and_one_who_leaves_takes_nothing_away() -> None:
    async with enriched() as t:
        opened = asyncio.Event()

        async def answer(request: Request) -> Answer:
            await opened.wait()
            return Answer(200, None, "acme")

        t.cluster["users"].handler = answer
        leaves = t.open("GET", "/", {"x-api-key": "k"})
        waiting = [asyncio.ensure_future(t.request("GET", "/", {"x-api-key": "k"})) for _ in range(3)]
        while not t.cluster["users"].requests or t.stats()["streams_active"] < 4:
            await asyncio.sleep(0)
        leaves.close()
        while t.stats()["streams_active"] > 3:
            await asyncio.sleep(0)
        opened.set()
        assert [response.status for response in await asyncio.gather(*waiting)] == [200, 200, 200]
        assert len(t.cluster["users"].requests) == 1
        assert [request.header("x-tenant") for request in t.upstream.requests] == ["acme"] * 3


async def test_a_field_of_a_json_answer() -> None:
    async with enriched(json_field="plan") as t:
        t.cluster["users"].respond(200, None, '{"plan": {"name": "gold"}}')
        await t.request("GET", "/", {"x-api-key": "k"})
        assert t.upstream.requests[0].header("x-tenant") == '{"name": "gold"}'


async def test_nobody_else_may_say_it() -> None:
    async with enriched() as t:
        await t.request("GET", "/", {"x-tenant": "forged"})
        t.cluster["users"].respond(404)
        await t.request("GET", "/", {"x-tenant": "forged", "x-api-key": "unknown"})
        await t.request("GET", "/", {"x-tenant": "forged", "x-api-key": "unknown"})
        assert [request.header("x-tenant") for request in t.upstream.requests] == [None] * 3
        assert len(t.cluster["users"].requests) == 1  # that there is none is known too


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(500), "status"),
        (Answer(200, None, "two\nlines"), "answer"),
        (Answer(200, None, "x" * (1 << 20) + "y"), "too_large"),
    ],
)
@pytest.mark.parametrize(("on_failure", "status"), [("continue", 200), ("deny", 503)])
async def test_failures(answer: Answer, reason: str, on_failure: str, status: int) -> None:
    async with enriched(on_failure=on_failure) as t:
        t.cluster["users"].handler = lambda request: answer
        assert (await t.request("GET", "/", {"x-api-key": "k"})).status == status
        assert (t.stats()[f"failed.{reason}"], t.stats()["task_errors"]) == (1, 0)


async def test_as_many_are_remembered_as_may_be() -> None:
    async with enriched(max_entries=2) as t:
        for key in ("a", "b", "a", "c", "a", "b"):  # b goes for c
            await t.request("GET", "/", {"x-api-key": key})
        assert [request.path for request in t.cluster["users"].requests] == [f"/keys/{key}" for key in "abcb"]


async def test_configurations_that_are_refused() -> None:
    for fields, error in (({"path": "/x"}, "must have {key}"), ({"max_entries": 0}, "at least 1")):
        with pytest.raises(ConfigError, match=error):
            await enriched(**fields).start()
