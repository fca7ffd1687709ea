"""A service-mesh data plane that speaks Envoy's own API and is written, and extended, in Python.

Filters are written against the names here: `from meshproxy import CONTINUE, STOP, HttpFilter`, see
docs/writing-filters.md. They are loaded when they are first asked for, since every module of the package imports this
one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from meshproxy.version import __version__, is_compiled

__all__ = [
    "CLOSE",
    "CONTINUE",
    "NEEDS_DATA",
    "STOP",
    "AcceptedSocket",
    "AccessLogger",
    "CallError",
    "DataResult",
    "DownstreamConnection",
    "FilterContext",
    "GrpcMessageError",
    "GrpcMessages",
    "GrpcMethod",
    "GrpcServices",
    "HeaderMap",
    "Host",
    "HttpFilter",
    "HttpResponse",
    "LbRequest",
    "ListenerFilter",
    "LoadBalancer",
    "MissingSecretError",
    "NetworkFilter",
    "Result",
    "Stream",
    "StreamInfo",
    "__version__",
    "is_compiled",
]

if TYPE_CHECKING:
    from meshproxy.codec.headers import HeaderMap
    from meshproxy.errors import MissingSecretError
    from meshproxy.filters.listener.python import ListenerFilter
    from meshproxy.filters.listener_filter import CLOSE, NEEDS_DATA, AcceptedSocket
    from meshproxy.http.async_client import CallError, HttpResponse
    from meshproxy.http.filter import CONTINUE, STOP, DataResult, Result
    from meshproxy.http.filter_context import FilterContext
    from meshproxy.http.filtered_connection import DownstreamConnection
    from meshproxy.http.grpc.descriptors import GrpcMethod, GrpcServices
    from meshproxy.http.grpc.message_stream import GrpcMessageError, GrpcMessages
    from meshproxy.http.python_balancer import LbRequest
    from meshproxy.http.stream import Stream
    from meshproxy.http.user_classes import AccessLogger, LoadBalancer, NetworkFilter
    from meshproxy.http.user_filter import HttpFilter
    from meshproxy.observe.stream_info import StreamInfo
    from meshproxy.upstream.host import Host
else:
    _WHERE: Final = {
        "CLOSE": "meshproxy.filters.listener_filter",
        "CONTINUE": "meshproxy.http.filter",
        "NEEDS_DATA": "meshproxy.filters.listener_filter",
        "STOP": "meshproxy.http.filter",
        "AcceptedSocket": "meshproxy.filters.listener_filter",
        "AccessLogger": "meshproxy.http.user_classes",
        "CallError": "meshproxy.http.async_client",
        "DataResult": "meshproxy.http.filter",
        "DownstreamConnection": "meshproxy.http.filtered_connection",
        "FilterContext": "meshproxy.http.filter_context",
        "GrpcMessageError": "meshproxy.http.grpc.message_stream",
        "GrpcMessages": "meshproxy.http.grpc.message_stream",
        "GrpcMethod": "meshproxy.http.grpc.descriptors",
        "GrpcServices": "meshproxy.http.grpc.descriptors",
        "HeaderMap": "meshproxy.codec.headers",
        "Host": "meshproxy.upstream.host",
        "HttpFilter": "meshproxy.http.user_filter",
        "HttpResponse": "meshproxy.http.async_client",
        "LbRequest": "meshproxy.http.python_balancer",
        "ListenerFilter": "meshproxy.filters.listener.python",
        "LoadBalancer": "meshproxy.http.user_classes",
        "MissingSecretError": "meshproxy.errors",
        "NetworkFilter": "meshproxy.http.user_classes",
        "Result": "meshproxy.http.filter",
        "Stream": "meshproxy.http.stream",
        "StreamInfo": "meshproxy.observe.stream_info",
    }

    def __getattr__(name: str) -> object:
        if name in _WHERE:
            return getattr(import_module(_WHERE[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
