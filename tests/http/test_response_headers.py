"""What happens to a response's headers on the way out, as recorded from Envoy 1.40 unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshproxy.codec.headers import Field
from meshproxy.http.manager_config import APPEND_IF_ABSENT, OVERWRITE, PASS_THROUGH, ConnectionManagerConfig
from tests.http.harness import Harness, ScriptedUpstream, get


def answer(
    *fields: Field, request: bytes = b"", configure: Callable[[ConnectionManagerConfig], object] | None = None
) -> list[Field]:
    """The header fields downstream of an upstream's answer with these fields; a date of now is `<now>`."""
    made = Harness(upstream=ScriptedUpstream([(b":status", b"200"), *fields]))
    config = made.config()
    if configure is not None:
        configure(config)
    connection = made.connect(config)
    connection.transport.written = b""
    connection.feed(request or get("/"))
    lines = connection.transport.written.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    pairs = [tuple(line.split(b": ", 1)) for line in lines]
    return [
        (name, b"<now>" if value.endswith(b" GMT") else value) for name, value in pairs if name != b"content-length"
    ]


def server_header(mode: int, name: bytes = b"envoy") -> Callable[[ConnectionManagerConfig], object]:
    def configure(config: ConnectionManagerConfig) -> None:
        config.server_header_transformation = mode
        config.server_field = (b"server", name)

    return configure


UP: tuple[Field, Field] = ((b"server", b"up"), (b"date", b"D"))


@pytest.mark.parametrize(
    ("mode", "name", "given", "expected"),
    [
        (OVERWRITE, b"envoy", UP, [(b"server", b"envoy"), (b"date", b"D")]),
        (OVERWRITE, b"me", UP, [(b"server", b"me"), (b"date", b"D")]),
        (OVERWRITE, b"me", (), [(b"date", b"<now>"), (b"server", b"me")]),
        (APPEND_IF_ABSENT, b"envoy", UP, list(UP)),
        (APPEND_IF_ABSENT, b"envoy", (), [(b"date", b"<now>"), (b"server", b"envoy")]),
        (PASS_THROUGH, b"envoy", UP, list(UP)),
        (PASS_THROUGH, b"envoy", (), [(b"date", b"<now>")]),
    ],
)
def test_server_and_date(mode: int, name: bytes, given: tuple[Field, ...], expected: list[Field]) -> None:
    assert answer(*given, configure=server_header(mode, name)) == expected


@pytest.mark.parametrize(("given", "expected"), [([], b"me"), ([b"1.1 up"], b"1.1 up, me"), ([b"a", b"b"], b"a,b, me")])
def test_via_comes_last(given: list[bytes], expected: bytes) -> None:
    def configure(config: ConnectionManagerConfig) -> None:
        config.via = b"me"

    fields = answer(*((b"via", value) for value in given), configure=configure)
    assert [value for name, value in fields if name == b"via"] == [expected]


def test_the_request_id_in_the_response() -> None:
    def configure(config: ConnectionManagerConfig) -> None:
        config.always_set_request_id_in_response = True

    request = get("/", ("x-request-id", "mine"))
    assert (b"x-request-id", b"mine") in answer(request=request, configure=configure)
    fields = answer((b"x-request-id", b"up"), request=request, configure=configure)
    assert [value for name, value in fields if name == b"x-request-id"] == [b"mine"]
    assert (b"x-request-id", b"up") in answer((b"x-request-id", b"up"), request=request)


def test_hop_by_hop_fields_end_here() -> None:
    fields = answer(
        (b"connection", b"keep-alive, x-hop"),
        (b"x-hop", b"1"),
        (b"keep-alive", b"5"),
        (b"proxy-connection", b"x"),
        (b"upgrade", b"h2"),
        (b"x-keep", b"1"),
    )
    # RFC 9110 section 7.6.1: also what Connection names; Envoy lets x-hop pass.
    assert fields == [(b"x-keep", b"1"), (b"date", b"<now>"), (b"server", b"envoy")]


@pytest.mark.parametrize("name", [b"content-length", b"date", b"server"])
def test_an_upstream_cannot_have_our_own_fields_removed(name: bytes) -> None:
    names = [field for field, _ in answer((b"connection", name))]
    assert b"date" in names
    assert b"server" in names


def test_the_last_response_of_a_connection_says_so() -> None:
    made = Harness()
    config = made.config()
    config.max_requests_per_connection = 2
    connection = made.connect(config)
    assert b"connection: close" not in connection.send(get("/"))
    assert b"connection: close" in connection.send(get("/"))
