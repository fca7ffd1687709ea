"""What TLS offers a peer (ALPN): clusters as Istio configures them, with istio.alpn and without."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.config import Json, address, bootstrap, forward, listener
from tests.support.proxy import ProxyProcess, start_meshproxy
from tests.tls.certificates import world

TYPE = "type.googleapis.com/"
OVERRIDES = {
    "HTTP10": ["istio-http/1.0", "istio", "http/1.0"],
    "HTTP11": ["istio-http/1.1", "istio", "http/1.1"],
    "HTTP2": ["istio-h2", "istio", "h2"],
}
OPTIONS = TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
NAMES = ["istio-peer-exchange", "istio", "http/1.0", "http/1.1", "h2", *(names[0] for names in OVERRIDES.values())]


class Peer:
    """Takes connections, notes what their client hello offers, and hangs up."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.offered: list[list[str]] = []
        self._came = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            with sock:
                hello = sock.recv(16384)
            places = {name: hello.find(bytes([len(name)]) + name.encode()) for name in NAMES}
            self.offered.append(sorted((name for name in NAMES if places[name] >= 0), key=lambda name: places[name]))
            self._came.release()

    def next(self) -> list[str]:
        assert self._came.acquire(timeout=10)
        return self.offered.pop(0)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def cluster(name: str, port: int, options: Json | None = None, metadata: Json | None = None) -> Json:
    context = {
        "@type": TYPE + "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "sni": "outbound_.80_._.a.b.svc.cluster.local",
        "common_tls_context": {"alpn_protocols": ["istio-peer-exchange", "istio"]},
    }
    made: Json = {
        "name": name,
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
        },
        "transport_socket": {"name": "tls", "typed_config": context},
        "filters": [
            {
                "name": "istio.metadata_exchange",
                "typed_config": {
                    "@type": TYPE + "udpa.type.v1.TypedStruct",
                    "type_url": TYPE + "envoy.tcp.metadataexchange.config.MetadataExchange",
                    "value": {"protocol": "istio-peer-exchange"},
                },
            }
        ],
    }
    if options is not None:
        key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        made["typed_extension_protocol_options"] = {key: {"@type": OPTIONS, **options}}
    if metadata is not None:
        made["metadata"] = {"filter_metadata": {"istio": metadata}}
    return made


HTTP2: Json = {"explicit_http_config": {"http2_protocol_options": {}}}
CLUSTERS: dict[str, tuple[Json | None, Json | None]] = {
    "one": (None, None),
    "two": (HTTP2, None),
    "downstream": ({"use_downstream_protocol_config": {"http2_protocol_options": {}}}, {"config": "x"}),
    "own": (None, {"alpn_override": "false"}),
    "auto": ({"auto_config": {"http2_protocol_options": {}}}, None),
    "sni": (
        {"explicit_http_config": {"http_protocol_options": {}}, "upstream_http_protocol_options": {"auto_sni": True}},
        None,
    ),
}


def config(port: int) -> str:
    alpn = {
        "name": "istio.alpn",
        "typed_config": {
            "@type": TYPE + "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
            "alpn_override": [
                {"upstream_protocol": protocol, "alpn_override": names} for protocol, names in OVERRIDES.items()
            ],
        },
    }
    routes = [forward(f"/{name}", name) for name in CLUSTERS]
    tcp = {
        "@type": TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "t",
        "cluster": "one",
    }
    plain: Json = {
        "name": "tcp",
        "address": address(),
        "filter_chains": [{"filters": [{"name": "tcp", "typed_config": tcp}]}],
    }
    listeners = [listener("http", routes, filters=[alpn], manager={"http_protocol_options": {"accept_http_10": True}})]
    clusters = [cluster(name, port, *rest) for name, rest in CLUSTERS.items()]
    return bootstrap([*listeners, listener("without", routes), plain], clusters)


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def proxy(peer: Peer) -> Iterator[ProxyProcess]:
    with start_meshproxy(config(peer.port)) as started:
        yield started


def ask(proxy: ProxyProcess, name: str, path: str, version: str = "1.1") -> None:
    """The answer is 503: the peer hangs up."""
    with socket.create_connection(("127.0.0.1", proxy.listener_ports()[name]), 10) as sock:
        sock.sendall(f"GET {path} HTTP/{version}\r\nhost: a.test\r\nconnection: close\r\n\r\n".encode())
        answer = b""
        while piece := sock.recv(4096):
            answer += piece
        assert answer.split()[1] == b"503"


@pytest.mark.parametrize(
    ("name", "version", "offered"),
    [
        ("one", "1.1", OVERRIDES["HTTP11"]),
        ("one", "1.0", OVERRIDES["HTTP11"]),
        ("two", "1.1", OVERRIDES["HTTP2"]),
        ("downstream", "1.1", OVERRIDES["HTTP11"]),
        ("downstream", "1.0", OVERRIDES["HTTP10"]),
        ("auto", "1.1", OVERRIDES["HTTP2"]),
        ("sni", "1.1", OVERRIDES["HTTP11"]),
        ("own", "1.1", ["istio"]),
    ],
)
def test_http_offers_what_its_version_is_called_in_the_mesh(
    proxy: ProxyProcess, peer: Peer, name: str, version: str, offered: list[str]
) -> None:
    ask(proxy, "http", f"/{name}", version)
    assert peer.next() == offered


def test_without_the_filter_the_cluster_offers_its_own(proxy: ProxyProcess, peer: Peer) -> None:
    """And after that the filter's again: what is offered belongs to the request, not to the TLS context."""
    for listener_name, offered in (("without", ["istio"]), ("http", OVERRIDES["HTTP11"]), ("without", ["istio"])):
        ask(proxy, listener_name, "/one")
        assert peer.next() == offered


def test_tcp_never_offers_to_exchange_metadata(proxy: ProxyProcess, peer: Peer) -> None:
    with socket.create_connection(("127.0.0.1", proxy.listener_ports()["tcp"]), 10):
        assert peer.next() == ["istio"]


def test_a_server_does_not_agree_to_exchange_metadata() -> None:
    """A peer that offers it gets the next that both have, or none, and then sends no metadata either."""
    certificates = world()
    context: dict[str, Any] = {
        "@type": TYPE + "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["istio-peer-exchange", "h2", "http/1.1"],
            "tls_certificates": [
                {
                    "certificate_chain": {"inline_string": certificates.server.pem.decode()},
                    "private_key": {"inline_string": certificates.server.key_pem.decode()},
                }
            ],
        },
    }
    made = listener("tls", [forward("/", "one")])
    made["filter_chains"][0]["transport_socket"] = {"name": "tls", "typed_config": context}
    client = ssl.create_default_context()
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    with start_meshproxy(bootstrap([made], [cluster("one", 9)])) as proxy:
        for offered, agreed in ((["istio-peer-exchange", "http/1.1"], "http/1.1"), (["istio-peer-exchange"], None)):
            client.set_alpn_protocols(offered)
            with (
                socket.create_connection(("127.0.0.1", proxy.listener_ports()["tls"]), 10) as sock,
                client.wrap_socket(sock, server_hostname="a.test") as tls,
            ):
                assert tls.selected_alpn_protocol() == agreed
