"""The agent, an authority by grpcio, and grpcio as the client that its proxies are."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import SPIFFECertValidatorConfig

from meshproxy.agent.agent import Agent
from meshproxy.errors import ConfigError
from tests.agent.client import asked, secret
from tests.agent.fake_authority import ROOT, URI, FakeAuthority, authority, bundle
from tests.agent.harness import Running, flags_for, running, settings, until
from tests.tls.certificates import Issued, dns, issue, revocation_list

FOREIGN = issue("foreign", ca=True)


def leaf_of(found: Secret) -> x509.Certificate:
    return x509.load_pem_x509_certificates(found.tls_certificate.certificate_chain.inline_bytes)[0]


def roots_of(found: Secret) -> bytes:
    return bytes(found.validation_context.trusted_ca.inline_bytes)


def page(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def test_certificate_key_and_roots(tmp_path: Path) -> None:
    async with authority() as ca, running(ca, tmp_path, "--lifetime", "600s", "--cluster-id", "east") as agent:
        found = await secret(agent.socket, "default")
        key = serialization.load_pem_private_key(found.tls_certificate.private_key.inline_bytes, None)
        assert leaf_of(found) == ca.certificates[0]
        assert leaf_of(found).public_key() == key.public_key()
        assert roots_of(await secret(agent.socket, "ROOTCA")) == ROOT.pem
        assert ca.requests[0].validity_duration == 600
        assert ca.calls[0]["clusterid"] == "east"
        assert ca.calls[0]["authorization"] == "Bearer token-1"
        csr = x509.load_pem_x509_csr(ca.requests[0].csr.encode())
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [URI]


async def test_a_rotation_is_pushed_with_another_key(tmp_path: Path) -> None:
    async with (
        authority() as ca,
        running(ca, tmp_path, renew_s=0.2) as agent,
        asked(agent.socket, "default") as stream,
    ):
        first, second = leaf_of(await stream.next()), leaf_of(await stream.next())
        assert ca.certificates.index(first) < ca.certificates.index(second)
        assert first.public_key() != second.public_key()


async def test_the_token_is_read_anew_each_time(tmp_path: Path) -> None:
    """The first one is no longer good; then the file has another one."""
    async with authority() as ca:
        ca.token = "token-2"
        flags_for(ca, tmp_path)
        ca.token = "token-3"
        async with running_as_is(ca, tmp_path) as agent:
            await until(lambda: agent.agent.metrics.failures >= 2)
            assert not agent.agent.secrets.ready
            (tmp_path / "token").write_text("token-3")
            assert leaf_of(await secret(agent.socket, "default")) == ca.certificates[0]
    assert [call["authorization"] for call in ca.calls][-1] == "Bearer token-3"


@asynccontextmanager
async def running_as_is(ca: FakeAuthority, folder: Path, *more: str) -> AsyncIterator[Running]:
    """With the files that are there."""
    token = (folder / "token").read_bytes()
    known, ca.token = ca.token, token.decode().strip()
    async with running(ca, folder, *more) as agent:
        ca.token = known
        yield agent


@pytest.mark.parametrize("token", [b"", b"two words", b"line\nbreak", b"x" * 70_000, b"\xff"])
async def test_a_token_that_is_none_is_told_to_nobody(
    tmp_path: Path, token: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with authority() as ca:
        flags_for(ca, tmp_path)
        (tmp_path / "token").write_bytes(token)
        async with running_with_token_file(ca, tmp_path) as agent:
            await until(lambda: agent.agent.metrics.failures >= 2)
        assert ca.calls == []
    assert "token" in caplog.text
    assert "two words" not in caplog.text


@asynccontextmanager
async def running_with_token_file(ca: FakeAuthority, folder: Path) -> AsyncIterator[Running]:
    """Whatever it holds."""
    held = (folder / "token").read_bytes()
    (folder / "other").write_bytes(held)
    async with running(ca, folder, "--token-file", f"{folder}/other") as agent:
        yield agent


async def test_an_authority_that_is_another_s_gets_no_token(tmp_path: Path) -> None:
    impostor = issue("authority", FOREIGN, names=dns("authority.test"))
    async with authority(shown=impostor) as ca, running(ca, tmp_path) as agent:
        await until(lambda: agent.agent.metrics.failures >= 2)
        assert ca.calls == []


async def test_an_authority_of_another_name_gets_no_token(tmp_path: Path) -> None:
    other = issue("authority", ROOT, names=dns("other.test"))
    async with authority(shown=other) as ca, running(ca, tmp_path) as agent:
        await until(lambda: agent.agent.metrics.failures >= 2)
        assert ca.calls == []


async def test_a_certificate_for_another_key_is_not_taken(tmp_path: Path) -> None:
    async with authority() as ca:
        ca.foreign_key = True
        async with running(ca, tmp_path) as agent:
            await until(lambda: agent.agent.metrics.failures >= 2)
            assert agent.agent.secrets.get("default") is None
            ca.foreign_key = False
            assert leaf_of(await secret(agent.socket, "default")) == ca.certificates[-1]


async def test_the_old_certificate_serves_on_until_it_ends_and_a_new_one_comes_when_the_authority_does(
    tmp_path: Path,
) -> None:
    async with authority() as ca, running(ca, tmp_path, renew_s=0.1) as agent:
        secrets = agent.agent.secrets
        async with asked(agent.socket, "default") as stream:
            await stream.next()
            ca.status = grpc.StatusCode.UNAVAILABLE
            await until(lambda: agent.agent.metrics.failures)
            last = ca.certificates[-1]
            assert leaf_of(await secret(agent.socket, "default")) == last
            secrets._now = last.not_valid_after_utc.timestamp
            assert secrets.get("default") is None
            assert not secrets.ready
            secrets._now = time.time
            ca.status = None
            while leaf_of(await stream.next()) in ca.certificates[: ca.certificates.index(last) + 1]:
                pass
            assert secrets.ready


async def test_pages(tmp_path: Path) -> None:
    async with authority() as ca:
        ca.status = grpc.StatusCode.UNAVAILABLE
        async with running(ca, tmp_path) as agent:
            await until(lambda: agent.agent.metrics.failures)

            async def get(path: str) -> tuple[int, str]:
                return await asyncio.to_thread(page, agent.agent.http_address, path)

            assert await get("/healthz/ready") == (503, "not ready\n")
            assert "meshproxy_agent_certificate_left_seconds 0\n" in (await get("/metrics"))[1].replace("0.0", "0")
            ca.status = None
            await until(lambda: agent.agent.secrets.ready)
            assert await get("/healthz/ready") == (200, "ready\n")
            status, text = await get("/metrics")
            assert status == 200
            assert "meshproxy_agent_certificates_total 1\n" in text
            assert "meshproxy_agent_ready 1\n" in text
            assert (await get("/config_dump"))[0] == 404


@pytest.mark.parametrize(("flags", "mode"), [((), 0o600), (("--allow-uid", "1337"), 0o666)])
async def test_the_socket_s_mode(tmp_path: Path, flags: tuple[str, ...], mode: int) -> None:
    """Nobody else can connect where nobody else is allowed."""
    path = tmp_path / "run/sds"
    async with authority() as ca:
        async with running(ca, tmp_path, *flags):
            await until(path.exists)
            await until(lambda: path.stat().st_mode & 0o777 == mode)
        assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can only be played by root")
@pytest.mark.parametrize(("uid", "served"), [(1337, True), (1338, False)])
async def test_processes_of_other_users(tmp_path: Path, uid: int, served: bool) -> None:
    name = f"@meshproxy-agent-{os.getpid()}-{uid}"
    async with authority() as ca, running(ca, tmp_path, "--allow-uid", "1337", "--sds-socket", name) as agent:
        await until(lambda: ca.calls)
        sock = connected_as(uid, "\0" + name[1:])
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            assert bool(await reader.read(9)) == served
        except ConnectionResetError:
            assert not served
        writer.close()
        text = agent.agent.metrics.text(ready=True, left_s=1.0)
        assert f"meshproxy_agent_sds_peers_refused_total {int(not served)}\n" in text


def connected_as(uid: int, path: str) -> socket.socket:
    """The kernel notes who connects when that happens."""
    sock = socket.socket(socket.AF_UNIX)
    os.seteuid(uid)
    try:
        sock.connect(path)
    finally:
        os.seteuid(0)
    return sock


# -- whom the mesh trusts


async def test_the_mesh_s_bundle_takes_the_place_of_the_chain_s_root(tmp_path: Path) -> None:
    other = issue("next", ca=True)
    crl = revocation_list(ROOT)
    async with authority() as ca:
        ca.tells_bundle = True
        ca.set_bundle(bundle(other, crl=crl))
        async with running(ca, tmp_path) as agent:
            await until(lambda: agent.agent.metrics.bundles)
            async with asked(agent.socket, "ROOTCA") as stream:
                found = await stream.next()
                assert roots_of(found) == other.pem
                assert found.validation_context.crl.inline_bytes == crl
                assert found.validation_context.only_verify_leaf_cert_crl
                ca.set_bundle(bundle(ROOT, other))
                assert roots_of(await stream.next()) == ROOT.pem + other.pem
                await until(lambda: len(ca.answers) == 2)
                assert [answer.version_info for answer in ca.answers] == ["1", "2"]


async def test_a_root_that_has_left_the_bundle_is_not_trusted_by_a_file(tmp_path: Path) -> None:
    other = issue("next", ca=True)
    async with authority() as ca:
        ca.tells_bundle = True
        ca.set_bundle(bundle(other))
        async with running(ca, tmp_path, renew_s=0.1) as agent:
            await until(lambda: agent.agent.metrics.bundles and agent.agent.metrics.certificates >= 2)
            assert roots_of(await secret(agent.socket, "ROOTCA")) == other.pem


async def test_a_bundle_of_federated_domains_goes_on_as_it_is(tmp_path: Path) -> None:
    """The roots by which the authority is believed stay those that came with the certificate."""
    config = SPIFFECertValidatorConfig()
    for domain, root in (("mesh.test", ROOT), ("other.test", FOREIGN)):
        config.trust_domains.add(name=domain).trust_bundle.inline_bytes = root.pem
    told = Secret(name="ROOTCA")
    told.validation_context.custom_validator_config.name = "envoy.tls.cert_validator.spiffe"
    told.validation_context.custom_validator_config.typed_config.Pack(config)
    async with authority() as ca:
        ca.tells_bundle = True
        ca.set_bundle(told)
        async with running(ca, tmp_path, renew_s=0.1) as agent:
            await until(lambda: agent.agent.metrics.bundles and agent.agent.metrics.certificates >= 2)
            assert await secret(agent.socket, "ROOTCA") == told
            assert agent.agent.secrets.trusted == ROOT.pem


@pytest.mark.parametrize("why", ["its root is gone", "it is revoked"])
async def test_a_certificate_that_the_mesh_takes_no_longer_is_renewed_at_once(tmp_path: Path, why: str) -> None:
    async with authority() as ca:
        ca.tells_bundle = True
        ca.set_bundle(bundle(ROOT))
        async with running(ca, tmp_path, "--renew-by-certificate") as agent:
            await until(lambda: len(ca.answers) == 1)
            (first,) = ca.certificates
            if why == "its root is gone":
                ca.root, ca.roots = FOREIGN, FOREIGN.pem
                ca.set_bundle(bundle(FOREIGN))
            else:
                ca.set_bundle(bundle(ROOT, crl=revocation_list(ROOT, Issued(first, ROOT.key))))
            await until(lambda: len(ca.certificates) == 2 and len(ca.answers) == 2)
            assert leaf_of(await secret(agent.socket, "default")) == ca.certificates[1]
            assert agent.agent.secrets.stands
        # Nobody believes it any more: the token says who we are.
        assert len([call for call in ca.calls if "authorization" in call]) >= 2


async def test_a_stream_of_bundles_that_ends_is_begun_anew(tmp_path: Path) -> None:
    async with authority() as ca:
        ca.tells_bundle = True
        ca.set_bundle(bundle(ROOT))
        async with running(ca, tmp_path) as agent:
            await until(lambda: len(ca.answers) == 1)
            ca.ends_streams = True
            ca.set_bundle(bundle(ROOT, FOREIGN))
            await until(lambda: len(ca.answers) == 2)
            assert agent.agent.metrics.bundle_failures == 0
            assert roots_of(await secret(agent.socket, "ROOTCA")) == ROOT.pem + FOREIGN.pem


@pytest.mark.parametrize("bad", ["nobody", "file", "rubbish", "another kind"])
async def test_a_bundle_that_is_refused_leaves_the_one_before_it(tmp_path: Path, bad: str) -> None:
    refused = Secret(name="ROOTCA")
    if bad == "file":
        refused.validation_context.trusted_ca.filename = "/etc/ssl/certs/ca-certificates.crt"
    elif bad == "rubbish":
        refused.validation_context.trusted_ca.inline_bytes = b"rubbish"
    elif bad == "another kind":
        refused.generic_secret.secret.inline_bytes = b"x"
    async with authority() as ca:
        ca.tells_bundle = True
        ca.set_bundle(bundle(ROOT))
        async with running(ca, tmp_path) as agent:
            await until(lambda: len(ca.answers) == 1)
            ca.set_bundle(refused)
            await until(lambda: len(ca.answers) == 2)
            assert ca.answers[1].error_detail.message
            assert roots_of(await secret(agent.socket, "ROOTCA")) == ROOT.pem
            ca.set_bundle(bundle(FOREIGN))
            await until(lambda: len(ca.answers) == 3)
            assert not ca.answers[2].HasField("error_detail")
            assert roots_of(await secret(agent.socket, "ROOTCA")) == FOREIGN.pem


async def test_several_roots_in_the_chain_s_last_element(tmp_path: Path) -> None:
    """As while a root is replaced by the next one."""
    other = issue("next", ca=True)
    async with authority() as ca:
        ca.roots = other.pem + ROOT.pem
        async with running(ca, tmp_path) as agent:
            assert roots_of(await secret(agent.socket, "ROOTCA")) == other.pem + ROOT.pem


# -- proof by certificate


async def test_it_begins_with_a_certificate_and_goes_on_with_its_own(tmp_path: Path) -> None:
    """No token at all."""
    first = issue("bootstrap", ROOT)
    (tmp_path / "b.pem").write_bytes(first.pem)
    (tmp_path / "b.key").write_bytes(first.key_pem)
    more = ("--bootstrap-cert", f"{tmp_path}/b.pem", "--bootstrap-key", f"{tmp_path}/b.key", "--renew-by-certificate")
    async with authority(asks=ROOT) as ca:
        flags = (*more, "--token-file", "")
        async with running(ca, tmp_path, *flags, renew_s=0.2) as agent, asked(agent.socket, "default") as stream:
            await stream.next()
            assert leaf_of(await stream.next()) == ca.certificates[1]
        assert ca.common_names[:2] == ["bootstrap", ""]  # our own has no subject: its identity is a URI
        assert "authorization" not in ca.calls[0]


async def test_where_the_certificate_is_not_believed_the_token_is(tmp_path: Path) -> None:
    async with authority() as ca:  # which does not ask for a certificate
        async with running(ca, tmp_path, "--renew-by-certificate", renew_s=0.1) as agent:
            await until(lambda: agent.agent.metrics.certificates >= 2)
            assert agent.agent.metrics.failures >= 1
        assert any("authorization" not in call for call in ca.calls)


# -- the end


async def test_an_address_that_is_not_to_be_had(tmp_path: Path) -> None:
    async with authority() as ca:
        (tmp_path / "run").write_text("a file")
        with pytest.raises(ConfigError, match="--sds-socket"):
            await Agent(settings(*flags_for(ca, tmp_path))).run(asyncio.Event())
