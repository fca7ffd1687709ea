"""Certificates on disk that change: new handshakes have the new one, and no connection notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.config import bootstrap, cluster, direct, forward, listener
from tests.integration.load import EchoUpstream, Load, echoed
from tests.integration.proxy import Proxy, eventually
from tests.support.downstream import exchange
from tests.tls.certificates import Issued, dns, issue, world

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
OLD = issue("old", world().ca, names=dns("a.test"))
NEW = issue("new", world().ca, names=dns("a.test"), days=(-1, 3))


class Files:
    """A certificate and its key as files."""

    def __init__(self, directory: Path) -> None:
        self.chain = directory / "chain.pem"
        self.key = directory / "key.pem"
        self.ca = directory / "ca.pem"
        replace(self.ca, world().ca.pem)
        self.put(OLD)

    def put(self, issued: Issued) -> None:
        replace(self.chain, issued.pem)
        replace(self.key, issued.key_pem)

    def certificate(self) -> dict[str, Any]:
        return {"certificate_chain": {"filename": str(self.chain)}, "private_key": {"filename": str(self.key)}}


def replace(path: Path, data: bytes) -> None:
    """As a whole, as who renews certificates does."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def serving(files: Files) -> dict[str, Any]:
    config = {"@type": _TLS + "DownstreamTlsContext", "common_tls_context": {"tls_certificates": [files.certificate()]}}
    return {"name": "tls", "typed_config": config}


def secure(made: dict[str, Any], files: Files) -> dict[str, Any]:
    made["filter_chains"][0]["transport_socket"] = serving(files)
    return made


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=world().ca.pem.decode())
    return context


def common_name(port: int) -> str:
    """Of the certificate that a new connection is shown."""
    with trusting().wrap_socket(socket.create_connection(("127.0.0.1", port), 5.0), server_hostname="a.test") as tls:
        subject: Any = tls.getpeercert()
        return str(dict(part[0] for part in subject["subject"])["commonName"])


async def until_shown(port: int, name: str, times: int = 8) -> None:
    """Wait until so many connections in turn, which no worker of several escapes, are shown it."""
    seen: list[str] = []
    while seen[-times:] != [name] * times:
        seen.append(await asyncio.to_thread(common_name, port))
        assert len(seen) < 3000, f"only {set(seen)}"
        await asyncio.sleep(0.005)


@pytest.fixture
async def upstream() -> AsyncIterator[EchoUpstream]:
    async with EchoUpstream("v1") as made:
        yield made


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_new_certificate_is_taken_under_load(upstream: EchoUpstream, tmp_path: Path, workers: str) -> None:
    files = Files(tmp_path)
    config = bootstrap([secure(listener("main", [forward("/", "v1")]), files)], [cluster("v1", upstream.port)])
    async with Proxy(config, "--concurrency", workers) as proxy:
        port = proxy.ports["main"]
        assert await asyncio.to_thread(common_name, port) == "old"
        assert await proxy.stat("server.days_until_first_cert_expiring") == 30
        async with Load(port, echoed("v1"), tls=trusting()) as load:
            files.put(NEW)
            await until_shown(port, "new")
            await load.more(50)
        assert load.failures == []
        assert load.closed_unasked == 0
        assert not any(answer.closes for answer in load.answers)
        assert await proxy.stat("server.days_until_first_cert_expiring") == 3
        assert await proxy.stat("server.config_reload_success") >= 1
        assert await proxy.stat("listener_manager.listener_modified") >= 1
        assert await proxy.stat("listener_manager.total_filter_chains_draining") == 0
        assert await proxy.stat("cluster_manager.cluster_modified") == 0


def with_secret(made: dict[str, Any], certificate: dict[str, Any]) -> str:
    """A bootstrap of one listener, whose certificate is a secret of it."""
    common = {"tls_certificate_sds_secret_configs": [{"name": "main"}]}
    config = {"@type": _TLS + "DownstreamTlsContext", "common_tls_context": common}
    made["filter_chains"][0]["transport_socket"] = {"name": "tls", "typed_config": config}
    tree = json.loads(bootstrap([made]))
    tree["static_resources"]["secrets"] = [{"name": "main", "tls_certificate": certificate}]
    return json.dumps(tree)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_secret_of_the_bootstrap_changes(tmp_path: Path, workers: str) -> None:
    """In the files that it names, or in the bootstrap itself."""
    files = Files(tmp_path)
    main = listener("main", [direct("/", "x")])
    async with Proxy(with_secret(main, files.certificate()), "--concurrency", workers) as proxy:
        port = proxy.ports["main"]
        assert await asyncio.to_thread(common_name, port) == "old"
        async with Load(
            port, lambda answer, _: "" if answer.body == b"x" else repr(answer.body), tls=trusting()
        ) as load:
            files.put(NEW)
            await until_shown(port, "new")
            inline = {
                "certificate_chain": {"inline_string": OLD.pem.decode()},
                "private_key": {"inline_string": OLD.key_pem.decode()},
            }
            proxy.write(with_secret(main, inline))
            await until_shown(port, "old")
            await load.more(20)
        assert load.failures == []
        assert load.closed_unasked == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_bad_certificate_leaves_the_old_one(upstream: EchoUpstream, tmp_path: Path, workers: str) -> None:
    files = Files(tmp_path)
    config = bootstrap([secure(listener("main", [forward("/", "v1")]), files)], [cluster("v1", upstream.port)])
    async with Proxy(config, "--concurrency", workers) as proxy:
        port = proxy.ports["main"]
        async with Load(port, echoed("v1"), tls=trusting()) as load:
            replace(files.chain, b"no certificate")
            await proxy.until_stat("server.config_reload_failure", lambda value: value == 1)
            await load.more(50)
            assert await asyncio.to_thread(common_name, port) == "old"
            assert "tls_certificates[0].certificate_chain" in proxy.output()
            _, dump = await proxy.admin("/config_dump")
            assert "tls_certificates[0].certificate_chain" in dump
            replace(files.chain, NEW.pem)  # whose key is not there yet
            await proxy.until_stat("server.config_reload_failure", lambda value: value == 2)
            replace(files.key, NEW.key_pem)
            await until_shown(port, "new")
        assert load.failures == []
        assert load.closed_unasked == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_gauge_of_expiry_is_of_what_is_in_use(tmp_path: Path, workers: str) -> None:
    files = Files(tmp_path)
    good = secure(listener("main", [direct("/", "x")], stat_prefix="main"), files)
    gauge = "listener.main.ssl.certificate.unnamed_cert_e3b0c442.expiration_unix_time_seconds"
    old, new = (int(each.certificate.not_valid_after_utc.timestamp()) for each in (OLD, NEW))
    async with Proxy(bootstrap([good]), "--concurrency", workers) as proxy:
        assert await proxy.stat(gauge) == old
        files.put(NEW)
        proxy.write(bootstrap([good, listener("bad", [forward("/", "nobody")])]))
        await proxy.until_stat("server.config_reload_failure", lambda value: value >= 1)
        assert await proxy.stat(gauge) == old
        await proxy.reload(bootstrap([good]))
        assert await proxy.stat(gauge) == new


async def test_a_worker_that_comes_later_has_what_the_others_have(upstream: EchoUpstream, tmp_path: Path) -> None:
    """Whatever is on the disk by then; it takes a new certificate as they do."""
    files = Files(tmp_path)
    config = bootstrap([secure(listener("main", [forward("/", "v1")]), files)], [cluster("v1", upstream.port)])
    async with Proxy(config, "--concurrency", "2") as proxy:
        port = proxy.ports["main"]
        replace(files.chain, b"no certificate")
        files.key.unlink()
        await proxy.until_stat("server.config_reload_failure", lambda value: value == 1)
        for restarts in (2, 4):
            for pid in proxy.workers():
                os.kill(pid, signal.SIGKILL)
            await proxy.until_stat("server.worker_restarts", restarts.__eq__)
            await until_shown(port, "old")
        async with Load(port, echoed("v1"), tls=trusting()) as load:
            await load.more(20)
            files.put(NEW)
            await until_shown(port, "new")
        assert load.failures == []
        assert await proxy.stat("server.worker_restarts") == 4


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_is_resumed_by_whichever_worker(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """By one that came later too, and after a reload; but not on another listener."""
    files = Files(tmp_path)
    client = trusting()
    client.minimum_version = client.maximum_version = version

    def resumes(port: int, session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
        """Whether a new connection resumes it, and a session of the connection's own."""
        sock = socket.create_connection(("127.0.0.1", port), 5.0)
        with client.wrap_socket(sock, server_hostname="a.test", session=session) as tls:
            tls.sendall(b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n")
            while tls.recv(4096):
                pass
            return bool(tls.session_reused), tls.session

    def config(body: str) -> str:
        both = [listener(name, [direct("/", body)], stat_prefix=name) for name in ("main", "other")]
        return bootstrap([secure(each, files) for each in both], [])

    async with Proxy(config("x"), "--concurrency", "2") as proxy:
        port = proxy.ports["main"]
        reused, session = await asyncio.to_thread(resumes, port, None)
        assert not reused
        assert session is not None
        for _ in range(16):  # no worker escapes
            assert (await asyncio.to_thread(resumes, port, session))[0]
        assert not (await asyncio.to_thread(resumes, proxy.ports["other"], session))[0]
        await proxy.reload(config("y"))
        files.put(NEW)
        await until_shown(port, "new")
        for pid in proxy.workers():
            os.kill(pid, signal.SIGKILL)
        await proxy.until_stat("server.worker_restarts", lambda value: value == 2)
        for _ in range(16):
            assert (await asyncio.to_thread(resumes, port, session))[0]


async def test_a_new_client_certificate_goes_to_new_connections(tmp_path: Path) -> None:
    """A cluster's hosts and their connections stay."""
    files = Files(tmp_path)
    trusted = {"trusted_ca": {"filename": str(files.ca)}}
    context = {"tls_certificates": [files.certificate()], "validation_context": trusted}
    transport = {"name": "tls", "typed_config": {"@type": _TLS + "UpstreamTlsContext", "common_tls_context": context}}
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        subject = writer.get_extra_info("peercert")["subject"]
        name = dict(part[0] for part in subject)["commonName"]
        seen.append(name)
        with contextlib.suppress(asyncio.IncompleteReadError):  # the proxy has closed it
            while head := await reader.readuntil(b"\r\n\r\n"):
                closes = b"connection: close\r\n" if b"/close" in head else b""
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n%s" % (len(name), closes, name.encode()))
        writer.close()

    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    presented = tmp_path / "server.pem"
    presented.write_bytes(world().server.pem + world().server.key_pem)
    server_side.load_cert_chain(presented)
    server_side.verify_mode = ssl.CERT_REQUIRED
    server_side.load_verify_locations(files.ca)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
    port = server.sockets[0].getsockname()[1]
    config = bootstrap([listener("main", [forward("/", "up")])], [cluster("up", port, transport_socket=transport)])

    async with Proxy(config) as proxy:

        async def ask(path: str) -> bytes:
            request = b"GET %s HTTP/1.1\r\nhost: test\r\n\r\n" % path.encode()
            return (await asyncio.to_thread(exchange, proxy.ports["main"], request)).body

        assert await ask("/") == b"old"
        files.put(NEW)
        await proxy.until_stat("cluster_manager.cluster_modified", lambda value: value >= 1)
        assert await ask("/close") == b"old"  # on the connection that there is
        assert await ask("/") == b"new"
        assert seen == ["old", "new"]
    server.close()


async def test_certs_lists_what_is_loaded(tmp_path: Path) -> None:
    files = Files(tmp_path)
    async with Proxy(bootstrap([secure(listener("main", [direct("/", "x")]), files)], [])) as proxy:
        status, text = await proxy.admin("/certs")
        (certificate,) = json.loads(text)["certificates"]
        (chain,) = certificate["cert_chain"]
        assert (status, chain["path"], chain["subject_alt_names"]) == (200, str(files.chain), [{"dns": "a.test"}])
        serial = OLD.certificate.serial_number
        assert chain["serial_number"] == serial.to_bytes((serial.bit_length() + 7) // 8, "big").hex()  # whole bytes


async def test_a_flood_of_handshakes_leaves_an_open_connection_served(tmp_path: Path) -> None:
    """Hundreds of ClientHellos at once; every answer on connections that were there is right, and comes meanwhile."""
    files = Files(tmp_path)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    shaking = trusting().wrap_bio(incoming, outgoing, server_hostname="a.test")
    with pytest.raises(ssl.SSLWantReadError):
        shaking.do_handshake()
    hello = outgoing.read()
    async with EchoUpstream("v1") as upstream:
        config = bootstrap([secure(listener("main", [forward("/", "v1")]), files)], [cluster("v1", upstream.port)])
        async with Proxy(config) as proxy:
            port = proxy.ports["main"]
            async with Load(port, echoed("v1"), kept=2, fresh=0, tls=trusting()) as load:
                flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
                for _, writer in flood:
                    writer.write(hello)
                answered = [asyncio.create_task(reader.read(1)) for reader, _ in flood]
                before = len(load.answers)
                await eventually(lambda: any(task.done() for task in answered), "the first ServerHello")
                await asyncio.gather(*answered)
                assert all(task.result() == b"\x16" for task in answered)
                assert len(load.answers) > before
                await load.more(20)
                for _, writer in flood:
                    writer.close()
            assert load.failures == []
            assert load.closed_unasked == 0
