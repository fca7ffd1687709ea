"""A service-mesh data plane that speaks Envoy's own API and is written, and extended, in Python.

Filters are written against the names here: `from meshproxy import CONTINUE, STOP, HttpFilter`, see
docs/writing-filters.md. They are loaded when they are first asked for, since every module of the package imports this
one.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

from meshproxy.version import __version__, is_compiled

__all__ = [
    "CONTINUE",
    "STOP",
    "CallError",
    "DataResult",
    "FilterContext",
    "HeaderMap",
    "HttpFilter",
    "HttpResponse",
    "Result",
    "Stream",
    "__version__",
    "is_compiled",
]

if TYPE_CHECKING:
    from meshproxy.codec.headers import HeaderMap
    from meshproxy.http.async_client import CallError, HttpResponse
    from meshproxy.http.filter import CONTINUE, STOP, DataResult, Result
    from meshproxy.http.filter_context import FilterContext
    from meshproxy.http.stream import Stream
    from meshproxy.http.user_filter import HttpFilter
else:
    _WHERE: Final = {
        "CONTINUE": "meshproxy.http.filter",
        "STOP": "meshproxy.http.filter",
        "CallError": "meshproxy.http.async_client",
        "DataResult": "meshproxy.http.filter",
        "FilterContext": "meshproxy.http.filter_context",
        "HeaderMap": "meshproxy.codec.headers",
        "HttpFilter": "meshproxy.http.user_filter",
        "HttpResponse": "meshproxy.http.async_client",
        "Result": "meshproxy.http.filter",
        "Stream": "meshproxy.http.stream",
    }

    def __getattr__(name: str) -> object:
        if name in _WHERE:
            return getattr(import_module(_WHERE[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
