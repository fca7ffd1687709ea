"""JSON clients of a gRPC server of grpcio's: streams that go on message by message, in both directions at once."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.differential.cases import get, request
from tests.support.downstream import RawDownstream
from tests.support.library import DESCRIPTOR_SET, SERVICE, decoded, encoded
from tests.support.proxy import ProxyProcess, start_meshproxy

EXTENSIONS = "type.googleapis.com/envoy.extensions."
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
STEP_S = 10.0


class Library:
    """Handlers of bytes. `go` lets the stream of ListBooks go on."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.pieces: list[int] = []

    def list_books(self, data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Two books, with a wait between them."""
        yield encoded("Book", id="1")
        assert self.go.wait(STEP_S)
        yield encoded("Book", id="2")

    def chat(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Each book comes back with a title."""
        for data in messages:
            yield encoded("Book", id=decoded("Book", data)["id"], title="seen")

    def put_stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """How long the pieces of a body were."""
        total = 0
        for data in messages:
            file = decoded("Request", data)["file"]
            total += len(base64.b64decode(file.get("data", "")))
        return encoded("Book", id=str(total))

    def get_book(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        """There is none."""
        context.abort(grpc.StatusCode.NOT_FOUND, "no such book")
        raise AssertionError("abort raises")


@pytest.fixture(scope="module")
def library() -> Iterator[tuple[Library, int]]:
    """The service and its port."""
    made = Library()
    handlers = {
        "GetBook": grpc.unary_unary_rpc_method_handler(made.get_book),
        "ListBooks": grpc.unary_stream_rpc_method_handler(made.list_books),
        "Chat": grpc.stream_stream_rpc_method_handler(made.chat),
        "PutStream": grpc.stream_unary_rpc_method_handler(made.put_stream),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, port
    made.go.set()
    server.stop(None).wait()


@pytest.fixture(scope="module")
def proxy(library: tuple[Library, int]) -> Iterator[ProxyProcess]:
    """The proxy before it."""
    transcoder = {
        "@type": EXTENSIONS + "filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor_bin": base64.b64encode(DESCRIPTOR_SET).decode(),
        "services": [SERVICE],
        "print_options": {"stream_newline_delimited": True},
        "convert_grpc_status": True,
    }
    manager = {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "http_filters": [
            {"name": "transcoder", "typed_config": transcoder},
            {"name": "router", "typed_config": {"@type": EXTENSIONS + "filters.http.router.v3.Router"}},
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "library"}}],
                }
            ]
        },
    }
    http2 = {"@type": f"type.googleapis.com/{OPTIONS}", "explicit_http_config": {"http2_protocol_options": {}}}
    cluster = {
        "name": "library",
        "type": "STATIC",
        "typed_extension_protocol_options": {OPTIONS: http2},
        "load_assignment": {
            "cluster_name": "library",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(library[1])}}]}],
        },
    }
    listener = {
        "name": "main",
        "address": address(0),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    tree = {
        "admin": {"address": address(0)},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }
    with start_meshproxy(json.dumps(tree)) as process:
        yield process


def address(port: int) -> dict[str, Any]:
    """On loopback."""
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


@pytest.fixture
def client(proxy: ProxyProcess) -> Iterator[RawDownstream]:
    """A connection to the proxy."""
    with RawDownstream(proxy.listener_ports()["main"], timeout_s=STEP_S) as downstream:
        yield downstream


def chunk(data: bytes) -> bytes:
    """A chunk of a body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def next_chunk(client: RawDownstream) -> bytes:
    """The data of the next chunk of the response."""
    size = int(client.reader.read_until(b"\r\n").strip(), 16)
    data = client.reader.read_exactly(size + 2)
    return data[:-2]


def test_messages_of_a_stream_come_one_by_one(library: tuple[Library, int], client: RawDownstream) -> None:
    client.send(get("/v1/list/poems", host="h"))
    assert client.reader.read_head().status == 200
    assert next_chunk(client) == b'{"id":"1"}\n'
    library[0].go.set()
    assert next_chunk(client) == b'{"id":"2"}\n'
    assert next_chunk(client) == b""


def test_a_conversation(client: RawDownstream) -> None:
    client.send(request("POST", "/v1/chat", [("transfer-encoding", "chunked")], host="h"))
    client.send(chunk(b'[{"id":1}'))
    assert client.reader.read_head().status == 200
    assert next_chunk(client) == b'{"id":"1","title":"seen"}\n'
    client.send(chunk(b', {"id":') + chunk(b"2}"))
    assert next_chunk(client) == b'{"id":"2","title":"seen"}\n'
    client.send(chunk(b"]") + b"0\r\n\r\n")
    assert next_chunk(client) == b""


def test_a_large_raw_body(client: RawDownstream) -> None:
    """More than the buffers of the way, in messages that a server takes."""
    client.send(request("POST", "/v1/stream/x", [("content-length", str(24 << 20))], host="h"))
    for _ in range(24):
        client.send(b"x" * (1 << 20))
    answer = client.receive(b"POST")
    assert (answer.status, json.loads(answer.body)) == (200, {"id": str(24 << 20)})


def test_a_status_with_its_message(client: RawDownstream) -> None:
    client.send(get("/v1/books/7", host="h"))
    answer = client.receive(b"GET")
    assert (answer.status, json.loads(answer.body)) == (404, {"code": 5, "message": "no such book"})
