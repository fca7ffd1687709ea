"""The source that flags name (`pilot/flags.py`)."""

from __future__ import annotations

import argparse

from meshproxy.pilot.sources.directory import DirectorySource
from meshproxy.pilot.sources.etcd import EtcdSource
from meshproxy.pilot.sources.etcd_client import EtcdSettings, parse_endpoints
from meshproxy.pilot.sources.source import RuleSource, SourceError


def open_source(options: argparse.Namespace) -> RuleSource:
    """The source that the flags name. Raises SourceError when they name none, or two; where the authority is on etcd,
    the documents need not be."""
    is_for_authority = options.rules and getattr(options, "authority", "") == "etcd"
    if bool(options.rules) == bool(options.etcd) and not is_for_authority:
        raise SourceError("say where the documents are: --rules PATH or --etcd HOST:PORT")
    if options.rules:
        return DirectorySource(options.rules)
    return EtcdSource(etcd_settings(options, options.etcd_prefix))


def etcd_settings(options: argparse.Namespace, prefix: str) -> EtcdSettings:
    """How etcd is reached. Raises SourceError."""
    if not options.etcd:
        raise SourceError("say where etcd is: --etcd HOST:PORT")
    endpoints, secure = parse_endpoints(options.etcd)
    if bool(options.etcd_cert) != bool(options.etcd_key):
        raise SourceError("--etcd-cert and --etcd-key belong together")
    tls = secure or bool(options.etcd_ca)
    return EtcdSettings(endpoints, prefix, tls, options.etcd_ca, options.etcd_cert, options.etcd_key)
