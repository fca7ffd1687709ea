"""Secrets on an aggregated stream, for the workload that its client has proved to be.

They are nobody else's, so they are in no snapshot: SDS's own protocol, `xds/secret_streams.py`, runs beside that of the
stream, which it shares. CSDS and the pages say nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from meshproxy.config.subscription import SECRET_TYPE
from meshproxy.pilot.server.protocol import MAX_REASON, Rejection
from meshproxy.pilot.server.responses import Response
from meshproxy.rpc.server.call import RpcFailure
from meshproxy.xds.secret_server import Secrets
from meshproxy.xds.secret_streams import DeltaSecrets, SecretStream, StateOfTheWorldSecrets

OpenSecrets = Callable[[], Secrets]
_NO_VERSION: Final = ""


class WholeResponse(Response):
    """One that has its nonce already."""

    def __bytes__(self) -> bytes:
        return self.body


class StreamSecrets:
    """Those of one stream. `on_change` is called when there may be something to send."""

    def __init__(self, secrets: Secrets, on_change: Callable[[], None], *, delta: bool) -> None:
        self._secrets = secrets
        self._stream: SecretStream = DeltaSecrets() if delta else StateOfTheWorldSecrets()
        secrets.watch(on_change)

    def receive(self, request: bytes, now: float) -> Rejection | None:
        """Take a request for secrets; returns what it refuses. Raises RpcFailure for one that ends the stream."""
        stream = self._stream
        refusals, names = stream.refusals, stream.names
        stream.receive(request)
        if stream.names != names:
            self._secrets.want(stream.names)
        if stream.refusals == refusals:
            return None
        return Rejection(now, SECRET_TYPE, _NO_VERSION, stream.refusal[:MAX_REASON])

    def next(self) -> Response | None:
        """The next response. None where the proof has ended, too: then the stream is about to end."""
        try:
            body = self._stream.next(self._secrets.get)
        except RpcFailure:
            return None
        return None if body is None else WholeResponse(SECRET_TYPE, body, "")

    def close(self) -> None:
        self._secrets.close()
