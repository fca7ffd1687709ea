"""The flags of `meshproxy pilot`. Apart from the command, whose imports are large."""

from __future__ import annotations

import argparse
from typing import Final

from meshproxy.pilot.flags import add_source_flags

PILOT_EXAMPLES: Final = """\
examples:
  meshproxy pilot --rules rules/                             serve on 127.0.0.1:15010, pages on 127.0.0.1:15014
  meshproxy pilot --rules rules/ --listen 0.0.0.0:15012 --tls-cert cert.pem --tls-key key.pem --tls-ca ca.pem
  meshproxy pilot --etcd 10.0.0.1:2379 --listen 0.0.0.0:15010 --listen unix:/run/pilot.sock
  curl 127.0.0.1:15014/debug/clients                         who is served what

A change of the rules is pushed when it has been quiet for --debounce-ms. What is wrong with a document, or what a
client refuses, stands in the log and in /debug/rejections; all else goes on.
"""


def add_pilot_flags(parser: argparse.ArgumentParser) -> None:
    """All of them."""
    add = parser.add_argument
    add_source_flags(parser)
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
    add("--domain", default="cluster.local", metavar="NAME", help="of services (default cluster.local)")
    add("--root-namespace", default="istio-system", metavar="NAME", help="whose rules hold for all namespaces")
    add(
        "--outbound",
        choices=("ALLOW_ANY", "REGISTRY_ONLY"),
        default="ALLOW_ANY",
        help="what becomes of requests to no known service, where no Sidecar says it (default ALLOW_ANY)",
    )
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
