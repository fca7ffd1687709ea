"""The agent at work: it serves what it has from the first moment on, and keeps it new."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any, Final

from meshproxy.agent.authority import AuthorityClient, Bundle, Proof
from meshproxy.agent.material import MaterialError, certificate_request, merged, new_key, read_answer
from meshproxy.agent.metrics import AgentMetrics
from meshproxy.agent.pages import Pages
from meshproxy.agent.renewal import RenewalPolicy
from meshproxy.agent.secrets import AgentSecrets
from meshproxy.agent.settings import AgentSettings
from meshproxy.codec import grpc
from meshproxy.errors import ConfigError
from meshproxy.http.grpc.client import RpcError
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.observe.log import log_once_per
from meshproxy.rpc.server.call import Credentials
from meshproxy.rpc.server.server import RpcServer
from meshproxy.server.admin.server import AdminServer
from meshproxy.server.whole_file import write_whole
from meshproxy.xds.secret_server import secret_handlers

_log: Final = logging.getLogger("meshproxy.agent")
_refusals: Final = log_once_per(1.0, "agent")
_LONGEST_SLEEP_S: Final = 30.0  # then the clock is looked at again: it may have been set, or the machine suspended
_FAILURES: Final = (RpcError, MaterialError, OSError, TimeoutError)


class Agent:
    """Of one pod. `http_address` is there once it has started, where there are pages."""

    def __init__(self, settings: AgentSettings, policy: RenewalPolicy | None = None) -> None:
        self.secrets = AgentSecrets(settings.identity.trust_domain)
        self.metrics = AgentMetrics()
        self.http_address = ""
        self._settings = settings
        self._policy = policy or RenewalPolicy()
        self._dispatcher = Dispatcher(asyncio.get_running_loop())
        self._authority = AuthorityClient(self._dispatcher, settings.ca)
        handlers = secret_handlers(self.secrets, stats=self.metrics.sds)
        self._server = RpcServer(self._dispatcher, handlers)
        self.metrics.server = self._server.stats
        self._admin: AdminServer | None = None
        self._renewed = asyncio.Event()
        self._hurry = asyncio.Event()  # the certificate is of no more use

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises ConfigError when an address cannot be listened on."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._listen()
            work = (self._keep_renewed(), self._follow_bundle(), stop.wait())
            tasks += [asyncio.ensure_future(each) for each in work]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await self._close(tasks)

    async def _listen(self) -> None:
        settings = self._settings
        path = settings.sds_socket
        # Where other users are allowed, any may connect: the kernel's word for who they are decides, not the mode.
        mode = 0o666 if len(settings.uids) > 1 else 0o600
        try:
            if not path.startswith("@"):
                Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            await self._server.listen_unix(path, mode=mode, allow=self._allows)
        except OSError as error:
            raise ConfigError("--sds-socket", f"{path}: {error.strerror or error}") from None
        if settings.http is not None:
            self._admin = AdminServer(self._dispatcher, Pages(self.secrets, self.metrics).handle)
            try:
                await self._admin.start(settings.http)
            except OSError as error:
                raise ConfigError("--http", error.strerror or str(error)) from None
            self.http_address = str(self._admin.address)
        _log.info("serving %s on %s", settings.identity.uri, path)
        if settings.address_path:
            write_whole(settings.address_path, json.dumps({"sds": path, "http": self.http_address}))

    def _allows(self, credentials: Credentials) -> bool:
        if credentials.uid in self._settings.uids:
            return True
        _refusals.warning(f"a process of user {credentials.uid} may not have our secrets")
        return False

    async def _close(self, tasks: list[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.close(self._settings.drain_s)
        if self._admin is not None:
            await self._admin.close()
        await self._authority.close()
        await self._dispatcher.close()

    # -- the certificate

    async def _keep_renewed(self) -> None:
        while True:
            try:
                await self._renew()
                pause_s = self._policy.issued(self.secrets.left_s)
                _log.info("certified for %.0f s, to be renewed in %.1f s", self.secrets.left_s, pause_s)
            except _FAILURES as error:
                self.metrics.failures += 1
                pause_s = self._policy.failed()
                _log.warning("no new certificate, again in %.1f s: %s", pause_s, _reason(error))
            await self._pause_until(time.time() + pause_s)

    async def _pause_until(self, when: float) -> None:
        """By the clock on the wall, which certificates go by; or less, if there is a hurry."""
        while (left_s := when - time.time()) > 0.0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), min(left_s, _LONGEST_SLEEP_S))
                self._hurry.clear()
                when = min(when, time.time() + self._policy.hurried())

    async def _renew(self) -> None:
        """A new key, and a certificate for it."""
        settings, secrets = self._settings, self.secrets
        key = await asyncio.to_thread(new_key, settings.key_type)  # RSA takes a tenth of a second
        uri = settings.identity.uri
        request = certificate_request(key, uri)
        answer = await self._authority.sign(
            request, settings.lifetime_s, self._proof(self._policy.failures), secrets.trusted
        )
        pair, roots = read_answer(answer, key, uri, time.time())
        secrets.set_roots(self._with_file(roots))
        secrets.set_identity(pair)
        self.metrics.certificates += 1
        self._renewed.set()
        self._hurry.clear()

    def _with_file(self, roots: bytes) -> bytes:
        """As Istio's agent has it: who signs for the authority is trusted as well, until the mesh's bundle is told."""
        root_file = self._settings.ca.root_file
        return merged(roots, Path(root_file).read_bytes()) if root_file else roots

    def _proof(self, failures: int) -> Proof:
        """By our certificate where that is wanted, every other time where it fails and there is a token."""
        ca, secrets = self._settings.ca, self.secrets
        by_certificate = ca.renew_by_certificate and secrets.left_s > 0.0 and secrets.stands
        if by_certificate and not (ca.token_file and failures % 2):
            return Proof(secrets.pair)
        if ca.token_file:
            return Proof(with_token=True)
        if ca.bootstrap_cert:
            return Proof(self._authority.bootstrap_pair())
        return Proof()

    # -- whom the mesh trusts

    async def _follow_bundle(self) -> None:
        """As long as the authority tells it; one that does not know how is asked again after each renewal."""
        policy = RenewalPolicy()
        while True:
            self._renewed.clear()
            if self.secrets.left_s <= 0.0:
                await self._renewed.wait()
            told = self.metrics.bundles
            try:
                await self._read_bundles(self._proof(policy.failures))
                reason = "the stream has ended"
            except _FAILURES as error:
                if isinstance(error, RpcError) and error.code == grpc.UNIMPLEMENTED:
                    _log.info("the authority tells no bundle: the roots are those that come with our certificate")
                    await self._renewed.wait()
                    continue
                reason = _reason(error)
            if self.metrics.bundles > told:  # it went well: it ends with what proved who we are, or with the server
                policy = RenewalPolicy()
                _log.info("the mesh's bundle is asked for anew: %s", reason)
            else:
                self.metrics.bundle_failures += 1
                _log.warning("nobody tells the mesh's bundle: %s", reason)
            await asyncio.sleep(policy.failed())

    async def _read_bundles(self, proof: Proof) -> None:
        async with contextlib.aclosing(self._authority.bundles(proof, self.secrets.trusted)) as bundles:
            async for bundle in bundles:
                self._take(bundle)

    def _take(self, bundle: Bundle) -> None:
        try:
            self.secrets.set_bundle(bundle.data)
            self.metrics.bundles += 1
            if not self.secrets.stands:
                _log.warning("the mesh takes our certificate no longer: another one is asked for")
                self._hurry.set()
        except MaterialError as error:
            bundle.refusal = str(error)
            _log.warning("the mesh's bundle is refused: %s", error)


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
