"""Bearer tokens: RFC 7515, 7518, 7519 and the claims of Kubernetes' service accounts."""

from __future__ import annotations

import hashlib
import hmac
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.pilot.authority.jwks import FileKeys
from meshproxy.pilot.authority.tokens import MAX_TOKEN_BYTES, TokenVerifier
from meshproxy.pilot.authority.unproved import Unproved
from meshproxy.tls.spiffe import Identity
from tests.pilot.authority.fakes import AUDIENCE, ISSUER, TRUST_DOMAIN, Signer, jwks, unsigned

WEB = Identity(TRUST_DOMAIN, "shop", "web")


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


@pytest.fixture(scope="module")
def rsa_signer() -> Signer:
    return Signer("rsa", "RS256")


@pytest.fixture(scope="module")
def verifier(signer: Signer, rsa_signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> TokenVerifier:
    return verifier_of(tmp_path_factory.mktemp("keys"), signer, rsa_signer)


def verifier_of(folder: Path, *signers: Signer) -> TokenVerifier:
    path = folder / "jwks.json"
    path.write_bytes(jwks(*signers))
    return TokenVerifier(FileKeys(str(path)), ISSUER, (AUDIENCE, "other"), TRUST_DOMAIN)


async def reason(verifier: TokenVerifier, token: str) -> str:
    """Why the token is refused."""
    with pytest.raises(Unproved) as caught:
        await verifier.verify(token)
    assert len(token) < 40 or token not in caught.value.reason
    return caught.value.reason


async def test_a_service_account_by_its_subject(verifier: TokenVerifier, signer: Signer) -> None:
    assert (await verifier.verify(signer.token())).identity == WEB


async def test_a_service_account_by_its_claim(verifier: TokenVerifier, signer: Signer) -> None:
    claim: Any = {"namespace": "shop", "serviceaccount": {"name": "web", "uid": "7"}, "pod": {"name": "web-1"}}
    assert (await verifier.verify(signer.token(sub="a user id", **{"kubernetes.io": claim}))).identity == WEB
    assert (await verifier.verify(signer.token(**{"kubernetes.io": claim}))).identity == WEB


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
async def test_rsa_algorithms(verifier: TokenVerifier, rsa_signer: Signer, algorithm: str) -> None:
    assert (await verifier.verify(Signer("rsa", algorithm, rsa_signer.key).token())).identity == WEB


async def test_p_384(tmp_path: Path) -> None:
    signer = Signer("large", "ES384")
    assert (await verifier_of(tmp_path, signer).verify(signer.token())).identity == WEB


async def test_a_token_without_a_key_id(verifier: TokenVerifier, signer: Signer) -> None:
    token = jwt.encode(_claims(), signer.key, "ES256")
    assert (await verifier.verify(token)).identity == WEB


def _claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "system:serviceaccount:shop:web", "exp": now + 300, **more
    }  # fmt: skip


LATE = 4_000_000_000


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": 1}, "expired token"),
        ({"nbf": LATE, "exp": LATE + 1}, "the token is not valid yet"),
        ({"iat": LATE, "exp": LATE + 1}, "the token is not valid yet"),
        ({"exp": "tomorrow"}, "the token's exp is no time"),
        ({"exp": True}, "the token's exp is no time"),
        ({"exp": 1e300}, "the token's exp is no time"),
        ({"nbf": []}, "the token's nbf is no time"),
        ({"iss": "https://other.test"}, "the token is of another issuer"),
        ({"iss": [ISSUER]}, "the token is of another issuer"),
        ({"aud": "somebody"}, "the token is for another audience"),
        ({"aud": ["a", "b"]}, "the token is for another audience"),
        ({"aud": []}, "the token is for another audience"),
        ({"aud": {AUDIENCE: 1}}, "the token is for another audience"),
        ({"sub": "shop/web"}, "the token names no service account"),
        ({"sub": "system:serviceaccount:shop"}, "the token names no service account"),
        ({"sub": "system:serviceaccount:shop:web:x"}, "the token names no service account"),
        ({"sub": "system:serviceaccount:a/b:web"}, "the token names no namespace and service account that may stand"),
        ({"sub": "system:serviceaccount:..:web"}, "the token names no namespace and service account that may stand"),
        ({"sub": "system:serviceaccount:shop:web\n"}, "the token names no namespace and service account that may"),
        ({"sub": "x", "kubernetes.io": {"namespace": "shop"}}, "the token names no service account"),
        ({"sub": "x", "kubernetes.io": {"namespace": 1, "serviceaccount": {"name": 2}}}, "names no service account"),
        ({"kubernetes.io": {"namespace": "shop", "serviceaccount": {"name": "db"}}}, "names two service accounts"),
    ],
)
async def test_what_a_token_must_say(verifier: TokenVerifier, signer: Signer, claims: dict[str, Any], why: str) -> None:
    assert why in await reason(verifier, signer.token(**claims))


@pytest.mark.parametrize("name", ["exp", "iss", "aud", "sub"])
async def test_what_may_not_be_missing(verifier: TokenVerifier, signer: Signer, name: str) -> None:
    assert await reason(verifier, signer.token(without=name)) == f"the token has no {name}"


async def test_clocks_may_differ_a_little(tmp_path: Path, signer: Signer) -> None:
    now = [0.0]
    (tmp_path / "jwks.json").write_bytes(jwks(signer))
    keys = FileKeys(str(tmp_path / "jwks.json"))
    verifier = TokenVerifier(keys, ISSUER, (AUDIENCE,), TRUST_DOMAIN, clock=lambda: now[0])
    token = signer.token(iat=1000, nbf=1000, exp=2000)
    for moment, refused in ((989.0, True), (990.0, False), (2009.0, False), (2010.0, True)):
        now[0] = moment
        if refused:
            await reason(verifier, token)
        else:
            assert (await verifier.verify(token)).identity == WEB


async def test_whoever_could_only_verify_cannot_sign(
    verifier: TokenVerifier, signer: Signer, rsa_signer: Signer
) -> None:
    """RFC 8725 sections 2.1 and 3.1: `none`, and a public key as the secret of an HMAC."""
    assert "no key fits" in await reason(verifier, unsigned({"alg": "none", "kid": "one"}, _claims()))
    assert "no key fits" in await reason(verifier, unsigned({"alg": "None", "kid": "one"}, _claims()))
    for of in (signer, rsa_signer):
        public = of.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        head = unsigned({"alg": "HS256", "kid": of.key_id}, _claims()).rpartition(".")[0]
        signature = hmac.new(public, head.encode(), hashlib.sha256).digest()
        forged = unsigned({"alg": "HS256", "kid": of.key_id}, _claims(), signature)
        assert "no key fits" in await reason(verifier, forged)


async def test_another_key_under_the_same_name(verifier: TokenVerifier) -> None:
    assert await reason(verifier, Signer("one").token()) == "bad signature"
    assert "no key fits" in await reason(verifier, Signer("unknown").token())
    assert "no key fits" in await reason(verifier, Signer("rsa").token())  # it is no EC key


async def test_a_key_that_the_token_brings_along(verifier: TokenVerifier) -> None:
    """RFC 7515 sections 4.1.2 to 4.1.6 let tokens say where their key is: nobody follows."""
    stranger = Signer("one")
    for extra in ({"jwk": stranger.jwk}, {"jku": "https://evil.test/"}, {"x5c": ["abc"]}):
        assert await reason(verifier, stranger.token(headers=extra)) == "bad signature"


async def test_critical_extensions(verifier: TokenVerifier, signer: Signer) -> None:
    extensions: list[dict[str, Any]] = [{"crit": ["exp"], "exp": 1}, {"b64": False}, {"crit": []}]
    for extra in extensions:
        _, _, rest = signer.token().partition(".")
        forged = unsigned({"alg": "ES256", "kid": "one", **extra}, {}).partition(".")[0] + "." + rest
        assert await reason(verifier, forged) in {"the token has critical extensions", "malformed token"}


async def test_what_is_no_token(verifier: TokenVerifier, signer: Signer) -> None:
    good = signer.token()
    head, claims, signature = good.split(".")
    for bad in ("", "a", "a.b", "a.b.c", "....", good[:-2], f"{head}.{claims}.", f"{head}..{signature}", "é.b.c"):
        assert await reason(verifier, bad) in {"malformed token", "bad signature"}
    for header in ({"alg": 1}, {"alg": "ES256", "kid": 7}, {"alg": ["ES256"]}, {}):
        assert await reason(verifier, unsigned(header, {})) == "malformed token"
    assert await reason(verifier, good + "a" * MAX_TOKEN_BYTES) == "the token is too long"
    not_claims = jwt.api_jws.encode(b"[1]", signer.key, "ES256", headers={"kid": "one"})
    assert await reason(verifier, not_claims) == "malformed token"


@given(st.text(max_size=60), st.integers(0, 400), st.characters())
async def test_any_change_of_a_token_is_noticed(text: str, position: int, character: str) -> None:
    """One character more or less anywhere, or any text at all."""
    signer, verifier = _fixed()
    token = signer.token()
    position %= len(token) - 1  # the last character has bits that say nothing
    changed = token[:position] + character + token[position + 1 :]
    for bad in (text, changed):
        if bad != token:
            await reason_of_any(verifier, bad)


async def reason_of_any(verifier: TokenVerifier, token: str) -> None:
    with pytest.raises(Unproved):
        await verifier.verify(token)


_FIXED: list[tuple[Signer, TokenVerifier]] = []


def _fixed() -> tuple[Signer, TokenVerifier]:
    if not _FIXED:
        signer = Signer()

        class Keys:
            async def candidates(self, key_id: str) -> list[Any]:
                from meshproxy.pilot.authority.jwks import read_keys

                return [key for key in read_keys(jwks(signer)) if key.id == key_id]

        _FIXED.append((signer, TokenVerifier(Keys(), ISSUER, (AUDIENCE,), TRUST_DOMAIN)))
    return _FIXED[0]
