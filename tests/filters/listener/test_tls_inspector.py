"""tls_inspector on real ClientHellos and on built ones. Odd and malformed ones, against the real Envoy, stand in
tests/differential/test_filter_chains.py.
"""

from __future__ import annotations

import random
import shutil
import socket
import ssl
import subprocess

import hypothesis
import pytest
from hypothesis import strategies as st

from meshproxy.filters.listener.tls_inspector import TlsInspectorStats
from meshproxy.filters.listener_filter import CLOSE, CONTINUE, NEEDS_DATA
from meshproxy.tls.fingerprint import ja3, ja4
from meshproxy.tls.inspector import ClientHelloReader, parse_client_hello
from tests.filters.listener.harness import Filters, assert_any_split_is_the_same, mutations, run
from tests.filters.listener.hello import (
    ALPN,
    POINT_FORMATS,
    SIGNATURE_ALGORITHMS,
    SUPPORTED_GROUPS,
    SUPPORTED_VERSIONS,
    alpn,
    client_hello,
    numbers,
    plain_context,
    real_hello,
    records,
    sni,
    vector,
    versions,
)

PLAIN = ("tls_inspector", "")
FINGERPRINTS = ("tls_inspector", "{enable_ja3_fingerprinting: true, enable_ja4_fingerprinting: true}")
STRICT = ("tls_inspector", "{close_connection_on_client_hello_parsing_errors: true}")
NAMESPACE = "envoy.filters.listener.tls_inspector"


def test_a_real_client_hello_in_any_split() -> None:
    data = real_hello("Www.Example.com", "h2", "http/1.1")
    verdict, accepted, rest = assert_any_split_is_the_same(FINGERPRINTS, data)
    assert verdict == CONTINUE
    assert rest == data
    assert accepted.transport_protocol == "tls"
    assert accepted.server_name == "www.example.com"
    assert accepted.application_protocols == ["h2", "http/1.1"]
    assert accepted.ja4.startswith("t13d")
    assert accepted.dynamic_metadata == {}


@pytest.mark.parametrize(
    "context",
    [
        plain_context(maximum_version=ssl.TLSVersion.TLSv1_2),
        plain_context(minimum_version=ssl.TLSVersion.TLSv1_3),
        plain_context(options=ssl.OP_ALL | ssl.OP_NO_TICKET),
    ],
)
def test_real_client_hellos_of_each_version(context: ssl.SSLContext) -> None:
    verdict, accepted, _ = run(Filters(PLAIN).filters, real_hello("a.b", context=context))
    assert (verdict, accepted.transport_protocol, accepted.server_name) == (CONTINUE, "tls", "a.b")
    assert accepted.application_protocols == []


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
@pytest.mark.parametrize("option", ["-tls1_3", "-tls1_2"])
def test_what_openssl_sends(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        target = f"127.0.0.1:{server.getsockname()[1]}"
        command = ["openssl", "s_client", "-connect", target, "-servername", "x.test", "-alpn", "foo,bar", option]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as client:
            try:
                with server.accept()[0] as sock:
                    filters = Filters(FINGERPRINTS)
                    data = sock.recv(4096)
                    while run(filters.filters, data)[0] == NEEDS_DATA:
                        data += sock.recv(4096)
            finally:
                client.kill()
    _, accepted, _ = run(filters.filters, data)
    assert (accepted.server_name, accepted.application_protocols) == ("x.test", ["foo", "bar"])
    assert accepted.ja4.startswith("t13d" if option == "-tls1_3" else "t12d")


def test_what_is_counted() -> None:
    filters = Filters(PLAIN)
    run(filters.filters, real_hello("a.b", "h2"))
    run(filters.filters, real_hello())
    run(filters.filters, b"GET / HTTP/1.1\r\n")
    assert filters.counted() == {
        "tls_inspector.tls_found": 2,
        "tls_inspector.sni_found": 1,
        "tls_inspector.sni_not_found": 1,
        "tls_inspector.alpn_found": 1,
        "tls_inspector.alpn_not_found": 1,
        "tls_inspector.tls_not_found": 1,
    }


def test_how_many_bytes_it_needed() -> None:
    """Envoy's histogram: a request line is given up after five bytes, a ClientHello read to the end of its record."""
    filters = Filters(PLAIN)
    stats = filters.context.scope("tls_inspector.", TlsInspectorStats)
    run(filters.filters, b"GET / HTTP/1.1\r\n")
    assert stats.bytes_processed.sum == 5
    data = records(client_hello(), 10)
    run(filters.filters, data + b"more")
    assert stats.bytes_processed.sum == 5 + len(data)


@pytest.mark.parametrize(
    "data",
    [b"h", b"\0", b"SSH-2.0-x\r\n", b"\x16G", b"\x16\x02", b"\x80\x2e\x01\x03\x01", b"\x17\x03\x03", b"220 ready\r\n"],
)
def test_what_cannot_be_tls_goes_on_at_once(data: bytes) -> None:
    filters = Filters(PLAIN)
    verdict, accepted, rest = run(filters.filters, data)
    assert (verdict, rest) == (CONTINUE, data)
    assert accepted.transport_protocol == ""
    assert accepted.dynamic_metadata == {NAMESPACE: {"failure_reason": "ClientHelloNotDetected"}}
    assert accepted.transport_failure_reason.startswith("TLS_error|error:1000")
    assert filters.counted() == {"tls_inspector.tls_not_found": 1}


@pytest.mark.parametrize("data", [b"\x16", b"\x16\x03", b"\x16\x03\x01\x00\x05\x01\x00", b"G", b"GET", b"CONN"])
def test_what_may_still_become_something_else_waits(data: bytes) -> None:
    assert run(Filters(PLAIN).filters, data)[0] == NEEDS_DATA


@pytest.mark.parametrize("data", [b"hello", b"GET / HTTP/1.1\r\n", records(client_hello(trailing=b"x"))])
def test_malformed_ones_close_where_that_is_asked_for(data: bytes) -> None:
    filters = Filters(STRICT)
    assert run(filters.filters, data)[0] == CLOSE
    assert filters.counted() == {"tls_inspector.tls_not_found": 1}


@pytest.mark.parametrize("limit", [256, 300])
def test_the_limit(limit: int) -> None:
    """It may be reached, but not with a ClientHello that is not whole."""
    filters = Filters(("tls_inspector", f"{{max_client_hello_size: {limit}}}"))
    overhead = len(records(client_hello((999, b""))))
    fits = records(client_hello((999, bytes(limit - overhead))))
    assert len(fits) == limit
    assert run(filters.filters, fits)[0] == CONTINUE
    larger = records(client_hello((999, bytes(limit - overhead + 1))))
    for pieces in ([larger], [larger[:limit], larger[limit:]], [larger[:-1]]):
        verdict, accepted, _ = run(filters.filters, *pieces)
        assert verdict == CLOSE
        assert accepted.dynamic_metadata == {NAMESPACE: {"failure_reason": "ClientHelloTooLarge"}}
    assert filters.counted()["tls_inspector.client_hello_too_large"] == 3


def test_records_of_one_byte_are_held_once_and_up_to_the_limit() -> None:
    data = b"".join(b"\x16\x03\x01\x00\x01" + bytes([byte]) for byte in b"\x01\x00\x3f\xff" + bytes(3_000))
    reader = ClientHelloReader()
    reader.receive(data)
    assert (reader.hello, reader.failure, reader.processed) == (None, "", len(data))
    assert run(Filters(PLAIN).filters, data[: 16 * 1024 - 1])[0] == NEEDS_DATA
    assert run(Filters(PLAIN).filters, data[: 16 * 1024])[0] == CLOSE


FULL = records(
    client_hello(
        sni(b"a.example"),
        alpn(b"h2", b"http/1.1"),
        (SUPPORTED_GROUPS, numbers(29, 23)),
        (POINT_FORMATS, vector(b"\0", 1)),
        (SIGNATURE_ALGORITHMS, numbers(0x0403)),
        versions(0x0304),
    ),
    20,
)


def test_mutated_input_never_raises() -> None:
    filters = Filters(FINGERPRINTS)
    for data in mutations(FULL):
        verdict, accepted, rest = run(filters.filters, data)
        assert rest == data
        assert (verdict == CONTINUE and accepted.transport_protocol == "tls") or accepted.application_protocols == []


@hypothesis.given(st.binary(max_size=400), st.sampled_from([b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x80\x01\x00\x00"]))
def test_any_input_is_answered_alike_however_it_is_cut(data: bytes, start: bytes) -> None:
    data = start + data
    if data:
        cut = random.Random(len(data)).randrange(len(data))
        filters = Filters(FINGERPRINTS).filters
        assert run(filters, data)[0] == run(filters, data[:cut], data[cut:])[0]


def test_ja3_of_its_authors_example() -> None:
    """769,47-53-5-10-49161-49162-49171-49172-50-56-19-4,0-10-11,23-24-25,0"""
    hello = client_hello(
        sni(b"a.b"),
        (SUPPORTED_GROUPS, numbers(23, 24, 25)),
        (POINT_FORMATS, vector(b"\0", 1)),
        version=769,
        ciphers=(47, 53, 5, 10, 49161, 49162, 49171, 49172, 50, 56, 19, 4),
    )
    parsed = parse_client_hello(hello[4:])
    assert parsed is not None
    assert ja3(parsed) == "ada70206e40642a3e4461f35503241d5"


def test_ja4_of_its_authors_example() -> None:
    """t13d1516h2_8daaf6152771_e5627efa2ab1, from the technical details of JA4."""
    known = {
        ALPN: alpn(b"h2", b"http/1.1")[1],
        SUPPORTED_VERSIONS: versions(0x2A2A, 0x0304, 0x0303)[1],
        SIGNATURE_ALGORITHMS: numbers(0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601),
        0: sni(b"a.b")[1],
    }
    offered = (0x1A1A, 0x1B, 0, 0x33, 0x10, 0x4469, 0x17, 0x2D, 0x0D, 5, 0x23, 0x12, 0x2B, 0xFF01, 0x0B, 0x0A, 0x15)
    ciphers = "3a3a 1301 1302 1303 c02b c02f c02c c030 cca9 cca8 c013 c014 009c 009d 002f 0035"
    hello = client_hello(
        *((kind, known.get(kind, b"")) for kind in offered), ciphers=[int(each, 16) for each in ciphers.split()]
    )
    parsed = parse_client_hello(hello[4:])
    assert parsed is not None
    assert ja4(parsed) == "t13d1516h2_8daaf6152771_e5627efa2ab1"


def test_fingerprints_are_not_made_unasked() -> None:
    _, accepted, _ = run(Filters(PLAIN).filters, real_hello("a.b"))
    assert (accepted.ja3, accepted.ja4) == ("", "")
