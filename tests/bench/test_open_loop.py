"""The generator with a fixed rate: what it counts, and from when."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.load import FixedRate, LoadError
from bench.open_loop import content_length
from tests.support.upstream import ScriptedUpstream, reply

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def server(stall_s: float) -> Iterator[int]:
    """One connection; it answers at once, but stands still before its tenth answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for number in range(1_000_000):
                    if not connection.recv(65536):
                        return
                    if number == 10:
                        time.sleep(stall_s)  # this is what is measured
                    connection.sendall(ANSWER)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


def test_every_request_that_was_due_while_the_server_stood_still_is_late() -> None:
    with server(stall_s=0.5) as port:
        traffic = FixedRate(per_second=200, connections=1).run(port, 1)
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


def test_the_length_of_an_answer() -> None:
    assert content_length(b"HTTP/1.1 200 OK\r\nx: y\r\nContent-Length: 64\r\nz: y") == 64
