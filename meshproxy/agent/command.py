"""`meshproxy agent`: serve a pod's proxies their certificates.

Exit code 0 when a signal ends it, 1 when it cannot serve, 2 when the flags are wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Final

import uvloop

from meshproxy.agent.agent import Agent
from meshproxy.agent.settings import AgentSettings, agent_settings
from meshproxy.errors import ConfigError, MeshProxyError
from meshproxy.observe.log import setup_logging
from meshproxy.server.secrecy import keep_memory_private

_ENDING_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def run_agent(options: argparse.Namespace) -> int:
    """Serve until a signal comes; `options` are those of `flags.py`."""
    keep_memory_private()
    try:
        setup_logging(options.log_level)
        settings = agent_settings(options)
    except ConfigError as error:
        print(f"meshproxy agent: {error}", file=sys.stderr)
        return 2
    try:
        uvloop.run(_run(settings))
    except MeshProxyError as error:
        print(f"meshproxy agent: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(settings: AgentSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _ENDING_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    await Agent(settings).run(stop)
