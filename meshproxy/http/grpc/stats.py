"""What is counted of gRPC calls, in the scope of their cluster: `grpc.<service>.<method>.*`, as Envoy has it."""

from __future__ import annotations

from typing import ClassVar

from meshproxy.codec.headers import HeaderMap
from meshproxy.observe.histogram import Histogram
from meshproxy.observe.stats import StatsScope


class CallStats(StatsScope):
    """The calls of one method. As in Envoy a counter is there once it has counted."""

    def __init__(self) -> None:
        super().__init__()
        self.request_messages: int = 0
        self.response_messages: int = 0
        self._ended: dict[bytes, int] = {}  # by status

    def charge_status(self, part: HeaderMap) -> None:
        """Count a call that ends with this head or with these trailers, if they have a status."""
        status = part.get(b"grpc-status")
        if status is not None:
            self._ended[status] = self._ended.get(status, 0) + 1

    def refresh(self) -> None:
        """Spell out the counters."""
        ended, self._ended = self._ended, {}
        for status, count in ended.items():
            self._add(status.decode("latin-1"), count)
            self._add("success" if status == b"0" else "failure", count)
            self._add("total", count)
        self._add("request_message_count", self.request_messages)
        self._add("response_message_count", self.response_messages)
        self.request_messages = self.response_messages = 0

    def _add(self, name: str, count: int) -> None:
        if count:
            self.dynamic[name] = self.dynamic.get(name, 0) + count


class CallTimes(StatsScope):
    """How long the upstream took: from the last byte of the request to the last of the response, in ms."""

    HISTOGRAMS: ClassVar[tuple[str, ...]] = ("upstream_rq_time",)

    def __init__(self) -> None:
        super().__init__()
        self.upstream_rq_time = Histogram()


class MethodName:
    """The service and the method that a path names."""

    def __init__(self, service: str, method: str) -> None:
        self.service = service
        self.method = method


def method_of(headers: HeaderMap) -> MethodName | None:
    """What the `:path` of a request names; None where that is no service with its method."""
    path = headers.get(b":path") or b""
    parts = [part for part in path.partition(b"?")[0].split(b"/") if part]
    if len(parts) != 2:
        return None
    return MethodName(parts[0].decode("latin-1"), parts[1].decode("latin-1"))


def stats_name(protocol: str, name: MethodName | None) -> str:
    """Where the calls of a method are counted within their cluster; None: those of any method."""
    return protocol if name is None else f"{protocol}.{name.service}.{name.method}"
