"""Flow control: RFC 9113 sections 5.2 and 6.9, in both directions, for connections and streams."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest

from meshproxy.codec.http2.constants import DATA
from meshproxy.codec.http2.settings import Http2Settings
from tests.codec.http2_frames import raw_frame
from tests.codec.http2_playbook import Owner, act, client, play, server
from tests.codec.http2_recorder import output, sent_lines

GET = ":method=GET :scheme=http :authority=a :path=/"
POST = GET.replace("GET", "POST")
SMALL = Http2Settings(stream_window_bytes=65_535, connection_window_bytes=65_535)
ROLES = ("server", "client")


def feed(owner: Owner, *lines: str) -> list[str]:
    """What the codec sends when these frames come."""
    owner.connection.receive_data(b"".join(owner.peer.frames(line) for line in lines))
    return sent_lines(owner)


def sender(role: str = "server", streams: int = 1, settings: Http2Settings | None = None, peer: str = "") -> Owner:
    """One that is about to send data on the streams 1, 3, …"""
    if role == "server":
        owner: Owner = server(settings, f"SETTINGS {peer}".strip())
    else:
        owner = client(settings, f"SETTINGS {peer}".strip())
    for stream_id in range(1, 2 * streams, 2):
        if role == "server":
            feed(owner, f"HEADERS {stream_id} {GET} end")
            act(owner, f"!! send {stream_id} :status=200")
        else:
            act(owner, f"!! request {POST}")
    sent_lines(owner)
    owner.log.clear()
    return owner


def receiver(role: str, settings: Http2Settings | None = None, streams: int = 1) -> Owner:
    """One that is about to receive data on the streams 1, 3, …"""
    owner: Owner = server(settings) if role == "server" else client(settings)
    for stream_id in range(1, 2 * streams, 2):
        if role == "server":
            feed(owner, f"HEADERS {stream_id} {POST}")
        else:
            act(owner, f"!! request {GET} end")
            feed(owner, f"HEADERS {stream_id} :status=200")
    sent_lines(owner)
    owner.log.clear()
    return owner


def data_of(lines: list[str]) -> list[tuple[int, int]]:
    """(stream, bytes) of the DATA frames among the lines."""
    found = []
    for line in lines:
        kind, stream, *rest = line.split(" ")
        if kind == "DATA":
            text = rest[0]
            found.append((int(stream), int(text[4:]) if text.startswith("len=") else len(text)))
    return found


# -- what we send


@pytest.mark.parametrize("role", ROLES)
def test_no_more_is_sent_than_the_windows_take(role: str) -> None:
    """Section 6.9.1: the smaller of both counts."""
    owner = sender(role)
    owner.encoders[1].send_data(b"x" * 100_000, True)
    assert sum(size for _, size in data_of(sent_lines(owner))) == 65_535
    assert feed(owner, "WINDOW_UPDATE 1 1000") == []
    assert data_of(feed(owner, "WINDOW_UPDATE 0 10")) == [(1, 10)]
    assert data_of(feed(owner, "WINDOW_UPDATE 0 5000")) == [(1, 990)]
    rest = feed(owner, "WINDOW_UPDATE 0 100000", "WINDOW_UPDATE 1 100000")
    assert sum(size for _, size in data_of(rest)) == 100_000 - 65_535 - 1000
    assert rest[-1].endswith(" end")


@pytest.mark.parametrize("role", ROLES)
def test_windows_begin_with_65535_bytes(role: str) -> None:
    """Sections 5.2.1 and 6.9.2: until SETTINGS say otherwise, and of a connection in any case."""
    owner = sender(role, peer="4=1000000")
    owner.encoders[1].send_data(b"x" * 100_000, False)
    assert sum(size for _, size in data_of(sent_lines(owner))) == 65_535


@pytest.mark.parametrize("role", ROLES)
def test_a_change_of_the_initial_window_changes_open_streams(role: str) -> None:
    """Section 6.9.2: by the difference; a window may become negative, and nothing is sent until it is positive."""
    owner = sender(role)
    owner.encoders[1].send_data(b"x" * 60_000, False)
    sent_lines(owner)
    feed(owner, "WINDOW_UPDATE 0 1000000")
    assert feed(owner, "SETTINGS 4=16384") == ["SETTINGS ack"]  # 16384 - 60000 = -43616
    owner.encoders[1].send_data(b"y" * 100, False)
    assert sent_lines(owner) == []
    assert feed(owner, "WINDOW_UPDATE 1 43616") == []
    assert data_of(feed(owner, "WINDOW_UPDATE 1 1")) == [(1, 1)]
    assert data_of(feed(owner, "SETTINGS 4=16400")) == [(1, 16)]
    assert data_of(feed(owner, "SETTINGS 4=20000")) == [(1, 83)]


def test_a_larger_initial_window_lets_waiting_streams_go() -> None:
    owner = sender(streams=2, peer="4=0")
    for stream_id in (1, 3):
        owner.encoders[stream_id].send_data(b"x" * 10, True)
    assert sent_lines(owner) == []
    assert data_of(feed(owner, "SETTINGS 4=65535")) == [(1, 10), (3, 10)]


def test_the_connection_s_window_is_not_changed_by_settings() -> None:
    """Section 6.9.2."""
    owner = sender()
    owner.encoders[1].send_data(b"x" * 70_000, False)
    sent_lines(owner)
    assert feed(owner, "WINDOW_UPDATE 1 100000", "SETTINGS 4=1000000") == ["SETTINGS ack"]


@pytest.mark.parametrize("role", ROLES)
def test_the_end_needs_no_window(role: str) -> None:
    """Section 6.9.1: an empty frame with END_STREAM may be sent with no window left."""
    owner = sender(role)
    owner.encoders[1].send_data(b"x" * 65_535, False)
    sent_lines(owner)
    owner.encoders[1].send_data(b"", True)
    assert sent_lines(owner) == ["DATA 1  end"]


@pytest.mark.parametrize("role", ROLES)
def test_the_end_waits_for_a_negative_window(role: str) -> None:
    """Section 6.9.2: no flow-controlled frame, not even an empty one: strict peers mind."""
    owner = sender(role)
    owner.encoders[1].send_data(b"x" * 1000, False)
    feed(owner, "SETTINGS 4=990")
    owner.encoders[1].send_data(b"", True)
    assert sent_lines(owner) == []
    assert feed(owner, "WINDOW_UPDATE 1 9") == []
    assert feed(owner, "WINDOW_UPDATE 1 1") == ["DATA 1  end"]
    assert owner.stats.pending_send_bytes == 0


@pytest.mark.parametrize("role", ROLES)
def test_the_end_waits_behind_the_data(role: str) -> None:
    owner = sender(role)
    owner.encoders[1].send_data(b"x" * 65_540, False)
    owner.encoders[1].send_data(b"", True)
    assert not any(line.endswith("end") for line in sent_lines(owner))
    assert feed(owner, "WINDOW_UPDATE 0 100", "WINDOW_UPDATE 1 100") == ["DATA 1 xxxxx end"]


def test_trailers_wait_behind_the_data_and_need_no_window() -> None:
    owner = sender()
    owner.encoders[1].send_data(b"x" * 65_540, False)
    act(owner, "!! trailers 1 a=b")
    assert not any(line.startswith("HEADERS") for line in sent_lines(owner))
    feed(owner, "WINDOW_UPDATE 0 100")
    assert feed(owner, "WINDOW_UPDATE 1 5") == ["DATA 1 xxxxx", "HEADERS 1 a=b end"]
    owner = sender()
    owner.encoders[1].send_data(b"x" * 65_535, False)
    sent_lines(owner)
    act(owner, "!! trailers 1 a=b")
    assert sent_lines(owner) == ["HEADERS 1 a=b end"]


def test_other_frames_need_no_window() -> None:
    """Section 5.2.1: only DATA is flow-controlled."""
    owner = sender()
    owner.encoders[1].send_data(b"x" * 70_000, False)
    sent_lines(owner)
    assert feed(owner, "PING 12345678", f"HEADERS 3 {GET} end") == ["PING 12345678 ack"]
    play(owner, "!! send 3 :status=204 end\n<< out HEADERS 3 :status=204 end")


@pytest.mark.parametrize("role", ROLES)
def test_streams_take_turns(role: str) -> None:
    """Those that have data get a frame each in turn, as long as the connection's window goes."""
    owner = sender(role, streams=3, peer="4=1000000")
    for stream_id in (1, 3, 5):
        owner.encoders[stream_id].send_data(b"x" * 100_000, True)
    first = data_of(sent_lines(owner))
    assert sum(size for _, size in first) == 65_535
    turns = [stream for stream, _ in data_of(feed(owner, f"WINDOW_UPDATE 0 {300_000 - 65_535}"))]
    behind = {1: turns.count(1), 3: turns.count(3), 5: turns.count(5)}
    assert min(behind.values()) >= 2
    # as long as all have data, nobody is two frames ahead of another
    for count in range(3, 3 * min(behind.values())):
        seen = [turns[:count].count(stream) for stream in (1, 3, 5)]
        assert max(seen) - min(seen) <= 1


def test_a_stream_without_a_window_stalls_no_other() -> None:
    owner = sender(streams=2, peer="4=0")
    feed(owner, "WINDOW_UPDATE 3 1000")
    owner.encoders[1].send_data(b"x" * 100, True)
    owner.encoders[3].send_data(b"y" * 100, True)
    assert data_of(sent_lines(owner)) == [(3, 100)]


def test_small_streams_pass_a_large_one_that_waits_for_the_connection() -> None:
    owner = sender(streams=2, peer="4=1000000")
    owner.encoders[1].send_data(b"x" * 500_000, True)
    owner.encoders[3].send_data(b"y" * 10, True)
    sent_lines(owner)
    order = [stream for stream, _ in data_of(feed(owner, "WINDOW_UPDATE 0 1000000"))]
    assert order.index(3) <= 1


def test_watermarks_of_what_waits() -> None:
    """`buffer_limit_bytes` of a stream's data that may wait; half of it is the lower mark."""
    owner = sender(settings=Http2Settings(buffer_limit_bytes=1000), peer="4=0")
    play(owner, """
        !! data 1 len=1000
        !! data 1 x
        << 1 above
        !! data 1 len=500
        >> WINDOW_UPDATE 1 900
        << out DATA 1 len=900
        >> WINDOW_UPDATE 1 200
        << 1 below
        << out DATA 1 len=200
        >> WINDOW_UPDATE 1 1000
        << out DATA 1 len=401
    """)  # fmt: skip
    assert owner.stats.pending_send_bytes == 0


def test_no_limit_of_what_waits() -> None:
    """0 of `per_connection_buffer_limit_bytes` is none."""
    owner = sender(settings=Http2Settings(buffer_limit_bytes=0), peer="4=0")
    play(owner, "!! data 1 len=100000")


@pytest.mark.parametrize("role", ROLES)
def test_a_socket_that_takes_no_more(role: str) -> None:
    """What the windows allow waits in the streams, while the socket has enough; control frames do not."""
    owner = sender(role)
    play(owner, """
        !! backed_up
        << 1 above
        !! data 1 hello
        >> PING 12345678
        << out PING 12345678 ack
        !! drained
        << 1 below
        << out DATA 1 hello
    """)  # fmt: skip


@pytest.mark.parametrize("how", ["!! drained", "gone"])
def test_the_gauges_of_frames_that_wait(how: str) -> None:
    """`outbound_frames_active` and `outbound_control_frames_active`: while the socket takes no more."""
    owner = sender()
    act(owner, "!! backed_up")
    stats = owner.stats
    before = stats.outbound_frames_active
    for _ in range(3):
        owner.connection.receive_data(owner.peer.frames("PING 12345678"))
        owner.connection.data_to_send()
    assert (stats.outbound_frames_active - before, stats.outbound_control_frames_active) == (3, 3)
    if how == "gone":
        owner.connection.close_streams(6)
    else:
        act(owner, how)
    assert stats.outbound_frames_active == stats.outbound_control_frames_active == 0


def test_what_waits_goes_out_piece_by_piece() -> None:
    """A large window does not fill the output at once: the next part is made when the last was fetched."""
    owner = sender(peer=f"4={2**31 - 1}")
    feed(owner, f"WINDOW_UPDATE 0 {2**31 - 1 - 65_535}")
    for _ in range(64):
        owner.encoders[1].send_data(b"x" * 65_536, False)
    most = 0
    total = 0
    while owner.connection.has_output:
        most = max(most, owner.connection.output_bytes)
        data = owner.connection.data_to_send()
        total += len(data) if isinstance(data, bytes) else sum(len(piece) for piece in data)
    assert total >= 64 * 65_536
    assert owner.stats.pending_send_bytes == 0
    assert most <= 64 * (65_536 + 40)


def test_a_reset_drops_what_waits() -> None:
    for how in ("!! reset 1 1", ">> RST_STREAM 1 CANCEL"):
        owner = sender(peer="4=0")
        owner.encoders[1].send_data(b"x" * 1000, True)
        assert owner.stats.pending_send_bytes == 1000
        act(owner, how)
        assert owner.stats.pending_send_bytes == 0
        sent_lines(owner)
        assert feed(owner, "SETTINGS 4=65535") == ["SETTINGS ack"]


# -- what we receive


@pytest.mark.parametrize("role", ROLES)
def test_windows_are_given_back_as_data_is_read(role: str) -> None:
    """Half a window at a time (section 6.9.1: not in small pieces)."""
    owner = receiver(role, SMALL)
    assert feed(owner, "DATA 1 len=16384") == []
    lines = feed(owner, "DATA 1 len=16384")
    assert sorted(lines) == ["WINDOW_UPDATE 0 32768", "WINDOW_UPDATE 1 32768"]
    for _ in range(100):
        assert not [line for line in feed(owner, "DATA 1 len=16384") if not line.startswith("WINDOW_UPDATE")]
    assert owner.recorders[1].body == 102 * 16_384


@pytest.mark.parametrize("role", ROLES)
def test_a_stream_that_is_not_read_gets_no_window_back(role: str) -> None:
    owner = receiver(role, SMALL)
    owner.encoders[1].read_disable(True)
    sizes = (16_384, 16_384, 16_384, 16_383)
    for size in sizes:
        assert feed(owner, f"DATA 1 len={size}") == []
    assert owner.recorders[1].body == 0
    owner.encoders[1].read_disable(False)
    assert sorted(sent_lines(owner)) == ["WINDOW_UPDATE 0 65535", "WINDOW_UPDATE 1 65535"]
    assert owner.recorders[1].body == 65_535


def test_read_disable_is_counted() -> None:
    owner = receiver("server")
    play(owner, """
        !! disable 1
        !! disable 1
        >> DATA 1 one
        !! enable 1
        >> DATA 1 two
        >> HEADERS 1 a=b end
        !! enable 1
        << 1 data onetwo
        << 1 trailers a=b end
    """)  # fmt: skip


@pytest.mark.parametrize(("frames", "told"), [
    ("DATA 1 one end", "data one end"),
    ("HEADERS 1 a=b end", "trailers a=b end"),
])  # fmt: skip
def test_a_stream_that_is_over_before_it_is_read(frames: str, told: str) -> None:
    """Both sides have ended it, and what came is still to be heard."""
    owner = receiver("client")
    play(
        owner,
        f"""
        !! disable 1
        >> {frames}
        << closed
        !! enable 1
        << 1 {told}
    """,
    )


def test_a_stream_that_is_not_read_stalls_no_other() -> None:
    """Its own window bounds what it may hold, as long as the connection's is larger."""
    owner = receiver("server", Http2Settings(stream_window_bytes=65_535, connection_window_bytes=200_000), streams=2)
    owner.encoders[1].read_disable(True)
    feed(owner, *["DATA 1 len=16384"] * 3)
    for _ in range(50):
        lines = feed(owner, "DATA 3 len=16384")
        assert not [line for line in lines if not line.startswith("WINDOW_UPDATE")]
        assert not [line for line in lines if line.startswith("WINDOW_UPDATE 1 ")]
    assert owner.recorders[3].body == 50 * 16_384
    assert owner.recorders[1].body == 0


@pytest.mark.parametrize("size", [1, 100, 8000])
def test_the_connection_s_window_opens_before_it_is_used_up(size: int) -> None:
    """A stream that is not read may hold more than half of it: the others must not wait for the other half."""
    owner = receiver("server", Http2Settings(stream_window_bytes=65_535, connection_window_bytes=100_000), streams=2)
    owner.encoders[1].read_disable(True)
    lines = feed(owner, *["DATA 1 len=16384"] * 3, "DATA 1 len=16383")
    left = 100_000 - 65_535
    for _ in range(150_000 // size if size > 1 else 40_000):
        left += sum(int(line.split()[2]) for line in lines if line.startswith("WINDOW_UPDATE 0 "))
        left -= size
        assert left >= 0
        lines = feed(owner, f"DATA 3 len={size}")


@pytest.mark.parametrize("read", [0, 20_000, 33_000, 39_000, 49_000, 60_000])
def test_a_stream_that_stops_being_read_leaves_room_for_others(read: int) -> None:
    """What was read of it is given back at the latest when the peer needs it, though nothing more is read."""
    owner = receiver("server", Http2Settings(stream_window_bytes=65_535, connection_window_bytes=80_000), streams=2)
    left = {0: 80_000, 1: 65_535}

    def send(most: int) -> None:
        """As a peer that heeds its windows."""
        while size := min(most, 16_384, *left.values()):
            most -= size
            for line in [f"WINDOW_UPDATE 0 -{size}", f"WINDOW_UPDATE 1 -{size}", *feed(owner, f"DATA 1 len={size}")]:
                left[int(line.split()[1])] += int(line.split()[2])

    send(read)
    owner.encoders[1].read_disable(True)
    send(1_000_000)
    assert left[1] == 0
    assert left[0] > 0


def test_reading_disabled_in_the_middle_of_what_waits() -> None:
    owner = receiver("server")
    recorder = owner.recorders[1]
    owner.encoders[1].read_disable(True)
    feed(owner, *["DATA 1 len=16384"] * 2, "DATA 1 len=10000 end")
    told: list[tuple[int, bool]] = []

    class _Stopping(type(recorder)):  # type: ignore[misc]
        def on_data(self, data: bytes, end: bool) -> None:
            told.append((len(data), end))
            if not end:
                owner.encoders[1].read_disable(True)

    owner.connection.streams[1].decoder = _Stopping(owner.log, None)
    owner.encoders[1].read_disable(False)
    assert told[0][0] < 2 * 16_384 + 10_000
    while not told[-1][1]:
        before = len(told)
        owner.encoders[1].read_disable(False)
        assert len(told) == before + 1
    assert sum(size for size, _ in told) == 2 * 16_384 + 10_000
    assert [end for _, end in told].count(True) == 1


@pytest.mark.parametrize("role", ROLES)
def test_more_than_the_connection_s_window(role: str) -> None:
    """Section 6.9.1: a connection error."""
    owner = receiver(role, SMALL)
    owner.encoders[1].read_disable(True)
    feed(owner, *["DATA 1 len=16384"] * 3)
    assert feed(owner, "DATA 1 len=16384")[-1].endswith("FLOW_CONTROL_ERROR")
    assert owner.connection.should_close


@pytest.mark.parametrize("role", ROLES)
def test_more_than_a_stream_s_window(role: str) -> None:
    """Section 6.9.1: a stream error; its bytes count for the connection all the same (6.9)."""
    owner = receiver(role, Http2Settings(stream_window_bytes=65_535, connection_window_bytes=200_000))
    owner.encoders[1].read_disable(True)
    feed(owner, *["DATA 1 len=16384"] * 3)
    lines = feed(owner, "DATA 1 len=16384")
    assert "RST_STREAM 1 FLOW_CONTROL_ERROR" in lines
    assert not owner.connection.should_close
    held = sum(int(line.split()[2]) for line in lines if line.startswith("WINDOW_UPDATE 0 "))
    assert held in (0, 65_536)


@pytest.mark.parametrize("role", ROLES)
def test_padding_counts(role: str) -> None:
    """Section 6.1: the whole payload does, and it is given back though nobody reads it."""
    owner = receiver(role, SMALL)
    lines = list(itertools.chain.from_iterable(feed(owner, "DATA 1 x pad=255") for _ in range(128)))
    assert "WINDOW_UPDATE 0 32896" in lines or "WINDOW_UPDATE 0 32768" in lines
    assert owner.recorders[1].body == 128


@pytest.mark.parametrize("role", ROLES)
def test_data_of_a_stream_that_is_gone_is_given_back_to_the_connection(role: str) -> None:
    """Sections 5.1 and 6.9: else the windows of both ends would drift apart."""
    owner = receiver(role, SMALL)
    owner.encoders[1].reset(1)
    sent_lines(owner)
    lines: list[str] = []
    for _ in range(40):
        lines += feed(owner, "DATA 1 len=16384")
    given = sum(int(line.split()[2]) for line in lines)
    assert all(line.startswith("WINDOW_UPDATE 0 ") for line in lines)
    assert 40 * 16_384 - 65_535 < given <= 40 * 16_384


def test_what_is_held_for_a_stream_that_is_reset_is_given_back() -> None:
    for how in ("!! reset 1 1", ">> RST_STREAM 1 CANCEL"):
        owner = receiver("server", SMALL)
        owner.encoders[1].read_disable(True)
        feed(owner, *["DATA 1 len=16384"] * 3)
        act(owner, how)
        assert "WINDOW_UPDATE 0 49152" in sent_lines(owner)


def test_data_behind_goaway_counts_for_the_connection() -> None:
    """Section 6.8."""
    owner = server(SMALL)
    feed(owner, f"HEADERS 1 {POST}")
    owner.connection.goaway()
    sent_lines(owner)
    lines = feed(owner, f"HEADERS 3 {POST}")
    for _ in range(20):
        lines += feed(owner, "DATA 3 len=16384")
    assert all(line.startswith("WINDOW_UPDATE 0 ") for line in lines)
    assert sum(int(line.split()[2]) for line in lines) > 20 * 16_384 - 65_535


def test_no_window_for_a_stream_whose_end_has_come() -> None:
    """Section 5.1: an endpoint need not keep one."""
    owner = receiver("server", SMALL)
    lines = feed(owner, "DATA 1 len=16384", "DATA 1 len=16384", "DATA 1 len=16384 end")
    assert [line for line in lines if line.startswith("WINDOW_UPDATE 1")] in ([], ["WINDOW_UPDATE 1 32768"])
    assert feed(owner, "PING 12345678") == ["PING 12345678 ack"]


def test_an_update_on_a_stream_that_has_sent_its_end() -> None:
    """Section 6.9: it may be on its way; not an error."""
    owner = sender()
    act(owner, "!! data 1 x end")
    sent_lines(owner)
    assert feed(owner, "WINDOW_UPDATE 1 1000") == []
    assert feed(owner, "PING 12345678") == ["PING 12345678 ack"]


def test_many_small_updates_of_the_largest_window() -> None:
    """Section 6.9.1: 2^31-1 is allowed, one more is not."""
    owner = sender()
    assert feed(owner, f"WINDOW_UPDATE 0 {2**31 - 1 - 65_535}") == []
    assert feed(owner, "WINDOW_UPDATE 0 1")[-1].endswith("FLOW_CONTROL_ERROR")


def test_bytes_arrive_whatever_their_pieces() -> None:
    owner = receiver("server")
    data = b"".join(raw_frame(0, 0, 1, bytes([65 + n]) * (n + 1)) for n in range(26))
    for at in range(len(data)):
        owner.connection.receive_data(data[at : at + 1])
    assert owner.recorders[1].body == 26 * 27 // 2
    assert output(owner) == b""


def test_tiny_frames_that_wait_take_no_more_memory_than_their_bytes() -> None:
    owner = receiver("server")
    owner.encoders[1].read_disable(True)
    frames = raw_frame(DATA, 0, 1, b"xy") * 1000
    tracemalloc.start()
    for _ in range(40):
        owner.connection.receive_data(frames)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 2 * 80_000
    owner.encoders[1].read_disable(False)
    assert owner.recorders[1].body == 80_000
