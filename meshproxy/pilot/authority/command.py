"""`meshproxy authority`: makes an authority, rotates its roots, revokes. Pilots that share its store follow at once."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from meshproxy.errors import ConfigError
from meshproxy.pilot.authority.audit import Audit
from meshproxy.pilot.authority.certificates import (
    check_chain,
    make_authority_csr,
    name_of,
    public_der_of,
    read_certificates,
    to_pem,
)
from meshproxy.pilot.authority.keys import Seal, make_key, public_der
from meshproxy.pilot.authority.memory import Memory, Remembered
from meshproxy.pilot.authority.open import open_store, read_passphrase, trust_domain
from meshproxy.pilot.authority.rotation import advance, new_root, signs_itself
from meshproxy.pilot.authority.settings import AuthorityError, AuthoritySettings
from meshproxy.pilot.authority.state import PREPARED, SIGNING, TRUSTED, Issuer, Revoked, State, changes
from meshproxy.pilot.authority.store import Record
from meshproxy.pilot.sources.source import SourceError
from meshproxy.server.secrecy import keep_memory_private
from meshproxy.tls.spiffe import parse_identity

_MAX_CHAIN_BYTES: Final = 256 * 1024


def run_authority(options: argparse.Namespace) -> int:
    """Do what the verb says; the exit code."""
    keep_memory_private()
    try:
        return asyncio.run(_run(options))
    except AuthorityError as error:
        print(f"meshproxy authority: {error}", file=sys.stderr)
        return 1
    except (ConfigError, SourceError) as error:
        print(f"meshproxy authority: {error}", file=sys.stderr)
        return 2


async def _run(options: argparse.Namespace) -> int:
    if not options.authority:
        raise ConfigError("--authority", "say where the authority is: a directory, or etcd")
    verbs: dict[str, Callable[[_Command], Awaitable[None]]] = {
        "init": _Command.init,
        "import": _Command.take_chain,
        "rotate": _Command.rotate,
        "revoke": _Command.revoke,
        "readmit": _Command.readmit,
        "status": _Command.status,
        "roots": _Command.roots,
    }
    command = _Command(options)
    try:
        await verbs[options.verb](command)
    finally:
        await command.close()
    return 0


class _Command:
    """One run. Methods raise AuthorityError, or ConfigError where a flag is wrong."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._now = time.time()
        self._settings = AuthoritySettings(  # what new roots are made by
            trust_domain=trust_domain(options),
            lifetime_s=1.0,
            longest_lifetime_s=1.0,
            overlap_s=0.0,
            root_lifetime_s=options.root_lifetime,
            key_type=options.authority_key,
        )
        self._audit = Audit(options.authority_audit)
        self._memory = Memory(open_store(options), read_passphrase(options))

    async def close(self) -> None:
        await self._memory.store.close()
        self._audit.close()

    # -- the verbs

    async def init(self) -> None:
        empty = State(self._settings.trust_domain)
        make = self._prepared if self._options.intermediate else self._rooted
        found, is_ours = await self._memory.create(lambda seal: make(empty, seal))
        if is_ours:
            self._write_down(empty, found.state)
        elif not (self._options.intermediate and found.state.in_phase(PREPARED)):
            raise AuthorityError(
                f"{self._memory.store.name}: holds an authority already (of {found.state.trust_domain})"
            )
        if self._options.intermediate:
            self._print_csr(found)

    async def rotate(self) -> None:
        if self._options.now:
            records = await self._memory.store.records(self._now)
            await self._change(lambda state, _: advance(state, self._settings, self._now, records, hurry=True))
        elif self._options.intermediate:
            self._print_csr(await self._change(self._prepared))
        else:
            await self._change(self._next_root)

    async def take_chain(self) -> None:
        chain = read_certificates(_file(self._what("a PEM file")), self._options.what)
        check_chain(chain, self._now)
        await self._change(lambda state, seal: _imported(state, seal, chain, self._now))

    async def revoke(self) -> None:
        uri = self._options.identity
        if bool(uri) == bool(self._options.what):
            raise ConfigError("revoke", "say which: a serial, or --identity URI")
        if uri:
            self._check_identity(uri)
            # First nobody issues any more: then what is out is known.
            await self._change(lambda state, _: replace(state, barred=tuple(sorted({*state.barred, uri}))))
        serial = -1 if uri else _serial(self._options.what)
        records = await self._memory.store.records(self._now)
        chosen = [each for each in records if (each.identity == uri if uri else each.serial == serial)]
        if not chosen and not uri:
            raise AuthorityError(f"{serial:x}: no certificate of this serial is out (it has ended, or is of others)")
        await self._change(lambda state, _: state.with_revoked(_revoked(state, chosen, self._now)))
        print(f"revoked: {len(chosen)}")

    async def readmit(self) -> None:
        uri = self._what("an identity")
        self._check_identity(uri)
        await self._change(lambda state, _: replace(state, barred=tuple(each for each in state.barred if each != uri)))

    async def status(self) -> None:
        view = _view((await self._read()).state)
        print(json.dumps(view, indent=1) if self._options.json else _status_text(view))

    async def roots(self) -> None:
        state = (await self._read()).state
        found: list[x509.Certificate] = []
        for issuer in state.trusted:
            root = read_certificates(issuer.chain, issuer.name)[-1]
            found += [root] if root not in found else []
        print(to_pem(found).decode(), end="")

    # -- what they share

    async def _read(self) -> Remembered:
        found = await self._memory.read()
        if found is None:
            raise AuthorityError(f"{self._memory.store.name}: there is no authority: meshproxy authority init")
        return found

    async def _change(self, decide: Callable[[State, Seal], State]) -> Remembered:
        before, found = await self._memory.change(decide)
        self._write_down(before, found.state)
        return found

    def _write_down(self, before: State, after: State) -> None:
        for event, details in changes(before, after):
            self._audit.changed(event, **details)

    def _what(self, name: str) -> str:
        if not self._options.what:
            raise ConfigError(self._options.verb, f"say what: {name}")
        return str(self._options.what)

    def _check_identity(self, uri: str) -> None:
        if parse_identity(uri) is None:
            raise ConfigError("identity", f"{uri!r} is not spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT")

    # -- states

    def _rooted(self, state: State, seal: Seal) -> State:
        return new_root(state, self._settings, seal, self._now)

    def _next_root(self, state: State, seal: Seal) -> State:
        if state.signing is None:
            raise AuthorityError("the certificate of the first intermediate was never imported")
        if state.in_phase(TRUSTED):
            raise AuthorityError("the next root is there, and signs when it was trusted long enough (or: rotate --now)")
        if not signs_itself(state):
            raise AuthorityError(
                "an outside authority signs this one: rotate --intermediate, then import what it gives"
            )
        return new_root(state, self._settings, seal, self._now)

    def _prepared(self, state: State, seal: Seal) -> State:
        """With a key whose certificate is to come; the one that waits already, where there is one."""
        if state.in_phase(PREPARED):
            return state
        key = make_key(self._options.authority_key)
        return state.with_issuer(Issuer(name_of(key), PREPARED, self._now, seal.lock(key)))

    def _print_csr(self, found: Remembered) -> None:
        waiting = found.state.in_phase(PREPARED)[0]
        print(make_authority_csr(found.seal.unlock(waiting.key), found.state.trust_domain).decode(), end="")


def _imported(state: State, seal: Seal, chain: Sequence[x509.Certificate], now: float) -> State:
    for issuer in state.in_phase(PREPARED):
        if public_der(seal.unlock(issuer.key)) == public_der_of(chain[0]):
            phase = TRUSTED if state.signing is not None else SIGNING
            return state.with_issuer(replace(issuer, phase=phase, since=now, chain=to_pem(chain)))
    raise AuthorityError(
        "the first certificate is of none of the keys that wait for one (authority init --intermediate)"
    )


def _revoked(state: State, records: Sequence[Record], now: float) -> list[Revoked]:
    """What an issuer signed that nobody trusts any more needs no revoking."""
    trusted = {each.name for each in state.trusted}
    return [Revoked(each.serial, each.issuer, now, each.not_after) for each in records if each.issuer in trusted]


def _serial(text: str) -> int:
    """Hexadecimal, as `openssl x509 -serial` prints it, or with colons."""
    try:
        return int(text.replace(":", ""), 16)
    except ValueError:
        raise ConfigError("serial", f"{text!r} is not a hexadecimal number") from None


def _file(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_CHAIN_BYTES)
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from None


def _view(state: State) -> dict[str, Any]:
    return {
        "trust_domain": state.trust_domain,
        "issuers": [
            {"name": each.name, "phase": each.phase, "since": _time(each.since), "ends": _ends(each)}
            for each in state.issuers
        ],
        "revoked": [{"serial": f"{each.serial:x}", "until": _time(each.not_after)} for each in state.revoked],
        "barred": list(state.barred),
    }


def _status_text(view: dict[str, Any]) -> str:
    lines = [f"trust domain {view['trust_domain']}"]
    lines += [
        f"{each['name']}  {each['phase']:8}  since {each['since']}  ends {each['ends']}" for each in view["issuers"]
    ]
    lines += [f"revoked  {each['serial']}  until {each['until']}" for each in view["revoked"]]
    lines += [f"barred   {each}" for each in view["barred"]]
    return "\n".join(lines)


def _ends(issuer: Issuer) -> str:
    return (
        _time(read_certificates(issuer.chain, issuer.name)[0].not_valid_after_utc.timestamp()) if issuer.chain else "-"
    )


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")
