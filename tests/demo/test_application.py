"""The application behind the proxy."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.downstream import RawDownstream

APPLICATION = [sys.executable, "-m", "meshproxy.demo.application", "--instance", "v2-a"]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """An instance that ends with its standard input."""
    with subprocess.Popen([*APPLICATION, "--until-eof"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        yield running
        running.kill()


def port_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_it_says_who_answered_what(process: subprocess.Popen[bytes]) -> None:
    with RawDownstream(port_of(process)) as downstream:
        downstream.send(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n")
        downstream.send(b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nxyz")
        first, second = downstream.receive(), downstream.receive()
        assert (first.status, first.get(b"x-shop-instance")) == (200, b"v2-a")
        assert first.body == b"shop v2, instance v2-a\nGET /a\n\n"
        assert second.body == b"shop v2, instance v2-a\nPOST /b\nxyz\n"


def test_it_closes_when_asked_to_and_on_what_is_not_http(process: subprocess.Popen[bytes]) -> None:
    port = port_of(process)
    for request in (b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"\0\r\n\r\n"):
        with RawDownstream(port) as downstream:
            downstream.send(request)
            assert downstream.wait_end() == "closed"


def test_it_ends_with_its_standard_input(process: subprocess.Popen[bytes]) -> None:
    port_of(process)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0


def test_a_port_that_is_taken_is_one_plain_line(process: subprocess.Popen[bytes]) -> None:
    command = [*APPLICATION, "--port", str(port_of(process))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("cannot serve: ")
    assert done.stderr.count("\n") == 1
