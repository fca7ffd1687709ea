"""SDS as a server: its streams without I/O, then grpcio, the real Envoy and our proxy as clients over a Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.codec import grpc as codes
from meshproxy.config.subscription import CLUSTER_TYPE, SECRET_TYPE
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.rpc.server.call import RpcFailure, ServerCall
from meshproxy.rpc.server.server import RpcServer
from meshproxy.xds.secret_server import SecretStats, secret_handlers
from meshproxy.xds.secret_streams import MAX_NAMES, DeltaSecrets, SecretValue, StateOfTheWorldSecrets
from tests.support.mutual_tls import configuration, shown_by
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.tls.certificates import Issued, dns, issue, world

DEADLINE_S = 20.0
SERVICE = "/envoy.service.secret.v3.SecretDiscoveryService/"


class Store:
    """Secrets by name, for everybody; `open` refuses whoever comes with the metadata `token: bad`."""

    def __init__(self) -> None:
        self.values: dict[str, SecretValue] = {}
        self.wanted: list[frozenset[str]] = []
        self.opened = 0
        self._watchers: list[Callable[[], None]] = []

    async def open(self, call: ServerCall) -> Store:
        if "bad" in call.metadata.get("token", ()):
            raise RpcFailure(codes.UNAUTHENTICATED, "who are you?")
        self.opened += 1
        return self

    def want(self, names: frozenset[str]) -> None:
        self.wanted.append(names)

    def get(self, name: str) -> SecretValue | None:
        return self.values.get(name)

    def watch(self, on_change: Callable[[], None]) -> None:
        self._watchers.append(on_change)

    def close(self) -> None:
        self.opened -= 1

    def put(self, name: str, version: str, secret: Secret | None = None) -> None:
        data = (secret or Secret(name=name)).SerializeToString()
        self.values[name] = SecretValue(version, data)
        for watcher in self._watchers:
            watcher()


# -- without I/O


class Sotw:
    """A client by hand: `ask` and `refuse` give the names and the version of what comes next."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stream = StateOfTheWorldSecrets()
        self.nonce = ""

    def ask(self, *names: str, nonce: str | None = None, reason: str | None = None) -> list[str] | None:
        request = DiscoveryRequest(
            resource_names=names, type_url=SECRET_TYPE, response_nonce=self.nonce if nonce is None else nonce
        )
        if reason is not None:
            request.error_detail.message = reason
        self.stream.receive(request.SerializeToString())
        return self.next()

    def next(self) -> list[str] | None:
        sent = self.stream.next(self.store.get)
        if sent is None:
            return None
        response = DiscoveryResponse.FromString(sent)
        assert response.type_url == SECRET_TYPE
        self.nonce = response.nonce
        self.version = response.version_info
        return [Secret.FromString(each.value).name for each in response.resources]


@pytest.fixture
def store() -> Store:
    made = Store()
    for name in ("a", "b"):
        made.put(name, "1")
    return made


def test_what_is_asked_for_comes_and_its_changes_follow_the_answer(store: Store) -> None:
    client = Sotw(store)
    assert client.ask("a") == ["a"]
    assert client.version == "1"
    store.put("a", "2")
    assert client.next() is None  # the answer is still to come
    assert client.ask("a") == ["a"]
    assert client.version == "2"
    assert client.ask("a") is None
    assert (client.stream.taken, client.stream.refusals) == (2, 0)


def test_a_name_that_nobody_knows_waits(store: Store) -> None:
    client = Sotw(store)
    assert client.ask("c") is None
    store.put("b", "2")
    assert client.next() is None
    store.put("c", "1")
    assert client.next() == ["c"]


def test_what_is_there_does_not_wait_for_what_is_not(store: Store) -> None:
    client = Sotw(store)
    assert client.ask("a", "c") == ["a"]
    assert client.ask("a", "c") is None
    store.put("c", "1")
    assert client.next() == ["a", "c"]


def test_more_names_on_one_stream(store: Store) -> None:
    client = Sotw(store)
    assert client.ask("a") == ["a"]
    assert client.ask("a", "b") == ["a", "b"]
    assert client.ask("b") is None  # fewer: nothing that it does not have
    store.put("a", "2")
    assert client.next() is None
    assert client.ask("b", "a") == ["a", "b"]


def test_what_is_refused_is_not_sent_again_before_it_changes(store: Store) -> None:
    client = Sotw(store)
    assert client.ask("a") == ["a"]
    assert client.ask("a", reason="no good") is None
    assert (client.stream.refusals, client.stream.refusal) == (1, "no good")
    assert client.next() is None
    store.put("a", "2")
    assert client.next() == ["a"]
    assert client.ask("a") is None
    assert client.stream.taken == 1


def test_the_answer_to_an_older_response_is_passed_over(store: Store) -> None:
    client = Sotw(store)
    client.ask("a")
    old = client.nonce
    store.put("a", "2")
    client.ask("a")
    assert client.nonce != old
    store.put("a", "3")
    assert client.ask("b", nonce=old) is None
    assert client.stream.names == {"a"}
    assert client.ask("a") == ["a"]


@pytest.mark.parametrize("kind", [StateOfTheWorldSecrets, DeltaSecrets])
@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"type_url": CLUSTER_TYPE}, codes.INVALID_ARGUMENT),
        ({"names": [str(n) for n in range(MAX_NAMES + 1)]}, codes.RESOURCE_EXHAUSTED),
        ({"names": ["x" * 257]}, codes.RESOURCE_EXHAUSTED),
        (b"\xff\xff", codes.INVALID_ARGUMENT),
    ],
)
def test_a_request_that_nobody_may_make(kind: Any, request_: Any, status: int) -> None:
    if isinstance(request_, bytes):
        data = request_
    elif kind is DeltaSecrets:
        data = DeltaDiscoveryRequest(
            type_url=request_.get("type_url", ""), resource_names_subscribe=request_.get("names", [])
        ).SerializeToString()
    else:
        data = DiscoveryRequest(
            type_url=request_.get("type_url", ""), resource_names=request_.get("names", [])
        ).SerializeToString()
    with pytest.raises(RpcFailure) as error:
        kind().receive(data)
    assert error.value.status == status


def test_names_do_not_add_up_over_the_requests_of_a_delta_stream() -> None:
    stream = DeltaSecrets()
    stream.receive(DeltaDiscoveryRequest(resource_names_subscribe=[str(n) for n in range(90)]).SerializeToString())
    with pytest.raises(RpcFailure):
        stream.receive(DeltaDiscoveryRequest(resource_names_subscribe=[f"x{n}" for n in range(90)]).SerializeToString())


class Delta:
    """As `Sotw`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.stream = DeltaSecrets()
        self.nonce = ""
        self.removed: list[str] = []

    def ask(self, *names: str, reason: str | None = None, **fields: Any) -> list[str] | None:
        request = DeltaDiscoveryRequest(
            resource_names_subscribe=names, type_url=SECRET_TYPE, response_nonce=self.nonce, **fields
        )
        if reason is not None:
            request.error_detail.message = reason
        self.stream.receive(request.SerializeToString())
        return self.next()

    def next(self) -> list[str] | None:
        sent = self.stream.next(self.store.get)
        if sent is None:
            return None
        response = DeltaDiscoveryResponse.FromString(sent)
        self.nonce = response.nonce
        self.removed = list(response.removed_resources)
        assert [each.name for each in response.resources] == [
            Secret.FromString(each.resource.value).name for each in response.resources
        ]
        return [f"{each.name}={each.version}" for each in response.resources]


def test_delta_sends_what_changes(store: Store) -> None:
    client = Delta(store)
    assert client.ask("a", "b", "c") == ["a=1", "b=1"]
    store.put("a", "2")
    assert client.next() is None
    assert client.ask() == ["a=2"]
    assert client.ask(resource_names_unsubscribe=["b"]) is None
    store.put("b", "2")
    assert client.next() is None
    assert client.ask("b") == ["b=2"]
    del store.values["a"]
    assert client.ask() == []
    assert client.removed == ["a"]


def test_delta_sends_nothing_that_a_client_comes_back_with(store: Store) -> None:
    client = Delta(store)
    assert client.ask("a", "b", initial_resource_versions={"a": "1", "b": "0", "z": "9"}) == ["b=1"]


def test_delta_sends_what_is_refused_when_it_changes(store: Store) -> None:
    client = Delta(store)
    assert client.ask("a", "b") == ["a=1", "b=1"]
    assert client.ask(reason="no") is None
    store.put("b", "2")
    assert client.next() == ["b=2"]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(1, 3)),
        st.tuples(st.just("ask"), st.sets(st.sampled_from("abcd"), min_size=1), st.booleans()),
    ),
    max_size=30,
)


@given(STEPS)
def test_a_client_that_answers_has_in_the_end_what_there_is(steps: list[Any]) -> None:
    """Whatever happens: each response has news, and after the last ACK the newest version of all that is wanted is
    there."""
    store = Store()
    client = Sotw(store)
    has: dict[str, str] = {}
    names: set[str] = set()

    def take(found: list[str] | None) -> None:
        if found is not None:
            has.update({name: store.values[name].version for name in found})

    for kind, what, how in steps:
        if kind == "put":
            store.put(what, str(how))
            take(client.next())
        else:
            names = what
            take(client.ask(*sorted(what), reason="no" if how else None))
    for _ in range(3):
        take(client.ask(*sorted(names)))
    assert client.next() is None
    assert {name: has.get(name) for name in names if name in store.values} == {
        name: store.values[name].version for name in names if name in store.values
    }


# -- over a socket


@asynccontextmanager
async def serving(store: Store, folder: Path, *, delta: bool = False) -> AsyncIterator[tuple[str, SecretStats]]:
    dispatcher = Dispatcher(asyncio.get_running_loop())
    stats = SecretStats()
    server = RpcServer(dispatcher, secret_handlers(store, delta=delta, stats=stats))
    path = await server.listen_unix(str(folder / "sds"))
    try:
        async with asyncio.timeout(4 * DEADLINE_S):
            yield path, stats
    finally:
        await server.close(0.0)
        await dispatcher.close()


def stream(channel: Any, method: str, kind: Any, **options: Any) -> Any:
    return channel.stream_stream(
        SERVICE + method,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=kind.FromString,
    )(**options)


async def test_streams_of_one_name_and_of_several(store: Store, tmp_path: Path) -> None:
    async with serving(store, tmp_path) as (path, stats), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        calls = [stream(channel, "StreamSecrets", DiscoveryResponse) for _ in range(3)]
        for call, names in zip(calls, (["a"], ["b"], ["a", "b"]), strict=True):
            await call.write(DiscoveryRequest(resource_names=names))
            response = await call.read()
            assert [Secret.FromString(each.value).name for each in response.resources] == names
            await call.write(DiscoveryRequest(resource_names=names, response_nonce=response.nonce))
        assert stats.streams == 3
        await calls[1].done_writing()
        assert await calls[1].read() is grpc.aio.EOF
        store.put("a", "2")
        for call in (calls[0], calls[2]):
            response = await call.read()
            assert response.resources[0].type_url == SECRET_TYPE
        calls[0].cancel()
        calls[2].cancel()
        await until(lambda: stats.streams == 0 and store.opened == 0)


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not done():
            await asyncio.sleep(0)


async def test_a_refusal_is_counted_and_logged_as_one_line(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(store, tmp_path) as (path, stats), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = stream(channel, "StreamSecrets", DiscoveryResponse)
        await call.write(DiscoveryRequest(resource_names=["a"]))
        refusal = DiscoveryRequest(resource_names=["a"], response_nonce=(await call.read()).nonce)
        refusal.error_detail.message = "no\ngood"
        await call.write(refusal)
        await until(lambda: stats.refusals == 1)
        call.cancel()
    assert "'no\\ngood'" in caplog.text


@pytest.mark.parametrize("method", ["DeltaSecrets", "FetchSecrets"])
async def test_what_an_agent_of_istio_s_does_not_do_either(store: Store, tmp_path: Path, method: str) -> None:
    async with serving(store, tmp_path) as (path, _), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = stream(channel, method, DeltaDiscoveryResponse)
        assert await call.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_delta_where_it_is_wanted(store: Store, tmp_path: Path) -> None:
    async with (
        serving(store, tmp_path, delta=True) as (path, _),
        grpc.aio.insecure_channel(f"unix:{path}") as channel,
    ):
        call = stream(channel, "DeltaSecrets", DeltaDiscoveryResponse)
        await call.write(DeltaDiscoveryRequest(resource_names_subscribe=["a"]))
        assert [each.name for each in (await call.read()).resources] == ["a"]
        assert store.wanted == [{"a"}]
        call.cancel()


async def test_a_caller_that_may_have_nothing(store: Store, tmp_path: Path) -> None:
    async with serving(store, tmp_path) as (path, stats), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = stream(channel, "StreamSecrets", DiscoveryResponse, metadata=(("token", "bad"),))
        assert await call.code() == grpc.StatusCode.UNAUTHENTICATED
        await until(lambda: stats.streams == 0)
        assert store.opened == 0


async def test_a_request_that_nobody_may_make_ends_the_stream(store: Store, tmp_path: Path) -> None:
    async with serving(store, tmp_path) as (path, stats), grpc.aio.insecure_channel(f"unix:{path}") as channel:
        call = stream(channel, "StreamSecrets", DiscoveryResponse)
        await call.write(DiscoveryRequest(type_url=CLUSTER_TYPE))
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
        await until(lambda: stats.streams == 0 and store.opened == 0)


# -- proxies


def certificate(name: str, issued: Issued) -> Secret:
    made = Secret(name=name)
    made.tls_certificate.certificate_chain.inline_bytes = issued.pem
    made.tls_certificate.private_key.inline_bytes = issued.key_pem
    return made


def authority(name: str, issued: Issued) -> Secret:
    made = Secret(name=name)
    made.validation_context.trusted_ca.inline_bytes = issued.pem
    return made


@pytest.mark.parametrize("api_type", ["GRPC", "DELTA_GRPC"])
@pytest.mark.parametrize("start", [start_envoy, start_meshproxy], ids=["envoy", "meshproxy"])
async def test_a_proxy_takes_its_secrets_and_their_changes(
    start: Callable[[str], ProxyProcess], api_type: str, store: Store, tmp_path: Path
) -> None:
    first, second = (issue(name, world().ca, names=dns("a.test")) for name in ("first", "second"))
    store.put("default", "1", certificate("default", first))
    store.put("ROOTCA", "1", authority("ROOTCA", world().ca))
    async with serving(store, tmp_path, delta=api_type == "DELTA_GRPC") as (path, stats):
        proxy = await asyncio.to_thread(start, configuration(path, api_type))
        try:
            port = (await asyncio.to_thread(proxy.listener_ports))["in"]

            async def shown() -> bytes:
                return await asyncio.to_thread(shown_by, port, world().client, world().ca, tmp_path)

            assert await shown() == first.der
            store.put("default", "2", certificate("default", second))
            async with asyncio.timeout(DEADLINE_S):
                while await shown() != second.der:
                    pass
            store.put("default", "3", certificate("default", Issued(first.certificate, second.key)))
            await until(lambda: stats.refusals == 1)
            assert await shown() == second.der
        finally:
            await asyncio.to_thread(proxy.stop)
        await until(lambda: stats.streams == 0)
