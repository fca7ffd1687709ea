"""The source that flags name (`pilot/flags.py`)."""

from __future__ import annotations

import argparse

from meshproxy.pilot.sources.directory import DirectorySource
from meshproxy.pilot.sources.etcd import EtcdSettings, EtcdSource, parse_endpoints
from meshproxy.pilot.sources.source import RuleSource, SourceError


def open_source(options: argparse.Namespace) -> RuleSource:
    """The source that the flags name. Raises SourceError when they name none, or two."""
    if bool(options.rules) == bool(options.etcd):
        raise SourceError("say where the documents are: --rules PATH or --etcd HOST:PORT")
    if options.rules:
        return DirectorySource(options.rules)
    endpoints, secure = parse_endpoints(options.etcd)
    if bool(options.etcd_cert) != bool(options.etcd_key):
        raise SourceError("--etcd-cert and --etcd-key belong together")
    tls = secure or bool(options.etcd_ca)
    return EtcdSource(
        EtcdSettings(endpoints, options.etcd_prefix, tls, options.etcd_ca, options.etcd_cert, options.etcd_key)
    )
