"""What is said to a control plane: Envoy and meshproxy under the same script, their requests side by side."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.config.listener.v3.listener_pb2 import Listener
from google.protobuf.any_pb2 import Any as AnyMessage

from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE
from tests.integration.config import forward
from tests.integration.dynamic import ads_bootstrap, assignment, eds_cluster, rds_listener, route_configuration
from tests.support.control_plane import ControlPlane, ControlPlaneStream, resource
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy

TYPES = (CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE)
# A request, without what is another in every run: names, version, whether it answers, whether it refuses.
Said = tuple[Any, ...]
Start = Callable[[str], ProxyProcess]

# Keys of docs/envoy-differences.md that the tests below prove.
DIFFERENCES = {"xds-bad-resource", "xds-error-code", "xds-several-services", "xds-shared-stream", "xds-wrapped-name"}
FORMS = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


def prepare(plane: ControlPlane) -> None:
    """What there is from the beginning."""
    plane.set(ENDPOINT_TYPE, {name: assignment(name, [1]) for name in ("a", "b")}, "e1")
    plane.set(ROUTE_TYPE, {"routes": route_configuration("routes", forward("/", "a"))}, "r1")
    plane.set(CLUSTER_TYPE, {name: eds_cluster(name) for name in ("a", "b")}, "c1")
    plane.set(LISTENER_TYPE, {"l": rds_listener("l")}, "l1")


async def play(plane: ControlPlane) -> None:
    """One step after another, each when the client has answered the one before."""
    await answered(plane, CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, ROUTE_TYPE)
    for version in ("l2", "l3"):  # a listener without an address, twice
        plane.set(LISTENER_TYPE, {"l": rds_listener("l"), "bad": Listener(name="bad", stat_prefix=version)}, version)
        await answered(plane, LISTENER_TYPE)
    plane.set(LISTENER_TYPE, {"l": rds_listener("l")}, "l4")
    await answered(plane, LISTENER_TYPE)
    plane.set(ENDPOINT_TYPE, {"a": assignment("a", [2]), "b": assignment("b", [1])}, "e2")
    await answered(plane, ENDPOINT_TYPE)
    plane.set(CLUSTER_TYPE, {"a": eds_cluster("a")}, "c2")
    await answered(plane, CLUSTER_TYPE)
    await plane.until(lambda: "b" not in asked(plane, ENDPOINT_TYPE))
    plane.script()
    plane.streams[0].cut()
    await plane.until(lambda: len(plane.streams) > 1 and len(plane.streams[1].requests) >= len(TYPES))


async def answered(plane: ControlPlane, *types: str) -> None:
    """Wait until every response of these types that was sent has its answer."""
    for type_url in types:
        await plane.until(lambda: is_answered(plane, type_url))  # noqa: B023


def is_answered(plane: ControlPlane, type_url: str) -> bool:
    return plane.sent.get(type_url) in {each.response_nonce for each in plane.of_type(type_url)}


def asked(plane: ControlPlane, type_url: str) -> set[str]:
    """The names of a type that are asked for now."""
    names: set[str] = set()
    for each in plane.of_type(type_url):
        if hasattr(each, "resource_names"):
            names = set(each.resource_names)
        else:
            names = (names | set(each.resource_names_subscribe)) - set(each.resource_names_unsubscribe)
    return names


def in_words(request: Any) -> Said:
    answers, refuses = bool(request.response_nonce), request.HasField("error_detail")
    if hasattr(request, "resource_names"):
        return tuple(sorted(request.resource_names)), request.version_info, answers, refuses
    names = (request.resource_names_subscribe, request.resource_names_unsubscribe)
    versions = sorted(request.initial_resource_versions.items())
    return *(tuple(sorted(each)) for each in names), versions, answers, refuses


async def said_by(start: Start, delta: bool) -> dict[str, Any]:
    """What a proxy says of each type on both streams, and in which order the types come up."""
    async with ControlPlane.start() as plane:
        prepare(plane)
        proxy = await asyncio.to_thread(start, ads_bootstrap(plane.port, delta=delta))
        try:
            await play(plane)
        finally:
            await asyncio.to_thread(proxy.stop)
        first, second = plane.streams[:2]
        found: dict[str, Any] = {
            type_url: [
                [in_words(each) for each in stream.requests if each.type_url == type_url] for stream in (first, second)
            ]
            for type_url in TYPES
        }
        found["order"] = list(dict.fromkeys(each.type_url for each in second.requests))
        found["nodes"] = [sum(each.HasField("node") for each in stream.requests) for stream in (first, second)]
        return found


@FORMS
async def test_the_same_is_said(delta: bool) -> None:
    expected, ours = await said_by(start_envoy, delta), await said_by(start_meshproxy, delta)
    for key, said in expected.items():
        assert ours[key] == said, key


# -- where we differ


@asynccontextmanager
async def running(start: Start, config: str) -> AsyncIterator[ProxyProcess]:
    proxy = await asyncio.to_thread(start, config)
    try:
        yield proxy
    finally:
        await asyncio.to_thread(proxy.stop)


def static(name: str, **fields: Any) -> Cluster:
    made = Cluster(name=name, **fields)
    made.connect_timeout.seconds = 1
    return made


NO_KIND = Cluster.CustomClusterType(name="nope")
BAD = (
    ("garbage", [static("a"), AnyMessage(type_url=CLUSTER_TYPE, value=b"\xff"), static("b")]),
    ("type", [static("a"), ClusterLoadAssignment(cluster_name="x"), static("c")]),
    ("nameless", [static("a"), static(""), static("d")]),
    ("kind", [static("a"), static("x", cluster_type=NO_KIND), static("e")]),
    ("twice", [static("a"), static("f"), static("f", alt_stat_name="g")]),
    ("wrapped", [resource("g", static("h"), "1")]),
)
# After each response: whether it is refused, and which clusters there are.
ENVOYS = {
    "garbage": (True, set()),
    "type": (True, set()),
    "nameless": (True, set()),
    "kind": (True, {"a", "e"}),
    "twice": (True, {"a", "f"}),
    "wrapped": (False, {"h"}),
}
ENVOYS_DELTA = ENVOYS | {"twice": (True, {"a", "e"})}
OURS_DELTA = {
    "garbage": (True, {"a", "b"}),
    "type": (True, {"a", "c"}),
    "nameless": (True, {"a", "d"}),
    "kind": (True, {"a", "e"}),
    "twice": (True, {"a", "f"}),
    "wrapped": (True, set()),
}
# Nobody is taken to be absent while it cannot be told who is there.
OURS = OURS_DELTA | {"type": (True, {"a", "b", "c"}), "nameless": (True, {"a", "b", "c", "d"})}


def send(stream: ControlPlaneStream, messages: list[Any], nonce: str) -> None:
    """In the stream's form. Delta takes away what is not there any more."""
    if not stream.is_delta:
        stream.send(CLUSTER_TYPE, messages, nonce, nonce)
        return
    names = [getattr(each, "name", "") or "x" for each in messages]
    made = [each if nonce == "wrapped" else resource(name, each) for name, each in zip(names, messages, strict=True)]
    stream.send_delta(CLUSTER_TYPE, made, set("abcdef") - set(names), nonce=nonce)


async def outcomes(start: Start, delta: bool) -> tuple[dict[str, Any], set[int]]:
    """What becomes of each bad response, and the codes of the refusals."""
    found, codes = {}, set()
    async with ControlPlane.start() as plane, running(start, ads_bootstrap(plane.port, delta=delta)) as proxy:
        plane.script()
        for nonce, messages in BAD:
            send(plane.streams[0], messages, nonce)
            await plane.until(lambda: nonce in answers(plane))  # noqa: B023
            refusal = answers(plane)[nonce].error_detail
            if refusal.code:
                codes.add(refusal.code)
            _, text = await asyncio.to_thread(proxy.admin, "/clusters")
            found[nonce] = bool(refusal.code), set(re.findall(r"^(\w+)::", text, re.MULTILINE)) - {"xds"}
    return found, codes


def answers(plane: ControlPlane) -> dict[str, Any]:
    """The requests about clusters that answer something, by what they answer."""
    return {each.response_nonce: each for each in plane.of_type(CLUSTER_TYPE)}


@FORMS
async def test_a_bad_resource_is_refused_alone(delta: bool) -> None:
    assert await outcomes(start_envoy, delta) == (ENVOYS_DELTA if delta else ENVOYS, {13})  # INTERNAL
    assert await outcomes(start_meshproxy, delta) == (OURS_DELTA if delta else OURS, {3})  # INVALID_ARGUMENT


async def test_the_next_of_several_services_is_asked() -> None:
    async with ControlPlane.start() as plane:
        config = ads_bootstrap(plane.port).replace(
            '"grpc_services": [', '"grpc_services": [{"envoy_grpc": {"cluster_name": "gone"}}, '
        )
        with pytest.raises(RuntimeError, match="must have no more than 1 gRPC services specified"):
            await asyncio.to_thread(start_envoy, config)
        async with running(start_meshproxy, config):
            await plane.until(lambda: plane.streams)


async def test_assignments_of_one_source_share_a_stream() -> None:
    for start, streams in ((start_envoy, [["a"], ["b"]]), (start_meshproxy, [["a", "b"]])):
        async with ControlPlane.start() as plane:
            source: dict[str, Any] = {"api_type": "GRPC", "transport_api_version": "V3"}
            source["grpc_services"] = [{"envoy_grpc": {"cluster_name": "xds"}}]
            eds = {"eds_config": {"api_config_source": source, "resource_api_version": "V3"}}
            plane.set(CLUSTER_TYPE, {name: eds_cluster(name, eds_cluster_config=eds) for name in ("a", "b")})
            plane.set(ENDPOINT_TYPE, {name: assignment(name, [1]) for name in ("a", "b")})
            async with running(start, ads_bootstrap(plane.port)):
                own = [stream for stream in plane.streams if stream.method.endswith("/StreamEndpoints")]
                assert sorted(sorted(each.requests[-1].resource_names) for each in own) == streams
