"""Config sections: of serialised resources too, and with a configuration that was refused."""

from __future__ import annotations

import json
from typing import Any

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from envoy.config.cluster.v3.cluster_pb2 import Cluster

from meshproxy.server.admin.config_sections import ConfigEntry, config_sections
from tests.server.admin.backend import FakeBackend
from tests.server.admin.test_handlers import handle

TIME_S = 1_700_000_000.5
TIME = "2023-11-14T22:13:20.500Z"


def entries() -> list[Any]:
    bootstrap = Bootstrap(node={"id": "n1"})
    cluster = Cluster(name="v1")
    return [
        ConfigEntry("", bootstrap.SerializeToString(), TIME_S),
        [ConfigEntry("v1", cluster.SerializeToString(), TIME_S), ConfigEntry("v2", Cluster(name="v2"), TIME_S)],
        [],
        [],
    ]


async def test_resources_may_be_serialised_or_not(backend: FakeBackend) -> None:
    bootstrap, clusters, listeners, routes = entries()
    backend.sections = config_sections(bootstrap, clusters, listeners, routes)
    configs = json.loads((await handle(backend, "/config_dump")).body)["configs"]
    assert configs[0]["bootstrap"] == {"node": {"id": "n1"}}
    assert configs[0]["last_updated"] == TIME
    assert [one["cluster"]["name"] for one in configs[1]["static_clusters"]] == ["v1", "v2"]
    assert [one["last_updated"] for one in configs[1]["static_clusters"]] == [TIME, TIME]


async def test_a_refused_configuration_is_listed_with_its_errors(backend: FakeBackend) -> None:
    bootstrap, clusters, listeners, routes = entries()
    refused = ConfigEntry("", Bootstrap(node={"id": "n2"}).SerializeToString(), TIME_S)
    because = "node.id: no\nadmin: no"
    backend.sections = config_sections(bootstrap, clusters, listeners, routes, refused=refused, refused_because=because)
    failure = json.loads((await handle(backend, "/config_dump")).body)["configs"][-1]
    assert failure == {
        "@type": "type.googleapis.com/envoy.admin.v3.UpdateFailureState",
        "failed_configuration": {
            "@type": "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap",
            "node": {"id": "n2"},
        },
        "last_update_attempt": TIME,
        "details": because,
    }


async def test_a_file_that_could_not_be_read_has_only_its_errors(backend: FakeBackend) -> None:
    bootstrap, clusters, listeners, routes = entries()
    refused = ConfigEntry("", b"", TIME_S)
    backend.sections = config_sections(
        bootstrap, clusters, listeners, routes, refused=refused, refused_because="no such file"
    )
    failure = json.loads((await handle(backend, "/config_dump?mask=details")).body)["configs"]
    assert failure == [
        {"@type": "type.googleapis.com/envoy.admin.v3.UpdateFailureState", "details": "no such file"},
    ]
