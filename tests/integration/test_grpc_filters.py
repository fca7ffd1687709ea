"""Filters of gRPC with grpcio in front and behind: streams go on message by message, and whoever reads slowly is waited
for."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshproxy.http.grpc.messages import TRAILERS, MessageReader, frame
from tests.integration.config import Json, bootstrap, cluster, forward, listener
from tests.rpc.grpcio_server import GrpcioServer
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, start_meshproxy

_HTTP = "type.googleapis.com/envoy.extensions.filters.http."
_UPSTREAM = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
FILTER = '''
from meshproxy import GrpcMessages, HttpFilter


class Edit(HttpFilter):
    """Upper case for requests; of responses those are dropped that say so."""

    def on_request_headers(self, stream, headers, end):
        self.requests = GrpcMessages(headers)

    def on_request_data(self, stream, data, end):
        return self.requests.write([message.upper() for message in self.requests.read(data)])

    def on_response_headers(self, stream, headers, end):
        self.responses = GrpcMessages(headers)

    def on_response_data(self, stream, data, end):
        return self.responses.write([message for message in self.responses.read(data) if message != b"DROP"])
'''


def http_filter(kind: str, **fields: Any) -> Json:
    return {"name": kind, "typed_config": {"@type": _HTTP + kind, **fields}}


class World:
    """A proxy before a server of grpcio; its listeners `plain`, `edit` and `web` have the filters to be tried."""

    def __init__(self, folder: Path) -> None:
        self.server = GrpcioServer()
        file = folder / "edit.py"
        file.write_text(FILTER)
        python = {"@type": "type.googleapis.com/meshproxy.filters.http.python.v1.Python", "file": str(file)}
        stats = http_filter("grpc_stats.v3.FilterConfig", stats_for_all_methods=True)
        filters = {
            "plain": [stats],
            "edit": [{"name": "edit", "typed_config": python}],
            "web": [http_filter("grpc_http1_bridge.v3.Config"), http_filter("grpc_web.v3.GrpcWeb"), stats],
        }
        options: Json = {"@type": f"type.googleapis.com/{_UPSTREAM}", "explicit_http_config": {}}
        options["explicit_http_config"]["http2_protocol_options"] = {}
        protocol = {"typed_extension_protocol_options": {_UPSTREAM: options}}
        self.proxy: ProxyProcess = start_meshproxy(
            bootstrap(
                [listener(name, [forward("/", "grpc", timeout="0s")], filters=each) for name, each in filters.items()],
                [cluster("grpc", self.server.port, **protocol)],
            )
        )
        self.ports = self.proxy.listener_ports()

    def close(self) -> None:
        self.proxy.stop()
        self.server.stop()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("grpc"))
    yield made
    made.close()


@pytest.fixture
def channel(servers: World, request: pytest.FixtureRequest) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{servers.ports[request.param]}", options=options) as made:
        yield made


@pytest.mark.parametrize("channel", ["plain", "edit"], indirect=True)
def test_each_message_goes_on_at_once(channel: grpc.Channel) -> None:
    answered = threading.Semaphore(1)
    sent = [b"%d" % n * (n + 1) for n in range(100)]

    def messages() -> Iterator[bytes]:
        for message in sent:
            assert answered.acquire(timeout=30)
            yield message

    answers = []
    for answer in channel.stream_stream("/test.Test/echo")(messages(), timeout=60):
        answers.append(answer)
        answered.release()
    assert answers == sent


@pytest.mark.parametrize("channel", ["edit"], indirect=True)
def test_a_filter_changes_and_drops_messages(channel: grpc.Channel) -> None:
    answers = channel.stream_stream("/test.Test/echo")(iter([b"a", b"drop", b"", b"b" * 200_000]), timeout=60)
    assert list(answers) == [b"A", b"", b"B" * 200_000]


@pytest.mark.parametrize("channel", ["plain", "edit"], indirect=True)
def test_a_reader_that_stops_stops_the_server(channel: grpc.Channel, servers: World) -> None:
    """Of 400 MB no more is sent than windows and buffers hold (16 MiB upstream, and grpcio's own), until it is read."""
    events = channel.stream_stream("/test.Test/events")
    many = channel.stream_stream("/test.Test/many")(iter([b"4000 100000"]), timeout=120)
    assert len(next(many)) == 100_000
    before = -1

    def is_still() -> bool:
        nonlocal before
        told = int(json.loads(next(events(iter([b""]), timeout=30)))["sent"])
        still, before = told == before, told
        return still

    wait_for(is_still, "the server to be stopped", 30.0)
    assert before < 1000
    assert sum(map(len, many)) == 3999 * 100_000


@pytest.mark.parametrize("channel", ["edit"], indirect=True)
def test_a_message_beyond_the_limit_ends_its_stream(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError):
        list(channel.stream_stream("/test.Test/echo")(iter([bytes(5_000_000)]), timeout=30))
    assert list(channel.stream_stream("/test.Test/echo")(iter([b"x"]), timeout=30)) == [b"X"]


@contextmanager
def ask(servers: World, method: str, body: bytes, content_type: str) -> Iterator[http.client.HTTPResponse]:
    """A request of HTTP/1.1."""
    with closing(http.client.HTTPConnection("127.0.0.1", servers.ports["web"], timeout=30)) as connection:
        connection.request("POST", f"/test.Test/{method}", body, {"content-type": content_type, "te": "trailers"})
        yield connection.getresponse()


def test_a_page_reads_a_stream(servers: World) -> None:
    with ask(servers, "many", frame(b"50 1000"), "application/grpc-web") as response:
        messages = MessageReader().feed(response.read())
    assert [len(message) for flags, message in messages[:-1]] == [1000] * 50
    assert messages[-1][0] == TRAILERS
    assert b"grpc-status:0\r\n" in messages[-1][1]


def test_a_page_is_told_of_a_failure_behind_a_message(servers: World) -> None:
    with ask(servers, "fail_later", frame(b""), "application/grpc-web") as response:
        messages = MessageReader().feed(response.read())
    assert messages[0] == (0, b"first")
    assert b"grpc-status:15\r\n" in messages[1][1]


def test_a_client_without_trailers(servers: World) -> None:
    with ask(servers, "echo", frame(b"hello"), "application/grpc") as response:
        assert (response.status, response.headers["grpc-status"], response.read()) == (200, "0", frame(b"hello"))
    with ask(servers, "fail_later", frame(b""), "application/grpc") as response:
        assert (response.status, response.headers["grpc-status"], response.read()) == (503, "15", frame(b"first"))
