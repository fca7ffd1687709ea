"""Secrets that a filter in Python asks for by name."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest

from meshproxy import (
    CLOSE,
    CONTINUE,
    AcceptedSocket,
    DownstreamConnection,
    FilterContext,
    HeaderMap,
    HttpFilter,
    ListenerFilter,
    MissingSecretError,
    NetworkFilter,
    Stream,
)
from meshproxy.testing import ConfigError, FilterTest, ListenerFilterTest, NetworkFilterTest


class Sign(HttpFilter):
    """Says in a header who has sent the request on."""

    starts = 0

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        Sign.starts += 1

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        signature = hmac.new(self.context.secret("key"), headers[b":path"], hashlib.sha256)
        headers[b"x-signature"] = signature.hexdigest().encode()


class Ask(HttpFilter):
    """Tells which secrets there are, of one instance for all."""

    shared = True
    wanted: tuple[str, ...] = ("key",)

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> None:
        try:
            headers[b"x-secret"] = self.context.secret(*self.wanted)
        except MissingSecretError as error:
            headers[b"x-missing"] = str(error).encode()


def signature(key: bytes, path: bytes) -> str:
    return hmac.new(key, path, hashlib.sha256).hexdigest()


async def test_a_rotation_counts_from_the_next_request_on() -> None:
    """And the filter goes on running: nothing of it is loaded or begun anew."""
    Sign.starts = 0
    async with FilterTest(Sign, secrets={"key": b"one"}) as t:
        await t.request("GET", "/a")
        await t.rotate("key", b"two")
        await t.request("GET", "/b")
        signatures = [request.header("x-signature") for request in t.upstream.requests]
    assert signatures == [signature(b"one", b"/a"), signature(b"two", b"/b")]
    assert Sign.starts == 1


async def test_an_instance_that_is_shared_has_the_new_one_too() -> None:
    async with FilterTest(Ask, secrets={"key": b"one"}) as t:
        await t.request("GET", "/")
        await t.rotate("key", b"two")
        await t.request("GET", "/")
        assert [request.header("x-secret") for request in t.upstream.requests] == ["one", "two"]


async def test_a_request_that_needs_a_secret_does_not_go_on_without() -> None:
    async with FilterTest(Sign, secrets={"other": b"x"}) as t:
        assert (await t.request("GET", "/")).status == 500
        assert t.stats()["errors"] == 1
        assert t.upstream.requests == []


@pytest.mark.parametrize(
    ("wanted", "header", "value"),
    [
        (("one",), "x-secret", "abc"),
        (("several", "user"), "x-secret", "ann"),
        (("several", "nobody"), "x-missing", "the secret 'several' of filter Ask is not there (yet)"),
        (("several",), "x-missing", "the secret 'several' of filter Ask is not there (yet)"),
        (("nothing",), "x-missing", "the configuration of filter Ask names no secret 'nothing'"),
    ],
)
async def test_what_a_secret_holds(wanted: tuple[str, ...], header: str, value: str) -> None:
    Ask.wanted = wanted
    try:
        async with FilterTest(Ask, secrets={"one": b"abc", "several": {"user": b"ann", "password": b"x"}}) as t:
            await t.request("GET", "/")
            assert t.upstream.requests[0].header(header) == value
    finally:
        Ask.wanted = ("key",)


@pytest.mark.parametrize(
    ("named", "path", "reason"),
    [
        (["nobody"], "secrets[0].name", "no generic_secret of this name"),
        (["key", "key"], "secrets[1].name", "the name is used twice"),
    ],
)
async def test_secrets_that_cannot_be(named: list[str], path: str, reason: str) -> None:
    options: dict[str, Any] = {"secrets": [{"name": name} for name in named]}
    with pytest.raises(ConfigError) as refused:
        async with FilterTest(Sign, secrets={"key": b"x"}, options=options):
            pass
    assert refused.value.path == path
    assert reason in refused.value.reason


class Password(ListenerFilter):
    """Lets connections in whose first bytes are the secret."""

    max_read_bytes = 64

    def on_data(self, accepted: AcceptedSocket, data: bytes) -> int:
        return CONTINUE if hmac.compare_digest(data, self.context.secret("password")) else CLOSE


class Greet(NetworkFilter):
    """Begins what goes upstream with the secret."""

    def on_data(self, connection: DownstreamConnection, data: bytes, end: bool) -> bytes:
        return self.context.secret("password") + data


async def test_a_listener_filter_has_its_own() -> None:
    async with ListenerFilterTest(Password, secrets={"password": b"sesame"}) as t:
        await t.rotate("password", b"open")
        client = t.connect()
        client.send("open")
        server = await t.accept()
        assert await server.read(4) == b"open"
        client.end()
        server.end()
        await client.until_closed()


async def test_and_so_has_a_network_filter() -> None:
    async with NetworkFilterTest(Greet, secrets={"password": b"sesame "}) as t:
        client = t.connect()
        client.send("open")
        server = await t.accept()
        assert await server.read(11) == b"sesame open"
        client.end()
        server.end()
        await client.until_closed()
