"""A service-mesh data plane that speaks Envoy's own API and is written, and extended, in Python.

Filters are written against the names here: `from meshproxy import CONTINUE, STOP, HttpFilter`. They are loaded when
they are first asked for, since every module of the package imports this one.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from meshproxy.version import __version__, is_compiled

__all__ = ["CONTINUE", "STOP", "HttpFilter", "__version__", "is_compiled"]

if TYPE_CHECKING:
    from meshproxy.http.filter import CONTINUE, STOP, HttpFilter
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            return getattr(import_module("meshproxy.http.filter"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
