"""The application log: Envoy's line, levels by component, and messages that come too often."""

from __future__ import annotations

import io
import logging
import os
import re
from collections.abc import Iterator

import pytest

from meshproxy import clock
from meshproxy.errors import ConfigError
from meshproxy.observe import log


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged during the test; afterwards the loggers are as they were."""
    root = logging.getLogger(log.ROOT)
    kept = (root.level, list(root.handlers), root.propagate)
    text = io.StringIO()
    yield text
    log.set_level(kept[0])
    root.handlers[:] = kept[1]
    root.propagate = kept[2]


def test_line_format(stream: io.StringIO) -> None:
    log.setup_logging("info", stream=stream)
    log.component_logger("upstream").warning("host %s left", "a")
    pattern = rf"\[\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{{3}}\]\[{os.getpid()}\]\[warning\]\[upstream\] host a left\n"
    assert re.fullmatch(pattern, stream.getvalue())


def test_levels_by_component(stream: io.StringIO) -> None:
    log.setup_logging("warning", "upstream:debug,http:off", stream)
    log.component_logger("upstream").debug("seen")
    log.component_logger("http").critical("hidden")
    log.component_logger("config").info("hidden")
    log.component_logger("config").log(log.TRACE, "hidden")
    assert stream.getvalue().count("\n") == 1
    levels = log.active_levels()
    assert (levels["upstream"], levels["http"], levels["config"]) == ("debug", "off", "warning")
    log.set_level(log.parse_level("trace"))
    assert set(log.active_levels().values()) == {"trace"}
    log.component_logger("http").log(log.TRACE, "seen")
    assert "[trace][http] seen" in stream.getvalue()


@pytest.mark.parametrize("text", ["loud", "a:loud"])
def test_unknown_levels_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="unknown log level 'loud'"):
        log.parse_component_levels(text) if ":" in text else log.parse_level(text)


def test_component_levels_need_a_colon() -> None:
    with pytest.raises(ConfigError, match="not correctly specified 'upstream'"):
        log.parse_component_levels("upstream")


def test_rate_limit_tells_how_often_it_was_held_back(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    log.setup_logging("info", stream=stream)
    limited = log.log_once_per(2.0, "http")
    for _ in range(3):
        limited.warning("100% wrong")
    now = 102.0
    limited.error("again", ValueError("why"))
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("[warning][http] 100% wrong")
    assert lines[1].endswith("[error][http] again (and 2 more not logged)")
    assert lines[-1] == "ValueError: why"
