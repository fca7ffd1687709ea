"""HTTP/2 with programs that nobody here wrote: nghttp, h2load, curl and grpcio in front, nghttpd, HTTP/1 and grpcio
behind."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.bench.programs import needs
from tests.integration.config import bootstrap, cluster, direct, forward, listener, protocol
from tests.rpc.grpcio_server import GrpcioServer
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_meshproxy
from tests.support.upstream import ScriptedUpstream, reply
from tests.tls.certificates import dns, issue, world

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
MIB = 1024 * 1024
LARGE = bytes(range(256)) * 4096 * 8  # 8 MiB


HTTP2 = protocol(explicit_http_config={"http2_protocol_options": {}})


class Nghttpd:
    """nghttp2's server: files, an echo of what is uploaded, and a log of what it is asked."""

    def __init__(self, folder: Path, *options: str) -> None:
        (folder / "large").write_bytes(LARGE)
        (folder / "small").write_bytes(b"small")
        self._log = folder / "nghttpd.log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        tls = [each for each in options if not each.startswith("-")]
        flags = [each for each in options if each.startswith("-")] + ([] if tls else ["--no-tls"])
        command = [found("nghttpd"), "-v", "--echo-upload", "-a", "127.0.0.1", "-d", str(folder), *flags]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen([*command, str(self.port), *tls], stdout=output, stderr=output)
        wait_for(self._accepts, "nghttpd", 10.0)

    def _accepts(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def log(self) -> str:
        """What it has written, all of it by the time a request is answered."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(15)


def found(program: str) -> str:
    """Where a program is."""
    return shutil.which(program) or f"/usr/sbin/{program}"


class World:
    """The proxy, and all that stands behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nghttpd = Nghttpd(folder, "--trailer=x-trailer: at the end")
        self.grpcio = GrpcioServer()
        self.scripted = ScriptedUpstream()
        self.scripted.play([reply(200, b"from http/1", [("x-from", "http1")])])
        issued = issue("server", world().ca, names=dns("localhost"))
        (folder / "chain.pem").write_bytes(issued.pem)
        (folder / "key.pem").write_bytes(issued.key_pem)
        (folder / "ca.pem").write_bytes(world().ca.pem)
        self.tls = Nghttpd(folder, str(folder / "key.pem"), str(folder / "chain.pem"))
        self.proxy = start_meshproxy(self._config())
        self.ports = self.proxy.listener_ports()

    def close(self) -> None:
        for each in (self.proxy.stop, self.nghttpd.close, self.tls.close, self.grpcio.stop, self.scripted.close):
            each()

    def _config(self) -> str:
        routes = [
            direct("/direct", "hello"),
            forward("/h1", "h1"),
            forward("/test.Test/", "grpc", timeout="0s"),
            forward("/auto/", "auto", prefix_rewrite="/"),
            forward("/", "h2", timeout="0s"),
        ]
        secure = listener("tls", routes)
        secure["filter_chains"][0]["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": _TLS + "DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": str(self.folder / "chain.pem")},
                            "private_key": {"filename": str(self.folder / "key.pem")},
                        }
                    ],
                },
            },
        }
        validation = {"validation_context": {"trusted_ca": {"filename": str(self.folder / "ca.pem")}}}
        upstream_tls = {
            "name": "tls",
            "typed_config": {
                "@type": _TLS + "UpstreamTlsContext",
                "common_tls_context": validation,
                "sni": "localhost",
            },
        }
        return bootstrap(
            [
                listener("plain", routes),
                secure,
                listener("only_http2", routes, manager={"codec_type": "HTTP2"}),
                listener("only_http1", routes, manager={"codec_type": "HTTP1"}),
            ],
            [
                cluster("h1", self.scripted.ports["a"]),
                cluster("h2", self.nghttpd.port, **HTTP2),
                cluster("grpc", self.grpcio.port, **HTTP2),
                cluster("auto", self.tls.port, transport_socket=upstream_tls, **protocol(auto_config={})),
            ],
        )

    def url(self, path: str, name: str = "plain") -> str:
        scheme = "https" if name == "tls" else "http"
        return f"{scheme}://localhost:{self.ports[name]}{path}"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with closing(World(tmp_path_factory.mktemp("servers"))) as started:
        yield started


@pytest.fixture
def proxy(servers: World) -> ProxyProcess:
    return servers.proxy


def run(*command: str, stdin: bytes | None = None) -> bytes:
    """What a program says, if it is content."""
    done = subprocess.run([found(command[0]), *command[1:]], capture_output=True, input=stdin, timeout=30, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def frames(log: bytes, kind: str) -> int:
    """How many frames nghttp has received."""
    return len(re.findall(rb"recv " + kind.encode() + rb" frame", log))


# -- nghttp


@needs("nghttp", "nghttpd")
@pytest.mark.parametrize("path", ["/direct", "/h1", "/small", "/large"])
def test_nghttp_downloads(servers: World, path: str) -> None:
    body = run("nghttp", servers.url(path))
    assert hashlib.sha256(body).digest() == hashlib.sha256(expected(path)).digest()


def expected(path: str) -> bytes:
    return {"/direct": b"hello", "/h1": b"from http/1", "/small": b"small", "/large": LARGE}[path]


@needs("nghttp", "nghttpd")
def test_nghttp_within_small_windows(servers: World) -> None:
    """Windows of 1 KiB and 2 KiB, frames that are padded."""
    assert run("nghttp", "-w", "10", "-W", "11", "-b", "100", servers.url("/large")) == LARGE


@needs("nghttp", "nghttpd")
def test_nghttp_with_many_requests_at_once(servers: World) -> None:
    log = run("nghttp", "-nv", "-m", "50", *[servers.url(path) for path in ("/direct", "/small", "/h1")])
    assert len(re.findall(rb":status: 200", log)) == 150
    assert frames(log, "GOAWAY") == frames(log, "RST_STREAM") == 0


@needs("nghttp", "nghttpd")
@pytest.mark.parametrize("options", [[], ["-b", "255"], ["--no-content-length"], ["--expect-continue"]])
def test_nghttp_uploads(servers: World, options: list[str]) -> None:
    assert run("nghttp", *options, "-d", str(servers.folder / "large"), servers.url("/upload")) == LARGE


@needs("nghttp", "nghttpd")
def test_nghttp_with_trailers(servers: World) -> None:
    """Both ways."""
    upload = str(servers.folder / "small")
    log = run("nghttp", "-v", "-d", upload, "--trailer", "x-mine: too", servers.url("/trailers"))
    assert b"x-trailer: at the end" in log
    assert "x-mine: too" in servers.nghttpd.log()


@needs("nghttp", "nghttpd")
def test_nghttp_with_continuation(servers: World) -> None:
    """A head over 16 KiB, in several frames."""
    log = run("nghttp", "-nv", "--continuation", servers.url("/direct"))
    (length,) = re.findall(rb"send HEADERS frame <length=(\d+)", log)  # of the whole block
    assert int(length) > 16_384
    assert b":status: 200" in log


@needs("nghttp", "nghttpd")
@pytest.mark.parametrize("sizes", [["0"], ["100", "4096"], ["0", "65536"]])
def test_nghttp_changes_the_compression_s_table(servers: World, sizes: list[str]) -> None:
    options = [option for size in sizes for option in ("-c", size)]
    log = run("nghttp", "-nv", "-m", "20", *options, "--encoder-header-table-size=0", servers.url("/small"))
    assert len(re.findall(rb":status: 200", log)) == 20


@needs("nghttp", "nghttpd")
def test_nghttp_with_and_without_priorities(servers: World) -> None:
    for options in ([], ["--no-dep"], ["--no-rfc7540-pri"], ["-p", "200"]):
        assert b":status: 200" in run("nghttp", "-nv", *options, servers.url("/small"))


@needs("nghttp", "nghttpd")
def test_no_upgrade_to_http2(servers: World) -> None:
    """`Upgrade: h2c` is not answered: nghttp gives up, as it does with Envoy."""
    done = subprocess.run([found("nghttp"), "-u", servers.url("/direct")], capture_output=True, timeout=60, check=False)
    assert b"HTTP Upgrade failed" in done.stdout + done.stderr


# -- h2load


@needs("h2load", "nghttpd")
@pytest.mark.parametrize("name", ["plain", "tls", "only_http2"])
def test_h2load(servers: World, name: str) -> None:
    urls = [servers.url(path, name) for path in ("/direct", "/small", "/h1")]
    log = run("h2load", "-n", "600", "-c", "6", "-m", "10", *urls).decode()
    assert "600 succeeded, 0 failed, 0 errored, 0 timeout" in log
    assert "600 2xx, 0 3xx, 0 4xx, 0 5xx" in log


@needs("h2load", "nghttpd")
def test_h2load_with_large_bodies(servers: World) -> None:
    log = run("h2load", "-n", "24", "-c", "2", "-m", "6", servers.url("/large")).decode()
    assert "24 succeeded, 0 failed" in log


@needs("h2load", "nghttpd")
def test_h2load_uploads(servers: World) -> None:
    upload = str(servers.folder / "large")
    log = run("h2load", "-n", "12", "-c", "2", "-m", "3", "-d", upload, servers.url("/upload")).decode()
    assert "12 succeeded, 0 failed" in log


@needs("h2load", "nghttpd")
def test_h2load_speaks_http1_to_the_same_listener(servers: World) -> None:
    log = run("h2load", "--h1", "-n", "60", "-c", "3", servers.url("/small")).decode()
    assert "60 succeeded, 0 failed" in log


# -- curl


def curl(*arguments: str) -> tuple[str, dict[str, str], bytes]:
    """HTTP's version and status, the fields, and the body of the last response."""
    out = run("curl", "-sS", "-i", "--max-time", "20", *arguments)
    head, _, body = out.partition(b"\r\n\r\n")
    while re.match(rb"HTTP/[\d.]+ 1\d\d", head):
        head, _, body = body.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = [line.partition(": ") for line in lines]
    return first.strip(), {name.lower(): value for name, _, value in fields}, body


PRIOR = "--http2-prior-knowledge"


def test_curl_by_prior_knowledge(servers: World) -> None:
    first, fields, body = curl(PRIOR, servers.url("/direct"))
    assert (first, body) == ("HTTP/2 200", b"hello")
    assert fields["server"] == "envoy"
    assert "connection" not in fields
    assert "transfer-encoding" not in fields


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "PATCH"])
def test_curl_s_methods(servers: World, method: str) -> None:
    arguments = ["-I"] if method == "HEAD" else ["-X", method]
    first, fields, _ = curl(PRIOR, *arguments, servers.url("/h1"))
    assert first == "HTTP/2 200"
    assert fields["x-from"] == "http1"


def test_curl_without_http2_on_the_same_listener(servers: World) -> None:
    assert curl("--http1.1", servers.url("/direct"))[0] == "HTTP/1.1 200 OK"


def test_curl_that_would_upgrade(servers: World) -> None:
    """The upgrade to h2c is dropped: HTTP/1.1 answers."""
    assert curl("--http2", servers.url("/direct"))[0] == "HTTP/1.1 200 OK"


@pytest.mark.parametrize(("option", "first"), [("--http2", "HTTP/2 200"), ("--http1.1", "HTTP/1.1 200 OK")])
def test_curl_over_tls_chooses_by_alpn(servers: World, option: str, first: str) -> None:
    ca = str(servers.folder / "ca.pem")
    assert curl(option, "--cacert", ca, servers.url("/direct", "tls"))[0] == first


@needs("nghttpd")
def test_curl_uploads(servers: World) -> None:
    upload = f"@{servers.folder / 'large'}"
    body = run("curl", "-sS", PRIOR, "--data-binary", upload, servers.url("/upload"))
    assert body == LARGE
    chunked = run("curl", "-sS", "--http1.1", "-H", "transfer-encoding: chunked", "--data-binary", upload,
                  servers.url("/upload"))  # fmt: skip
    assert chunked == LARGE


@needs("nghttpd")
def test_curl_gets_statuses_of_the_upstream(servers: World) -> None:
    assert curl(PRIOR, servers.url("/no-such-file"))[0] == "HTTP/2 404"
    assert curl("--http1.1", servers.url("/no-such-file"))[0] == "HTTP/1.1 404 Not Found"


def test_a_listener_for_http2_alone(servers: World) -> None:
    """HTTP/1 is no preface: the connection ends."""
    assert curl(PRIOR, servers.url("/direct", "only_http2"))[0] == "HTTP/2 200"
    done = subprocess.run(
        ["curl", "-sS", "--http1.1", "--http0.9", "-o", "/dev/null", servers.url("/direct", "only_http2")],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1, 52, 56)  # frames, a GOAWAY perhaps, and the end
    assert curl("--http1.1", servers.url("/direct", "only_http1"))[0] == "HTTP/1.1 200 OK"


# -- versions


@needs("nghttpd")
@pytest.mark.parametrize("option", ["--http1.1", PRIOR])
def test_versions_convert(servers: World, option: str) -> None:
    """The request as either upstream gets it, whichever version it came with (RFC 9113 section 8.3.1)."""
    fields = ["-H", "Host: shop.test", "-H", "X-Mixed-Case: a", "-H", "cookie: a=b", "-H", "te: trailers"]
    before = len(servers.nghttpd.log())
    assert curl(option, *fields, servers.url("/small?q=1"))[0].startswith("HTTP/")
    asked = servers.nghttpd.log()[before:]
    for line in (":method: GET", ":path: /small?q=1", ":authority: shop.test", ":scheme: http", "x-mixed-case: a"):
        assert line in asked
    assert not re.search(r"\) (host|connection|transfer-encoding|x-Mixed|keep-alive): ", asked)
    assert curl(option, *fields, servers.url("/h1?q=1"))[0].startswith("HTTP/")
    message = servers.scripted.script.seen[-1].message
    assert (message.method, message.target) == (b"GET", b"/h1?q=1")
    assert [value for name, value in message.headers if name.lower() == b"host"] == [b"shop.test"]
    assert not [name for name, _ in message.headers if name.startswith(b":")]


@needs("nghttpd")
@pytest.mark.parametrize("option", ["--http1.1", PRIOR])
def test_the_upstream_s_version_by_alpn(servers: World, option: str) -> None:
    """`auto_config`: nghttpd speaks nothing but HTTP/2."""
    first, _, body = curl(option, servers.url("/auto/small"))
    assert first.endswith(("200", "200 OK"))
    assert body == b"small"
    assert servers.proxy.stats("cluster.auto.upstream_cx_http2_total")["cluster.auto.upstream_cx_http2_total"] >= 1


def test_what_is_counted(servers: World) -> None:
    """HTTP/2's own counters, and the connections of each version."""
    curl(PRIOR, servers.url("/direct"))
    curl("--http1.1", servers.url("/direct"))
    stats = servers.proxy.stats("plain")
    assert stats["http.plain.downstream_cx_http2_total"] >= 1
    assert stats["http.plain.downstream_cx_http1_total"] >= 1
    assert stats["http.plain.downstream_rq_http2_total"] >= 1


# -- grpcio


@pytest.fixture(scope="module", params=["plain", "tls"])
def channel(servers: World, request: pytest.FixtureRequest) -> Iterator[grpc.Channel]:
    port = servers.ports[request.param]
    if request.param == "tls":
        credentials = grpc.ssl_channel_credentials((servers.folder / "ca.pem").read_bytes())
        made = grpc.secure_channel(f"localhost:{port}", credentials)
    else:
        made = grpc.insecure_channel(f"127.0.0.1:{port}")
    with made:
        yield made


def method(channel: grpc.Channel, name: str) -> grpc.StreamStreamMultiCallable:
    """One of `tests/rpc/grpcio_server.py`; of both streams, and of bytes."""
    return channel.stream_stream(f"/test.Test/{name}")


def test_grpcio_unary(channel: grpc.Channel) -> None:
    for size in (0, 1, 100_000, 3 * MIB):
        (answer,) = method(channel, "echo")(iter([b"x" * size]), timeout=30)
        assert len(answer) == size


def test_grpcio_streams_both_ways(channel: grpc.Channel) -> None:
    """Each message is answered before the next is sent."""
    calls = method(channel, "echo")
    sent = [b"%d" % n * (n + 1) for n in range(200)]
    answers: list[bytes] = []
    answered = threading.Semaphore(1)

    def messages() -> Iterator[bytes]:
        for message in sent:
            answered.acquire(timeout=30)
            yield message

    for answer in calls(messages(), timeout=30):
        answers.append(answer)
        answered.release()
    assert answers == sent


def test_grpcio_server_streams(channel: grpc.Channel) -> None:
    answers = list(method(channel, "many")(iter([b"1000 1000"]), timeout=60))
    assert (len(answers), sum(map(len, answers))) == (1000, 1_000_000)


def test_grpcio_client_streams(channel: grpc.Channel) -> None:
    (answer,) = method(channel, "total")((b"x" * 10_000 for _ in range(500)), timeout=60)
    assert int(answer) == 5_000_000


def test_grpcio_statuses(channel: grpc.Channel) -> None:
    """Of trailers alone, and behind a message."""
    with pytest.raises(grpc.RpcError) as raised:
        list(method(channel, "fail")(iter([b""]), timeout=30))
    error: Any = raised.value
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "100 % süß")
    assert ("why", "because") in error.trailing_metadata()
    call = method(channel, "fail_later")(iter([b""]), timeout=30)
    assert next(call) == b"first"
    with pytest.raises(grpc.RpcError) as raised:
        next(call)
    assert call.code() == grpc.StatusCode.DATA_LOSS


def test_grpcio_metadata_and_deadline(channel: grpc.Channel) -> None:
    brought = (("x-mine", "1"), ("x-mine-bin", b"\0\xff"))
    call = method(channel, "metadata")(iter([b""]), timeout=30, metadata=brought)
    told = json.loads(next(call))
    assert told["deadline"]
    assert ["x-mine", "1"] in told["metadata"]
    assert ["x-mine-bin", "00ff"] in told["metadata"]
    assert list(call) == []
    assert dict(call.initial_metadata())["first-bin"] == b"\0\1"
    assert dict(call.trailing_metadata())["last-bin"] == b"\0\2"


def test_grpcio_many_calls_at_once(channel: grpc.Channel) -> None:
    futures = [method(channel, "echo")(iter([b"%d" % n]), timeout=60) for n in range(100)]
    assert [list(future) for future in futures] == [[b"%d" % n] for n in range(100)]


def test_grpcio_cancels(channel: grpc.Channel, servers: World) -> None:
    """The cancellation of a call reaches the server."""
    seen = cancelled(channel)
    call = method(channel, "wait")(iter([b""]), timeout=60)
    wait_for(lambda: events(channel).count("waits") > seen[0], "the call to arrive", 15.0)
    call.cancel()
    wait_for(lambda: events(channel).count("cancelled") > seen[1], "the cancellation to arrive", 15.0)


def events(channel: grpc.Channel) -> list[str]:
    (answer,) = method(channel, "events")(iter([b""]), timeout=30)
    found_events: list[str] = json.loads(answer)["events"]
    return found_events


def cancelled(channel: grpc.Channel) -> tuple[int, int]:
    told = events(channel)
    return told.count("waits"), told.count("cancelled")


def test_grpcio_deadline(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        list(method(channel, "wait")(iter([b""]), timeout=0.2))
    error: Any = raised.value
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
