"""`meshproxy pilot`: serve what rules say to proxies, over xDS.

Exit code 0 when a signal ends it, 1 when it cannot serve (addresses, certificates, a source that is not there), 2 when
the flags are wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import resource
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Final

import uvloop

from meshproxy.errors import ConfigError, MeshProxyError
from meshproxy.net.address import Address, ip_and_port
from meshproxy.observe.log import setup_logging
from meshproxy.pilot.mesh.model import MeshConfig
from meshproxy.pilot.server.pilot import Pilot, PilotSettings
from meshproxy.pilot.server.tls import TlsFiles
from meshproxy.pilot.sources.open import open_source
from meshproxy.server.heap import keep_freed_memory
from meshproxy.server.secrecy import keep_memory_private
from meshproxy.tls.spiffe import is_trust_domain

if TYPE_CHECKING:
    from meshproxy.pilot.server.authority import OpenAuthority, ProofSettings

_ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_NEED_AUTHORITY: Final = ("jwks", "uid_table", "authority_listen", "authority_socket", "tls_from_authority")


def run_pilot(options: argparse.Namespace) -> int:
    """Serve until a signal comes; `options` are those of `pilot_flags.py`."""
    try:
        setup_logging(options.log_level)
        settings = pilot_settings(options)
    except ConfigError as error:
        print(f"meshproxy pilot: {error}", file=sys.stderr)
        return 2
    if options.authority:
        keep_memory_private()
    keep_freed_memory()
    _allow_many_files()
    try:
        return uvloop.run(_run(options, settings))
    except MeshProxyError as error:
        print(f"meshproxy pilot: {error}", file=sys.stderr)
        return 1


def _allow_many_files() -> None:
    """Every client is a socket: as many as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _run(options: argparse.Namespace, settings: PilotSettings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _ENDING_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    await Pilot(open_source(options), settings, _open_authority(options)).run(stop)
    return 0


def pilot_settings(options: argparse.Namespace) -> PilotSettings:
    """From the flags. Raises ConfigError."""
    if bool(options.rules) == bool(options.etcd) and not (options.rules and options.authority == "etcd"):
        raise ConfigError("--rules, --etcd", "one of them says where the documents are")
    return PilotSettings(
        listen=tuple(options.listen or (() if options.authority_listen else ("127.0.0.1:15010",))),
        http=_address("--http", options.http) if options.http else None,
        tls=_tls(options),
        mesh=MeshConfig(
            options.domain,
            options.root_namespace,
            options.outbound,
            trust_domain=options.trust_domain,
            trust_domain_aliases=tuple(options.trust_domain_alias),
            federated_domains=tuple(each.partition("=")[0] for each in options.federate),
        ),
        debounce_quiet_s=options.debounce_ms / 1000.0,
        debounce_most_s=options.debounce_max_ms / 1000.0,
        deadline_s=options.client_deadline_s,
        drain_s=options.drain_time_s,
        max_connection_age_s=options.max_connection_age_s,
        any_certificate=options.tls_any_certificate,
        csds=options.csds,
        address_path=options.address_path,
        proof=_proof(options),
    )


def _open_authority(options: argparse.Namespace) -> OpenAuthority | None:
    if not options.authority:
        return None
    from meshproxy.pilot.authority.open import open_authority

    return partial(open_authority, options)


def _proof(options: argparse.Namespace) -> ProofSettings | None:
    """Who may ask the authority. Raises ConfigError."""
    if not options.authority:
        for flag in _NEED_AUTHORITY:
            if getattr(options, flag):
                raise ConfigError(f"--{flag.replace('_', '-')}", "is nothing without --authority")
        return None
    if importlib.util.find_spec("cryptography") is None or importlib.util.find_spec("jwt") is None:
        raise ConfigError("--authority", "needs packages: pip install 'meshproxy[authority]'")
    if options.jwks and not options.jwt_issuer:
        raise ConfigError("--jwks", "needs --jwt-issuer: whose tokens are meant")
    if options.tls_from_authority and (options.tls_cert or options.tls_ca):
        raise ConfigError("--tls-from-authority", "stands in the place of --tls-cert, --tls-key and --tls-ca")
    if options.authority_listen and not options.tls_from_authority and not options.tls_cert:
        raise ConfigError("--authority-listen", "needs --tls-from-authority, or --tls-cert and --tls-key")
    for alias in options.trust_domain_alias:
        if not is_trust_domain(alias):
            raise ConfigError("--trust-domain-alias", f"{alias!r} is no trust domain")
    from meshproxy.pilot.server.authority import ProofSettings

    return ProofSettings(
        jwks=options.jwks,
        jwks_ca=options.jwks_ca,
        jwks_token=options.jwks_token_file,
        issuer=options.jwt_issuer,
        audiences=tuple(options.jwt_audience or ("istio-ca",)),
        tokens_anywhere=options.jwt_any_address,
        uid_table=options.uid_table,
        aliases=tuple(options.trust_domain_alias),
        listen=tuple(_address("--authority-listen", each) for each in options.authority_listen),
        sockets=tuple(options.authority_socket),
        names=tuple(name for each in options.tls_from_authority for name in each.split(",") if name),
    )


def _tls(options: argparse.Namespace) -> TlsFiles | None:
    if bool(options.tls_cert) != bool(options.tls_key) or (options.tls_ca and not options.tls_cert):
        raise ConfigError("--tls-cert, --tls-key", "both are needed for TLS")
    return TlsFiles(options.tls_cert, options.tls_key, options.tls_ca) if options.tls_cert else None


def _address(flag: str, text: str) -> Address:
    address = ip_and_port(text)
    if address is None:
        raise ConfigError(flag, f"{text!r} is not an IP address and a port")
    return address
