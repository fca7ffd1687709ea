"""Bearer tokens: JSON Web Tokens (RFC 7519) of service accounts, as Kubernetes projects them into pods."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from meshproxy.pilot.authority.jwks import KeySetError, KeySource
from meshproxy.pilot.authority.unproved import Unproved
from meshproxy.tls.spiffe import Identity

MAX_TOKEN_BYTES: Final = 16 * 1024
LEEWAY_S: Final = 10.0  # clocks differ
_MAX_CANDIDATES: Final = 4  # keys that a token without a key's name is tried with
_SERVICE_ACCOUNT: Final = re.compile(r"system:serviceaccount:([^:]+):([^:]+)")
_REQUIRED: Final = ["exp", "iss", "sub", "aud"]


class Token(NamedTuple):
    """What a good one says; `expires_at` is Unix time."""

    identity: Identity
    expires_at: float


class TokenVerifier:
    """Of one issuer, for one of the audiences. Whatever is not as it must be raises Unproved, with the reason for the
    audit; nothing of a token is in it that was not verified."""

    def __init__(
        self,
        keys: KeySource,
        issuer: str,
        audiences: tuple[str, ...],
        trust_domain: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audiences = audiences
        self._trust_domain = trust_domain
        self._clock = clock

    async def verify(self, token: str) -> Token:
        """Whom the token is of, and until when."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unproved("the token is too long")
        claims = await self._claims(token)
        identity = self._identity_in(claims)
        if not identity.is_valid:
            raise Unproved("the token names no namespace and service account that may stand in an identity")
        return Token(identity, _time(claims, "exp") + LEEWAY_S)

    async def _claims(self, token: str) -> dict[str, Any]:
        import jwt

        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Unproved("malformed token") from None
        # RFC 7515 section 4.1.11: who does not know an extension that is critical refuses the token.
        if "crit" in header or "b64" in header:
            raise Unproved("the token has critical extensions")
        algorithm, key_id = header.get("alg"), header.get("kid", "")
        if not isinstance(algorithm, str) or not isinstance(key_id, str):
            raise Unproved("malformed token")
        try:
            candidates = await self._keys.candidates(key_id)
        except KeySetError as error:
            raise Unproved(f"no keys: {error}", is_ours=True) from None
        fitting = [key for key in candidates if algorithm in key.algorithms]
        if not fitting:
            raise Unproved("no key fits the token's key id and algorithm")
        failure = "bad signature"
        for key in fitting[:_MAX_CANDIDATES]:
            try:
                claims = jwt.decode(token, key.public, algorithms=[algorithm], options=_SIGNATURE_ONLY)
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
                failure = "malformed token"
                break
            self._check(claims)
            return dict(claims)
        raise Unproved(failure)

    def _check(self, claims: dict[str, Any]) -> None:
        """RFC 7519 section 4.1. The token is signed by then, so that what it says may be told."""
        for name in _REQUIRED:
            if name not in claims:
                raise Unproved(f"the token has no {name}")
        now = self._clock()
        if now >= _time(claims, "exp") + LEEWAY_S:
            raise Unproved("expired token")
        for name in ("nbf", "iat"):
            if name in claims and now < _time(claims, name) - LEEWAY_S:
                raise Unproved("the token is not valid yet")
        if claims["iss"] != self._issuer:
            raise Unproved("the token is of another issuer")
        audience = claims["aud"]
        meant = [audience] if isinstance(audience, str) else audience
        if not isinstance(meant, list) or not any(each in self._audiences for each in meant if isinstance(each, str)):
            raise Unproved("the token is for another audience")

    def _identity_in(self, claims: dict[str, Any]) -> Identity:
        found = _SERVICE_ACCOUNT.fullmatch(str(claims["sub"]))
        by_subject = None if found is None else Identity(self._trust_domain, *found.groups())
        by_claim = self._kubernetes_identity(claims.get("kubernetes.io"))
        if by_subject is not None and by_claim is not None and by_subject != by_claim:
            raise Unproved("the token names two service accounts")
        identity = by_subject or by_claim
        if identity is None:
            raise Unproved("the token names no service account")
        return identity

    def _kubernetes_identity(self, claim: Any) -> Identity | None:
        account = claim.get("serviceaccount") if isinstance(claim, dict) else None
        names = (claim.get("namespace"), account.get("name")) if isinstance(account, dict) else (None, None)
        namespace, name = names
        if not isinstance(namespace, str) or not isinstance(name, str):
            return None
        return Identity(self._trust_domain, namespace, name)


# What a token says is checked here, by one clock, when its signature is good.
_SIGNATURE_ONLY: Final[Any] = {
    "verify_signature": True,
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


def _time(claims: dict[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e15 < value < 1e15:
        raise Unproved(f"the token's {name} is no time")
    return float(value)
