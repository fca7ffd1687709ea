"""`access_log_flush_interval`: records of a stream that goes on."""

from __future__ import annotations

from meshproxy.observe.access_log import AccessLog
from meshproxy.observe.stream_info import StreamInfo
from tests.http.harness import Harness, ScriptedUpstream, get


class Kinds(AccessLog):
    """Keeps the kind of each record."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def log(self, info: StreamInfo) -> None:
        self.kinds.append(info.log_type)


def test_a_stream_is_logged_at_intervals_until_it_ends() -> None:
    made, log = Harness(upstream=ScriptedUpstream(None)), Kinds()
    config = made.config()
    config.access_logs = (log,)
    config.access_log_interval_ms = 100.0
    connection = made.connect(config)
    connection.send(get("/"))
    made.advance(110)
    made.advance(110)
    assert log.kinds == ["DownstreamPeriodic"] * 2
    made.upstream.streams[0].send_local_reply(200)
    assert log.kinds.pop() == "DownstreamEnd"
    made.advance(500)
    assert log.kinds == ["DownstreamPeriodic"] * 2


def test_without_an_interval_there_is_no_timer() -> None:
    made, log = Harness(upstream=ScriptedUpstream(None)), Kinds()
    config = made.config()
    config.access_logs = (log,)
    connection = made.connect(config)
    connection.send(get("/"))
    made.advance(60_000)
    assert log.kinds == []
