"""What every test stands on: uvloop, and the rule that a leak is a failure.

A leftover task, an exception that only reached the event loop's handler, an un-awaited coroutine, an unraisable
exception or a ResourceWarning fails the test that caused it (the last three by `filterwarnings` in pyproject.toml).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_asyncio
import uvloop

# A bare `pytest` finds the checkout too; the compiled run has it on PYTHONPATH already, behind the build.
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)

import meshproxy  # noqa: E402

# The gate runs the same examples every time, so that it fails for a change and never by chance;
# `make test-long` explores.
hypothesis.settings.register_profile(
    "gate",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "long",
    deadline=None,
    max_examples=2_000,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile(os.environ.get("MESHPROXY_HYPOTHESIS_PROFILE", "gate"))

# Enough turns for callbacks that a closing transport has queued; not a wait.
_CLOSING_TURNS = 5
_CALL_OF_GRPCIO = "HandleExceptions["  # the name of its servers' tasks, which end a moment after the server
_POLLER_OF_GRPCIO = "PollerCompletionQueue"
_PATIENCE_S = 10.0


class LeakTellingLoop(uvloop.Loop):
    """A uvloop whose `close` tells of open handles after it closed them: raised halfway, the warning would hang it."""

    def close(self) -> None:
        """Close every handle; raise ResourceWarning when the test had left one open."""
        with warnings.catch_warnings(record=True) as leaks:
            warnings.simplefilter("always", ResourceWarning)
            super().close()
        for leak in leaks:
            warnings.warn(leak.message, source=leak.source, stacklevel=2)


def pytest_configure(config: pytest.Config) -> None:
    """Stop before the first test when the build under test is not the one that was asked for."""
    expected = os.environ.get("MESHPROXY_EXPECT_COMPILED")
    if expected is not None and meshproxy.is_compiled() != (expected == "1"):
        raise pytest.UsageError(f"MESHPROXY_EXPECT_COMPILED={expected}, but meshproxy comes from {meshproxy.__file__}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported lives on: keep it out of the collection after each asynchronous test."""
    gc.collect()
    gc.freeze()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test runs on the event loop that the proxy runs on."""
    return {"uvloop": LeakTellingLoop}


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up first, torn down last: what an asynchronous test left behind is told while its name is known."""
    if not pytest_asyncio.is_async_test(request.node):
        yield
        return
    request.getfixturevalue("clean_event_loop")
    yield
    gc.collect()
    gc.freeze()  # what the test has imported (messages are, when they are first named) lives on too


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A log that a test has set up ends with it."""
    yield
    root = logging.getLogger("meshproxy")
    root.handlers.clear()
    root.propagate = True


@pytest.fixture
async def clean_event_loop() -> AsyncIterator[None]:
    """Fail when a task outlives the test and its fixtures, or an exception had no one to go to."""
    loop = asyncio.get_running_loop()
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: unhandled.append(context))
    before = asyncio.all_tasks()
    yield
    for _ in range(_CLOSING_TURNS):
        await asyncio.sleep(0)
    ending = [task for task in asyncio.all_tasks() - before if task.get_name().startswith(_CALL_OF_GRPCIO)]
    if ending:
        await asyncio.wait(ending, timeout=_PATIENCE_S)
    mine = asyncio.current_task()
    leaked = [task for task in asyncio.all_tasks() - before if task is not mine]
    for task in leaked:
        task.cancel()
    await asyncio.gather(*leaked, return_exceptions=True)
    assert not leaked, f"tasks outlived the test: {leaked}"
    gc.collect()  # a failed task nobody looked at reports to the handler when it is collected
    told = [context for context in unhandled if not _is_of_a_loop_before(context)]
    assert not told, f"exceptions that only the event loop saw: {told}"


def _is_of_a_loop_before(context: dict[str, Any]) -> bool:
    """The event loops of a process share grpcio's poller: what is late for one that has ended, the next one gets."""
    return _POLLER_OF_GRPCIO in context["message"] and "Event loop is closed" in str(context.get("exception"))
