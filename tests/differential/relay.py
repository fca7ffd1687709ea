"""Connections through network filters, step by step: both ends are raw sockets of the test.

Every row has a listener and a cluster of its own, so that stats and logs of rows do not mix.
"""

import contextlib
import re
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.differential.topic import ROUTER, TYPE, Yaml, address, mapping
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess

DEADLINE_S = 5.0
QUIET_S = 0.15
LOG_FORMAT = (
    "type=%ACCESS_LOG_TYPE% code=%RESPONSE_CODE% flags=%RESPONSE_FLAGS% long=%RESPONSE_FLAGS_LONG% "
    "details=%RESPONSE_CODE_DETAILS% end=%CONNECTION_TERMINATION_DETAILS% rx=%BYTES_RECEIVED% tx=%BYTES_SENT% "
    "protocol=%PROTOCOL% route=%ROUTE_NAME% cluster=%UPSTREAM_CLUSTER% host=%UPSTREAM_HOST% "
    "upstream_local=%UPSTREAM_LOCAL_ADDRESS% attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT% "
    "failure=%UPSTREAM_TRANSPORT_FAILURE_REASON% up_tx=%UPSTREAM_WIRE_BYTES_SENT% up_rx=%UPSTREAM_WIRE_BYTES_RECEIVED% "
    "down_tx=%DOWNSTREAM_WIRE_BYTES_SENT% down_rx=%DOWNSTREAM_WIRE_BYTES_RECEIVED% "
    "remote=%DOWNSTREAM_REMOTE_ADDRESS% local=%DOWNSTREAM_LOCAL_ADDRESS%\n"
)
FIELDS = LOG_FORMAT.count("=")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends RST
_VOLATILE = re.compile("date:|x-request-id:|x-envoy-upstream-service-time:|host: localhost:")
_UNSTABLE = re.compile(
    r"_(ms|buffered)$|_cx_length|delayed_close_timeout|membership|max_host_weight|circuit_breakers|update_|version|lb_healthy|default\.total|upstream_flush"
)


@dataclass(frozen=True)
class Row:
    """`steps`: who (`c`, `d` clients, `u`, `v` connections that the upstream accepts), what, and its argument.

    `proxy` is YAML of TcpProxy fields (`cluster` is the row's own), `cluster` of Cluster fields, `hosts` are of
    `live`, `dead` (refuses) and `blackhole` (never answers a SYN). `filters` is YAML of network filters instead of
    tcp_proxy, or, with `before`, before it. `logs` is how many lines the access log gets.
    """

    name: str
    steps: str
    proxy: str = ""
    cluster: str = ""
    hosts: tuple[str, ...] = ("live",)
    filters: str = ""
    before: bool = False
    logs: int = 1
    compare: str = ""  # a pattern for those lines of log and stats that are looked at
    differs: str = ""  # key in docs/envoy-differences.md
    envoy: tuple[str, ...] = ()  # then: lines of the outcome that only Envoy has
    ours: tuple[str, ...] = ()  # and those that only we have
    routes: str = ""  # YAML of a list of routes: an HTTP connection manager in place of tcp_proxy
    manager: str = ""  # YAML of more of its fields
    texts: Mapping[str, bytes] = field(default_factory=dict)  # `send @name` sends one of them


class RelaySide:
    """One proxy with all rows."""

    def __init__(self, rows: list[Row], start: Callable[[str], ProxyProcess]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="relay-"))
        self.upstreams = {row.name: listening() for row in rows}
        self.dead = socket.socket()
        self.dead.bind(("127.0.0.1", 0))  # never listens, so connections to it are refused
        self.dead_port = int(self.dead.getsockname()[1])
        self.blackhole = socket.socket()
        self.blackhole.bind(("127.0.0.1", 0))
        self.blackhole.listen(0)
        self.fillers = fill_backlog(self.blackhole.getsockname())
        try:
            self.proxy = start(self._bootstrap(rows))
        except BaseException:
            self._clean()
            raise
        self.ports = self.proxy.listener_ports()

    def _bootstrap(self, rows: list[Row]) -> str:
        tree = {
            "node": {"id": "differential", "cluster": "differential"},
            "admin": {"address": address(0)},
            "static_resources": {
                "listeners": [self._listener(row) for row in rows],
                "clusters": [self._cluster(row) for row in rows],
            },
        }
        return yaml.dump(tree, sort_keys=False, width=1000)

    def _listener(self, row: Row) -> Yaml:
        if row.routes:
            filters = [{"name": "hcm", "typed_config": self._manager(row)}]
        else:
            filters = self._network_filters(row)
        listener: Yaml = {"name": row.name, "address": address(0), "filter_chains": [{"filters": filters}]}
        return listener

    def _access_log(self, row: Row) -> list[Yaml]:
        log: Yaml = {"@type": TYPE + "access_loggers.file.v3.FileAccessLog", "path": str(self.directory / row.name)}
        log |= {"log_format": {"text_format_source": {"inline_string": LOG_FORMAT}}}
        return [{"name": "file", "typed_config": log}]

    def _manager(self, row: Row) -> Yaml:
        host: Yaml = {"name": row.name, "domains": ["*"], "routes": yaml.safe_load(row.routes)}
        manager: Yaml = {
            "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": row.name,
            "delayed_close_timeout": "0.05s",
            "http_filters": [ROUTER],
            "route_config": {"name": row.name, "virtual_hosts": [host]},
            "access_log": self._access_log(row),
        }
        return manager | mapping(row.manager)

    def _network_filters(self, row: Row) -> list[Yaml]:
        proxy: Yaml = {"@type": TYPE + "filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": row.name}
        fields = mapping(row.proxy)
        if "weighted_clusters" not in fields:
            proxy["cluster"] = row.name
        proxy |= {"access_log": self._access_log(row)} | fields
        filters = yaml.safe_load(row.filters.replace("@TYPE@", TYPE + "filters.network.")) or []
        if row.before or not filters:
            filters = [*filters, {"name": "tcp_proxy", "typed_config": proxy}]
        return filters

    def _cluster(self, row: Row) -> Yaml:
        ports = {
            "live": int(self.upstreams[row.name].getsockname()[1]),
            "dead": self.dead_port,
            "blackhole": int(self.blackhole.getsockname()[1]),
        }
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(ports[host])}} for host in row.hosts]}]
        made: Yaml = {"name": row.name, "type": "STATIC", "connect_timeout": "1s"}
        assignment = {"cluster_name": row.name, "endpoints": endpoints if row.hosts else []}
        return made | {"load_assignment": assignment} | mapping(row.cluster)

    def run(self, row: Row) -> "Play":
        """Play the row to its end."""
        play = Play(self, row)
        try:
            for step in row.steps.split(";"):
                play.step(step.strip())
        finally:
            play.close()
        return play

    def outcome(self, play: "Play") -> list[str]:
        """What happened, what the log says, and the stats that are not 0."""
        row = play.row
        names = play.ports | {self.ports[row.name]: "LISTENER", self.upstreams[row.name].getsockname()[1]: "LIVE"}
        names |= {self.dead_port: "DEAD", int(self.blackhole.getsockname()[1]): "BLACKHOLE"}
        log = [re.sub(r"(\d{4,5})\b", lambda m: names.get(int(m[1]), "PORT"), line) for line in self.log(row)]
        return play.lines + [line for line in log + self.stats(row) if re.search(row.compare, line)]

    def log(self, row: Row) -> list[str]:
        """Every field of every line of the row's access log as a line."""
        path = self.directory / row.name
        text = path.read_text() if path.exists() else ""
        lines = [line.split(" ") for line in text.splitlines()]
        return [f"log {number}: {_sorted(text)}" for number, line in enumerate(lines) for text in line]

    def stats(self, row: Row) -> list[str]:
        """Those of its filter and of its cluster."""
        found = self.proxy.stats(f"^(tcp|http|cluster|connection_limit)\\.{row.name}\\.")
        return [f"{name}: {value}" for name, value in sorted(found.items()) if value and not _UNSTABLE.search(name)]

    def close(self) -> None:
        self.proxy.stop()
        self._clean()

    def _clean(self) -> None:
        for sock in (*self.upstreams.values(), self.dead, self.blackhole, *self.fillers):
            sock.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Play:
    """A row on one side."""

    def __init__(self, side: RelaySide, row: Row) -> None:
        self.side = side
        self.row = row
        self.lines: list[str] = []
        self.ports: dict[int, str] = {}
        self.clash = False  # the kernel gave one port to two connections, to different peers
        self.sockets: dict[str, socket.socket] = {}

    def step(self, text: str) -> None:
        """One step of the script."""
        who, verb, *rest = text.split(" ")
        argument = rest[0] if rest else ""
        match verb:
            case "connect":
                sock = socket.create_connection(("127.0.0.1", self.side.ports[self.row.name]), DEADLINE_S)
                self.ports[int(sock.getsockname()[1])] = "CLIENT"
                self._add(who, sock)
            case "accept":
                upstream = self.side.upstreams[self.row.name]
                sock, peer = upstream.accept()
                self.clash |= int(peer[1]) in self.ports
                self.ports[int(peer[1])] = "PROXY"
                self._add(who, sock)
            case "nobody":
                self.lines.append(f"{who} accepts nobody: {self._accepts_nobody()}")
            case "send":
                data = self.row.texts[argument[1:]] if argument.startswith("@") else argument.encode()
                self.sockets[who].sendall(data)
            case "head":
                self.lines.extend(f"{who} {line}" for line in self._read_head(who))
            case "read":
                self.lines.append(f"{who} read {self._read(who, int(argument))}")
            case "end":
                self.lines.append(f"{who} end {self._read_to_end(who)}")
            case "quiet":
                self.lines.append(f"{who} quiet {self._is_quiet(who)}")
            case "shut":
                self.sockets[who].shutdown(socket.SHUT_WR)
            case "close":
                self.sockets.pop(who).close()
            case "reset":
                sock = self.sockets.pop(who)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()
            case "logged":
                wait_for(lambda: self._logged(int(argument)), text, DEADLINE_S)
            case "stat":
                name, value = argument.split("=")
                wait_for(lambda: self.side.proxy.stats(name).get(name, 0) == int(value), argument, DEADLINE_S)
            case _:
                raise ValueError(text)

    def _logged(self, lines: int) -> bool:
        return len(self.side.log(self.row)) == lines * FIELDS

    def _add(self, who: str, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets[who] = sock

    def _read_head(self, who: str) -> list[str]:
        """Start line and fields of a head, without what no two have alike."""
        data = b""
        try:
            while not data.endswith(b"\r\n\r\n") and (piece := self.sockets[who].recv(1)):
                data += piece
        except (ConnectionError, TimeoutError) as error:
            return [f"{data!r} {error!r}"]
        start, *fields = data.decode("latin-1").split("\r\n")
        return [start, *sorted(line for line in fields if line and not _VOLATILE.match(line))]

    def _read(self, who: str, count: int) -> str:
        data = b""
        try:
            while len(data) < count and (piece := self.sockets[who].recv(count - len(data))):
                data += piece
        except ConnectionError:
            return f"{data!r} reset"
        return repr(data)

    def _read_to_end(self, who: str) -> str:
        data = b""
        try:
            while piece := self.sockets[who].recv(65536):
                data += piece
        except ConnectionError:
            return f"{data!r} reset"
        except TimeoutError:
            return f"{data!r} stalled"
        return f"{data!r} eof"

    def _is_quiet(self, who: str) -> bool:
        sock = self.sockets[who]
        sock.settimeout(QUIET_S)
        with contextlib.suppress(TimeoutError):
            sock.recv(1, socket.MSG_PEEK)
            return False
        sock.settimeout(DEADLINE_S)
        return True

    def _accepts_nobody(self) -> bool:
        upstream = self.side.upstreams[self.row.name]
        upstream.settimeout(QUIET_S)
        try:
            upstream.accept()[0].close()
        except TimeoutError:
            return True
        finally:
            upstream.settimeout(DEADLINE_S)
        return False

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()


@dataclass
class RelayPair:
    """The real Envoy and the subject."""

    reference: RelaySide
    subject: RelaySide
    pool: ThreadPoolExecutor

    def check(self, row: Row) -> None:
        """Both do the same; else exactly what the row says."""
        plays = [self.pool.submit(side.run, row) for side in (self.reference, self.subject)]
        played = [play.result() for play in plays]
        with contextlib.suppress(TimeoutError):
            wait_for(
                lambda: (
                    (bool(row.compare) or self._complete(row)) and self._difference(played) == (row.envoy, row.ours)
                ),
                row.name,
                1.5,
            )
        envoy, ours = self._difference(played)
        text = "\n".join((*(f"- {line}" for line in envoy), *(f"+ {line}" for line in ours)))
        assert (envoy, ours) == (row.envoy, row.ours), text

    def _complete(self, row: Row) -> bool:
        return all(len(side.log(row)) == row.logs * FIELDS for side in (self.reference, self.subject))

    def _difference(self, played: list[Play]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        envoy, ours = self.reference.outcome(played[0]), self.subject.outcome(played[1])
        if any(play.clash for play in played):
            envoy, ours = ([re.sub("CLIENT|PROXY", "PEER", line) for line in lines] for lines in (envoy, ours))
        return tuple(line for line in envoy if line not in ours), tuple(line for line in ours if line not in envoy)


@contextlib.contextmanager
def relay_pair(rows: list[Row], starts: tuple[Callable[[str], ProxyProcess], ...]) -> Iterator[RelayPair]:
    """Both proxies on these rows."""
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        sides: list[Any] = []
        for start in starts:
            side = RelaySide(rows, start)
            stack.callback(side.close)
            sides.append(side)
        yield RelayPair(sides[0], sides[1], pool)


def _sorted(field: str) -> str:
    """Response flags stand in no order that means anything."""
    name, _, value = field.partition("=")
    return f"{name}={','.join(sorted(value.split(',')))}" if name in ("flags", "long") else field


def listening() -> socket.socket:
    """An upstream that the steps of a row accept from."""
    sock = socket.create_server(("127.0.0.1", 0))
    sock.settimeout(DEADLINE_S)
    return sock


def fill_backlog(name: tuple[str, int]) -> list[socket.socket]:
    """Connections until the kernel drops SYNs to a socket that nobody accepts from."""
    made = []
    for _ in range(4):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(name)
        made.append(sock)
    return made
