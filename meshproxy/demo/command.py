"""`meshproxy demo`: a canary release in four acts, with real processes and real clients; every claim is checked.

Exit code 0 when all of it is so, 1 when something is not or cannot be shown, 130 when a signal stops it before the end.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import uvloop

from meshproxy.demo.processes import DemoError, Processes
from meshproxy.demo.rules import ExampleError, read_canary
from meshproxy.demo.screen import RED, Screen
from meshproxy.demo.story import Story

_ACT_S: Final = 8.0
_ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_demo(options: argparse.Namespace) -> int:
    """Show it; `options` has `keep`, `seconds` (of an act; None: the usual) and `config_path` ("" for the example)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    screen = Screen(sys.stdout)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_until_signalled(screen, options))
    except (ExampleError, DemoError) as error:
        screen.say(f"meshproxy demo: {error}", RED)
        return 1
    except BrokenPipeError:
        # Whoever read has gone; what is still buffered must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


async def _until_signalled(screen: Screen, options: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    show = asyncio.ensure_future(_show(screen, options))
    for number in _ENDING_SIGNALS:
        loop.add_signal_handler(number, show.cancel)
    try:
        return await show
    except asyncio.CancelledError:
        screen.say("\nstopped")
        return 130


async def _show(screen: Screen, options: argparse.Namespace) -> int:
    canary = read_canary(options.config_path)
    act_s = _ACT_S if options.seconds is None else options.seconds
    with tempfile.TemporaryDirectory(prefix="meshproxy-demo-") as name, Processes(Path(name)) as processes:
        story = Story(screen, canary, options.config_path or "examples/mesh/canary.yaml", act_s)
        await story.set_the_stage(processes, Path(name))
        await story.play()
        await story.show_a_trace(processes, Path(name))
        holds = await story.sum_up()
        if options.keep:
            await story.stay()
        return 0 if holds else 1
