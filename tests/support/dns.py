"""A scripted DNS server: it answers what it is told, over UDP and TCP, and remembers what it was asked."""

import ipaddress
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from tests.support.polling import wait_for

A: Final = 1
CNAME: Final = 5
AAAA: Final = 28
NOERROR: Final = 0
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
REFUSED: Final = 5
_TRUNCATED: Final = 0x0200
_HEADER: Final = struct.Struct("!6H")


@dataclass(frozen=True)
class Record:
    """An address (its family says whether it is an A or an AAAA record), or another name (a CNAME)."""

    value: str
    ttl_s: int = 60

    @property
    def kind(self) -> int:
        """The record's type."""
        try:
            return A if ipaddress.ip_address(self.value).version == 4 else AAAA
        except ValueError:
            return CNAME

    def encoded(self, owner: bytes) -> bytes:
        """The record as it stands in a message (RFC 1035 section 3.2.1)."""
        kind = self.kind
        data = encode_name(self.value) if kind == CNAME else ipaddress.ip_address(self.value).packed
        return owner + struct.pack("!HHIH", kind, 1, self.ttl_s, len(data)) + data


@dataclass(frozen=True)
class Zone:
    """What becomes of the questions for a name: records with a response code; nothing at all; or raw bytes.

    `codes` has other response codes for types of their own. `raw` makes the whole message of the query's id.
    `truncated` cuts what goes over UDP, so that the client asks again over TCP.
    """

    records: Sequence[Record] = ()
    code: int = NOERROR
    codes: Mapping[int, int] = field(default_factory=dict)
    silent: bool = False
    truncated: bool = False
    raw: Callable[[int], bytes] | None = None


@dataclass(frozen=True)
class Question:
    """What was asked, and over what."""

    name: str
    kind: int
    transport: str = "udp"


@dataclass
class DnsServer:
    """Names that it was not told of do not exist. A context manager; `port` is both its UDP and its TCP port."""

    zones: dict[str, Zone] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._udp, self._tcp = _bind_both()
        self.port: int = self._udp.getsockname()[1]
        self._closed = False
        self._connections: set[socket.socket] = set()
        self.client_ports: set[int] = set()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def tell(self, name: str, *values: str, ttl_s: int = 60, code: int = NOERROR) -> None:
        """From now on the name has these addresses (or is an alias of another name)."""
        self.zones[name] = Zone([Record(value, ttl_s) for value in values], code)

    def count(self, name: str, kind: int = A) -> int:
        """How often a name was asked for."""
        return sum(asked.name == name and asked.kind == kind for asked in self.questions)

    def wait_asked(self, name: str, kind: int = A, more: int = 1) -> None:
        """Wait until the name was asked for so many times more."""
        before = self.count(name, kind)
        wait_for(lambda: self.count(name, kind) >= before + more, f"a question for {name}", 20.0)

    def close(self) -> None:
        """End everything and wait for the threads."""
        self._closed = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))
        self._tcp.shutdown(socket.SHUT_RDWR)
        for connection in list(self._connections):
            _shut(connection)
        for thread in self._threads:
            thread.join(5.0)
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self) -> None:
        while not self._closed:
            query, peer = self._udp.recvfrom(4096)
            if len(query) > _HEADER.size:
                self.client_ports.add(peer[1])
                answer = self._answer(query, "udp")
                if answer is not None:
                    self._udp.sendto(answer, peer)

    def _serve_tcp(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            self._connections.add(connection)
            thread = threading.Thread(target=self._serve_connection, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve_connection(self, connection: socket.socket) -> None:
        with connection:
            while len(size := _receive(connection, 2)) == 2:
                query = _receive(connection, int.from_bytes(size, "big"))
                answer = self._answer(query, "tcp") if len(query) > _HEADER.size else None
                if answer is not None:
                    connection.sendall(len(answer).to_bytes(2, "big") + answer)
        self._connections.discard(connection)

    def _answer(self, query: bytes, transport: str) -> bytes | None:
        identifier = int.from_bytes(query[:2], "big")
        name, end = decode_name(query, _HEADER.size)
        kind = int.from_bytes(query[end : end + 2], "big")
        self.questions.append(Question(name, kind, transport))
        zone = self.zones.get(name, Zone(code=NXDOMAIN))
        if zone.silent:
            return None
        if zone.raw is not None:
            return zone.raw(identifier)
        question = query[_HEADER.size : end + 4]
        if zone.truncated and transport == "udp":
            return _HEADER.pack(identifier, 0x8180 | _TRUNCATED, 1, 0, 0, 0) + question
        records = list(self._records(name, kind))
        head = _HEADER.pack(identifier, 0x8180 | zone.codes.get(kind, zone.code), 1, len(records), 0, 0)
        return head + question + b"".join(record.encoded(encode_name(owner)) for owner, record in records)

    def _records(self, name: str, kind: int) -> list[tuple[str, Record]]:
        """Those of the type, by way of aliases, each with its owner."""
        found: list[tuple[str, Record]] = []
        for record in self.zones.get(name, Zone()).records:
            if record.kind == kind:
                found.append((name, record))
            elif record.kind == CNAME:
                found += [(name, record), *self._records(record.value, kind)]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def encode_name(name: str) -> bytes:
    """A name as labels."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def decode_name(message: bytes, at: int) -> tuple[str, int]:
    """The uncompressed name at an offset, in lower case, and where it ends."""
    labels: list[str] = []
    while size := message[at]:
        labels.append(message[at + 1 : at + 1 + size].decode("latin-1").lower())
        at += 1 + size
    return ".".join(labels), at + 1


def _bind_both() -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket on one port."""
    for _ in range(50):
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
            continue
        return udp, tcp
    raise OSError("no port is free for both UDP and TCP")


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    try:
        while len(data) < size and (piece := connection.recv(size - len(data))):
            data += piece
    except OSError:
        return b""
    return data


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
