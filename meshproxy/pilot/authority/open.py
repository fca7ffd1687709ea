"""The authority, or its store, that flags name (`flags.py`)."""

from __future__ import annotations

import argparse
import os
import stat
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from meshproxy.pilot.authority.audit import Audit
from meshproxy.pilot.authority.ca import CertificateAuthority
from meshproxy.pilot.authority.directory_store import DirectoryStore
from meshproxy.pilot.authority.flags import PASSPHRASE
from meshproxy.pilot.authority.metrics import AuthorityMetrics
from meshproxy.pilot.authority.settings import AuthorityError, AuthoritySettings
from meshproxy.pilot.authority.store import Store
from meshproxy.tls.spiffe import is_trust_domain

_MAX_BYTES: Final = 4096


async def open_authority(
    options: argparse.Namespace, registry: CollectorRegistry | None = None
) -> CertificateAuthority | None:
    """The pilot's; None where no flag names one. Raises AuthorityError, or SourceError for etcd's flags."""
    if not options.authority:
        return None
    settings = authority_settings(options)
    store = open_store(options)
    audit, metrics = Audit(options.authority_audit), AuthorityMetrics(registry)
    try:
        return await CertificateAuthority.open(store, read_passphrase(options), settings, audit, metrics)
    except BaseException:
        await store.close()
        audit.close()
        raise


def authority_settings(options: argparse.Namespace) -> AuthoritySettings:
    """Raises AuthorityError."""
    return AuthoritySettings(
        trust_domain=trust_domain(options),
        lifetime_s=min(options.certificate_lifetime, options.longest_certificate_lifetime),
        longest_lifetime_s=options.longest_certificate_lifetime,
        root_lifetime_s=options.root_lifetime,
        rotate_after_s=options.rotate_root_after,
        overlap_s=options.root_overlap,
        crl_lifetime_s=options.crl_lifetime,
        key_type=options.authority_key,
        federated=_federated(options),
        identity_rate=options.identity_rate,
        identity_burst=options.identity_burst,
        rate=options.authority_rate,
        burst=options.authority_burst,
    )


def trust_domain(options: argparse.Namespace) -> str:
    """Raises AuthorityError."""
    name = str(options.trust_domain)
    if not is_trust_domain(name):
        raise AuthorityError(f"--trust-domain: {name!r} is none: small letters, digits, '.', '-' and '_'")
    return name


def open_store(options: argparse.Namespace) -> Store:
    """Raises AuthorityError, or SourceError for etcd's flags."""
    if options.authority != "etcd":
        return DirectoryStore(options.authority)
    from meshproxy.pilot.authority.etcd_store import EtcdStore
    from meshproxy.pilot.sources.open import etcd_settings

    return EtcdStore(etcd_settings(options, options.authority_prefix))


def read_passphrase(options: argparse.Namespace) -> bytes:
    """From the file that the flag or the environment names, else from the environment. Raises AuthorityError."""
    path = options.authority_passphrase_file or os.environ.get(f"{PASSPHRASE}_FILE", "")
    if not path:
        found = os.environ.get(PASSPHRASE, "").encode()
        if not found:
            raise AuthorityError(f"say what encrypts its keys: --authority-passphrase-file FILE, or {PASSPHRASE}_FILE")
        return found
    try:
        with Path(path).open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IRWXO:
                raise AuthorityError(f"{path}: everybody can read it: chmod 600 {path}")
            return file.read(_MAX_BYTES).strip()
    except OSError as error:
        raise AuthorityError(f"{path}: {error.strerror}") from None


def _federated(options: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for each in options.federate:
        domain, _, path = each.partition("=")
        if not is_trust_domain(domain) or not path:
            raise AuthorityError(f"--federate: {each!r} is not DOMAIN=FILE")
        if domain == options.trust_domain or domain in found:
            raise AuthorityError(f"--federate: {domain}: is our own, or named twice")
        found[domain] = path
    return tuple(found.items())
