"""`meshproxy pilot`: serve what rules say to proxies, over xDS.

Exit code 0 when a signal ends it, 1 when it cannot serve (addresses, certificates, a source that is not there), 2 when
the flags are wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import sys
from typing import Final

import uvloop

from meshproxy.errors import ConfigError, MeshProxyError
from meshproxy.net.address import Address, is_ip
from meshproxy.observe.log import setup_logging
from meshproxy.pilot.mesh.model import MeshConfig
from meshproxy.pilot.server.pilot import Pilot, PilotSettings
from meshproxy.pilot.server.tls import TlsFiles
from meshproxy.pilot.sources.open import open_source
from meshproxy.server.heap import keep_freed_memory

_ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run_pilot(options: argparse.Namespace) -> int:
    """Serve until a signal comes; `options` are those of `pilot_flags.py`."""
    try:
        setup_logging(options.log_level)
        settings = pilot_settings(options)
    except ConfigError as error:
        print(f"meshproxy pilot: {error}", file=sys.stderr)
        return 2
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
    await Pilot(open_source(options), settings).run(stop)
    return 0


def pilot_settings(options: argparse.Namespace) -> PilotSettings:
    """From the flags. Raises ConfigError."""
    if bool(options.rules) == bool(options.etcd):
        raise ConfigError("--rules, --etcd", "one of them says where the documents are")
    return PilotSettings(
        listen=tuple(options.listen or ("127.0.0.1:15010",)),
        http=_http_address(options.http),
        tls=_tls(options),
        mesh=MeshConfig(options.domain, options.root_namespace, options.outbound),
        debounce_quiet_s=options.debounce_ms / 1000.0,
        debounce_most_s=options.debounce_max_ms / 1000.0,
        deadline_s=options.client_deadline_s,
        drain_s=options.drain_time_s,
        max_connection_age_s=options.max_connection_age_s,
        any_certificate=options.tls_any_certificate,
        csds=options.csds,
        address_path=options.address_path,
    )


def _tls(options: argparse.Namespace) -> TlsFiles | None:
    if bool(options.tls_cert) != bool(options.tls_key) or (options.tls_ca and not options.tls_cert):
        raise ConfigError("--tls-cert, --tls-key", "both are needed for TLS")
    return TlsFiles(options.tls_cert, options.tls_key, options.tls_ca) if options.tls_cert else None


def _http_address(text: str) -> Address | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not is_ip(host) or not port.isdigit() or int(port) > 65535:
        raise ConfigError("--http", f"{text!r} is not an IP address and a port")
    return Address(host, int(port))
