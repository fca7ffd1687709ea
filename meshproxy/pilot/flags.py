"""The flags of `meshproxy rules`, and of all commands that read documents. It imports nothing, since every command pays
for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

VERBS: Final = ("validate", "apply", "get", "delete", "diff")
RULES_EXAMPLES: Final = """\
examples:
  meshproxy rules validate -f rules/                        every error with file, line, field and reason
  meshproxy rules diff -f canary.yaml --etcd 127.0.0.1:2379  what apply would change
  meshproxy rules apply -f canary.yaml --etcd 127.0.0.1:2379
  meshproxy rules get --etcd 127.0.0.1:2379                 what is there
  meshproxy rules get vs reviews -n shop -o yaml --rules rules/
  meshproxy rules delete vs reviews -n shop --etcd 127.0.0.1:2379

exit codes: 0 done (diff: nothing differs), 1 a document is wrong or not there (diff: something differs), 2 the flags
are wrong, or the documents cannot be reached
"""
_PREFIX: Final = "/meshproxy/rules"


def add_rules_flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of `meshproxy rules`."""
    add = parser.add_argument
    add("verb", choices=VERBS, help="what to do")
    add("kind", nargs="?", default="", metavar="KIND", help="get, delete: of this kind (VirtualService, vs, …)")
    add("name", nargs="?", default="", metavar="NAME", help="get, delete: of this name")
    add("-f", "--filename", action="append", default=[], metavar="PATH", help="a file or directory; may be repeated")
    add("-n", "--namespace", default="", metavar="NAME", help="get: of this namespace; delete: (default) default")
    add("-o", "--output", choices=("table", "yaml", "json"), default="table", help="get: how to print it")
    add("--domain", default="cluster.local", metavar="NAME", help="what short names end in (default cluster.local)")
    add("--dry-run", action="store_true", help="apply, delete: say what would be done")
    add_source_flags(parser)


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """`--rules` and `--etcd…`."""
    add = parser.add_argument_group("where the documents are").add_argument
    add("--rules", default="", metavar="PATH", help="a directory of YAML files, or one file")
    add("--etcd-prefix", default=_PREFIX, metavar="KEY", help=f"below which key they are (default {_PREFIX})")
    add_etcd_flags(add)


def add_etcd_flags(add: Callable[..., Any]) -> None:
    """How etcd is reached; `add` is a parser's or group's `add_argument`."""
    add("--etcd", default="", metavar="HOST:PORT,…", help="endpoints of etcd v3, or https://… with TLS")
    add("--etcd-ca", default="", metavar="FILE", help="whom etcd's certificate must be of; means TLS")
    add("--etcd-cert", default="", metavar="FILE", help="the certificate shown to etcd")
    add("--etcd-key", default="", metavar="FILE", help="its key")
