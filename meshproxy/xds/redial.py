"""A call to a control plane, made again and again: by the next service where one cannot be reached, and with a back-off
that grows until somebody answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from meshproxy.config.context import Services
from meshproxy.http.grpc.client import RpcCall, RpcError, open_client
from meshproxy.http.grpc.service import GrpcServiceConfig
from meshproxy.xds.api_source import ApiSource
from meshproxy.xds.pacing import BackOff, pause

_log: Final = logging.getLogger("meshproxy.xds")


class Redial:
    """`talk` is given each call in turn, and returns (or raises RpcError) when it is over; `on_end` is told why.

    `what` is what the log calls the server, and `meanwhile` what it says of the time without it.
    """

    def __init__(
        self,
        services: Services,
        api: ApiSource,
        path: bytes,
        what: str,
        talk: Callable[[RpcCall], Awaitable[None]],
        on_end: Callable[[str], None],
        meanwhile: str = "",
    ) -> None:
        self._dispatcher = services.dispatcher
        self._path = path
        self._what = what
        self._talk = talk
        self._on_end = on_end
        self._meanwhile = meanwhile
        self._clients = [(_target(config), open_client(services, config)) for config in api.services]
        self._back_off = BackOff(api.back_off_base_ms, api.back_off_max_ms)
        self._task: asyncio.Task[Any] | None = None
        self.target = self._clients[0][0]
        self.heard = False  # the server of the present call has said something
        self.failure = ""  # why the last call ended, until a server is heard

    def start(self) -> None:
        if self._task is None:
            self._task = self._dispatcher.spawn(self._run(), f"stream to the {self._what}")

    async def _run(self) -> None:
        """Each time through all services, beginning with the first, until one answers."""
        while True:
            for target, client in self._clients:
                self.target, self.heard = target, False
                async with client.call(self._path) as call:
                    reason = await self._reason(call)
                heard, self.heard = self.heard, False
                self._end(reason, heard)
                if heard:
                    self._back_off.reset()
                    break
            await pause(self._dispatcher, self._back_off.next_ms())

    async def _reason(self, call: RpcCall) -> str:
        try:
            await self._talk(call)
        except RpcError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  a bug in what reads the server must not end the subscription
            _log.exception("what the %s %s sent could not be handled", self._what, self.target)
            return f"internal error: {error!r}"
        return "the server ended the stream"

    def hear(self, name: str) -> None:
        """The server has said something, and that it is called so."""
        if self.heard:
            return
        self.heard, self.failure = True, ""
        _log.info("connected to the %s %s%s", self._what, self.target, f" ({name})" if name else "")

    def _end(self, reason: str, heard: bool) -> None:
        """Told once for each change: not for the attempts in between."""
        self._on_end(reason)
        if heard:
            _log.warning("lost the %s %s%s: %s", self._what, self.target, self._meanwhile, reason)
        elif not self.failure:
            _log.warning("cannot reach the %s %s, trying on: %s", self._what, self.target, reason)
        self.failure = reason

    async def close(self) -> None:
        """Cancel the call that is under way. A second call does nothing."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for _, client in self._clients:
            client.close()
        self._clients = []


def _target(config: GrpcServiceConfig) -> str:
    """How a service is called in the log."""
    return config.google.uri if config.google is not None else f"cluster {config.cluster!r}"
