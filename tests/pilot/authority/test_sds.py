"""Secrets for those who prove who they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import SPIFFECertValidatorConfig

from meshproxy.codec import grpc as codes
from meshproxy.pilot.authority.contract import TrustBundle
from meshproxy.pilot.authority.jwks import FileKeys
from meshproxy.pilot.authority.proof import Prover
from meshproxy.pilot.authority.sds import AuthoritySecrets, CallerSecrets, roots_secret
from meshproxy.pilot.authority.tokens import LEEWAY_S, TokenVerifier
from meshproxy.rpc.server.call import Peer, RpcFailure
from tests.pilot.authority.fakes import AUDIENCE, ISSUER, TRUST_DOMAIN, FakeAuthority, FakeCall, Signer, bearer, jwks
from tests.tls.certificates import issue, revocation_list, uri

DOMAINS = (TRUST_DOMAIN, "old.test")
TLS = Peer("10.0.0.1:4711", is_encrypted=True)
WEB = "spiffe://mesh.test/ns/shop/sa/web"


class World:
    def __init__(self, folder: Path, lifetime_s: float = 3600.0) -> None:
        self.authority = FakeAuthority(lifetime_s=lifetime_s)
        self.signer = Signer()
        self.changed = asyncio.Event()
        (folder / "jwks.json").write_bytes(jwks(self.signer))
        self.late_s = 0.0

        def clock() -> float:
            return time.time() - self.late_s

        tokens = TokenVerifier(FileKeys(str(folder / "jwks.json")), ISSUER, (AUDIENCE,), TRUST_DOMAIN, clock)
        self.prover = Prover(DOMAINS, self.authority, lambda *_: None, tokens, clock=clock)
        self.source = AuthoritySecrets(self.authority, self.prover, DOMAINS)

    @asynccontextmanager
    async def open(self, peer: Peer = TLS, **claims: Any) -> AsyncIterator[CallerSecrets]:
        metadata = {} if peer.certificate else bearer(self.signer.token(**claims))
        secrets = await self.source.open(FakeCall(peer, metadata=metadata))
        secrets.watch(self.changed.set)
        try:
            yield secrets
        finally:
            secrets.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20.0):
            while not condition():
                await self.changed.wait()
                self.changed.clear()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def secret(secrets: CallerSecrets, name: str) -> Any:
    value = secrets.get(name)
    return None if value is None else Secret.FromString(value.data)


async def test_a_certificate_of_the_caller_with_its_key(world: World) -> None:
    async with world.open() as secrets:
        assert secrets.get("default") is None  # nobody has asked
        assert world.authority.calls == []
        secrets.want(frozenset({"default"}))
        await world.until(lambda: secrets.get("default") is not None)
        found = secret(secrets, "default")
        assert secrets.get("default") is secrets.get("default")
    leaf = x509.load_pem_x509_certificate(found.tls_certificate.certificate_chain.inline_bytes)
    key = serialization.load_pem_private_key(found.tls_certificate.private_key.inline_bytes, None)
    assert leaf.public_key() == key.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [WEB]
    assert found.name == "default"


async def test_it_is_renewed_as_long_as_it_is_wanted(tmp_path: Path) -> None:
    world = World(tmp_path, lifetime_s=0.2)
    async with world.open() as secrets:
        secrets.want(frozenset({"default", "ROOTCA"}))
        versions: set[str] = set()

        def seen() -> int:
            value = secrets.get("default")
            if value is not None:
                versions.add(value.version)
            return len(versions)

        await world.until(lambda: seen() >= 3)
        secrets.want(frozenset({"ROOTCA"}))
        assert secrets.get("default") is None
        asked = len(world.authority.calls)
        secrets.want(frozenset({"ROOTCA", "default"}))
        await world.until(lambda: secrets.get("default") is not None)
        assert len(world.authority.calls) == asked + 1


async def test_two_streams_have_two_keys(world: World) -> None:
    async with world.open() as one, world.open() as other:
        for each in (one, other):
            each.want(frozenset({"default"}))
        await world.until(lambda: None not in (one.get("default"), other.get("default")))
        keys = {secret(each, "default").tls_certificate.private_key.inline_bytes for each in (one, other)}
        assert len(keys) == 2


async def test_the_roots_and_what_is_revoked(world: World) -> None:
    async with world.open() as secrets, world.open() as other:
        first = secrets.get("ROOTCA")
        assert first is not None
        assert other.get("ROOTCA") is first  # made once for all
        context = secret(secrets, "ROOTCA").validation_context
        assert context.trusted_ca.inline_bytes == world.authority.root.pem
        assert not context.HasField("crl")
        root = world.authority.root
        crl = revocation_list(root)
        world.authority.set_bundle(TrustBundle(root.pem, crl))
        assert world.changed.is_set()
        second = secrets.get("ROOTCA")
        assert second is not None
        assert second.version != first.version
        context = secret(secrets, "ROOTCA").validation_context
        assert (context.crl.inline_bytes, context.only_verify_leaf_cert_crl) == (crl, True)
    assert world.authority.watched == 0


def test_federated_roots_count_for_their_domain_alone() -> None:
    bundle = TrustBundle(b"ours", b"", (("other.test", b"theirs"),))
    context = Secret.FromString(roots_secret(bundle, DOMAINS).data).validation_context
    assert not context.HasField("trusted_ca")
    config = SPIFFECertValidatorConfig()
    assert context.custom_validator_config.name == "envoy.tls.cert_validator.spiffe"
    assert context.custom_validator_config.typed_config.Unpack(config)
    assert {each.name: each.trust_bundle.inline_bytes for each in config.trust_domains} == {
        "mesh.test": b"ours",
        "old.test": b"ours",
        "other.test": b"theirs",
    }


async def test_a_name_that_nobody_has(world: World) -> None:
    async with world.open() as secrets:
        secrets.want(frozenset({"kubernetes://cert"}))
        assert secrets.get("kubernetes://cert") is None
        assert world.authority.calls == []


async def test_whoever_proves_nothing_gets_nothing(world: World) -> None:
    with pytest.raises(RpcFailure):
        await world.source.open(FakeCall(TLS))
    assert world.authority.watched == 0


async def ended(secrets: CallerSecrets) -> None:
    for name in ("ROOTCA", "default"):
        with pytest.raises(RpcFailure) as caught:
            secrets.get(name)
        assert caught.value.status == codes.UNAUTHENTICATED


async def test_a_stream_ends_with_its_token(world: World) -> None:
    # The clock of proofs stands an hour ago: it is the stream's timer, which goes by the real one, that tells.
    now, world.late_s = int(time.time()), 3600.0
    async with world.open(iat=now - 7200, exp=now - int(LEEWAY_S) + 2) as secrets:
        assert secrets.get("ROOTCA") is not None
        async with asyncio.timeout(20.0):
            await world.changed.wait()
        world.late_s = -60.0
        await ended(secrets)


async def test_a_stream_ends_when_its_identity_is_shut_out(world: World) -> None:
    async with world.open() as secrets:
        secrets.get("ROOTCA")
        world.authority.barred.add(WEB)
        await ended(secrets)


async def test_a_stream_ends_when_its_certificate_is_revoked(world: World) -> None:
    root = world.authority.root
    mine = issue("workload", root, names=uri(WEB))
    async with world.open(Peer("10.0.0.1:1", uris=(WEB,), certificate=mine.der, is_encrypted=True)) as secrets:
        secrets.get("ROOTCA")
        world.authority.revoked_serials = frozenset({mine.certificate.serial_number})
        await ended(secrets)
