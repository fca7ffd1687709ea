"""Our gRPC server, and our own client; and with TLS, grpcio's."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from meshproxy.codec import grpc as codes
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MessageParser
from meshproxy.config.runtime import Runtime
from meshproxy.config.tls_context import build_downstream_tls
from meshproxy.http.grpc.client import RpcError
from meshproxy.net.transport_socket import TransportSocketFactory
from meshproxy.observe.stats import StatsRegistry
from tests.rpc.harness import client_of
from tests.rpc.server.harness import ask, serving
from tests.tls.certificates import Issued, issue

CA = issue("ca", ca=True)
SERVER = issue("server", CA, names=[x509.DNSName("server.test")])
NAMED = issue("client", CA, names=[x509.UniformResourceIdentifier("spiffe://test/ns/a/sa/b")])
FOREIGN = issue("client", issue("other", ca=True), names=[x509.UniformResourceIdentifier("spiffe://test/ns/a/sa/b")])


def context() -> TransportSocketFactory:
    """A certificate is asked for, and verified where there is one."""
    from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext

    errors = ConfigErrors()
    message = DownstreamTlsContext()
    certificate = {
        "certificate_chain": {"inline_string": SERVER.pem.decode()},
        "private_key": {"inline_string": SERVER.key_pem.decode()},
    }
    common = {
        "alpn_protocols": ["h2"],
        "tls_certificates": [certificate],
        "validation_context": {"trusted_ca": {"inline_string": CA.pem.decode()}},
    }
    MessageParser(errors).fill(message, {"common_tls_context": common}, "")
    factory = build_downstream_tls(message, "tls", BuildContext(errors, Runtime(), StatsRegistry()))
    assert factory is not None, str(errors)
    return factory


def credentials(client: Issued | None) -> grpc.ChannelCredentials:
    if client is None:
        return grpc.ssl_channel_credentials(CA.pem)
    return grpc.ssl_channel_credentials(CA.pem, client.key_pem, client.pem)


async def test_our_client(tmp_path: Path) -> None:
    async with serving(tmp_path, tcp=True) as s:
        port = int(s.target.rpartition(":")[2])
        async with client_of(port) as (client, _):
            assert (await client.unary(b"/test.Test/echo", b"hello")).message == b"hello"
            with pytest.raises(RpcError) as error:
                await client.unary(b"/test.Test/fail", b"")
            assert (error.value.code, error.value.status.message) == (codes.NOT_FOUND, "100 % süß\n")
            async with client.call(b"/test.Test/echo") as call:
                for message in (b"one", b"two"):
                    await call.send(message)
                    assert await call.receive() == message
                call.end()
                assert await call.receive() is None
            with pytest.raises(RpcError) as error:
                await client.unary(b"/test.Test/wait", b"", timeout_ms=50.0)
            assert error.value.code == codes.DEADLINE_EXCEEDED
        await s.methods.until("waits", "cancelled")


@pytest.mark.parametrize("client", [None, NAMED], ids=["nobody", "somebody"])
async def test_tls_names_who_shows_a_certificate(tmp_path: Path, client: Issued | None) -> None:
    factory = context()
    async with serving(tmp_path, tls=lambda: factory) as s:
        s.target = s.target.replace("127.0.0.1", "localhost")
        options = (("grpc.ssl_target_name_override", "server.test"),)
        async with grpc.aio.secure_channel(s.target, credentials(client), options) as channel:
            found = json.loads(await ask(channel, "who"))
    assert found["encrypted"] is True
    assert "uid" not in found
    assert found["uris"] == ([] if client is None else ["spiffe://test/ns/a/sa/b"])
    assert found["serial"] == (0 if client is None else client.certificate.serial_number)


async def test_a_certificate_of_a_stranger(tmp_path: Path) -> None:
    factory = context()
    async with serving(tmp_path, tls=lambda: factory) as s:
        options = (("grpc.ssl_target_name_override", "server.test"),)
        async with grpc.aio.secure_channel(s.target, credentials(FOREIGN), options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await ask(channel, "who")
            assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        assert s.server.stats.calls == 0


async def test_no_context_no_connection(tmp_path: Path) -> None:
    """And the next one is asked for anew."""
    given: list[TransportSocketFactory | None] = [None]
    async with serving(tmp_path, tls=lambda: given[0]) as s:
        options = (("grpc.ssl_target_name_override", "server.test"),)
        async with grpc.aio.secure_channel(s.target, credentials(None), options) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(channel, "who")
            assert s.server.stats.peers_refused
            given[0] = context()
        async with grpc.aio.secure_channel(s.target, credentials(None), options) as channel:
            assert await ask(channel, "echo", b"now") == b"now"


async def test_plain_bytes_where_tls_is_spoken(tmp_path: Path) -> None:
    factory = context()
    async with serving(tmp_path, tls=lambda: factory) as s, s.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await ask(channel, "echo")
        assert s.server.stats.calls == 0
