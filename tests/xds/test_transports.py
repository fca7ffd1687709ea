"""The client over TCP, TLS and Unix sockets, by our own gRPC client and by grpcio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshproxy.config.config_source import ADS
from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE
from meshproxy.xds.client import XdsClient
from tests.rpc.grpcio_server import credentials_in
from tests.rpc.harness import http2_cluster, services
from tests.rpc.test_tls import transport_socket
from tests.support.control_plane import ControlPlane
from tests.tls.certificates import write_both_ends
from tests.upstream.harness import world
from tests.xds.harness import NODE, RecordingSink, api, assignment, cluster, key_of

KINDS = pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of one authority for both sides, in files."""
    made = tmp_path_factory.mktemp("certificates")
    write_both_ends(made)
    return made


@asynccontextmanager
async def serving(kind: str, folder: Path, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    """A control plane with a cluster and its endpoints."""
    credentials = credentials_in(folder) if kind == "tls" else None
    socket = str(tmp_path / "xds.sock") if kind == "unix" else ""
    async with ControlPlane.start(uds=socket, credentials=credentials) as plane:
        plane.set(CLUSTER_TYPE, {"a": cluster("a")})
        plane.set(ENDPOINT_TYPE, {"a": assignment("a")})
        yield plane


def xds_cluster(kind: str, plane: ControlPlane, folder: Path) -> dict[str, Any]:
    """The cluster behind which the control plane is."""
    made = http2_cluster(plane.port or 1)
    if kind == "unix":
        address = {"pipe": {"path": plane.target.removeprefix("unix:")}}
        made["load_assignment"]["endpoints"] = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    elif kind == "tls":
        made["transport_socket"] = transport_socket(folder, "server.test")
    return made


def google_service(kind: str, plane: ControlPlane, folder: Path) -> dict[str, Any]:
    """The same, as grpcio's target."""
    target: dict[str, Any] = {"target_uri": plane.target, "stat_prefix": "xds"}
    if kind == "tls":
        files = {"root_certs": "ca.pem", "private_key": "client.key", "cert_chain": "client.pem"}
        sources = {name: {"filename": str(folder / file)} for name, file in files.items()}
        target["channel_credentials"] = {"ssl_credentials": sources}
        name = {"string_value": "server.test"}
        target["channel_args"] = {"args": {"grpc.ssl_target_name_override": name}}
    return {"google_grpc": target}


@KINDS
@pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
@pytest.mark.parametrize("google", [False, True], ids=["envoy_grpc", "google_grpc"])
async def test_a_control_plane_is_obeyed(kind: str, delta: bool, google: bool, folder: Path, tmp_path: Path) -> None:
    async with serving(kind, folder, tmp_path) as plane, world() as w:
        own = {"grpc_services": [google_service(kind, plane, folder)]} if google else {}
        if not google:
            w.add(xds_cluster(kind, plane, folder))
        config, sink = api(delta=delta, **own), RecordingSink()
        xds = XdsClient(services(w), NODE, config, w.registry, sink)
        xds.start()
        xds.subscribe(ADS, CLUSTER_TYPE, "*")
        xds.subscribe(key_of(config), ENDPOINT_TYPE, "a")
        await sink.holds(CLUSTER_TYPE, "a")
        await sink.holds(ENDPOINT_TYPE, "a")
        plane.set(CLUSTER_TYPE, {"b": cluster("b")}, "2")
        await sink.holds(CLUSTER_TYPE, "b")
        for stream in plane.streams:
            stream.cut()
        plane.set(CLUSTER_TYPE, {"d": cluster("d")}, "3")
        if not google:  # whose back-off cannot be configured
            await sink.holds(CLUSTER_TYPE, "d")
        await xds.close()
