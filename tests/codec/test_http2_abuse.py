"""What a peer may cost: each attack meets a limit, is counted, and holds no memory behind it.

Limits and counters are Envoy's (`Http2ProtocolOptions`, the `http2.` statistics); memory is what the codec holds:
output, buffers, streams, and data that waits.
"""

from __future__ import annotations

import hpack
import pytest

from meshproxy.codec.http2.settings import Http2Settings
from tests.codec.http2_frames import Writer, raw_frame
from tests.codec.http2_playbook import Owner, act, client, server
from tests.codec.http2_recorder import sent_lines

GET = ":method=GET :scheme=http :authority=a :path=/"
POST = GET.replace("GET", "POST")
ROLES = ("server", "client")
MANY = 20_000


def feed(owner: Owner, *lines: str) -> list[str]:
    """What the codec sends when these frames come."""
    owner.connection.receive_data(b"".join(owner.peer.frames(line) for line in lines))
    return sent_lines(owner)


def opened(role: str, settings: Http2Settings | None = None) -> Owner:
    """A connection with one open stream."""
    if role == "server":
        owner: Owner = server(settings)
        feed(owner, f"HEADERS 1 {POST}")
    else:
        owner = client(settings)
        act(owner, f"!! request {POST}")
        feed(owner, "HEADERS 1 :status=200")
    sent_lines(owner)
    owner.log.clear()
    return owner


def held_bytes(owner: Owner) -> int:
    """What the codec keeps for its peer and its owner."""
    connection = owner.connection
    waiting = sum(stream.waiting_bytes for stream in connection.streams.values())
    return connection.output_bytes + connection.buffered_bytes + waiting + connection.decoder.table_size()


def died(owner: Owner, code: str = "ENHANCE_YOUR_CALM") -> None:
    """The connection ended for that, and nothing is left of it."""
    lines = sent_lines(owner)
    assert lines[-1].split()[2] == code, lines[-3:]
    assert owner.connection.should_close
    assert not owner.connection.streams
    assert owner.stats.streams_active == 0
    assert owner.stats.pending_send_bytes == 0
    # what it still sends costs nothing
    seen = len(owner.log)
    owner.connection.receive_data(owner.peer.frames("PING 12345678") * 1000)
    assert len(owner.log) == seen
    assert held_bytes(owner) <= 4096


# -- frames that want answers (`max_outbound_control_frames`, `outbound_control_flood`)


@pytest.mark.parametrize("line", ["PING 12345678", "SETTINGS", "SETTINGS 4=65535"])
@pytest.mark.parametrize("role", ROLES)
def test_a_flood_of_frames_that_want_answers(role: str, line: str) -> None:
    """The peer does not read them: the socket takes nothing."""
    owner = opened(role)
    frame = owner.peer.frames(line)
    owner.connection.receive_data(frame * 1000)
    assert not owner.connection.should_close
    most = owner.connection.output_bytes
    owner.connection.receive_data(frame * MANY)
    assert owner.connection.output_bytes <= most + 100
    assert owner.stats.outbound_control_flood == 1
    died(owner)


def test_answers_that_are_read_are_no_flood() -> None:
    owner = opened("server")
    for _ in range(50):
        assert len(feed(owner, *["PING 12345678"] * 900)) == 900
    assert owner.stats.outbound_control_flood == 0


def test_a_flood_of_refused_streams() -> None:
    """Each costs a RST_STREAM of ours."""
    owner = server(Http2Settings(max_concurrent_streams=1))
    feed(owner, f"HEADERS 1 {POST}")
    for stream_id in range(3, 2 * MANY, 2):
        owner.connection.receive_data(owner.peer.frames(f"HEADERS {stream_id} {GET} end"))
        if owner.connection.should_close:
            break
    assert owner.stats.outbound_control_flood == 1
    assert owner.stats.stream_refused_errors == 1001
    assert len(owner.encoders) == 1
    died(owner)


def test_a_flood_of_malformed_requests() -> None:
    owner = server(Http2Settings(stream_error_on_invalid_message=True))
    for stream_id in range(1, 2 * MANY, 2):
        owner.connection.receive_data(owner.peer.frames(f"HEADERS {stream_id} {GET} X=y end"))
        if owner.connection.should_close:
            break
    assert owner.stats.rx_messaging_error == 1001
    assert owner.stats.outbound_control_flood == 1
    died(owner)


@pytest.mark.parametrize("role", ROLES)
def test_the_limit_of_answers_is_the_configured_one(role: str) -> None:
    owner = opened(role, Http2Settings(max_outbound_control_frames=10))
    owner.connection.receive_data(owner.peer.frames("PING 12345678") * 10)
    assert not owner.connection.should_close
    owner.connection.receive_data(owner.peer.frames("PING 12345678"))
    assert owner.stats.outbound_control_flood == 1


# -- frames of ours that pile up (`max_outbound_frames`, `outbound_flood`)


def test_responses_that_nobody_reads() -> None:
    owner = server(Http2Settings(max_outbound_frames=100))
    for stream_id in range(1, 1000, 2):
        owner.connection.receive_data(owner.peer.frames(f"HEADERS {stream_id} {GET} end"))
        if owner.connection.should_close:
            break
        act(owner, f"!! send {stream_id} :status=200 end")
    assert owner.stats.outbound_flood == 1
    assert len(owner.encoders) <= 102
    died(owner)


# -- frames that say nothing


EMPTY = {
    "DATA": "RAW 0 0 1 ",
    "padded DATA": r"RAW 0 8 1 \x05\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("kind", EMPTY)
@pytest.mark.parametrize("role", ROLES)
def test_a_flood_of_empty_frames(role: str, kind: str) -> None:
    """`max_consecutive_inbound_frames_with_empty_payload`: one is allowed."""
    owner = opened(role)
    frame = owner.peer.frames(EMPTY[kind])
    owner.connection.receive_data(frame)
    assert not owner.connection.should_close
    assert owner.log == []
    owner.connection.receive_data(frame * MANY)
    assert owner.stats.inbound_empty_frames_flood == 1
    died(owner)


def test_empty_frames_among_others_are_no_flood() -> None:
    owner = opened("server")
    for _ in range(1000):
        feed(owner, "RAW 0 0 1 ", "DATA 1 x")
    assert owner.recorders[1].body == 1000
    assert feed(owner, "RAW 0 1 1 ") == []


@pytest.mark.parametrize("role", ROLES)
def test_a_flood_of_empty_continuations(role: str) -> None:
    owner = opened(role)
    owner.connection.receive_data(raw_frame(1, 1, 1, b"\x82"))
    owner.connection.receive_data(raw_frame(9, 0, 1, b"") * MANY)
    assert owner.stats.inbound_empty_frames_flood == 1
    died(owner)


def test_the_limit_of_empty_frames_is_the_configured_one() -> None:
    owner = opened("server", Http2Settings(max_empty_frames=10))
    owner.connection.receive_data(owner.peer.frames(EMPTY["DATA"]) * 10)
    assert not owner.connection.should_close
    owner.connection.receive_data(owner.peer.frames(EMPTY["DATA"]))
    assert owner.stats.inbound_empty_frames_flood == 1


@pytest.mark.parametrize("role", ROLES)
def test_a_flood_of_priorities(role: str) -> None:
    """`max_inbound_priority_frames_per_stream`, of all streams that were opened and the connection."""
    owner = opened(role)
    frame = owner.peer.frames("PRIORITY 1 on=0")
    owner.connection.receive_data(frame * 200)
    assert not owner.connection.should_close
    owner.connection.receive_data(frame * MANY)
    assert owner.stats.inbound_priority_frames_flood == 1
    died(owner)


@pytest.mark.parametrize("stream_id", [0, 1])
@pytest.mark.parametrize("role", ROLES)
def test_a_flood_of_window_updates(role: str, stream_id: int) -> None:
    """`max_inbound_window_update_frames_per_data_frame_sent`: 5 + 2 × (streams + that × DATA frames)."""
    owner = opened(role)
    frame = owner.peer.frames(f"WINDOW_UPDATE {stream_id} 1")
    owner.connection.receive_data(frame * 7)
    assert not owner.connection.should_close
    if role == "server":
        act(owner, "!! send 1 :status=200")
    act(owner, "!! data 1 x")
    sent_lines(owner)
    owner.connection.receive_data(frame * 20)
    assert not owner.connection.should_close
    owner.connection.receive_data(frame * MANY)
    assert owner.stats.inbound_window_update_frames_flood == 1
    died(owner)


# -- resets


def test_rapid_resets_leave_nothing_behind() -> None:
    """Requests that are reset at once: as many as come, the codec holds none of them."""
    owner = server()
    writer = Writer()
    for stream_id in range(1, 2 * MANY, 2):
        owner.connection.receive_data(
            writer.frames(f"HEADERS {stream_id} {GET} end") + writer.frames(f"RST_STREAM {stream_id} CANCEL")
        )
        if owner.connection.should_close:
            break
        owner.encoders.clear()
        owner.recorders.clear()
        owner.log.clear()
        assert not owner.connection.streams
    assert owner.stats.streams_active == 0
    assert owner.stats.rx_reset >= 1000
    assert held_bytes(owner) <= 4096


def test_our_resets_are_remembered_in_bounds() -> None:
    """Frames on streams that we have reset are ignored (section 5.1), yet not every one is remembered forever."""
    owner = server()
    for stream_id in range(1, 2 * 5000, 2):
        feed(owner, f"HEADERS {stream_id} {POST}")
        owner.encoders[stream_id].reset(1)
        sent_lines(owner)
    assert len(owner.connection.sent_resets) <= 1024
    for stream_id in (1, 5001, 9999):
        assert feed(owner, f"DATA {stream_id} x", f"HEADERS {stream_id} a=b end") == []
    assert not owner.connection.should_close


# -- field blocks


@pytest.mark.parametrize("role", ROLES)
def test_a_field_block_without_end(role: str) -> None:
    """CONTINUATION after CONTINUATION: not more is kept than a head may have, with a margin."""
    owner = opened(role)
    owner.connection.receive_data(raw_frame(1, 0, 1, b"\x00\x7f\xff\xff\xff\x00"))
    most = 0
    for _ in range(1000):
        owner.connection.receive_data(raw_frame(9, 0, 1, b"x" * 16_384))
        if owner.connection.should_close:
            break
        most = max(most, owner.connection.buffered_bytes)
    assert 60 * 1024 <= most <= 3 * 60 * 1024
    assert owner.connection.buffered_bytes == 0
    died(owner)


@pytest.mark.parametrize("role", ROLES)
def test_a_field_block_in_tiny_pieces(role: str) -> None:
    """Envoy takes 512 CONTINUATION frames for a block."""
    owner = opened(role)
    owner.connection.receive_data(raw_frame(1, 0, 1, b"\x00\x7f\xff\xff\xff\x00"))
    owner.connection.receive_data(raw_frame(9, 0, 1, b"x") * 512)
    assert not owner.connection.should_close
    owner.connection.receive_data(raw_frame(9, 0, 1, b"x"))
    died(owner)


def bomb(fields: int, size: int = 4000) -> bytes:
    """A block that puts one large field into the table and then names it again and again, a byte each."""
    encoder = hpack.Encoder()
    head: bytes = encoder.encode(
        [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")], huffman=False
    )
    large: bytes = hpack.Encoder().encode([(b"x", b"y" * size)], huffman=False)
    return head + large + b"\xbe" * fields


@pytest.mark.parametrize("fields", [50, 12_000])
def test_a_bomb(fields: int) -> None:
    """16 KB on the wire, 48 MB of fields: over `max_request_headers_kb`, the stream ends, and the fields are not
    made."""
    owner = server()
    owner.connection.receive_data(raw_frame(1, 5, 1, bomb(fields)))
    assert owner.stats.header_list_size_too_large + owner.stats.header_overflow == 1
    assert [line for line in owner.log if line.startswith("1 headers")] == []
    assert sum(len(value) for _, value in owner.connection.decoder.fields) <= 60 * 1024
    assert len(owner.connection.decoder.fields) <= 105
    assert held_bytes(owner) <= 2 * 4096
    assert not owner.connection.streams
    # the table is what it was
    owner.connection.receive_data(raw_frame(1, 5, 3, b"\x82\x86\x84\xbf\xbe"))
    assert owner.log[-1].startswith("3 headers ")
    assert owner.log[-1].endswith("x=" + "y" * 4000 + " end")


@pytest.mark.parametrize("role", ROLES)
def test_heads_over_the_limits(role: str) -> None:
    """`max_headers_count` and `max_request_headers_kb`: the stream ends, the others go on."""
    settings = Http2Settings(max_headers_count=10, max_headers_bytes=2000)
    for fields, counter in (
        (" ".join(f"x-{n}=y" for n in range(11)), "header_overflow"),
        ("x=" + "y" * 2000, "header_list_size_too_large"),
    ):
        owner: Owner = server(settings) if role == "server" else client(settings)
        if role == "server":
            lines = feed(owner, f"HEADERS 1 {GET} {fields} end")
        else:
            act(owner, f"!! request {GET} end")
            sent_lines(owner)
            lines = feed(owner, f"HEADERS 1 :status=200 {fields} end")
        assert [line.rpartition(" ")[0] for line in lines] == ["RST_STREAM 1"]
        assert getattr(owner.stats, counter) == 1
        assert not owner.connection.streams
        assert [line for line in owner.log if "headers" in line.split()] == []
        assert feed(owner, "PING 12345678") == ["PING 12345678 ack"]


@pytest.mark.parametrize("role", ROLES)
def test_heads_at_the_limits(role: str) -> None:
    settings = Http2Settings(max_headers_count=10, max_headers_bytes=2000)
    owner: Owner = server(settings) if role == "server" else client(settings)
    pseudo = 4 if role == "server" else 1
    fields = " ".join(f"x-{n}=y" for n in range(pseudo, 10))
    if role == "server":
        assert feed(owner, f"HEADERS 1 {GET} {fields} end") == []
    else:
        act(owner, f"!! request {GET} end")
        sent_lines(owner)
        assert feed(owner, f"HEADERS 1 :status=200 {fields} end") == []
    assert "x-9=y" in next(line for line in owner.log if line.startswith("1 headers")).split()


@pytest.mark.parametrize("role", ROLES)
def test_trailers_over_the_limits(role: str) -> None:
    owner = opened(role, Http2Settings(max_headers_bytes=2000))
    lines = feed(owner, "HEADERS 1 x=" + "y" * 2000 + " end")
    assert [line.rpartition(" ")[0] for line in lines] == ["RST_STREAM 1"]
    assert not owner.connection.streams


def test_a_table_of_the_peer_s_choice_has_a_bound() -> None:
    """SETTINGS_HEADER_TABLE_SIZE of a peer is no order to keep as much."""
    owner = opened("server")
    assert feed(owner, "SETTINGS 1=4294967295") == ["SETTINGS ack"]
    act(owner, "!! send 1 :status=200")
    for n in range(2000):
        stream_id = 3 + 2 * n
        feed(owner, f"HEADERS {stream_id} {GET} end")
        act(owner, f"!! send {stream_id} :status=200 x-{n}={'v' * 200} end")
        sent_lines(owner)
    assert owner.reader.decoder.header_table._current_size <= 4096


def test_settings_by_the_thousand() -> None:
    """The last value counts; a frame full of windows for a connection full of streams is one change."""
    owner = server()
    for stream_id in range(1, 2001, 2):
        owner.connection.receive_data(owner.peer.frames(f"HEADERS {stream_id} {GET} end"))
        act(owner, f"!! send {stream_id} :status=200")
    sent_lines(owner)
    values = b"".join(b"\0\x04" + (1000 + n % 2).to_bytes(4, "big") for n in range(2730))
    owner.connection.receive_data(raw_frame(4, 0, 0, values))
    assert sent_lines(owner) == ["SETTINGS ack"]
    act(owner, "!! data 1 len=2000")
    assert sent_lines(owner) == ["DATA 1 len=1001"]


# -- streams that stay


def test_streams_without_end_have_a_limit() -> None:
    """Half-open streams: `max_concurrent_streams` of them, and no data of theirs."""
    owner = server(Http2Settings(max_concurrent_streams=100))
    for stream_id in range(1, 1001, 2):
        feed(owner, f"HEADERS {stream_id} {POST}")
    assert len(owner.connection.streams) == owner.stats.streams_active == 100
    assert owner.stats.stream_refused_errors == 400
    assert held_bytes(owner) <= 4096


def test_zero_windows_hold_no_more_than_the_watermarks() -> None:
    """A peer that never opens its windows: each stream's owner is told to stop, and what waits is dropped with it."""
    owner = server(Http2Settings(buffer_limit_bytes=10_000), "SETTINGS 4=0")
    for stream_id in range(1, 201, 2):
        feed(owner, f"HEADERS {stream_id} {GET} end")
        act(owner, f"!! send {stream_id} :status=200")
        while f"{stream_id} above" not in owner.log:
            act(owner, f"!! data {stream_id} len=1000")
    assert held_bytes(owner) == owner.stats.pending_send_bytes + owner.connection.output_bytes + (
        owner.connection.decoder.table_size()
    )
    assert owner.stats.pending_send_bytes == 100 * 11_000
    for stream_id in range(1, 201, 2):
        owner.connection.receive_data(owner.peer.frames(f"RST_STREAM {stream_id} CANCEL"))
    assert owner.stats.pending_send_bytes == 0
    sent_lines(owner)
    assert held_bytes(owner) <= 4096


def test_the_gauges_of_a_connection_that_is_gone() -> None:
    owner = server(peer="SETTINGS 4=0")
    for stream_id in (1, 3, 5):
        feed(owner, f"HEADERS {stream_id} {GET} end")
        act(owner, f"!! send {stream_id} :status=200")
        act(owner, f"!! data {stream_id} len=1000")
    owner.connection.close_streams(6)
    assert owner.stats.streams_active == owner.stats.pending_send_bytes == 0
    assert [line for line in owner.log if line.startswith("5 reset")] == ["5 reset termination"]


def test_the_last_stream_identifier() -> None:
    """Section 5.1.1: behind it a client opens no stream, and the server keeps its count."""
    owner = server()
    assert feed(owner, f"HEADERS 2147483647 {GET} end") == []
    assert owner.log[-1].startswith("2147483647 headers")
    assert feed(owner, f"HEADERS 1 {GET} end")[-1].startswith("GOAWAY 2147483647 ")


def test_a_frame_that_never_ends() -> None:
    """Only as much is kept as a frame may have."""
    owner = opened("server")
    owner.connection.receive_data(raw_frame(0, 0, 1, b"x" * 16_384)[:-1])
    assert owner.connection.buffered_bytes == 9 + 16_383
    assert owner.recorders[1].body == 0
    owner.connection.receive_data(b"xy")
    assert owner.recorders[1].body == 16_384
    assert owner.connection.buffered_bytes == 1


def test_a_stream_that_nobody_reads_keeps_no_more_than_its_window() -> None:
    settings = Http2Settings(stream_window_bytes=65_535, connection_window_bytes=1_000_000)
    owner = opened("server", settings)
    owner.encoders[1].read_disable(True)
    for _ in range(10):
        feed(owner, "DATA 1 len=16384")
    assert not owner.connection.streams  # one byte too many has ended it
    assert owner.recorders[1].body == 0
    assert held_bytes(owner) <= 4096
