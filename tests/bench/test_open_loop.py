"""The generator with a fixed rate: what it counts, and from when."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

from bench.load import FixedRate, LoadError
from bench.open_loop import content_length
from tests.support.upstream import ScriptedUpstream, reply

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def serve_http1(connection: socket.socket, stall_s: float) -> None:
    for number in range(1_000_000):
        if not connection.recv(65536):
            return
        if number == 10:
            time.sleep(stall_s)  # this is what is measured
        connection.sendall(ANSWER)


def serve_http2(connection: socket.socket, stall_s: float, status: str = "200") -> None:
    h2 = H2Connection(H2Configuration(client_side=False))
    h2.initiate_connection()
    while data := connection.recv(65536):
        for event in h2.receive_data(data):
            if isinstance(event, RequestReceived):
                if event.stream_id == 21:  # the eleventh
                    time.sleep(stall_s)  # this is what is measured
                h2.send_headers(event.stream_id, [(":status", status), ("content-length", "2")])
                h2.send_data(event.stream_id, b"ok", end_stream=True)
        connection.sendall(h2.data_to_send())


@contextmanager
def server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """One connection; it answers at once, but stands still before its eleventh answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            connection, _ = listener.accept()
            with connection:
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


@pytest.mark.parametrize(("protocol", "serve"), [("http1", serve_http1), ("http2", serve_http2)])
def test_every_request_that_was_due_while_the_server_stood_still_is_late(
    protocol: str, serve: Callable[..., None]
) -> None:
    with server(partial(serve, stall_s=0.5)) as port:
        traffic = FixedRate(per_second=200, connections=1, protocol=protocol).run(port, 1)
    assert traffic.requests == 200
    # A hundred were due meanwhile, half a second late at first; timed from their sending one alone would be.
    assert traffic.p90_us > 300_000
    assert traffic.p999_us >= 500_000


def test_what_is_not_a_200_counts_for_nothing() -> None:
    upstream = ScriptedUpstream()
    upstream.play([reply(503)])
    try:
        with pytest.raises(LoadError, match="503"):
            FixedRate(per_second=10, connections=1).run(upstream.ports["a"], 1)
    finally:
        upstream.close()


def test_what_is_not_a_200_counts_for_nothing_over_http2() -> None:
    with server(partial(serve_http2, stall_s=0, status="503")) as port, pytest.raises(LoadError, match="than 200"):
        FixedRate(per_second=10, connections=1, protocol="http2").run(port, 1)


def test_the_length_of_an_answer() -> None:
    assert content_length(b"HTTP/1.1 200 OK\r\nx: y\r\nContent-Length: 64\r\nz: y") == 64
