"""A real etcd on free ports."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.polling import wait_for


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Etcd:
    """One member; `stop` and `start` keep its data and port. With `tls` (certificate, key, authority) clients must show
    a certificate."""

    def __init__(self, directory: Path, tls: tuple[Path, Path, Path] | None = None) -> None:
        self._directory = directory
        self._tls = tls
        self._scheme = "http" if tls is None else "https"
        self.port = free_port()
        self._peer_port = free_port()
        self._ran = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Skips the test where there is no etcd. A port that somebody else took meanwhile is tried anew."""
        binary = shutil.which("etcd")
        if binary is None:
            pytest.skip("no etcd: tools/system_packages.sh etcd etcdctl")
        for attempt in range(3):
            self._launch(binary)
            try:
                wait_for(self._answers, "etcd", 20.0)
                self._ran = True
                return
            except ChildProcessError:
                if attempt == 2 or self._ran:
                    raise
                self.port, self._peer_port = free_port(), free_port()

    def _launch(self, binary: str) -> None:
        client, peer = f"{self._scheme}://{self.endpoint}", f"http://127.0.0.1:{self._peer_port}"
        flags = ["--data-dir", str(self._directory / "data"), "--logger", "zap", "--log-level", "error"]
        flags += ["--listen-client-urls", client, "--advertise-client-urls", client]
        flags += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        flags += ["--initial-cluster", f"default={peer}"]
        if self._tls is not None:
            names = ("--cert-file", "--key-file", "--trusted-ca-file")
            flags += [each for pair in zip(names, map(str, self._tls), strict=True) for each in pair]
            flags += ["--client-cert-auth"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([binary, *flags], stdout=log, stderr=log)

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise ChildProcessError((self._directory / "log").read_text())
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
