"""`meshproxy.access_loggers.python`: an access logger that is a class in Python (docs/writing-filters.md)."""

from __future__ import annotations

from typing import Any

from meshproxy.api.access_logger_pb2 import Python
from meshproxy.config.context import BuildContext
from meshproxy.http.access_log import ACCESS_LOGGERS
from meshproxy.http.python_version import PythonVersion, SingleStats, build_version, refuse_coroutines
from meshproxy.http.user_classes import AccessLogger
from meshproxy.observe.access_log import AccessLog, LogFilter
from meshproxy.observe.stream_info import StreamInfo


class PythonAccessLog(AccessLog):
    """A configured class. What it raises harms no stream."""

    def __init__(self, version: PythonVersion, log_filter: LogFilter | None) -> None:
        self._version = version
        self._filter = log_filter
        self._closed: bool = False
        self.measures = version.kind.measures

    def log(self, info: StreamInfo) -> None:
        if self._closed or (self._filter is not None and not self._filter.matches(info)):
            return
        began = self._version.enter()
        try:
            logger: AccessLogger = self._version.one()
            logger.on_log(info)
        except Exception as error:  # noqa: BLE001  a user's code
            self._version.on_error("a record is lost", error)
        self._version.leave(began)

    def close(self) -> None:
        """The configuration is gone."""
        self._closed = True


def build_python(message: Any, log_filter: LogFilter | None, path: str, context: BuildContext) -> AccessLog | None:
    prefix = f"access_log.python.{context.filter_name}."
    version = build_version(message, path, context, AccessLogger, prefix, SingleStats)
    if version is None or refuse_coroutines(version.kind, ("on_log",), path, context):
        return None
    return PythonAccessLog(version, log_filter)


ACCESS_LOGGERS.register(Python, build_python)
