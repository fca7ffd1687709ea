"""The authority of a mesh: signs what callers who proved who they are ask for, and says whom to believe."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self

from cryptography import x509

from meshproxy.codec import grpc as codes
from meshproxy.observe.log import component_logger
from meshproxy.pilot.authority.audit import Audit
from meshproxy.pilot.authority.certificates import (
    BadRequestError,
    PublicKey,
    Signer,
    Validity,
    leaf_validity,
    make_leaf,
    new_serial,
    read_csr,
    to_pem,
)
from meshproxy.pilot.authority.contract import Caller, Issued, Refused, TrustBundle
from meshproxy.pilot.authority.federation import Federation
from meshproxy.pilot.authority.keys import Seal, key_pem, make_key
from meshproxy.pilot.authority.limits import Bucket, Limits
from meshproxy.pilot.authority.material import Crl, Material, make_crls, make_material
from meshproxy.pilot.authority.memory import Memory, Remembered
from meshproxy.pilot.authority.metrics import AuthorityMetrics
from meshproxy.pilot.authority.rotation import advance, due_at, is_due, new_root, signs_itself
from meshproxy.pilot.authority.settings import AuthorityError, AuthoritySettings
from meshproxy.pilot.authority.state import RETIRING, SIGNING, TRUSTED, State, changes
from meshproxy.pilot.authority.store import ConflictError, Record, Store

_TRIES: Final = 4
_LINES_A_SECOND: Final = 10.0  # of the audit, about those who ask too often
_LINES_AT_ONCE: Final = 100.0
_LEAST_LIFETIME_S: Final = 1.0
_LOOKS: Final = 20  # in the shortest of the times that it has to keep
_LOOK_S: Final = (0.1, 60.0)


@dataclass(frozen=True, slots=True)
class _Used:
    """What is signed with, and the version of the store that it is."""

    remembered: Remembered
    material: Material
    crl: Crl


class CertificateAuthority:
    """Implements contract.Authority; used by one event loop. Several processes may share its store."""

    def __init__(
        self,
        memory: Memory,
        used: _Used,
        settings: AuthoritySettings,
        audit: Audit,
        metrics: AuthorityMetrics,
        federation: Federation,
        now: Callable[[], float],
    ) -> None:
        """For `open`."""
        self.audit = audit
        self.metrics = metrics
        self._memory = memory
        self._used = used
        self._settings = settings
        self._federation = federation
        self._federated = federation.known
        self._now = now
        self._limits = Limits(
            (settings.identity_rate, settings.identity_burst), (settings.rate, settings.burst), time.monotonic()
        )
        self._lines = Bucket(_LINES_A_SECOND, _LINES_AT_ONCE, time.monotonic())
        self._untold = 0  # refusals since the last line about those who ask too often
        self._bundle = self._make_bundle()
        self._watchers: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._taking = asyncio.Lock()
        self._told: set[str] = set()
        self._log = component_logger("authority")
        self._show()

    @classmethod
    async def open(
        cls,
        store: Store,
        passphrase: bytes,
        settings: AuthoritySettings,
        audit: Audit,
        metrics: AuthorityMetrics,
        now: Callable[[], float] = time.time,
    ) -> Self:
        """With what is stored, or with a new root where nothing is. Raises AuthorityError."""
        federation = Federation(settings.federated)
        await asyncio.to_thread(federation.read, strict=True)
        memory = Memory(store, passphrase)
        empty = State(settings.trust_domain)
        found, is_new = await memory.create(lambda seal: new_root(empty, settings, seal, now()))
        if found.state.trust_domain != settings.trust_domain:
            raise AuthorityError(
                f"{store.name}: is the authority of {found.state.trust_domain}, not of {settings.trust_domain}"
            )
        used = await asyncio.to_thread(_use, found, None, store.name, now(), settings)
        if is_new:
            await asyncio.to_thread(_audit_changes, audit, empty, found.state)
        return cls(memory, used, settings, audit, metrics, federation, now)

    def start(self) -> None:
        """Follow the store, rotate roots, renew CRLs."""
        self._tasks = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._tend())]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def close(self) -> None:
        """End that, and give back the store."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._memory.store.close()
        self.audit.close()

    # -- what it is asked

    @property
    def trust_domain(self) -> str:
        return self._settings.trust_domain

    @property
    def revoked_serials(self) -> frozenset[int]:
        """Of certificates that have not ended, by any issuer that is still trusted."""
        return self._used.material.revoked

    def is_barred(self, identity_uri: str) -> bool:
        """Whether an operator has shut this identity out."""
        return identity_uri in self._used.material.state.barred

    def issuer_of(self, certificate: x509.Certificate) -> str:
        """The name of the issuer that has signed it, and is trusted now; "" for none."""
        return self._used.material.issuer_of(certificate)

    def trusts(self, issuer: str) -> bool:
        """Whether the issuer of this name still is."""
        return issuer in self._used.material.signers

    def stands(self, issued: Issued) -> bool:
        """Whether the mesh still believes a certificate of ours, whatever the time: it is not revoked, and its issuer
        was not dropped in a hurry."""
        material = self._used.material
        return issued.serial not in material.revoked and material.knows_issuer_of(issued.chain)

    async def sign(self, csr: bytes, caller: Caller, lifetime_s: float) -> Issued:
        """See contract.Authority."""
        return await self._issue(caller, lifetime_s, csr)

    async def issue(self, caller: Caller, lifetime_s: float, dns_names: tuple[str, ...] = ()) -> Issued:
        """See contract.Authority."""
        return await self._issue(caller, lifetime_s, None, dns_names)

    def bundle(self) -> TrustBundle:
        """See contract.Authority."""
        return self._bundle

    def watch(self, on_change: Callable[[], None]) -> Callable[[], None]:
        """See contract.Authority."""
        self._watchers.append(on_change)
        return lambda: self._watchers.remove(on_change)

    def view(self) -> dict[str, Any]:
        """For a page: no keys."""
        state = self._used.material.state
        return {
            "trust_domain": state.trust_domain,
            "store": self._memory.store.name,
            "issuers": [
                {
                    "name": each.name,
                    "phase": each.phase,
                    "since": each.since,
                    "not_after": self._used.material.signers[each.name].ends,
                    "successor_due": due_at(each, self._settings),
                }
                for each in state.trusted
            ],
            "revoked": [f"{each.serial:x}" for each in state.revoked],
            "barred": list(state.barred),
            "federated": [domain for domain, _ in self._federated],
            "lifetime_s": self._settings.lifetime_s,
            "longest_lifetime_s": self._settings.longest_lifetime_s,
        }

    # -- issuing

    async def _issue(self, caller: Caller, lifetime_s: float, csr: bytes | None, hosts: tuple[str, ...] = ()) -> Issued:
        began = time.perf_counter()
        lifetime_s = await self._admitted(caller, lifetime_s)
        for _ in range(_TRIES):
            used = self._used
            if caller.identity.uri in used.material.state.barred:
                await self._refuse(caller, codes.PERMISSION_DENIED, "barred", "this identity gets no certificates")
            issuer, signer = await self._signer(caller, used)
            validity = leaf_validity(self._now(), lifetime_s, self._settings.skew_s, signer.ends)
            try:
                issued = await asyncio.to_thread(_make, signer, (caller.identity.uri, *hosts), validity, csr)
                record = Record(issued.serial, issuer, caller.identity.uri, issued.not_after)
                await self._memory.store.record(record, used.remembered.stored)
                await asyncio.to_thread(self._audit_issue, caller, issued, issuer)
            except BadRequestError as error:
                status = codes.PERMISSION_DENIED if error.foreign else codes.INVALID_ARGUMENT
                await self._refuse(caller, status, "foreign" if error.foreign else "csr", error.reason)
            except ConflictError:
                await self._reload(caller)
            except AuthorityError as error:
                await self._refuse_for_store(caller, error)
            else:
                self.metrics.issued.labels(caller.proof).inc()
                self.metrics.sign.observe(time.perf_counter() - began)
                return issued
        return await self._refuse(caller, codes.UNAVAILABLE, "store", "the authority is being changed")

    async def _admitted(self, caller: Caller, lifetime_s: float) -> float:
        """The lifetime that it may have."""
        identity = caller.identity
        if not identity.is_valid or identity.trust_domain != self.trust_domain:
            await self._refuse(caller, codes.PERMISSION_DENIED, "trust_domain", "an identity of another trust domain")
        over = self._limits.refusal(identity.uri, time.monotonic())
        if over:
            await self._refuse_many(caller, over)
        if not math.isfinite(lifetime_s) or (lifetime_s != 0.0 and lifetime_s < _LEAST_LIFETIME_S):
            await self._refuse(caller, codes.INVALID_ARGUMENT, "lifetime", "a lifetime is a second at least")
        return min(lifetime_s or self._settings.lifetime_s, self._settings.longest_lifetime_s)

    async def _signer(self, caller: Caller, used: _Used) -> tuple[str, Signer]:
        signing = used.material.signing
        if signing is None:
            await self._refuse(caller, codes.UNAVAILABLE, "issuer", "the authority has no certificate yet")
        if signing[1].ends < self._now() + _LEAST_LIFETIME_S:
            await self._refuse(caller, codes.UNAVAILABLE, "issuer", "the certificate of the authority has ended")
        return signing

    def _audit_issue(self, caller: Caller, issued: Issued, issuer: str) -> None:
        self.audit.issued(
            caller.identity.uri,
            caller.proof,
            caller.address,
            serial=issued.serial,
            issuer=issuer,
            not_after=issued.not_after,
            lifetime_s=issued.not_after - issued.not_before,
        )

    async def _refuse(self, caller: Caller, status: int, code: str, reason: str, answer: str = "") -> NoReturn:
        """`answer` is what the caller is told, where it is not the reason."""
        self.metrics.refused.labels(code).inc()
        try:
            uri = caller.identity.uri
            await asyncio.to_thread(self.audit.refused, reason, uri, caller.proof, caller.address, code)
        except AuthorityError as error:
            self._log.error("%s", error)
        raise Refused(status, answer or reason)

    async def _refuse_many(self, caller: Caller, reason: str) -> NoReturn:
        """Who asks too often fills no disk either: beyond some lines a second it is only counted, and told later."""
        if self._lines.has_one(time.monotonic()):
            self._lines.take()
            untold, self._untold = self._untold, 0
            told = f"{reason} (and {untold} refusals before it that are not told)" if untold else reason
            await self._refuse(caller, codes.RESOURCE_EXHAUSTED, "rate", told, reason)
        self._untold += 1
        self.metrics.refused.labels("rate").inc()
        raise Refused(codes.RESOURCE_EXHAUSTED, reason)

    async def _refuse_for_store(self, caller: Caller, error: AuthorityError) -> NoReturn:
        """What is wrong is for our log: it says where things are."""
        self.metrics.failures.inc()
        self._log.warning("%s", error)
        await self._refuse(caller, codes.UNAVAILABLE, "store", "the authority cannot do its work")

    async def _reload(self, caller: Caller) -> None:
        try:
            found = await self._memory.read()
            if found is None:
                raise AuthorityError(f"{self._memory.store.name}: the state is gone")
            await self._take(found)
        except AuthorityError as error:
            await self._refuse_for_store(caller, error)

    # -- going with the time

    async def _follow(self) -> None:
        """What others make of the store."""
        async with aclosing(self._memory.watch(self._used.remembered)) as states:  # type: ignore[type-var]
            async for found in states:
                await self._safely(self._take(found))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._log.critical("the authority does not look after itself any more", exc_info=task.exception())

    async def _tend(self) -> None:
        settings = self._settings
        shortest = min(settings.longest_lifetime_s, settings.crl_lifetime_s, settings.root_lifetime_s)
        shortest = min(each for each in (shortest, settings.overlap_s, settings.rotate_after_s) if each > 0.0)
        low, high = _LOOK_S
        while True:
            await asyncio.sleep(max(low, min(high, shortest / _LOOKS)))
            await self._safely(self.tend())

    async def _safely(self, work: Coroutine[Any, Any, None]) -> None:
        """What fails is logged and counted, and tried again in its time."""
        try:
            await work
        except AuthorityError as error:
            self.metrics.failures.inc()
            self._log.warning("the authority goes on with what it knows: %s", error)

    async def tend(self) -> None:
        """Everything that is due now. Raises AuthorityError."""
        now, settings = self._now(), self._settings
        state = self._used.material.state
        records = await self._memory.store.records(now) if state.in_phase(RETIRING) else []

        def decide(present: State, seal: Seal) -> State:
            if signs_itself(present) and is_due(present, settings, now):
                present = new_root(present, settings, seal, now)
            return advance(present, settings, now, records)

        wants_root = is_due(state, settings, now)
        if wants_root and not signs_itself(state):
            self._log_once("the intermediate is old: meshproxy authority rotate --intermediate")
        if (wants_root and signs_itself(state)) or advance(state, settings, now, records) != state:
            before, found = await self._memory.change(decide)
            await asyncio.to_thread(_audit_changes, self.audit, before, found.state)
            await self._take(found)
        await self._memory.store.forget(now)
        self._federated = await asyncio.to_thread(self._federation.read)
        if now >= self._used.crl.renew_at:
            await self._take(self._used.remembered)
        self._show()
        self._tell()

    def _log_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._log.warning("%s", message)

    async def _take(self, found: Remembered) -> None:
        """Use this state from now on, unless a later one is known."""
        name, now = self._memory.store.name, self._now()
        async with self._taking:
            if found.state.version < self._used.remembered.state.version:
                self._log.warning("%s: an older state than the one in use is passed over", name)
                return
            self._used = await asyncio.to_thread(_use, found, self._used, name, now, self._settings)
        self._show()
        self._tell()

    def _tell(self) -> None:
        bundle = self._make_bundle()
        if bundle != self._bundle:
            self._bundle = bundle
            self.metrics.bundles.inc()
            for on_change in list(self._watchers):
                on_change()

    def _make_bundle(self) -> TrustBundle:
        return TrustBundle(self._used.material.roots, self._used.crl.pem, self._federated)

    def _show(self) -> None:
        metrics, material, now = self.metrics, self._used.material, self._now()
        metrics.revoked.set(len(material.revoked))
        for phase in (TRUSTED, SIGNING, RETIRING):
            metrics.issuers.labels(phase).set(len(material.state.in_phase(phase)))
        signing = material.signing
        metrics.ends.set(0.0 if signing is None else signing[1].ends - now)
        metrics.root_ends.set(max(0.0, material.root_ends - now))


def _use(found: Remembered, before: _Used | None, where: str, now: float, settings: AuthoritySettings) -> _Used:
    """Keys are decrypted and CRLs signed where they are others than before."""
    material = make_material(found.state, found.seal, where, None if before is None else before.material)
    crl = None if before is None else before.crl
    names = tuple(each.name for each in found.state.trusted)
    if crl is None or (crl.number, crl.issuers) != (found.state.crl_number, names) or now >= crl.renew_at:
        crl = make_crls(material, now, settings.crl_lifetime_s)
    return _Used(found, material, crl)


def _make(signer: Signer, names: tuple[str, ...], validity: Validity, csr: bytes | None) -> Issued:
    """`names` are the identity, then hosts. Raises BadRequestError."""
    own = make_key("P-256") if csr is None else None
    key: PublicKey = read_csr(csr, names[0]) if csr is not None else own.public_key()  # type: ignore[union-attr]
    certificate = make_leaf(signer, key, names, validity, new_serial())
    return Issued(
        chain=to_pem([certificate]) + signer.chain,
        serial=certificate.serial_number,
        not_before=float(validity.not_before),
        not_after=float(validity.not_after),
        key=b"" if own is None else key_pem(own),
    )


def _audit_changes(audit: Audit, before: State, after: State) -> None:
    for event, details in changes(before, after):
        audit.changed(event, **details)
