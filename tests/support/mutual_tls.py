"""A proxy for mutual TLS whose secrets an agent serves on a Unix socket, and the client that looks what it shows."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any, Final

import yaml

from tests.tls.certificates import Issued

DEADLINE_S: Final = 20.0
_NO_CHECK_TIME: Final = ssl.VerifyFlags(0x200000)  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME


def sds(name: str, api_type: str) -> dict[str, Any]:
    source = {
        "api_type": api_type,
        "transport_api_version": "V3",
        "set_node_on_first_message_only": True,
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
    }
    return {"name": name, "sds_config": {"api_config_source": source, "resource_api_version": "V3"}}


def configuration(path: str, api_type: str = "GRPC") -> str:
    """A listener for mutual TLS by secrets of the agent at that socket."""
    tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    http = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    manager = {
        "@type": "type.googleapis.com/"
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "v",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "direct_response": {"status": 200, "body": {"inline_string": "secure"}},
                        }
                    ],
                }
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    context = {
        "@type": tls,
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [sds("default", api_type)],
            "validation_context_sds_secret_config": sds("ROOTCA", api_type),
        },
    }
    listener = {
        "name": "in",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {
                "transport_socket": {"name": "tls", "typed_config": context},
                "filters": [{"name": "http", "typed_config": manager}],
            }
        ],
    }
    cluster = {
        "name": "sds-grpc",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": http,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "sds-grpc",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": path}}}}]}],
        },
    }
    return yaml.dump(
        {
            "node": {"id": "proxy", "cluster": "test"},
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "static_resources": {"listeners": [listener], "clusters": [cluster]},
        }
    )


def shown_by(port: int, client: Issued, trusted: Issued, folder: Path) -> bytes:
    """The certificate (DER) that a TLS client of that identity sees, which a request has passed behind."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= _NO_CHECK_TIME  # a slow machine may come late for a certificate of seconds
    context.load_verify_locations(cadata=trusted.pem.decode())
    file = folder / "client.pem"
    file.write_bytes(client.pem + client.key_pem)
    context.load_cert_chain(file)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
        assert answer.endswith(b"secure"), answer
        return sock.getpeercert(binary_form=True) or b""
