"""gRPC over mutual TLS: the cluster's transport socket, and the credentials of grpcio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshproxy.codec import grpc
from meshproxy.http.grpc.client import RpcError, open_client
from tests.rpc.grpcio_server import GrpcioServer
from tests.rpc.harness import client_of, service, services
from tests.tls.certificates import write_both_ends
from tests.upstream.harness import any_of, world

TLS = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of one authority for both sides."""
    made = tmp_path_factory.mktemp("certificates")
    write_both_ends(made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[GrpcioServer]:
    process = GrpcioServer(str(folder))
    yield process
    process.stop()


def transport_socket(folder: Path, name: str) -> dict[str, Any]:
    """TLS to a server of that name."""
    certificate = {
        "certificate_chain": {"filename": str(folder / "client.pem")},
        "private_key": {"filename": str(folder / "client.key")},
    }
    trust = {
        "trusted_ca": {"filename": str(folder / "ca.pem")},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": name}}],
    }
    context = {"tls_certificates": [certificate], "validation_context": trust}
    return {"name": "tls", "typed_config": any_of(TLS, sni=name, common_tls_context=context)}


async def test_a_call_by_the_cluster_s_tls(server: GrpcioServer, folder: Path) -> None:
    async with client_of(server.port, transport_socket=transport_socket(folder, "server.test")) as (client, _):
        assert (await client.unary(b"/test.Test/echo", b"hello")).message == b"hello"


async def test_a_server_of_another_name(server: GrpcioServer, folder: Path) -> None:
    async with client_of(server.port, transport_socket=transport_socket(folder, "other.test")) as (client, _):
        with pytest.raises(RpcError) as error:
            await client.unary(b"/test.Test/echo", b"hello")
        assert error.value.code == grpc.UNAVAILABLE
        assert error.value.status.message.startswith("upstream connect error")


@pytest.mark.parametrize("name", ["server.test", "other.test"])
async def test_grpcio_with_credentials(server: GrpcioServer, folder: Path, name: str) -> None:
    files = {
        field: {"filename": str(folder / file)}
        for field, file in (("root_certs", "ca.pem"), ("private_key", "client.key"), ("cert_chain", "client.pem"))
    }
    target = {
        "target_uri": f"127.0.0.1:{server.port}",
        "stat_prefix": "g",
        "channel_credentials": {"ssl_credentials": files},
        "call_credentials": [{"access_token": "secret"}],
        "channel_args": {"args": {"grpc.ssl_target_name_override": {"string_value": name}}},
    }
    async with world() as w:
        client = open_client(services(w), service(google_grpc=target))
        if name == "server.test":
            answer = await client.unary(b"/test.Test/metadata", b"")
            assert b'["authorization", "Bearer secret"]' in answer.message
        else:
            with pytest.raises(RpcError) as error:
                await client.unary(b"/test.Test/metadata", b"")
            assert error.value.code == grpc.UNAVAILABLE
        client.close()
