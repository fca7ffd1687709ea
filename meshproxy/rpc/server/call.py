"""A call as the one who answers it sees it, whichever server took it: our own (`server.py`) or `google.py`'s."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Credentials:
    """Of the process at the other end of a Unix socket, as the kernel has them (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Who calls, as far as the connection proves it. What the call's metadata claims is not proved."""

    address: str = ""  # `10.0.0.1:4711`, or `unix:`
    credentials: Credentials | None = None  # None: not a Unix socket, or a server that cannot tell
    uris: tuple[str, ...] = ()  # the URI names of the certificate that it showed, and that was verified
    serial: int = 0  # of that certificate; 0: it showed none, or the server cannot tell
    certificate: bytes = b""  # that certificate, DER
    is_encrypted: bool = False


class RpcFailure(Exception):
    """How a call ends that is not answered: a status of gRPC, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ServerCall(Protocol):
    """One call. A handler that returns ends it with OK; one that raises RpcFailure, with that status."""

    @property
    def peer(self) -> Peer:
        """Who calls."""

    @property
    def metadata(self) -> Mapping[str, Sequence[str]]:
        """By lower-case names. What is binary (`-bin`) is left out."""

    async def receive(self) -> bytes | None:
        """The next message; None when the caller has no more. Raises asyncio.CancelledError when it is gone."""

    async def send(self, message: bytes) -> None:
        """Returns when there is room for another one."""


Handler = Callable[[ServerCall], Awaitable[None]]
Handlers = Mapping[str, Handler]  # by paths: "/package.Service/Method"
