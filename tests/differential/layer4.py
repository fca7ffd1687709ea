"""Listeners whose filter chains say their own names: which chain does a connection get, and what is known of it?"""

import json
import select
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.differential.topic import TYPE, Yaml, mapping
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess

DEADLINE_S = 4.0
STALLED_S = 0.4
FACTS = {
    "chain": "%FILTER_CHAIN_NAME%",
    "sni": "%REQUESTED_SERVER_NAME%",
    "remote": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "direct_remote": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%",
    "local": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "direct_local": "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%",
    "ja3": "%TLS_JA3_FINGERPRINT%",
    "ja4": "%TLS_JA4_FINGERPRINT%",
    "failure": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
    "termination": "%CONNECTION_TERMINATION_DETAILS%",
    "received": "%BYTES_RECEIVED%",
    "flags": "%RESPONSE_FLAGS%",
    "inspector": "%DYNAMIC_METADATA(envoy.filters.listener.tls_inspector)%",
    "tlvs": "%DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol)%",
    "other_tlvs": "%DYNAMIC_METADATA(other)%",
    "tlv_state": "%FILTER_STATE(envoy.network.proxy_protocol.tlv:PLAIN)%",
}
"""What the access log of a listener tells of a connection."""


@dataclass(frozen=True)
class Layer4Listener:
    """`chains` maps a filter chain's name to YAML of its FilterChainMatch; `default` names the default filter chain.

    `filters` is YAML of the list of listener filters, `fields` of more of the Listener's fields. It listens on every
    IPv4 address, on `address`, or with `unix` on a Unix socket.
    """

    chains: dict[str, str] = field(default_factory=dict)
    default: str = ""
    filters: str = ""
    fields: str = ""
    address: str = "0.0.0.0"
    unix: bool = False

    def message(self, name: str, directory: Path) -> Yaml:
        """The Listener."""
        log_path = str(directory / "access.log")
        pipe = {"pipe": {"path": str(directory / f"{name}.sock")}}
        listener: Yaml = {
            "name": name,
            "address": pipe if self.unix else {"socket_address": {"address": self.address, "port_value": 0}},
            "listener_filters": yaml.safe_load(self.filters) or [],
            "access_log": [connection_log(name, log_path)],
            "filter_chains": [chain(each, mapping(match)) for each, match in self.chains.items()],
        }
        if self.default:
            listener["default_filter_chain"] = chain(self.default, {})
        return listener | mapping(self.fields)


def chain(name: str, match: Yaml) -> Yaml:
    """A filter chain that says its name to everybody and hangs up."""
    config = {"@type": TYPE + "filters.network.direct_response.v3.Config", "response": {"inline_string": name}}
    made: Yaml = {"name": name, "filters": [{"name": "direct_response", "typed_config": config}]}
    return made | ({"filter_chain_match": match} if match else {})


def connection_log(listener: str, log_path: str) -> Yaml:
    """A line of JSON for each connection."""
    fields = {"listener": listener, "peer": "%DOWNSTREAM_DIRECT_REMOTE_PORT%"} | FACTS
    config = {"@type": TYPE + "access_loggers.file.v3.FileAccessLog", "path": log_path}
    return {"name": "file", "typed_config": config | {"log_format": {"json_format": fields}}}


def listener_filter(kind: str, config: str = "", extra: str = "") -> str:
    """YAML of one entry of `listener_filters`."""
    message = {
        "tls_inspector": "TlsInspector",
        "http_inspector": "HttpInspector",
        "original_dst": "OriginalDst",
        "proxy_protocol": "ProxyProtocol",
    }[kind]
    typed = {"@type": f"{TYPE}filters.listener.{kind}.v3.{message}"} | mapping(config)
    return json.dumps({"name": kind, "typed_config": typed} | mapping(extra))


def filters(*entries: str) -> str:
    """YAML of `listener_filters`."""
    return f"[{', '.join(entries)}]"


@dataclass(frozen=True)
class Probe:
    """A connection: what it sends, from where and to where, and whether it ends after that."""

    data: bytes | Sequence[bytes] = b""
    source: str = "127.0.0.1"
    source_port: int = 0
    destination: str = "127.0.0.1"
    end: bool = False

    @property
    def pieces(self) -> Sequence[bytes]:
        """What is sent, each in a segment of its own."""
        return [self.data] if isinstance(self.data, bytes) else self.data


class Layer4Side:
    """One proxy with these listeners."""

    def __init__(self, listeners: dict[str, Layer4Listener], start: Callable[[str], ProxyProcess]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="layer4-"))
        self.log_path = self.directory / "access.log"
        self.log_path.touch()
        try:
            self.proxy = start(bootstrap(listeners, self.directory))
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise
        self.ports = self.proxy.listener_ports()

    def ask(self, listener: str, probe: Probe) -> str:
        """The name of the chain, "closed", or "stalled" when nothing comes for a while."""
        return self.connect(listener, probe)[0]

    def facts(self, listener: str, probe: Probe) -> dict[str, Any]:
        """What the access log tells of the connection; its own ports as 1 (downstream) and 2 (listener)."""
        logged = self.log_path.stat().st_size
        answer, port = self.connect(listener, probe)
        line = wait_for(lambda: self._line(listener, port, logged), f"the log line of port {port}", DEADLINE_S)
        names = {f":{port}": ":1", f":{self.ports.get(listener)}": ":2"}
        shown = {name: _plain(value, names) for name, value in line.items() if value is not None and name in FACTS}
        return shown | {"answer": answer}

    def connect(self, listener: str, probe: Probe) -> tuple[str, int]:
        """The answer as in `ask`, and the connection's port; 0 on a Unix socket."""
        if listener not in self.ports:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.connect(str(self.directory / f"{listener}.sock"))
                return exchange(sock, probe), 0
        family = socket.AF_INET6 if ":" in probe.destination else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(DEADLINE_S)
            sock.bind((probe.source, probe.source_port))
            sock.connect((probe.destination, self.ports[listener]))
            return exchange(sock, probe), int(sock.getsockname()[1])

    def _line(self, listener: str, port: int, after: int) -> dict[str, Any]:
        for line in self.log_path.read_bytes()[after:].split(b"\n")[:-1]:  # the last is not written to its end
            entry: dict[str, Any] = json.loads(line)
            if entry["listener"] == listener and port in (0, int(entry["peer"] or 0)):
                return entry
        return {}

    def close(self) -> None:
        self.proxy.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def bootstrap(listeners: dict[str, Layer4Listener], directory: Path) -> str:
    """The configuration of one proxy."""
    made = [listener.message(name, directory) for name, listener in listeners.items()]
    tree = {
        "node": {"id": "differential", "cluster": "differential"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {"listeners": made},
    }
    return yaml.dump(tree, sort_keys=False, width=1000)


def exchange(sock: socket.socket, probe: Probe) -> str:
    """Send the probe's data and read the answer."""
    send(sock, probe.pieces)
    if probe.end:
        sock.shutdown(socket.SHUT_WR)
    return read_answer(sock)


def send(sock: socket.socket, pieces: Sequence[bytes]) -> None:
    """Each piece in a segment of its own. A proxy that has answered already needs no more of them."""
    for index, piece in enumerate(pieces):
        if index and select.select([sock], [], [], 0.02)[0]:
            return
        try:
            sock.sendall(piece)
        except ConnectionError:
            return


def read_answer(sock: socket.socket) -> str:
    """All that comes until the end."""
    text = b""
    sock.settimeout(STALLED_S)
    try:
        while data := sock.recv(4096):
            text += data
    except TimeoutError:
        return text.decode() or "stalled"
    except ConnectionError:
        return text.decode() or "closed"
    return text.decode() or "closed"


def _plain(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        for text, name in names.items():
            value = value.replace(text, name) if value.endswith(text) else value
    return value
