"""HTTP/2 rows: the same frames to both proxies, and everything that comes back, upstream too, as lines of text."""

import difflib
import importlib
import itertools
import re
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.differential.cases import Case
from tests.differential.outcome import DATE, UUID, show_body
from tests.differential.pair import PROBE, SUBJECT_IS_ENVOY
from tests.differential.topic import SERVERS, Topic
from tests.support.downstream import RawDownstream, exchange
from tests.support.http2_downstream import OPENING, Http2Downstream
from tests.support.http2_upstream import OK as OK2
from tests.support.http2_upstream import OPENING as UPSTREAM_OPENING
from tests.support.http2_upstream import Http2Answer, Http2Script, Http2Upstream
from tests.support.http2_wire import Fields, Http2Wire, StreamSeen, code_name, headers, settings
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.upstream import OK, Answer, Script, ScriptedUpstream
from tests.support.wire import ConnectionEnded
from tests.tls.certificates import world

DEADLINE_S = 4.0
SILENT_KEY = "goaway-before-close"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
OPENINGS = {
    "h": UPSTREAM_OPENING,
    "h_connect": UPSTREAM_OPENING + settings((8, 1)),
    "h_one": settings((3, 1)) + UPSTREAM_OPENING,
    "h_none": settings((3, 0)) + UPSTREAM_OPENING,
    "h_mute": b"",
    "h_narrow": settings((4, 10)),
    "h_deaf": UPSTREAM_OPENING,
}
COMPARED_STATS = (
    r"(^|\.)http2\.(?!nghttp2|oghttp2|deferred|outbound|pending|streams_active)"
    r"|http\.\w+\.(downstream_(rq_(rx_reset|tx_reset|too_many|response_before|max_dur|idle_timeout|[1-5]xx|ws_on)"
    r"|cx_(protocol_error|max_requests_reached|max_duration|idle_timeout|drain_close|upgrades_total|http2_total)))"
    r"|cluster\.\w+\.upstream_(rq_(rx_reset|tx_reset|retry$|cancelled|5\d\d|timeout|pending_total|pending_fail|1\d\d)"
    r"|cx_(protocol_error|close_notify|http2_total|http1_total|total|destroy_local$|destroy_remote$|max_|idle_timeout))"
)
SKIPPED_STATS = re.compile(
    r"cluster\.\w+\.(internal|external)|cluster\.[abc]\.upstream_(cx|rq_pending|rq_cancelled)"
    r"|\.(admin|probe)\.|listener\."
)


@dataclass(frozen=True)
class Over:
    """Read until these streams are over."""

    streams: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Parts:
    """Read until so many header sections came on a stream."""

    count: int = 1
    stream: int = 1


@dataclass(frozen=True)
class Bytes:
    """Read until so many bytes of data came on a stream."""

    count: int
    stream: int = 1


@dataclass(frozen=True)
class Goaway:
    """Read until so many GOAWAY frames came."""

    count: int = 1


@dataclass(frozen=True)
class Sync:
    """A PING and its answer: what was sent before is dealt with."""


@dataclass(frozen=True)
class Ended:
    """Read until the proxy ends the connection."""


@dataclass(frozen=True)
class Reached:
    """Wait until the upstream saw `count` requests (of HTTP/2, or with `plain` of HTTP/1)."""

    count: int = 1
    plain: bool = False


@dataclass(frozen=True)
class WholeUpstream:
    """Wait until `count` requests at the HTTP/2 upstream are whole or reset."""

    count: int = 1


@dataclass(frozen=True)
class Gone:
    """Wait until `count` connections to the HTTP/2 upstream have ended."""

    count: int = 1


@dataclass(frozen=True)
class Fire:
    """Let the upstream's answers that wait for `event` go out."""

    event: str


@dataclass(frozen=True)
class Held:
    """Write down how much data has come on each stream when a PING is answered."""


@dataclass(frozen=True)
class HeldUpstream:
    """Write down how much data of each request has come upstream when its PING is answered."""


@dataclass(frozen=True)
class Leave:
    """The downstream goes away."""


@dataclass(frozen=True)
class Head:
    """HEADERS of a request; `over` replaces pseudo-headers, None leaves one out."""

    fields: Fields = ()
    stream: int = 1
    end: bool = True
    path: str = "/"
    method: str = "GET"
    over: tuple[tuple[str, str | None], ...] = ()

    def encoded(self, domain: str) -> bytes:
        """The frame, for the row's own virtual host."""
        pseudo = {":method": self.method, ":scheme": "http", ":path": self.path, ":authority": domain}
        changed: dict[str, str | None] = {**pseudo, **dict(self.over)}
        return headers(
            self.stream,
            [*((name, value) for name, value in changed.items() if value is not None), *self.fields],
            end=self.end,
        )


@dataclass(frozen=True)
class Request1:
    """An HTTP/1 request on a connection of its own; the answer is received and recorded.

    `then` is sent after a 101 or a CONNECT's 200, and `expect` bytes are awaited."""

    raw: bytes
    then: bytes = b""
    expect: bytes = b""


Step = (
    bytes
    | Over
    | Parts
    | Bytes
    | Goaway
    | Sync
    | Ended
    | Reached
    | WholeUpstream
    | Fire
    | Gone
    | Held
    | HeldUpstream
    | Leave
    | Head
    | Request1
)


@dataclass(frozen=True)
class Row:
    """One exchange that both proxies must answer alike.

    `steps` run in turn; `$HOST` in HTTP/1 requests, and the authority of a `Head`, is the row's own virtual host.
    `route`, `vhost` and `listener` are as a `Case`'s. `plain` are answers of HTTP/1 upstreams, `answers` of HTTP/2
    ones. `opening` is what the downstream sends first; None where the steps begin with HTTP/1. `silent` is the error
    code of the GOAWAY that we send where Envoy closes without one (`SILENT_KEY`). `differs` is a key of
    docs/envoy-differences.md, and then `envoy` and `ours` are lines among those that only one of the two has. `ignore`
    are beginnings of lines that timing decides.
    """

    name: str
    steps: tuple[Step, ...]
    route: str = ""
    vhost: str = ""
    listener: str = "main"
    plain: Sequence[Answer] = (OK,)
    answers: Sequence[Http2Answer] = (OK2,)
    opening: bytes | None = OPENING
    silent: str = ""
    settings: bool = False  # what the proxy opens the connection with is compared,
    upstream_settings: bool = False  # and that to the upstream
    alpn: tuple[str, ...] | None = None  # the downstream speaks TLS, and offers these protocols
    acknowledges: bool = True  # False: the downstream answers neither SETTINGS nor PING
    differs: str = ""
    envoy: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    stats: bool = True
    log: bool = True

    @property
    def domain(self) -> str:
        """The virtual host that belongs to the row."""
        return self.name.replace("_", "-") + ".test"


def one(name: str, *steps: Step, **more: object) -> Row:
    """A row whose last step is that stream 1 is over, and whose connection then still answers."""
    return Row(name, (*steps, Over()), **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Http2Topic:
    """One configuration and the rows that run over it; clusters as a `Topic`'s. `h` and its like are HTTP/2 servers."""

    rows: Sequence[Row] = ()
    listeners: dict[str, str] = field(default_factory=lambda: {"main": ""})
    clusters: dict[str, str] = field(default_factory=dict)
    bootstrap: str = ""

    def bootstrap_yaml(self, ports: dict[str, int], log_path: str) -> str:
        """The bootstrap for one proxy."""
        cases = [Case(row.name, b"", listener=row.listener, route=row.route, vhost=row.vhost) for row in self.rows]
        clusters = {name: http2_cluster(name) for name in OPENINGS} | self.clusters
        topic = Topic(cases, {"probe": ""} | self.listeners, clusters, bootstrap=self.bootstrap)
        return topic.bootstrap_yaml(ports, log_path)


def all_http2_rows() -> list[Row]:
    """Of every topic of HTTP/2 in this folder."""
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    names = [path.stem for path in files if "\nHTTP2 = " in path.read_text()]
    return [row for name in names for row in importlib.import_module(f"tests.differential.{name}").HTTP2.rows]


def http2_cluster(host: str, options: str = "", more: str = "") -> str:
    """YAML of a cluster that speaks HTTP/2 to a host: Http2ProtocolOptions, and other fields of HttpProtocolOptions."""
    explicit = f"explicit_http_config: {{ http2_protocol_options: {{ {options} }} }}"
    kind = f"'@type': type.googleapis.com/{OPTIONS}"
    fields = ", ".join(part for part in (kind, explicit, more) if part)
    return f"hosts: [{host}]\ntyped_extension_protocol_options: {{ {OPTIONS}: {{ {fields} }} }}"


class Http2Side:
    """One proxy with upstreams of both versions, and an access log, of its own."""

    def __init__(self, name: str, topic: Http2Topic, start: Callable[[str], ProxyProcess]) -> None:
        self.name = name
        self.plain = ScriptedUpstream(SERVERS)
        self.upstream = Http2Upstream(OPENINGS, deaf=("h_deaf",))
        self.dead = socket.socket()
        self.dead.bind(("127.0.0.1", 0))
        ports = {**self.plain.ports, **self.upstream.ports, "dead": self.dead.getsockname()[1]}
        self.directory = Path(tempfile.mkdtemp(prefix="differential-"))
        self.log_path = self.directory / "access.log"
        self._log_read = 0
        self._tokens = itertools.count(1)
        try:
            self.proxy = start(topic.bootstrap_yaml(ports, str(self.log_path)))
        except BaseException:
            self._clean()
            raise
        self.ports = self.proxy.listener_ports()
        self.stats = self._stats()

    def run(self, row: Row) -> list[str]:
        """What everybody saw of one row, in lines."""
        plain, script = self.plain.play(row.plain), self.upstream.play(row.answers)
        run = RowRun(self, row)
        try:
            run.play()
        except ConnectionEnded:
            run.end = "closed"
        except TimeoutError:
            run.end = "stalled"
        lines = run.lines()
        run.close()
        self.plain.settle()
        logged = self.log_lines()
        self.upstream.settle()
        lines += [*_upstream_lines(script), *_plain_lines(plain)]
        lines += _openings(script) if row.upstream_settings else []
        lines += [f"log: {line}" for line in logged] if row.log else []
        return lines + (self.stat_lines() if row.stats else [])

    def stat_lines(self) -> list[str]:
        """Stats that moved since the last call."""
        before, self.stats = self.stats, self._stats()
        moved = {name: value - before.get(name, 0) for name, value in self.stats.items()}
        return [f"stat {name}: {by:+}" for name, by in sorted(moved.items()) if by]

    def _stats(self) -> dict[str, int]:
        found = self.proxy.stats()
        compared = re.compile(COMPARED_STATS)
        return {
            name: value for name, value in found.items() if compared.search(name) and not SKIPPED_STATS.search(name)
        }

    def log_lines(self) -> list[str]:
        """Lines written since the last call, up to a request that marks the end of the row."""
        token = f"/__probe/{next(self._tokens)}"
        exchange(self.ports["probe"], PROBE.replace(b"/__probe", token.encode()), DEADLINE_S)
        text = wait_for(lambda: self._log_until(token), f"the access log line of {token}", DEADLINE_S)
        self._log_read += len(text.encode("latin-1"))
        return [_log_line(line) for line in text.splitlines() if "/__probe" not in line]

    def _log_until(self, token: str) -> str:
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as file:
            file.seek(self._log_read)
            text = file.read().decode("latin-1")
        at = text.find(f" path={token} ")
        end = text.find("\n", at)
        return text[: end + 1] if at >= 0 and end >= 0 else ""

    def close(self) -> None:
        """Stop the proxy and its upstreams."""
        output = self.proxy.output()
        self.proxy.stop()
        self._clean()
        assert "Traceback" not in output, output
        assert not self.plain.errors, self.plain.errors
        assert not self.upstream.errors, self.upstream.errors

    def _clean(self) -> None:
        self.plain.close()
        self.upstream.close()
        self.dead.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class RowRun:
    """A row on one side, step by step."""

    def __init__(self, side: Http2Side, row: Row) -> None:
        self.side = side
        self.row = row
        self.end = ""
        self.texts: list[str] = []
        self.downstream: Http2Downstream | None = None
        if row.opening is not None:
            self.connect(row.opening)

    def connect(self, opening: bytes) -> None:
        """A fresh downstream connection."""
        port, tls = self.side.ports[self.row.listener], None
        if self.row.alpn is not None:
            tls = ssl.create_default_context(cadata=world().ca.pem.decode())
            tls.check_hostname = False
            if self.row.alpn:
                tls.set_alpn_protocols(list(self.row.alpn))
        self.downstream = Http2Downstream(port, opening=opening, timeout_s=DEADLINE_S, tls=tls)
        if tls is not None:
            self.texts.append(f"alpn: {self.downstream.selected_alpn}")
        self.downstream.answering = self.row.acknowledges

    def play(self) -> None:
        """Every step in turn, and whether the connection still answers then."""
        for step in self.row.steps:
            self.step(step)
        if self.downstream is not None and not self.end:
            self.end = "kept" if self.downstream.barrier() else "closed"

    def step(self, step: Step) -> None:
        """One step of the script."""
        match step:
            case Reached(count, plain):
                (self.side.plain if plain else self.side.upstream).wait_seen(count)
            case Gone(count):
                self.side.upstream.wait_gone(count)
            case WholeUpstream(count):
                self.side.upstream.wait_over(count)
            case Fire(event):
                self.side.plain.fire(event)
                self.side.upstream.fire(event)
            case HeldUpstream():
                self.side.upstream.settle()
                seen = [sum(len(part.body) for part in each.stream.parts) for each in self.side.upstream.script.seen]
                self.texts.append(f"upstream has {seen} bytes")
            case Request1():
                self.exchange(step)
            case _:
                assert self.downstream is not None
                self.http2_step(self.downstream, step)

    def http2_step(self, downstream: Http2Downstream, step: Step) -> None:
        """A step on the HTTP/2 connection."""
        match step:
            case bytes():
                downstream.send(step)
            case Head():
                downstream.send(step.encoded(self.row.domain))
            case Over(streams):
                downstream.wait_over(*streams)
            case Parts(count, stream):
                downstream.wait_parts(stream, count)
            case Bytes(count, stream):
                downstream.wait_data(stream, count)
            case Goaway(count):
                downstream.read_until(lambda: len(downstream.goaways) >= count)
            case Sync():
                assert downstream.barrier(), "the connection ended before the row's own frames"
            case Held():
                assert downstream.barrier()
                held = {
                    number: sum(len(part.body) for part in each.parts) for number, each in downstream.streams.items()
                }
                self.texts.append(f"downstream has {held} bytes")
            case Ended():
                downstream.wait_end()
                self.end = "closed"
            case Leave():
                downstream.close()
                self.end = "left"

    def exchange(self, step: Request1) -> None:
        """An HTTP/1 exchange on a connection of its own."""
        raw = step.raw.replace(b"$HOST", self.row.domain.encode())
        method = raw.split(b" ", 1)[0]
        with RawDownstream(self.side.ports[self.row.listener], timeout_s=DEADLINE_S) as downstream:
            downstream.send(raw)
            message = downstream.receive(method)
            self.texts.append(f"http1: {message.start_line.decode('latin-1')}")
            self.texts += [f"  {_field(*pair)}" for pair in message.headers]
            self.texts += [f"  body: {show_body(message.body)}"] if message.body else []
            self.texts += [f"  trailer {_field(*pair)}" for pair in message.trailers]
            self.texts += [f"  end: {message.end}"] if message.end != "complete" else []
            if step.then:
                downstream.send(step.then)
            if step.expect:
                got = downstream.reader.read_exactly(len(step.expect))
                self.texts.append(f"  then: {show_body(got)}")

    def lines(self) -> list[str]:
        """The downstream's view."""
        lines = list(self.texts)
        downstream = self.downstream
        if downstream is None:
            return lines
        if self.row.settings:
            lines += _opening_lines(downstream)
        for number, stream in sorted(downstream.streams.items()):
            lines += [f"stream {number}:", *_stream_lines(stream)]
        lines += [f"goaway: {code_name(code)} last={last}" for code, last, _ in downstream.goaways]
        return [*lines, f"connection: {self.end}"]

    def close(self) -> None:
        """Leave, if the row has not."""
        if self.downstream is not None and self.end != "left":
            self.downstream.close()


@dataclass
class Http2Pair:
    """The reference (the real Envoy) and the subject (meshproxy, or Envoy again to try the suite itself)."""

    reference: Http2Side
    subject: Http2Side
    pool: ThreadPoolExecutor

    def check(self, row: Row) -> None:
        """Run a row on both and assert that they agree, or differ exactly as it is declared."""
        expected, actual = self.run(row)
        if row.silent and not SUBJECT_IS_ENVOY:
            actual = _without_goaway(actual, row.silent)
        compared = list(difflib.unified_diff(expected, actual, n=9999, lineterm=""))[3:]
        text = "\n".join([f"{row.name}: Envoy (-) and the subject (+) differ", *compared])
        if not row.differs or SUBJECT_IS_ENVOY:
            assert expected == actual, text
            return
        for mark, lines in (("-", row.envoy), ("+", row.ours)):
            found = {line[1:].strip() for line in compared if line.startswith(mark)}
            assert all(line in found for line in lines), text

    def run(self, row: Row) -> tuple[list[str], list[str]]:
        """Both outcomes, Envoy's first."""
        runs = [self.pool.submit(side.run, row) for side in (self.reference, self.subject)]
        first, second = runs[0].result(), runs[1].result()
        return _without(first, row.ignore), _without(second, row.ignore)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.pool.shutdown()
        self.reference.close()
        self.subject.close()


def start_http2_pair(topic: Http2Topic) -> Http2Pair:
    """Start both proxies on a topic's configuration."""
    pool = ThreadPoolExecutor(2)
    subject = start_envoy if SUBJECT_IS_ENVOY else start_meshproxy
    reference = pool.submit(Http2Side, "envoy", topic, start_envoy)
    other = pool.submit(Http2Side, "subject", topic, subject)
    failures = [failure for future in (reference, other) if (failure := future.exception()) is not None]
    if failures:
        for future in (reference, other):
            if future.exception() is None:
                future.result().close()
        pool.shutdown()
        raise RuntimeError("\n".join(str(failure) for failure in failures))
    return Http2Pair(reference.result(), other.result(), pool)


def _without(lines: list[str], beginnings: tuple[str, ...]) -> list[str]:
    return [line for line in lines if not line.strip().startswith(beginnings)] if beginnings else lines


def _without_goaway(lines: list[str], code: str) -> list[str]:
    """Without the one GOAWAY that must be there."""
    found = [line for line in lines if line.startswith(f"goaway: {code} ")]
    assert len(found) == 1, f"no GOAWAY {code}:\n" + "\n".join(lines)
    return [line for line in lines if line not in found]


def _stream_lines(stream: StreamSeen) -> list[str]:
    lines: list[str] = []
    for part in stream.parts:
        pseudo = sorted(pair for pair in part.fields if pair[0].startswith(":"))
        regular = [pair for pair in part.fields if not pair[0].startswith(":")]
        lines += [f"  {_field(name.encode('latin-1'), value.encode('latin-1'))}" for name, value in [*pseudo, *regular]]
        lines += [f"  body: {show_body(part.body)}"] if part.body else []
        lines.append("  --")
    lines += ["  END_STREAM"] if stream.ended else []
    return lines + ([f"  RST_STREAM {code_name(stream.reset)}"] if stream.reset is not None else [])


def _upstream_lines(script: Http2Script) -> list[str]:
    lines: list[str] = []
    connections: dict[tuple[str, int], int] = {}
    for seen in script.seen:
        connection = connections.setdefault((seen.server, seen.connection), len(connections) + 1)
        lines += [f"upstream {seen.server}, connection {connection}:", *_stream_lines(seen.stream)]
    wires = {id(seen.wire): seen.wire for seen in script.seen}
    for number, wire in enumerate(wires.values(), 1):
        lines += [f"upstream goaway {number}: {code_name(code)}" for code, _, _ in wire.goaways]
    return lines


def _openings(script: Http2Script) -> list[str]:
    return [line for seen in script.seen for line in _opening_lines(seen.wire)]


def _opening_lines(wire: Http2Wire) -> list[str]:
    window = sum(by for stream, by in wire.window_updates if not stream)
    return [*(f"settings: {pairs}" for pairs in wire.settings), f"window: +{window}"]


def _plain_lines(script: Script) -> list[str]:
    lines: list[str] = []
    for seen in script.seen:
        lines.append(f"plain upstream {seen.server}: {seen.message.start_line.decode('latin-1')}")
        lines += [f"  {_field(*pair)}" for pair in seen.message.headers]
        lines += [f"  body: {show_body(seen.message.body)}"] if seen.message.body else []
        lines += [f"  trailer {_field(*pair)}" for pair in seen.message.trailers]
        lines += [f"  end: {seen.message.end}"] if seen.message.end != "complete" else []
    return lines


def _field(name: bytes, value: bytes) -> str:
    value = DATE.sub(b"<date>", UUID.sub(b"<uuid>", value))
    if name in (b"x-envoy-upstream-service-time", b"x-envoy-expected-rq-timeout-ms"):
        value = b"<ms>"
    return ascii(f"{name.decode('latin-1')}: {value.decode('latin-1')}")[1:-1]


def _log_line(line: str) -> str:
    """What nghttp2 calls its errors is its own business; ports are nobody's."""
    line = line.replace("codec_error:The_user_callback_function_failed", "codec_error")
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:<port>", line)
