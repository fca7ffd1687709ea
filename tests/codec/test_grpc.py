"""What gRPC says in headers; the tables are gRPC's own documents', the details Envoy 1.40's."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap


def headers(**fields: str) -> HeaderMap:
    return HeaderMap([(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()])


@pytest.mark.parametrize("code", list(StatusCode))
def test_the_names_of_a_status(code: StatusCode) -> None:
    number: int = code.value[0]
    assert getattr(grpc, code.name) == number
    assert grpc.SNAKE_NAMES[number] == code.name
    spoken = {"OK": "OK", "CANCELLED": "Canceled"}.get(code.name, code.name.title().replace("_", ""))
    assert grpc.CAMEL_NAMES[number] == spoken


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc+", True),
        ("application/grpc-web", False),
        ("application/grpc;charset=x", False),
        ("Application/grpc", False),
        ("application/grp", False),
        ("text/plain", False),
    ],
)
def test_what_is_grpc(content_type: str, expected: bool) -> None:
    assert grpc.is_grpc(headers(content_type=content_type)) == expected


def test_no_content_type_is_no_grpc() -> None:
    assert not grpc.is_grpc(headers(grpc_timeout="1S"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0", 0), ("16", 16), ("99", 99), ("", -1), ("x", -1), ("-1", -1), ("9" * 40, -1)],
)
def test_grpc_status(value: str, expected: int) -> None:
    assert grpc.grpc_status(headers(grpc_status=value)) == expected


def test_the_status_of_a_response() -> None:
    one, two, none = headers(grpc_status="1"), headers(grpc_status="2"), headers(x="y")
    assert grpc.status_of_response(one, two, 200) == 2
    assert grpc.status_of_response(one, none, 200) == 1
    assert grpc.status_of_response(one, None, 503) == 1
    assert grpc.status_of_response(none, None, 503) == grpc.UNAVAILABLE
    assert grpc.status_of_response(None, None, 0) is None


@pytest.mark.parametrize(
    ("http", "status"),
    [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (502, 14), (503, 14), (504, 14), (200, 2), (500, 2)],
)
def test_the_status_of_http(http: int, status: int) -> None:
    assert grpc.status_of_http(http) == status


def test_http_of_a_status() -> None:
    # "HTTP Mapping" of google/rpc/code.proto
    expected = [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401]
    assert [grpc.http_status_of(status) for status in range(17)] == expected
    assert grpc.http_status_of(17) == grpc.http_status_of(grpc.INVALID_STATUS) == 500


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        (b"no healthy upstream", b"no healthy upstream"),
        (b"100 %", b"100 %25"),
        (b"a\r\nb~\x7f", b"a%0D%0Ab%7E%7F"),
        ("straße".encode(), b"stra%C3%9Fe"),
    ],
)
def test_a_message(text: bytes, encoded: bytes) -> None:
    assert grpc.encode_message(text) == encoded
    assert grpc.decode_message(encoded) == text


def test_a_message_with_what_is_no_escape() -> None:
    assert grpc.decode_message(b"50% of %zz") == b"50% of %zz"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2H", 7_200_000.0),
        ("3M", 180_000.0),
        ("4S", 4_000.0),
        ("250m", 250.0),
        ("1u", 1.0),
        ("1001u", 2.0),
        ("1n", 1.0),
        ("1000000n", 1.0),
        ("0m", 0.0),
        ("99999999S", 99_999_999_000.0),
        ("100000000S", None),
        ("00000000001S", 1000.0),
        ("S", None),
        ("1", None),
        ("", None),
        ("1s", None),
        ("-1S", None),
        ("1.5S", None),
    ],
)
def test_a_timeout(value: str, expected: float | None) -> None:
    assert grpc.timeout_ms(headers(grpc_timeout=value)) == expected


def test_no_timeout() -> None:
    assert grpc.timeout_ms(headers(x="y")) is None


@pytest.mark.parametrize(
    ("milliseconds", "value"),
    [
        (0, b"0m"),
        (1234, b"1234m"),
        (99_999_999, b"99999999m"),
        (100_000_000, b"100000S"),
        (100_000_000_000, b"1666666M"),
        (10**18, b"99999999H"),
    ],
)
def test_writing_a_timeout(milliseconds: int, value: bytes) -> None:
    assert grpc.encode_timeout(milliseconds) == value
