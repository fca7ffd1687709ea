"""Pilots as processes, and what a proxy starts with that hangs on them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.integration.dynamic import ADS
from tests.support.polling import wait_for

DEADLINE_S = 20.0
_START_S = 60.0  # a busy machine takes its time for the imports
_PILOT = (sys.executable, "-m", "meshproxy", "pilot")


class PilotProcess:
    """A pilot on a directory of rules, or on what `rules` says as flags; `folder` is for its files, by its name."""

    def __init__(self, rules: Path | tuple[str, ...], folder: Path, name: str, *flags: str) -> None:
        source = ("--rules", str(rules)) if isinstance(rules, Path) else rules
        path = folder / name
        listen = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--address-path", str(path))
        self.output = folder / f"{name}.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [*_PILOT, *source, *listen, "--drain-time-s", "0.5", "--debounce-ms", "10", *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            addresses = wait_for(lambda: _addresses(path), "the addresses", _START_S)
            self.addresses = addresses
            self.port = int(addresses["xds"][0].rpartition(":")[2])
            self._http = addresses["http"]
            wait_for(lambda: self.page("/ready") == "ready\n", "/ready", _START_S)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def page(self, path: str) -> str:
        """Empty as long as it is not ready."""
        try:
            with urllib.request.urlopen(f"http://{self._http}{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    def json(self, path: str) -> Any:
        return json.loads(self.page(path))

    def rules(self) -> Any:
        """What it has made of the documents."""
        return self.json("/debug/rejections")["rules"]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(DEADLINE_S)


def _addresses(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


@contextmanager
def pilot(rules: Path | tuple[str, ...], folder: Path, name: str, *flags: str) -> Iterator[PilotProcess]:
    made = PilotProcess(rules, folder, name, *flags)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()


def bootstrap(*ports: int, api_type: str = "DELTA_GRPC") -> str:
    """A proxy's, with explicit listeners, under any of these pilots."""
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports
    ]
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    xds = {
        "name": "xds",
        "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": endpoints}]},
    }
    return yaml.safe_dump(
        {
            "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            "node": {
                "id": "sidecar~127.0.0.1~client.shop~shop.svc.cluster.local",
                "cluster": "client",
                "metadata": {"INTERCEPTION_MODE": "NONE", "NAMESPACE": "shop"},
            },
            "static_resources": {"clusters": [xds]},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": api_type,
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
                },
                "cds_config": ADS,
                "lds_config": ADS,
            },
        }
    )


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
