"""The flags of `meshproxy pilot`. Apart from the command, whose imports are large."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

from meshproxy.pilot.authority.flags import add_authority_flags, add_serving_flags
from meshproxy.pilot.flags import add_source_flags

PILOT_EXAMPLES: Final = """\
examples:
  meshproxy pilot --rules rules/                             serve on 127.0.0.1:15010, pages on 127.0.0.1:15014
  meshproxy pilot --rules rules/ --listen 0.0.0.0:15012 --tls-cert cert.pem --tls-key key.pem --tls-ca ca.pem
  meshproxy pilot --etcd 10.0.0.1:2379 --listen 127.0.0.1:15010 --listen unix:/run/pilot.sock
  meshproxy pilot --rules rules/ --authority ca/ --authority-passphrase-file passphrase \\
    --authority-listen 0.0.0.0:15012 --tls-from-authority pilot.mesh,10.0.0.1 \\
    --jwks jwks.json --jwt-issuer https://kubernetes.default.svc
                                                             … and give proxies and agents their certificates
  curl 127.0.0.1:15014/debug/clients                         who is served what

A change of the rules is pushed when it has been quiet for --debounce-ms. What is wrong with a document, or what a
client refuses, stands in the log and in /debug/rejections; all else goes on.
"""


def add_pilot_flags(parser: argparse.ArgumentParser) -> None:
    """All of them."""
    add_source_flags(parser)
    _add_port_flags(parser.add_argument)
    _add_mesh_flags(parser.add_argument)
    _add_client_flags(parser.add_argument)
    group = parser.add_argument_group("the authority (docs/authority.md)")
    add_authority_flags(group.add_argument)
    add_serving_flags(group.add_argument)
    _add_proof_flags(parser.add_argument_group("who gets certificates, and where").add_argument)


def _add_port_flags(add: Callable[..., Any]) -> None:
    add(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help="serve xDS on HOST:PORT or unix:PATH; may be repeated (default 127.0.0.1:15010)",
    )
    add("--tls-cert", default="", metavar="FILE", help="what ports show (PEM); Unix sockets have no TLS")
    add("--tls-key", default="", metavar="FILE", help="its key")
    add(
        "--tls-ca",
        default="",
        metavar="FILE",
        help="clients must show a certificate of this authority, with a SPIFFE identity",
    )
    add(
        "--tls-any-certificate",
        action="store_true",
        help="with --tls-ca: who shows a certificate without a SPIFFE identity may say itself who it is",
    )
    add("--csds", action="store_true", help="tell every client of the xDS ports what each of them was sent (CSDS)")
    add(
        "--http", default="127.0.0.1:15014", metavar="IP:PORT", help="debug pages and metrics (default 127.0.0.1:15014)"
    )
    add("--address-path", default="", metavar="FILE", help="write what is listened on to this file, as JSON")


def _add_mesh_flags(add: Callable[..., Any]) -> None:
    add("--domain", default="cluster.local", metavar="NAME", help="of services (default cluster.local)")
    add("--root-namespace", default="istio-system", metavar="NAME", help="whose rules hold for all namespaces")
    add(
        "--outbound",
        choices=("ALLOW_ANY", "REGISTRY_ONLY"),
        default="ALLOW_ANY",
        help="what becomes of requests to no known service, where no Sidecar says it (default ALLOW_ANY)",
    )


def _add_client_flags(add: Callable[..., Any]) -> None:
    add(
        "--debounce-ms", type=_count, default=100, metavar="MS", help="act on changes after so much quiet (default 100)"
    )
    add("--debounce-max-ms", type=_count, default=10_000, metavar="MS", help="but not later than this (default 10000)")
    add(
        "--client-deadline-s",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="a client that has not answered for so long is sent away (default 30)",
    )
    add(
        "--drain-time-s",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="when it ends, clients are sent away over this time (default 5)",
    )
    add(
        "--max-connection-age-s",
        type=_seconds,
        default=0.0,
        metavar="S",
        help="connections are renewed at about this age, so that clients spread over pilots (default: never)",
    )
    add("-l", "--log-level", default="info", metavar="LEVEL", help="trace, debug, info, warning, error, off")


def _add_proof_flags(add: Callable[..., Any]) -> None:
    add(
        "--authority-listen",
        action="append",
        default=[],
        metavar="IP:PORT",
        help="certificates, secrets (SDS) and xDS, by TLS, for callers with a token or a certificate of the mesh; may "
        "be repeated. Without --listen there is no other port",
    )
    add(
        "--authority-socket",
        action="append",
        default=[],
        metavar="PATH",
        help="the same on a Unix socket, where callers are known by their uid; may be repeated",
    )
    add(
        "--tls-from-authority",
        action="append",
        default=[],
        metavar="NAME,…",
        help="the pilot's own certificate is one of the authority, with these names or addresses: in the place of "
        "--tls-cert, --tls-key and --tls-ca",
    )
    add(
        "--jwks",
        default="",
        metavar="FILE|URL",
        help="the keys (RFC 7517) of tokens that prove who calls; https:// only",
    )
    add("--jwks-ca", default="", metavar="FILE", help="whom the server of the URL must be of (default: the system's)")
    add("--jwks-token-file", default="", metavar="FILE", help="a bearer token that is shown there; read anew each time")
    add("--jwt-issuer", default="", metavar="TEXT", help="whose tokens they are (iss)")
    add(
        "--jwt-any-address",
        action="store_true",
        help="a token counts from every address, not only from the one that showed it first: for pods whose address "
        "changes on the way",
    )
    add(
        "--jwt-audience",
        action="append",
        default=[],
        metavar="TEXT",
        help="whom they must be for (aud); may be repeated (default istio-ca)",
    )
    add("--uid-table", default="", metavar="FILE", help="YAML, `uid: namespace/service account`, for Unix sockets")
    add(
        "--trust-domain-alias",
        action="append",
        default=[],
        metavar="NAME",
        help="another trust domain whose identities are those of this one; may be repeated",
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.0 <= number < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return number
