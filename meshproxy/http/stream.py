"""A stream: one request and its response, from the downstream codec through the filters to the router and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from meshproxy.clock import monotonic
from meshproxy.codec.headers import CONNECTION, EXPECT, UPGRADE, HeaderMap, status_code
from meshproxy.codec.stream import StreamDecoder, StreamEncoder
from meshproxy.errors import RESET_LOCAL, RESET_PROTOCOL_ERROR, RESET_REMOTE, RESET_REMOTE_REFUSED, MeshProxyError
from meshproxy.http import filter_errors, stream_reply
from meshproxy.http import request_headers as rules
from meshproxy.http.async_client import HttpClient
from meshproxy.http.chain import DATA, HEADERS, FilterChain, RequestPath, ResponsePath
from meshproxy.http.entry import check_and_normalize
from meshproxy.http.filter import HttpFilter
from meshproxy.http.filter_timer import FilterTimer
from meshproxy.http.response_headers import mutate_response_headers
from meshproxy.http.router import Router
from meshproxy.http.stream_end import end_stream
from meshproxy.http.stream_log import LogTimer, write_logs
from meshproxy.http.stream_successor import recreate_stream
from meshproxy.http.stream_timeouts import (
    DurationTimer,
    RequestTimer,
    StreamIdleTimer,
    arm_max_duration,
    begin_timeouts,
    limit_duration,
    set_idle_timeout,
)
from meshproxy.http.tracing.span import StreamTrace
from meshproxy.http.upgrade import establishes_tunnel, tunnel_chain, tunnel_protocol
from meshproxy.net.timers import Timer
from meshproxy.observe import response_flags as flags
from meshproxy.observe.stream_info import StreamInfo, UpstreamInfo, shared_metadata, shared_state
from meshproxy.route.internal_redirect import RedirectHistory
from meshproxy.route.route import DISABLED, ENABLED, ROUTE_CLUSTER, Route
from meshproxy.upstream.cluster import Cluster
from meshproxy.upstream.demand import ConnectionDemand

if TYPE_CHECKING:
    from meshproxy.http.connection_manager import ConnectionManager
    from meshproxy.net.dispatcher import Dispatcher


class Stream(StreamDecoder):
    """One request and its response.

    What arrives (`on_*`) comes from the downstream codec; `send_response_*` come from the router, or from
    `send_local_reply`; both pass the filters.
    Filters find here: `info`, `request_headers`, `response_headers`, `state[slot]`, `route`.
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
        self.offered: ConnectionDemand | None = None  # by a filter: what TLS offers upstream
        self.entered_chain: bool = False
        self._route_cached: bool = False
        self.request_path: RequestPath | None = None  # through the filters; None where none has a hook for it
        self.response_path: ResponsePath | None = None
        self.idle_timer: StreamIdleTimer | None = None
        self.last_active: float = self.info.start
        self.duration_timer: DurationTimer | None = None
        self.request_timer: RequestTimer | None = None
        self.log_timer: LogTimer | None = None
        self.filter_timers: list[FilterTimer] | None = None
        config = manager.config
        stats = config.stats
        stats.downstream_rq_total += 1
        if manager.is_http2:
            stats.downstream_rq_http2_total += 1
        else:
            stats.downstream_rq_http1_total += 1
        stats.downstream_rq_active += 1
        begin_timeouts(self)
        if config.access_log_interval_ms > 0.0:
            self.log_timer = LogTimer(self)
            manager.timers.arm(self.log_timer, config.access_log_interval_ms)

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
            self.on_request_complete()
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
            stream_reply.reply_rejected(self, rejected)
            return
        rules.mutate_request_headers(config, manager.connection_info, headers, info)
        route = self.begin_route(headers)
        chain = config.chain
        if tunnel:
            allowed = tunnel_chain(tunnel, config.upgrades, chain, route)
            if allowed is None and route is not None:
                self._refuse_upgrade()
                return
            if allowed is not None:
                self._begin_tunnel(tunnel)
                chain = allowed
        self.enter_chain(chain, route, headers, end)

    def _begin_tunnel(self, protocol: bytes) -> None:
        """The request may have its tunnel, if the upstream agrees. How long it sends is nobody's business."""
        self.tunnel = protocol
        self.config.stats.downstream_cx_upgrades_total += 1
        self.config.stats.downstream_cx_upgrades_active += 1
        if self.request_timer is not None:
            self.request_timer.disarm()

    def begin_route(self, headers: HeaderMap) -> Route | None:
        """Pick the route. The stream's life, and where there is tracing its trace, begin as well."""
        config = self.config
        if config.max_stream_duration_ms > 0.0:
            arm_max_duration(self, config.max_stream_duration_ms)
        route = self._match_route()
        if config.tracing is not None:
            config.tracing.begin(self, headers, route)
        return route

    def enter_chain(self, chain: FilterChain, route: Route | None, headers: HeaderMap, end: bool) -> None:
        """The request's head goes through the filters of its route."""
        config = self.config
        if config.access_log_on_new_request:
            write_logs(self, "DownstreamStart")
        chain = chain.for_route(route)
        self.chain = chain
        if chain.size:
            self.state = [None] * chain.size
        self.entered_chain = True
        if route is not None:
            self._keep_to(route, headers)
        if chain.has_request_hooks:
            self.request_path = RequestPath(self)
            self.request_path.push(HEADERS, headers, end)
        else:
            self.route_part(HEADERS, headers, end)

    def _keep_to(self, route: Route, headers: HeaderMap) -> None:
        """The limits of the route are the stream's."""
        if route.idle_timeout_ms is not None:
            set_idle_timeout(self, route.idle_timeout_ms)
        if route.limits_stream:
            limit_duration(self, route, headers)

    def pick_route_again(self, http_filter: HttpFilter) -> None:
        """For a filter whose headers hook holds the request until its route, or that route's cluster, is there. What
        the route says of filters holds for those behind this one."""
        before = self.route
        self._route_cached = False
        route = self.current_route()
        if route is None or before is not None:
            return
        if self.request_headers.known & UPGRADE and not self._may_upgrade(route):
            self._refuse_upgrade()
            return
        self._keep_to(route, self.request_headers)
        self.chain = self.chain.for_route_behind(route, http_filter.slot)
        if self.request_path is not None:
            self.request_path.go_on_behind(http_filter.slot)

    def _may_upgrade(self, route: Route) -> bool:
        """What a route that came later says of the protocol that the request wants; it cannot have other filters."""
        protocol = tunnel_protocol(self.request_headers)
        if not protocol:
            return True
        allowed = tunnel_chain(protocol, self.config.upgrades, self.chain, route)
        if allowed is None or (not self.tunnel and allowed is not self.chain):
            return False
        if not self.tunnel:
            self._begin_tunnel(protocol)
        return True

    def _refuse_upgrade(self) -> None:
        self.config.stats.downstream_rq_ws_on_non_ws_route += 1
        self.send_local_reply(403, b"", "upgrade_failed")

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
            self.on_request_complete()
        else:
            self._touch()
        path = self.request_path
        if path is not None:
            path.push(DATA, data, end)
        else:
            self.route_part(DATA, data, end)

    def on_trailers(self, trailers: HeaderMap) -> None:
        self.on_request_complete()
        path = self.request_path
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

    def on_request_complete(self) -> None:
        """The downstream has sent all."""
        self.request_complete = True
        self.info.request_end = monotonic()
        if self.request_timer is not None:
            self.request_timer.disarm()
        self._touch()

    def _touch(self) -> None:
        """Something moved: the idle timeout starts anew."""
        self.last_active = monotonic()

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
        if self.request_path is not None:
            self.request_path.resume()

    def resume_response(self) -> None:
        """Go on with a response that a filter held."""
        if self.response_path is not None:
            self.response_path.resume()

    @property
    def call(self) -> HttpClient:
        """For a hook that waits: `await stream.call("users", path=b"/ann")` is a request through one of the proxy's
        clusters, which ends with the stream. Raises CallError where there is no response."""
        return HttpClient(self.manager.clusters, self.manager.timers)

    def call_later(self, delay_ms: float, callback: Callable[[], object]) -> Timer:
        """Call back once, unless the stream ends before, or the timer is disarmed. If it raises, the stream fails."""
        timer = FilterTimer(self, callback)
        if self.filter_timers is None:
            self.filter_timers = []
        self.filter_timers.append(timer)
        self.manager.timers.arm(timer, delay_ms)
        return timer

    def metadata(self, namespace: str) -> dict[str, Any]:
        """The dynamic metadata under `namespace`, to read and to change: filters, matchers and logs share it."""
        return shared_metadata(self.info).setdefault(namespace, {})

    def filter_state(self) -> dict[str, Any]:
        """Objects that filters leave to those behind them, and to logs, by name."""
        return shared_state(self.info)

    def buffer_request(self, limit_bytes: int) -> None:
        """For a headers hook of the request: its data hook is called once, with the whole body, and the headers wait
        until then (a `content-length` follows the body). A body that is longer is answered 413."""
        if self.request_path is not None:
            self.buffer_limit_bytes = limit_bytes
            self.request_path.collect(limit_bytes)

    def buffer_response(self, limit_bytes: int, cut: bool = False) -> None:
        """As `buffer_request`, for the response; a body that is longer is answered 500, or is `cut` there."""
        if self.response_path is not None:
            self.response_path.collect(limit_bytes, cut)

    def let_response_wait(self) -> None:
        """For a headers hook of the response: the headers go on when the filter's data or trailers hook lets something
        pass, which may change them until then. Neither may hold the response before."""
        if self.response_path is not None:
            self.response_path.wait()

    def let_request_wait(self) -> None:
        """As `let_response_wait`, for the request."""
        if self.request_path is not None:
            self.request_path.wait()

    def keep_response_data(self, rest: bytes) -> None:
        """For a data hook of the response that passes on only the beginning of its data: `rest` comes to it again."""
        if self.response_path is not None:
            self.response_path.keep(rest)

    def add_to_request(self, part: HeaderMap | bytes) -> None:
        """For a filter with both hooks that lets the end of the request pass: its trailers hook adds data before the
        trailers, its data hook adds trailers behind the last data. The filters behind it see what is added."""
        if self.request_path is not None:
            self.request_path.add(part)

    def add_to_response(self, part: HeaderMap | bytes) -> None:
        """As `add_to_request`, for the response. A headers hook may add data too, where there is no body: its own data
        hook sees that first."""
        if self.response_path is not None:
            self.response_path.add(part)

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
        stream_reply.send_local_reply(self, status, body, details, response_flags, extra, grpc_status, content_type)

    def on_filter_error(self, http_filter: HttpFilter, error: BaseException) -> None:
        """For the filter chain: a hook of the filter raised."""
        filter_errors.on_filter_error(self, http_filter, error)

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
        if self.chain.has_response_hooks and self.entered_chain:
            path = self.response_path = ResponsePath(self)
            path.push(HEADERS, headers, end)
        else:
            self.encode_part(HEADERS, headers, end)

    def send_response_data(self, data: bytes, end: bool) -> None:
        path = self.response_path
        if path is not None:
            path.push(DATA, data, end)
        elif self.response_started:
            self.encode_part(DATA, data, end)
        else:
            raise MeshProxyError("no response has begun that data could be added to")

    def send_response_trailers(self, trailers: HeaderMap) -> None:
        self.info.response_trailers = trailers  # known to a filter that has waited for the whole response
        path = self.response_path
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
            if self.response_path is not None:
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
                write_logs(self, "DownstreamTunnelSuccessfullyEstablished")
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

    # -- the end

    def recreate(self, response: HeaderMap, body: bytes) -> None:
        """Follow an internal redirect: this stream ends with the upstream's answer, and a new one takes its request
        (whose headers were changed) through the filters again, the `body` with it."""
        recreate_stream(self, response, body)

    def _finish(self) -> None:
        if self.done:  # the codec has reset the stream while it was given the end
            return
        end_stream(self)
        self.manager.on_stream_done(self)


_NO_HEADERS: Final = HeaderMap()
_RESET_FLAGS: Final[dict[int, int]] = {
    RESET_REMOTE: flags.DOWNSTREAM_REMOTE_RESET,
    RESET_REMOTE_REFUSED: flags.DOWNSTREAM_REMOTE_RESET,
    RESET_PROTOCOL_ERROR: flags.DOWNSTREAM_PROTOCOL_ERROR,
    RESET_LOCAL: 0,
}
_UNUSUAL: Final = EXPECT | UPGRADE | CONNECTION
