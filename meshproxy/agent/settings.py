"""What the flags come to."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from meshproxy.errors import ConfigError
from meshproxy.net.address import Address, ip_and_port
from meshproxy.tls.spiffe import Identity


@dataclass(frozen=True, slots=True)
class CaSettings:
    """Where the authority is: `path` of a Unix socket, or `host` and `port`, and then TLS. Files are read whenever they
    are needed, since others renew them."""

    host: str = ""
    port: int = 0
    path: str = ""
    root_file: str = ""
    name: str = ""  # of its certificate
    token_file: str = ""
    bootstrap_cert: str = ""
    bootstrap_key: str = ""
    renew_by_certificate: bool = False
    cluster_id: str = ""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """All of them."""

    ca: CaSettings
    identity: Identity
    key_type: str
    lifetime_s: float  # 0: as the authority has it
    sds_socket: str
    uids: frozenset[int]
    http: Address | None
    address_path: str
    drain_s: float


def agent_settings(options: argparse.Namespace) -> AgentSettings:
    """From the flags. Raises ConfigError."""
    identity = Identity(options.trust_domain, options.namespace, options.service_account)
    if not identity.is_valid:
        raise ConfigError("--trust-domain, --namespace, --service-account", f"{identity.uri} is no identity")
    return AgentSettings(
        ca=_ca(options),
        identity=identity,
        key_type=options.key_type,
        lifetime_s=options.lifetime,
        sds_socket=options.sds_socket.removeprefix("unix:"),
        uids=frozenset([os.geteuid(), *options.allow_uid]),
        http=_http_address(options.http),
        address_path=options.address_path,
        drain_s=options.drain_time_s,
    )


def _ca(options: argparse.Namespace) -> CaSettings:
    if bool(options.bootstrap_cert) != bool(options.bootstrap_key):
        raise ConfigError("--bootstrap-cert, --bootstrap-key", "one without the other proves nothing")
    proofs = {
        "token_file": options.token_file,
        "bootstrap_cert": options.bootstrap_cert,
        "bootstrap_key": options.bootstrap_key,
        "renew_by_certificate": options.renew_by_certificate,
        "cluster_id": options.cluster_id,
    }
    if options.ca.startswith("unix:"):
        if options.bootstrap_cert or options.renew_by_certificate:
            raise ConfigError("--ca", "a Unix socket has no TLS, by which a certificate could be shown")
        return CaSettings(path=options.ca.removeprefix("unix:"), **proofs)
    host, _, port = options.ca.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError("--ca", f"{options.ca!r} is neither HOST:PORT nor unix:PATH")
    if not options.ca_root_file:
        raise ConfigError("--ca-root-file", "without it nobody knows whom the token is told to")
    if not options.token_file and not options.bootstrap_cert:
        raise ConfigError("--token-file, --bootstrap-cert", "one of them must prove who we are")
    return CaSettings(host=host, port=int(port), root_file=options.ca_root_file, name=options.ca_name or host, **proofs)


def _http_address(text: str) -> Address | None:
    if not text:
        return None
    address = ip_and_port(text)
    if address is None:
        raise ConfigError("--http", f"{text!r} is not an IP address and a port")
    return address
