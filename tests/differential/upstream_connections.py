"""What upstreams see of connections: where they come from, what stands before their bytes, and who shares one."""

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import yaml

from tests.differential.tls import load
from tests.differential.topic import ROUTER, TYPE, Yaml, mapping
from tests.support.downstream import RawDownstream
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess
from tests.support.wire import ConnectionEnded
from tests.tls.certificates import Issued, dns, ip, issue, uri, world

DEADLINE_S = 4.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
SERVER = issue("named", world().ca, names=[*dns("named.test", "*.wild.test"), *ip("127.0.0.9", "::9"), *uri("spiffe://a")])
V2 = b"\r\n\r\n\0\r\nQUIT\n"


def get(target: str = "/", host: str = "a.test", headers: str = "") -> bytes:
    """A request."""
    return f"GET {target} HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n".encode()


@dataclass(frozen=True)
class Row:
    """`downstreams`: what each connection sends, one request after the other; an answer is awaited to each. They stay
    open until the row ends, so that what is shared is shared by others.

    `cluster` and `bootstrap` are YAML of Cluster and Bootstrap fields, with `@plain@` and so on for ports of upstreams;
    `manager` is of the connection manager, or with `tcp` of the TcpProxy; `route` of the RouteAction; `listener` of the
    Listener. `stats` is a pattern of names of stats that are compared. The cluster's host is at `address`.
    """

    name: str
    downstreams: tuple[tuple[bytes, ...], ...] = ((get(),),)
    cluster: str = ""
    upstream: str = "plain"
    address: str = "127.0.0.1"
    manager: str = ""
    route: str = ""
    listener: str = ""
    tcp: bool = False
    endpoint: str = ""  # YAML of LbEndpoint fields
    locality: str = ""  # YAML of LocalityLbEndpoints fields
    stats: str = "^$"
    fields: tuple[bytes, ...] = ()  # of requests, that are compared
    after: str = ""  # a stat that has this value when the row ends, `name=value`
    differs: str = ""  # key in docs/envoy-differences.md
    envoy: tuple[str, ...] = ()  # then: lines that only Envoy has
    ours: tuple[str, ...] = ()  # and those that only we have
    blind: bool = False  # what upstreams see is a matter of timing
    alpn: bool = False  # what TLS has agreed on is compared
    parallel: bool = False  # requests of all downstreams are sent before any answer is awaited


class Seen:
    """One connection of an upstream."""

    def __init__(self, source: str, port: int) -> None:
        self.source = source
        self.port = port
        self.header = ""
        self.server_name: str | None = None
        self.protocol: str | None = None  # of TLS (ALPN)
        self.requests: list[bytes] = []


class Recorder:
    """An upstream: `plain`, `tls`, or `proxied_tls` (a PROXY protocol line, then TLS). It answers every request, on
    hold only after `release` is cleared."""

    def __init__(self, mode: str, address: str = "127.0.0.1", issued: Issued | None = None) -> None:
        self.mode = mode
        self.seen: list[Seen] = []
        self.release = threading.Event()
        self.release.set()
        self._issued = issued
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listening = socket.create_server((address, 0), family=family)
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, peer = self._listening.accept()
                seen = Seen(peer[0], peer[1])
                self.seen.append(seen)
                threading.Thread(target=self._serve, args=(sock, seen), daemon=True).start()

    def _serve(self, sock: socket.socket, seen: Seen) -> None:
        sock.settimeout(DEADLINE_S * 5)
        with sock, contextlib.suppress(OSError):
            if self.mode == "proxied_tls":
                while not seen.header.endswith("\r\n"):
                    seen.header += sock.recv(1).decode()
            if self.mode == "plain":
                self._answer(sock, seen)
            else:
                with self._context(seen).wrap_socket(sock, server_side=True) as tls:
                    seen.server_name = seen.server_name or ""
                    seen.protocol = tls.selected_alpn_protocol()
                    self._answer(tls, seen)

    def _context(self, seen: Seen) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load(made, self._issued or world().server)
        made.set_alpn_protocols(["other", "http/1.1", "h2"])

        def on_server_name(_: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> None:
            seen.server_name = name

        made.sni_callback = on_server_name
        return made

    def _answer(self, sock: socket.socket, seen: Seen) -> None:
        data = b""
        while piece := sock.recv(65536):
            data += piece
            if not seen.header:
                seen.header, data = _take_header(data)
            while b"\r\n\r\n" in data:
                head, data = data.split(b"\r\n\r\n", 1)
                seen.requests.append(head)
                self.release.wait(DEADLINE_S)
                sock.sendall(OK)

    def close(self) -> None:
        self.release.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


def _take_header(data: bytes) -> tuple[str, bytes]:
    """A PROXY protocol header in words, and what is behind it."""
    if data.startswith(b"PROXY "):
        line, rest = data.split(b"\r\n", 1)
        return line.decode(), rest
    if data.startswith(V2):
        end = 16 + int.from_bytes(data[14:16], "big")
        return _v2_words(data[12], data[13], data[16:end]), data[end:]
    return "", data


def _v2_words(command: int, family: int, body: bytes) -> str:
    sizes = {0x11: (socket.AF_INET, 4), 0x21: (socket.AF_INET6, 16), 0: (socket.AF_UNSPEC, 0)}
    kind, size = sizes[family]
    words = [f"v2 {command:#x} {family:#x}"]
    if size:
        words += [socket.inet_ntop(kind, body[:size]), socket.inet_ntop(kind, body[size : 2 * size])]
        ports = body[2 * size : 2 * size + 4]
        words += [str(int.from_bytes(ports[:2], "big")), str(int.from_bytes(ports[2:], "big"))]
        body = body[2 * size + 4 :]
    return " ".join([*words, repr(body)])


class ConnectionsSide:
    """One proxy, with upstreams of its own."""

    def __init__(self, rows: list[Row], bootstrap: str, start: Callable[[str], ProxyProcess]) -> None:
        self.upstreams = {
            "plain": Recorder("plain", "0.0.0.0"),  # hosts are 127.0.0.1, 127.0.0.2 …
            "other": Recorder("plain"),
            "six": Recorder("plain", "::1"),
            "tls": Recorder("tls", issued=SERVER),
            "proxied_tls": Recorder("proxied_tls", issued=SERVER),
        }
        try:
            self.proxy = start(self._bootstrap(rows, bootstrap))
        except BaseException:
            self._clean()
            raise
        self.ports = self.proxy.listener_ports()

    def _bootstrap(self, rows: list[Row], more: str) -> str:
        tree = {
            "admin": {"address": at("127.0.0.1", 0)},
            "static_resources": {
                "listeners": [_listener(row) for row in rows],
                "clusters": [self._cluster(row) for row in rows],
            },
        }
        return self._with_ports(yaml.dump(tree | mapping(more), sort_keys=False, width=1000))

    def _with_ports(self, text: str) -> str:
        for name, upstream in self.upstreams.items():
            text = text.replace(f"@{name}@", str(upstream.port))
            text = text.replace(f"@{name.upper()}@", str(upstream.port).rjust(len(name) + 2, "0"))  # no longer than it
        return text

    def _cluster(self, row: Row) -> Yaml:
        endpoint = {"endpoint": {"address": at(row.address, self.upstreams[row.upstream].port)}} | mapping(row.endpoint)
        groups = [{"lb_endpoints": [endpoint]} | mapping(row.locality)]
        made: Yaml = {"name": row.name, "type": "STATIC", "connect_timeout": "3s"}
        made |= {"load_assignment": {"cluster_name": row.name, "endpoints": groups}}
        fields: Yaml = yaml.safe_load(self._with_ports(row.cluster)) or {}
        made |= fields
        if "CLUSTER_PROVIDED" in row.cluster:  # hosts are named by requests
            del made["load_assignment"]
        return {name: value for name, value in made.items() if value is not None}

    def run(self, row: Row) -> list[str]:
        """What everybody saw, in words without ports."""
        before = {name: len(upstream.seen) for name, upstream in self.upstreams.items()}
        names = {upstream.port: name.upper() for name, upstream in self.upstreams.items()}
        names[self.ports[row.name]] = "LISTENER"
        lines = []
        with contextlib.ExitStack() as stack:
            downstreams = []
            for number, requests in enumerate(row.downstreams):
                downstream = stack.enter_context(RawDownstream(self.ports[row.name], timeout_s=DEADLINE_S))
                names[downstream.local_port] = f"DOWNSTREAM{number}"
                downstreams.append(downstream)
                if not row.parallel:
                    lines += [f"{number}: {self._ask(downstream, request)}" for request in requests]
            if row.parallel:
                lines += self._ask_all(row, downstreams)
            if row.after:
                self._await(row.after)
            lines += self._stats(row)
        for name, upstream in () if row.blind else self.upstreams.items():
            for seen in upstream.seen[before[name] :]:
                lines.append(f"{name} from {seen.source} header={seen.header.strip()} sni={seen.server_name}")
                lines += [f"  alpn={seen.protocol}"] if row.alpn else []
                lines += [f"  {_shown(head, row.fields)}" for head in seen.requests]
        return [re.sub(r"\b(\d{4,5})\b", lambda m: names.get(int(m[1]), "PORT"), line) for line in lines]

    def _ask(self, downstream: RawDownstream, request: bytes) -> str:
        downstream.send(self._with_ports(request.decode("latin-1")).encode("latin-1"))
        return self._answer(downstream)

    def _answer(self, downstream: RawDownstream) -> str:
        try:
            message = downstream.receive()
        except ConnectionEnded:
            return "closed"
        return f"{message.status} {message.body!r}"

    def _ask_all(self, row: Row, downstreams: list[RawDownstream]) -> list[str]:
        """All upstreams hold their answers back until every request has come."""
        upstream = self.upstreams[row.upstream]
        count = sum(len(seen.requests) for seen in upstream.seen)
        upstream.release.clear()
        for downstream, requests in zip(downstreams, row.downstreams, strict=True):
            downstream.send(requests[0])
        wanted = count + len(downstreams)
        wait_for(lambda: sum(len(seen.requests) for seen in upstream.seen) >= wanted, row.name, DEADLINE_S)
        upstream.release.set()
        return [self._answer(downstream) for downstream in downstreams]

    def _await(self, stat: str) -> None:
        name, value = stat.split("=")
        wait_for(lambda: self.proxy.stats(f"^{re.escape(name)}$").get(name, 0) == int(value), stat, DEADLINE_S)

    def _stats(self, row: Row) -> list[str]:
        found = self.proxy.stats(f"^cluster\\.{row.name}\\.")
        return [f"{name}: {value}" for name, value in sorted(found.items()) if re.search(row.stats, name)]

    def close(self) -> None:
        self.proxy.stop()
        self._clean()

    def _clean(self) -> None:
        for upstream in self.upstreams.values():
            upstream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _shown(head: bytes, fields: tuple[bytes, ...]) -> str:
    lines = head.split(b"\r\n")
    return b" | ".join([lines[0], *(line for line in lines[1:] if line.split(b":")[0].lower() in fields)]).decode()


def _listener(row: Row) -> Yaml:
    if row.tcp:
        config: Yaml = {"@type": TYPE + "filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": row.name}
        config |= {"cluster": row.name} | mapping(row.manager)
    else:
        route = {"match": {"prefix": "/"}, "route": {"cluster": row.name} | mapping(row.route)}
        config = {
            "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": row.name,
            "http_filters": [ROUTER],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        } | mapping(row.manager)
    filters = [{"name": "filter", "typed_config": config}]
    return {"name": row.name, "address": at("127.0.0.1", 0), "filter_chains": [{"filters": filters}]} | mapping(
        row.listener
    )


def at(address: str, port: int) -> Yaml:
    return {"socket_address": {"address": address, "port_value": port}}
