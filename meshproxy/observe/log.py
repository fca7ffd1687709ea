"""The application log: Envoy's line format, and a level for each component.

Components are the loggers `meshproxy.<component>`; `/logging` and `--component-log-level` change their levels while the
proxy runs. The request path logs through `RateLimitedLog` only: what goes wrong a thousand times a second is counted in
a stat, and told once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

from meshproxy import clock
from meshproxy.errors import ConfigError

TRACE: Final = 5
OFF: Final = logging.CRITICAL + 10
LEVELS: Final = {
    "trace": TRACE,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "off": OFF,
}
_NAMES: Final = {number: name for name, number in LEVELS.items() if name != "warn"}
ROOT: Final = "meshproxy"
DEFAULT_COMPONENT: Final = "main"


class EnvoyLineFormatter(logging.Formatter):
    """`[2026-01-31 12:00:00.123][pid][info][upstream] message`; lines of one record stay one record's."""

    default_time_format = "%Y-%m-%d %H:%M:%S"
    default_msec_format = "%s.%03d"

    def format(self, record: logging.LogRecord) -> str:
        component = record.name.removeprefix(ROOT).lstrip(".") or DEFAULT_COMPONENT
        level = level_name(record.levelno)
        line = f"[{self.formatTime(record)}][{os.getpid()}][{level}][{component}] {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class RateLimitedLog:
    """Says a thing at most once in `interval_s` seconds, and then how often it was held back.

    For what traffic can cause: the counting belongs to a stat, this only keeps the log readable.
    """

    def __init__(self, logger: logging.Logger, interval_s: float = 1.0) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._next: float = 0.0
        self._held_back: int = 0

    def log(self, level: int, message: str, error: BaseException | None = None) -> None:
        """Log `message`, with the traceback of `error` where one is given, unless it is too soon."""
        if not self._logger.isEnabledFor(level):
            return
        now = clock.monotonic()
        if now < self._next:
            self._held_back += 1
            return
        self._next = now + self._interval_s
        if self._held_back:
            message += f" (and {self._held_back} more not logged)"
            self._held_back = 0
        self._logger.log(level, "%s", message, exc_info=error)

    def info(self, message: str) -> None:
        self.log(logging.INFO, message)

    def warning(self, message: str, error: BaseException | None = None) -> None:
        self.log(logging.WARNING, message, error)

    def error(self, message: str, error: BaseException | None = None) -> None:
        self.log(logging.ERROR, message, error)


class _NamedLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return f"{self.extra['name']}: {msg}" if self.extra is not None else msg, kwargs


def named_log(component: str, name: str) -> logging.LoggerAdapter[logging.Logger]:
    """The log of one of a component's many, which says whose line it is."""
    return _NamedLog(component_logger(component), {"name": name})


def component_logger(component: str) -> logging.Logger:
    """The logger of a component (`upstream`, `http`, `config` …)."""
    return logging.getLogger(f"{ROOT}.{component}")


def log_once_per(seconds: float, component: str) -> RateLimitedLog:
    """A log of `component` that speaks at most once in `seconds`."""
    return RateLimitedLog(component_logger(component), seconds)


def level_name(number: int) -> str:
    """Envoy's word for a level; one between two words is the lower."""
    return _NAMES[max((known for known in _NAMES if known <= number), default=TRACE)]


def parse_level(name: str) -> int:
    """The number of Envoy's level `name`. Raises ConfigError."""
    level = LEVELS.get(name.lower())
    if level is None:
        known = ", ".join(_NAMES.values())
        raise ConfigError("", f"unknown log level '{name}' (known: {known})")
    return level


def parse_component_levels(text: str) -> dict[str, int]:
    """`upstream:debug,http:trace` as `--component-log-level` takes it. Raises ConfigError."""
    levels: dict[str, int] = {}
    for entry in filter(None, text.split(",")):
        component, colon, level = entry.partition(":")
        if not colon or not component:
            raise ConfigError("", f"component log level not correctly specified '{entry}'")
        levels[component] = parse_level(level)
    return levels


def setup_logging(level: str, component_levels: str = "", stream: TextIO | None = None) -> None:
    """Send the log to `stream` (standard error), at these levels; the last call counts. Raises ConfigError."""
    components = parse_component_levels(component_levels)
    number = parse_level(level)
    for value, name in _NAMES.items():
        logging.addLevelName(value, name)
    root = logging.getLogger(ROOT)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(EnvoyLineFormatter())
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.propagate = False
    root.setLevel(number)
    for component, component_level in components.items():
        component_logger(component).setLevel(component_level)


def set_level(number: int, component: str = "") -> None:
    """Change the level of one component, or of all of them (which then follow the root again)."""
    if component:
        component_logger(component).setLevel(number)
        return
    for name in components():
        component_logger(name).setLevel(logging.NOTSET)
    logging.getLogger(ROOT).setLevel(number)


def components() -> list[str]:
    """The components that have a logger, sorted."""
    prefix = f"{ROOT}."
    names = [name.removeprefix(prefix) for name in logging.root.manager.loggerDict if name.startswith(prefix)]
    return sorted(names)


def active_levels() -> dict[str, str]:
    """Component → level in words, for `/logging`."""
    return {name: level_name(component_logger(name).getEffectiveLevel()) for name in components()}
