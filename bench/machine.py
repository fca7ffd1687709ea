"""Where and with what a run was made, for the head of the report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from bench.peers import MOSN_VARIABLE, PeerError, installed
from meshproxy import __version__
from tests.support.proxy import find_envoy


def facts() -> dict[str, str]:
    """Label and value, in the order in which they are printed; what is not installed is not among them."""
    found = {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Machine": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}",
        "Load average before": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "meshproxy": f"{__version__}, commit {_commit()}",
        "Python": f"{platform.python_version()}, {_packages('uvloop', 'httptools', 'mypy')}",
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
        "Envoy": _said([find_envoy() or "envoy", "--version"], r"/([0-9.]+)/"),
        "nginx": _said([_path("nginx"), "-v"], r"nginx/([0-9.]+)"),
        "HAProxy": _said([_path("haproxy"), "-v"], r"version ([^ ]+)"),
        "MOSN": _said([os.environ.get(MOSN_VARIABLE, "mosn"), "--version"], r"version[: ]+([^ \n]+)"),
        "nghttp2": _said(["h2load", "--version"], r"nghttp2/([0-9.]+)"),
        "wrk": _said(["wrk", "-v"], r"wrk (?:debian/)?([^ ]+)"),
        "ext_proc server": _packages("grpcio"),
    }
    return {label: value for label, value in found.items() if value != "?"}


def _path(program: str) -> str:
    try:
        return installed(program)
    except PeerError:
        return program


def _cpu_model() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _commit() -> str:
    commit = _said(["git", "rev-parse", "--short", "HEAD"], r"(\w+)")
    changed = _said(["git", "status", "--porcelain", "meshproxy"], r"(.)") != "?"
    return f"{commit} with uncommitted changes" if changed else commit


def _packages(*names: str) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _said(command: list[str], pattern: str) -> str:
    """What `pattern` finds in a command's output; "?" when it finds nothing or there is no such command."""
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False, timeout=20
        )
    except FileNotFoundError:
        return "?"
    found = re.search(pattern, done.stdout + done.stderr)
    return found.group(1) if found else "?"
