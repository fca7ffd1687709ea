"""The flags of `meshproxy agent`. Apart from the command, whose imports are large."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, Final

from meshproxy.pilot.authority.flags import seconds

AGENT_EXAMPLES: Final = """\
examples:
  meshproxy agent --ca pilot.mesh:15012 --ca-root-file root.pem --token-file /var/run/secrets/tokens/token
  meshproxy agent --ca unix:/run/authority.sock --namespace shop --service-account web    proof: the user's number
  meshproxy agent --ca istiod.istio-system.svc:15012 --ca-root-file ca.pem --token-file token --cluster-id Kubernetes

The agent makes a key, has it certified, and serves both to the proxies of its pod as the secret `default`, and those
whom the mesh trusts as `ROOTCA`: over SDS (StreamSecrets) on a Unix socket. It renews them, with a new key, when about
two thirds of the certificate's life are over. The key is never written anywhere.

exit codes: 0 a signal ended it, 1 it cannot serve, 2 the flags are wrong
"""
KEY_TYPES: Final = ("ecdsa-p256", "rsa-2048")
Add = Callable[..., Any]
DEFAULT_SOCKET: Final = "./var/run/secrets/workload-spiffe-uds/socket"


def add_agent_flags(parser: argparse.ArgumentParser) -> None:
    """All of them."""
    _add_authority(parser.add_argument_group("the authority, and how it is asked").add_argument)
    _add_identity(parser.add_argument_group("what it is to certify").add_argument)
    _add_serving(parser.add_argument_group("whom the agent serves").add_argument)


def _add_authority(add: Add) -> None:
    add(
        "--ca",
        required=True,
        metavar="ADDRESS",
        help="HOST:PORT (TLS), or unix:PATH; it serves IstioCertificateService",
    )
    add(
        "--ca-root-file",
        default="",
        metavar="FILE",
        help="whom to trust when the authority shows its certificate (PEM)",
    )
    add("--ca-name", default="", metavar="NAME", help="whose certificate that must be (default: HOST)")
    add(
        "--token-file", default="", metavar="FILE", help="a bearer token that proves who we are; read anew at each call"
    )
    add("--bootstrap-cert", default="", metavar="FILE", help="a certificate that proves it instead, for the first time")
    add("--bootstrap-key", default="", metavar="FILE", help="its key")
    add(
        "--renew-by-certificate",
        action="store_true",
        help="prove it by the present certificate from the second time on, and by the token where that fails",
    )
    add("--cluster-id", default="", metavar="NAME", help="told to Istio's authority, which checks tokens by it")


def _add_identity(add: Add) -> None:
    environment = os.environ.get
    identity = (
        ("--trust-domain", "TRUST_DOMAIN", "cluster.local"),
        ("--namespace", "POD_NAMESPACE", "default"),
        ("--service-account", "SERVICE_ACCOUNT", "default"),
    )
    for flag, variable, default in identity:
        add(flag, default=environment(variable, default), metavar="NAME", help=f"default ${variable}, or {default}")
    add("--key-type", choices=KEY_TYPES, default=KEY_TYPES[0], help="default ecdsa-p256")
    add(
        "--lifetime",
        type=_lifetime,
        default=0.0,
        metavar="TIME",
        help="of a certificate, as 90s, 15m, 24h; the authority may give less (default: what the authority gives)",
    )


def _add_serving(add: Add) -> None:
    add("--sds-socket", default=DEFAULT_SOCKET, metavar="PATH", help=f"default {DEFAULT_SOCKET}")
    add(
        "--allow-uid",
        type=int,
        action="append",
        default=[],
        metavar="UID",
        help="a user whose processes are served besides our own; may be repeated",
    )
    add("--http", default="", metavar="IP:PORT", help="serve /healthz/ready and /metrics there (default: nowhere)")
    add("--address-path", default="", metavar="FILE", help="write what is listened on to this file, as JSON")
    add("--drain-time-s", type=float, default=1.0, metavar="S", help="that calls have to end at the end (default 1)")
    add("-l", "--log-level", default="info", metavar="LEVEL", help="trace, debug, info, warning, error, off")


def _lifetime(text: str) -> float:
    lifetime_s = seconds(text)
    if lifetime_s < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is less than a second")
    return lifetime_s
