from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from meshproxy.testing import ConfigError, FilterTest

FILE = Path(__file__).with_name("ab_cookie.py")
KEY = "a key of sixteen"


def config(**fields: Any) -> dict[str, Any]:
    return {"experiment": "cart", "key": KEY, "variants": {"old": 1, "new": 0}} | fields


def cookie_of(header: str | None) -> str:
    assert header is not None
    return header.partition(";")[0]


async def test_a_user_is_assigned_once() -> None:
    async with FilterTest(FILE, config()) as t:
        first = await t.request("GET", "/")
        given = first.header("set-cookie")
        assert given is not None
        assert given.endswith("; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax; Secure")
        assert first.metadata == {"ab": {"cart": "old"}}
        second = await t.request("GET", "/", {"cookie": f"other=1; {cookie_of(given)}"})
        assert second.header("set-cookie") is None
        assert [request.header("x-variant") for request in t.upstream.requests] == ["old", "old"]
        assert t.stats()["assigned.old"] == 1


async def test_the_cookie_counts_more_than_the_weights() -> None:
    async with FilterTest(FILE, config(variants={"old": 0, "new": 1})) as t:
        given = cookie_of((await t.request("GET", "/")).header("set-cookie"))
        await t.reload(config(variants={"old": 1_000_000, "new": 1}))
        await t.request("GET", "/", {"cookie": given})
        assert t.upstream.requests[1].header("x-variant") == "new"


@pytest.mark.parametrize(
    "change",
    [
        lambda cookie: cookie.replace("old", "new"),
        lambda cookie: cookie[:-1] + ("0" if cookie[-1] != "0" else "1"),
        lambda cookie: cookie.rpartition(".")[0],
        lambda cookie: "ab-cart=",
        lambda cookie: "ab-cart=....",
        lambda cookie: "ab-cart=\xff\xfe.1.2",
    ],
)
async def test_a_cookie_that_is_not_ours_is_assigned_anew(change: Any) -> None:
    async with FilterTest(FILE, config()) as t:
        given = cookie_of((await t.request("GET", "/")).header("set-cookie"))
        response = await t.request("GET", "/", [(b"cookie", change(given).encode("latin-1"))])
        assert response.status == 200
        assert response.header("set-cookie") is not None
        assert t.upstream.requests[1].header("x-variant") == "old"


async def test_of_another_experiment_or_another_key() -> None:
    async with FilterTest(FILE, config(cookie="ab")) as t:
        given = cookie_of((await t.request("GET", "/")).header("set-cookie"))
        for other in ({"experiment": "search"}, {"key": "another key of 18!"}):
            await t.reload(config(cookie="ab") | other)
            assert (await t.request("GET", "/", {"cookie": given})).header("set-cookie") is not None


async def test_a_variant_that_is_gone_or_a_time_that_is_over() -> None:
    async with FilterTest(FILE, config()) as t:
        given = cookie_of((await t.request("GET", "/")).header("set-cookie"))
        with mock.patch("time.time", return_value=time.time() + 3_000_000):
            assert (await t.request("GET", "/", {"cookie": given})).header("set-cookie") is not None
        await t.reload(config(variants={"new": 1}))
        await t.request("GET", "/", {"cookie": given})
        assert t.upstream.requests[-1].header("x-variant") == "new"


async def test_a_client_cannot_choose() -> None:
    async with FilterTest(FILE, config()) as t:
        await t.request("GET", "/", {"x-variant": "new"})
        assert t.upstream.requests[0].headers.get_all(b"x-variant") == [b"old"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"key": "short"}, "key: at least 16 characters"),
        ({"variants": {}}, "variants: at least one needs a weight"),
        ({"variants": {"a;b": 1}}, "names are made of letters"),
        ({"variants": {"a": -1}}, "none may be below"),
    ],
)
async def test_configurations_that_are_refused(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        await FilterTest(FILE, config(**fields)).start()
