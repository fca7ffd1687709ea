"""The ways into a workload: which chains a port has, by its protocol and what PeerAuthentication says of it.

They are Istio's: its clients offer names of their own (ALPN), by which mutual TLS of the mesh is told from TLS of the
applications, and HTTP from other bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from meshproxy.pilot.mesh.mutual_tls import DISABLE, PERMISSIVE, STRICT
from meshproxy.pilot.resources.listeners import PLAIN_HTTP
from meshproxy.pilot.resources.upstream_tls import MESH_HTTP, MESH_TCP

HTTP: Final = "http"
TCP: Final = "tcp"
AUTO: Final = "auto"  # nobody knows what is spoken: it is seen by the first bytes
CLOSED: Final = "closed"  # a mode: only mutual TLS would do, and the proxy has nothing to prove itself with

_TLS: Final = "tls"
_RAW: Final = "raw_buffer"


@dataclass(frozen=True, slots=True)
class Way:
    """A chain: `transport` ("": any) and `protocols` are what it matches. `is_mutual`: it ends the mesh's mutual TLS.
    `is_closed`: who comes by it gets nowhere."""

    suffix: str = ""
    transport: str = ""
    protocols: tuple[str, ...] = ()
    is_http: bool = False
    is_mutual: bool = False
    is_closed: bool = False


def ways_in(mode: str, protocol: str, sds: str) -> Sequence[Way]:
    """`protocol` is HTTP, TCP or AUTO; `sds` the proxy's cluster for secrets: without it there is plaintext only, and
    where that is not taken, nothing."""
    if not sds:
        mode = CLOSED if mode == STRICT else DISABLE
    return _WAYS[mode, protocol]


def inspects_tls(ways: Sequence[Way]) -> bool:
    return any(way.transport for way in ways)


def _mutual(suffix: str = "_mtls", protocols: tuple[str, ...] = (), *, is_http: bool = False) -> Way:
    return Way(suffix, _TLS, protocols, is_http=is_http, is_mutual=True)


_OF_MESH: Final = (*MESH_TCP, *MESH_HTTP)
_PASSED: Final = Way("_tls", _TLS)
_PLAIN_TCP: Final = Way(transport=_RAW)
_PLAIN_HTTP: Final = Way("-catchall-http", _RAW, PLAIN_HTTP, is_http=True)
_WAYS: Final[dict[tuple[str, str], tuple[Way, ...]]] = {
    (STRICT, HTTP): (_mutual(is_http=True),),
    (STRICT, TCP): (_mutual(),),
    (STRICT, AUTO): (_mutual("-catchall-http_mtls", MESH_HTTP, is_http=True), _mutual()),
    (PERMISSIVE, HTTP): (_mutual(protocols=_OF_MESH, is_http=True), Way(transport=_RAW, is_http=True)),
    (PERMISSIVE, TCP): (_mutual(protocols=_OF_MESH), _PLAIN_TCP, _PASSED),
    (PERMISSIVE, AUTO): (
        _mutual("-catchall-http_mtls", MESH_HTTP, is_http=True),
        _PLAIN_HTTP,
        _mutual(protocols=MESH_TCP),
        _PLAIN_TCP,
        _PASSED,
    ),
    (DISABLE, HTTP): (Way(is_http=True),),
    (DISABLE, TCP): (Way(),),
    (DISABLE, AUTO): (_PLAIN_HTTP, _PLAIN_TCP, _PASSED),
    **{(CLOSED, protocol): (Way(is_closed=True),) for protocol in (HTTP, TCP, AUTO)},
}
