"""The flags that say where the authority is and what it goes by. It imports little: every command pays for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

from meshproxy.pilot.authority.settings import KEY_TYPES
from meshproxy.pilot.flags import add_etcd_flags

VERBS: Final = ("init", "import", "rotate", "revoke", "readmit", "status", "roots")
AUTHORITY_EXAMPLES: Final = """\
examples:
  (umask 077; openssl rand -base64 32 > passphrase)           keep it apart from the directory
  export MESHPROXY_AUTHORITY_PASSPHRASE_FILE=passphrase
  meshproxy authority init --authority ca/ --trust-domain cluster.local
  meshproxy authority init --authority ca/ --intermediate > ca.csr   an outside authority is to sign this …
  meshproxy authority import chain.pem --authority ca/               … and this is what it gave, with its root last
  meshproxy authority status --authority ca/                  issuers, their phases and ends, what is revoked
  meshproxy authority rotate --authority ca/                  make the next root; it signs when all know it
  meshproxy authority revoke 4F2A… --authority ca/            one certificate, by its serial
  meshproxy authority revoke --identity spiffe://cluster.local/ns/shop/sa/cart --authority ca/
  meshproxy authority roots --authority etcd --etcd 10.0.0.1:2379   the trust bundle, PEM

Pilots that run on the same directory or etcd follow at once (docs/authority.md).

exit codes: 0 done, 1 it cannot be done, 2 the flags are wrong
"""
_PREFIX: Final = "/meshproxy/authority"
PASSPHRASE: Final = "MESHPROXY_AUTHORITY_PASSPHRASE"  # in the environment
_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Add = Callable[..., Any]


def add_authority_flags(add: Add) -> None:
    """Those that the pilot and `meshproxy authority` share; `add` is a parser's or group's `add_argument`."""
    add(
        "--authority",
        default="",
        metavar="DIR|etcd",
        help="where the authority keeps its state: a directory (mode 0700), or etcd, with the flags of etcd",
    )
    add("--authority-prefix", default=_PREFIX, metavar="KEY", help=f"in etcd: below which key (default {_PREFIX})")
    add(
        "--authority-passphrase-file",
        default="",
        metavar="FILE",
        help=f"what the authority's keys are encrypted with (or {PASSPHRASE}_FILE, or {PASSPHRASE} itself)",
    )
    add("--trust-domain", default="cluster.local", metavar="NAME", help="of all identities (default cluster.local)")
    add(
        "--authority-key",
        choices=KEY_TYPES,
        default=KEY_TYPES[0],
        help="of new roots (default P-256)",
    )
    add("--root-lifetime", type=seconds, default=3650 * 86400.0, metavar="T", help="of new roots (default 3650d)")
    add("--authority-audit", default="", metavar="FILE", help="the audit's lines of JSON (default: stderr)")


def add_serving_flags(add: Add) -> None:
    """Those of the pilot alone. Times are seconds, or end in s, m, h or d."""
    day = 86400.0
    add(
        "--certificate-lifetime",
        type=seconds,
        default=day / 4,
        metavar="T",
        help="where nobody asks for less (default 6h)",
    )
    add("--longest-certificate-lifetime", type=seconds, default=day, metavar="T", help="whatever is asked (default 1d)")
    add(
        "--rotate-root-after",
        type=seconds,
        default=0.0,
        metavar="T",
        help="make the next root at this age (default: two thirds of its lifetime)",
    )
    add(
        "--root-overlap",
        type=seconds,
        default=day,
        metavar="T",
        help="how long a new root is trusted before it signs (default 1d)",
    )
    add("--crl-lifetime", type=seconds, default=7 * day, metavar="T", help="renewed at half of it (default 7d)")
    add("--identity-rate", type=_positive, default=20.0, metavar="N", help="certificates a second and identity (20)")
    add("--identity-burst", type=_positive, default=200.0, metavar="N", help="… at once (200)")
    add("--authority-rate", type=_positive, default=200.0, metavar="N", help="certificates a second in all (200)")
    add("--authority-burst", type=_positive, default=2000.0, metavar="N", help="… at once (2000)")
    add(
        "--federate",
        action="append",
        default=[],
        metavar="DOMAIN=FILE",
        help="the roots of another trust domain, PEM or a SPIFFE bundle; read again when it changes; may be repeated",
    )


def add_authority_command(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshproxy authority`."""
    add = parser.add_argument
    add("verb", choices=VERBS, help="what to do")
    add(
        "what", nargs="?", default="", metavar="WHAT", help="import: a PEM file; revoke: a serial; readmit: an identity"
    )
    add("--intermediate", action="store_true", help="init, rotate: print a CSR for an outside authority")
    add("--identity", default="", metavar="URI", help="revoke: everything of this identity, which gets no more")
    add("--now", action="store_true", help="rotate: take the next step without waiting (connections may be refused)")
    add("--json", action="store_true", help="status: as JSON")
    add_authority_flags(add)
    add_etcd_flags(parser.add_argument_group("with --authority etcd").add_argument)


def seconds(text: str) -> float:
    """For a flag: `90`, `90s`, `15m`, `6h`, `30d`."""
    unit = _UNITS_S.get(text[-1:], 0.0)
    try:
        value = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: 90s, 15m, 6h or 30d")
    return value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value
