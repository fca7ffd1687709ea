"""What the router makes of a call of gRPC: its status, not that of HTTP, says whether the host had success (Envoy)."""

from __future__ import annotations

from meshproxy.codec.grpc import grpc_status, http_status_of
from meshproxy.codec.headers import HeaderMap
from meshproxy.upstream.host import Host


class GrpcCall:
    """The response of one request; undecided from its head to its trailers."""

    def __init__(self) -> None:
        self._undecided: Host | None = None

    def put_headers(self, host: Host, headers: HeaderMap, http_status: int) -> None:
        """Tell outlier detection of an attempt's response: of the status in its head, if there is one."""
        status = grpc_status(headers)
        host.outlier.put_response(http_status if status is None else http_status_of(status))

    def begin(self, host: Host, headers: HeaderMap, end: bool) -> None:
        """The head of the response that goes downstream, which is no error of HTTP; it may be all there is."""
        self._undecided = host
        if end:
            self.end(headers)

    def end(self, part: HeaderMap) -> None:
        """The head or the trailers with which the response ends: no status is an error."""
        host, self._undecided = self._undecided, None
        if host is not None:
            status = grpc_status(part)
            if status is not None and http_status_of(status) < 500:
                host.stats.rq_success += 1
            else:
                host.stats.rq_error += 1

    def fail(self) -> bool:
        """The response ends without trailers. False if it was decided before."""
        host, self._undecided = self._undecided, None
        if host is not None:
            host.stats.rq_error += 1
        return host is not None
