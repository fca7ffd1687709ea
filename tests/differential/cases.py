"""What a case is: a request, byte for byte, what the upstream answers, and what may differ between the proxies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.support.upstream import OK, Answer


@dataclass(frozen=True)
class Receive:
    """Read `count` final responses (interim ones are recorded on the way)."""

    count: int = 1


@dataclass(frozen=True)
class ReceiveInterim:
    """Read one response, whatever its status."""


@dataclass(frozen=True)
class AwaitUpstream:
    """Wait until the upstream saw `count` request heads."""

    count: int = 1


@dataclass(frozen=True)
class AwaitWhole:
    """Wait until the upstream read `count` requests to their end."""

    count: int = 1


@dataclass(frozen=True)
class AwaitEnded:
    """Wait until the proxy has closed the connections of `count` requests, whose answers say `then="close"`."""

    count: int = 1


@dataclass(frozen=True)
class Fire:
    """Let the upstream's answers that wait for `event` go out."""

    event: str


@dataclass(frozen=True)
class HalfClose:
    """FIN from downstream, which goes on reading."""


@dataclass(frozen=True)
class Close:
    """The downstream goes away."""


@dataclass(frozen=True)
class Reset:
    """The downstream goes away with RST."""


@dataclass(frozen=True)
class Connect:
    """Leave the connection and open a fresh one."""


Step = (
    bytes
    | Receive
    | ReceiveInterim
    | AwaitUpstream
    | AwaitWhole
    | AwaitEnded
    | Fire
    | HalfClose
    | Close
    | Reset
    | Connect
)


@dataclass(frozen=True)
class Expect:
    """One proxy's recorded answer, where the two differ.

    Statuses in order; how the connection ends ("kept", "closed", "left"); the request lines that reached the upstream
    (None when that is a matter of timing); `contains` is text that the outcome holds.
    """

    statuses: tuple[int, ...] = ()
    connection: str = "kept"
    upstream: tuple[str, ...] | None = ()
    contains: tuple[str, ...] = ()


@dataclass(frozen=True)
class Differs:
    """A deliberate difference; `key` is a row of docs/envoy-differences.md."""

    key: str
    ours: Expect
    envoy: Expect


@dataclass(frozen=True)
class Case:
    """One exchange that both proxies must answer alike.

    `request` is sent as it stands, `$HOST` replaced by `<name>.test`; a tuple is a script of steps. `route` (YAML: one
    route or a list) and `vhost` (YAML: more fields of the virtual host) make a virtual host of the case's own.
    `methods` are the requests' methods where responses are not to the first request's. `probe=False` says that another
    request cannot follow on the connection, so that "kept" means that it is still open a while later.
    `compare_upstream` is "all", "heads" or "nothing", for what depends on how far a transfer got; `by_name` sorts
    its requests by server, where the order of the servers is a matter of timing. `ignore` are
    beginnings of outcome lines that timing decides. `refused` is part of the error with which meshproxy refuses the
    case's configuration for now: the case runs only against Envoy itself, and test_refused.py holds us to the error.
    """

    name: str
    request: bytes | tuple[Step, ...]
    upstream: Sequence[Answer] = (OK,)
    by_server: Mapping[str, Sequence[Answer]] = field(default_factory=dict)
    listener: str = "main"
    route: str = ""
    vhost: str = ""
    responses: int = 1
    methods: tuple[bytes, ...] = ()
    probe: bool = True
    log: bool = True
    log_bytes: bool = True
    compare_upstream: str = "all"
    connections: bool = False
    by_name: bool = False
    ignore: tuple[str, ...] = ()
    differs: Differs | None = None
    refused: str = ""

    @property
    def domain(self) -> str:
        """The virtual host that belongs to the case."""
        return self.name.replace("_", "-") + ".test"

    @property
    def steps(self) -> tuple[Step, ...]:
        """The script; plain bytes are sent and answered."""
        return (self.request, Receive(self.responses)) if isinstance(self.request, bytes) else self.request


def not_yet(error: str, *cases: Case) -> list[Case]:
    """Cases whose configuration meshproxy refuses for now with that error."""
    return [replace(case, refused=error) for case in cases]


def request(
    method: str = "GET",
    target: str = "/",
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    *,
    host: str | None = "$HOST",
    version: str = "HTTP/1.1",
) -> bytes:
    """A well-formed request; `host=None` leaves the header out."""
    lines = [f"{method} {target} {version}"]
    lines += [] if host is None else [f"host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [] if body is None else [f"content-length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b"")


def get(target: str = "/", *headers: tuple[str, str], host: str | None = "$HOST") -> bytes:
    """GET with headers."""
    return request("GET", target, headers, host=host)


def post(target: str = "/", body: bytes = b"body", *headers: tuple[str, str], host: str | None = "$HOST") -> bytes:
    """POST with Content-Length."""
    return request("POST", target, headers, body, host=host)


def chunked(*pieces: bytes, trailers: Sequence[tuple[str, str]] = ()) -> bytes:
    """A chunked body with its end and trailers."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return body + b"0\r\n" + b"".join(f"{name}: {value}\r\n".encode() for name, value in trailers) + b"\r\n"
