"""TLS through a whole proxy: real clients, real upstreams, and what the access log says of the connection."""

import contextlib
import json
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from meshproxy.tls import openssl
from tests.differential.topic import ROUTER, TYPE, Yaml, address, mapping
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess
from tests.tls.certificates import Issued, world

DEADLINE_S = 4.0
TLS = TYPE + "transport_sockets.tls.v3."
REQUEST = b"GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n%s\r\n"
CONNECTION_LOG = {
    "chain": "%FILTER_CHAIN_NAME%",
    "sni": "%REQUESTED_SERVER_NAME%",
    "version": "%DOWNSTREAM_TLS_VERSION%",
    "subject": "%DOWNSTREAM_PEER_SUBJECT%",
    "uri": "%DOWNSTREAM_PEER_URI_SAN%",
    "local": "%DOWNSTREAM_LOCAL_DNS_SAN%",
    "failure": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
    "flags": "%RESPONSE_FLAGS%",
    "termination": "%CONNECTION_TERMINATION_DETAILS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "rbac": "%DYNAMIC_METADATA(envoy.filters.network.rbac)%",
    "log_hint": "%DYNAMIC_METADATA(envoy.common:access_log_hint)%",
}
REQUEST_LOG = {
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "version": "%DOWNSTREAM_TLS_VERSION%",
    "subject": "%DOWNSTREAM_PEER_SUBJECT%",
    "fingerprint": "%DOWNSTREAM_PEER_FINGERPRINT_256%",
    "upstream_version": "%UPSTREAM_TLS_VERSION%",
    "upstream_subject": "%UPSTREAM_PEER_SUBJECT%",
    "upstream_local": "%UPSTREAM_LOCAL_URI_SAN%",
    "rbac": "%DYNAMIC_METADATA(envoy.filters.http.rbac)%",
}


def inline(data: bytes) -> Yaml:
    return {"inline_string": data.decode()}


def certificate(issued: Issued) -> Yaml:
    return {"certificate_chain": inline(issued.pem), "private_key": inline(issued.key_pem)}


def server_tls(*issued: Issued, common: str = "", fields: str = "") -> Yaml:
    """The transport socket of a filter chain; `common` and `fields` are YAML of more of it."""
    certificates = [certificate(each) for each in issued or (world().server,)]
    config: Yaml = {"@type": TLS + "DownstreamTlsContext"} | mapping(fields)
    config["common_tls_context"] = {"tls_certificates": certificates} | mapping(common)
    return {"name": "tls", "typed_config": config}


def client_tls(common: str = "", fields: str = "", issued: Issued | None = None) -> Yaml:
    """The transport socket of a cluster."""
    certificates = [] if issued is None else [certificate(issued)]
    config: Yaml = {"@type": TLS + "UpstreamTlsContext"} | mapping(fields)
    config["common_tls_context"] = {"tls_certificates": certificates} | mapping(common)
    return {"name": "tls", "typed_config": config}


def trusts(issued: Issued, more: str = "") -> str:
    """YAML of a `common_tls_context` that verifies the peer."""
    return json.dumps({"validation_context": {"trusted_ca": inline(issued.pem)} | mapping(more)})


@dataclass(frozen=True)
class TlsChain:
    """A filter chain: its match, its transport socket (none: plain bytes), and where its requests go.

    Without a cluster it answers by itself; `tcp` leaves the bytes as they are. `manager` is YAML of more fields of the
    connection manager, `fields` of the chain.
    """

    transport: Yaml | None = None
    match: str = ""
    cluster: str = ""
    tcp: bool = False
    manager: str = ""
    fields: str = ""


@dataclass(frozen=True)
class TlsListener:
    """Chains by name."""

    chains: dict[str, TlsChain]
    inspects: bool = False
    fields: str = ""


@dataclass(frozen=True)
class TlsCluster:
    """`upstream` names one of the upstreams."""

    upstream: str
    transport: Yaml | None = None
    fields: str = ""


@dataclass(frozen=True)
class Client:
    """What a client does: `plain` speaks no TLS; `raw` is sent instead of a handshake, and the end follows with
    `raw_end`."""

    server_name: str = "a.test"
    alpn: tuple[str, ...] = ()
    certificate: Issued | None = None
    ca: Issued | None = None
    version: ssl.TLSVersion | None = None
    plain: bool = False
    raw: bytes = b""
    raw_end: bool = False
    headers: bytes = b""
    shows_cipher: bool = False
    curve: str = ""  # the only one that it knows
    body: bytes = b""  # tcp: sent instead of a request, then our side is shut

    def context(self) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        # as sidecars, browsers and Go do: test_tls13.py has the others
        openssl.set_tls13_ciphers(made, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384")
        made.load_verify_locations(cadata=(self.ca or world().ca).pem.decode())
        if self.version is not None:
            made.minimum_version = made.maximum_version = self.version
        if self.alpn:
            made.set_alpn_protocols(list(self.alpn))
        if self.curve:
            made.set_ecdh_curve(self.curve)
        if self.certificate is not None:
            load(made, self.certificate)
        return made


def load(context: ssl.SSLContext, issued: Issued) -> None:
    """Let a context present a certificate."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(issued.pem + issued.key_pem)
        file.flush()
        context.load_cert_chain(file.name)


@dataclass(frozen=True)
class Upstream:
    """A server: `mode` is `tls`, `plain`, `cut` (ends after the ClientHello), `silent`, or `echo` (TLS, to the end of
    the peer's direction and then back)."""

    mode: str = "tls"
    issued: Issued | None = None
    client_ca: Issued | None = None
    alpn: tuple[str, ...] = ()
    version: ssl.TLSVersion | None = None

    def context(self) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load(made, self.issued or world().server)
        if self.version is not None:
            made.maximum_version = self.version
        if self.alpn:
            made.set_alpn_protocols(list(self.alpn))
        if self.client_ca is not None:
            made.verify_mode = ssl.CERT_REQUIRED
            made.load_verify_locations(cadata=self.client_ca.pem.decode())
        return made


class RunningUpstream:
    """A thread for the socket, and one for each connection. An answer's body says what the server saw."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._context = upstream.context()
        self._name = ""
        self._context.sni_callback = self._on_server_name
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _on_server_name(self, _: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
        self._name = name or ""

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                threading.Thread(target=self._serve, args=(self._listening.accept()[0],), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        mode = self._upstream.mode
        sock.settimeout(DEADLINE_S)
        with sock, contextlib.suppress(OSError):
            if mode == "cut":
                sock.recv(4096)
            elif mode == "silent":
                while sock.recv(4096):
                    pass
            elif mode == "plain":
                self._answer(sock, "plain")
            else:
                with self._context.wrap_socket(sock, server_side=True) as tls:
                    self._echo(tls) if mode == "echo" else self._answer(tls, self._facts(tls))

    def _facts(self, tls: ssl.SSLSocket) -> str:
        peer = tls.getpeercert(binary_form=True)
        return f"{tls.version()} sni={self._name} alpn={tls.selected_alpn_protocol()} client={bool(peer)}"

    def _answer(self, sock: socket.socket, facts: str) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(4096)
            if not data:
                return
            head += data
        seen = [line for line in head.decode().split("\r\n") if line.lower().startswith("x-forwarded-client-cert")]
        body = "\n".join([facts, *seen]).encode()
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    def _echo(self, tls: ssl.SSLSocket) -> None:
        got = b""
        while data := tls.recv(4096):
            got += data
        tls.sendall(got)
        tls.unwrap()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@dataclass(frozen=True)
class World:
    """One configuration for both proxies."""

    listeners: dict[str, TlsListener]
    clusters: dict[str, TlsCluster] = field(default_factory=dict)
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    secrets: tuple[Yaml, ...] = ()

    def bootstrap(self, ports: dict[str, int], log: Path) -> str:
        tree = {
            "node": {"id": "differential", "cluster": "differential"},
            "admin": {"address": address(0)},
            "static_resources": {
                "listeners": [_listener(name, each, log) for name, each in self.listeners.items()],
                "clusters": [_cluster(name, each, ports) for name, each in self.clusters.items()],
                "secrets": list(self.secrets),
            },
        }
        return yaml.dump(tree, sort_keys=False, width=1000)


def _listener(name: str, listener: TlsListener, log: Path) -> Yaml:
    inspector = {"name": "tls", "typed_config": {"@type": TYPE + "filters.listener.tls_inspector.v3.TlsInspector"}}
    made = {
        "name": name,
        "address": address(0),
        "stat_prefix": name,
        "listener_filters": [inspector] if listener.inspects else [],
        "access_log": [_log(log, {"kind": "connection", "listener": name} | CONNECTION_LOG)],
        "filter_chains": [_chain(each, chain, name, log) for each, chain in listener.chains.items()],
    }
    return made | mapping(listener.fields)


def _chain(name: str, chain: TlsChain, listener: str, log: Path) -> Yaml:
    if chain.tcp:
        proxy = {"@type": TYPE + "filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": name, "cluster": chain.cluster}
        filters = [{"name": "tcp_proxy", "typed_config": proxy}]
    else:
        filters = [{"name": "http", "typed_config": _manager(name, chain, listener, log)}]
    made: Yaml = {"name": name, "filters": filters} | mapping(chain.fields)
    if chain.match:
        made["filter_chain_match"] = mapping(chain.match)
    if chain.transport is not None:
        made["transport_socket"] = chain.transport
    return made


def _manager(name: str, chain: TlsChain, listener: str, log: Path) -> Yaml:
    action: Yaml = {"direct_response": {"status": 200, "body": {"inline_string": name}}}
    if chain.cluster:
        action = {"route": {"cluster": chain.cluster}}
    hosts = [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}} | action]}]
    made: Yaml = {
        "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [ROUTER],
        "route_config": {"virtual_hosts": hosts},
        "access_log": [_log(log, {"kind": "request", "listener": listener} | REQUEST_LOG)],
    }
    return made | mapping(chain.manager)


def _log(path: Path, fields: dict[str, str]) -> Yaml:
    config = {"@type": TYPE + "access_loggers.file.v3.FileAccessLog", "path": str(path)}
    return {"name": "file", "typed_config": config | {"log_format": {"json_format": fields}}}


def _cluster(name: str, cluster: TlsCluster, ports: dict[str, int]) -> Yaml:
    endpoint = {"endpoint": {"address": address(ports[cluster.upstream]), "hostname": "host.test"}}
    made: Yaml = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.6s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if cluster.transport is not None:
        made["transport_socket"] = cluster.transport
    return made | mapping(cluster.fields)


class TlsSide:
    """One proxy, its upstreams, and its log."""

    def __init__(self, world: World, start: Callable[[str], ProxyProcess]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tls-"))
        self.log_path = self.directory / "access.log"
        self.log_path.touch()
        self.upstreams = {name: RunningUpstream(each) for name, each in world.upstreams.items()}
        try:
            ports = {name: each.port for name, each in self.upstreams.items()}
            self.proxy = start(world.bootstrap(ports, self.log_path))
        except BaseException:
            self._clean()
            raise
        self.ports = self.proxy.listener_ports()

    def run(self, listener: str, client: Client) -> dict[str, Any]:
        """What the client met, and the log lines."""
        logged = self.log_path.stat().st_size
        with socket.create_connection(("127.0.0.1", self.ports[listener]), DEADLINE_S) as sock:
            found = meet(sock, client)
        lines = wait_for(lambda: self._lines(listener, logged), f"the log of {listener}", DEADLINE_S)
        for line in lines:
            found[line.pop("kind")] = {name: value for name, value in line.items() if value is not None}
        return found

    def _lines(self, listener: str, after: int) -> list[dict[str, Any]]:
        """All of a connection: its own line is the last."""
        whole = self.log_path.read_bytes()[after:].split(b"\n")[:-1]
        lines = [line for line in map(json.loads, whole) if line["listener"] == listener]
        return lines if any(line["kind"] == "connection" for line in lines) else []

    def _clean(self) -> None:
        for upstream in self.upstreams.values():
            upstream.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def close(self) -> None:
        self.proxy.stop()
        self._clean()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def meet(sock: socket.socket, client: Client) -> dict[str, Any]:
    """Shake hands, ask, and read to the end; errors by their names."""
    if client.raw or client.raw_end:
        sock.sendall(client.raw)
        if client.raw_end:
            sock.shutdown(socket.SHUT_WR)
        return {"answer": _read(sock)}
    if client.plain:
        sock.sendall(REQUEST % client.headers)
        return {"answer": _read(sock)}
    try:
        tls = client.context().wrap_socket(sock, server_hostname=client.server_name or None)
    except (ssl.SSLEOFError, ConnectionError):  # a reset where the proxy had not read all, which is a matter of timing
        return {"handshake": "closed"}
    except ssl.SSLError as error:
        return {"handshake": error.reason}
    with tls:
        subject = dict(part[0] for part in tls.getpeercert()["subject"])["commonName"]  # type: ignore[index, misc]
        handshake = f"{tls.version()} alpn={tls.selected_alpn_protocol()} server={subject}"
        if client.shows_cipher:
            handshake += f" {tls.cipher()[0]}"  # type: ignore[index]
        return {"handshake": handshake, "answer": _half_close(tls, client.body) if client.body else _ask(tls, client)}


def _ask(tls: ssl.SSLSocket, client: Client) -> str:
    with contextlib.suppress(OSError):  # what went wrong shows when we read
        tls.sendall(REQUEST % client.headers)
    return _read(tls)


def _half_close(tls: ssl.SSLSocket, body: bytes) -> str:
    """Say that no more comes, and read what does: Python's `unwrap` would wait for the other's close_notify first."""
    tls.sendall(body)
    inner: Any = tls._sslobj  # type: ignore[attr-defined]
    tls.setblocking(False)
    with contextlib.suppress(ssl.SSLError):
        inner.shutdown()
    tls.setblocking(True)
    return _read(tls)


def _read(sock: socket.socket) -> str:
    """A status and a body, or what came instead."""
    text = b""
    sock.settimeout(DEADLINE_S)
    try:
        while data := sock.recv(4096):
            text += data
    except TimeoutError:
        text += b"<stalled>"
    except ssl.SSLError as error:
        text += f"<{error.reason}>".encode()
    except ConnectionError:
        text += b"<reset>"
    head, _, body = text.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/"):
        return f"{head.split()[1].decode()} {body.decode()}"
    return text.decode("latin-1") or "closed"
