"""What the codecs refuse, a row each (`http1_cases`): the status, the details, and nothing of it passed on."""

import pytest

from meshproxy.codec.http1.settings import Http1Settings
from tests.codec.http1_cases import HTTP_10_REQUESTS, REQUESTS, RESPONSES
from tests.codec.recorder import Downstream, Upstream

GET = [(b":authority", b"a"), (b":path", b"/"), (b":method", b"GET"), (b":scheme", b"http")]


def ids(rows: list[tuple[str, bytes, int, str]] | list[tuple[str, bytes, str]]) -> list[str]:
    return [row[0] for row in rows]


@pytest.mark.parametrize(("section", "data", "status", "details"), REQUESTS, ids=ids(REQUESTS))
def test_request_is_refused(section: str, data: bytes, status: int, details: str) -> None:
    downstream = Downstream(Http1Settings())
    downstream.connection.receive_data(data)
    assert downstream.log[-1] == f"error {status} {details}"
    if section.startswith("7.1"):  # the head was in order, and the body never comes to an end
        assert not downstream.log[-2].endswith(" end")
    else:
        assert len(downstream.log) == 1
    assert downstream.connection.should_close
    downstream.connection.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert downstream.streams == 1
    assert downstream.connection.buffered_bytes == 0


@pytest.mark.parametrize(("section", "data", "status", "details"), HTTP_10_REQUESTS, ids=ids(HTTP_10_REQUESTS))
def test_http_10_request_is_refused(section: str, data: bytes, status: int, details: str) -> None:
    downstream = Downstream(Http1Settings(accept_http_10=True))
    downstream.connection.receive_data(data)
    assert downstream.log == [f"error {status} {details}"], section


@pytest.mark.parametrize(("section", "data", "details"), RESPONSES, ids=ids(RESPONSES))
def test_response_is_refused(section: str, data: bytes, details: str) -> None:
    upstream = Upstream(Http1Settings())
    upstream.request(GET)
    upstream.connection.receive_data(data)
    assert upstream.log[-2] == f"reset protocol_error {details}"
    assert upstream.log[-1].startswith("error ")
    assert upstream.log[-1].endswith(details)
    head = ["headers :status=200"] if section == "7.1 a bad chunk size" else []
    assert upstream.log[:-2] == head
