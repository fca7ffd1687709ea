"""Streams of a connection hand on their timers: however many there were at once, those that ended leave none behind."""

from __future__ import annotations

from h2.connection import H2Connection

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.timeouts import SPARE_TIMERS
from tests.http.harness import Harness, ScriptedUpstream

HEAD = ((":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "a"))


def armed(harness: Harness) -> int:
    """How many timers the wheel holds."""
    count = 0
    for head in harness.dispatcher.timers._slots:
        timer = head._next
        while timer is not None:
            count += 1
            timer = timer._next
    return count


def test_streams_hand_on_their_timers_however_many_there_are_at_once() -> None:
    harness = Harness(upstream=ScriptedUpstream(None))
    downstream = harness.connect()
    client = H2Connection()
    client.initiate_connection()
    for burst in range(10):
        for _ in range(200):
            client.send_headers(client.get_next_available_stream_id(), HEAD, end_stream=True)
        downstream.feed(client.data_to_send())
        assert len(harness.upstream.streams) == (burst + 1) * 200
        for stream in harness.upstream.streams[-200:]:
            stream.send_response_headers(HeaderMap([(b":status", b"200")]), True)
        client.receive_data(downstream.received())
    assert 0 < armed(harness) <= 2 * SPARE_TIMERS + 2  # a few are the connection's
    downstream.leave()
    assert armed(harness) == 0
