"""Connection preface, frames and their definitions: RFC 9113 sections 3 to 6, on both ends of a connection."""

from __future__ import annotations

import itertools

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.codec.http2.settings import Http2Settings
from tests.codec.http2_frames import PREFACE, Writer, raw_frame
from tests.codec.http2_playbook import Owner, client, play, server
from tests.codec.http2_recorder import Client, Server, output, sent_lines

GET = ":method=GET :scheme=http :authority=a :path=/"
POST = GET.replace("GET", "POST")
ROLES = ("server", "client")


def opened(role: str, settings: Http2Settings | None = None) -> Owner:
    """A connection on which stream 1 is open both ways, and whose peer may send data on it."""
    if role == "server":
        owner: Owner = server(settings)
        owner.connection.receive_data(owner.peer.frames(f"HEADERS 1 {POST}"))
    else:
        owner = client(settings)
        play(owner, f"!! request {POST}\n<< out HEADERS 1 {POST}")
        owner.connection.receive_data(owner.peer.frames("HEADERS 1 :status=200"))
    assert sent_lines(owner) == []
    owner.log.clear()
    return owner


def feed(owner: Owner, *lines: str) -> list[str]:
    """What the codec sends when these frames come."""
    owner.connection.receive_data(b"".join(owner.peer.frames(line) for line in lines))
    return sent_lines(owner)


def is_dead(owner: Owner, sent: list[str]) -> str:
    """The code with which the connection ended; that it did is checked."""
    assert sent
    assert sent[-1].startswith("GOAWAY "), sent
    assert owner.connection.should_close
    owner.log.clear()
    assert feed(owner, "PING 12345678") == []  # nothing is read any more
    assert owner.log == []
    return sent[-1].split()[2]


def is_alive(owner: Owner) -> bool:
    """Whether the connection still answers."""
    return feed(owner, "PING areyouok") == ["PING areyouok ack"]


# -- section 3.4: the preface


def test_a_server_begins_with_settings_and_acknowledges_the_client_s() -> None:
    owner = Server()
    lines = feed(owner, "PREFACE", "SETTINGS 3=7")
    assert lines[0].startswith("SETTINGS ")
    assert "ack" not in lines[0]
    assert lines[-1] == "SETTINGS ack"
    assert sum(line == "SETTINGS ack" for line in lines) == 1


def test_a_client_begins_with_the_preface_and_settings() -> None:
    owner = Client()
    first = output(owner)
    assert first.startswith(PREFACE)
    lines = owner.reader.lines(first)
    assert lines[0].startswith("SETTINGS ")
    assert "2=0" in lines[0].split()  # no pushes, please (section 8.4)
    assert feed(owner, "SETTINGS") == ["SETTINGS ack"]


def test_the_settings_that_are_sent() -> None:
    """Names and defaults are Envoy's; each is told, but where it is the protocol's own default."""
    settings = Http2Settings(
        hpack_table_bytes=100,
        max_concurrent_streams=7,
        stream_window_bytes=70_000,
        connection_window_bytes=80_000,
        allow_connect=True,
        extra_settings=((77, 5),),
    )
    first, update, *_ = feed(Server(settings), "PREFACE", "SETTINGS")
    assert set(first.split()) >= {"1=100", "3=7", "4=70000", "8=1", "77=5"}
    assert update == f"WINDOW_UPDATE 0 {80_000 - 65_535}"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSN",
        b"\x16\x03\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
    ],
)
def test_what_is_no_preface_is_a_connection_error(data: bytes) -> None:
    owner = Server()
    sent_lines(owner)
    owner.connection.receive_data(data)
    assert is_dead(owner, sent_lines(owner)) == "PROTOCOL_ERROR"


@pytest.mark.parametrize("first", ["PING 12345678", "SETTINGS ack", f"HEADERS 1 {GET} end", "RAW 200 0 0 x"])
@pytest.mark.parametrize("role", ROLES)
def test_the_first_frame_is_settings(role: str, first: str) -> None:
    owner: Owner = Server() if role == "server" else Client()
    sent_lines(owner)
    lines = [first] if role == "client" else ["PREFACE", first]
    assert is_dead(owner, feed(owner, *lines)) == "PROTOCOL_ERROR"


# -- connection errors


CONNECTION_ERRORS: list[tuple[str, list[str], str]] = [
    # (section and rule, frames on a connection whose stream 1 is open, codes)
    ("4.2 a frame over SETTINGS_MAX_FRAME_SIZE", ["DATA 1 len=16385"], "FRAME_SIZE_ERROR"),
    ("4.2 HEADERS over it", ["RAW 1 4 3 " + "x" * 16_385], "FRAME_SIZE_ERROR"),
    ("4.2 an extension over it", ["RAW 200 0 0 " + "x" * 16_385], "FRAME_SIZE_ERROR"),
    ("4.3 an index that no table has", [r"RAW 1 5 1 \xff\xff\x01"], "COMPRESSION_ERROR"),
    ("4.3 an index 0", [r"RAW 1 5 1 \x80"], "COMPRESSION_ERROR"),
    ("4.3 a literal that is cut off", [r"RAW 1 5 1 \x40\x05ab"], "COMPRESSION_ERROR"),
    ("4.3 a bad block on a new stream", [r"RAW 1 5 3 \x80"], "COMPRESSION_ERROR PROTOCOL_ERROR"),
    ("4.3 another frame within a field block", ["HEADERS 1 a=b open end", "DATA 1 x"], "PROTOCOL_ERROR"),
    ("4.3 another stream's within a field block", ["HEADERS 1 a=b open end", "RAW 9 4 3 "], "PROTOCOL_ERROR"),
    ("5.1 DATA on an idle stream", ["DATA 9 x"], "PROTOCOL_ERROR"),
    ("5.1 RST_STREAM on an idle stream", ["RST_STREAM 9 CANCEL"], "PROTOCOL_ERROR"),
    ("5.1 WINDOW_UPDATE on an idle stream", ["WINDOW_UPDATE 9 1"], "PROTOCOL_ERROR"),
    ("5.1 DATA on the other end's idle stream", ["DATA 2 x"], "PROTOCOL_ERROR"),
    ("5.5 an extension within a field block", ["HEADERS 1 a=b open end", "RAW 200 0 1 x"], "PROTOCOL_ERROR"),
    ("6.1 DATA on stream 0", ["RAW 0 0 0 x"], "PROTOCOL_ERROR"),
    ("6.1 padding as long as the payload", [r"RAW 0 8 1 \x03ab"], "PROTOCOL_ERROR"),
    ("6.1 padding longer than the payload", [r"RAW 0 8 1 \xffab"], "PROTOCOL_ERROR"),
    ("6.1 no length of padding", ["RAW 0 8 1 "], "PROTOCOL_ERROR FRAME_SIZE_ERROR"),
    ("6.2 HEADERS on stream 0", [r"RAW 1 5 0 \x82"], "PROTOCOL_ERROR"),
    ("6.2 padding as long as the payload", [r"RAW 1 13 1 \x03ab"], "PROTOCOL_ERROR"),
    ("6.2 padding longer than what the priority leaves",
     [r"RAW 1 45 1 \x02\x00\x00\x00\x00\x00a"], "PROTOCOL_ERROR FRAME_SIZE_ERROR"),
    ("6.2 no length of padding", ["RAW 1 13 1 "], "PROTOCOL_ERROR FRAME_SIZE_ERROR"),
    ("6.2 no priority", ["RAW 1 37 1 abc"], "PROTOCOL_ERROR FRAME_SIZE_ERROR"),
    ("6.2 HEADERS followed by PING", ["HEADERS 1 a=b open end", "PING 12345678"], "PROTOCOL_ERROR"),
    ("6.2 HEADERS followed by SETTINGS", ["HEADERS 1 a=b open end", "SETTINGS"], "PROTOCOL_ERROR"),
    ("6.2 HEADERS followed by HEADERS", ["HEADERS 1 a=b open end", "HEADERS 1 c=d end"], "PROTOCOL_ERROR"),
    ("6.3 PRIORITY on stream 0", [r"RAW 2 0 0 \x00\x00\x00\x01\x00"], "PROTOCOL_ERROR"),
    ("6.4 RST_STREAM on stream 0", [r"RAW 3 0 0 \x00\x00\x00\x08"], "PROTOCOL_ERROR"),
    ("6.4 RST_STREAM of 3 bytes", [r"RAW 3 0 1 \x00\x00\x00"], "FRAME_SIZE_ERROR"),
    ("6.4 RST_STREAM of 5 bytes", [r"RAW 3 0 1 \x00\x00\x00\x00\x08"], "FRAME_SIZE_ERROR"),
    ("6.5 an acknowledgement with a payload", [r"RAW 4 1 0 \x00\x03\x00\x00\x00\x07"], "FRAME_SIZE_ERROR"),
    ("6.5 SETTINGS on a stream", ["RAW 4 0 1 "], "PROTOCOL_ERROR"),
    ("6.5 SETTINGS of 5 bytes", ["RAW 4 0 0 12345"], "FRAME_SIZE_ERROR"),
    ("6.5 SETTINGS of 7 bytes", [r"RAW 4 0 0 \x00\x63\x00\x00\x00\x07x"], "FRAME_SIZE_ERROR"),
    ("6.5.2 ENABLE_PUSH of 2", ["SETTINGS 2=2"], "PROTOCOL_ERROR"),
    ("6.5.2 a window over 2^31-1", ["SETTINGS 4=2147483648"], "FLOW_CONTROL_ERROR"),
    ("6.5.2 frames below 2^14", ["SETTINGS 5=16383"], "PROTOCOL_ERROR"),
    ("6.5.2 frames over 2^24-1", ["SETTINGS 5=16777216"], "PROTOCOL_ERROR"),
    ("6.6 PUSH_PROMISE", [r"RAW 5 4 1 \x00\x00\x00\x02\x82"], "PROTOCOL_ERROR"),
    ("6.6 PUSH_PROMISE on stream 0", [r"RAW 5 4 0 \x00\x00\x00\x02\x82"], "PROTOCOL_ERROR"),
    ("6.7 PING on a stream", ["RAW 6 0 1 12345678"], "PROTOCOL_ERROR"),
    ("6.7 PING of 7 bytes", ["RAW 6 0 0 1234567"], "FRAME_SIZE_ERROR"),
    ("6.7 PING of 9 bytes", ["RAW 6 1 0 123456789"], "FRAME_SIZE_ERROR"),
    ("6.8 GOAWAY on a stream", [r"RAW 7 0 1 \x00\x00\x00\x00\x00\x00\x00\x00"], "PROTOCOL_ERROR"),
    ("6.8 GOAWAY of 7 bytes", [r"RAW 7 0 0 \x00\x00\x00\x00\x00\x00\x00"], "FRAME_SIZE_ERROR"),
    ("6.9 an increment of 0 of the connection", [r"RAW 8 0 0 \x00\x00\x00\x00"], "PROTOCOL_ERROR"),
    ("6.9 WINDOW_UPDATE of 3 bytes", ["RAW 8 0 0 123"], "FRAME_SIZE_ERROR"),
    ("6.9 WINDOW_UPDATE of 5 bytes on a stream", ["RAW 8 0 1 12345"], "FRAME_SIZE_ERROR"),
    ("6.9.1 the connection's window over 2^31-1", ["WINDOW_UPDATE 0 2147483647"], "FLOW_CONTROL_ERROR"),
    ("6.9.2 a stream's window over 2^31-1 by SETTINGS",
     ["WINDOW_UPDATE 1 2147418112", "SETTINGS 4=65536"], "FLOW_CONTROL_ERROR"),
    ("6.10 CONTINUATION on stream 0", ["RAW 9 4 0 x"], "PROTOCOL_ERROR"),
    ("6.10 CONTINUATION of nothing", ["RAW 9 4 1 x"], "PROTOCOL_ERROR"),
    ("6.10 CONTINUATION behind END_HEADERS", ["HEADERS 1 a=b end", "RAW 9 4 1 x"], "PROTOCOL_ERROR"),
    ("6.10 CONTINUATION followed by DATA",
     ["HEADERS 1 a=b cut=1 open end", "DATA 1 x"], "PROTOCOL_ERROR"),
    ("6.10 CONTINUATION followed by another stream's",
     ["HEADERS 1 a=b cut=1 open end", "RAW 9 4 3 x"], "PROTOCOL_ERROR"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "lines", "codes"), CONNECTION_ERRORS, ids=[rule for rule, _, _ in CONNECTION_ERRORS])
@pytest.mark.parametrize("role", ROLES)
def test_connection_errors(role: str, rule: str, lines: list[str], codes: str) -> None:
    """GOAWAY says why (section 5.4.1), then the connection is to be closed."""
    owner = opened(role)
    assert is_dead(owner, feed(owner, *lines)) in codes.split(), rule


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ([f"HEADERS 2 {GET} end"], "PROTOCOL_ERROR"),  # 5.1.1 an even identifier
        ([f"HEADERS 5 {GET} end", f"HEADERS 3 {GET} end"], "PROTOCOL_ERROR STREAM_CLOSED"),  # 5.1.1 a lower one
    ],
)
def test_a_client_s_streams_have_odd_and_growing_identifiers(lines: list[str], codes: str) -> None:
    owner = opened("server")
    assert is_dead(owner, feed(owner, *lines)) in codes.split()


@pytest.mark.parametrize("stream_id", [2, 3])
def test_a_server_opens_no_stream(stream_id: int) -> None:
    """Section 5.1: HEADERS on a stream that only a push could have opened, or that the client has not."""
    owner = opened("client")
    assert is_dead(owner, feed(owner, f"HEADERS {stream_id} :status=200 end")) == "PROTOCOL_ERROR"


def test_a_server_cannot_be_willing_to_be_pushed_to() -> None:
    """Section 6.5.2: a client that receives SETTINGS_ENABLE_PUSH of 1."""
    owner = opened("client")
    assert is_dead(owner, feed(owner, "SETTINGS 2=1")) == "PROTOCOL_ERROR"


@pytest.mark.parametrize("lines", [["SETTINGS 2=1"], ["SETTINGS 2=0"]])
def test_a_client_may_be(lines: list[str]) -> None:
    owner = opened("server")
    assert feed(owner, *lines) == ["SETTINGS ack"]


def test_goaway_names_the_last_stream_that_came() -> None:
    """Section 5.4.1."""
    owner = opened("server")
    assert feed(owner, f"HEADERS 7 {GET} end", "RAW 0 0 0 x")[-1] == "GOAWAY 7 PROTOCOL_ERROR"


def test_streams_end_with_their_connection() -> None:
    for role in ROLES:
        owner = opened(role)
        feed(owner, "RAW 0 0 0 x")
        told = [line for line in owner.log if line.startswith("1 ")]
        assert [line.rpartition(" ")[0] for line in told] == ["1 reset protocol_error"]
        assert any(line.startswith("error ") for line in owner.log)
        assert not owner.connection.streams


# -- stream errors


STREAM_ERRORS: list[tuple[str, list[str], str]] = [
    ("5.3 HEADERS that depend on themselves", ["HEADERS 1 a=b on=1 end"], "RST_STREAM 1 PROTOCOL_ERROR"),
    ("5.3 PRIORITY that depends on itself", ["PRIORITY 1 on=1"], "RST_STREAM 1 PROTOCOL_ERROR"),
    ("6.3 PRIORITY of 4 bytes", ["RAW 2 0 1 1234"], "RST_STREAM 1 FRAME_SIZE_ERROR"),
    ("6.3 PRIORITY of 6 bytes", ["RAW 2 0 1 123456"], "RST_STREAM 1 FRAME_SIZE_ERROR"),
    ("6.9 an increment of 0", [r"RAW 8 0 1 \x00\x00\x00\x00"], "RST_STREAM 1 PROTOCOL_ERROR"),
    ("6.9.1 a window over 2^31-1", ["WINDOW_UPDATE 1 2147483647"], "RST_STREAM 1 FLOW_CONTROL_ERROR"),
]


@pytest.mark.parametrize(("rule", "lines", "answer"), STREAM_ERRORS, ids=[rule for rule, _, _ in STREAM_ERRORS])
@pytest.mark.parametrize("role", ROLES)
def test_stream_errors(role: str, rule: str, lines: list[str], answer: str) -> None:
    owner = opened(role)
    assert feed(owner, *lines) == [answer], rule
    assert [line for line in owner.log if line != "closed"] == [
        line for line in owner.log if line.startswith("1 reset protocol_error")
    ]
    assert 1 not in owner.connection.streams
    assert is_alive(owner)
    assert feed(owner, *lines) in ([], [answer])  # what the peer had sent before it heard of it is no matter


def test_a_head_that_depends_on_itself() -> None:
    """RFC 7540 section 5.3.1; its block is decoded all the same, and the stream is no longer idle."""
    owner = opened("server")
    assert feed(owner, f"HEADERS 3 {GET} x-new=y on=3", "DATA 3 x", "WINDOW_UPDATE 3 1") == [
        "RST_STREAM 3 PROTOCOL_ERROR"
    ]
    assert feed(owner, f"HEADERS 5 {GET} x-new=y end") == []
    assert owner.log[-1].endswith("x-new=y end")


# -- what is to be ignored


IGNORED: list[tuple[str, list[str]]] = [
    ("4.1 a frame of an unknown type", ["RAW 200 255 0 x", "RAW 201 0 1 x", "RAW 255 0 9 x", "RAW 11 0 2 x"]),
    ("4.1 the reserved bit", ["RAW 8 0 2147483649 " + r"\x80\x00\x00\x01"]),
    ("4.1 unknown flags", ["RAW 8 255 1 " + r"\x00\x00\x00\x01", "RAW 2 255 1 " + r"\x00\x00\x00\x09\x00"]),
    ("5.3 PRIORITY on an idle stream", ["PRIORITY 9 on=0", "PRIORITY 8 on=1"]),
    ("7 unknown error codes", ["GOAWAY 2147483647 4711 why"]),
    ("6.7 PING that is an answer", ["PING 12345678 ack"]),
    ("6.5.3 an acknowledgement too many", ["SETTINGS ack", "SETTINGS ack"]),
]


@pytest.mark.parametrize(("rule", "lines"), IGNORED, ids=[rule for rule, _ in IGNORED])
@pytest.mark.parametrize("role", ROLES)
def test_what_is_ignored(role: str, rule: str, lines: list[str]) -> None:
    owner = opened(role)
    assert feed(owner, *lines) == [], rule
    assert [line for line in owner.log if not line.startswith("goaway")] == []
    assert is_alive(owner)
    feed(owner, "DATA 1 x")
    assert owner.log[-1] == "1 data x"


@pytest.mark.parametrize("role", ROLES)
def test_unknown_settings_are_ignored_and_the_last_value_counts(role: str) -> None:
    """Sections 6.5 and 6.5.3: processed in their order; one acknowledgement for each frame."""
    owner = opened(role)
    setting = r"\x00\x04\x00\x00\x00\x01"
    later = r"\x00\x04\x00\x00\x00\x05"
    unknown = r"\xf0\x00\xff\xff\xff\xff"
    assert feed(owner, f"RAW 4 0 0 {unknown}{setting}{unknown}{later}", "SETTINGS") == ["SETTINGS ack"] * 2
    if role == "server":
        play(owner, "!! send 1 :status=200\n<< out HEADERS 1 :status=200")
    play(owner, "!! data 1 123456789 end\n<< out DATA 1 12345")


# -- the frames that are well formed


@pytest.mark.parametrize("role", ROLES)
def test_ping_is_answered_with_its_payload(role: str) -> None:
    """Section 6.7."""
    play(
        opened(role),
        r"""
        >> PING \x00\x01\x02\x03\xfc\xfd\xfe\xff
        << out PING \x00\x01\x02\x03\xfc\xfd\xfe\xff ack
    """,
    )


@pytest.mark.parametrize("role", ROLES)
def test_our_ping(role: str) -> None:
    owner = opened(role)
    owner.connection.ping()
    (line,) = sent_lines(owner)
    kind, opaque = line.split()
    assert kind == "PING"
    play(
        owner,
        f"""
        >> PING 00000000 ack
        >> PING {opaque} ack
        << ping ack
    """,
    )


@pytest.mark.parametrize("role", ROLES)
def test_padding_is_dropped(role: str) -> None:
    """Sections 6.1 and 6.2."""
    play(
        opened(role),
        """
        >> DATA 1 hello pad=7
        << 1 data hello
        >> DATA 1 pad=255
        >> DATA 1 ! pad=0
        << 1 data !
        >> HEADERS 1 a=b pad=9 on=7 end
        << 1 trailers a=b end
    """,
    )


@pytest.mark.parametrize("role", ROLES)
def test_an_empty_frame_ends_a_message(role: str) -> None:
    play(
        opened(role),
        """
        >> DATA 1 end
        << 1 data  end
    """,
    )


@pytest.mark.parametrize("cut", [0, 1, 5, 13])
def test_a_field_block_in_pieces(cut: int) -> None:
    """Sections 4.3 and 6.10."""
    play(
        server(),
        f"""
        >> HEADERS 1 {GET} x-long=value cut={cut} end
        << 1 headers :authority=a :path=/ :method=GET :scheme=http x-long=value end
    """,
    )


def test_a_field_block_in_many_pieces() -> None:
    owner = server()
    block = Writer().block([(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")])
    pieces = [block[at : at + 1] for at in range(len(block))]
    data = raw_frame(1, 1, 1, pieces[0]) + b"".join(raw_frame(9, 0, 1, piece) for piece in pieces[1:-1])
    owner.connection.receive_data(data + raw_frame(9, 4, 1, pieces[-1]))
    assert owner.log == ["1 headers :authority=a :path=/ :method=GET :scheme=http end"]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("size", [16_384, 16_385, 40_000])
def test_field_blocks_that_are_sent_fit_into_frames(role: str, size: int) -> None:
    """Sections 4.2 and 6.10: no frame is longer than the peer's SETTINGS_MAX_FRAME_SIZE."""
    value = "".join("|{}~^"[n * n % 5] for n in range(size))
    head = ":status=200" if role == "server" else GET
    if role == "server":
        owner: Owner = server()
        feed(owner, f"HEADERS 1 {GET} end")
        owner.log.clear()
        play(owner, f"!! send 1 {head} x={value} end\n<< out HEADERS 1 {head} x={value} continued end")
    else:
        play(client(), f"!! request {head} x={value} end\n<< out HEADERS 1 {head} x={value} continued end")


@pytest.mark.parametrize("theirs", [16_384, 20_000, 16_777_215])
def test_data_is_sent_in_frames_that_the_peer_takes(theirs: int) -> None:
    """Section 4.2: SETTINGS_MAX_FRAME_SIZE of the peer holds, and is no more than what we take ourselves."""
    owner = server(peer=f"SETTINGS 4=1000000 5={theirs}")
    feed(owner, f"HEADERS 1 {GET} end", "WINDOW_UPDATE 0 1000000")
    owner.log.clear()
    play(owner, "!! send 1 :status=200\n<< out HEADERS 1 :status=200")
    owner.encoders[1].send_data(b"x" * 100_000, True)
    sizes = [int(line.split()[2].removeprefix("len=")) for line in sent_lines(owner)]
    assert sum(sizes) == 100_000
    assert max(sizes) <= theirs


def test_larger_frames_are_taken_when_they_are_announced() -> None:
    settings = Http2Settings(max_frame_bytes=20_000)
    first = Server(settings)
    assert "5=20000" in feed(first, "PREFACE", "SETTINGS")[0].split()
    owner = opened("server", settings)
    assert feed(owner, "DATA 1 len=20000") == []
    assert owner.recorders[1].body == 20_000
    assert is_dead(owner, feed(owner, "DATA 1 len=20001")) == "FRAME_SIZE_ERROR"


# -- GOAWAY (section 6.8)


def test_a_graceful_end_of_a_server() -> None:
    """A notice with the highest identifier, then the last stream that was taken; what comes behind that is not looked
    at, but kept in the compression's state and the connection's window."""
    owner = server()
    play(
        owner,
        f"""
        >> HEADERS 1 {GET} end
        << 1 headers :authority=a :path=/ :method=GET :scheme=http end
        !! notice
        << out GOAWAY 2147483647 NO_ERROR
        >> HEADERS 3 {GET} end
        << 3 headers :authority=a :path=/ :method=GET :scheme=http end
        !! goaway
        << out GOAWAY 3 NO_ERROR
        >> HEADERS 5 {POST} x-new=value
        >> DATA 5 ignored end
        >> HEADERS 7 {GET} x-new=value end
        !! send 3 :status=200 end
        << out HEADERS 3 :status=200 end
        !! send 1 :status=200 end
        << out HEADERS 1 :status=200 end
    """,
    )
    assert not owner.connection.streams


def test_a_later_goaway_never_names_a_higher_stream() -> None:
    """Section 6.8: the last stream's identifier only falls."""
    owner = server()
    feed(owner, f"HEADERS 1 {GET} end", f"HEADERS 3 {GET} end")
    owner.connection.goaway()
    assert sent_lines(owner) == ["GOAWAY 3 NO_ERROR"]
    feed(owner, f"HEADERS 5 {GET} end")
    owner.connection.goaway()
    assert sent_lines(owner) == []
    assert feed(owner, "RAW 0 0 0 x") == ["GOAWAY 3 PROTOCOL_ERROR"]


def test_a_client_s_goaway_ends_nothing() -> None:
    owner = opened("server")
    assert feed(owner, "GOAWAY 0 NO_ERROR bye") == []
    assert owner.log == []
    play(owner, "!! send 1 :status=200\n<< out HEADERS 1 :status=200")
    assert is_alive(owner)


def test_a_server_s_goaway() -> None:
    """No further streams; those above the last one can go elsewhere, the others end as they would have."""
    owner = client()
    for number in (1, 3, 5):
        play(owner, f"!! request {GET} end\n<< out HEADERS {number} {GET} end")
    play(
        owner,
        """
        >> GOAWAY 2147483647 NO_ERROR
        << goaway 0
        >> GOAWAY 3 NO_ERROR
        << goaway 0
        << closed
        << 5 reset refused http2.goaway
        >> HEADERS 1 :status=200 end
        << 1 headers :status=200 end
        << closed
        >> HEADERS 3 :status=204 end
        << 3 headers :status=204 end
        << closed
    """,
    )
    assert owner.connection.streams_open == 0


def test_stream_identifiers_run_out() -> None:
    """Section 5.1.1: a client that has used the last one opens no further stream on the connection."""
    owner = client()
    owner.connection._next_id = 2**31 - 3
    assert [owner.request([(b":method", b"GET")]) for _ in range(2)] == [2**31 - 3, 2**31 - 1]
    assert owner.connection.max_streams == 0
    assert owner.log == ["goaway 0"]


# -- the two ends talk to each other


def test_any_split_of_the_preface() -> None:
    whole = PREFACE + Writer().frames("SETTINGS") + Writer().frames(f"HEADERS 1 {GET} end")
    for cuts in itertools.combinations(range(1, 40), 2):
        owner = Server()
        for begin, end in itertools.pairwise([0, *cuts, len(whole)]):
            owner.connection.receive_data(whole[begin:end])
        assert owner.log == ["1 headers :authority=a :path=/ :method=GET :scheme=http end"]


# -- section 4.3.1: the size of the compression's table


def test_a_smaller_table_of_the_peer_is_acknowledged_in_the_next_block() -> None:
    """The next block begins with a size update, or two of them: the smallest in between, then the last."""
    owner = server()
    feed(owner, f"HEADERS 1 {GET} end", f"HEADERS 3 {GET} end")
    assert feed(owner, "SETTINGS 1=0", "SETTINGS 1=100") == ["SETTINGS ack"] * 2
    owner.encoders[1].send_headers(HeaderMap([(b":status", b"200")]), True)
    data = output(owner)
    assert data[9:12] == b"\x20\x3f\x45"  # RFC 7541 section 6.3: 0, then 100
    assert owner.reader.lines(data) == ["HEADERS 1 :status=200 end"]
    owner.encoders[3].send_headers(HeaderMap([(b":status", b"200")]), True)
    assert output(owner)[9:] == b"\x88"


@pytest.mark.parametrize("role", ROLES)
def test_a_smaller_table_of_ours_must_be_followed(role: str) -> None:
    """The peer has acknowledged it, and goes on as before."""
    settings = Http2Settings(hpack_table_bytes=100)
    head = GET if role == "server" else ":status=200"
    for acknowledged, dies in ((False, False), (True, True)):
        owner: Owner = Server(settings) if role == "server" else Client(settings)
        if isinstance(owner, Client):
            owner.request([(b":method", b"GET")])
        sent_lines(owner)
        lines = ["SETTINGS", *(["SETTINGS ack"] if acknowledged else []), f"HEADERS 1 {head} end"]
        sent = feed(owner, *(["PREFACE", *lines] if role == "server" else lines))
        assert sent[-1].endswith("COMPRESSION_ERROR") == dies


@pytest.mark.parametrize("role", ROLES)
def test_a_smaller_table_of_ours_that_is_followed(role: str) -> None:
    settings = Http2Settings(hpack_table_bytes=100)
    owner: Owner = Server(settings) if role == "server" else Client(settings)
    if isinstance(owner, Client):
        owner.request([(b":method", b"GET")])
    owner.peer.encoder.header_table_size = 100
    head = f"HEADERS 1 {GET if role == 'server' else ':status=200'} x={'y' * 200} end"
    feed(owner, *(["PREFACE"] if role == "server" else []), "SETTINGS", "SETTINGS ack", head)
    assert any(line.startswith("1 headers ") for line in owner.log)
    assert is_alive(owner)


def test_the_identifiers_of_a_client_s_streams() -> None:
    """Section 5.1.1: odd, and each greater than all before."""
    owner = client()
    assert [owner.request([(b":method", b"GET")]) for _ in range(5)] == [1, 3, 5, 7, 9]
