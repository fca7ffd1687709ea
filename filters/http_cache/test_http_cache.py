"""Expected values are those of RFC 9111 (and 9110, 5861, 8246, 9211 where a test names them)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy import HeaderMap
from meshproxy.testing import Answer, ConfigError, FilterTest, Request, Response, load_file

FILE = Path(__file__).with_name("http_cache.py")
CACHE = load_file(FILE)
HOUR = {"cache-control": "max-age=3600"}


class Clock:
    """The wall clock, which stands still until it is moved."""

    def __init__(self) -> None:
        self.now = float(int(time.time()))

    def date(self, offset_s: float = 0.0) -> str:
        return formatdate(self.now + offset_s, usegmt=True)


@pytest.fixture
def clock() -> Iterator[Clock]:
    made = Clock()
    with mock.patch("time.time", side_effect=lambda: made.now):
        yield made


async def get(t: FilterTest, path: str = "/", **headers: str) -> Response:
    return await t.request("GET", path, {name.replace("_", "-"): value for name, value in headers.items()})


def status_of(response: Response) -> str | None:
    """Cache-Status (RFC 9211), without our name."""
    value = response.header("cache-status")
    return None if value is None else value.removeprefix("meshproxy; ")


def was_hit(response: Response) -> bool:
    return (status_of(response) or "").startswith("hit")


# -- freshness: sections 4.2, 5.2.2, 5.3


async def test_a_fresh_response_is_served_with_its_age(clock: Clock) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {**HOUR, "content-type": "text/css", "etag": '"a"'}, "body")
        first = await get(t)
        assert (first.text, first.header("age"), status_of(first)) == ("body", None, "fwd=uri-miss; stored")
        clock.now += 100
        second = await get(t)
        assert (second.status, second.text, second.details) == (200, "body", "http_cache_hit")
        assert (second.header("age"), status_of(second)) == ("100", "hit; ttl=3500")  # section 5.1; RFC 9211 section 2
        assert (second.header("content-type"), second.header("content-length")) == ("text/css", "4")
        assert second.header("date") == clock.date(-100)
        assert len(t.upstream.requests) == 1
        assert [t.stats()[name] for name in ("hits", "misses", "stored")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("headers", "lifetime_s"),
    [
        ({"cache-control": "max-age=60"}, 60),
        ({"cache-control": "max-age=60, s-maxage=10"}, 10),  # section 5.2.2.10: in a shared cache it overrides
        ({"cache-control": "s-maxage=10, max-age=60"}, 10),
        ({"cache-control": 'MAX-AGE="60"'}, 60),  # section 5.2: names in any case; 5.2.2.1: both forms accepted
        ({"cache-control": "max-age=60, max-age=600"}, 60),  # section 4.2.1: the first of several
        ({"expires": "+50"}, 50),
        ({"cache-control": "max-age=60", "expires": "+5000"}, 60),  # section 5.3: max-age is preferred
        ({"date": "-20", "expires": "+50"}, 50),  # 70 s from its date, of which 20 are over
        ({"cache-control": "max-age=60", "age": "15"}, 45),  # section 4.2.3
        ({"cache-control": "max-age=60", "date": "-25"}, 35),  # apparent age
        ({"cache-control": "max-age=60", "date": "-25", "age": "40"}, 20),  # the larger of the two
        ({"cache-control": 'ext="a, no-store", max-age=60'}, 60),  # quoted
    ],
)
async def test_how_long_a_response_is_fresh(clock: Clock, headers: dict[str, str], lifetime_s: int) -> None:
    fields = {k: clock.date(int(v)) if k in ("date", "expires") else v for k, v in headers.items()}
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, fields, "x")
        await get(t)
        clock.now += lifetime_s - 1
        assert was_hit(await get(t))
        clock.now += 1  # section 4.2: fresh while the lifetime is above the age
        assert not was_hit(await get(t))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"cache-control": "max-age=abc"},  # section 4.2.1: not a number is stale
        {"cache-control": "max-age=-1"},
        {"cache-control": "max-age=0, max-age=60"},
        {"expires": "0"},  # section 5.3
        {"expires": "tomorrow"},
        {"cache-control": "no-store, max-age=60"},  # section 5.2.2.5
        {"cache-control": "private, max-age=60"},  # section 5.2.2.7
        {"cache-control": 'private="x-user", max-age=60'},
        {"cache-control": "no-cache, max-age=60"},  # section 5.2.2.4
        {"cache-control": "max-age=60", "vary": "*"},  # section 4.1
        {"cache-control": "max-age=60", "vary": "accept, *"},
        {"cache-control": "max-age=60", "set-cookie": "a=b"},  # section 7.3 warns of it
        {"cache-control": "max-age=60", "age": "60"},
    ],
)
async def test_what_is_not_reused(clock: Clock, headers: dict[str, str]) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, headers, "x")
        for _ in range(2):
            assert (await get(t)).details == "via_upstream"
        assert len(t.upstream.requests) == 2


@pytest.mark.parametrize(
    ("status", "control", "stored"),
    [
        (404, "max-age=60", True),
        (503, "max-age=60", True),  # section 3: any final status, when it is said
        (206, "max-age=60", False),  # section 3.3
        (299, "max-age=60, must-understand", False),  # section 5.2.2.3
        (200, "max-age=60, must-understand", True),
    ],
)
async def test_statuses(clock: Clock, status: int, control: str, stored: bool) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(status, {"cache-control": control}, "x")
        await get(t)
        second = await get(t)
        assert (second.status, was_hit(second)) == (status, stored)


@pytest.mark.parametrize(("status", "fresh_s"), [(200, 360), (302, 0)])
async def test_heuristic_freshness(clock: Clock, status: int, fresh_s: int) -> None:
    """Section 4.2.2: a tenth of the time since the modification, for statuses that RFC 9110 section 15.1 names."""
    async with FilterTest(FILE) as t:
        t.upstream.respond(status, {"date": clock.date(), "last-modified": clock.date(-3600)}, "x")
        await get(t)
        clock.now += max(0, fresh_s - 1)
        assert was_hit(await get(t)) == bool(fresh_s)
        clock.now += 1
        assert not was_hit(await get(t))


@pytest.mark.parametrize(
    ("control", "stored"),
    [
        ("max-age=60", False),
        ("max-age=60, public", True),
        ("s-maxage=60", True),
        ("max-age=60, must-revalidate", True),
    ],
)
async def test_responses_to_authorized_requests(clock: Clock, control: str, stored: bool) -> None:
    """Section 3.5."""
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": control}, "x")
        await get(t, authorization="Basic eDp5")
        assert was_hit(await get(t, authorization="Basic eDp5")) == stored


# -- the request's directives: section 5.2.1


@pytest.mark.parametrize(
    ("age_s", "control", "hit"),
    [
        (10, "max-age=9", False),
        (10, "max-age=10", True),
        (0, "no-cache", False),
        (50, "min-fresh=10", True),
        (51, "min-fresh=10", False),
        (70, "max-stale", True),
        (70, "max-stale=10", True),
        (71, "max-stale=10", False),
        (70, "max-stale=5, max-age=80", False),
        (10, "no-store", True),  # section 5.2.1.5: it does not forbid to answer with what is stored
        (10, "only-if-cached", True),
    ],
)
async def test_directives_of_requests(clock: Clock, age_s: int, control: str, hit: bool) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60"}, "x")
        await get(t)
        clock.now += age_s
        assert was_hit(await get(t, cache_control=control)) == hit


@pytest.mark.parametrize("strict", ["must-revalidate", "proxy-revalidate", "s-maxage=60"])
async def test_max_stale_does_not_help_where_it_must_be_fresh(clock: Clock, strict: str) -> None:
    """Section 4.2.4."""
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": f"max-age=60, {strict}"}, "x")
        await get(t)
        clock.now += 61
        assert not was_hit(await get(t, cache_control="max-stale"))


async def test_a_request_that_must_not_be_stored(clock: Clock) -> None:
    """Section 5.2.1.5."""
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, HOUR, "x")
        await get(t, cache_control="no-store")
        assert not was_hit(await get(t))


@pytest.mark.parametrize("headers", [{}, {"range": "bytes=0-1"}])
async def test_only_if_cached(headers: dict[str, str]) -> None:
    """Section 5.2.1.7."""
    async with FilterTest(FILE) as t:
        response = await get(t, cache_control="only-if-cached", **headers)
        assert (response.status, t.upstream.requests) == (504, [])


async def test_immutable(clock: Clock) -> None:
    """RFC 8246 section 2: a reload of what is fresh is not passed on; no-cache is a wish to."""
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60, immutable"}, "x")
        await get(t)
        clock.now += 10
        assert was_hit(await get(t, cache_control="max-age=0"))
        assert not was_hit(await get(t, cache_control="no-cache"))


# -- which stored response: sections 2 and 4.1


async def test_the_key() -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, HOUR, "x")
        await get(t, "/a?b=1", host="One.test")
        assert was_hit(await get(t, "/a?b=1", host="one.TEST"))
        for path, host in (("/a?b=2", "one.test"), ("/A?b=1", "one.test"), ("/a?b=1", "two.test")):
            assert not was_hit(await get(t, path, host=host))


async def test_vary() -> None:
    def handler(request: Request) -> Answer:
        vary = [("vary", "Accept-Language"), ("vary", "x-a")]
        return Answer(200, [*HOUR.items(), *vary], f"{request.header('accept-language')}")

    async with FilterTest(FILE) as t:
        t.upstream.handler = handler
        assert (await get(t, accept_language="de, en")).text == "de, en"
        assert status_of(await get(t, accept_language="fr")) == "fwd=vary-miss; stored"
        same = await get(t, accept_language="de,en")  # section 4.1: white space may be normalised
        assert (same.text, was_hit(same)) == ("de, en", True)
        assert was_hit(await get(t, accept_language="fr"))
        assert not was_hit(await get(t, accept_language="fr", x_a="1"))
        assert not was_hit(await get(t))


async def test_head_is_answered_from_a_get(clock: Clock) -> None:
    """Section 4: RFC 9110 section 9.3.2 has HEAD answered as GET, without the content."""
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, HOUR, "body")
        assert not was_hit(await t.request("HEAD", "/"))
        await get(t)
        head = await t.request("HEAD", "/")
        assert (head.body, head.header("content-length"), was_hit(head)) == (b"", "4", True)
        assert [request.method for request in t.upstream.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("name", ["range", "if-match", "if-unmodified-since"])
async def test_what_only_the_origin_can_answer_passes(name: str) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, HOUR, "body")
        await get(t)
        response = await t.request("GET", "/", {name: "bytes=0-1"})
        assert status_of(response) == "fwd=bypass"
        assert t.upstream.requests[1].header(name) == "bytes=0-1"


async def test_fields_that_belong_to_one_connection_or_hop_are_not_stored() -> None:
    """Section 3.1."""
    async with FilterTest(FILE) as t:
        hops = {"connection": "x-hop", "x-hop": "1", "proxy-authenticate": "Basic"}
        t.upstream.respond(200, {**HOUR, **hops}, ["a", "b"])
        await get(t)
        hit = await get(t)
        assert (hit.header("x-hop"), hit.header("proxy-authenticate"), hit.header("transfer-encoding")) == (None,) * 3
        assert (hit.text, hit.header("content-length")) == ("ab", "2")


async def test_trailers_complete_a_response() -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, HOUR, ["a"], {"x-sum": "1"})
        await get(t)
        assert was_hit(await get(t))


# -- conditions of clients: section 4.3.2


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        ({"if-none-match": '"a"'}, 304),
        ({"if-none-match": 'W/"a"'}, 304),  # RFC 9110 section 13.1.2: compared weakly
        ({"if-none-match": '"x", "a"'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"x"'}, 200),
        ({"if-modified-since": -100}, 304),
        ({"if-modified-since": -101}, 200),
        ({"if-modified-since": "never"}, 200),
        ({"if-none-match": '"x"', "if-modified-since": 0}, 200),  # RFC 9110 section 13.1.3: ignored beside the other
    ],
)
async def test_conditions_are_answered_here(clock: Clock, conditions: dict[str, Any], status: int) -> None:
    sent = {k: clock.date(v) if isinstance(v, int) else v for k, v in conditions.items()}
    async with FilterTest(FILE) as t:
        etag = {"etag": '"a"', "last-modified": clock.date(-100), "content-type": "text/css", "vary": "accept"}
        t.upstream.respond(200, {**HOUR, **etag}, "body")
        await get(t)
        clock.now += 5
        response = await t.request("GET", "/", sent)
        assert (response.status, response.text) == (status, "body" if status == 200 else "")
        assert len(t.upstream.requests) == 1
        assert (response.header("etag"), response.header("age"), response.header("vary")) == ('"a"', "5", "accept")
        if status == 304:  # RFC 9110 section 15.4.5
            assert response.header("cache-control") == "max-age=3600"
            assert (response.header("content-type"), response.header("content-length")) == (None, None)


async def test_a_conditional_miss_is_the_origins() -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(304, {**HOUR, "etag": '"a"'})
        assert (await get(t, if_none_match='"a"')).status == 304
        assert t.upstream.requests[0].header("if-none-match") == '"a"'
        t.upstream.respond(200, {**HOUR, "etag": '"a"'}, "x")
        assert (await get(t)).text == "x"


# -- validation: sections 4.3.1, 4.3.3, 4.3.4


async def test_a_stale_response_is_validated_and_freshened(clock: Clock) -> None:
    async with FilterTest(FILE) as t:
        modified = clock.date(-1000)
        head = {"cache-control": "max-age=60", "etag": '"a"', "last-modified": modified, "x-old": "1", "x-both": "1"}
        t.upstream.respond(200, {**head, "content-type": "text/css"}, "body")
        await get(t)
        clock.now += 61
        t.upstream.respond(304, {"cache-control": "max-age=100", "etag": '"a"', "x-both": "2", "x-new": "2"})
        response = await get(t)
        asked = t.upstream.requests[1]
        assert (asked.header("if-none-match"), asked.header("if-modified-since")) == ('"a"', modified)
        assert (response.status, response.text) == (200, "body")
        assert status_of(response) == "fwd=stale; fwd-status=304"
        assert response.header("age") is None  # section 5.1: the origin has just validated it
        clock.now += 99
        hit = await get(t)
        assert (was_hit(hit), hit.header("age"), hit.text) == (True, "99", "body")
        assert [hit.header(name) for name in ("x-old", "x-both", "x-new")] == ["1", "2", "2"]  # section 3.2
        assert (hit.header("content-type"), hit.header("date")) == ("text/css", clock.date(-99))
        assert t.stats()["revalidated"] == 1


async def test_a_validation_that_brings_another_response(clock: Clock) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60", "etag": '"a"'}, "old")
        await get(t)
        clock.now += 61
        t.upstream.respond(200, {"cache-control": "max-age=60", "etag": '"b"'}, "new")
        assert (await get(t)).text == "new"
        assert ((await get(t)).text, len(t.upstream.requests)) == ("new", 2)


async def test_a_validation_that_brings_what_must_not_be_stored(clock: Clock) -> None:
    """Section 4.3.3: the full response says that what is stored is not suitable any more."""
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60", "etag": '"a"'}, "old")
        await get(t)
        clock.now += 61
        t.upstream.respond(200, {"cache-control": "no-store"}, "new")
        assert (await get(t)).text == "new"
        assert (await get(t, cache_control="max-stale")).text == "new"


async def test_the_conditions_of_a_client_are_judged_after_the_validation(clock: Clock) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60", "etag": '"b"'}, "body")
        await get(t)
        clock.now += 61
        t.upstream.respond(304, {"cache-control": "max-age=0"})
        responses = [await get(t, if_none_match=tag) for tag in ('"a"', '"b"')]
        assert [(response.status, response.text) for response in responses] == [(200, "body"), (304, "")]
        assert [request.header("if-none-match") for request in t.upstream.requests[1:]] == ['"b"', '"b"']


async def test_a_304_about_something_else_freshens_nothing(clock: Clock) -> None:
    """Section 4.3.4: its strong validator is not that of what is stored."""
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60", "etag": '"a"'}, "body")
        await get(t)
        clock.now += 61
        t.upstream.respond(304, {"cache-control": "max-age=100", "etag": '"b"'})
        await get(t)
        t.upstream.respond(200, {}, "new")
        assert (await get(t)).text == "new"


async def test_no_cache_is_validated_each_time(clock: Clock) -> None:
    """Section 5.2.2.4."""
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": "no-cache", "etag": '"a"'}, "body")
        await get(t)
        t.upstream.respond(304, {"cache-control": "no-cache", "etag": '"a"'})
        for _ in range(2):
            assert (await get(t)).text == "body"
        assert len(t.upstream.requests) == 3


# -- stale responses: RFC 5861


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("body", ["", "broken", ["bro", "ken"]])
@pytest.mark.parametrize("validator", [{"etag": '"a"'}, {}])
async def test_stale_if_error(clock: Clock, status: int, body: Any, validator: dict[str, str]) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60, stale-if-error=100", **validator}, "body")
        await get(t)
        t.upstream.respond(status, {"x-broken": "1"}, body)
        clock.now += 159
        stale = await get(t)
        assert (stale.status, stale.text, stale.header("age"), stale.header("x-broken")) == (200, "body", "159", None)
        assert status_of(stale) == f"fwd=stale; fwd-status={status}"
        clock.now += 1
        assert (await get(t)).status == status


async def test_stale_if_no_answer_comes(clock: Clock) -> None:
    async with FilterTest(FILE, {"stale_if_error": "100s"}) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60", "etag": '"a"'}, "body")
        await get(t)
        t.upstream.handler = mock.Mock(side_effect=ConnectionError)
        clock.now += 61
        stale = await get(t)
        assert (stale.status, stale.text, status_of(stale)) == (200, "body", "fwd=stale; fwd-status=503")
        clock.now += 100
        assert (await get(t)).status == 503


async def test_those_who_waited_for_an_error_have_the_stale_one_too(clock: Clock) -> None:
    async with FilterTest(FILE, {"stale_if_error": "100s"}) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60", "etag": '"a"'}, "body")
        await get(t)
        clock.now += 61
        gate = t.upstream.handler = Gate(Answer(503, {}, "broken"))
        waiting = [asyncio.create_task(get(t)) for _ in range(3)]
        await until_asked(t, 2)
        await settle()
        gate.open.set()
        assert [(await task).text for task in waiting] == ["body"] * 3
        assert len(t.upstream.requests) == 2


@pytest.mark.parametrize("strict", ["must-revalidate", "proxy-revalidate", "s-maxage=60", "no-cache"])
async def test_an_error_is_passed_on_where_it_must_not_be_stale(clock: Clock, strict: str) -> None:
    async with FilterTest(FILE, {"stale_if_error": "100s"}) as t:
        t.upstream.respond(200, {"cache-control": f"max-age=60, {strict}", "etag": '"a"'}, "body")
        await get(t)
        t.upstream.respond(503)
        clock.now += 61
        assert (await get(t, cache_control="stale-if-error=100")).status == 503


async def test_stale_while_revalidate(clock: Clock) -> None:
    async with FilterTest(FILE) as t:
        control = {"cache-control": "max-age=60, stale-while-revalidate=30"}
        t.upstream.respond(200, {**control, "etag": '"a"'}, "old")
        await get(t)
        clock.now += 70
        asked = asyncio.Event()

        async def handler(request: Request) -> Answer:
            await asked.wait()
            return Answer(200, control, "new")

        t.upstream.handler = handler
        for _ in range(2):
            stale = await get(t, x_user="ann")
            assert (stale.text, stale.header("age"), status_of(stale)) == ("old", "70", "hit; ttl=-10")
        asked.set()
        while t.stats().get("refreshed") is None:
            await asyncio.sleep(0)
        assert ((await get(t)).text, len(t.upstream.requests)) == ("new", 2)
        assert [t.upstream.requests[1].header(name) for name in ("if-none-match", "x-user")] == ['"a"', "ann"]
        clock.now += 91
        await get(t)
        assert len(t.upstream.requests) == 3


async def test_a_304_in_the_background(clock: Clock) -> None:
    async with FilterTest(FILE, {"stale_while_revalidate": "30s"}) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60", "etag": '"a"'}, "old")
        await get(t)
        clock.now += 70
        t.upstream.respond(304, {"cache-control": "max-age=60"})
        await get(t)
        while t.stats().get("refreshed") is None:
            await asyncio.sleep(0)
        assert status_of(await get(t)) == "hit; ttl=60"


# -- invalidation: section 4.4


@pytest.mark.parametrize(
    ("method", "status", "left"),
    [
        ("POST", 200, False),
        ("DELETE", 303, False),
        ("PROPFIND", 200, False),  # a method that is not known to be safe
        ("POST", 404, True),
        ("OPTIONS", 200, True),
    ],
)
async def test_a_change_invalidates(method: str, status: int, left: bool) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, HOUR, "x")
        await get(t)
        t.upstream.respond(status)
        await t.request(method, "/", body="1")
        t.upstream.respond(200, HOUR, "x")
        assert was_hit(await get(t)) == left


async def test_a_change_invalidates_what_it_names_at_its_origin() -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, HOUR, "x")
        for path in ("/a/b", "/a/c?d=1", "/e"):
            await get(t, path)
        await get(t, "/e", host="other.test")
        t.upstream.respond(201, {"location": "c?d=1", "content-location": "http://other.test/e"})
        await t.request("POST", "/a/b", body="1")
        assert t.stats()["invalidated"] == 2
        t.upstream.respond(200, HOUR, "x")
        hits = [was_hit(await get(t, path)) for path in ("/a/b", "/a/c?d=1", "/e")]
        assert (hits, was_hit(await get(t, "/e", host="other.test"))) == ([False, False, True], True)


# -- what is not complete, and what is too large


class Gate:
    """An upstream that answers when it is told to."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.open = asyncio.Event()

    async def __call__(self, request: Request) -> Answer:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await self.open.wait()
        return answer


async def until_asked(t: FilterTest, times: int) -> None:
    while len(t.upstream.requests) < times:
        await asyncio.sleep(0)


async def settle() -> None:
    """Let requests that were sent in memory arrive where they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_interrupted_response_is_not_stored() -> None:
    """Section 3.3."""
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {**HOUR, "content-length": "10"}, "half")
        exchange = t.open("GET", "/")
        while not exchange.received.endswith(b"half"):
            await exchange.until_received(len(exchange.received) + 1)
        exchange.close()
        await settle()
        t.upstream.respond(200, HOUR, "whole")
        assert (await get(t)).text == "whole"


@pytest.mark.parametrize("body", ["x" * 101, ["x" * 50, "x" * 51]])
async def test_what_is_too_large_passes(body: Any) -> None:
    async with FilterTest(FILE, {"max_object_bytes": 100}) as t:
        t.upstream.respond(200, HOUR, body)
        for _ in range(2):
            response = await get(t)
            assert (len(response.body), was_hit(response)) == (101, False)


async def test_the_one_that_was_not_used_for_longest_goes_first() -> None:
    async with FilterTest(FILE, {"max_bytes": 5000, "max_object_bytes": 2000}) as t:
        t.upstream.respond(200, HOUR, "x" * 1000)
        for path in ("/1", "/2", "/1", "/3"):
            await get(t, path)
        assert t.stats()["evicted"] == 1
        assert [was_hit(await get(t, path)) for path in ("/1", "/3", "/2")] == [True, True, False]


# -- coalescing: section 4


async def test_concurrent_misses_are_one_request() -> None:
    async with FilterTest(FILE) as t:
        gate = t.upstream.handler = Gate(Answer(200, HOUR, "x"))
        waiting = [asyncio.create_task(get(t)) for _ in range(5)]
        await until_asked(t, 1)
        await settle()
        gate.open.set()
        responses = await asyncio.gather(*waiting)
        assert [response.text for response in responses] == ["x"] * 5
        assert len(t.upstream.requests) == 1
        assert sorted(status_of(response) or "" for response in responses) == [
            *["fwd=uri-miss; collapsed"] * 4,  # RFC 9211 section 2.6
            "fwd=uri-miss; stored",
        ]
        assert [t.stats()[name] for name in ("misses", "coalesced")] == [1, 4]


async def test_a_validation_is_one_request_too(clock: Clock) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": "max-age=60", "etag": '"a"'}, "x")
        await get(t)
        clock.now += 61
        gate = t.upstream.handler = Gate(Answer(304, {"cache-control": "max-age=60"}))
        waiting = [asyncio.create_task(get(t)) for _ in range(3)]
        await until_asked(t, 2)
        await settle()
        gate.open.set()
        assert [(await task).text for task in waiting] == ["x"] * 3
        assert len(t.upstream.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [Answer(200, {"cache-control": "private"}, "x"), Answer(503, {}, "x"), Answer(200, {**HOUR, "vary": "*"}, "x")],
)
async def test_those_who_waited_for_what_is_not_stored_go_on_alone(answer: Answer) -> None:
    async with FilterTest(FILE) as t:
        gate = t.upstream.handler = Gate(answer)
        waiting = [asyncio.create_task(get(t)) for _ in range(3)]
        await until_asked(t, 1)
        await settle()
        assert len(t.upstream.requests) == 1
        gate.open.set()
        assert [(await task).text for task in waiting] == ["x"] * 3
        assert len(t.upstream.requests) == 3


async def test_nobody_waits_again_for_what_was_not_stored() -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(200, {"cache-control": "private"}, "x")
        await get(t)
        gate = t.upstream.handler = Gate(Answer(200, {}, "x"))
        waiting = [asyncio.create_task(get(t)) for _ in range(3)]
        await until_asked(t, 4)
        gate.open.set()
        await asyncio.gather(*waiting)


async def test_another_takes_the_place_of_one_that_left() -> None:
    async with FilterTest(FILE) as t:
        gate = t.upstream.handler = Gate(Answer(200, HOUR, "x"))
        first = t.open("GET", "/")
        await until_asked(t, 1)
        waiting = [asyncio.create_task(get(t)) for _ in range(3)]
        await settle()
        first.close()
        await until_asked(t, 2)
        gate.open.set()
        assert [(await task).text for task in waiting] == ["x"] * 3
        assert len(t.upstream.requests) == 2


async def test_nobody_waits_for_ever() -> None:
    async with FilterTest(FILE, {"coalesce_wait": "0.01s"}) as t:
        gate = t.upstream.handler = Gate(Answer(200, HOUR, "x"))
        waiting = [asyncio.create_task(get(t)) for _ in range(2)]
        await until_asked(t, 2)
        gate.open.set()
        assert [(await task).text for task in waiting] == ["x"] * 2
        assert t.stats()["coalesce_timeouts"] == 1


async def test_conditional_misses_do_not_wait() -> None:
    """Their 304 is of no use to one another."""
    async with FilterTest(FILE) as t:
        gate = t.upstream.handler = Gate(Answer(304))
        waiting = [asyncio.create_task(get(t, if_none_match='"a"')) for _ in range(3)]
        await until_asked(t, 3)
        gate.open.set()
        assert [(await task).status for task in waiting] == [304] * 3


async def test_variants_wait_for_their_own() -> None:
    async with FilterTest(FILE) as t:
        vary = {**HOUR, "vary": "accept"}
        gate = t.upstream.handler = Gate(Answer(200, vary, "a"), Answer(200, vary, "b"))
        waiting = [asyncio.create_task(get(t, accept=accept)) for accept in ("a", "b", "b", "a", "b")]
        await until_asked(t, 1)
        await settle()
        gate.open.set()
        assert [(await task).text for task in waiting] == ["a", "b", "b", "a", "b"]
        assert len(t.upstream.requests) == 2


async def test_requests_with_and_without_credentials_do_not_wait_for_one_another() -> None:
    async with FilterTest(FILE) as t:
        gate = t.upstream.handler = Gate(Answer(200, HOUR, "x"))
        waiting = [asyncio.create_task(get(t)), asyncio.create_task(get(t, authorization="a"))]
        await until_asked(t, 2)
        gate.open.set()
        await asyncio.gather(*waiting)


async def test_an_answer_that_was_overtaken_by_a_change_is_not_stored() -> None:
    async with FilterTest(FILE) as t:
        gate = Gate(Answer(200, HOUR, "old"))
        t.upstream.handler = lambda request: Answer(204) if request.method == "PUT" else gate(request)
        reading = asyncio.create_task(get(t))
        await until_asked(t, 1)
        await t.request("PUT", "/", body="new")
        gate.open.set()
        assert (await reading).text == "old"
        assert not was_hit(await get(t))


# -- the rest


async def test_a_response_without_a_body_is_stored(clock: Clock) -> None:
    async with FilterTest(FILE) as t:
        t.upstream.respond(204, HOUR)
        assert [status_of(await get(t)) for _ in range(2)] == ["fwd=uri-miss; stored", "hit; ttl=3600"]


async def test_without_cache_status() -> None:
    async with FilterTest(FILE, {"cache_status": ""}) as t:
        t.upstream.respond(200, HOUR, "x")
        assert [(await get(t)).header("cache-status") for _ in range(2)] == [None, None]


async def test_cache_status_is_added_to_that_of_other_caches(clock: Clock) -> None:
    """RFC 9211 section 2: the cache that is nearest to the client comes last."""
    async with FilterTest(FILE, {"cache_status": "edge"}) as t:
        t.upstream.respond(200, {**HOUR, "cache-status": "origin; hit"}, "x")
        await get(t)
        assert (await get(t)).headers.get_all(b"cache-status") == [b"origin; hit", b"edge; hit; ttl=3600"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"max_object_bytes": 0}, "max_object_bytes: above 0"),
        ({"max_bytes": 10}, "max_object_bytes: above 0, and at most max_bytes"),
        ({"cache_status": "a b"}, "cache_status: a token"),
        ({"heuristic_max": 3}, "heuristic_max"),
    ],
)
async def test_configurations_that_are_refused(fields: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error):
        await FilterTest(FILE, fields).start()


@given(st.binary(max_size=40))
def test_any_cache_control_can_be_read(value: bytes) -> None:
    headers = HeaderMap([(b"cache-control", value), (b"date", value)])
    for name, argument in CACHE.directives(headers).items():
        assert name == name.lower()
        assert 0 <= CACHE.seconds(argument) <= 1 << 31
    CACHE.http_date(value)


@pytest.mark.parametrize(
    "text", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_the_forms_of_dates(text: str) -> None:
    """RFC 9110 section 5.6.7."""
    assert CACHE.http_date(text.encode()) == 784111777
