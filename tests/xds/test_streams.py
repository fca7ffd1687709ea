"""Streams by script: what goes over the wire, and what becomes of a control plane that behaves badly."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import grpc
import pytest
from envoy.config.core.v3.config_source_pb2 import ConfigSource
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from meshproxy.clock import monotonic, move_ahead
from meshproxy.config.config_source import ADS
from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, SECRET_TYPE
from meshproxy.version import __version__
from tests.support.control_plane import ControlPlane, ControlPlaneStream, resource
from tests.upstream.harness import turns, until
from tests.xds.harness import NODE, Client, api, assignment, client, cluster, envoy_grpc, key_of, listener

REQUIRED = "at least one is required"
FORMS = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


def send(stream: ControlPlaneStream, type_url: str, *messages: Any, version: str = "1", nonce: str = "n1") -> None:
    """Clusters or assignments, in the stream's own form."""
    if stream.is_delta:
        names = [getattr(each, "cluster_name", "") or each.name for each in messages]
        made = [resource(name, each, version) for name, each in zip(names, messages, strict=True)]
        stream.send_delta(type_url, made, nonce=nonce)
    else:
        stream.send(type_url, messages, version, nonce)


async def clusters_stream(c: Client) -> ControlPlaneStream:
    """The stream of a client that asks for all clusters, whose first request has been read."""
    c.xds.subscribe(ADS, CLUSTER_TYPE, "*")
    c.xds.start()
    stream = await c.plane.stream()
    await stream.expect(CLUSTER_TYPE)
    return stream


# -- answers


@FORMS
async def test_one_bad_resource_is_refused_alone(delta: bool) -> None:
    async with client(api(delta=delta), script=True) as c:
        stream = await clusters_stream(c)
        send(stream, CLUSTER_TYPE, cluster("a"), cluster("b"), version="1", nonce="n1")
        assert (await stream.expect(CLUSTER_TYPE)).response_nonce == "n1"
        c.sink.refuse = {"a": "lb_policy: not supported"}
        send(stream, CLUSTER_TYPE, cluster("a", "new"), cluster("b", "new"), cluster(""), version="2", nonce="n2")
        nack = await stream.expect(CLUSTER_TYPE)
        assert nack.response_nonce == "n2"
        assert nack.error_detail.message == "resources[2]: has no name\na: lb_policy: not supported"
        held = c.sink.held[CLUSTER_TYPE]
        assert (held["a"].alt_stat_name, held["b"].alt_stat_name) == ("", "new")
        assert [each.name for each in c.sink.own] == ["resources[2]"]
        c.sink.refuse = {}
        send(stream, CLUSTER_TYPE, cluster("a", "new"), cluster("b", "new"), version="3", nonce="n3")
        ack = await stream.expect(CLUSTER_TYPE)
        assert not ack.HasField("error_detail")
        assert c.sink.held[CLUSTER_TYPE]["a"].alt_stat_name == "new"


@FORMS
async def test_a_sink_that_raises_is_a_nack(delta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client(api(delta=delta), script=True) as c:
        stream = await clusters_stream(c)
        apply = c.sink.apply

        async def fail(*_: Any) -> Any:
            raise ValueError("oh")

        monkeypatch.setattr(c.sink, "apply", fail)
        send(stream, CLUSTER_TYPE, cluster("a"))
        assert (await stream.expect(CLUSTER_TYPE)).error_detail.message == "a: internal error: ValueError('oh')"
        monkeypatch.setattr(c.sink, "apply", apply)
        send(stream, CLUSTER_TYPE, cluster("a"), nonce="n2")
        assert not (await stream.expect(CLUSTER_TYPE)).HasField("error_detail")


@FORMS
async def test_what_could_not_be_removed_is_held_still(delta: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client(api(delta=delta), script=True) as c:
        stream = await clusters_stream(c)
        send(stream, CLUSTER_TYPE, cluster("a"))
        await stream.expect(CLUSTER_TYPE)
        apply = c.sink.apply

        async def fail(*_: Any) -> Any:
            raise ValueError("oh")

        def remove(nonce: str) -> None:
            if delta:
                stream.send_delta(CLUSTER_TYPE, [], ["a"], nonce=nonce)
            else:
                stream.send(CLUSTER_TYPE, [], "2", nonce)

        monkeypatch.setattr(c.sink, "apply", fail)
        remove("n2")
        assert (await stream.expect(CLUSTER_TYPE)).error_detail.message == "a: internal error: ValueError('oh')"
        monkeypatch.setattr(c.sink, "apply", apply)
        remove("n3")
        assert not (await stream.expect(CLUSTER_TYPE)).HasField("error_detail")
        assert c.sink.log[-1][2] == ["a"]


@pytest.mark.parametrize(
    ("fields", "always"),
    [
        ({}, True),
        ({"set_node_on_first_message_only": True}, False),
        ({"api_type": "DELTA_GRPC"}, True),
        ({"api_type": "DELTA_GRPC", "set_node_on_first_message_only": True}, False),
    ],
)
async def test_the_node_is_in_the_first_request_or_in_all(fields: dict[str, Any], always: bool) -> None:
    async with client(api(**fields), script=True) as c:
        c.xds.subscribe(ADS, CLUSTER_TYPE, "*")
        c.xds.subscribe(ADS, LISTENER_TYPE, "*")
        c.xds.start()
        stream = await c.plane.stream()
        node = (await stream.expect(CLUSTER_TYPE)).node
        assert (node.id, node.cluster, node.user_agent_name) == (NODE.id, NODE.cluster, "meshproxy")
        assert node.user_agent_version == __version__
        assert (await stream.expect(LISTENER_TYPE)).HasField("node") == always
        stream.cut()
        stream = await c.plane.stream()
        assert (await stream.expect(CLUSTER_TYPE)).node == node
        assert (await stream.expect(LISTENER_TYPE)).HasField("node") == always


async def test_the_first_requests_have_an_order() -> None:
    async with client(api(), script=True) as c:
        for type_url, name in ((LISTENER_TYPE, "*"), (ENDPOINT_TYPE, "e"), (SECRET_TYPE, "s"), (CLUSTER_TYPE, "*")):
            c.xds.subscribe(ADS, type_url, name)
        c.xds.start()
        stream = await c.plane.stream()
        for type_url in (CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, SECRET_TYPE):
            await stream.expect(type_url)
        assert stream.unexpected == []


@FORMS
async def test_names_that_come_up_while_clusters_are_applied_go_out_together(delta: bool) -> None:
    async with client(api(delta=delta), script=True) as c:
        stream = await clusters_stream(c)
        c.sink.gate, c.sink.gated = asyncio.Event(), CLUSTER_TYPE
        send(stream, CLUSTER_TYPE, cluster("a"))
        await until(lambda: c.sink.log)
        for name in ("e1", "e2", "e3"):
            c.xds.subscribe(ADS, ENDPOINT_TYPE, name)
            await turns()
        request = await stream.expect(ENDPOINT_TYPE)  # which the clusters may wait for
        names = request.resource_names_subscribe if delta else request.resource_names
        assert list(names) == ["e1", "e2", "e3"]
        c.sink.gate.set()
        assert (await stream.expect(CLUSTER_TYPE)).response_nonce == "n1"


# -- types beside one another


@FORMS
async def test_one_type_does_not_wait_for_another(delta: bool) -> None:
    async with client(api(delta=delta), script=True) as c:
        c.sink.gate, c.sink.gated = asyncio.Event(), LISTENER_TYPE
        c.xds.subscribe(ADS, LISTENER_TYPE, "*")
        c.xds.subscribe(ADS, ENDPOINT_TYPE, "e")
        c.xds.start()
        stream = await c.plane.stream()
        await stream.expect(ENDPOINT_TYPE)
        await stream.expect(LISTENER_TYPE)
        send(stream, LISTENER_TYPE, listener("l"))
        send(stream, ENDPOINT_TYPE, assignment("e"), nonce="e1")
        assert (await stream.expect(ENDPOINT_TYPE)).response_nonce == "e1"
        assert stream.unexpected == []
        c.sink.gate.set()
        assert (await stream.expect(LISTENER_TYPE)).response_nonce == "n1"


async def test_of_a_flood_of_states_of_the_world_the_last_is_applied() -> None:
    async with client(api(), script=True) as c:
        c.xds.subscribe(ADS, ENDPOINT_TYPE, "e")
        stream = await clusters_stream(c)
        await stream.expect(ENDPOINT_TYPE)
        c.sink.gate, c.sink.gated = asyncio.Event(), CLUSTER_TYPE
        for number in range(200):
            send(stream, CLUSTER_TYPE, cluster(f"c{number}"), version=str(number), nonce=f"n{number}")
        send(stream, ENDPOINT_TYPE, assignment("e"))
        await c.sink.holds(ENDPOINT_TYPE, "e")
        await stream.expect(ENDPOINT_TYPE)
        c.sink.gate.set()
        await c.sink.holds(CLUSTER_TYPE, "c199")
        assert [(await stream.expect(CLUSTER_TYPE)).response_nonce for _ in range(2)] == ["n0", "n199"]
        assert len([call for call in c.sink.log if call[0] == CLUSTER_TYPE]) == 2


async def test_heartbeats_do_not_take_the_place_of_what_waits() -> None:
    async with client(api(), script=True) as c:
        stream = await clusters_stream(c)
        c.sink.gate, c.sink.gated = asyncio.Event(), CLUSTER_TYPE
        send(stream, CLUSTER_TYPE, cluster("a"), nonce="n1")
        await until(lambda: c.sink.log)
        send(stream, CLUSTER_TYPE, cluster("a"), cluster("b"), nonce="n2")
        stream.send(CLUSTER_TYPE, [resource("a"), resource("b")], nonce="n3")
        await turns(50)
        c.sink.gate.set()
        assert [(await stream.expect(CLUSTER_TYPE)).response_nonce for _ in range(3)] == ["n1", "n2", "n3"]
        assert c.sink.names(CLUSTER_TYPE) == {"a", "b"}


async def test_a_flood_of_deltas_is_read_as_fast_as_it_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshproxy.xds.stream._MOST_QUEUED_BYTES", 100_000)
    async with client(api(delta=True), script=True) as c:
        stream = await clusters_stream(c)
        c.sink.gate, c.sink.gated = asyncio.Event(), CLUSTER_TYPE
        for number in range(100):
            send(stream, CLUSTER_TYPE, cluster(f"c{number}", "x" * 20_000), nonce=f"n{number}")
        await until(lambda: c.sink.log)
        feed = c.xds._ads._feeds[CLUSTER_TYPE]  # type: ignore[union-attr]
        await until(lambda: feed.queued_bytes > 100_000)
        await turns(200)
        assert feed.queued_bytes < 200_000
        c.sink.gate.set()
        for number in range(100):
            assert (await stream.expect(CLUSTER_TYPE)).response_nonce == f"n{number}"
        assert feed.queued_bytes == 0


async def test_a_type_nobody_asked_for_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    async with client(api(), script=True) as c:
        stream = await clusters_stream(c)
        for _ in range(3):
            send(stream, ENDPOINT_TYPE, assignment("e"))
        send(stream, "type.googleapis.com/no.Such", cluster("x"))
        send(stream, CLUSTER_TYPE, cluster("a"))
        assert (await stream.expect(CLUSTER_TYPE)).response_nonce == "n1"
        assert stream.unexpected == []
        assert c.world.counters("control_plane.")["unknown_type"] == 4
        assert len([each for each in caplog.records if "not asked for" in each.message]) == 2


# -- streams that end


@FORMS
async def test_a_stream_that_is_cut_is_opened_again_and_what_is_held_stays(delta: bool) -> None:
    async with client(api(delta=delta), script=True) as c:
        stream = await clusters_stream(c)
        send(stream, CLUSTER_TYPE, cluster("a"), cluster("b"), version="v1")
        await stream.expect(CLUSTER_TYPE)
        stream.cut()
        stream = await c.plane.stream()
        request = await stream.expect(CLUSTER_TYPE)
        assert request.response_nonce == ""
        if delta:
            assert dict(request.initial_resource_versions) == {"a": "v1", "b": "v1"}
        else:
            assert request.version_info == "v1"
        assert c.sink.names(CLUSTER_TYPE) == {"a", "b"}
        assert len(c.sink.log) == 1
        assert [type_url for type_url, _ in c.sink.failures] == [CLUSTER_TYPE]


@FORMS
async def test_a_response_that_outlives_its_stream_is_applied_and_not_answered(delta: bool) -> None:
    async with client(api(delta=delta), script=True) as c:
        stream = await clusters_stream(c)
        c.sink.gate, c.sink.gated = asyncio.Event(), CLUSTER_TYPE
        send(stream, CLUSTER_TYPE, cluster("a"))
        await until(lambda: c.sink.log)
        stream.cut()
        stream = await c.plane.stream()
        await stream.expect(CLUSTER_TYPE)
        c.sink.gate.set()
        await c.sink.holds(CLUSTER_TYPE, "a")
        send(stream, CLUSTER_TYPE, cluster("a"), nonce="again")
        assert (await stream.expect(CLUSTER_TYPE)).response_nonce == "again"
        assert stream.unexpected == []


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\x05ab"])
async def test_what_is_no_response_ends_the_stream(garbage: bytes) -> None:
    async with client(api(), script=True) as c:
        stream = await clusters_stream(c)
        send(stream, CLUSTER_TYPE, cluster("a"))
        await stream.expect(CLUSTER_TYPE)
        stream.send_raw(garbage)
        stream = await c.plane.stream()
        await stream.expect(CLUSTER_TYPE)
        assert c.sink.names(CLUSTER_TYPE) == {"a"}
        assert c.sink.failures == [(CLUSTER_TYPE, "INTERNAL: what the server sent is no DiscoveryResponse")]


async def test_a_bug_does_not_end_the_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    async with client(api(), script=True) as c:
        stream = await clusters_stream(c)
        monkeypatch.setattr("meshproxy.xds.feed.Feed.take", None)
        send(stream, CLUSTER_TYPE, cluster("a"))
        stream = await c.plane.stream()
        monkeypatch.undo()
        await stream.expect(CLUSTER_TYPE)
        send(stream, CLUSTER_TYPE, cluster("a"))
        await c.sink.holds(CLUSTER_TYPE, "a")
        assert c.sink.failures[0][1].startswith("internal error: TypeError")


@FORMS
async def test_a_stream_that_ends_while_many_answers_wait_is_opened_again(
    delta: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshproxy.xds.stream._MOST_QUEUED", 2)
    limits = {"max_tokens": 1, "fill_rate": 20}
    async with client(api(delta=delta, rate_limit_settings=limits), script=True) as c:
        c.xds.subscribe(ADS, ENDPOINT_TYPE, "e")
        c.xds.start()
        stream = await c.plane.stream()
        await stream.expect(ENDPOINT_TYPE)
        for number in range(20):
            send(stream, ENDPOINT_TYPE, assignment("e"), version=str(number), nonce=f"n{number}")
        stream.cut()
        stream = await c.plane.stream()
        await stream.expect(ENDPOINT_TYPE)


async def test_a_control_plane_that_goes_and_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with ControlPlane.start() as plane:
        port = plane.port
        async with client(api(), plane=plane) as c:
            plane.set(CLUSTER_TYPE, {"a": cluster("a")})
            c.xds.subscribe(ADS, CLUSTER_TYPE, "*")
            c.xds.start()
            await c.sink.holds(CLUSTER_TYPE, "a")
            assert c.world.counters("control_plane.") == {"connected_state": 1}
            assert [(each.connected, each.identifier) for each in c.xds.status()] == [(True, "test")]
            await plane.stop()
            await until(lambda: len(c.sink.failures) >= 5)
            assert c.sink.names(CLUSTER_TYPE) == {"a"}
            assert not c.xds.status()[0].connected
            plane.set(CLUSTER_TYPE, {"a": cluster("a"), "b": cluster("b")}, "2")
            await plane.listen(port=port)
            await c.sink.holds(CLUSTER_TYPE, "a", "b")
    said = [each.message for each in caplog.records if "control plane" in each.message]
    assert said[0] == said[2] == "connected to the control plane cluster 'c' (test)"
    assert said[1].startswith("lost the control plane cluster 'c', what it said last stays in force: ")
    assert len(said) == 3  # and nothing of the attempts in between


async def test_a_control_plane_that_is_not_there_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with ControlPlane.start() as plane:
        await plane.stop()
        async with client(api(), plane=plane) as c:
            c.xds.subscribe(ADS, CLUSTER_TYPE, "*")
            c.xds.start()
            await until(lambda: len(c.sink.failures) >= 5)
    said = [each.message for each in caplog.records if "control plane" in each.message]
    assert len(said) == 1
    assert said[0].startswith("cannot reach the control plane cluster 'c', trying on: UNAVAILABLE: ")


async def test_the_next_service_is_asked_when_one_cannot_be_reached() -> None:
    config = api(grpc_services=[envoy_grpc("gone"), envoy_grpc("c")])
    async with client(config) as c:
        c.plane.set(CLUSTER_TYPE, {"a": cluster("a")})
        c.xds.subscribe(ADS, CLUSTER_TYPE, "*")
        c.xds.start()
        await c.sink.holds(CLUSTER_TYPE, "a")
        assert c.xds.status()[0].target == "cluster 'c'"
        assert len(c.sink.failures) == 1


# -- lifetimes


@FORMS
async def test_a_resource_ends_with_its_time_to_live(delta: bool) -> None:
    async with client(api(delta=delta), script=True) as c:
        stream = await clusters_stream(c)
        made = [resource("a", cluster("a"), ttl_s=10), resource("b", cluster("b"), ttl_s=20)]
        if delta:
            stream.send_delta(CLUSTER_TYPE, made)
        else:
            stream.send(CLUSTER_TYPE, made)
        await stream.expect(CLUSTER_TYPE)
        pass_time(c, 8)
        beat = resource("a", ttl_s=10)
        if delta:
            stream.send_delta(CLUSTER_TYPE, [beat], nonce="n2")
        else:
            stream.send(CLUSTER_TYPE, [beat], nonce="n2")
        await stream.expect(CLUSTER_TYPE)
        pass_time(c, 8)
        await turns()
        assert c.sink.names(CLUSTER_TYPE) == {"a", "b"}
        pass_time(c, 5)
        await c.sink.holds(CLUSTER_TYPE)
        assert c.sink.log[1:] == [(CLUSTER_TYPE, [], ["a"], ""), (CLUSTER_TYPE, [], ["b"], "")]
        stream.cut()
        assert not getattr(await (await c.plane.stream()).expect(CLUSTER_TYPE), "initial_resource_versions", {})


@FORMS
async def test_a_time_to_live_that_ends_while_it_is_renewed(delta: bool) -> None:
    async with client(api(delta=delta), script=True) as c:
        stream = await clusters_stream(c)
        for nonce in ("n1", "n2"):
            made = [resource("a", cluster("a"), version=nonce, ttl_s=10)]
            if delta:
                stream.send_delta(CLUSTER_TYPE, made, nonce=nonce)
            else:
                stream.send(CLUSTER_TYPE, made, nonce, nonce)
            if nonce == "n1":
                await stream.expect(CLUSTER_TYPE)
                c.sink.gate, c.sink.gated = asyncio.Event(), CLUSTER_TYPE
        await until(lambda: len(c.sink.log) == 2)
        pass_time(c, 15)
        await turns()
        c.sink.gate.set()
        await stream.expect(CLUSTER_TYPE)
        await turns()
        assert c.sink.names(CLUSTER_TYPE) == {"a"}
        assert len(c.sink.log) == 2
        pass_time(c, 15)
        await c.sink.holds(CLUSTER_TYPE)


def pass_time(c: Client, seconds: float) -> None:
    """In steps, as it does."""
    for _ in range(4):
        move_ahead(seconds / 4)
        c.world.dispatcher.timers.advance(int(monotonic() * 1000))


# -- limits


async def test_requests_are_limited_where_that_is_asked_for() -> None:
    limits = {"max_tokens": 2, "fill_rate": 50}
    async with client(api(rate_limit_settings=limits), script=True) as c:
        stream = await clusters_stream(c)
        for count, name in enumerate(("e1", "e2", "e3"), 1):
            c.xds.subscribe(ADS, ENDPOINT_TYPE, name)
            assert len((await stream.expect(ENDPOINT_TYPE)).resource_names) == count
        counted = c.world.counters("control_plane.")
        assert counted["rate_limit_enforced"] >= 1
        assert "pending_requests" not in counted


# -- sources of their own


@FORMS
async def test_a_source_for_one_type_lasts_as_long_as_somebody_asks(delta: bool) -> None:
    key = key_of(api(delta=delta))
    async with client() as c:
        c.plane.set(ENDPOINT_TYPE, {name: assignment(name) for name in "abd"})
        c.xds.start()
        c.xds.subscribe(key, ENDPOINT_TYPE, "a")
        c.xds.subscribe(key, ENDPOINT_TYPE, "b")
        await c.sink.holds(ENDPOINT_TYPE, "a", "b")
        (stream,) = c.plane.streams
        service = "/envoy.service.endpoint.v3.EndpointDiscoveryService/"
        assert stream.method == service + ("DeltaEndpoints" if delta else "StreamEndpoints")
        assert c.world.counters("eds.") == {"control_plane.connected_state": 1}
        c.xds.unsubscribe(key, ENDPOINT_TYPE, "a")
        c.xds.unsubscribe(key, ENDPOINT_TYPE, "b")
        await c.plane.until(lambda: stream.over)
        assert c.world.counters("eds.") == {}
        assert c.xds.status() == []
        assert c.sink.failures == []


async def test_each_secret_has_a_stream_of_its_own() -> None:
    key = key_of(api())
    async with client(script=True) as c:
        c.xds.subscribe(key, SECRET_TYPE, "default")
        c.xds.subscribe(key, SECRET_TYPE, "ROOTCA")
        streams = [await c.plane.stream(), await c.plane.stream()]
        requests = [await stream.expect(SECRET_TYPE) for stream in streams]
        assert sorted(list(each.resource_names) for each in requests) == [["ROOTCA"], ["default"]]
        for stream, request in zip(streams, requests, strict=True):
            assert stream.method == "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
            stream.send(SECRET_TYPE, [Secret(name=request.resource_names[0])])
        await c.sink.holds(SECRET_TYPE, "default", "ROOTCA")
        assert c.world.counters("sds.default.control_plane.") == {"connected_state": 1}
        streams[0].cut(grpc.StatusCode.UNIMPLEMENTED)
        await until(lambda: c.sink.failures)
        assert c.sink.failures == [(SECRET_TYPE, "UNIMPLEMENTED: cut")]
        assert not streams[1].over
        assert stats_of_secrets(c) == {"sds.ROOTCA.control_plane.", "sds.default.control_plane."}
        for name in ("default", "ROOTCA"):
            c.xds.unsubscribe(key, SECRET_TYPE, name)
        await until(lambda: not stats_of_secrets(c))
        gc.collect()
        assert len(c.xds._sinks) == 0


def stats_of_secrets(c: Client) -> set[str]:
    return {prefix for prefix, _ in c.world.registry.scopes() if prefix.startswith("sds.")}


async def test_a_client_that_is_closed_opens_nothing() -> None:
    async with client(script=True) as c:
        await c.xds.close()
        c.xds.subscribe(key_of(api()), SECRET_TYPE, "default")
        c.xds.subscribe(ADS, CLUSTER_TYPE, "*")
        assert c.xds.status() == []
        assert c.sink.failures == []


async def test_sources_that_cannot_be_asked() -> None:
    async with client() as c:
        c.xds.subscribe(ADS, CLUSTER_TYPE, "*")
        c.xds.subscribe(key_of(api()), "type.googleapis.com/no.Such", "x")
        c.xds.subscribe(key_of(ConfigSource(api_config_source={}).api_config_source), CLUSTER_TYPE, "*")
        c.xds.unsubscribe(ADS, CLUSTER_TYPE, "*")
        where = "api_config_source"
        assert [reason for _, reason in c.sink.failures] == [
            "there is no ads_config",
            "api_config_source: there is no service for type.googleapis.com/no.Such",
            f"{where}.api_type: only GRPC and DELTA_GRPC are supported\n{where}.grpc_services: {REQUIRED}",
        ]


async def test_a_message_that_is_too_long_ends_the_stream() -> None:
    service = envoy_grpc()
    service["envoy_grpc"]["max_receive_message_length"] = 1000
    async with client(api(grpc_services=[service]), script=True) as c:
        stream = await clusters_stream(c)
        send(stream, CLUSTER_TYPE, cluster("a"))
        await c.sink.holds(CLUSTER_TYPE, "a")
        send(stream, CLUSTER_TYPE, cluster("b", "x" * 1000))
        stream = await c.plane.stream()
        await stream.expect(CLUSTER_TYPE)
        ((_, reason),) = c.sink.failures
        assert reason.startswith("RESOURCE_EXHAUSTED: ")
        assert c.sink.names(CLUSTER_TYPE) == {"a"}
