"""grpcio's server as the one that takes the calls of our handlers. It cannot tell who is at the other end of a Unix
socket."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

import grpc
import grpc.aio

from meshproxy.rpc.server.call import Handler, Handlers, Peer, RpcFailure

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_log: Final = logging.getLogger("meshproxy.rpc")


class GoogleServerCall:
    """A `ServerCall` on a `grpc.aio.ServicerContext` of a method that streams bytes both ways. Without `certificates`
    those of callers count for nothing: grpcio has verified them, but not for this."""

    def __init__(self, context: Any, *, certificates: bool = True) -> None:
        self._context = context
        self._certificates = certificates
        self._peer: Peer | None = None
        self._metadata: dict[str, list[str]] | None = None

    @property
    def peer(self) -> Peer:
        if self._peer is None:
            self._peer = _peer_of(self._context, certificates=self._certificates)
        return self._peer

    @property
    def metadata(self) -> Mapping[str, Sequence[str]]:
        if self._metadata is None:
            self._metadata = {}
            for name, value in self._context.invocation_metadata() or ():
                if isinstance(value, str):
                    self._metadata.setdefault(name, []).append(value)
        return self._metadata

    async def receive(self) -> bytes | None:
        message = await self._context.read()
        return None if message is grpc.aio.EOF else bytes(message)

    async def send(self, message: bytes) -> None:
        try:
            await self._context.write(message)
        except grpc.aio.BaseError:
            raise asyncio.CancelledError from None  # the caller is gone


def add_handlers(server: Any, handlers: Handlers, *, certificates: bool = True) -> None:
    """Let a `grpc.aio.Server` that has not started take these calls."""
    for path, handler in handlers.items():
        serving = _serving(handler, path, certificates=certificates)
        add_method(server, path, grpc.stream_stream_rpc_method_handler(serving))


def add_method(server: Any, path: str, handler: Any) -> None:
    """Let a `grpc.aio.Server` serve `/package.Service/Method` by a handler of grpcio's."""
    _, service, method = path.split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))


def status_code(status: int) -> grpc.StatusCode:
    """grpcio's word for a number."""
    return _CODES.get(status, grpc.StatusCode.UNKNOWN)


def _serving(handler: Handler, path: str, *, certificates: bool) -> Callable[[Any, Any], Awaitable[None]]:
    async def serve(_requests: Any, context: Any) -> None:
        try:
            await handler(GoogleServerCall(context, certificates=certificates))
        except RpcFailure as failure:
            await context.abort(status_code(failure.status), failure.message)
        except Exception:  # noqa: BLE001  grpcio would tell the caller what it says
            _log.exception("%s has failed", path)
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return serve


def _peer_of(context: Any, *, certificates: bool) -> Peer:
    facts = context.auth_context()
    encrypted = facts.get("transport_security_type") == [b"ssl"]
    shown = facts.get("x509_pem_cert", ()) if encrypted and certificates else ()
    uris = facts.get("peer_uri", ()) if encrypted and certificates else ()
    return Peer(
        address=_address_of(context.peer()),
        uris=tuple(bytes(uri).decode("utf-8", "replace") for uri in uris),
        certificate=ssl.PEM_cert_to_DER_cert(bytes(shown[0]).decode("ascii")) if shown else b"",
        is_encrypted=encrypted,
    )


def _address_of(peer: str) -> str:
    """`ipv4:10.0.0.1:4711`, `ipv6:%5B::1%5D:4711` and `unix:…`, as grpcio writes them."""
    return peer if peer.startswith("unix:") else unquote(peer.partition(":")[2])
