"""The upstream's end, step by step. Sections are those of RFC 9112, unless a title says another."""

import pytest

from meshproxy.codec.http1.settings import Http1Settings
from tests.codec.playbook import play
from tests.codec.recorder import Upstream

GET = r"""
        !! request :authority=a :path=/ :method=GET :scheme=http end
        << out GET / HTTP/1.1\r\nhost: a\r\n\r\n"""

PLAYS = {
    "a request and its response, twice": rf"""{GET}
        >> HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nX-Y: z\r\n\r\nok
        << headers :status=200 content-length=2 x-y=z
        << data ok end
        << complete reusable
        {GET}
        >> HTTP/1.1 404\r\ncontent-length: 0\r\n\r\n
        << headers :status=404 content-length=0 end
        << complete reusable""",
    "RFC 9110 8.6 a POST without a body says so": r"""
        !! request :method=POST :path=/p :authority=a :scheme=http x-y=z end
        << out POST /p HTTP/1.1\r\nhost: a\r\nx-y: z\r\ncontent-length: 0\r\n\r\n""",
    "7.1 a request without a length is chunked": rf"""
        !! request :authority=a :path=/ :method=PUT :scheme=http
        << out PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n
        !! data abc
        << out 3\r\nabc\r\n
        !! data  end
        << out 0\r\n\r\n
        >> HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nT: u\r\n\r\n
        << headers :status=200
        << data ok end
        << complete reusable
        {GET}""",
    "6.2 a request with a length": r"""
        !! request :authority=a :path=/ :method=PUT :scheme=http content-length=3
        << out PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n
        !! data abc end
        << out abc""",
    "6.2 a request body that is not as long as announced": r"""
        !! request :authority=a :path=/ :method=PUT :scheme=http content-length=3
        << out PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n
        !! data abcd end
        << abort
        << reset local http1.content_length_mismatch""",
    "RFC 9110 15.2 interim responses": rf"""{GET}
        >> HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n
        << informational :status=100
        << informational :status=103 link=x
        >> content-length: 0\r\n\r\n
        << headers :status=200 content-length=0 end
        << complete reusable""",
    "6.3 rule 1: HEAD": r"""
        !! request :authority=a :path=/ :method=HEAD :scheme=http end
        << out HEAD / HTTP/1.1\r\nhost: a\r\n\r\n
        >> HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n
        << headers :status=200 content-length=5 end
        << complete reusable
        !! request :authority=a :path=/ :method=HEAD :scheme=http end
        << out HEAD / HTTP/1.1\r\nhost: a\r\n\r\n
        >> HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n
        << headers :status=200 end
        << complete reusable""",
    "6.3 rule 1: 204 and 304": rf"""{GET}
        >> HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n
        << headers :status=204 end
        << complete reusable
        {GET}
        >> HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n
        << headers :status=304 content-length=5 end
        << complete reusable""",
    "6.3 rule 8: a body until the connection closes": rf"""{GET}
        >> HTTP/1.1 200 OK\r\n\r\nab
        << headers :status=200
        << data ab
        >> c
        << data c
        >> EOF
        << data  end
        << complete""",
    "9.3 connection: close, and HTTP/1.0": rf"""{GET}
        >> HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n
        << headers :status=200 connection=close content-length=0 end
        << complete""",
    "9.3 HTTP/1.0 does not stay open": rf"""{GET}
        >> HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n
        << headers :status=200 content-length=0 end
        << complete""",
    "9.3 HTTP/1.0 with keep-alive does": rf"""{GET}
        >> HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n
        << headers :status=200 connection=keep-alive content-length=0 end
        << complete reusable""",
    "9.6 the request said close": r"""
        !! request :authority=a :path=/ :method=GET :scheme=http connection=close end
        << out GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n
        >> HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n
        << headers :status=200 content-length=0 end
        << complete""",
    "surplus bytes": rf"""{GET}
        >> HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n
        << headers :status=200 content-length=2
        << data ok end
        << complete""",
    "bytes without a request": rf"""{GET}
        >> HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n
        << headers :status=200 content-length=0 end
        << complete reusable
        >> H
        << error 502 http1.codec_error""",
    "9.5 a response that ends before its request": r"""
        !! request :authority=a :path=/ :method=PUT :scheme=http content-length=3
        << out PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n
        >> HTTP/1.1 413 Payload Too Large\r\ncontent-length: 0\r\n\r\n
        << headers :status=413 content-length=0 end
        << complete
        !! data abc end""",
    "8 no byte of a response": rf"""{GET}
        >> EOF
        << reset termination""",
    "8 a response's head that is cut short (Envoy: a protocol error)": rf"""{GET}
        >> HTTP/1.1 2
        >> EOF
        << reset protocol_error http1.codec_error""",
    "8 a response's body that is cut short": rf"""{GET}
        >> HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n
        << headers :status=200
        << data a
        >> EOF
        << reset protocol_error http1.codec_error""",
    "read_disable": rf"""{GET}
        !! disable
        >> HTTP/1.1 200 OK\r\n\r\nab
        >> EOF
        !! enable
        << headers :status=200
        << data ab end
        << complete""",
    "reset": rf"""{GET}
        >> HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab
        << headers :status=200 content-length=5
        << data ab
        !! reset
        << abort
        >> cde""",
    "RFC 9110 7.8 an upgrade": r"""
        !! request :authority=a :path=/ :method=GET :scheme=http connection=upgrade upgrade=x
        << out GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n
        >> HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhi
        << headers :status=101 connection=upgrade upgrade=x
        << data hi
        !! data ho
        << out ho
        >> EOF
        << reset termination""",
    "RFC 9110 9.3.6 CONNECT": r"""
        !! request :authority=b:443 :method=CONNECT
        << out CONNECT b:443 HTTP/1.1\r\nhost: b:443\r\n\r\n
        >> HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd
        << headers :status=200 content-length=3
        << data abcd
        !! data x
        << out x""",
    "RFC 9110 5.5 a filter cannot split a request": r"""
        !! request :authority=a :path=/a+b\r\nX:+c :method=GET :scheme=http x=y\n\nz end
        << out GET /a%20b%20%20X:%20c HTTP/1.1\r\nhost: a\r\nx: y  z\r\n\r\n""",
}


@pytest.mark.parametrize("title", PLAYS)
def test_play(title: str) -> None:
    play(Upstream(Http1Settings()), PLAYS[title])


def test_trailers_pass_when_enabled() -> None:
    play(
        Upstream(Http1Settings(enable_trailers=True)),
        r"""
        !! request :authority=a :path=/ :method=PUT :scheme=http
        << out PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n
        !! trailers t=u
        << out 0\r\nt: u\r\n\r\n
        >> HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\ngrpc-status: 0\r\n\r\n
        << headers :status=200
        << data a
        << trailers grpc-status=0 end
        << complete reusable""",
    )
