"""Internal redirects: which Locations are URLs, and that a redirected request passes the filters as a new stream."""

from __future__ import annotations

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.internal_redirect import becomes_get, parse_location
from tests.http.harness import Harness, ScriptedUpstream, get, head
from tests.http.test_stream import Log

MOVED = (b":status", b"302")


@pytest.mark.parametrize(
    ("location", "parsed"),
    [
        (b"http://a.test/x?y=z", (b"http", b"a.test", b"/x?y=z")),
        (b"HTTPS://A.test:8443/x#part", (b"https", b"A.test:8443", b"/x")),
        (b"http://a.test", (b"http", b"a.test", b"/")),
        (b"http://a.test?y", (b"http", b"a.test", b"?y")),
        (b"http://me:pw@a.test/", (b"http", b"a.test", b"/")),
        (b"http://[::1]/x", (b"http", b"[::1]", b"/x")),
        (b"http://[::1]:80/x", (b"http", b"[::1]:80", b"/x")),
        (b"http://a.test:65535/", (b"http", b"a.test:65535", b"/")),
        (b"http://a.test:65536/", None),
        (b"http://a.test:/", None),
        (b"http:///x", None),
        (b"http://a.test/x y", None),
        (b"http://a test/", None),
        (b"/x", None),
        (b"//a.test/x", None),
        (b"a.test/x", None),
        (b"", None),
    ],
)
def test_absolute_urls(location: bytes, parsed: tuple[bytes, bytes, bytes] | None) -> None:
    assert parse_location(location) == parsed


@pytest.mark.parametrize(
    ("status", "method", "after"),
    [(303, b"POST", b"GET"), (303, b"HEAD", b"HEAD"), (307, b"POST", b"POST"), (302, b"PUT", b"PUT")],
)
def test_only_see_other_makes_a_get(status: int, method: bytes, after: bytes) -> None:
    headers = HeaderMap([(b":method", method), (b"content-length", b"5")])
    changed = becomes_get(status, headers)
    assert headers.get(b":method") == after
    assert changed == (method != after)
    assert (headers.get(b"content-length") is None) == changed


def test_a_redirected_request_passes_the_filters_again() -> None:
    made = Harness(upstream=ScriptedUpstream(None))
    config = made.config()
    log = Log()
    config.access_logs = (log,)
    connection = made.connect(config)
    assert connection.send(get("/")) == b""
    first = made.upstream.streams[0]
    first.request_headers.set(b":path", b"/again")
    first.recreate(HeaderMap([MOVED]), b"")
    second = made.upstream.streams[1]
    assert (b":path", b"/again") in made.upstream.seen[1]
    assert (first.done, second.done, made.upstream.done) == (True, False, 1)
    second.send_response_headers(HeaderMap([(b":status", b"200")]), True)
    assert connection.received() == head("200 OK", ("content-length", "0"))
    assert log.lines == ["302 - internal_redirect", "200 - "]
    assert (made.stats.downstream_rq_total, made.stats.downstream_rq_active, made.upstream.done) == (2, 0, 2)
    assert connection.send(get("/next")) == b""
    assert len(made.upstream.streams) == 3


def test_the_body_goes_with_it() -> None:
    made = Harness(upstream=ScriptedUpstream(None))
    connection = made.connect()
    connection.send(get("/", ("content-length", "5"), method="POST") + b"hello")
    first = made.upstream.streams[0]
    first.recreate(HeaderMap([MOVED]), b"hello")
    second = made.upstream.streams[1]
    assert (second.request_complete, second.info.bytes_received) == (True, first.info.bytes_received + 5)


def test_a_downstream_that_leaves_ends_the_successor() -> None:
    made = Harness(upstream=ScriptedUpstream(None))
    connection = made.connect()
    connection.send(get("/"))
    made.upstream.streams[0].recreate(HeaderMap([MOVED]), b"")
    connection.leave()
    assert made.upstream.streams[1].done
    assert (made.stats.downstream_rq_active, made.upstream.done) == (0, 2)
