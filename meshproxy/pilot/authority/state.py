"""What an authority remembers, as one document: all pilots that share it replace it as a whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from meshproxy.pilot.authority.keys import Seal
from meshproxy.pilot.authority.settings import AuthorityError

# The life of an issuer. One of an outside authority is PREPARED until its certificate is imported; a root of our own
# begins TRUSTED. When nothing that it signed is valid any more, a RETIRING one is forgotten.
PREPARED: Final = "prepared"  # has a key; nobody knows of it
TRUSTED: Final = "trusted"  # everybody believes it; it does not sign yet
SIGNING: Final = "signing"
RETIRING: Final = "retiring"  # everybody still believes it
_PHASES: Final = (PREPARED, TRUSTED, SIGNING, RETIRING)

MAX_REVOKED: Final = 10_000
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Issuer:
    """A root of ours, or an intermediate that an outside authority signed. All PEM; `key` is encrypted."""

    name: str  # of its key: what an operator calls it by
    phase: str
    since: float  # Unix time
    key: bytes
    chain: bytes = b""  # its own certificate first, on up to the root; empty while it is prepared


@dataclass(frozen=True, slots=True)
class Revoked:
    """A certificate that nobody is to believe, until it would have ended by itself."""

    serial: int
    issuer: str
    at: float
    not_after: float


@dataclass(frozen=True, slots=True)
class State:
    """`version` grows with each change that is stored: an older state is known as such. `barred` are identities (URIs)
    that get no certificates; `crl_number` grows with each change of `revoked`."""

    trust_domain: str
    issuers: tuple[Issuer, ...] = ()
    revoked: tuple[Revoked, ...] = ()
    barred: tuple[str, ...] = ()
    crl_number: int = 0
    version: int = 1

    def in_phase(self, *phases: str) -> tuple[Issuer, ...]:
        return tuple(each for each in self.issuers if each.phase in phases)

    @property
    def trusted(self) -> tuple[Issuer, ...]:
        """Whose roots the bundle holds, in an order that no phase changes."""
        return tuple(sorted(self.in_phase(TRUSTED, SIGNING, RETIRING), key=lambda issuer: issuer.name))

    @property
    def signing(self) -> Issuer | None:
        return next(iter(self.in_phase(SIGNING)), None)

    def with_issuer(self, issuer: Issuer) -> State:
        """In the place of the one of the same name, or as another one."""
        others = tuple(each for each in self.issuers if each.name != issuer.name)
        return replace(self, issuers=(*others, issuer))

    def without_issuer(self, name: str) -> State:
        """And without what it had revoked: nobody believes it any more."""
        return replace(
            self,
            issuers=tuple(each for each in self.issuers if each.name != name),
            revoked=tuple(each for each in self.revoked if each.issuer != name),
        )

    def with_revoked(self, more: Sequence[Revoked]) -> State:
        """Raises AuthorityError when it becomes too much: then the root is to be rotated."""
        known = {each.serial for each in self.revoked}
        revoked = self.revoked + tuple(each for each in more if each.serial not in known)
        if len(revoked) > MAX_REVOKED:
            raise AuthorityError(f"more than {MAX_REVOKED} certificates would be revoked: rotate the root instead")
        return replace(self, revoked=revoked, crl_number=self.crl_number + (len(revoked) > len(self.revoked)))


# -- as text


def seal_state(state: State, seal: Seal) -> bytes:
    """What is stored: JSON, private keys encrypted, the whole authenticated."""
    content = _state_json(state)
    document = {
        "meshproxy_authority": _VERSION,
        "salt": seal.salt.hex(),
        "mac": seal.mac(_canonical(content)),
        "state": content,
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def salt_of(text: bytes, where: str) -> bytes:
    """With which a seal for this text is made. Raises AuthorityError, which names `where`."""
    document = _document(text, where)
    try:
        return bytes.fromhex(document["salt"])
    except (KeyError, TypeError, ValueError):
        raise AuthorityError(f"{where}: is damaged: no salt") from None


def unseal_state(text: bytes, seal: Seal, where: str) -> State:
    """Raises AuthorityError where it is damaged, or was written by one who does not know the passphrase."""
    document = _document(text, where)
    content, mac = document.get("state"), document.get("mac")
    if not isinstance(mac, str) or not seal.proves(_canonical(content), mac):
        raise AuthorityError(f"{where}: the passphrase is another one, or the content was changed")
    try:
        return _state(content)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise AuthorityError(f"{where}: is damaged") from None


def _document(text: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise AuthorityError(f"{where}: is damaged: no JSON") from None
    if not isinstance(document, dict) or document.get("meshproxy_authority") != _VERSION:
        raise AuthorityError(f"{where}: is not the state of an authority (of version {_VERSION})")
    return document


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _state_json(state: State) -> dict[str, Any]:
    return {
        "trust_domain": state.trust_domain,
        "issuers": [
            {
                "name": each.name,
                "phase": each.phase,
                "since": each.since,
                "key": each.key.decode(),
                "chain": each.chain.decode(),
            }
            for each in state.issuers
        ],
        "revoked": [
            {"serial": f"{each.serial:x}", "issuer": each.issuer, "at": each.at, "not_after": each.not_after}
            for each in state.revoked
        ],
        "barred": list(state.barred),
        "crl_number": state.crl_number,
        "version": state.version,
    }


def _state(content: Any) -> State:
    state = State(
        trust_domain=str(content["trust_domain"]),
        issuers=tuple(
            Issuer(each["name"], each["phase"], float(each["since"]), each["key"].encode(), each["chain"].encode())
            for each in content["issuers"]
        ),
        revoked=tuple(
            Revoked(int(each["serial"], 16), each["issuer"], float(each["at"]), float(each["not_after"]))
            for each in content["revoked"]
        ),
        barred=tuple(map(str, content["barred"])),
        crl_number=int(content["crl_number"]),
        version=int(content["version"]),
    )
    if any(each.phase not in _PHASES for each in state.issuers) or len(state.in_phase(SIGNING)) > 1:
        raise ValueError("phases")
    return state


# -- what happened


def changes(before: State, after: State) -> list[tuple[str, dict[str, str | float]]]:
    """What the audit says of it: events and details."""
    found: list[tuple[str, dict[str, str | float]]] = []
    old = {each.name: each for each in before.issuers}
    for issuer in after.issuers:
        known = old.pop(issuer.name, None)
        if known is None or known.phase != issuer.phase:
            found.append((f"issuer_{issuer.phase}", {"issuer": issuer.name}))
    found += [("issuer_forgotten", {"issuer": name}) for name in old]
    known_serials = {each.serial for each in before.revoked}
    found += [
        ("revoked", {"serial": f"{each.serial:x}", "issuer": each.issuer})
        for each in after.revoked
        if each.serial not in known_serials
    ]
    found += [("barred", {"identity": each}) for each in after.barred if each not in before.barred]
    found += [("readmitted", {"identity": each}) for each in before.barred if each not in after.barred]
    return found
