"""The transport socket: bytes through, half close, truncation, bad input, renegotiation."""

from __future__ import annotations

import os
import ssl
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.tls.context import TlsContext
from meshproxy.tls.engine import TlsEvents, TlsTransportSocket
from meshproxy.tls.verify import CONNECTION_ERROR
from tests.tls.harness import (
    BOTH,
    V12,
    V13,
    PythonPeer,
    Socket,
    client,
    converse,
    pair,
    python_client,
    python_server,
    server,
)
from tests.tls.relay import RelayedServer

FAILED = "TLS_error:|{}:SSL routines:OPENSSL_internal:{}:TLS_error_end"


@pytest.mark.parametrize("version", BOTH)
def test_bytes_go_both_ways(version: ssl.TLSVersion) -> None:
    one, other = pair(server(), client(max_version=version, min_version=version), "a.test")
    assert (one.established, other.established) == (True, True)
    other.send(b"ping")
    converse(one, other)
    one.send(b"pong")
    one.send(b"!")
    converse(one, other)
    assert (one.text, other.text) == (b"ping", b"pong!")
    assert one.facts.version == other.facts.version == ("TLSv1.2" if version == V12 else "TLSv1.3")


@pytest.mark.parametrize("version", BOTH)
def test_with_pythons_own_client_and_server(version: ssl.TLSVersion) -> None:
    ours, peer = Socket(server()), PythonPeer(python_client(version=version), name="a.test")
    converse(ours, peer)
    peer.tls.write(b"x" * 100_000)
    ours.send(b"y" * 100_000)
    converse(ours, peer)
    assert (len(ours.text), len(peer.text), peer.error) == (100_000, 100_000, None)

    ours, peer = Socket(client(), "a.test"), PythonPeer(python_server(version=version), server_side=True)
    converse(ours, peer)
    ours.send(b"x" * 100_000)
    peer.tls.write(b"y" * 100_000)
    converse(ours, peer)
    assert (len(ours.text), len(peer.text), peer.error) == (100_000, 100_000, None)


@pytest.mark.parametrize("version", BOTH)
def test_a_megabyte_in_pieces_of_any_size(version: ssl.TLSVersion) -> None:
    one, other = pair(server(), client(max_version=version))
    data = os.urandom(1 << 20)
    other.send(data)
    out = other.take_output()
    for begin in range(0, len(out), 7001):
        one.take(out[begin : begin + 7001])
    assert one.text == data


@given(st.lists(st.integers(1, 700), min_size=1, max_size=30))
def test_any_split_of_the_handshake_and_what_follows(sizes: list[int]) -> None:
    one, other = Socket(SERVER), Socket(CLIENT, "a.test")
    first = other.take_output()
    feed(one, first, sizes)
    feed(other, one.take_output(), sizes)
    other.send(b"hello")
    other.shut()
    feed(one, other.take_output(), sizes)
    assert (one.established, one.text, one.at_end, one.failure) == (True, b"hello", True, "")


def feed(sock: Socket, data: bytes, sizes: list[int]) -> None:
    position = 0
    turn = 0
    while position < len(data):
        size = sizes[turn % len(sizes)]
        sock.take(data[position : position + size])
        position += size
        turn += 1


@pytest.mark.parametrize("version", BOTH)
def test_half_close_either_way(version: ssl.TLSVersion) -> None:
    one, other = pair(server(), client(max_version=version))
    other.send(b"request")
    other.shut()
    converse(one, other)
    assert (one.text, one.at_end, other.at_end) == (b"request", True, False)
    one.send(b"a late answer")
    converse(one, other)
    assert other.text == b"a late answer"
    one.shut()
    converse(one, other)
    assert (other.at_end, one.failure, other.failure) == (True, "", "")
    assert (one.truncated, other.truncated) == (False, False)


@pytest.mark.parametrize("version", BOTH)
def test_half_close_with_pythons_own(version: ssl.TLSVersion) -> None:
    ours, peer = Socket(server()), PythonPeer(python_client(version=version))
    converse(ours, peer)
    peer.tls.write(b"request")
    peer.attempt(peer.tls.unwrap)
    ours.take(peer.take_output())
    assert (ours.text, ours.at_end) == (b"request", True)
    ours.send(b"answer")
    ours.shut()
    converse(ours, peer)
    assert (peer.text, peer.at_end) == (b"answer", True)


def test_nothing_is_sent_after_the_end_of_output() -> None:
    one, _ = pair(server(), client())
    one.shut()
    one.take_output()
    one.send(b"too late")
    one.shut()
    assert one.take_output() == b""


def test_a_stream_that_ends_without_close_notify_is_told_from_one_that_does() -> None:
    one, other = pair(server(), client())
    other.send(b"cut")
    one.take(other.take_output()[:-3])
    one.receive_eof()
    assert (one.at_end, one.truncated, one.text) == (True, True, b"")


@pytest.mark.parametrize(
    ("data", "reason", "code"),
    [
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", "HTTP_REQUEST", 268435612),
        (b"\x00garbage\r\n\r\n", "WRONG_VERSION_NUMBER", 268435703),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "WRONG_VERSION_NUMBER", 268435703),
    ],
)
def test_what_is_no_tls_fails_with_envoys_words(data: bytes, reason: str, code: int) -> None:
    """The texts are those of Envoy 1.40's %DOWNSTREAM_TRANSPORT_FAILURE_REASON%."""
    one = Socket(server())
    one.take(data)
    assert one.failure == FAILED.format(code, reason)
    assert one.told.failures == [CONNECTION_ERROR]
    one.take(b"more")
    assert one.received == []


def test_a_record_that_is_too_long_fails() -> None:
    for established in (False, True):
        one = pair(server(), client())[0] if established else Socket(server())
        one.take(b"\x17\x03\x03\xff\xff" if established else b"\x16\x03\x01\xff\xff")
        assert one.failure


def test_a_record_that_was_changed_fails_with_an_alert() -> None:
    for version in BOTH:
        one, other = pair(server(), client(max_version=version))
        other.send(b"true")
        record = bytearray(other.take_output())
        record[-1] ^= 1
        one.take(bytes(record))
        assert "DECRYPTION_FAILED_OR_BAD_RECORD_MAC" in one.failure
        assert one.received == []
        other.take(one.take_output())
        assert "ALERT_BAD_RECORD_MAC" in other.failure


def test_a_truncated_hello_waits_and_ends_without_a_word() -> None:
    one = Socket(server())
    one.take(bytes.fromhex("1603010200010001fc"))
    one.receive_eof()
    assert (one.failure, one.established, one.take_output()) == ("", False, b"")


@given(st.binary(max_size=200), st.integers(0, 600), st.booleans())
def test_mutated_input_never_raises(noise: bytes, at: int, is_established: bool) -> None:
    one, other = Socket(SERVER), Socket(CLIENT)
    if is_established:
        converse(one, other)
        other.send(b"x" * 500)
    data = other.take_output()
    one.take(data[:at] + noise + data[at:])
    one.send(b"answer")
    one.shut()
    one.receive_eof()
    one.take_output()


def test_no_common_version_or_cipher_is_an_alert_for_the_peer() -> None:
    one, other = pair(server(min_version=V13), client(max_version=V12))
    assert one.failure == FAILED.format(268435696, "UNSUPPORTED_PROTOCOL")
    assert "ALERT_PROTOCOL_VERSION" in other.failure
    one, other = pair(server(max_version=V12), client(max_version=V12, ciphers=("AES128-SHA",)))
    assert one.failure == FAILED.format(268435640, "NO_SHARED_CIPHER")
    assert "HANDSHAKE_FAILURE" in other.failure


def test_renegotiation_is_refused_and_ends_the_connection() -> None:
    """Python cannot ask for it; `openssl s_client` does, with an R on a line of its own, over a socket."""
    with RelayedServer(server(max_version=V12)) as relay:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{relay.port}", "-tls1_2", "-legacy_renegotiation"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        relay.wait_established()
        process.stdin.write(b"R\n")
        process.stdin.flush()
        process.communicate(timeout=10)
        relay.join()
    assert "NO_RENEGOTIATION" in relay.socket.failure
    assert relay.socket.received == []


def test_nothing_is_kept_of_what_has_gone_through() -> None:
    one, other = pair(server(), client())
    other.send(b"z" * (1 << 20))
    one.take(other.take_output())
    assert one.take_output() == b""
    assert (one._held, one._out, one._incoming.pending, one._outgoing.pending) == (b"", [], 0, 0)


def test_a_name_that_cannot_be_sent_is_a_failure_of_the_connection() -> None:
    sock = Socket(client(), "a..b")
    assert "INVALID_SERVERNAME" in sock.failure
    assert sock.told.failures == [CONNECTION_ERROR]


def test_a_server_waits_for_its_turn_only_until_it_is_established() -> None:
    assert TlsTransportSocket(server(), TlsEvents()).costly_handshake
    one, other = pair(server(), client())
    assert not one.costly_handshake
    assert not other.costly_handshake


@pytest.mark.parametrize("is_in_a_hurry", [True, False])
def test_tickets_leave_with_the_answer_to_a_request_that_came_right_behind_the_handshake(is_in_a_hurry: bool) -> None:
    ours, peer = Socket(server()), PythonPeer(python_client(version=V13), name="a.test")
    ours.take(peer.take_output())
    peer.take(ours.take_output())
    if is_in_a_hurry:
        peer.tls.write(b"ping")
    ours.take(peer.take_output())
    at_once = ours.take_output()
    assert (ours.established, at_once == b"") == (True, is_in_a_hurry)
    ours.send(b"pong")
    peer.take(at_once + ours.take_output())
    assert peer.text == b"pong"
    assert peer.tls.session is not None
    assert peer.tls.session.has_ticket


def test_tickets_leave_with_the_end_where_there_is_no_answer() -> None:
    ours, peer = Socket(server()), PythonPeer(python_client(version=V13), name="a.test")
    ours.take(peer.take_output())
    peer.take(ours.take_output())
    peer.tls.write(b"ping")
    ours.take(peer.take_output())
    ours.shut()
    peer.take(ours.take_output())
    assert peer.at_end
    assert peer.tls.session is not None
    assert peer.tls.session.has_ticket


SERVER: TlsContext = server()
CLIENT: TlsContext = client(max_sessions=0)
