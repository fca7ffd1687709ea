"""What the streams of an HTTP/2 connection leave behind when they have ended: nothing."""

from __future__ import annotations

import pytest
from h2.connection import H2Connection
from h2.events import ResponseReceived, StreamEnded

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.timeouts import SPARE_TIMERS
from tests.http.harness import Downstream, Harness, ScriptedUpstream
from tests.support.garbage import only_collected

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


def ask(client: H2Connection, downstream: Downstream, count: int) -> None:
    """So many requests in one go."""
    for _ in range(count):
        client.send_headers(client.get_next_available_stream_id(), HEAD, end_stream=True)
    downstream.feed(client.data_to_send())


def test_streams_hand_on_their_timers_however_many_there_are_at_once() -> None:
    harness = Harness(upstream=ScriptedUpstream(None))
    downstream = harness.connect()
    client = H2Connection()
    client.initiate_connection()
    for burst in range(10):
        ask(client, downstream, 200)
        assert len(harness.upstream.streams) == (burst + 1) * 200
        for stream in harness.upstream.streams[-200:]:
            stream.send_response_headers(HeaderMap([(b":status", b"200")]), True)
        client.receive_data(downstream.received())
    assert 0 < armed(harness) <= 2 * SPARE_TIMERS + 2  # a few are the connection's
    downstream.leave()
    assert armed(harness) == 0


def test_no_cycle_is_left_for_the_collector() -> None:
    harness = Harness()
    downstream = harness.connect()
    client = H2Connection()
    client.initiate_connection()
    ask(client, downstream, 1)
    harness.upstream.streams.clear()
    with only_collected() as left:
        ask(client, downstream, 10)
        assert len(harness.upstream.streams) == 10
        harness.upstream.streams.clear()
    assert left == []


@pytest.mark.parametrize(("streams", "waits"), [(1, False), (3, True)])
def test_answers_of_several_turns_leave_in_one_write(streams: int, waits: bool) -> None:
    harness = Harness(upstream=ScriptedUpstream(None))
    downstream = harness.connect()
    client = H2Connection()
    client.initiate_connection()
    ask(client, downstream, streams)
    client.receive_data(downstream.received())
    for stream in harness.upstream.streams:
        harness.dispatcher.begin_turn()
        stream.send_response_headers(HeaderMap([(b":status", b"200")]), True)
        harness.dispatcher.end_turn()
        assert (downstream.transport.written == b"") is waits
    events = client.receive_data(downstream.received())
    assert [type(event) for event in events if not isinstance(event, ResponseReceived)] == [StreamEnded] * streams
