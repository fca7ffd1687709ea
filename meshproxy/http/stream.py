"""A stream: one request and its response, from the downstream codec through the filters to the router and back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from meshproxy.clock import monotonic
from meshproxy.codec.grpc import DEADLINE_EXCEEDED, encode_timeout, is_grpc
from meshproxy.codec.grpc import timeout_ms as grpc_timeout_ms
from meshproxy.codec.headers import CONNECTION, EXPECT, GRPC_TIMEOUT, UPGRADE, HeaderMap, status_code
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import (
    RESET_LOCAL,
    RESET_PROTOCOL_ERROR,
    RESET_REMOTE,
    RESET_REMOTE_REFUSED,
    MeshProxyError,
)
from meshproxy.http import request_headers as rules
from meshproxy.http.async_client import HttpClient
from meshproxy.http.chain import DATA, HEADERS, FilterChain, RequestPath, ResponsePath
from meshproxy.http.entry import RejectedRequest, check_and_normalize
from meshproxy.http.filter import HttpFilter
from meshproxy.http.local_reply import complete_grpc_reply_headers, complete_reply_headers
from meshproxy.http.response_headers import mutate_response_headers
from meshproxy.http.router import Router
from meshproxy.http.timeouts import SPARE_TIMERS
from meshproxy.http.tracing.span import StreamTrace
from meshproxy.http.upgrade import establishes_tunnel, tunnel_chain, tunnel_protocol
from meshproxy.net.dispatcher import CancelledError
from meshproxy.net.timers import CallTimer, Timer
from meshproxy.observe import response_flags as flags
from meshproxy.observe.log import RateLimitedLog
from meshproxy.observe.stream_info import StreamInfo, UpstreamInfo, shared_metadata, shared_state
from meshproxy.route.internal_redirect import RedirectHistory
from meshproxy.route.route import DISABLED, ENABLED, ROUTE_CLUSTER, Route
from meshproxy.upstream.cluster import Cluster

if TYPE_CHECKING:
    from meshproxy.http.connection_manager import ConnectionManager
    from meshproxy.net.dispatcher import Dispatcher

_log: Final = logging.getLogger("meshproxy.http")
_filter_errors: Final = RateLimitedLog(_log, 1.0)
_AT_ONCE_MS: Final = 0.001


class Stream(StreamDecoder):
    """One request and its response.

    What arrives (`on_*`) comes from the downstream codec; `send_response_*` come from the router, or from
    `send_local_reply`;
    both pass the filters. Filters find here: `info`, `request_headers`, `response_headers`, `state[slot]`, `route`.
    """

    def __init__(self, manager: ConnectionManager, encoder: StreamEncoder) -> None:
        self.manager = manager
        self.config = manager.config
        self.encoder = encoder
        self.info = StreamInfo(manager.connection_info, monotonic())
        self.chain: FilterChain = manager.config.chain
        self.state: list[Any] = []
        self.request_headers: HeaderMap = _NO_HEADERS
        self.response_headers: HeaderMap | None = None
        self.route: Route | None = None
        self.cluster: Cluster | None = None  # the route's, as it was when the route was picked
        self.random: int = manager.random()
        self.buffer_limit_bytes: int = 0  # of a filter that holds the whole request
        self.router: Router | None = None
        self.request_complete: bool = False  # the downstream has sent all
        self.response_started: bool = False  # the head of the response has left the filters
        self.response_complete: bool = False
        self.local_reply: bool = False
        self.trace: StreamTrace | None = None
        self.done: bool = False
        self.was_reset: bool = False  # by the downstream
        self.tunnel: bytes = b""  # the protocol that the connection is wanted for, where that is allowed
        self.tunnel_open: bool = False
        self.grpc_replies: int = -1  # whether local replies are gRPC: 0, 1; -1: where the request says that it is
        self.redirects: RedirectHistory | None = None  # internal ones that led here
        self._entered_chain: bool = False
        self._route_cached: bool = False
        self._request_path: RequestPath | None = None
        self._response_path: ResponsePath | None = None
        self._idle_timer: StreamIdleTimer | None = None
        self._last_active: float = self.info.start
        self._request_timer: CallTimer | None = None
        self._duration_timer: CallTimer | None = None
        self._log_timer: CallTimer | None = None
        self._filter_timers: list[StreamTimer] | None = None
        config = manager.config
        stats = config.stats
        stats.downstream_rq_total += 1
        if manager.is_http2:
            stats.downstream_rq_http2_total += 1
        else:
            stats.downstream_rq_http1_total += 1
        stats.downstream_rq_active += 1
        if config.request_timeout_ms > 0.0:
            self._request_timer = CallTimer(self.on_request_timeout)
            manager.timers.arm(self._request_timer, config.request_timeout_ms)
        if config.access_log_interval_ms > 0.0:
            self._log_timer = CallTimer(self.on_log_timer)
            manager.timers.arm(self._log_timer, config.access_log_interval_ms)
        if config.stream_idle_timeout_ms > 0.0:
            self._arm_idle(config.stream_idle_timeout_ms)

    @property
    def dispatcher(self) -> Dispatcher:
        return self.manager.dispatcher

    # -- from the downstream codec

    def on_headers(self, headers: HeaderMap, end: bool) -> None:
        manager = self.manager
        config = self.config
        info = self.info
        self.request_headers = headers
        info.request_headers = headers
        info.protocol = manager.protocol()
        if end:
            self._on_request_complete()
        else:
            self._touch()
        tunnel = b""
        if headers.known & _UNUSUAL:
            self._handle_unusual(headers)
            if headers.known & UPGRADE:
                tunnel = tunnel_protocol(headers)
        rejected = check_and_normalize(config, headers, info)
        if rejected is None:
            rejected = rules.remove_hop_by_hop(headers, tunnel)
        if rejected is not None:
            self._reject(rejected)
            return
        rules.mutate_request_headers(config, manager.connection_info, headers, info)
        if config.max_stream_duration_ms > 0.0:
            self.arm_max_duration(config.max_stream_duration_ms)
        route = self._match_route()
        if config.tracing is not None:
            config.tracing.begin(self, headers, route)
        chain = config.chain
        if tunnel:
            allowed = tunnel_chain(tunnel, config.upgrades, chain, route)
            if allowed is None and route is not None:
                config.stats.downstream_rq_ws_on_non_ws_route += 1
                self.send_local_reply(403, b"", "upgrade_failed")
                return
            if allowed is not None:
                self._begin_tunnel(tunnel)
                chain = allowed
        self._enter_chain(chain, route, headers, end)

    def _begin_tunnel(self, protocol: bytes) -> None:
        """The request may have its tunnel, if the upstream agrees. How long it sends is nobody's business."""
        self.tunnel = protocol
        self.config.stats.downstream_cx_upgrades_total += 1
        self.config.stats.downstream_cx_upgrades_active += 1
        if self._request_timer is not None:
            self._request_timer.disarm()

    def _enter_chain(self, chain: FilterChain, route: Route | None, headers: HeaderMap, end: bool) -> None:
        config = self.config
        if config.access_log_on_new_request:
            self._write_logs("DownstreamStart")
        chain = chain.for_route(route)
        self.chain = chain
        if chain.size:
            self.state = [None] * chain.size
        self._entered_chain = True
        if route is not None:
            if route.idle_timeout_ms is not None:
                self._set_idle_timeout(route.idle_timeout_ms)
            if route.limits_stream:
                self._limit_duration(route, headers)
        if chain.has_request_hooks:
            self._request_path = RequestPath(self)
            self._request_path.push(HEADERS, headers, end)
        else:
            self.route_part(HEADERS, headers, end)

    def _handle_unusual(self, headers: HeaderMap) -> None:
        """Expect and Proxy-Connection."""
        if headers.known & EXPECT and not self.config.proxy_100_continue:
            expect = headers.get(b"expect")
            if expect is not None and expect.lower() == b"100-continue":
                self.send_informational(HeaderMap([(b":status", b"100")]))
                headers.remove(b"expect")
        if headers.known & CONNECTION:
            proxy_connection = headers.get(b"proxy-connection")
            if proxy_connection is not None and proxy_connection.lower() == b"close":
                self.manager.end_http1()

    def on_data(self, data: bytes, end: bool) -> None:
        self.info.bytes_received += len(data)
        if end:
            self._on_request_complete()
        else:
            self._touch()
        path = self._request_path
        if path is not None:
            path.push(DATA, data, end)
        else:
            self.route_part(DATA, data, end)

    def on_trailers(self, trailers: HeaderMap) -> None:
        self._on_request_complete()
        path = self._request_path
        if path is not None:
            path.push(2, trailers, True)
        else:
            self.route_part(2, trailers, True)

    def on_reset(self, reason: int, details: str) -> None:
        """The downstream went away, or broke the protocol, before the response was complete."""
        if self.done:
            return
        info = self.info
        self.was_reset = True
        if info.request_headers is None:  # a head that the codec refused
            info.protocol = self.manager.protocol()
        self.config.stats.downstream_rq_rx_reset += 1
        info.response_flags |= _RESET_FLAGS.get(reason, flags.DOWNSTREAM_CONNECTION_TERMINATION)
        if not info.response_code_details or info.response_code_details == "via_upstream":
            info.response_code_details = details
        self._finish()

    def on_above_write_watermark(self) -> None:
        self.config.stats.downstream_flow_control_paused_reading_total += 1
        if self.router is not None:
            self.router.read_disable(True)

    def on_below_write_watermark(self) -> None:
        self.config.stats.downstream_flow_control_resumed_reading_total += 1
        if self.router is not None:
            self.router.read_disable(False)

    def _on_request_complete(self) -> None:
        self.request_complete = True
        self.info.request_end = monotonic()
        if self._request_timer is not None:
            self._request_timer.disarm()
        self._touch()

    # -- the request's way to the router

    def route_part(self, kind: int, part: Any, end: bool) -> None:
        """What left the request's filters goes to the router."""
        if self.done or self.local_reply:
            return
        if kind == HEADERS:
            self.router = Router(self)
            self.router.on_request_headers(self.current_route(), self.request_headers, end)
            return
        router = self.router
        if router is None:
            return
        if kind == DATA:
            router.on_request_data(part, end)
        else:
            router.on_request_trailers(part)

    def read_disable_request(self, disable: bool) -> None:
        """Backpressure towards the downstream."""
        if not disable or not self.request_complete:
            self.encoder.read_disable(disable)

    def _match_route(self) -> Route | None:
        table = self.config.routes.table
        self._route_cached = True
        route = None if table is None else table.match(self.request_headers, self.info, self.random)
        self.route = route
        if route is not None:
            self.info.route = route.info
            if route.kind == ROUTE_CLUSTER:
                self._take_cluster(route)
        return route

    def _take_cluster(self, route: Route) -> None:
        cluster = self.cluster = self.manager.clusters.get(route.resolve_cluster(self.request_headers))
        if cluster is not None:
            upstream = self.info.upstream = UpstreamInfo()
            upstream.cluster = cluster.info

    def current_route(self) -> Route | None:
        """The route: picked before the filters run, and again after a filter cleared it."""
        return self.route if self._route_cached else self._match_route()

    def clear_route_cache(self) -> None:
        """For a filter that changed what routes match on: the route is picked anew when it is next asked for."""
        self._route_cached = False

    def route_config(self, http_filter: HttpFilter) -> object | None:
        """The overrides of `http_filter` (typed_per_filter_config) on the stream's route; None when it has none."""
        route = self.current_route()
        if route is None:
            return None
        config = route.filter_configs.get(http_filter.name)
        return None if config is DISABLED or config is ENABLED else config

    # -- the filters' verbs

    def resume_request(self) -> None:
        """Go on with a request that a filter held."""
        if self._request_path is not None:
            self._request_path.resume()

    def resume_response(self) -> None:
        """Go on with a response that a filter held."""
        if self._response_path is not None:
            self._response_path.resume()

    @property
    def call(self) -> HttpClient:
        """For a hook that waits: `await stream.call("users", path=b"/ann")` is a request through one of the proxy's
        clusters, which ends with the stream. Raises CallError where there is no response."""
        return HttpClient(self.manager.clusters, self.manager.timers)

    def call_later(self, delay_ms: float, callback: Callable[[], object]) -> Timer:
        """Call back once, unless the stream ends before, or the timer is disarmed. If it raises, the stream fails."""
        timer = StreamTimer(self, callback)
        if self._filter_timers is None:
            self._filter_timers = []
        self._filter_timers.append(timer)
        self.manager.timers.arm(timer, delay_ms)
        return timer

    def on_filter_timer(self, timer: StreamTimer) -> None:
        if self.done:
            return
        try:
            timer.callback()
        except (Exception, SystemExit, CancelledError) as error:  # noqa: BLE001  a user's code
            self.config.stats.downstream_rq_filter_error += 1
            _filter_errors.error("a timer of a filter raised", error)
            self.send_local_reply(500, b"", f"filter_error{{timer|{type(error).__name__}}}")

    def metadata(self, namespace: str) -> dict[str, Any]:
        """The dynamic metadata under `namespace`, to read and to change: filters, matchers and logs share it."""
        return shared_metadata(self.info).setdefault(namespace, {})

    def filter_state(self) -> dict[str, Any]:
        """Objects that filters leave to those behind them, and to logs, by name."""
        return shared_state(self.info)

    def buffer_request(self, limit_bytes: int) -> None:
        """For a headers hook of the request: its data hook is called once, with the whole body, and the headers wait
        until then (a `content-length` follows the body). A body that is longer is answered 413."""
        if self._request_path is not None:
            self.buffer_limit_bytes = limit_bytes
            self._request_path.collect(limit_bytes)

    def buffer_response(self, limit_bytes: int, cut: bool = False) -> None:
        """As `buffer_request`, for the response; a body that is longer is answered 500, or is `cut` there."""
        if self._response_path is not None:
            self._response_path.collect(limit_bytes, cut)

    def let_response_wait(self) -> None:
        """For a headers hook of the response: the headers go on when the filter's data or trailers hook lets something
        pass, which may change them until then. Neither may hold the response before."""
        if self._response_path is not None:
            self._response_path.wait()

    def let_request_wait(self) -> None:
        """As `let_response_wait`, for the request."""
        if self._request_path is not None:
            self._request_path.wait()

    def keep_response_data(self, rest: bytes) -> None:
        """For a data hook of the response that passes on only the beginning of its data: `rest` comes to it again."""
        if self._response_path is not None:
            self._response_path.keep(rest)

    def add_to_request(self, part: HeaderMap | bytes) -> None:
        """For a filter with both hooks that lets the end of the request pass: its trailers hook adds data before the
        trailers, its data hook adds trailers behind the last data. The filters behind it see what is added."""
        if self._request_path is not None:
            self._request_path.add(part)

    def add_to_response(self, part: HeaderMap | bytes) -> None:
        """As `add_to_request`, for the response. A headers hook may add data too, where there is no body: its own data
        hook sees that first."""
        if self._response_path is not None:
            self._response_path.add(part)

    def send_local_reply(
        self,
        status: int,
        body: bytes = b"",
        details: str = "",
        response_flags: int = 0,
        extra: HeaderMap | None = None,
        grpc_status: int = -1,
        content_type: bytes = b"",
    ) -> None:
        """Answer in place of an upstream. At most once a stream, and only before a response began: else the stream
        is reset.

        The reply passes the filters of the response; no hook of the request is called any more. Raises TypeError for
        what is no status or no body.
        """
        if self.done:
            return
        _check_reply(status, body)
        self.info.response_flags |= response_flags
        self.info.response_code_details = details.replace(" ", "_")
        if self._request_path is not None:
            self._request_path.finish()
        if self.router is not None:
            self.router.cancel()
        if self.response_started or self.local_reply:
            self.reset(details)
            return
        self.local_reply = True
        if status == 400:
            self.manager.end_http1()  # as Envoy: a bad request is the connection's last
        if self._response_path is not None:
            self._response_path.finish()
            self._response_path = None
        headers = HeaderMap()
        headers.add(b":status", b"%d" % status)
        if extra is not None:
            headers.extend(extra.fields)
        grpc = self._replies_as_grpc()
        mapping = self.config.local_replies
        if mapping is not None:
            status, body, content_type = mapping.rewrite(headers, self.info, status, body, content_type, grpc)
        if grpc:
            complete_grpc_reply_headers(headers, status, body, grpc_status)
            body = b""
        else:
            complete_reply_headers(headers, body, content_type)
        if self.request_headers.get(b":method") == b"HEAD":
            body = b""
        self.send_response_headers(headers, not body)
        if body and not self.done:
            self.send_response_data(body, True)

    def _replies_as_grpc(self) -> bool:
        return is_grpc(self.request_headers) if self.grpc_replies < 0 else self.grpc_replies > 0

    def on_filter_error(self, http_filter: HttpFilter, error: BaseException) -> None:
        """A filter raised: the stream is answered 500 with the filter's name, whichever way it was going."""
        self.config.stats.downstream_rq_filter_error += 1
        _filter_errors.error(f"filter {http_filter.name} raised", error)
        details = f"filter_error{{{http_filter.name}|{type(error).__name__}}}"
        if self.local_reply and not self.response_started and not self.done:
            self._reply_past_filters(details)
        else:
            self.send_local_reply(500, b"", details)

    def _reply_past_filters(self, details: str) -> None:
        """A filter failed on a local reply itself: the client is told so without the filters."""
        if self._response_path is not None:
            self._response_path.finish()
            self._response_path = None
        self.info.response_code_details = details
        headers = HeaderMap([(b":status", b"500")])
        if self._replies_as_grpc():
            complete_grpc_reply_headers(headers, 500, b"", -1)
        else:
            complete_reply_headers(headers, b"", b"")
        self.response_headers = self.info.response_headers = headers
        self.info.response_code = status_code(headers)
        self.encode_part(HEADERS, headers, True)

    def reset(self, details: str) -> None:
        """End the stream without an (or amid its) answer: on HTTP/1 that closes the connection."""
        if self.done:
            return
        self.config.stats.downstream_rq_tx_reset += 1
        self.config.stats.downstream_rq_rx_reset += 1  # Envoy's rule: every stream that ends before both its halves
        self.info.response_code_details = details.replace(" ", "_")
        self.encoder.reset(RESET_LOCAL)
        self._finish()

    # -- the response's way back

    def send_informational(self, headers: HeaderMap) -> None:
        """An interim response goes down as it is; the filters see final responses only."""
        if not self.response_started and not self.done:
            status = self.info.response_code = status_code(headers)
            self.config.stats.count_response(status)
            self.config.listener_stats.count_response(status)
            self.encoder.send_informational(headers)

    def send_response_headers(self, headers: HeaderMap, end: bool, status: int = -1) -> None:
        """`status` is that of `headers`, where the caller knows it."""
        info = self.info
        self.response_headers = headers
        info.response_headers = headers
        info.response_code = status if status >= 0 else status_code(headers)  # filters may ask for it, and change it
        if self.chain.has_response_hooks and self._entered_chain:
            path = self._response_path = ResponsePath(self)
            path.push(HEADERS, headers, end)
        else:
            self.encode_part(HEADERS, headers, end)

    def send_response_data(self, data: bytes, end: bool) -> None:
        path = self._response_path
        if path is not None:
            path.push(DATA, data, end)
        elif self.response_started:
            self.encode_part(DATA, data, end)
        else:
            raise MeshProxyError("no response has begun that data could be added to")

    def send_response_trailers(self, trailers: HeaderMap) -> None:
        self.info.response_trailers = trailers  # known to a filter that has waited for the whole response
        path = self._response_path
        if path is not None:
            path.push(2, trailers, True)
        else:
            self.encode_part(2, trailers, True)

    def encode_part(self, kind: int, part: Any, end: bool) -> None:
        """What left the response's filters goes to the downstream codec."""
        if self.done:
            return
        info = self.info
        if kind == HEADERS:
            headers: HeaderMap = part
            self.response_started = True
            info.response_start = monotonic()
            if self._response_path is not None:
                info.response_code = status_code(headers)  # a filter may have changed it
            if self.tunnel:
                self.tunnel_open = establishes_tunnel(self.tunnel, info.response_code)
            if not self.request_complete:
                # Nobody reads the rest of the request: the connection cannot serve another (RFC 9112 section 9.3).
                self.config.stats.downstream_rq_response_before_rq_complete += 1
                self.manager.end_http1()
            mutate_response_headers(self.config, self.manager, self, headers)
            if self.config.tracing is not None:
                self.config.tracing.on_response_headers(self, headers)
            self.encoder.send_headers(headers, end)
            if self.tunnel_open and self.config.access_log_on_tunnel:
                self._write_logs("DownstreamTunnelSuccessfullyEstablished")
        elif kind == DATA:
            info.bytes_sent += len(part)
            self.encoder.send_data(part, end)
        else:
            info.response_trailers = part
            self.encoder.send_trailers(part)
        if end:
            self.response_complete = True
            if not self.request_complete:
                self.config.stats.downstream_rq_rx_reset += 1
            self._finish()
        else:
            self._touch()

    def read_disable_response(self, disable: bool) -> None:
        if self.router is not None:
            self.router.read_disable(disable)

    # -- timeouts

    def _touch(self) -> None:
        """Something moved: the idle timeout starts anew. Its timer looks when it fires."""
        self._last_active = monotonic()

    def _arm_idle(self, timeout_ms: float) -> None:
        manager = self.manager
        spare = manager.spare_idle_timers
        timer = spare.pop() if spare else StreamIdleTimer()
        timer.stream = self
        timer.timeout_ms = timeout_ms
        self._idle_timer = timer
        manager.timers.arm_by(timer, timeout_ms)

    def _leave_idle_timer(self) -> None:
        timer = self._idle_timer
        if timer is not None:
            timer.stream = self._idle_timer = None
            spare = self.manager.spare_idle_timers
            if len(spare) < SPARE_TIMERS:
                spare.append(timer)
            else:
                timer.disarm()

    def _set_idle_timeout(self, timeout_ms: float) -> None:
        self._leave_idle_timer()
        if timeout_ms > 0.0:
            self._arm_idle(timeout_ms)

    def _limit_duration(self, route: Route, headers: HeaderMap) -> None:
        """By the route, or by what a grpc-timeout asks for, where the route heeds that. An upstream of gRPC is told."""
        limit = route.grpc_stream_limit
        asked_ms = grpc_timeout_ms(headers) if limit is not None and headers.known & GRPC_TIMEOUT else None
        timeout_ms = self.config.max_stream_duration_ms
        if limit is not None and asked_ms is not None:
            timeout_ms = limit.stream_ms(asked_ms)
            used_ms = (monotonic() - self.info.start) * 1000.0
            self.arm_max_duration(max(timeout_ms - used_ms, _AT_ONCE_MS))
        elif route.max_stream_duration_ms is not None:
            timeout_ms = float(route.max_stream_duration_ms)
            self.arm_max_duration(timeout_ms)
        if is_grpc(headers):
            if timeout_ms > 0.0 or asked_ms is not None:
                headers.set(b"grpc-timeout", encode_timeout(timeout_ms))
            elif self._duration_timer is not None:
                headers.remove(b"grpc-timeout")

    def flush_timeout_ms(self) -> float:
        """How long an HTTP/2 downstream may take nothing of what is left of the answer; 0: for ever."""
        config, route = self.config, self.route
        if route is not None and route.flush_timeout_ms is not None:
            return float(route.flush_timeout_ms)
        if config.stream_flush_timeout_ms >= 0.0:
            return config.stream_flush_timeout_ms
        if route is not None and route.idle_timeout_ms is not None:
            return float(route.idle_timeout_ms)
        return config.stream_idle_timeout_ms

    def arm_max_duration(self, timeout_ms: float) -> None:
        """The stream may live for `timeout_ms` from now; 0 lifts the limit."""
        if self._duration_timer is not None:
            self._duration_timer.disarm()
        if timeout_ms > 0.0:
            self._duration_timer = CallTimer(self.on_max_duration)
            self.manager.timers.arm(self._duration_timer, timeout_ms)

    def on_idle_timer(self, timer: StreamIdleTimer) -> None:
        left_ms = timer.timeout_ms - (monotonic() - self._last_active) * 1000.0
        if left_ms > 0.0:
            self.manager.timers.arm(timer, left_ms)
            return
        self.config.stats.downstream_rq_idle_timeout += 1
        self._time_out(
            504 if self.request_complete else 408, b"stream timeout", "stream_idle_timeout", flags.STREAM_IDLE_TIMEOUT
        )

    def on_request_timeout(self) -> None:
        self.config.stats.downstream_rq_timeout += 1
        self._time_out(408, b"request timeout", "request_overall_timeout", 0)

    def on_max_duration(self) -> None:
        self.config.stats.downstream_rq_max_duration_reached += 1
        self._time_out(
            504 if self.request_complete else 408,
            b"downstream duration timeout",
            "max_duration_timeout",
            0,
            DEADLINE_EXCEEDED,
        )

    def _time_out(self, status: int, body: bytes, details: str, flag: int, grpc_status: int = -1) -> None:
        self.info.response_flags |= flag
        if self.response_started:
            if self.router is not None:
                self.router.cancel()
            self.reset(details)
        else:
            self.send_local_reply(status, body, details, 0, None, grpc_status)

    # -- the end

    def _reject(self, rejected: RejectedRequest) -> None:
        if rejected.location:
            self.config.stats.downstream_rq_redirected_with_normalized_path += 1
            extra = HeaderMap([(b"location", rejected.location)])
            self.send_local_reply(rejected.status, b"", rejected.details, 0, extra)
            return
        if rejected.stat:
            self.config.stats.count(rejected.stat)
        if rejected.malformed and self.manager.is_http2:
            self.config.http2_stats.counts().requests_rejected_with_underscores_in_headers += 1
            self.info.request_headers = None
            self.encoder.reset(RESET_LOCAL)
            self.on_reset(RESET_REMOTE, "http2.unexpected_underscore")
        elif rejected.malformed:
            self.config.stats.downstream_cx_protocol_error += 1
            self._count_unfinished()
            self.info.request_headers = None  # to the log it is no request, as with what the codec refuses
            self.send_local_reply(400, b"Bad Request", rejected.details, flags.DOWNSTREAM_PROTOCOL_ERROR)
        else:
            self.send_local_reply(rejected.status, b"", rejected.details)

    def _count_unfinished(self) -> None:
        """What Envoy, whose codec refuses this request before its end, counts of it."""
        if self.request_complete:
            self.config.stats.downstream_rq_response_before_rq_complete += 1
            self.config.stats.downstream_rq_rx_reset += 1

    def recreate(self, response: HeaderMap, body: bytes) -> None:
        """Follow an internal redirect: this stream ends with the upstream's answer, and a new one takes its request
        (whose headers were changed) through the filters again, the `body` with it."""
        info = self.info
        info.response_headers = response
        info.response_code = status_code(response)
        info.response_code_details = "internal_redirect"
        self._end()
        self.manager.recreate_stream(self).resume_from(self, body)

    def resume_from(self, old: Stream, body: bytes) -> None:
        """Begin as the successor of a stream that was redirected: trust and identity were settled by it."""
        headers, info, before = old.request_headers, self.info, old.info
        self.redirects = old.redirects
        self.request_headers = headers
        info.request_headers = headers
        info.protocol = before.protocol
        info.bytes_received = before.bytes_received
        info.remote = before.remote
        info.internal = before.internal
        info.request_id = before.request_id
        self._on_request_complete()
        rejected = check_and_normalize(self.config, headers, info)
        if rejected is not None:
            self._reject(rejected)
            return
        if self.config.max_stream_duration_ms > 0.0:
            self.arm_max_duration(self.config.max_stream_duration_ms)
        route = self._match_route()
        if self.config.tracing is not None:
            self.config.tracing.begin(self, headers, route)
        self._enter_chain(self.config.chain, route, headers, not body)
        if body and not self.done:
            self.on_data(body, True)

    def _finish(self) -> None:
        if self.done:  # the codec has reset the stream while it was given the end
            return
        self._end()
        self.manager.on_stream_done(self)

    def _end(self) -> None:
        """Exactly once, at the end of every stream: timers, the upstream request, filters, stats, the log."""
        self.done = True
        self._leave_idle_timer()
        if self._request_timer is not None:
            self._request_timer.disarm()
        if self._duration_timer is not None:
            self._duration_timer.disarm()
        if self._log_timer is not None:
            self._log_timer.disarm()
        if self._filter_timers is not None:
            for timer in self._filter_timers:
                timer.disarm()
            self._filter_timers = None
        if self._request_path is not None:
            self._request_path.finish()
        if self._response_path is not None:
            self._response_path.finish()
        if self.router is not None:
            self.router.on_stream_done()
        if self._entered_chain:
            for http_filter in self.chain.done:
                self._tell_done(http_filter)
        info = self.info
        info.end = monotonic()
        stats = self.config.stats
        stats.downstream_rq_active -= 1
        if self.tunnel:
            stats.downstream_cx_upgrades_active -= 1
        if self.response_started and not info.health_check:
            stats.count_response(info.response_code)
            self.config.listener_stats.count_response(info.response_code)
        stats.downstream_rq_time.record(int((info.end - info.start) * 1000.0))
        if self.trace is not None:
            self.trace.finish(self)
        if self.config.access_logs:
            self._write_logs("DownstreamEnd")
        # Timers, paths and router know their stream: without these cycles it goes at once, not at the next collection.
        self._request_timer = self._duration_timer = self._log_timer = None
        self._request_path = self._response_path = self.router = None

    def on_log_timer(self) -> None:
        """A record of a stream that goes on."""
        timer = self._log_timer
        if timer is not None:
            if self.config.measures and self.router is not None:
                self.router.measure()
            self._write_logs("DownstreamPeriodic")
            self.manager.timers.arm(timer, self.config.access_log_interval_ms)

    def _write_logs(self, log_type: str) -> None:
        info = self.info
        if self.config.measures:
            self.manager.measure(self)
        info.log_type = log_type
        for access_log in self.config.access_logs:
            access_log.log(info)
        info.log_type = "NotSet"

    def _tell_done(self, http_filter: HttpFilter) -> None:
        try:
            http_filter.on_stream_done(self)
        except (Exception, SystemExit, CancelledError) as error:  # noqa: BLE001  a bug of one filter must not keep the others from their end
            self.config.stats.downstream_rq_filter_error += 1
            _filter_errors.error(f"filter {http_filter.name} raised in on_stream_done", error)


def _check_reply(status: object, body: object) -> None:
    """A filter's mistake is told before anything has changed."""
    if not isinstance(status, int) or not isinstance(body, bytes):
        given = f"{type(status).__name__} and {type(body).__name__}"
        raise TypeError(f"a local reply has a status (int) and a body (bytes), not {given}")


class StreamTimer(Timer):
    """Of a filter, for one stream."""

    def __init__(self, stream: Stream, callback: Callable[[], object]) -> None:
        super().__init__()
        self.callback = callback
        self._stream = stream

    def on_timer(self) -> None:
        self._stream.on_filter_timer(self)


_NO_HEADERS: Final = HeaderMap()
_RESET_FLAGS: Final[dict[int, int]] = {
    RESET_REMOTE: flags.DOWNSTREAM_REMOTE_RESET,
    RESET_REMOTE_REFUSED: flags.DOWNSTREAM_REMOTE_RESET,
    RESET_PROTOCOL_ERROR: flags.DOWNSTREAM_PROTOCOL_ERROR,
    RESET_LOCAL: 0,
}
_UNUSUAL: Final = EXPECT | UPGRADE | CONNECTION


class StreamIdleTimer(Timer):
    """Nearly every stream has one, which the streams of a connection hand on, armed as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.stream: Stream | None = None
        self.timeout_ms: float = 0.0

    def on_timer(self) -> None:
        if self.stream is not None:
            self.stream.on_idle_timer(self)
