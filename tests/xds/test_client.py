"""The client against a control plane by grpcio, which answers by the protocol's rules."""

from __future__ import annotations

import pytest

from meshproxy.config.config_source import ADS
from meshproxy.config.subscription import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE
from tests.xds.harness import api, assignment, client, cluster, listener

FORMS = pytest.mark.parametrize("delta", [False, True], ids=["sotw", "delta"])


@FORMS
async def test_resources_come_change_and_go(delta: bool) -> None:
    async with client(api(delta=delta)) as c:
        c.plane.set(CLUSTER_TYPE, {"a": cluster("a"), "b": cluster("b")}, "1")
        c.plane.set(LISTENER_TYPE, {"l": listener("l")}, "1")
        c.xds.subscribe(ADS, LISTENER_TYPE, "*")
        c.xds.subscribe(ADS, CLUSTER_TYPE, "*")
        c.xds.start()
        await c.sink.holds(CLUSTER_TYPE, "a", "b")
        await c.sink.holds(LISTENER_TYPE, "l")
        c.plane.set(CLUSTER_TYPE, {"b": cluster("b", "new"), "d": cluster("d")}, "2")
        await c.sink.holds(CLUSTER_TYPE, "b", "d")
        assert c.sink.held[CLUSTER_TYPE]["b"].alt_stat_name == "new"
        c.xds.subscribe(ADS, ENDPOINT_TYPE, "e1")
        c.xds.subscribe(ADS, ENDPOINT_TYPE, "e2")
        c.plane.set(ENDPOINT_TYPE, {"e1": assignment("e1"), "e2": assignment("e2"), "e3": assignment("e3")}, "1")
        await c.sink.holds(ENDPOINT_TYPE, "e1", "e2")
        assert [request.type_url for _, request in c.plane.requests][:2] == [CLUSTER_TYPE, LISTENER_TYPE]
        assert len(c.plane.streams) == 1
