"""examples/*/envoy.yaml: each runs unchanged on the real Envoy and here, and does on both what its comments say."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import runpy
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

import grpc
import pytest

from meshproxy.demo.trace import spans_of as exported
from tests.bench.programs import needs
from tests.integration.raw_upstream import RawUpstream
from tests.support.http2_downstream import Http2Downstream
from tests.support.http2_wire import headers
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.upstream import CLOSE, ScriptedUpstream, reply
from tests.support.wire import WireReader

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STARTERS = [start_envoy, start_meshproxy]
Start = Callable[[str], ProxyProcess]
_PORT = re.compile(r"(port_value: )(\d+)")
_WEBSOCKET = b"connection: Upgrade\r\nupgrade: websocket\r\n\r\n"


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What examples/make_certs.sh makes, in a folder of the tests' own."""
    folder = tmp_path_factory.mktemp("examples")
    script = folder / "make_certs.sh"
    script.write_text((EXAMPLES / "make_certs.sh").read_text())
    subprocess.run(["sh", str(script)], check=True, capture_output=True)
    return folder / "certs"


@contextmanager
def running(start: Start, kind: str, ports: Mapping[int, int], certs: Path | None = None) -> Iterator[ProxyProcess]:
    """The example with these ports in place of its own; all others become free ones."""
    text = (EXAMPLES / kind / "envoy.yaml").read_text()
    text = _PORT.sub(lambda match: f"{match[1]}{ports.get(int(match[2]), 0)}", text)
    if certs is not None:
        text = text.replace("examples/certs", str(certs))
    text = text.replace(f"examples/{kind}/", f"{EXAMPLES / kind}/")
    with start(text) as proxy:
        yield proxy


class Answer:
    """An answer of the proxy."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.body = answer.read().decode(errors="replace")


class Client:
    """Where and how requests go."""

    def __init__(self, proxy: ProxyProcess, listener: str, context: ssl.SSLContext | None = None) -> None:
        self._port = proxy.listener_ports()[listener]
        self._context = context

    def ask(
        self,
        path: str = "/",
        name: str = "shop.example",
        first: bytes = b"",
        body: bytes | None = None,
        method: str = "GET",
        **headers: str,
    ) -> Answer:
        """Ask for `path`; `first` goes out before everything else. Raises OSError when the connection ends instead."""
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as sock:
            sock.sendall(first)
            with closing(http.client.HTTPConnection(name)) as connection:
                secure = None if self._context is None else self._context.wrap_socket(sock, server_hostname=name)
                connection.sock = secure or sock
                fields = {key.replace("_", "-"): value for key, value in headers.items()}
                connection.request(method, path, body, headers=fields)
                return Answer(connection.getresponse())


def trusting(certs: Path, *, client: bool = False) -> ssl.SSLContext:
    """A client that trusts the CA of the examples, with a certificate of its own if `client`."""
    context = ssl.create_default_context(cafile=str(certs / "ca.pem"))
    if client:
        context.load_cert_chain(certs / "client.pem", certs / "client.key")
    return context


class TlsServer:
    """Answers every connection with its name, over TLS."""

    def __init__(self, certs: Path, name: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certs / "server.pem", certs / "server.key")
        head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(name)
        self._answer = head + name.encode()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            with sock:
                self._answer_one(sock)

    def _answer_one(self, sock: socket.socket) -> None:
        sock.settimeout(30)
        try:
            with self._context.wrap_socket(sock, server_side=True) as secure:
                received = b""
                while not received.endswith(b"\r\n\r\n"):
                    received += secure.recv(4096)
                secure.sendall(self._answer)
        except OSError:  # a client that did not like us
            return


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    """Two services, each saying its name."""
    server = ScriptedUpstream(("one", "two"))
    server.play(by_server={name: [reply(body=name.encode())] for name in ("one", "two")})
    yield server
    server.close()
    assert server.errors == []


def two(upstream: ScriptedUpstream) -> dict[int, int]:
    """The ports at which the examples look for their services."""
    return {8101: upstream.ports["one"], 8102: upstream.ports["two"]}


@pytest.mark.parametrize("start", STARTERS)
def test_front_proxy(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "front-proxy", two(upstream)) as proxy:
        front = Client(proxy, "front")
        assert front.ask("/").body == "one"
        assert front.ask("/cart/7").body == "two"
        assert front.ask("/carton").body == "one"


@pytest.mark.parametrize("start", STARTERS)
def test_gateway_by_header(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "gateway-by-header", two(upstream)) as proxy:
        gateway = Client(proxy, "gateway")
        assert gateway.ask(x_service="cart").body == "one"
        assert gateway.ask(x_service="cart", x_tenant="beta").body == "two"
        assert gateway.ask(x_service="nobody").status == 404
        assert gateway.ask().status == 400


@pytest.mark.parametrize("start", STARTERS)
def test_https_redirect(start: Start, upstream: ScriptedUpstream, certs: Path) -> None:
    with running(start, "https-redirect", two(upstream), certs) as proxy:
        redirect = Client(proxy, "plain").ask("/where?a=1")
        assert (redirect.status, redirect.headers["location"]) == (301, "https://shop.example:10443/where?a=1")
        assert Client(proxy, "secure", trusting(certs)).ask("/where?a=1").body == "one"


@pytest.mark.parametrize("start", STARTERS)
def test_tls_termination(start: Start, upstream: ScriptedUpstream, certs: Path) -> None:
    with running(start, "tls-termination", two(upstream), certs) as proxy:
        script = upstream.play([reply(body=b"one")])
        assert Client(proxy, "secure", trusting(certs)).ask().body == "one"
        assert script.seen[0].message.get(b"x-forwarded-proto") == b"https"
        with pytest.raises((OSError, http.client.HTTPException)):
            Client(proxy, "secure").ask()


@pytest.mark.parametrize("start", STARTERS)
def test_tls_origination(start: Start, certs: Path) -> None:
    with TlsServer(certs, "secret") as server, running(start, "tls-origination", {8101: server.port}, certs) as proxy:
        assert Client(proxy, "plain").ask().body == "secret"


@needs("nghttpd")
@pytest.mark.parametrize("start", STARTERS)
@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
def test_http2(start: Start, certs: Path, protocol: str) -> None:
    """The plain service speaks HTTP/2; the one with TLS what it chooses."""
    with Nghttpd(certs, plain=True) as api, Nghttpd(certs) as new, TlsServer(certs, "old") as old:
        web = new.port if protocol == "h2" else old.port
        with running(start, "http2", {8101: api.port, 8102: web}, certs) as proxy:
            assert Client(proxy, "both").ask("/api/file").body == "hello"
            answer = Client(proxy, "both").ask("/file")
            assert answer.body == ("hello" if protocol == "h2" else "old")
            with Http2Downstream(proxy.listener_ports()["both"]) as downstream:
                head = {":method": "GET", ":scheme": "http", ":authority": "shop.example"}
                for stream, path in ((1, "/api/file"), (3, "/file")):
                    downstream.send(headers(stream, [*head.items(), (":path", path)], end=True))
                downstream.wait_over(1, 3)
                bodies = [downstream.streams[stream].parts[-1].body for stream in (1, 3)]
            assert bodies == [b"hello", answer.body.encode()]
            stats = proxy.stats("upstream_cx_http")
            assert stats["cluster.api.upstream_cx_http2_total"] == 1
            version = "upstream_cx_http2_total" if protocol == "h2" else "upstream_cx_http1_total"
            assert stats[f"cluster.web.{version}"] >= 1


class Nghttpd:
    """nghttp2's server, with two files; over TLS it speaks HTTP/2 by ALPN."""

    def __init__(self, certs: Path, *, plain: bool = False) -> None:
        root = certs.parent / "files"
        for folder in (root, root / "api"):
            folder.mkdir(exist_ok=True)
            (folder / "file").write_text("hello")
        with socket.create_server(("127.0.0.1", 0)) as reserved:
            self.port: int = reserved.getsockname()[1]
        secrets = ["--no-tls", str(self.port)]
        if not plain:
            secrets = [str(self.port), str(certs / "server.key"), str(certs / "server.pem")]
        self._command = ["nghttpd", "-a", "127.0.0.1", "-d", str(root), *secrets]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._listens, "nghttpd")
        return self

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)


@pytest.mark.parametrize("start", STARTERS)
def test_grpc_json(start: Start) -> None:
    """One message, a line for each of several, a message that is put, and a call that fails."""
    service = runpy.run_path(str(EXAMPLES / "grpc-json" / "service.py"))
    server, port = service["start"](0)
    try:
        with running(start, "grpc-json", {8101: port}) as proxy:
            client = Client(proxy, "front")
            assert json.loads(client.ask("/v1/books/1").body) == {"id": 1, "title": "Emma", "authors": ["Jane Austen"]}
            lines = client.ask("/v1/books?author=Jane+Austen").body.splitlines()
            assert [json.loads(line)["title"] for line in lines] == ["Emma", "Persuasion"]
            assert json.loads(client.ask("/v1/books/3", body=b'{"title": "x"}', method="PUT").body)["id"] == 3
            missing = client.ask("/v1/books/9")
            assert (missing.status, json.loads(missing.body)["code"]) == (404, 5)
            assert client.ask("/").body == "no such method\n"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("start", STARTERS)
def test_grpc_web(start: Start) -> None:
    """A page's call and its preflight, one without gRPC's prefix, and one of gRPC: all of them counted."""
    service = runpy.run_path(str(EXAMPLES / "grpc-json" / "service.py"))
    server, port = service["start"](0)
    path, request = "/example.books.Books/GetBook", service["message_class"]("GetBookRequest")(id=1).SerializeToString()
    try:
        with running(start, "grpc-web", {8101: port}) as proxy:
            client = Client(proxy, "front")
            origin = "https://app.example"
            framed = b"\0\0\0\0" + bytes([len(request)]) + request
            web = "application/grpc-web+proto"
            page = client.ask(path, body=framed, method="POST", content_type=web, origin=origin)
            assert "Emma" in page.body
            assert "grpc-status:0\r\n" in page.body
            assert page.headers["access-control-allow-origin"] == origin
            preflight = client.ask(path, method="OPTIONS", access_control_request_method="POST", origin=origin)
            assert "x-grpc-web" in preflight.headers["access-control-allow-headers"]
            bare = client.ask(path, body=request, method="POST", content_type="application/x-protobuf")
            assert (bare.status, bare.headers["grpc-status"]) == (200, "0")
            emma = service["Book"](id=1, title="Emma", authors=["Jane Austen"])
            assert bare.body == emma.SerializeToString().decode()
            none = client.ask(path, body=b"\x08\x09", method="POST", content_type="application/x-protobuf")
            assert (none.status, none.headers["grpc-status"]) == (200, "5")  # from a head without trailers
            with grpc.insecure_channel(f"127.0.0.1:{proxy.listener_ports()['front']}") as channel:
                assert b"Emma" in channel.unary_unary(path)(request, timeout=30.0)
            stats = proxy.stats(r"^cluster\.books\.grpc\.example\.books\.Books\.GetBook\.")
            counts = {name.rpartition(".")[2]: count for name, count in stats.items()}
            assert (counts["success"], counts["failure"], counts["5"]) == (3, 1, 1)
            assert (counts["request_message_count"], counts["response_message_count"]) == (4, 3)
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("start", STARTERS)
def test_mtls(start: Start, upstream: ScriptedUpstream, certs: Path) -> None:
    with running(start, "mtls", two(upstream), certs) as proxy:
        assert Client(proxy, "secure", trusting(certs, client=True)).ask().body == "one"
        with pytest.raises((OSError, http.client.HTTPException)):
            Client(proxy, "secure", trusting(certs)).ask()


@pytest.mark.parametrize("start", STARTERS)
def test_sni_routing(start: Start, certs: Path) -> None:
    with (
        TlsServer(certs, "cart") as cart,
        TlsServer(certs, "web") as web,
        running(start, "sni-routing", {8101: cart.port, 8102: web.port}) as proxy,
    ):
        tls = Client(proxy, "tls", trusting(certs))
        assert tls.ask(name="cart.shop.example").body == "cart"
        assert tls.ask(name="www.shop.example").body == "web"
        with pytest.raises(OSError):
            tls.ask(name="elsewhere.example")


@pytest.mark.parametrize("start", STARTERS)
def test_double_proxy(start: Start, upstream: ScriptedUpstream, certs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:  # the near listener must know the far one's port
        far = placeholder.getsockname()[1]
    with running(start, "double-proxy", {**two(upstream), 10443: far}, certs) as proxy:
        assert Client(proxy, "near").ask().body == "one"
        with pytest.raises((OSError, http.client.HTTPException)):
            Client(proxy, "far", trusting(certs)).ask()


@pytest.mark.parametrize("start", STARTERS)
def test_proxy_protocol(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "proxy-protocol", two(upstream)) as proxy:
        script = upstream.play([reply(body=b"one")])
        assert Client(proxy, "front").ask(first=b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n").body == "one"
        assert script.seen[0].message.get(b"x-forwarded-for") == b"192.0.2.7"
        with pytest.raises((OSError, http.client.HTTPException)):
            Client(proxy, "front").ask()


@pytest.mark.parametrize("start", STARTERS)
def test_tracing(start: Start, upstream: ScriptedUpstream) -> None:
    collector = ScriptedUpstream(("collector",))
    with socket.create_server(("127.0.0.1", 0)) as placeholder:  # the front proxy must know the sidecar's port
        sidecar = placeholder.getsockname()[1]
    ports = {**two(upstream), 4318: collector.ports["collector"], 10001: sidecar}
    try:
        with running(start, "tracing", ports) as proxy:
            script = upstream.play([reply(body=b"one")])
            client = Client(proxy, "front")
            assert client.ask("/health").body == "one"
            assert client.ask(x_tenant="t").body == "one"
            untraced, traced = (seen.message.get(b"traceparent") or b"" for seen in script.seen)
            wait_for(lambda: sum(len(exported(seen.message.body)) for seen in collector.script.seen) == 4, "four spans")
            spans = [span for seen in collector.script.seen for span in exported(seen.message.body)]
    finally:
        collector.close()
    assert (untraced[-3:], traced[-3:]) == (b"-00", b"-01")
    assert {span.trace_id for span in spans} == {traced[3:35].decode()}
    by_parent = {span.parent_id: span for span in spans}
    way, parent = [], ""
    while parent in by_parent:
        way.append((by_parent[parent].service, by_parent[parent].name))
        parent = by_parent[parent].span_id
    assert parent == traced[36:52].decode()  # which the service finds in its request
    assert way == [
        ("front", "shop"),
        ("front", "router sidecar egress"),
        ("sidecar", "ingress"),
        ("sidecar", "router service egress"),
    ]


@pytest.mark.parametrize("start", STARTERS)
def test_tcp_weighted(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "tcp-weighted", two(upstream)) as proxy:
        bodies = [Client(proxy, "database").ask().body for _ in range(150)]
        assert 100 < bodies.count("one") < 150  # 135 on average; outside once in a million runs
        assert bodies.count("one") + bodies.count("two") == 150


@pytest.mark.parametrize("start", STARTERS)
def test_retries(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "retries", two(upstream)) as proxy:
        upstream.play(by_server={"one": [reply(503)], "two": [reply(body=b"two")]})
        assert [Client(proxy, "front").ask().body for _ in range(4)] == ["two"] * 4


@pytest.mark.parametrize("start", STARTERS)
def test_error_pages(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "error-pages", two(upstream)) as proxy:
        front = Client(proxy, "front")
        assert front.ask().body == "one"
        upstream.play([CLOSE])
        page = front.ask()
        assert (page.status, page.headers["content-type"], page.headers["retry-after"]) == (502, "text/html", "5")
        assert page.body.startswith("<h1>Back in a moment.</h1>")
        assert front.ask("/admin").body == '{"path":"/admin","status":404,"why":"route_not_found"}\n'
        logged = wait_for(lambda: [line for line in proxy.output().splitlines() if line.startswith("{")][1:], "records")
        record = json.loads(logged[0])
        assert (record["status"], record["request"]["path"], record["details"]) == (404, "/admin", "route_not_found")
        assert "upstream" not in record


@pytest.mark.parametrize("start", STARTERS)
def test_fault_injection(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "fault-injection", two(upstream)) as proxy:
        front = Client(proxy, "front")
        assert front.ask().body == "one"
        assert front.ask(x_chaos="abort").status == 503


@pytest.mark.parametrize("start", STARTERS)
def test_rate_limit(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "rate-limit", two(upstream)) as proxy:
        front = Client(proxy, "front")
        answers = [front.ask("/api", x_api_key="ann") for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
        assert front.ask("/api", x_api_key="bob").status == 200
        assert [front.ask("/login").status for _ in range(3)] == [200, 200, 429]
        assert front.ask("/login").headers["retry-after"] == "30"
        assert front.ask("/api").status == 401
        proxy.admin("/runtime_modify?limit.api_enforced=0", "POST")
        wait_for(lambda: front.ask("/api", x_api_key="ann").status == 200, "the limit to be watched only")
        assert [front.ask("/free").status for _ in range(5)] == [200] * 5


@pytest.mark.parametrize("start", STARTERS)
def test_cors(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "cors", two(upstream)) as proxy:
        front = Client(proxy, "front")
        allowed = front.ask(origin="https://app.example")
        assert (allowed.body, allowed.headers["access-control-allow-origin"]) == ("one", "https://app.example")
        assert front.ask(origin="https://other.example").headers["access-control-allow-origin"] is None


@pytest.mark.parametrize("start", STARTERS)
def test_rewrite(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "rewrite", two(upstream)) as proxy:
        script = upstream.play([reply(body=b"one", headers=(("x-legacy", "1"),))])
        answer = Client(proxy, "front").ask("/api/v2/items/7")
        message = script.seen[0].message
        assert (message.target, message.get(b"host")) == (b"/item.cgi?id=7", b"legacy.internal")
        assert message.get(b"x-came-from") == b"127.0.0.1"
        assert answer.headers["x-legacy"] is None
        assert Client(proxy, "front").ask("/api/v2/items/x").status == 404


@pytest.mark.parametrize("start", STARTERS)
def test_compression(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "compression", two(upstream)) as proxy:
        upstream.play([reply(200, b"x" * 1000, [("content-type", "text/plain")])])
        front = Client(proxy, "front")
        choices = {"gzip": "gzip", "zstd, gzip": "zstd", "gzip, br": "br", "gzip, br;q=0.9": "gzip"}
        for accepted, encoding in choices.items():
            assert front.ask("/page", accept_encoding=accepted).headers["content-encoding"] == encoding
        assert front.ask("/page").headers["content-encoding"] is None
        assert front.ask("/archive", accept_encoding="gzip").headers["content-encoding"] is None
        upstream.play([reply(206, b"x" * 1000)])
        assert front.ask("/page", accept_encoding="gzip").headers["content-encoding"] is None
        script = upstream.play([reply()])
        front.ask("/upload", body=gzip.compress(b"notes"), content_encoding="gzip")
        assert script.seen[0].message.body == b"notes"
        assert script.seen[0].message.get(b"content-encoding") is None


@pytest.mark.parametrize("start", STARTERS)
def test_mirror(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "mirror", two(upstream)) as proxy:
        script = upstream.play(by_server={"one": [reply(body=b"one")], "two": [reply(503)]})
        proxy.admin("/runtime_modify?mirror.candidate=100", "POST")
        assert [Client(proxy, "front").ask().body for _ in range(3)] == ["one"] * 3
        upstream.wait_whole(6)
        hosts = [seen.message.get(b"host") for seen in script.seen if seen.server == "two"]
        assert hosts == [b"shop.example-shadow"] * 3


@pytest.mark.parametrize("start", STARTERS)
def test_internal_redirect(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "internal-redirect", two(upstream)) as proxy:
        moved = reply(302, headers=(("location", "http://store.internal/files/1"), ("x-download-as", "report.pdf")))
        script = upstream.play(by_server={"one": [moved], "two": [reply(body=b"two")]})
        assert Client(proxy, "front").ask("/download/report.pdf").body == "two"
        message = script.seen[1].message
        assert (message.target, message.get(b"x-download-as")) == (b"/files/1", b"report.pdf")
        upstream.play([reply(302, headers=(("location", "http://other.example/"),))])
        assert Client(proxy, "front").ask("/elsewhere").headers["location"] == "http://other.example/"


@pytest.mark.parametrize("start", STARTERS)
def test_websocket(start: Start, upstream: ScriptedUpstream) -> None:
    with RawUpstream() as live, running(start, "websocket", {**two(upstream), 8102: live.port}) as proxy:
        assert Client(proxy, "front").ask("/").body == "one"
        assert Client(proxy, "front").ask("/", connection="Upgrade", upgrade="websocket").status == 403
        with socket.create_connection(("127.0.0.1", proxy.listener_ports()["front"]), timeout=30) as sock:
            downstream = WireReader(sock)
            sock.sendall(b"GET /live HTTP/1.1\r\nhost: shop.example\r\n" + _WEBSOCKET)
            server, request = live.accept_request()
            assert request.get(b"upgrade") == b"websocket"
            server.sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n" + _WEBSOCKET)
            assert downstream.read_head().status == 101
            sock.sendall(b"ping")
            assert server.read_exactly(4) == b"ping"
            server.sock.sendall(b"pong")
            assert downstream.read_exactly(4) == b"pong"


def test_ring_hash(upstream: ScriptedUpstream) -> None:
    ports, users = two(upstream), [f"user-{number}" for number in range(40)]
    with running(start_envoy, "ring-hash", ports) as envoy, running(start_meshproxy, "ring-hash", ports) as ours:
        clients = [Client(proxy, "front") for proxy in (envoy, ours)]
        rounds = [[client.ask(x_user=user).body for user in users] for client in (*clients, clients[1])]
        assert rounds == [rounds[0]] * 3
        assert set(rounds[0]) == {"one", "two"}
        for client, other in (clients, clients[::-1]):
            stranger = client.ask()
            cookie = stranger.headers["set-cookie"].split(";")[0]
            assert [each.ask(cookie=cookie).body for each in (client, other) * 3] == [stranger.body] * 6


@pytest.mark.parametrize("start", STARTERS)
def test_sticky_release(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "sticky-release", two(upstream)) as proxy:
        front = Client(proxy, "front")
        by_user = [front.ask(x_user=f"user-{number}").body for number in range(40)]
        assert 5 < by_user.count("two") < 22  # 12 on average; the same in every run
        assert [front.ask(x_user=f"user-{number}").body for number in range(40)] == by_user
        by_cookie = [front.ask(cookie=f"session=user-{number}").body for number in range(40)]
        assert by_cookie == by_user


@pytest.mark.parametrize("start", STARTERS)
def test_locality_failover(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "locality-failover", two(upstream)) as proxy:
        assert [Client(proxy, "front").ask().body for _ in range(10)] == ["one"] * 10
    with socket.socket() as dead:
        dead.bind(("127.0.0.1", 0))
        with running(start, "locality-failover", {**two(upstream), 8101: dead.getsockname()[1]}) as proxy:
            assert [Client(proxy, "front").ask().body for _ in range(10)] == ["two"] * 10
            stats = proxy.stats("cluster.web")
            assert stats["cluster.web.outlier_detection.ejections_active"] == 1
            assert stats["cluster.web.upstream_cx_connect_fail"] == 3


@pytest.mark.parametrize("start", STARTERS)
def test_subsets(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "subsets", two(upstream)) as proxy:
        front = Client(proxy, "front")
        assert [front.ask(x_version="v2").body for _ in range(6)] == ["two"] * 6
        assert [front.ask(x_version="v3").body for _ in range(6)] == ["one"] * 6
        assert [front.ask().body for _ in range(6)] == ["one"] * 6


@pytest.mark.parametrize("start", STARTERS)
def test_dns(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "dns", two(upstream)) as proxy:
        script = upstream.script
        assert Client(proxy, "front").ask("/").body == "one"
        assert Client(proxy, "front").ask("/cart").body == "two"
        assert [seen.message.get(b"host") for seen in script.seen] == [b"shop.example", b"localhost"]
        told = [line.split("::") for line in proxy.admin("/clusters")[1].splitlines()]
        hosts = [parts for parts in told if parts[2:] == ["hostname", "localhost"]]
        addresses = {name: f"127.0.0.1:{port}" for name, port in upstream.ports.items()}
        assert sorted(host[:2] for host in hosts) == [["cart", addresses["two"]], ["web", addresses["one"]]]


@pytest.mark.parametrize("start", STARTERS)
def test_original_destination(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "original-destination", {}) as proxy:
        front = Client(proxy, "front")
        for name, port in upstream.ports.items():
            assert front.ask(x_envoy_original_dst_host=f"127.0.0.1:{port}").body == name
        assert front.ask().status == 400
        with pytest.raises((OSError, http.client.HTTPException)):  # nobody redirected it
            Client(proxy, "transparent").ask()


@pytest.mark.parametrize("start", STARTERS)
def test_double_tls(start: Start, certs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        near, far = (placeholder.getsockname()[1] for placeholder in (one, other))
    with (
        TlsServer(certs, "secret") as server,
        running(start, "double-tls", {8101: server.port, 10001: near, 10443: far}, certs) as proxy,
    ):
        assert Client(proxy, "plain").ask().body == "secret"
        assert Client(proxy, "near", trusting(certs)).ask().body == "secret"
        with pytest.raises((OSError, http.client.HTTPException)):  # the outer TLS alone does not do
            Client(proxy, "far", trusting(certs, client=True)).ask()


@pytest.mark.parametrize("start", STARTERS)
def test_connect_tunnel(start: Start, upstream: ScriptedUpstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        proxy_port = placeholder.getsockname()[1]
    with running(start, "connect-tunnel", {**two(upstream), 10001: proxy_port}) as proxy:
        assert Client(proxy, "tunnel").ask().body == "one"
        assert proxy.stats("http.proxy.downstream_cx_upgrades_total")["http.proxy.downstream_cx_upgrades_total"] == 1
        for destination, status in (("shop.example:8101", 200), ("shop.example:22", 404)):
            with socket.create_connection(("127.0.0.1", proxy_port), timeout=30) as sock:
                sock.sendall(f"CONNECT {destination} HTTP/1.1\r\nhost: {destination}\r\n\r\n".encode())
                assert WireReader(sock).read_head().status == status


def test_no_example_is_forgotten() -> None:
    tested = {name.removeprefix("test_").replace("_", "-") for name in globals() if name.startswith("test_")}
    kinds = {folder.name for folder in EXAMPLES.iterdir() if (folder / "envoy.yaml").exists()}
    assert kinds - tested == {"canary"}  # which has a file of its own
    listed = re.findall(r"^\| \[(.*)\]\((.*)/envoy.yaml\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted((kind, kind) for kind in kinds)


@pytest.mark.parametrize("start", STARTERS)
def test_sidecar(start: Start, upstream: ScriptedUpstream) -> None:
    with running(start, "sidecar", two(upstream)) as proxy:
        inbound = Client(proxy, "inbound")
        assert inbound.ask("/healthz").status == 200
        assert inbound.ask("/").body == "one"
        assert inbound.ask("/", x_version="2").body == "two"
        assert inbound.ask("/", x_version="3").status == 503
        assert inbound.ask("/", body=b"x" * 65536).body == "one"
        assert inbound.ask("/", body=b"x" * 65537).status == 413
        proxy.admin("/healthcheck/fail", "POST")
        assert inbound.ask("/healthz").status == 503
        assert inbound.ask("/").headers["x-envoy-immediate-health-check-fail"] == "true"
