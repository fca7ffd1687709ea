"""Who a call is of: every proof, and whatever is none."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from meshproxy.codec import grpc as codes
from meshproxy.pilot.authority.contract import Caller
from meshproxy.pilot.authority.directory_store import DirectoryStore
from meshproxy.pilot.authority.jwks import FileKeys, Key, KeySetError
from meshproxy.pilot.authority.memory import Memory
from meshproxy.pilot.authority.proof import Prover
from meshproxy.pilot.authority.rotation import advance, new_root
from meshproxy.pilot.authority.settings import AuthoritySettings
from meshproxy.pilot.authority.token_uses import TokenUses
from meshproxy.pilot.authority.tokens import TokenVerifier
from meshproxy.pilot.authority.uids import UidTable
from meshproxy.rpc.server.call import Credentials, Peer, RpcFailure
from meshproxy.tls.spiffe import Identity
from tests.pilot.authority.fakes import AUDIENCE, ISSUER, TRUST_DOMAIN, FakeAuthority, FakeCall, Signer, bearer, jwks
from tests.pilot.authority.support import CALLER, CART, PASSPHRASE, START, opened
from tests.tls.certificates import Issued, issue, uri

WEB = Identity(TRUST_DOMAIN, "shop", "web")
TLS = Peer("10.0.0.1:4711", is_encrypted=True)
ROOT = issue("root", ca=True)


class World:
    """A prover, what it has told of those who prove nothing, and the bundle it goes by."""

    def __init__(self, folder: Path, *, tokens: bool = True, uids: bool = True) -> None:
        self.signer = Signer()
        self.refusals: list[tuple[str, str, str]] = []
        self.authority = FakeAuthority(ROOT)
        self.later_s = 0.0
        (folder / "jwks.json").write_bytes(jwks(self.signer))
        (folder / "uids.yaml").write_text("1000: shop/web")
        keys = FileKeys(str(folder / "jwks.json"))
        self.prover = Prover(
            (TRUST_DOMAIN, "old.test"),
            self.authority,
            lambda *told: self.refusals.append(told),
            TokenVerifier(keys, ISSUER, (AUDIENCE,), TRUST_DOMAIN) if tokens else None,
            UidTable(str(folder / "uids.yaml"), TRUST_DOMAIN) if uids else None,
            lambda: time.time() + self.later_s,
            uses=TokenUses(),
        )

    async def prove(self, peer: Peer, metadata: Mapping[str, Sequence[str]] | None = None) -> Caller:
        return (await self.prover.prove(FakeCall(peer, metadata=metadata))).caller

    async def refused(self, peer: Peer, metadata: Mapping[str, Sequence[str]] | None = None) -> tuple[str, str]:
        """Why, and what was tried. The caller is told nothing of it."""
        before = len(self.refusals)
        with pytest.raises(RpcFailure) as caught:
            await self.prove(peer, metadata)
        assert (caught.value.status, caught.value.message) == (codes.UNAUTHENTICATED, "no valid proof of identity")
        ((reason, proof, address),) = self.refusals[before:]
        assert address == peer.address
        return reason, proof


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def certified(
    name: str = WEB.uri, *, days: tuple[int, int] = (-1, 30), more: Sequence[str] = ()
) -> tuple[Peer, Issued]:
    """Somebody with a certificate of the mesh."""
    names = [name, *more]
    mine = issue("workload", ROOT, names=[each for text in names for each in uri(text)], days=days)
    return Peer("10.0.0.1:4711", uris=tuple(names), certificate=mine.der, is_encrypted=True), mine


def on_unix(uid: int) -> Peer:
    return Peer("unix:/run/pilot.sock", Credentials(77, uid, 5))


async def test_a_token(world: World) -> None:
    token = world.signer.token()
    assert await world.prove(TLS, bearer(token)) == Caller(WEB, "jwt", "10.0.0.1:4711")
    assert (await world.prove(on_unix(5), bearer(world.signer.token(jti="other")))).proof == "jwt"
    assert (await world.prove(TLS, {"authorization": [f"bearer {token}"]})).identity == WEB


async def test_a_token_counts_where_it_was_first_shown(world: World) -> None:
    token = bearer(world.signer.token())
    assert (await world.prove(TLS, token)).proof == "jwt"
    assert (await world.prove(Peer("10.0.0.1:9", is_encrypted=True), token)).proof == "jwt"
    stolen = ("a token that was first shown from another address", "jwt")
    assert await world.refused(Peer("10.0.0.2:4711", is_encrypted=True), token) == stolen
    assert await world.refused(Peer("[fd00::1]:4711", is_encrypted=True), token) == stolen
    assert await world.refused(on_unix(1000), token) == stolen
    assert (await world.prove(TLS, token)).proof == "jwt"


def test_so_many_tokens_are_remembered() -> None:
    uses = TokenUses(most=20)
    for number in range(20):
        assert uses.is_at_home(f"token {number}.x", "10.0.0.1:1", ends=100.0 + number, now=0.0)
    assert not uses.is_at_home("token 0.x", "10.0.0.2:1", ends=100.0, now=0.0)
    # None has ended: the first ones give way.
    assert uses.is_at_home("token 20.x", "10.0.0.1:1", ends=200.0, now=0.0)
    assert uses.is_at_home("token 0.x", "10.0.0.2:1", ends=100.0, now=0.0)
    assert not uses.is_at_home("token 19.x", "10.0.0.2:1", ends=119.0, now=0.0)
    # Those that have ended give way before others.
    for number in range(21, 40):
        assert uses.is_at_home(f"token {number}.x", "10.0.0.1:1", ends=300.0, now=150.0)
    assert not uses.is_at_home("token 20.x", "10.0.0.2:1", ends=200.0, now=150.0)


async def test_a_certificate(world: World) -> None:
    peer, _ = certified()
    assert await world.prove(peer) == Caller(WEB, "certificate", "10.0.0.1:4711")
    # One of an alias of the trust domain: the next is of the domain itself.
    peer, _ = certified("spiffe://old.test/ns/shop/sa/web")
    assert (await world.prove(peer)).identity == WEB


async def test_a_uid(world: World) -> None:
    caller = await world.prove(on_unix(1000))
    assert caller == Caller(WEB, "uid", "unix:/run/pilot.sock pid 77 uid 1000")
    assert await world.refused(on_unix(1001)) == ("uid 1001 is not in the table", "uid")


async def test_nothing_counts_in_the_clear(world: World) -> None:
    peer, _ = certified()
    plain = Peer(peer.address, uris=peer.uris, certificate=peer.certificate)
    assert (await world.refused(plain))[0] == "in the clear, over a network"
    assert await world.refused(Peer("10.0.0.1:1"), bearer(world.signer.token())) == (
        "in the clear, over a network",
        "jwt",
    )


async def test_nobody(world: World) -> None:
    assert await world.refused(TLS) == ("no proof", "")
    assert await world.refused(Peer("unix:/run/pilot.sock")) == ("no proof", "")  # a server that cannot tell the uid
    assert await world.refused(Peer("10.0.0.1:1", uris=(WEB.uri,), is_encrypted=True)) == ("no proof", "")


async def test_a_bad_token_is_worse_than_none(world: World) -> None:
    """Whatever else the caller has."""
    peer, _ = certified()
    bad = bearer(world.signer.token(exp=1))
    for who in (TLS, peer, on_unix(1000)):
        assert await world.refused(who, bad) == ("expired token", "jwt")
    for value in ("", "Basic YTpi", "Bearer", "Bearer ", world.signer.token()):
        assert (await world.refused(on_unix(1000), {"authorization": [value]}))[
            0
        ] == "the authorization is no bearer token"
    twice = {"authorization": [f"Bearer {world.signer.token()}"] * 2}
    assert (await world.refused(TLS, twice))[0] == "the authorization is no bearer token"


async def test_a_token_and_a_certificate_must_agree(world: World) -> None:
    peer, _ = certified("spiffe://mesh.test/ns/shop/sa/db")
    why = "a token and a certificate of different workloads"
    assert (await world.refused(peer, bearer(world.signer.token())))[0] == why
    peer, _ = certified()
    assert (await world.prove(peer, bearer(world.signer.token()))).proof == "jwt"


async def test_what_nobody_was_configured_to_verify(tmp_path: Path) -> None:
    world = World(tmp_path, tokens=False, uids=False)
    assert (await world.refused(TLS, bearer(world.signer.token())))[0] == "a token, and no key set to verify it with"
    assert (await world.refused(on_unix(1000)))[0] == "no proof"


@pytest.mark.parametrize("days", [(-30, -2), (2, 30)])
async def test_a_connection_may_outlive_its_certificate(world: World, days: tuple[int, int]) -> None:
    peer, _ = certified(days=days)
    assert await world.refused(peer) == ("the certificate has expired, or is not valid yet", "certificate")


async def test_a_revoked_certificate(world: World) -> None:
    peer, mine = certified()
    other, _ = certified()
    await world.prove(peer)
    world.authority.revoked_serials = frozenset({mine.certificate.serial_number})
    assert await world.refused(peer) == ("the certificate is revoked", "certificate")
    await world.prove(other)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("spiffe://foreign.test/ns/shop/sa/web",), "the certificate is of another trust domain"),
        (("spiffe://mesh.test/shop/web",), "the certificate is of no workload"),
        (("https://mesh.test/",), "the certificate is of no workload"),
        ((WEB.uri, "spiffe://mesh.test/ns/shop/sa/db"), "the certificate is of no workload"),
    ],
)
async def test_certificates_of_others(world: World, names: tuple[str, ...], why: str) -> None:
    peer, _ = certified(names[0], more=names[1:])
    assert await world.refused(peer) == (why, "certificate")


async def test_what_is_no_certificate(world: World) -> None:
    broken = Peer("10.0.0.1:1", uris=(WEB.uri,), certificate=b"nonsense", is_encrypted=True)
    assert await world.refused(broken) == ("malformed certificate", "certificate")


async def test_when_it_is_our_fault_the_caller_may_come_again() -> None:
    class NoKeys:
        async def candidates(self, key_id: str) -> list[Key]:
            raise KeySetError(f"no answer for {key_id}")

    told: list[str] = []
    tokens = TokenVerifier(NoKeys(), ISSUER, (AUDIENCE,), TRUST_DOMAIN)
    prover = Prover((TRUST_DOMAIN,), FakeAuthority(ROOT), lambda *why: told.append(why[0]), tokens)
    with pytest.raises(RpcFailure) as caught:
        await prover.prove(FakeCall(TLS, metadata=bearer(Signer().token())))
    assert (caught.value.status, caught.value.message) == (codes.UNAVAILABLE, "identities cannot be verified now")
    assert told == ["no keys: no answer for one"]


async def test_an_identity_that_is_shut_out(world: World) -> None:
    peer, _ = certified()
    held = await world.prover.prove(FakeCall(peer))
    world.authority.barred.add(WEB.uri)
    assert not world.prover.holds(held)
    for who, metadata in ((peer, None), (on_unix(1000), None), (TLS, bearer(world.signer.token()))):
        assert (await world.refused(who, metadata))[0] == "the identity is shut out"


async def test_a_proof_ends(world: World) -> None:
    peer, mine = certified()
    by_certificate = await world.prover.prove(FakeCall(peer))
    by_token = await world.prover.prove(FakeCall(TLS, metadata=bearer(world.signer.token(exp=int(time.time()) + 300))))
    by_uid = await world.prover.prove(FakeCall(on_unix(1000)))
    holding = [by_certificate, by_token, by_uid]
    assert all(map(world.prover.holds, holding))
    world.later_s = 400.0
    assert [world.prover.holds(each) for each in holding] == [True, False, True]
    world.later_s = 31 * 86400.0
    assert [world.prover.holds(each) for each in holding] == [False, False, True]
    world.later_s = 0.0
    world.authority.revoked_serials = frozenset({mine.certificate.serial_number})
    assert [world.prover.holds(each) for each in holding] == [False, True, True]


async def test_a_stolen_token_is_the_same_however_its_signature_is_written(world: World) -> None:
    """ECDSA has two for each: (r, s) and (r, n - s)."""
    token = world.signer.token()
    assert (await world.prove(TLS, bearer(token))).identity == WEB
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    other = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    same = bearer(f"{signed}.{base64.urlsafe_b64encode(other).rstrip(b'=').decode()}")
    assert (await world.prove(TLS, same)).identity == WEB
    stolen = ("a token that was first shown from another address", "jwt")
    assert await world.refused(replace(TLS, address="10.6.6.6:1"), same) == stolen


async def test_who_signed_it_is_trusted_no_longer(world: World) -> None:
    """The connection was made before: whose key was stolen makes as many certificates as he likes, for ever."""
    peer, mine = certified()
    held = await world.prover.prove(FakeCall(peer))
    world.authority.dropped.add(mine.certificate.issuer.rfc4514_string())
    assert not world.prover.holds(held)
    assert await world.refused(peer) == ("the certificate is of no issuer that is trusted now", "certificate")


async def test_only_certificates_of_the_authority_count_whoever_a_port_believes(tmp_path: Path) -> None:
    async with opened(tmp_path) as running:
        told: list[str] = []
        prover = Prover(("cluster.local",), running.authority, lambda *why: told.append(why[0]), clock=running.clock)
        made = await running.authority.issue(CALLER, 3600)
        certificate = x509.load_pem_x509_certificate(made.chain)
        peer = Peer(TLS.address, None, (CART.uri,), 0, certificate.public_bytes(serialization.Encoding.DER), True)
        held = await prover.prove(FakeCall(peer))
        assert held.caller.identity == CART
        foreign = issue("workload", ROOT, names=uri(CART.uri), days=(3000, 9000))
        running.clock.now = foreign.certificate.not_valid_before_utc.timestamp() + 1
        with pytest.raises(RpcFailure):
            await prover.prove(FakeCall(replace(peer, certificate=foreign.der)))
        assert told == ["the certificate is of no issuer that is trusted now"]
        running.clock.now = START

        settings, memory = AuthoritySettings(), Memory(DirectoryStore(str(tmp_path / "ca")), PASSPHRASE)
        await memory.change(lambda state, seal: new_root(state, settings, seal, START))
        for _ in range(2):  # it signs; the one before goes
            await memory.change(lambda state, _: advance(state, settings, START, [], hurry=True))
        await running.authority.issue(CALLER, 0)  # it finds out
        assert not prover.holds(held)
        with pytest.raises(RpcFailure):
            await prover.prove(FakeCall(peer))
