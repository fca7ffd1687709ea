"""The channel that secrets come by is itself protected: mutual TLS, or a token from a file that is read again."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from meshproxy.config.subscription import SECRET_TYPE
from tests.integration.config import Json, bootstrap, cluster, direct, http2_cluster, listener
from tests.integration.dynamic import message
from tests.integration.proxy import Proxy
from tests.integration.test_secrets import certificates_shown
from tests.rpc.grpcio_server import credentials_in
from tests.rpc.test_tls import transport_socket
from tests.support.control_plane import ControlPlane
from tests.tls.certificates import Issued, dns, issue, world, write_both_ends

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_TOKEN = "type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig"
FIRST, SECOND = (issue(name, world().ca, names=dns("a.test")) for name in ("first", "second"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of one authority for both ends of the channel, in files."""
    made = tmp_path_factory.mktemp("certificates")
    write_both_ends(made)
    return made


def give(plane: ControlPlane, issued: Issued, version: str) -> None:
    held = {
        "certificate_chain": {"inline_string": issued.pem.decode()},
        "private_key": {"inline_string": issued.key_pem.decode()},
    }
    plane.set(SECRET_TYPE, {"s": message(Secret, {"name": "s", "tls_certificate": held})}, version)


def config(service: Json, api_type: str, *clusters: Json) -> str:
    """A listener that waits for its certificate."""
    source = {"api_type": api_type, "transport_api_version": "V3", "grpc_services": [service]}
    named = {"name": "s", "sds_config": {"api_config_source": source, "resource_api_version": "V3"}}
    made = listener("main", [direct("/", "hello")])
    context = {"@type": _TLS, "common_tls_context": {"tls_certificate_sds_secret_configs": [named]}}
    made["filter_chains"][0]["transport_socket"] = {"name": "tls", "typed_config": context}
    return bootstrap([made], list(clusters), node={"id": "n", "cluster": "c"})


def replace(file: Path, text: str) -> None:
    """As a kubelet does it."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, file)


@pytest.mark.parametrize("api_type", ["GRPC", "DELTA_GRPC"])
async def test_by_mutual_tls_with_a_token(folder: Path, tmp_path: Path, api_type: str) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    bearer = {"key": "authorization", "value": f"Bearer %FILE_CONTENT({token})%"}
    service = {"envoy_grpc": {"cluster_name": "sds"}, "initial_metadata": [bearer]}
    async with ControlPlane.start(credentials=credentials_in(folder)) as plane:
        give(plane, FIRST, "1")
        secure = transport_socket(folder, "server.test")
        sds = cluster("sds", plane.port, transport_socket=secure, **http2_cluster())
        async with Proxy(config(service, api_type, sds)) as proxy:
            assert FIRST.certificate.serial_number in await certificates_shown(proxy)
            give(plane, SECOND, "2")
            await proxy.until_stat("sds.s.update_success", lambda count: count == 2)
            assert SECOND.certificate.serial_number in await certificates_shown(proxy)
            method = "DeltaSecrets" if api_type == "DELTA_GRPC" else "StreamSecrets"
            (stream,) = plane.streams
            assert stream.method == f"/envoy.service.secret.v3.SecretDiscoveryService/{method}"
            assert stream.metadata["authorization"] == "Bearer one"
            replace(token, "two\n")
            stream.cut()
            await plane.until(lambda: len(plane.streams) >= 2 and plane.streams[-1].requests)
            assert plane.streams[-1].metadata["authorization"] == "Bearer two"


async def test_a_server_that_is_not_the_right_one_gives_nothing(folder: Path) -> None:
    """The listener waits on, and says for what."""
    async with ControlPlane.start(credentials=credentials_in(folder)) as plane:
        give(plane, FIRST, "1")
        secure = transport_socket(folder, "other.test")
        sds = cluster("sds", plane.port, transport_socket=secure, **http2_cluster())
        tree = json.loads(config({"envoy_grpc": {"cluster_name": "sds"}}, "GRPC", sds))
        listening = tree["static_resources"]["listeners"][0]["filter_chains"][0]["transport_socket"]["typed_config"]
        (named,) = listening["common_tls_context"]["tls_certificate_sds_secret_configs"]
        named["sds_config"]["initial_fetch_timeout"] = "0.2s"
        async with Proxy(json.dumps(tree)) as proxy:
            assert await proxy.stat("cluster.sds.ssl.fail_verify_san") >= 1
            assert await proxy.stat("sds.s.init_fetch_timeout") == 1
            assert await proxy.stat("sds.s.update_success") == 0
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.ports["main"])
            assert await reader.read() == b""
            writer.close()
        assert plane.requests == []


@pytest.mark.parametrize("api_type", ["GRPC", "DELTA_GRPC"])
async def test_a_token_of_a_file_is_read_again(folder: Path, tmp_path: Path, api_type: str) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    roots = {"root_certs": {"filename": str(folder / "ca.pem")}}
    identity = {
        "private_key": {"filename": str(folder / "client.key")},
        "cert_chain": {"filename": str(folder / "client.pem")},
    }
    from_file = {"@type": _TOKEN, "secret_data": {"filename": str(token)}, "header_prefix": "Bearer "}
    async with ControlPlane.start(credentials=credentials_in(folder)) as plane:
        give(plane, FIRST, "1")
        google = {
            "target_uri": plane.target,
            "stat_prefix": "sds",
            "channel_credentials": {"ssl_credentials": roots | identity},
            "call_credentials": [{"from_plugin": {"name": "file", "typed_config": from_file}}],
            "channel_args": {"args": {"grpc.ssl_target_name_override": {"string_value": "server.test"}}},
        }
        async with Proxy(config({"google_grpc": google}, api_type)) as proxy:
            assert await certificates_shown(proxy) == {FIRST.certificate.serial_number}
            assert [each.metadata["authorization"] for each in plane.streams] == ["Bearer one"]
            replace(token, "two\n")
            give(plane, SECOND, "2")
            plane.streams[0].cut()
            await plane.until(lambda: len(plane.streams) >= 2 and plane.streams[-1].requests)
            assert plane.streams[-1].metadata["authorization"] == "Bearer two"
            await proxy.until_stat("sds.s.update_success", lambda count: count >= 2)
            assert await certificates_shown(proxy) == {SECOND.certificate.serial_number}
