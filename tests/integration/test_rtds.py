"""Runtime values from a control plane, with the whole proxy: requests follow them at once, and so does /runtime."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.service.runtime.v3.rtds_pb2 import Runtime

from meshproxy.config.subscription import LISTENER_TYPE, RUNTIME_TYPE
from tests.integration.config import direct, listener
from tests.integration.dynamic import ADS, ads_bootstrap, message
from tests.integration.kept import KeptConnection
from tests.integration.proxy import Proxy
from tests.support.control_plane import ControlPlane

LAYERS = {
    "layers": [
        {"name": "base", "static_layer": {"share": 0, "base": 1}},
        {"name": "live", "rtds_layer": {"name": "live", "rtds_config": ADS}},
        {"name": "admin", "admin_layer": {}},
    ]
}
_WAYS = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
_WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.start() as plane:
        share = {"runtime_key": "share", "default_value": {"numerator": 0}}
        inside = direct("/", "in")
        inside["match"]["runtime_fraction"] = share
        plane.set(LISTENER_TYPE, {"main": message(Listener, listener("main", [inside, direct("/", "out")]))})
        yield plane


def layer(**values: Any) -> dict[str, Any]:
    return {"live": message(Runtime, {"name": "live", "layer": values})}


async def final(proxy: Proxy, key: str) -> str:
    _, body = await proxy.admin("/runtime")
    return str(json.loads(body)["entries"][key]["final_value"])


@_WORKERS
@_WAYS
async def test_values_are_followed(plane: ControlPlane, delta: bool, workers: str) -> None:
    plane.set(RUNTIME_TYPE, layer(share=100))
    config = ads_bootstrap(plane.port, delta=delta, layered_runtime=LAYERS)
    async with Proxy(config, "--concurrency", workers) as proxy:
        kept = await KeptConnection.open(proxy.ports["main"])
        assert (await kept.get("/")).body == "in"
        plane.set(RUNTIME_TYPE, layer(share=0, more="x"), "2")
        await kept.until("/", lambda answer: answer.body == "out")
        assert (await final(proxy, "share"), await final(proxy, "more"), await final(proxy, "base")) == ("0", "x", "1")
        plane.set(RUNTIME_TYPE, layer(share=[1]), "3")
        await plane.until(lambda: plane.nacks(RUNTIME_TYPE))
        assert "layer.share" in plane.nacks(RUNTIME_TYPE)[0]
        assert (await kept.get("/")).body == "out"
        kept.close()
