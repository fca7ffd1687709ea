"""The downstream's end, step by step. Sections are those of RFC 9112, unless a title says another."""

import pytest

from meshproxy.codec.http1.settings import Http1Settings
from tests.codec.playbook import play
from tests.codec.recorder import Downstream

GET = r">> GET / HTTP/1.1\r\nHost: a\r\n\r\n"
TOLD = "<< headers :authority=a :path=/ :method=GET :scheme=http"
OK = r"<< out HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

PLAYS = {
    "a request and its response": rf"""
        >> GET /p?q=1 HTTP/1.1\r\nHost: a.example:80\r\nX-Y: z \t\r\n\r\n
        << headers :authority=a.example:80 :path=/p?q=1 :method=GET :scheme=http x-y=z end
        !! send :status=200 content-length=2
        << out HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n
        !! data ok end
        << complete
        << out ok
        !! next
        {GET}
        {TOLD} end""",
    "6.2 a body with a length": r"""
        >> POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab
        << headers :authority=a :path=/ :method=POST :scheme=http content-length=5
        << data ab
        >> cd
        << data cd
        >> e
        << data e end""",
    "6.2 a length of zero": r"""
        >> POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n
        << headers :authority=a :path=/ :method=POST :scheme=http content-length=0 end""",
    "7.1 a chunked body, extensions dropped, no trailers asked for": r"""
        >> POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nX: y\r\n\r\n3;a=b\r\nabc\r\nA \t;c\r\n
        << headers :authority=a :path=/ :method=POST :scheme=http x=y
        << data abc
        >> 0123456789\r\n
        << data 0123456789
        >> 000\r\nTrailer: x\r\nT: u\r\n\r\n
        << data  end""",
    "RFC 9110 15.2 interim responses": r"""
        >> PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n
        << headers :authority=a :path=/ :method=PUT :scheme=http expect=100-continue content-length=1
        !! info :status=100
        << out HTTP/1.1 100 Continue\r\n\r\n
        !! info :status=103 link=x
        << out HTTP/1.1 103 Unknown\r\nlink: x\r\n\r\n
        >> x
        << data x end
        !! send :status=200 end
        << complete
        << out HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n""",
    "7.1 a response without a length is chunked": rf"""
        {GET}
        {TOLD} end
        !! send :status=200 transfer-encoding=gzip
        << out HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n
        !! data hello world, more than ten bytes
        << out 20\r\nhello world, more than ten bytes\r\n
        !! data
        !! data x end
        << complete
        << out 1\r\nx\r\n0\r\n\r\n""",
    "6.3 the response to HEAD has no body and keeps its length": r"""
        >> HEAD / HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=a :path=/ :method=HEAD :scheme=http end
        !! send :status=200 content-length=7
        << out HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n
        !! data ignored end
        << complete
        !! next
        >> HEAD / HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=a :path=/ :method=HEAD :scheme=http end
        !! send :status=200 end
        << complete
        << out HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n""",
    "6.3 204 and 304 have no body": rf"""
        {GET}
        {TOLD} end
        !! send :status=204 content-length=0
        << out HTTP/1.1 204 No Content\r\n\r\n
        !! data nothing end
        << complete
        !! next
        {GET}
        {TOLD} end
        !! send :status=304 content-length=9 end
        << complete
        << out HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n""",
    "9.3.2 pipelined requests wait for their turn": rf"""
        >> GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nabGET /3 HTT
        << headers :authority=a :path=/1 :method=GET :scheme=http end
        !! send :status=200 end
        << complete
        {OK}
        !! next
        << headers :authority=a :path=/2 :method=POST :scheme=http content-length=2
        << data ab end
        !! send :status=200 end
        << complete
        {OK}
        !! next
        >> P/1.1\r\nHost: a\r\n\r\n
        << headers :authority=a :path=/3 :method=GET :scheme=http end""",
    "9.6 connection: close in the request": rf"""
        >> GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=a :path=/ :method=GET :scheme=http connection=x, Close end
        !! send :status=200 end
        << complete close
        << out HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n
        !! next
        {GET}""",
    "9.6 the owner closes after the response": rf"""
        {GET}
        {TOLD} end
        !! close
        !! send :status=200 end
        << complete close
        << out HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n""",
    "9.6 a response that closes": rf"""
        {GET}
        {TOLD} end
        !! send :status=200 connection=close end
        << complete close
        << out HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n""",
    "9.3 a response before the end of its request ends the connection": r"""
        >> POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab
        << headers :authority=a :path=/ :method=POST :scheme=http content-length=5
        << data ab
        !! send :status=413 end
        << complete close
        << out HTTP/1.1 413 Payload Too Large\r\ncontent-length: 0\r\n\r\n
        >> cde""",
    "3.2.2 absolute form": rf"""
        >> GET http://b:8080/p?q HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=b:8080 :path=/p?q :method=GET :scheme=http end
        !! send :status=200 end
        << complete
        {OK}
        !! next
        >> GET HTTPS://b?q HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=b :path=/?q :method=GET :scheme=https end""",
    "3.2.4 asterisk form": r"""
        >> OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=a :path=* :method=OPTIONS :scheme=http end""",
    "3.2 an empty Host is a Host": r"""
        >> GET / HTTP/1.1\r\nHost:\r\n\r\n
        << headers :authority= :path=/ :method=GET :scheme=http end""",
    "2.2 empty lines in front of a request": r"""
        >> \r\n\r\n\r
        >> \nGET / HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=a :path=/ :method=GET :scheme=http end""",
    "8 a request that is cut short": r"""
        >> POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab
        << headers :authority=a :path=/ :method=POST :scheme=http content-length=5
        << data ab
        >> EOF
        << reset termination""",
    "the end of the connection after a whole request": rf"""
        {GET}
        {TOLD} end
        >> EOF
        !! send :status=200 end
        << complete close
        << out HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n""",
    "read_disable holds what was received, counted": r"""
        >> POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n
        << headers :authority=a :path=/ :method=POST :scheme=http content-length=5
        !! disable
        !! disable
        >> ab
        >> cd
        !! enable
        !! enable
        << data abcd
        !! disable
        >> e
        >> EOF
        !! enable
        << data e end""",
    "reset closes the connection": rf"""
        {GET}
        {TOLD} end
        !! send :status=200
        << out HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n
        !! reset
        << abort
        !! data late end
        {GET}""",
    "6.2 a body longer than its Content-Length": rf"""
        {GET}
        {TOLD} end
        !! send :status=200 content-length=2
        << out HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n
        !! data abc
        << abort
        << reset local http1.content_length_mismatch""",
    "6.2 a body shorter than its Content-Length": rf"""
        {GET}
        {TOLD} end
        !! send :status=200 content-length=2
        << out HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n
        !! data a end
        << abort
        << reset local http1.content_length_mismatch""",
    "6.2 Content-Length and no body": rf"""
        {GET}
        {TOLD} end
        !! send :status=200 content-length=2 end
        << abort
        << reset local http1.content_length_mismatch""",
    "RFC 9110 5.5 a filter cannot split a response": rf"""
        {GET}
        {TOLD} end
        !! send :status=200 x=a\r\nset-cookie:b=c end
        << complete
        << out HTTP/1.1 200 OK\r\nx: a  set-cookie:b=c\r\ncontent-length: 0\r\n\r\n""",
    "an error between requests is answered on a stream of its own": r"""
        >> BREW / HTTP/1.1\r\n\r\n
        << error 400 http1.codec_error
        !! send :status=400 end
        << complete close
        << out HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n""",
    "an error in a body is answered on its stream": r"""
        >> POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\naX
        << headers :authority=a :path=/ :method=POST :scheme=http
        << data a
        << error 400 http1.codec_error
        !! send :status=400 end
        << complete close
        << out HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n
        >> more""",
}


@pytest.mark.parametrize("title", PLAYS)
def test_play(title: str) -> None:
    play(Downstream(Http1Settings()), PLAYS[title])


WITH_SETTINGS = {
    "9.3 HTTP/1.0 closes": (
        Http1Settings(accept_http_10=True, default_host_for_http_10=b"d"),
        r"""
        >> GET / HTTP/1.0\r\n\r\n
        << headers :authority=d :path=/ :method=GET :scheme=http end
        !! info :status=100
        !! send :status=200 content-length=0 end
        << complete close
        << out HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n""",
    ),
    "9.3 HTTP/1.0 keep-alive, until a body without a length": (
        Http1Settings(accept_http_10=True),
        r"""
        >> GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n
        << headers :authority=a :path=/ :method=GET :scheme=http connection=Keep-Alive end
        !! send :status=200 end
        << complete
        << out HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n
        !! next
        >> GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n
        << headers :authority=a :path=/ :method=GET :scheme=http connection=keep-alive end
        !! send :status=200
        << out HTTP/1.0 200 OK\r\nconnection: close\r\n\r\n
        !! data x end
        << complete close
        << out x""",
    ),
    "7.1.2 trailers, without those that may not come there": (
        Http1Settings(enable_trailers=True),
        r"""
        >> POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n
        << headers :authority=a :path=/ :method=POST :scheme=http
        << data a
        >> T: u\r\nContent-Length: 5\r\nHost: b\r\n\r\n
        << trailers t=u end
        !! send :status=200
        << out HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n
        !! trailers v=w
        << complete
        << out 0\r\nv: w\r\n\r\n""",
    ),
    "6.3 allow_chunked_length: Transfer-Encoding wins, Content-Length goes": (
        Http1Settings(allow_chunked_length=True),
        r"""
        >> POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n
        << headers :authority=a :path=/ :method=POST :scheme=http
        << data a end""",
    ),
    "custom methods": (
        Http1Settings(allow_custom_methods=True),
        r"""
        >> BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=a :path=/pot :method=BREW :scheme=http end""",
    ),
    "proper case": (
        Http1Settings(proper_case=True),
        r"""
        >> GET / HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=a :path=/ :method=GET :scheme=http end
        !! send :status=418 content-length=1 foo$b#$are=1 x-b3-p3p=2
        << out HTTP/1.1 418 Unknown\r\nContent-Length: 1\r\nFoo$B#$Are: 1\r\nX-B3-P3p: 2\r\n\r\n""",
    ),
    "RFC 9110 7.8 an upgrade": (
        Http1Settings(),
        r"""
        >> GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly
        << headers :authority=a :path=/ :method=GET :scheme=http connection=Upgrade upgrade=websocket
        !! send :status=101 connection=upgrade upgrade=websocket
        << data early
        << out HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n
        !! data hi
        << out hi
        >> ho
        << data ho
        >> EOF
        << data  end
        !! data  end
        << complete close""",
    ),
    "RFC 9110 7.8 an upgrade that is declined": (
        Http1Settings(),
        r"""
        >> GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=a :path=/ :method=GET :scheme=http connection=Upgrade upgrade=x
        !! send :status=200 end
        << complete close
        << out HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n""",
    ),
    "RFC 9110 9.3.6 CONNECT": (
        Http1Settings(),
        r"""
        >> CONNECT b:443 HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=b:443 :method=CONNECT :scheme=http
        !! send :status=200
        << out HTTP/1.1 200 OK\r\n\r\n
        >> \x16\x03
        << data \x16\x03
        !! data \x00
        << out \x00""",
    ),
    "RFC 9110 9.3.6 CONNECT declined": (
        Http1Settings(),
        r"""
        >> CONNECT b:443 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n
        << headers :authority=b:443 :method=CONNECT :scheme=http
        !! send :status=403 end
        << complete close
        << out HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n""",
    ),
    "what waits is bounded": (
        Http1Settings(max_buffered_bytes=3),
        r"""
        >> POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n
        << headers :authority=a :path=/ :method=POST :scheme=http content-length=9
        !! disable
        >> abcd
        !! enable
        << data abcd
        << reading wanted""",
    ),
}


@pytest.mark.parametrize("title", WITH_SETTINGS)
def test_play_with_settings(title: str) -> None:
    settings, script = WITH_SETTINGS[title]
    play(Downstream(settings), script)


def test_ten_thousand_pipelined_requests() -> None:
    """Neither the stack nor the time grows with what is pipelined."""
    downstream = Downstream(Http1Settings(), answer=True)
    downstream.connection.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 10_000)
    assert downstream.streams == 10_000
    assert downstream.log.count("complete") == 10_000


def test_large_pieces_are_passed_on_as_they_are() -> None:
    downstream = Downstream(Http1Settings())
    downstream.connection.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    encoder = downstream.encoder
    assert encoder is not None
    large = b"x" * 100_000
    play(downstream, r"!! send :status=200" + "\n" + r"<< out HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    encoder.send_data(b"a", False)
    encoder.send_data(large, False)
    encoder.send_data(b"b", True)
    pieces = downstream.connection.data_to_send()
    assert pieces == [b"1\r\na\r\n186a0\r\n", large, b"\r\n1\r\nb\r\n0\r\n\r\n"]
    assert pieces[1] is large
