"""Resolving names: with c-ares against a server of our own, and with the C library."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.net.dispatcher import Dispatcher
from meshproxy.net.dns_getaddrinfo import GetAddrInfoResolver
from meshproxy.net.resolver import (
    FAMILY_ALL,
    FAMILY_AUTO,
    FAMILY_V4_ONLY,
    FAMILY_V4_PREFERRED,
    FAMILY_V6_ONLY,
    Resolution,
    Resolver,
    Resolvers,
    ResolverSettings,
)
from tests.support.dns import AAAA, REFUSED, SERVFAIL, A, DnsServer, Record, Zone

DEADLINE_S = 20.0


@pytest.fixture
def dns() -> Iterator[DnsServer]:
    with DnsServer() as server:
        yield server


@pytest.fixture
async def dispatcher() -> AsyncIterator[Dispatcher]:
    made = Dispatcher(asyncio.get_running_loop())
    yield made
    await made.close()


class Asker:
    """A resolver that asks one server, and the answers."""

    def __init__(self, dispatcher: Dispatcher, dns: DnsServer, **fields: object) -> None:
        self.settings = ResolverSettings()
        self.settings.servers = (f"127.0.0.1:{dns.port}",)
        self.settings.no_default_search_domain = True
        for name, value in fields.items():
            setattr(self.settings, name, value)
        self.resolvers = Resolvers(dispatcher)
        self.resolver = self.resolvers.acquire(self.settings)

    async def ask(self, name: str, family: int = FAMILY_V4_ONLY) -> Resolution:
        return await resolve(self.resolver, name, family)

    def close(self) -> None:
        self.resolvers.release(self.settings)


@pytest.fixture
async def asker(dispatcher: Dispatcher, dns: DnsServer) -> AsyncIterator[Asker]:
    made = Asker(dispatcher, dns)
    yield made
    made.close()


@pytest.fixture
async def ask_with(dispatcher: Dispatcher, dns: DnsServer) -> AsyncIterator[Callable[..., Asker]]:
    """Makes askers with settings of their own."""
    made: list[Asker] = []

    def make(**fields: object) -> Asker:
        made.append(Asker(dispatcher, dns, **fields))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def resolve(resolver: Resolver, name: str, family: int) -> Resolution:
    answer: asyncio.Future[Resolution] = asyncio.get_running_loop().create_future()
    resolver.resolve(name, family, answer.set_result)
    assert not answer.done()  # in a later turn, whatever the name
    async with asyncio.timeout(DEADLINE_S):
        return await answer


def ips(resolution: Resolution) -> list[str]:
    return [address.ip for address in resolution.addresses]


async def test_addresses_with_their_ttls(dns: DnsServer, asker: Asker) -> None:
    dns.zones["name.test"] = Zone([Record("10.0.0.2", 7), Record("10.0.0.1", 9)])
    answer = await asker.ask("name.test")
    assert [(address.ip, address.ttl_s) for address in answer.addresses] == [("10.0.0.2", 7), ("10.0.0.1", 9)]
    assert answer.error == ""


async def test_an_alias_limits_the_ttl(dns: DnsServer, asker: Asker) -> None:
    dns.zones["alias.test"] = Zone([Record("name.test", 5)])
    dns.zones["name.test"] = Zone([Record("10.0.0.1", 60), Record("10.0.0.2", 3)])
    answer = await asker.ask("alias.test")
    assert [(address.ip, address.ttl_s) for address in answer.addresses] == [("10.0.0.1", 5), ("10.0.0.2", 3)]


@pytest.mark.parametrize(
    ("family", "both", "only_v4", "only_v6"),
    [
        (FAMILY_AUTO, ["::9"], ["10.0.0.1"], ["::9"]),
        (FAMILY_V4_ONLY, ["10.0.0.1"], ["10.0.0.1"], []),
        (FAMILY_V6_ONLY, ["::9"], [], ["::9"]),
        (FAMILY_V4_PREFERRED, ["10.0.0.1"], ["10.0.0.1"], ["::9"]),
        (FAMILY_ALL, ["10.0.0.1", "::9"], ["10.0.0.1"], ["::9"]),
    ],
)
async def test_families(
    dns: DnsServer, asker: Asker, family: int, both: list[str], only_v4: list[str], only_v6: list[str]
) -> None:
    dns.tell("both.test", "10.0.0.1", "::9")
    dns.tell("v4.test", "10.0.0.1")
    dns.tell("v6.test", "::9")
    assert sorted(ips(await asker.ask("both.test", family))) == both
    assert ips(await asker.ask("v4.test", family)) == only_v4
    assert ips(await asker.ask("v6.test", family)) == only_v6


@pytest.mark.parametrize("family", [FAMILY_AUTO, FAMILY_V4_ONLY, FAMILY_ALL])
async def test_a_name_that_does_not_exist_has_no_addresses(dns: DnsServer, asker: Asker, family: int) -> None:
    answer = await asker.ask("nowhere.test", family)
    assert (answer.addresses, answer.error) == ([], "")
    dns.tell("empty.test")
    answer = await asker.ask("empty.test", family)
    assert (answer.addresses, answer.error) == ([], "")


@pytest.mark.parametrize("code", [SERVFAIL, REFUSED])
async def test_a_server_that_cannot_answer_is_an_error(dns: DnsServer, asker: Asker, code: int) -> None:
    dns.zones["bad.test"] = Zone(code=code)
    answer = await asker.ask("bad.test", FAMILY_AUTO)
    assert answer.addresses == []
    assert answer.error
    assert dns.count("bad.test", AAAA) == dns.count("bad.test", A) == 4  # tries
    counts = asker.resolvers.counts
    assert (counts.resolve_total, counts.get_addr_failure, counts.pending_resolutions) == (2, 2, 0)
    assert counts.reinits == 1


@pytest.mark.parametrize("failing", [A, AAAA])
async def test_no_addresses_and_a_failure_is_an_error(dns: DnsServer, asker: Asker, failing: int) -> None:
    """Nobody knows whether the other family has any."""
    dns.zones["half.test"] = Zone(codes={failing: SERVFAIL})
    answer = await asker.ask("half.test", FAMILY_V4_PREFERRED)
    assert answer.addresses == []
    assert answer.error


async def test_addresses_of_one_family_are_enough(dns: DnsServer, asker: Asker) -> None:
    dns.zones["half.test"] = Zone([Record("10.0.0.1")], codes={AAAA: SERVFAIL})
    assert ips(await asker.ask("half.test", FAMILY_AUTO)) == ["10.0.0.1"]


async def test_a_server_that_says_nothing_is_an_error(dns: DnsServer, ask_with: Callable[..., Asker]) -> None:
    asker = ask_with(timeout_s=1, tries=1)
    dns.zones["mute.test"] = Zone(silent=True)
    answer = await asker.ask("mute.test")
    assert answer.addresses == []
    assert answer.error
    assert dns.count("mute.test") == 1
    assert asker.resolvers.counts.timeouts == 1


async def test_a_truncated_answer_is_asked_for_again_over_tcp(dns: DnsServer, asker: Asker) -> None:
    dns.zones["long.test"] = Zone([Record(f"10.0.1.{number}") for number in range(200)], truncated=True)
    assert len((await asker.ask("long.test")).addresses) == 200
    assert [asked.transport for asked in dns.questions] == ["udp", "tcp"]


async def test_tcp_alone(dns: DnsServer, ask_with: Callable[..., Asker]) -> None:
    dns.tell("name.test", "10.0.0.1")
    assert ips(await ask_with(use_tcp=True).ask("name.test")) == ["10.0.0.1"]
    assert [asked.transport for asked in dns.questions] == ["tcp"]


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_names_that_need_no_server(dns: DnsServer, asker: Asker, name: str) -> None:
    answer = await asker.ask(name)
    assert [(address.ip, address.ttl_s) for address in answer.addresses] == [("127.0.0.1", 0)]
    assert dns.questions == []


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".test", "ü" * 80, "-", "."])
async def test_names_that_cannot_be(asker: Asker, name: str) -> None:
    answer = await asker.ask(name)
    assert answer.addresses == []


async def test_a_cancelled_query_is_not_heard_of(dns: DnsServer, asker: Asker) -> None:
    dns.tell("name.test", "10.0.0.1")
    heard: list[Resolution] = []
    asker.resolver.resolve("name.test", FAMILY_V4_ONLY, heard.append).cancel()
    asker.resolver.resolve("localhost", FAMILY_V4_ONLY, heard.append).cancel()
    assert ips(await asker.ask("name.test")) == ["10.0.0.1"]
    assert heard == []


async def test_closing_ends_what_is_under_way(dispatcher: Dispatcher, dns: DnsServer) -> None:
    asker = Asker(dispatcher, dns)
    dns.zones["mute.test"] = Zone(silent=True)
    heard: list[Resolution] = []
    before = len(os.listdir("/proc/self/fd"))
    asker.resolver.resolve("mute.test", FAMILY_AUTO, heard.append)
    asker.resolver.resolve("localhost", FAMILY_V4_ONLY, heard.append)
    assert asker.resolvers.counts.pending_resolutions == 2
    asker.close()
    assert asker.resolvers.counts.pending_resolutions == 0
    async with asyncio.timeout(DEADLINE_S):
        while len(os.listdir("/proc/self/fd")) > before:  # c-ares closes its sockets in a thread of its own
            await asyncio.sleep(0.005)
    assert heard == []


async def test_the_same_settings_share_a_resolver(dispatcher: Dispatcher) -> None:
    resolvers = Resolvers(dispatcher)
    other = ResolverSettings()
    other.use_tcp = True
    first = resolvers.acquire(ResolverSettings())
    assert resolvers.acquire(ResolverSettings()) is first
    assert resolvers.acquire(other) is not first
    resolvers.release(ResolverSettings())
    assert resolvers.acquire(ResolverSettings()) is first
    resolvers.release(ResolverSettings())
    resolvers.release(ResolverSettings())
    resolvers.release(other)


async def test_a_port_is_used_for_so_many_queries(dns: DnsServer, ask_with: Callable[..., Asker]) -> None:
    asker = ask_with(udp_max_queries=1)
    dns.tell("name.test", "10.0.0.1")
    answers = await asyncio.gather(*[asker.ask("name.test") for _ in range(4)])
    assert [ips(answer) for answer in answers] == [["10.0.0.1"]] * 4
    assert len(dns.client_ports) == 4


async def test_nothing_is_cached(dns: DnsServer, asker: Asker) -> None:
    dns.tell("name.test", "10.0.0.1", ttl_s=3600)
    assert ips(await asker.ask("name.test")) == ["10.0.0.1"]
    dns.tell("name.test", "10.0.0.2")
    assert ips(await asker.ask("name.test")) == ["10.0.0.2"]


async def test_a_channel_is_renewed_in_time(dns: DnsServer, ask_with: Callable[..., Asker]) -> None:
    asker = ask_with(max_channel_ms=5.0, timeout_s=1, tries=1)
    dns.tell("name.test", "10.0.0.1")
    dns.zones["mute.test"] = Zone(silent=True)
    mute = asyncio.ensure_future(asker.ask("mute.test"))  # outlives its channel
    async with asyncio.timeout(DEADLINE_S):
        while len(dns.client_ports) < 3:
            assert ips(await asker.ask("name.test")) == ["10.0.0.1"]
            await asyncio.sleep(0.005)
    assert (await mute).error


async def test_servers_as_a_fallback_give_way_to_the_systems(dns: DnsServer, ask_with: Callable[..., Asker]) -> None:
    """Whatever the system's servers are: what needs none is resolved all the same."""
    asker = ask_with(servers_as_fallback=True)
    assert ips(await asker.ask("localhost")) == ["127.0.0.1"]


@pytest.mark.parametrize("family", [FAMILY_V4_ONLY, FAMILY_AUTO, FAMILY_ALL])
async def test_families_without_an_interface_are_filtered(
    dns: DnsServer, ask_with: Callable[..., Asker], monkeypatch: pytest.MonkeyPatch, family: int
) -> None:
    from meshproxy.net import dns_cares

    if dns_cares.__file__.endswith(".so"):
        pytest.skip("a compiled module's imports cannot be replaced")
    monkeypatch.setattr(dns_cares, "routable_families", tuple)
    dns.tell("name.test", "10.0.0.1", "::9")
    assert (await ask_with(filter_unroutable_families=True).ask("name.test", family)).addresses == []


_FLAGS = st.sampled_from([0x8180, 0x8580, 0x8181, 0x0180])
_COUNTS = st.lists(st.integers(0, 3), min_size=4, max_size=4)
_QUESTION = b"\x03odd\x04test\x00\x00\x01\x00\x01"
MESSAGES = st.one_of(
    st.binary(max_size=80),
    st.tuples(_FLAGS, _COUNTS, st.binary(max_size=120)).map(lambda parts: _message(*parts)),
    st.tuples(_FLAGS, _COUNTS, st.binary(max_size=120).map(_QUESTION.__add__)).map(lambda parts: _message(*parts)),
)


def _message(flags: int, counts: list[int], rest: bytes) -> bytes:
    return b"".join(number.to_bytes(2, "big") for number in (flags, *counts)) + rest


@given(messages=st.lists(MESSAGES, min_size=20, max_size=40))
@settings(max_examples=3, deadline=None)
def test_malformed_answers_do_no_harm(messages: list[bytes]) -> None:
    """Any bytes with the query's id: the queries end, in whatever way, and the next one is served."""

    async def run() -> None:
        dispatcher = Dispatcher(asyncio.get_running_loop())
        left = itertools.cycle(messages)
        with DnsServer() as dns:
            dns.zones["odd.test"] = Zone(raw=lambda identifier: identifier.to_bytes(2, "big") + next(left))
            dns.tell("name.test", "10.0.0.1")
            asker = Asker(dispatcher, dns, timeout_s=1, tries=2)
            await asyncio.gather(*[asker.ask("odd.test") for _ in messages])
            assert ips(await asker.ask("name.test")) == ["10.0.0.1"]
            assert asker.resolvers.counts.pending_resolutions == 0
            asker.close()
        await dispatcher.close()

    asyncio.run(run())


# -- the C library


@pytest.mark.parametrize("family", [FAMILY_V4_ONLY, FAMILY_V4_PREFERRED])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_the_c_library(dispatcher: Dispatcher, name: str, family: int) -> None:
    answer = await resolve(GetAddrInfoResolver(dispatcher, ResolverSettings()), name, family)
    assert [(address.ip, address.ttl_s) for address in answer.addresses] == [("127.0.0.1", 60)]


async def test_the_c_library_asks_for_as_many_at_once_as_it_may(dispatcher: Dispatcher) -> None:
    limits = ResolverSettings()
    limits.threads = 2
    resolver = GetAddrInfoResolver(dispatcher, limits)
    answers = await asyncio.gather(*[resolve(resolver, "127.0.0.1", FAMILY_V4_ONLY) for _ in range(7)])
    assert [ips(answer) for answer in answers] == [["127.0.0.1"]] * 7


async def test_the_c_library_gives_up_after_its_retries(dispatcher: Dispatcher) -> None:
    """`.invalid` never exists (RFC 6761 section 6.4); where there is no server to ask, that is a temporary failure."""
    limits = ResolverSettings()
    limits.retries = 1
    answer = await resolve(GetAddrInfoResolver(dispatcher, limits), "nothing.invalid", FAMILY_ALL)
    assert answer.addresses == []


async def test_a_cancelled_query_of_the_c_library_is_not_heard_of(dispatcher: Dispatcher) -> None:
    resolver = GetAddrInfoResolver(dispatcher, ResolverSettings())
    heard: list[Resolution] = []
    queries = [resolver.resolve("127.0.0.1", FAMILY_V4_ONLY, heard.append) for _ in range(3)]
    for query in queries:
        query.cancel()
    assert ips(await resolve(resolver, "127.0.0.1", FAMILY_V4_ONLY)) == ["127.0.0.1"]
    assert heard == []
