"""Filters from a control plane, with the whole proxy: they change under connections that stay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.listener.v3.listener_pb2 import Listener

from meshproxy.config.subscription import EXTENSION_TYPE, LISTENER_TYPE
from tests.integration.config import direct, listener
from tests.integration.dynamic import ADS, ads_bootstrap, message
from tests.integration.kept import KeptConnection
from tests.integration.proxy import Proxy
from tests.support.control_plane import ControlPlane

FILTERS = "type.googleapis.com/envoy.extensions.filters.http."
MUTATION = FILTERS + "header_mutation.v3.HeaderMutation"
DISCOVERED = {"name": "mark", "config_discovery": {"config_source": ADS, "type_urls": [MUTATION]}}
_WAYS = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])
_WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with ControlPlane.start() as plane:
        made = listener("main", [direct("/", "hello")], filters=[DISCOVERED])
        plane.set(LISTENER_TYPE, {"main": message(Listener, made)})
        yield plane


def mark(value: str) -> dict[str, Any]:
    append = {"header": {"key": "x-mark", "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return extension({"@type": MUTATION, "mutations": {"response_mutations": [{"append": append}]}})


def extension(config: dict[str, Any]) -> dict[str, Any]:
    return {"mark": message(TypedExtensionConfig, {"name": "mark", "typed_config": config})}


@_WORKERS
@_WAYS
async def test_a_filter_is_swapped_and_a_wrong_one_refused(plane: ControlPlane, delta: bool, workers: str) -> None:
    plane.set(EXTENSION_TYPE, mark("one"))
    async with Proxy(ads_bootstrap(plane.port, delta=delta), "--concurrency", workers) as proxy:
        kept = await KeptConnection.open(proxy.ports["main"])
        assert (await kept.get("/")).header("x-mark") == "one"
        plane.set(EXTENSION_TYPE, mark("two"), "2")
        await kept.until("/", lambda answer: answer.header("x-mark") == "two")
        plane.set(EXTENSION_TYPE, extension({"@type": FILTERS + "buffer.v3.Buffer", "max_request_bytes": 1}), "3")
        await plane.until(lambda: plane.nacks(EXTENSION_TYPE))
        assert "mark: typed_config" in plane.nacks(EXTENSION_TYPE)[0]
        assert (await kept.get("/")).header("x-mark") == "two"
        stats = "extension_config_discovery.http_filter.mark."
        assert [await proxy.stat(stats + name) for name in ("config_reload", "config_fail")] == [2, 1]
        kept.close()
