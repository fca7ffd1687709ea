"""Ports with TLS: certificates that change, and clients that prove who they are."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509

from meshproxy.config.subscription import CLUSTER_TYPE as CDS
from meshproxy.errors import ConfigError
from meshproxy.pilot.server.tls import CertificateSource, TlsFiles
from tests.pilot.server.clients import ADS, Client, Pilot
from tests.pilot.server.support import cluster, snapshot
from tests.tls.certificates import Issued, dns, issue, uri

MESH = {"tests": snapshot(clusters=[cluster("a")])}


@pytest.fixture(scope="module")
def authority() -> Issued:
    return issue("authority", ca=True)


def write(folder: Path, authority: Issued, name: str = "pilot.test") -> TlsFiles:
    """A server's certificate, its key, and the authority of clients."""
    server = issue(name, authority, names=dns(name))
    (folder / "cert.pem").write_bytes(server.pem)
    (folder / "key.pem").write_bytes(server.key_pem)
    (folder / "ca.pem").write_bytes(authority.pem)
    return TlsFiles(str(folder / "cert.pem"), str(folder / "key.pem"), str(folder / "ca.pem"))


async def served(target: str, authority: Issued, mine: Issued | None) -> Any:
    """The first response to a client with this certificate; raises AioRpcError."""
    key, chain = (mine.key_pem, mine.pem) if mine is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(authority.pem, key, chain)
    options = [("grpc.ssl_target_name_override", "pilot.test"), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
        client = Client(channel, ADS + "StreamAggregatedResources")
        try:
            await client.ask(CDS)
            return await client.next()
        finally:
            client.cancel()


async def test_a_client_must_show_who_it_is(tmp_path: Path, authority: Issued) -> None:
    plane = Pilot()
    target = plane.server.listen("127.0.0.1:0", write(tmp_path, authority))
    await plane.server.start()
    plane.set(MESH)
    try:
        known = issue("client", authority, names=uri("spiffe://cluster.local/ns/tests/sa/app"))
        assert len((await served(target, authority, known)).resources) == 1
        stranger = issue("client", issue("other", ca=True))
        for nobody in (None, stranger):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await served(target, authority, nobody)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        anybody = issue("client", authority, names=dns("client.test"))
        with pytest.raises(grpc.aio.AioRpcError, match="the certificate has no SPIFFE identity") as caught:
            await served(target, authority, anybody)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        liar = issue("client", authority, names=uri("spiffe://cluster.local/ns/other/sa/app"))
        with pytest.raises(grpc.aio.AioRpcError, match="its certificate says other/app") as caught:
            await served(target, authority, liar)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await plane.server.stop()


async def test_another_certificate_is_shown_when_the_files_change(tmp_path: Path, authority: Issued) -> None:
    files = write(tmp_path, authority)
    plane = Pilot()
    target = plane.server.listen("127.0.0.1:0", TlsFiles(files.certificate, files.key))
    await plane.server.start()
    host, _, port = target.rpartition(":")

    async def shown() -> str:
        found = await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))
        return "".join(found.split())

    try:
        first = await shown()
        assert first == _text(files.certificate)
        _remove(files.key)
        assert await shown() == first  # what cannot be read changes nothing
        write(tmp_path, authority)
        assert _text(files.certificate) != first
        assert await shown() == _text(files.certificate)
    finally:
        await plane.server.stop()


def _text(path: str) -> str:
    return "".join(Path(path).read_text().split())


def _remove(path: str) -> None:
    Path(path).unlink()


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.pem: No such file or directory"):
        CertificateSource(TlsFiles(str(tmp_path / "nothing.pem"), str(tmp_path / "key.pem"))).read()


def test_names_in_a_certificate_are_uris(authority: Issued) -> None:
    found = issue("client", authority, names=uri("spiffe://a/ns/b/sa/c")).certificate
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://a/ns/b/sa/c"]
