"""Generic secrets of a control plane, with the whole proxy: whom they are for, and that nobody else sees them."""

from __future__ import annotations

import asyncio
import base64
import hmac
from pathlib import Path
from typing import Any

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from meshproxy.config.subscription import LISTENER_TYPE, SECRET_TYPE
from tests.integration.config import direct, listener
from tests.integration.dynamic import ADS, ads_bootstrap, message
from tests.integration.kept import KeptConnection
from tests.integration.proxy import Proxy
from tests.support.control_plane import ControlPlane

TYPE = "type.googleapis.com/envoy.extensions."
INJECTOR = TYPE + "filters.http.credential_injector.v3.CredentialInjector"
GENERIC = TYPE + "http.injected_credentials.generic.v3.Generic"
PYTHON = "type.googleapis.com/meshproxy.filters.http.python.v1.Python"
SENTINELS = [f"no-one-may-read-this-{number}" for number in range(3)]

# It shows whether a request has the credential, and signs the answer, without telling either secret.
FILTER = """
import hmac

from meshproxy import HttpFilter


class Sign(HttpFilter):
    def on_request_headers(self, stream, headers, end):
        self.signed = hmac.new(self.context.secret("key"), headers[b"authorization"], "sha256").hexdigest()

    def on_response_headers(self, stream, headers, end):
        headers[b"x-signed"] = self.signed.encode()
"""

_WORKERS = pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.long)])
_WAYS = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


def sds(name: str) -> dict[str, Any]:
    return {"name": name, "sds_config": ADS | {"initial_fetch_timeout": "0s"}}


def filters(python: Path) -> list[dict[str, Any]]:
    credential = {"name": "generic", "typed_config": {"@type": GENERIC, "credential": sds("token")}}
    return [
        {"name": "injector", "typed_config": {"@type": INJECTOR, "credential": credential}},
        {"name": "sign", "typed_config": {"@type": PYTHON, "file": str(python), "secrets": [sds("key")]}},
    ]


def secrets(token: str, key: str) -> dict[str, Any]:
    held = {"token": {"inline_string": token}, "key": {"inline_bytes": base64.b64encode(key.encode()).decode()}}
    return {name: message(Secret, {"name": name, "generic_secret": {"secret": each}}) for name, each in held.items()}


def signed(token: str, key: str) -> str:
    return hmac.new(key.encode(), token.encode(), "sha256").hexdigest()


@_WORKERS
@_WAYS
async def test_they_are_waited_for_and_rotate_under_open_connections(tmp_path: Path, delta: bool, workers: str) -> None:
    (tmp_path / "sign.py").write_text(FILTER)
    made = message(Listener, listener("main", [direct("/", "hello")], filters=filters(tmp_path / "sign.py")))
    one, two, bad = SENTINELS
    arguments = ("--concurrency", workers, "--log-level", "debug")
    async with ControlPlane.start() as plane:
        plane.set(LISTENER_TYPE, {})
        async with Proxy(ads_bootstrap(plane.port, delta=delta), *arguments) as proxy:
            plane.set(LISTENER_TYPE, {"main": made}, "2")
            await proxy.until_stat("listener_manager.total_listeners_warming", lambda value: value == 1)
            assert "SdsApi token" in (await proxy.admin("/init_dump"))[1]
            plane.set(SECRET_TYPE, secrets(one, two))
            await proxy.until_stat("listener_manager.total_listeners_active", lambda value: value == 1)
            kept = await KeptConnection.open((await asyncio.to_thread(proxy.process.listener_ports))["main"])
            assert (await kept.get("/")).header("x-signed") == signed(one, two)
            plane.set(SECRET_TYPE, secrets(two, one), "2")
            await kept.until("/", lambda reply: reply.header("x-signed") == signed(two, one))
            plane.set(SECRET_TYPE, secrets(bad + "\r\nx", one), "3")
            await plane.until(lambda: plane.nacks(SECRET_TYPE))
            assert (await kept.get("/")).header("x-signed") == signed(two, one)
            kept.close()
            await nothing_is_told(proxy, plane)


async def nothing_is_told(proxy: Proxy, plane: ControlPlane) -> None:
    """Of what they held, refused ones too, in any spelling."""
    pages = ("config_dump", "config_dump?include_eds", "init_dump", "stats", "listeners?format=json", "certs", "help")
    told = [(await proxy.admin(f"/{page}"))[1] for page in pages]
    assert "[redacted]" in told[0]
    told += [proxy.output(), *plane.nacks(SECRET_TYPE)]
    for sentinel in SENTINELS:
        encoded = base64.b64encode(sentinel.encode()).decode().rstrip("=")[:-1]
        for text in told:
            assert sentinel not in text
            assert encoded not in text
