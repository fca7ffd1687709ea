"""`envoy.filters.http.grpc_stats`: counts gRPC calls and their messages, by method where it is asked to.

The stats stand under `cluster.<name>.grpc.`. Methods that are not to be told apart are counted together, without a
name; paths that name no method are not counted.
"""

from __future__ import annotations

from typing import Any, Final

from envoy.extensions.filters.http.grpc_stats.v3.config_pb2 import FilterConfig

from meshproxy.codec import grpc
from meshproxy.codec.headers import HeaderMap, status_code
from meshproxy.config.context import BuildContext
from meshproxy.http.filter import CONTINUE, DataResult, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.grpc.messages import MessageScanner
from meshproxy.http.grpc.stats import CallStats, CallTimes, MethodName, method_of, stats_name
from meshproxy.http.stream import Stream
from meshproxy.observe.stream_info import StateObject, UpstreamInfo
from meshproxy.upstream.cluster import Cluster

_STATE: Final = "envoy.filters.http.grpc_stats"
_GRPC: Final = "grpc"


class Settings:
    """A FilterConfig. `methods` are those that have stats of their own, as (service, method)."""

    def __init__(self, message: Any) -> None:
        self.all_methods: bool = message.stats_for_all_methods.value
        self.methods: frozenset[tuple[str, str]] = frozenset(
            (service.name, method)
            for service in message.individual_method_stats_allowlist.services
            for method in service.method_names
        )
        self.replaces_dots: bool = message.replace_dots_in_grpc_service_name
        self.times: bool = message.enable_upstream_stats
        self.emits_state: bool = message.emit_filter_state

    def counted_name(self, name: MethodName) -> MethodName | None:
        """The name under which the calls of a method are counted; None: with all others."""
        if self.all_methods:
            return MethodName(name.service.replace(".", "_"), name.method) if self.replaces_dots else name
        return name if (name.service, name.method) in self.methods else None


class MessageCounts(StateObject):
    """What the filter leaves in the filter state, for logs."""

    def __init__(self) -> None:
        self.request: int = 0
        self.response: int = 0

    def text(self) -> str:
        return f"{self.request},{self.response}"

    def structure(self) -> dict[str, Any]:
        """As the JSON of a FilterObject: what is 0 is left out, and 64-bit numbers are text."""
        counts = {"requestMessageCount": self.request, "responseMessageCount": self.response}
        return {name: str(count) for name, count in counts.items() if count}


class Call:
    """One stream; without `stats` its messages are counted for the filter state alone."""

    def __init__(self) -> None:
        self.stats: CallStats | None = None
        self.times: CallTimes | None = None
        self.request = MessageScanner()
        self.response = MessageScanner()
        self.answered: bool = False  # the response is gRPC
        self.state: MessageCounts | None = None


class GrpcStats(HttpFilter):
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        if not grpc.is_grpc(headers):
            return CONTINUE
        call = Call()
        stream.state[self.slot] = call
        stream.current_route()
        cluster = stream.cluster
        if cluster is not None:
            self._choose_stats(call, cluster, headers)
        return CONTINUE

    def _choose_stats(self, call: Call, cluster: Cluster, headers: HeaderMap) -> None:
        name = method_of(headers)
        if name is None:
            return
        settings = self.settings
        counted = settings.counted_name(name)
        where = stats_name(_GRPC, counted)
        call.stats = cluster.named_stats(where, CallStats, limited=counted is not None)
        if call.stats is None:  # there are too many methods: this one counts with those that have no stats of their own
            where = _GRPC
            call.stats = cluster.named_stats(where, CallStats, limited=False)
        if settings.times:
            call.times = cluster.named_stats(where, CallTimes)

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is not None:
            assert isinstance(call, Call)
            before = call.request.count
            call.request.feed(data)
            if call.request.count > before:
                if call.stats is not None:
                    call.stats.request_messages += call.request.count - before
                self._tell(stream, call)
        return CONTINUE

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        call = stream.state[self.slot]
        if call is not None:
            assert isinstance(call, Call)
            call.answered = grpc.is_grpc_response(headers, status_code(headers), end)
            if call.stats is not None:
                call.stats.charge_status(headers)
            if end and call.times is not None:
                _charge_time(call.times, stream.info.upstream)
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        call = stream.state[self.slot]
        if call is not None:
            assert isinstance(call, Call)
            if call.answered:
                before = call.response.count
                call.response.feed(data)
                if call.response.count > before:
                    if call.stats is not None:
                        call.stats.response_messages += call.response.count - before
                    self._tell(stream, call)
        return CONTINUE

    def on_response_trailers(self, stream: Stream, trailers: HeaderMap) -> Result:
        call = stream.state[self.slot]
        if call is not None:
            assert isinstance(call, Call)
            if call.stats is not None:
                call.stats.charge_status(trailers)
            if call.times is not None:
                _charge_time(call.times, stream.info.upstream)
        return CONTINUE

    def _tell(self, stream: Stream, call: Call) -> None:
        if not self.settings.emits_state:
            return
        if call.state is None:
            call.state = MessageCounts()
            stream.filter_state()[_STATE] = call.state
        call.state.request = call.request.count
        call.state.response = call.response.count


def _charge_time(times: CallTimes, upstream: UpstreamInfo | None) -> None:
    if upstream is not None and upstream.last_byte_sent and upstream.last_byte_received:
        times.upstream_rq_time.record(int((upstream.last_byte_received - upstream.last_byte_sent) * 1000.0))


def build_grpc_stats(message: Any, path: str, context: BuildContext) -> GrpcStats:
    return GrpcStats(Settings(message))


register_http_filter(FilterConfig, HttpFilterType(build_grpc_stats))
