"""A pilot: rules from a source, the snapshots that they come to, and the servers of both."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from meshproxy.errors import ConfigError
from meshproxy.net.address import Address
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.pilot.mesh.model import Mesh, MeshConfig
from meshproxy.pilot.mesh.rulebook import Rejection, RuleBook
from meshproxy.pilot.proxy import proxy_of
from meshproxy.pilot.resources.translator import Translator
from meshproxy.pilot.resources.trial import reasons_against
from meshproxy.pilot.server.debounce import Debounce
from meshproxy.pilot.server.identity import identified, proof_of_workload
from meshproxy.pilot.server.metrics import Metrics
from meshproxy.pilot.server.pages import Pages
from meshproxy.pilot.server.server import DiscoveryServer
from meshproxy.pilot.server.snapshots import Builder, Snapshots
from meshproxy.pilot.server.streams import Streams
from meshproxy.pilot.server.tls import PortTls, TlsFiles
from meshproxy.pilot.snapshot import Proxy, Snapshot
from meshproxy.pilot.sources.source import RuleSet, RuleSource
from meshproxy.server.admin.server import AdminServer
from meshproxy.server.whole_file import write_whole

if TYPE_CHECKING:
    from meshproxy.pilot.server.authority import AuthorityServer, OpenAuthority, ProofSettings

# How long a thread may hold the interpreter while others wait: what is built must not be felt by the streams.
_SWITCH_S: Final = 0.001
_LOCAL: Final = ("unix:", "127.", "localhost:", "[::1]:")
_LAST_CALLS_S: Final = 1.0  # of the authority's callers, when the pilot ends
_log: Final = logging.getLogger("meshproxy.pilot")


@dataclass(frozen=True, slots=True)
class PilotSettings:
    """What the flags of `meshproxy pilot` say."""

    listen: tuple[str, ...]  # host:port or unix:PATH
    http: Address | None
    tls: TlsFiles | None = None  # for ports; Unix sockets have none
    mesh: MeshConfig = field(default_factory=MeshConfig)
    debounce_quiet_s: float = 0.1
    debounce_most_s: float = 10.0
    deadline_s: float = 30.0
    drain_s: float = 5.0
    max_connection_age_s: float = 0.0
    any_certificate: bool = False  # one without a SPIFFE identity will do
    csds: bool = False
    address_path: str = ""
    proof: ProofSettings | None = None  # there is one where there is an authority


class Pilot:
    """Everything of one process. `addresses` and `http_address` are what it listens on once it has started; those of
    `authority`, the authority's own ports."""

    def __init__(
        self, source: RuleSource, settings: PilotSettings, open_authority: OpenAuthority | None = None
    ) -> None:
        self.metrics = Metrics()
        self.snapshots = Snapshots(TranslatedMesh(), self.metrics)
        proves = settings.tls is not None and bool(settings.tls.ca) and not settings.any_certificate
        identify = identified(proxy_of, required=proves)
        self.streams = Streams(self.snapshots, identify, self.metrics, settings.deadline_s)
        self.server = DiscoveryServer(self.streams, settings.max_connection_age_s, csds=settings.csds)
        self.addresses: list[str] = []
        self.http_address: Address | None = None
        self.authority: AuthorityServer | None = None
        self._open_authority = open_authority
        self._settings = settings
        self._source = source
        self._rules = RuleBook(settings.mesh, reasons_against)
        self._pages = Pages(self.server, self._describe_rules, self._describe_authority)
        self._admin: AdminServer | None = None
        self._latest: RuleSet | None = None
        self._changed_at = 0.0
        self._wake = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises ConfigError when an address cannot be listened on, and SourceError when the
        source cannot be read at all."""
        sys.setswitchinterval(_SWITCH_S)
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._listen()
            tasks += [asyncio.ensure_future(self._watch()), asyncio.ensure_future(self._take_up())]
            tasks.append(asyncio.ensure_future(stop.wait()))
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await self._close(tasks)

    async def _listen(self) -> None:
        settings = self._settings
        tls: PortTls | None = settings.tls
        if self._open_authority is not None and settings.proof is not None:
            tls = await self._start_authority(self._open_authority, settings.proof) or tls
        for address in settings.listen:
            is_local = address.startswith(_LOCAL)
            if tls is None and not is_local:
                _log.warning("%s has no TLS: whoever reaches it is believed, and reads the rules", address)
            self.addresses.append(self.server.listen(address, None if address.startswith("unix:") else tls))
        if settings.http is not None:
            self._admin = AdminServer(Dispatcher(asyncio.get_running_loop()), self._pages.handle)
            try:
                await self._admin.start(settings.http)
            except OSError as error:
                raise ConfigError(str(settings.http), error.strerror or str(error)) from None
            self.http_address = self._admin.address
        await self.server.start()
        own = [] if self.authority is None else self.authority.addresses
        _log.info("listening on %s", ", ".join([*self.addresses, *own]))
        if settings.address_path:
            self._write_addresses(settings.address_path)

    async def _start_authority(self, open_authority: OpenAuthority, settings: ProofSettings) -> PortTls | None:
        """Returns what TLS ports are to show, where that is its concern."""
        from meshproxy.pilot.server.authority import AuthorityServer

        opened = await open_authority(self.metrics.registry)
        if opened is None:
            return None
        try:
            self.authority = made = AuthorityServer(opened, settings, self._settings.mesh.root_namespace)
        except ConfigError:
            await opened.close()
            raise
        await made.start()
        self.streams.proof = proof_of_workload(
            made.prover, made.secrets, any_certificate=self._settings.any_certificate
        )
        tls = made.mesh_credentials()
        self.server.serve_too(made.handlers, certificates=tls is not None)
        await made.listen(self.server.own_handlers(), self._settings.tls)
        return tls

    def _write_addresses(self, path: str) -> None:
        http = None if self.http_address is None else str(self.http_address)
        own = [] if self.authority is None else self.authority.addresses
        write_whole(path, json.dumps({"xds": self.addresses, "http": http, "authority": own}))

    async def _close(self, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        drain_s = self._settings.drain_s if self.streams.clients else 0.0
        closing = [self.server.stop(drain_s)]
        if self.authority is not None:
            closing.append(self.authority.close(max(drain_s, _LAST_CALLS_S)))
        await asyncio.gather(*closing)
        if self._admin is not None:
            await self._admin.close()
        await self._source.close()

    # -- rules

    async def _watch(self) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        debounce = Debounce(loop, self._on_quiet, settings.debounce_quiet_s, settings.debounce_most_s)
        try:
            async with aclosing(self._source.watch()) as found:  # type: ignore[type-var]
                async for rules in found:
                    is_first, self._latest = self._latest is None, rules
                    if is_first:
                        self._on_quiet(loop.time())
                    else:
                        debounce.touch()
        finally:
            debounce.close()

    def _on_quiet(self, changed_at: float) -> None:
        self._changed_at = changed_at
        self._wake.set()

    async def _take_up(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            rules, changed_at, before = self._latest, self._changed_at, self._rules.rejections
            if rules is None:
                continue
            try:
                mesh = await asyncio.to_thread(self._rules.update, rules)
            except Exception:  # noqa: BLE001  a bug that one document finds must not end the pilot for all
                _log.exception("rules of revision %s cannot be taken up; those before stay in force", rules.revision)
                continue
            _tell(before, self._rules.rejections)
            self.metrics.rule_errors.set(len(self._rules.rejections))
            if mesh is not self.snapshots.mesh:
                self.metrics.meshes.inc()
                self.snapshots.update(mesh, changed_at)
                _log.info("rules of revision %s: %d documents", rules.revision, len(mesh.documents))
            self.server.ready = True

    def _describe_authority(self) -> dict[str, Any] | None:
        return None if self.authority is None else self.authority.view()

    def _describe_rules(self) -> dict[str, Any]:
        refused = [
            {
                "source": rejection.source,
                "document": None if rejection.identity is None else str(rejection.identity),
                "problems": [str(problem) for problem in rejection.problems],
                "an_earlier_version_is_in_force": rejection.keeps,
                "fails_closed": rejection.denies,
            }
            for rejection in self._rules.rejections
        ]
        return {
            "revision": self._rules.revision,
            "documents": len(self._rules.mesh.documents),
            "refused": refused,
            "warnings": [str(warning) for warning in self._rules.warnings],
        }


class TranslatedMesh(Builder):
    """The builder of a pilot."""

    def __init__(self) -> None:
        self._translator = Translator()

    def scope_of(self, mesh: Mesh, proxy: Proxy) -> Any:
        return self._translator.scope_of(mesh, proxy)

    def build_snapshot(self, mesh: Mesh, scope: Any, previous: Snapshot | None) -> Snapshot:
        return self._translator.build_snapshot(mesh, scope, previous)


def _in_its_place(rejection: Rejection) -> str:
    if rejection.denies and rejection.identity is not None and rejection.identity.kind == "PeerAuthentication":
        return "; until it is mended, what it selects takes nothing but mutual TLS"
    if rejection.denies:
        return "; until it is mended, all that it selects is denied to everybody"
    return "; its last good version stays in force" if rejection.keeps else ""


def _tell(before: tuple[Rejection, ...], after: tuple[Rejection, ...]) -> None:
    """Log what is refused now and was not before."""
    known = set(before)
    for rejection in after:
        if rejection not in known:
            for problem in rejection.problems:
                _log.warning("refused: %s%s", problem, _in_its_place(rejection))
