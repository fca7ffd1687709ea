"""The connection manager: one downstream connection, its codec, and the streams on it."""

from __future__ import annotations

import os
import struct
from typing import Final

from meshproxy.clock import monotonic
from meshproxy.codec.connection import CodecConnection, ServerConnectionCallbacks, output_size
from meshproxy.codec.http1.server import Http1ServerConnection
from meshproxy.codec.http1.start_lines import reason_phrase
from meshproxy.codec.http2.constants import PREFACE
from meshproxy.codec.http2.failures import Http2Flood
from meshproxy.codec.http2.server import Http2ServerConnection
from meshproxy.codec.http2.stream import Http2Stream
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_LOCAL, RESET_TERMINATION, ProtocolError
from meshproxy.http.http2_limits import FlushTimer, PrematureResets
from meshproxy.http.manager_config import AUTO, HTTP2, ConnectionManagerConfig
from meshproxy.http.network_filter import ActiveConnection, ConnectionOwner
from meshproxy.http.response_timer import ResponseTimer
from meshproxy.http.stream import Stream
from meshproxy.http.stream_timeouts import StreamIdleTimer, flush_timeout_ms
from meshproxy.net.connection import Connection
from meshproxy.net.dispatcher import Dispatcher, Flushable
from meshproxy.net.keepalive import Keepalive, PingSender
from meshproxy.net.timers import CallTimer, TimerWheel
from meshproxy.observe import response_flags as flags
from meshproxy.observe.stream_info import ConnectionInfo
from meshproxy.observe.wire import WireBytes, read_wire, wire_of
from meshproxy.upstream.manager import ClusterManager

_RANDOM_AT_ONCE: Final = 256
_PIPELINED_PER_TURN: Final = 16  # requests of one connection that are answered here, one after the other
_PREFACE_BEGINS: Final = PREFACE[:12]  # by this HTTP/2 is recognised (as Envoy)


class _RandomNumbers:
    """Made many at once: every stream has one, though few routes ask for it."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def next(self) -> int:
        if not self._numbers:
            self._numbers = list(struct.unpack(f"{_RANDOM_AT_ONCE}Q", os.urandom(8 * _RANDOM_AT_ONCE)))
        return self._numbers.pop()


_RANDOM: Final = _RandomNumbers()


class ConnectionManager(ServerConnectionCallbacks):
    """Speaks HTTP on one downstream connection."""

    def __init__(
        self,
        config: ConnectionManagerConfig,
        dispatcher: Dispatcher,
        clusters: ClusterManager,
        owner: ConnectionOwner,
        connection: Connection,
        connection_info: ConnectionInfo,
    ) -> None:
        self.config = config
        self.dispatcher = dispatcher
        self.timers: TimerWheel = dispatcher.timers
        self.clusters = clusters
        self.owner = owner
        self.connection = connection
        self.connection_info = connection_info
        self.buffer_limit_bytes: int = connection.buffer_limit_bytes
        self._http1: Http1ServerConnection | None = None  # the codec, if it is that,
        self._http2: Http2ServerConnection | None = None  # or that
        self.codec: CodecConnection = self._new_codec(config.codec_type == HTTP2)
        self.handler: ActiveConnection = _Handler(self)
        self._streams: dict[Stream, None] = {}
        self._requests: int = 0
        self._draining: bool = False
        self._closed: bool = False
        self._spoke: bool = False  # the peer has sent something
        self._secure: bool = connection_info.transport_socket is not None
        self._backed_up: bool = False  # more than the limit waits to be sent
        self._began: float = monotonic()
        self._last_active: float = self._began
        self._idle_timer: CallTimer | None = None
        self._duration_timer: CallTimer | None = None
        self._headers_timer: CallTimer | None = None
        self.spare_idle_timers: list[StreamIdleTimer] = []  # of streams that have ended; they stay armed
        self.spare_response_timers: list[ResponseTimer] = []
        self._amid_head: bool = False  # HTTP/2: half of a request's head has come,
        self._head_timer: CallTimer | None = None  # and has so long for its rest
        self._drain_begin: CallTimer | None = None  # of a drain that tells one connection after the other
        self._drain_timer: CallTimer | None = None  # there is one from the beginning of the drain sequence on
        self._resets: PrematureResets | None = None  # of HTTP/2
        self._keepalive: Keepalive | None = None
        self._wire = WireBytes()  # the reading when the newest stream ended, if streams are measured
        self._start()

    def _start(self) -> None:
        stats = self.config.stats
        stats.downstream_cx_total += 1
        stats.downstream_cx_active += 1
        stats.downstream_cx_ssl_total += self._secure
        stats.downstream_cx_ssl_active += self._secure
        config = self.config
        if config.idle_timeout_ms > 0.0:
            self._idle_timer = CallTimer(self.on_idle_timer)
            self.timers.arm(self._idle_timer, config.idle_timeout_ms)
        if config.max_connection_duration_ms > 0.0:
            self._duration_timer = CallTimer(self.on_max_duration)
            self.timers.arm(self._duration_timer, config.max_connection_duration_ms)
        if config.request_headers_timeout_ms > 0.0 or config.request_timeout_ms > 0.0:
            self._headers_timer = CallTimer(self.on_headers_timeout)

    def _new_codec(self, http2: bool) -> CodecConnection:
        if not http2:
            self._http1 = Http1ServerConnection(self, self.config.codec)
            return self._http1
        config = self.config
        self._http1 = None
        self._http2 = Http2ServerConnection(self, config.http2, config.http2_stats.counts())
        return self._http2

    @property
    def is_http2(self) -> bool:
        """Whether the connection's streams are independent of each other."""
        return self._http2 is not None

    def random(self) -> int:
        """64 random bits: for splits and runtime fractions, not for secrets."""
        return _RANDOM.next()

    # -- from the codec

    def new_stream(self, encoder: StreamEncoder) -> StreamDecoder:
        self._requests += 1
        if self._headers_timer is not None:
            self._headers_timer.disarm()
        stream = Stream(self, encoder)
        self._streams[stream] = None
        most = self.config.max_requests_per_connection
        if most and self._requests >= most and not self._draining:
            self.config.stats.downstream_cx_max_requests_reached += 1
            self.drain_close()
        return stream

    def on_send_pending(self) -> None:
        if self._http2 is not None and len(self._streams) > 1:
            self.connection.send_gathered()  # answers that come on several upstream connections leave in one write
        else:
            self.connection.send_pending()

    def on_protocol_error(self, error: ProtocolError) -> None:
        """The peer sent what is no HTTP: on HTTP/1 it is answered (a response that has begun is cut); the connection
        is closed."""
        stats = self.config.stats
        stats.downstream_cx_protocol_error += error.status != 408 and not isinstance(error, Http2Flood)
        if self._http2 is not None:
            self.connection_info.response_flags |= flags.DOWNSTREAM_PROTOCOL_ERROR
            self._close()
            return
        stream = next(reversed(self._streams))
        stream.info.protocol = self.protocol()
        self.connection_info.response_flags |= flags.DOWNSTREAM_PROTOCOL_ERROR
        if stream.info.request_headers is None:
            self._requests -= 1  # it is none
        if error.status == 408:
            stream.send_local_reply(408, error.reason.encode(), error.details)
        elif stream.response_started:
            stream.info.response_flags |= flags.DOWNSTREAM_PROTOCOL_ERROR
            stream.reset(error.details)
        else:
            flag = flags.DOWNSTREAM_PROTOCOL_ERROR
            stream.send_local_reply(error.status, reason_phrase(error.status), error.details, flag)

    def on_stream_complete(self) -> None:
        """The response is in the output; `on_stream_done` follows from the stream itself."""

    def on_abort(self) -> None:
        """A response that cannot be completed ends with the connection (RFC 9112 section 8)."""
        self.connection.close()

    def on_reading_wanted(self) -> None:
        self.connection.read_disable(False)

    def on_stream_closed(self) -> None:
        self._close_if_drained()

    def on_ping_ack(self) -> None:
        if self._keepalive is not None:
            self._keepalive.on_ack()

    def send_ping(self) -> None:
        if self._http2 is not None:
            self._http2.ping()

    def on_ping_timeout(self) -> None:
        """The peer has given no sign of life."""
        self.config.http2_stats.counts().keepalive_timeout += 1
        self._close("downstream_local_disconnect(http2_ping_timeout)")

    def protocol(self) -> int:
        """The version of the newest request: 10, 11 or 20."""
        http1 = self._http1
        return 20 if http1 is None else http1.protocol

    # -- from the socket

    def on_data(self, data: bytes) -> None:
        self.config.stats.downstream_cx_rx_bytes_total += len(data)
        if not self._spoke:
            self._on_first_data(data)
        codec = self._http1
        if codec is None:
            self._receive_http2(data)
            return
        timer = self._headers_timer
        if timer is not None and not timer.armed and not self._streams and not self._backed_up:
            self.timers.arm(timer, self._head_timeout_ms())
        wanted = codec.reading_wanted
        codec.receive_data(data)
        if wanted and not codec.reading_wanted:
            self.connection.read_disable(True)

    def _receive_http2(self, data: bytes) -> None:
        http2 = self._http2
        assert http2 is not None
        http2.receive_data(data)
        if http2.amid_head != self._amid_head:
            self._on_amid_head(not self._amid_head)

    def _on_amid_head(self, amid_head: bool) -> None:
        """HTTP/2: a request's head has begun to arrive, or is whole; the codec makes no stream before that."""
        self._amid_head = amid_head
        if not amid_head:
            if self._head_timer is not None:
                self._head_timer.disarm()
            return
        limits = self._half_head_limits_ms()
        if limits and not self._closed:
            if self._head_timer is None:
                self._head_timer = CallTimer(self.on_half_head)
            self.timers.arm(self._head_timer, min(limits))

    def _half_head_limits_ms(self) -> list[float]:
        """What bounds a head that does not end, as it would a stream in Envoy, which makes one from its first byte."""
        config = self.config
        limits = (config.request_headers_timeout_ms, config.request_timeout_ms, config.stream_idle_timeout_ms)
        return [limit for limit in limits if limit > 0.0]

    def on_half_head(self) -> None:
        """Nothing more can come on the connection than the rest of that head: so it ends."""
        config, stats = self.config, self.config.stats
        limit = min(self._half_head_limits_ms())
        if limit == config.request_headers_timeout_ms:
            stats.downstream_rq_header_timeout += 1
        elif limit == config.request_timeout_ms:
            stats.downstream_rq_timeout += 1
        else:
            stats.downstream_rq_idle_timeout += 1
        self._draining = True
        self._close("request_header_timeout")

    def _on_first_data(self, data: bytes) -> None:
        self._spoke = True
        if self.config.codec_type == AUTO and self._offers_http2(data):
            self.codec = self._new_codec(True)
        stats = self.config.stats
        http2 = self._http2
        if http2 is None:
            stats.downstream_cx_http1_total += 1
            stats.downstream_cx_http1_active += 1
        else:
            stats.downstream_cx_http2_total += 1
            stats.downstream_cx_http2_active += 1
            http2.start()
            self._resets = PrematureResets(self.config.reset_limits)
            self._start_keepalive()

    def _start_keepalive(self) -> None:
        settings = self.config.http2_keepalive
        if settings is not None:
            self._keepalive = Keepalive(
                _Pings(self), self.timers, settings.interval_ms, settings.timeout_ms, settings.jitter_percent, 0.0
            )
            self._keepalive.start(monotonic())

    def _offers_http2(self, data: bytes) -> bool:
        """What TLS has agreed upon counts; without it, what the connection begins with."""
        transport_socket = self.connection.transport_socket
        if transport_socket is not None and transport_socket.facts.application_protocol:
            return bool(transport_socket.facts.application_protocol == "h2")
        return data.startswith(_PREFACE_BEGINS)

    def on_eof(self) -> None:
        """HTTP has no half close: the peer that shuts its side has left (Envoy's rule)."""
        self._end_streams("downstream_remote_disconnect", remote=True)
        self.connection.close()

    def on_close(self, error: str) -> None:
        if not self._closed:
            self._end_streams("downstream_remote_disconnect", remote=True)
        self._done()

    def data_to_send(self) -> bytes | list[bytes]:
        if self._http2 is not None and not self.connection.write_buffer_bytes:
            self._http2.on_output_written()
        data = self.codec.data_to_send()
        self.config.stats.downstream_cx_tx_bytes_total += output_size(data)
        return data

    def on_above_write_watermark(self) -> None:
        self._backed_up = True
        if self._http2 is not None:
            self._http2.on_above_write_watermark()
            return
        for stream in self._streams:
            stream.on_above_write_watermark()

    def on_below_write_watermark(self) -> None:
        self._backed_up = False
        if self._http2 is not None:
            self._http2.on_below_write_watermark()
            return
        for stream in list(self._streams):
            stream.on_below_write_watermark()
        if not self._streams and not self._closed:
            self._read_next()

    # -- streams

    def recreate_stream(self, old: Stream) -> Stream:
        """The stream that goes on with the request of one that was redirected, and sends its response."""
        encoder = old.encoder
        stream = Stream(self, encoder)
        del self._streams[old]
        self._streams[stream] = None
        if isinstance(encoder, Http2Stream):
            encoder.decoder = stream
        elif self._http1 is not None:
            self._http1.decoder = stream
        return stream

    def on_stream_done(self, stream: Stream) -> None:
        del self._streams[stream]
        self._last_active = monotonic()
        if self._closed:
            return
        http1 = self._http1
        if http1 is None:
            self._on_http2_stream_done(stream)
        elif self._draining or http1.should_close or not stream.response_complete:
            self._close()
        else:
            self._read_next()

    def _on_http2_stream_done(self, stream: Stream) -> None:
        encoder, resets = stream.encoder, self._resets
        if isinstance(encoder, Http2Stream) and encoder.is_waiting:
            timeout_ms = flush_timeout_ms(stream)
            if timeout_ms > 0.0:
                FlushTimer(encoder, self.timers, timeout_ms, self.config.http2_stats.counts())
        unanswered = stream.was_reset and not stream.response_started
        if resets is not None and resets.on_stream_end(unanswered, self._last_active - stream.info.start):
            self.config.stats.downstream_rq_too_many_premature_resets += 1
            self.config.stats.downstream_cx_protocol_error += 1
            self._end_streams("too_many_premature_resets", remote=False, reason=RESET_LOCAL)
            self._close()
        else:
            self._close_if_drained()

    def _close_if_drained(self) -> None:
        """HTTP/2 that takes no further streams ends with the last one, when its answer is in the output."""
        http2 = self._http2
        if http2 is not None and self._draining and not self._closed and not self._streams and not http2.streams:
            self._close()

    def _read_next(self) -> None:
        """A pipelined request waits for the end of the turn: by then the upstream connection of the one before it is
        free again. After so many of them it waits for the next turn, so that others have theirs.

        Whoever does not take our answers is not asked for more.
        """
        http1 = self._http1
        if self._backed_up or http1 is None:
            return
        if not http1.buffered_bytes:
            http1.read_next()
        elif self._requests % _PIPELINED_PER_TURN:
            self.dispatcher.mark_dirty(_NextRequest(self))
        else:
            self.dispatcher.post(_NextRequest(self).mark)

    def read_next(self) -> None:
        if not self._closed and not self._backed_up and self._http1 is not None:
            self._http1.read_next()

    def measure(self, stream: Stream) -> None:
        """Tell the stream what it had on the wire so far: on HTTP/1 all since the one before it ended."""
        encoder = stream.encoder
        if isinstance(encoder, Http2Stream):
            stream.info.wire = wire_of(encoder)
            return
        now = read_wire(self.connection, self.codec)
        stream.info.wire = WireBytes()
        stream.info.wire.add(now, self._wire)
        if stream.done:
            self._wire = now

    def closes_after(self, stream: Stream) -> bool:
        """Whether the response of this stream is the connection's last: then it says `connection: close`."""
        http1 = self._http1
        if http1 is not None and (self._drain_timer is not None or http1.should_close):
            self._draining = True
        if self.owner.draining and not self._draining and self._drain_timer is None and self.owner.closes_now():
            self.on_drain_begin()
        return self._draining and http1 is not None

    def start_drain(self, after_ms: float) -> None:
        """The listener drains. HTTP/2's client is told without an answer, as in Envoy: its streams may be long."""
        if self._http2 is None or not self._spoke or self._drain_timer is not None:
            return
        if after_ms <= 0.0:
            self.on_drain_begin()
            return
        if self._drain_begin is None:
            self._drain_begin = CallTimer(self.on_drain_begin)
        self.timers.arm(self._drain_begin, after_ms)

    def on_drain_begin(self) -> None:
        if self._drain_timer is None:
            self.config.stats.downstream_cx_drain_close += 1
            self.drain_close()

    def drain_close(self) -> None:
        """HTTP/1: the next response is the connection's last. HTTP/2: the client is told to open no more streams, and
        has the time of a drain to hear it."""
        if self._http2 is None:
            self._draining = True
        else:
            self._start_drain_sequence(self.config.drain_timeout_ms)

    def end_http1(self) -> None:
        """HTTP/1: the connection can serve no other request; HTTP/2's streams do not depend on each other."""
        if self._http1 is not None:
            self._draining = True

    def idle_ms(self) -> float:
        """How long no stream has been active; -1 while one is."""
        return -1.0 if self._streams else (monotonic() - self._last_active) * 1000.0

    def close_idle(self, idle_ms: float) -> None:
        """Close now if no stream has been active for so long, and no request has begun to arrive."""
        if self.idle_ms() >= idle_ms and not self.codec.buffered_bytes:
            self._draining = True  # GOAWAY says that what is on its way was not looked at
            self._close()

    def active_requests(self) -> int:
        return len(self._streams)

    def _end_streams(self, details: str, remote: bool, reason: int = 0) -> None:
        stats = self.config.stats
        if self._closed:
            return
        self._closed = True
        stats.downstream_cx_destroy += 1
        active = bool(self._streams)
        stats.downstream_cx_destroy_active_rq += active
        if remote:
            stats.downstream_cx_destroy_remote += 1
            stats.downstream_cx_destroy_remote_active_rq += active
        else:
            stats.downstream_cx_destroy_local += 1
            stats.downstream_cx_destroy_local_active_rq += active
        for stream in list(self._streams):
            stream.on_reset(reason, details)

    def _close(self, details: str = "local_close") -> None:
        """Close after what is pending has been sent."""
        self._end_streams(details, remote=False)
        http2 = self._http2
        if http2 is not None:
            http2.stop_reading()
            if self._draining:
                http2.goaway()
        self.connection.close(self.config.delayed_close_timeout_ms)

    def abort(self) -> None:
        self._end_streams("local_close", remote=False)
        self.connection.abort()

    def _done(self) -> None:
        stats = self.config.stats
        stats.downstream_cx_active -= 1
        if self._http2 is None:
            stats.downstream_cx_http1_active -= self._spoke
        else:
            stats.downstream_cx_http2_active -= self._spoke
            self._http2.close_streams(RESET_TERMINATION)
        stats.downstream_cx_ssl_active -= self._secure
        stats.downstream_cx_length_ms.record(int((monotonic() - self._began) * 1000.0))
        rare = (self._head_timer, self._drain_begin, self._drain_timer)
        for timer in (self._idle_timer, self._duration_timer, self._headers_timer, *rare):
            if timer is not None:
                timer.disarm()
        if self._keepalive is not None:
            self._keepalive.stop()
        for idle_timer in self.spare_idle_timers:
            idle_timer.disarm()
        for response_timer in self.spare_response_timers:
            response_timer.disarm()
        self.connection_info.protocol = self.protocol() if self._requests else 0
        handler = self.handler
        # No cycle is left, so all of the connection is freed now: memory that waits for the collector is cold.
        self._idle_timer = self._duration_timer = self._headers_timer = None
        self._head_timer = self._drain_timer = self._drain_begin = None
        self.codec.forget_callbacks()
        self.handler = _GONE
        self.owner.on_connection_done(handler)

    # -- timeouts

    def on_idle_timer(self) -> None:
        """The timer is armed once and looks again: a request costs it nothing."""
        timer = self._idle_timer
        assert timer is not None
        idle_ms = self.idle_ms()
        limit = self.config.idle_timeout_ms
        if self._streams:
            self.timers.arm(timer, limit)
        elif idle_ms >= limit:
            self.config.stats.downstream_cx_idle_timeout += 1
            self._start_drain_sequence(self.config.drain_timeout_ms)
        else:
            self.timers.arm(timer, limit - idle_ms)

    def on_max_duration(self) -> None:
        config = self.config
        config.stats.downstream_cx_max_duration_reached += 1
        self._start_drain_sequence(-1.0 if config.safe_max_connection_duration else config.drain_timeout_ms)

    def _start_drain_sequence(self, drain_timeout_ms: float) -> None:
        """The next response is the last. Without one the connection ends after `drain_timeout_ms`; never, if below 0.

        The time is for a request that is on its way already. A connection that was never used ends at once.
        """
        if self._drain_timer is not None:
            return
        self._drain_timer = CallTimer(self.on_drain_timeout)
        if not self.connection.bytes_received:
            self._close()
            return
        if self._http2 is not None:
            self._http2.shutdown_notice()
        if drain_timeout_ms >= 0.0:
            self.timers.arm(self._drain_timer, drain_timeout_ms)

    def on_drain_timeout(self) -> None:
        self._draining = True
        if not self._streams:
            self._close()
        elif self._http2 is not None:
            self._http2.goaway()

    def _head_timeout_ms(self) -> float:
        """From the first byte of a request on: for its head, and for all of it."""
        head, whole = self.config.request_headers_timeout_ms, self.config.request_timeout_ms
        return min(head, whole) if head > 0.0 and whole > 0.0 else max(head, whole)

    def on_headers_timeout(self) -> None:
        config = self.config
        self._draining = True
        http1 = self._http1
        if http1 is None:
            return
        if config.request_headers_timeout_ms == self._head_timeout_ms():
            config.stats.downstream_rq_header_timeout += 1
            http1.fail(ProtocolError(408, "request_header_timeout", "request header timeout"))
        else:
            config.stats.downstream_rq_timeout += 1
            http1.fail(ProtocolError(408, "request_overall_timeout", "request timeout"))


_GONE: Final = ActiveConnection()


class _Pings(PingSender):
    """What keeps an HTTP/2 connection under watch (a native class has one base)."""

    def __init__(self, manager: ConnectionManager) -> None:
        self._manager = manager

    def send_ping(self) -> None:
        self._manager.send_ping()

    def on_ping_timeout(self) -> None:
        self._manager.on_ping_timeout()


class _NextRequest(Flushable):
    """The end of a turn, as a manager with a pipelined request waits for it."""

    def __init__(self, manager: ConnectionManager) -> None:
        self._manager = manager

    def mark(self) -> None:
        self._manager.dispatcher.mark_dirty(self)

    def flush(self) -> None:
        self._manager.read_next()


class _Handler(ActiveConnection):
    """The manager as socket and listener see it (a native class has one base)."""

    def __init__(self, manager: ConnectionManager) -> None:
        self._manager = manager

    def on_data(self, data: bytes) -> None:
        self._manager.on_data(data)

    def on_eof(self) -> None:
        self._manager.on_eof()

    def on_close(self, error: str) -> None:
        self._manager.on_close(error)

    def data_to_send(self) -> bytes | list[bytes]:
        return self._manager.data_to_send()

    def start_drain(self, after_ms: float) -> None:
        self._manager.start_drain(after_ms)

    def retire(self) -> None:
        self._manager.on_drain_begin()

    def end_retired(self) -> None:
        self._manager.close_idle(0.0)

    def close_idle(self, idle_ms: float) -> None:
        self._manager.close_idle(idle_ms)

    def abort(self) -> None:
        self._manager.abort()

    def active_requests(self) -> int:
        return self._manager.active_requests()

    def on_above_write_watermark(self) -> None:
        self._manager.on_above_write_watermark()

    def on_below_write_watermark(self) -> None:
        self._manager.on_below_write_watermark()
