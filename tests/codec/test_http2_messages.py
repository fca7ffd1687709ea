"""HTTP's messages on streams: RFC 9113 section 8, and RFC 8441; on both ends."""

from __future__ import annotations

import pytest

from meshproxy.codec.http2.settings import Http2Settings
from tests.codec.http2_frames import parse_fields, raw_frame
from tests.codec.http2_playbook import Owner, client, play, server
from tests.codec.http2_recorder import Server, sent_lines

GET = ":method=GET :scheme=http :authority=a :path=/"
POST = GET.replace("GET", "POST")
SEEN = ":authority=a :path=/ :method=GET :scheme=http"
SEEN_POST = SEEN.replace("GET", "POST")
LENIENT = Http2Settings(stream_error_on_invalid_message=True)
CONNECT = Http2Settings(stream_error_on_invalid_message=True, allow_connect=True)


def feed(owner: Owner, *lines: str) -> list[str]:
    """What the codec sends when these frames come."""
    owner.connection.receive_data(b"".join(owner.peer.frames(line) for line in lines))
    return sent_lines(owner)


def asked(settings: Http2Settings | None = None, head: str = GET) -> Owner:
    """A client that has sent a request."""
    owner = client(settings)
    play(owner, f"!! request {head} end\n<< out HEADERS 1 {head} end")
    owner.log.clear()
    return owner


# -- section 8.1: the form of a message


def test_a_request_and_its_response() -> None:
    play(server(), f"""
        >> HEADERS 1 {POST} content-length=5
        << 1 headers {SEEN_POST} content-length=5
        >> DATA 1 hel
        << 1 data hel
        >> DATA 1 lo end
        << 1 data lo end
        !! info 1 :status=103 link=x
        << out HEADERS 1 :status=103 link=x
        !! send 1 :status=200 content-length=2
        << out HEADERS 1 :status=200 content-length=2
        !! data 1 o
        << out DATA 1 o
        !! data 1 k
        << out DATA 1 k
        !! trailers 1 grpc-status=0
        << out HEADERS 1 grpc-status=0 end
    """)  # fmt: skip


def test_a_response_and_its_request() -> None:
    owner = client()
    play(owner, f"""
        !! request {POST} content-length=5
        << out HEADERS 1 {POST} content-length=5
        !! data 1 hello
        << out DATA 1 hello
        >> HEADERS 1 :status=100
        << 1 informational :status=100
        >> HEADERS 1 :status=103 link=x
        << 1 informational :status=103 link=x
        !! trailers 1 x=y
        << out HEADERS 1 x=y end
        >> HEADERS 1 :status=200 content-length=2
        << 1 headers :status=200 content-length=2
        >> DATA 1 ok
        << 1 data ok
        >> HEADERS 1 grpc-status=0 end
        << 1 trailers grpc-status=0 end
        << closed
    """)  # fmt: skip
    assert owner.connection.streams_open == 0


def test_many_requests_at_once() -> None:
    play(server(), f"""
        >> HEADERS 1 {POST}
        << 1 headers {SEEN_POST}
        >> HEADERS 3 {GET} end
        << 3 headers {SEEN} end
        >> DATA 1 x
        << 1 data x
        !! send 3 :status=200 end
        << out HEADERS 3 :status=200 end
        >> DATA 1 end
        << 1 data  end
        !! send 1 :status=404 end
        << out HEADERS 1 :status=404 end
    """)  # fmt: skip


def test_a_response_before_the_end_of_its_request() -> None:
    """Section 8.1: the rest of the request is not wanted, which is no error."""
    owner = server()
    play(owner, f"""
        >> HEADERS 1 {POST}
        << 1 headers {SEEN_POST}
        !! send 1 :status=413 end
        << out HEADERS 1 :status=413 end
        << out RST_STREAM 1 NO_ERROR
        >> DATA 1 more
        >> DATA 1 end
        >> HEADERS 3 {GET} end
        << 3 headers {SEEN} end
    """)  # fmt: skip


@pytest.mark.parametrize("code", ["NO_ERROR", "CANCEL"])
def test_a_response_is_not_lost_by_a_reset_behind_its_end(code: str) -> None:
    """Section 8.1: clients must not discard a response because of such a RST_STREAM."""
    play(client(), f"""
        !! request {POST}
        << out HEADERS 1 {POST}
        >> HEADERS 1 :status=200
        << 1 headers :status=200
        >> DATA 1 whole end
        << 1 data whole end
        >> RST_STREAM 1 {code}
        << closed
        !! data 1 more
    """)  # fmt: skip


def test_nor_is_one_that_waits_to_be_read() -> None:
    play(client(), f"""
        !! request {POST}
        << out HEADERS 1 {POST}
        >> HEADERS 1 :status=200
        << 1 headers :status=200
        !! disable 1
        >> DATA 1 whole
        >> HEADERS 1 grpc-status=0 end
        >> RST_STREAM 1 NO_ERROR
        << closed
        !! enable 1
        << 1 data whole
        << 1 trailers grpc-status=0 end
        !! data 1 more
    """)  # fmt: skip


@pytest.mark.parametrize("end", ["", " end"])
def test_what_waits_to_be_read_goes_with_an_error(end: str) -> None:
    play(client(), f"""
        !! request {POST}
        << out HEADERS 1 {POST}
        >> HEADERS 1 :status=200
        << 1 headers :status=200
        !! disable 1
        >> DATA 1 whole{end}
        >> RST_STREAM 1 CANCEL
        << closed
        << 1 reset remote http2.remote_reset
        !! enable 1
    """)  # fmt: skip


# -- resets


def test_resets_of_the_peer() -> None:
    play(server(), f"""
        >> HEADERS 1 {POST}
        << 1 headers {SEEN_POST}
        >> RST_STREAM 1 CANCEL
        << 1 reset remote http2.remote_reset
        >> HEADERS 3 {POST}
        << 3 headers {SEEN_POST}
        >> RST_STREAM 3 4711
        << 3 reset remote http2.remote_reset
    """)  # fmt: skip


def test_a_refused_stream() -> None:
    """Section 8.7: it can be sent again."""
    play(client(), f"""
        !! request {GET} end
        << out HEADERS 1 {GET} end
        >> RST_STREAM 1 REFUSED_STREAM
        << closed
        << 1 reset refused http2.remote_refuse
    """)  # fmt: skip


def test_our_resets() -> None:
    """Section 5.4.2: RST_STREAM is the last frame of a stream, and there is one. The codes are Envoy's."""
    play(asked(), """
        !! reset 1 1
        << closed
        << out RST_STREAM 1 INTERNAL_ERROR
        !! reset 1 1
        !! data 1 x end
        >> HEADERS 1 :status=200
        >> DATA 1 x end
        >> RST_STREAM 1 CANCEL
    """)  # fmt: skip
    play(server(), f"""
        >> HEADERS 1 {POST}
        << 1 headers {SEEN_POST}
        !! reset 1 8
        << out RST_STREAM 1 PROTOCOL_ERROR
        !! send 1 :status=200 end
        >> HEADERS 3 {POST}
        << 3 headers {SEEN_POST}
        !! reset 3 1
        << out RST_STREAM 3 INTERNAL_ERROR
    """)  # fmt: skip


def test_more_streams_than_allowed_are_refused() -> None:
    """Section 5.1.2; one that ends makes room."""
    owner = server(Http2Settings(max_concurrent_streams=2))
    play(owner, f"""
        >> HEADERS 1 {POST}
        << 1 headers {SEEN_POST}
        >> HEADERS 3 {POST}
        << 3 headers {SEEN_POST}
        >> HEADERS 5 {POST} x=y
        << out RST_STREAM 5 REFUSED_STREAM
        >> DATA 5 x
        >> RST_STREAM 3 CANCEL
        << 3 reset remote http2.remote_reset
        >> HEADERS 7 {GET} x=y end
        << 7 headers {SEEN} x=y end
    """)  # fmt: skip
    assert owner.stats.stream_refused_errors == 1


def test_how_many_streams_a_client_may_open() -> None:
    owner = client(Http2Settings(max_concurrent_streams=10), peer="SETTINGS 3=4")
    assert owner.connection.max_streams == 4
    play(owner, """
        >> SETTINGS 3=0
        << max streams 0
        << out SETTINGS ack
        >> SETTINGS 3=100
        << max streams 10
        << out SETTINGS ack
    """)  # fmt: skip


# -- malformed requests (sections 8.1.1 to 8.3)

NO_PATH = ":method=GET :scheme=http :authority=a"
MALFORMED_REQUESTS: dict[str, str] = {
    "8.2.1 an upper-case name": f"{GET} X-Y=z",
    "8.2.1 a space in a name": rf"{GET} x\x20y=z",
    "8.2.1 a control character in a name": rf"{GET} x\x01y=z",
    "8.2.1 DEL in a name": rf"{GET} x\x7fy=z",
    "8.2.1 a name that is not ASCII": rf"{GET} x\xe4y=z",
    "8.2.1 an empty name": f"{GET} =z",
    "8.2.1 a colon in a name": f"{GET} x:y=z",
    "8.2.1 NUL in a value": rf"{GET} x=a\x00b",
    "8.2.1 LF in a value": rf"{GET} x=a\nb",
    "8.2.1 CR in a value": rf"{GET} x=a\rb",
    "8.2.1 a value that begins with a space": f"{GET} x=+a",
    "8.2.1 a value that ends with a space": f"{GET} x=a+",
    "8.2.1 a value that begins with a tab": rf"{GET} x=\ta",
    "8.2.1 a value that ends with a tab": rf"{GET} x=a\t",
    "8.2.1 a line break in the path": rf"{NO_PATH} :path=/\r\nx:y",
    "8.2.2 connection": f"{GET} connection=close",
    "8.2.2 keep-alive": f"{GET} keep-alive=1",
    "8.2.2 proxy-connection": f"{GET} proxy-connection=close",
    "8.2.2 transfer-encoding": f"{GET} transfer-encoding=chunked",
    "8.2.2 upgrade": f"{GET} upgrade=websocket",
    "8.2.2 te of another value": f"{GET} te=gzip",
    "8.2.2 te of more values": f"{GET} te=trailers,+gzip",
    "8.3 an undefined pseudo-header": f"{GET} :x=y",
    "8.3 a response's": f"{GET} :status=200",
    "8.3 behind a field": ":method=GET :scheme=http :authority=a x=y :path=/",
    "8.3 :method twice": f":method=GET {GET}",
    "8.3 :scheme twice": f"{GET} :scheme=http",
    "8.3 :path twice": f"{GET} :path=/",
    "8.3 :authority twice": f"{GET} :authority=a",
    "8.3 :protocol, which was not allowed": f"{GET.replace('GET', 'CONNECT')} :protocol=websocket",
    "8.3.1 no :method": ":scheme=http :authority=a :path=/",
    "8.3.1 no :scheme": ":method=GET :authority=a :path=/",
    "8.3.1 no :path": NO_PATH,
    "8.3.1 nothing": "x=y",
    "8.3.1 an empty :path": f"{NO_PATH} :path=",
    "8.3.1 a :path in the form of an authority": f"{NO_PATH} :path=a:80",
    "8.3.1 a * that is not for OPTIONS": f"{NO_PATH} :path=*",
    "8.3.1 user information in :authority": ":method=GET :scheme=http :authority=u:p@a :path=/",
    "8.3.1 a :method that is no token": f"{GET.replace('GET', 'G+T')}",
    "8.3.1 an empty :method": f"{GET.replace('GET', '')}",
    "8.5 CONNECT with :path": ":method=CONNECT :authority=a:1 :path=/",
    "8.5 CONNECT with :scheme": ":method=CONNECT :authority=a:1 :scheme=http",
    "8.5 CONNECT without :authority": ":method=CONNECT",
    "8.1.1 a content-length, and no content": f"{POST} content-length=1",
    "8.1.1 a content-length that is no number": f"{POST} content-length=a",
    "8.1.1 a signed content-length": f"{POST} content-length=+1",
    "8.1.1 two content-lengths": f"{POST} content-length=0 content-length=1",
}


@pytest.mark.parametrize("rule", MALFORMED_REQUESTS)
def test_a_malformed_request_ends_its_stream(rule: str) -> None:
    """Section 8.1.1, with `override_stream_error_on_invalid_http_message`: nobody hears of it."""
    owner = server(LENIENT)
    assert feed(owner, f"HEADERS 1 {MALFORMED_REQUESTS[rule]} end") == ["RST_STREAM 1 PROTOCOL_ERROR"]
    assert [line for line in owner.log if not line.startswith(("1 reset protocol_error", "error "))] == []
    assert owner.stats.rx_messaging_error == 1
    assert feed(owner, f"HEADERS 3 {GET} end") == []
    assert owner.log[-1] == f"3 headers {SEEN} end"


@pytest.mark.parametrize("rule", MALFORMED_REQUESTS)
def test_a_malformed_request_ends_its_connection(rule: str) -> None:
    """As Envoy has it by default: section 5.4.1 allows to make a stream error one of the connection."""
    owner = server()
    assert feed(owner, f"HEADERS 1 {MALFORMED_REQUESTS[rule]} end") == ["GOAWAY 1 PROTOCOL_ERROR"]
    assert [line for line in owner.log if not line.startswith(("1 reset protocol_error", "error "))] == []
    assert owner.connection.should_close


@pytest.mark.parametrize(
    ("head", "seen"),
    [
        (f"{GET} te=trailers", f"{SEEN} te=trailers"),
        (f"{GET} te=Trailers", f"{SEEN} te=Trailers"),
        (f"{GET} x=", f"{SEEN} x="),
        (rf"{GET} x=\xe4+\tb", rf"{SEEN} x=\xe4+\tb"),
        (":method=OPTIONS :scheme=https :authority=a :path=*", ":authority=a :path=* :method=OPTIONS :scheme=https"),
        # (a scheme that is neither http nor https becomes http, as in Envoy)
        (":path=/ :authority=a :scheme=coap :method=PURGE", ":authority=a :path=/ :method=PURGE :scheme=http"),
        (":method=CONNECT :authority=a:1", ":authority=a:1 :method=CONNECT :scheme=http"),
        # 8.3.1 Host does not count beside :authority; alone it stands for it
        (f"{GET} host=b", SEEN),
        (":method=GET :scheme=http :path=/ host=b", SEEN.replace("=a", "=b")),
        # 8.2.3 the crumbs of a cookie
        (f"{GET} cookie=a=b x=y cookie=c=d;+e=f cookie=g", f"{SEEN} x=y cookie=a=b;+c=d;+e=f;+g"),
        (f"{GET} cookie=a=b", f"{SEEN} cookie=a=b"),
    ],
)
def test_what_a_request_may_be(head: str, seen: str) -> None:
    owner = server(LENIENT)
    assert feed(owner, f"HEADERS 1 {head} end") == []
    (told,) = owner.log
    assert told.startswith("1 headers ")
    assert sorted(told.split()) == sorted(["1", "headers", *seen.split(), "end"])


BODIES: dict[str, tuple[list[str], str]] = {
    "8.1.1 more content than content-length": (["DATA 1 abc", "DATA 1 abc"], "RST_STREAM 1 PROTOCOL_ERROR"),
    "8.1.1 less content than content-length": (["DATA 1 abc end"], "RST_STREAM 1 PROTOCOL_ERROR"),
    "8.1.1 less, in front of trailers": (["DATA 1 abc", "HEADERS 1 a=b end"], "RST_STREAM 1 PROTOCOL_ERROR"),
    "8.1 trailers that end nothing": (["DATA 1 abcde", "HEADERS 1 a=b"], "RST_STREAM 1 PROTOCOL_ERROR"),
    "8.1 pseudo-headers in trailers": (["DATA 1 abcde", "HEADERS 1 :path=/ end"], "RST_STREAM 1 PROTOCOL_ERROR"),
    "8.1 a status in trailers": (["DATA 1 abcde", "HEADERS 1 :status=200 end"], "RST_STREAM 1 PROTOCOL_ERROR"),
    "8.2.1 an upper-case name in trailers": (["DATA 1 abcde", "HEADERS 1 X=y end"], "RST_STREAM 1 PROTOCOL_ERROR"),
    "8.2.2 connection in trailers": (["DATA 1 abcde", "HEADERS 1 connection=y end"], "RST_STREAM 1 PROTOCOL_ERROR"),
    "padding is no content": (["DATA 1 abcde pad=5 end"], ""),
    "in order": (["DATA 1 abcde", "HEADERS 1 a=b end"], ""),
}


@pytest.mark.parametrize("rule", BODIES)
@pytest.mark.parametrize("role", ["server", "client"])
def test_bodies_and_trailers(role: str, rule: str) -> None:
    lines, answer = BODIES[rule]
    if role == "server":
        owner: Owner = server(LENIENT)
        feed(owner, f"HEADERS 1 {POST} content-length=5")
    else:
        owner = asked(LENIENT)
        feed(owner, "HEADERS 1 :status=200 content-length=5")
    owner.log.clear()
    assert feed(owner, *lines) == ([answer] if answer else [])
    told = [line for line in owner.log if line != "closed"]
    assert told[-1].startswith("1 reset protocol_error") == bool(answer)
    assert told[-1].endswith(" end") != bool(answer)  # the end of a malformed message is not told


# -- responses

MALFORMED_RESPONSES: dict[str, str] = {
    "8.3.2 no :status": "x=y",
    "RFC 9110 8.6 content-length in 204": ":status=204 content-length=1",
    "RFC 9110 8.6 content-length in an interim response": ":status=103 content-length=0",
    "8.3.2 nothing": "",
    "8.3.2 :status twice": ":status=200 :status=200",
    "8.3.2 an empty :status": ":status=",
    "8.3.2 :status of two digits": ":status=20",
    "8.3.2 :status that is no number": ":status=2x0",
    "8.3 a request's pseudo-header": ":status=200 :path=/",
    "8.3 :status behind a field": "x=y :status=200",
    "8.6 switching protocols": ":status=101",
    "8.2.1 an upper-case name": ":status=200 X=y",
    "8.2.1 LF in a value": r":status=200 x=a\nb",
    "8.2.1 a value that ends with a space": ":status=200 x=a+",
    "8.2.2 connection": ":status=200 connection=close",
    "8.2.2 transfer-encoding": ":status=200 transfer-encoding=chunked",
    "8.1.1 a content-length, and no content": ":status=200 content-length=1",
    "8.1.1 two content-lengths": ":status=200 content-length=1 content-length=2",
    "8.1 an interim response that ends the stream": ":status=100",
}


@pytest.mark.parametrize("rule", MALFORMED_RESPONSES)
def test_a_malformed_response_is_not_taken(rule: str) -> None:
    owner = asked(LENIENT)
    line = " ".join(["HEADERS 1", *MALFORMED_RESPONSES[rule].split(), "end"])
    assert feed(owner, line) == ["RST_STREAM 1 PROTOCOL_ERROR"]
    assert [event.rpartition(" ")[0] for event in owner.log if event != "closed"] == ["1 reset protocol_error"]
    assert feed(owner, "PING 12345678") == ["PING 12345678 ack"]


@pytest.mark.parametrize("rule", MALFORMED_RESPONSES)
def test_a_malformed_response_ends_its_connection(rule: str) -> None:
    owner = asked()
    line = " ".join(["HEADERS 1", *MALFORMED_RESPONSES[rule].split(), "end"])
    assert feed(owner, line) == ["GOAWAY 0 PROTOCOL_ERROR"]
    assert next(line for line in owner.log if line[0] == "1").startswith("1 reset protocol_error")


@pytest.mark.parametrize(
    ("request_head", "response", "told"),
    [
        (GET.replace("GET", "HEAD"), ":status=200 content-length=5", ":status=200 content-length=5 end"),
        (GET, ":status=304 content-length=5", ":status=304 content-length=5 end"),
        (GET, ":status=204", ":status=204 end"),
        (GET, ":status=204 content-length=0", ":status=204 end"),
        (GET, ":status=200 cookie=a x=y cookie=b", ":status=200 x=y cookie=a;+b end"),
        (GET, ":status=200 content-length=0", ":status=200 content-length=0 end"),
    ],
)
def test_responses_without_content(request_head: str, response: str, told: str) -> None:
    """Section 8.1.1: what they say of its length is of a response that would have some."""
    owner = asked(LENIENT, request_head)
    assert feed(owner, f"HEADERS 1 {response} end") == []
    assert owner.log == [f"1 headers {told}", "closed"]


@pytest.mark.parametrize("head", [(GET.replace("GET", "HEAD"), "200"), (GET, "204"), (GET, "304")])
def test_responses_that_have_content_though_there_is_none(head: tuple[str, str]) -> None:
    owner = asked(LENIENT, head[0])
    assert feed(owner, f"HEADERS 1 :status={head[1]}", "DATA 1 x end") == ["RST_STREAM 1 PROTOCOL_ERROR"]


def test_data_in_front_of_the_head() -> None:
    """Section 8.1: a response begins with HEADERS."""
    owner = asked(LENIENT)
    assert feed(owner, "DATA 1 x") == ["RST_STREAM 1 PROTOCOL_ERROR"]


def test_data_behind_an_interim_response() -> None:
    owner = asked(LENIENT)
    assert feed(owner, "HEADERS 1 :status=103", "DATA 1 x") == ["RST_STREAM 1 PROTOCOL_ERROR"]


# -- what we send (sections 8.2 and 8.2.2)


def test_connection_specific_fields_are_not_sent() -> None:
    play(server(), f"""
        >> HEADERS 1 {GET} end
        << 1 headers {SEEN} end
        !! send 1 :status=200 connection=close keep-alive=1 proxy-connection=x transfer-encoding=x upgrade=h3 a=b end
        << out HEADERS 1 :status=200 a=b end
    """)  # fmt: skip
    play(client(), f"""
        !! request {GET} keep-alive=1 proxy-connection=x transfer-encoding=chunked a=b end
        << out HEADERS 1 {GET} a=b end
    """)  # fmt: skip


def test_the_answer_to_head_has_no_content() -> None:
    play(server(), f"""
        >> HEADERS 1 {GET.replace("GET", "HEAD")} end
        << 1 headers {SEEN.replace("GET", "HEAD")} end
        !! send 1 :status=200 content-length=5
        << out HEADERS 1 :status=200 content-length=5
        !! data 1 hello end
        << out DATA 1  end
    """)  # fmt: skip


def test_what_comes_behind_the_end_is_not_sent() -> None:
    play(server(), f"""
        >> HEADERS 1 {GET} end
        << 1 headers {SEEN} end
        !! send 1 :status=200
        << out HEADERS 1 :status=200
        !! send 1 :status=201
        !! info 1 :status=100
        !! trailers 1 x=y
        << out HEADERS 1 x=y end
        !! data 1 more end
        !! trailers 1 x=y
        !! reset 1 1
    """)  # fmt: skip


# -- extended CONNECT (RFC 8441): an upgrade, in the form of HTTP/1

TUNNEL = ":method=CONNECT :protocol=websocket :scheme=http :authority=a :path=/chat"
UPGRADE = ":authority=a :path=/chat :method=GET :scheme=http"


def test_a_server_tells_that_it_takes_extended_connect() -> None:
    """RFC 8441 section 3; and 0 otherwise, as Envoy."""
    for settings, expected in ((CONNECT, "8=1"), (LENIENT, "8=0")):
        assert expected in feed(Server(settings), "PREFACE", "SETTINGS")[0].split()


def test_an_extended_connect_is_an_upgrade() -> None:
    owner = server(CONNECT)
    assert feed(owner, f"HEADERS 1 {TUNNEL} sec-websocket-version=13") == []
    (told,) = owner.log
    assert sorted(told.split()[2:]) == sorted(
        [*UPGRADE.split(), "upgrade=websocket", "connection=upgrade", "sec-websocket-version=13"]
    )
    play(owner, """
        !! send 1 :status=101 upgrade=websocket connection=upgrade x=y
        << out HEADERS 1 :status=200 x=y
        >> DATA 1 ping
        << 1 data ping
        !! data 1 pong
        << out DATA 1 pong
        >> DATA 1 end
        << 1 data  end
        !! data 1 bye end
        << out DATA 1 bye end
    """)  # fmt: skip


def test_an_upgrade_is_an_extended_connect() -> None:
    owner = client(peer="SETTINGS 8=1")
    head = f"{UPGRADE} upgrade=websocket connection=upgrade sec-websocket-version=13"
    owner.request(
        [(name.encode(), value.encode()) for name, _, value in (word.partition("=") for word in head.split())], False
    )
    (sent,) = sent_lines(owner)
    assert sorted(sent.split()[2:]) == sorted([*TUNNEL.split(), "sec-websocket-version=13"])
    assert sent.split()[2].startswith(":")
    owner.log.clear()
    feed(owner, "HEADERS 1 :status=200 x=y")
    (told,) = owner.log
    assert sorted(told.split()[2:]) == sorted([":status=101", "upgrade=websocket", "connection=upgrade", "x=y"])
    play(owner, """
        !! data 1 ping
        << out DATA 1 ping
        >> DATA 1 pong
        << 1 data pong
    """)  # fmt: skip


def test_an_upgrade_that_is_refused() -> None:
    owner = client(peer="SETTINGS 8=1")
    play(owner, f"""
        !! request {UPGRADE} upgrade=websocket connection=upgrade
        << out HEADERS 1 :authority=a :path=/chat :protocol=websocket :method=CONNECT :scheme=http
        >> HEADERS 1 :status=403 end
        << 1 headers :status=403 end
    """)  # fmt: skip


def test_no_extended_connect_to_a_server_that_does_not_take_it() -> None:
    """RFC 8441 section 3: only after the setting has come."""
    owner = client(peer="SETTINGS 8=0")
    play(owner, f"""
        !! request {UPGRADE} upgrade=websocket connection=upgrade
        << closed
        << 0 reset protocol_error
    """)  # fmt: skip


@pytest.mark.parametrize(
    "head",
    [
        TUNNEL.replace("CONNECT", "GET"),
        ":method=CONNECT :protocol=websocket :authority=a :path=/",
        ":method=CONNECT :protocol=websocket :authority=a :scheme=http",
        f"{TUNNEL} :protocol=x",
        TUNNEL.replace("websocket", ""),
    ],
)
def test_malformed_extended_connects(head: str) -> None:
    """RFC 8441 section 4."""
    owner = server(CONNECT)
    assert feed(owner, f"HEADERS 1 {head}") == ["RST_STREAM 1 PROTOCOL_ERROR"]


@pytest.mark.parametrize("lines", [["SETTINGS 8=2"], ["SETTINGS 8=1", "SETTINGS 8=0"]])
def test_the_setting_of_extended_connect(lines: list[str]) -> None:
    """RFC 8441 section 3: 0 or 1, and never 0 behind 1."""
    assert feed(client(), *lines)[-1].split()[0] == "GOAWAY"


def test_a_tunnel_by_connect() -> None:
    """Section 8.5."""
    play(server(), """
        >> HEADERS 1 :method=CONNECT :authority=a:1
        << 1 headers :authority=a:1 :method=CONNECT :scheme=http
        !! send 1 :status=200
        << out HEADERS 1 :status=200
        >> DATA 1 x
        << 1 data x
    """)  # fmt: skip
    owner = client()
    owner.request([(b":authority", b"a:1"), (b":method", b"CONNECT"), (b":scheme", b"http")], False)
    assert sent_lines(owner) == ["HEADERS 1 :authority=a:1 :method=CONNECT"]


def test_trailers_in_a_tunnel() -> None:
    """Section 8.5: DATA, and what manages the stream; nothing else. So for extended CONNECT (RFC 8441 section 5)."""
    for head in (":method=CONNECT :authority=a:1", TUNNEL):
        owner: Owner = server(CONNECT)
        assert feed(owner, f"HEADERS 1 {head}", "DATA 1 x", "PRIORITY 1 on=0", "WINDOW_UPDATE 1 1") == []
        assert feed(owner, "HEADERS 1 a=b end") == ["RST_STREAM 1 PROTOCOL_ERROR"]
    for fields in (
        [(b":authority", b"a:1"), (b":method", b"CONNECT")],
        parse_fields(f"{UPGRADE} upgrade=websocket connection=upgrade".split()),
    ):
        owner = client(peer="SETTINGS 8=1")
        owner.request(fields, False)
        sent_lines(owner)
        assert feed(owner, "HEADERS 1 :status=200", "DATA 1 x") == []
        assert feed(owner, "HEADERS 1 a=b end") == ["RST_STREAM 1 PROTOCOL_ERROR"]


# -- the same block again


def test_equal_blocks_mean_what_the_table_says_by_then() -> None:
    """RFC 7541 section 2.2: a block that inserts does so each time."""
    owner = server()
    block = b"\x82\x86\x84\x41\x01a" + b"\x40\x01x\x01y"  # :authority and x are inserted, twice each
    owner.connection.receive_data(raw_frame(1, 5, 1, block) + raw_frame(1, 5, 3, block))
    owner.log.clear()
    owner.connection.receive_data(raw_frame(1, 5, 5, b"\x82\x86\x84\xbf\xc0"))
    assert owner.log == [f"5 headers {SEEN} x=y end"]
    owner.connection.receive_data(raw_frame(1, 5, 7, b"\x82\x86\x84\xc1\xbe"))
    assert owner.log[1:] == [f"7 headers {SEEN} x=y end"]


def test_a_block_that_comes_again_and_again() -> None:
    owner = server()
    owner.connection.receive_data(raw_frame(1, 5, 1, b"\x82\x86\x84\x41\x01a"))
    for stream_id in range(3, 41, 2):
        owner.connection.receive_data(raw_frame(1, 5, stream_id, b"\x82\x86\x84\xbe"))
    assert owner.log == [f"{stream_id} headers {SEEN} end" for stream_id in range(1, 41, 2)]
    owner.connection.receive_data(raw_frame(1, 5, 41, b"\x82\x86\x84\x41\x01b"))  # another entry in its place
    owner.connection.receive_data(raw_frame(1, 5, 43, b"\x82\x86\x84\xbe"))
    assert owner.log[-1] == f"43 headers {SEEN.replace('=a', '=b')} end"
