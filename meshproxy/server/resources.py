"""A bootstrap as resources: every cluster and listener built, or every reason why not.

What did not change since the last time is not built again; what did is built beside the old one, and nothing is swapped
before all of it is right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, item
from meshproxy.config.runtime import Layer, Runtime, build_layers
from meshproxy.observe.stats import StatsRegistry
from meshproxy.server.listener_config import ListenerConfig, build_listener, listener_addresses
from meshproxy.upstream.build import build_cluster
from meshproxy.upstream.config import ClusterConfig

T = TypeVar("T")


class Resource(Generic[T]):
    """A named resource: its serialised message, and what was built of it (None: the same as before).

    `references` are the clusters that it names, with the path below the resource's own: they must exist after every
    change.
    """

    def __init__(
        self,
        name: str,
        path: str,
        message: bytes,
        built: T | None,
        context: BuildContext | None,
        references: list[tuple[str, str]],
    ) -> None:
        self.name = name
        self.path = path
        self.message = message
        self.built = built
        self.context = context
        self.references = references


class Resources:
    """What one bootstrap says, ready to be swapped in."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.clusters: dict[str, Resource[ClusterConfig]] = {}
        self.listeners: dict[str, Resource[ListenerConfig]] = {}

    def discard(self) -> None:
        """Not to be used after all: give back what the builds acquired."""
        contexts = [one.context for one in self.clusters.values()] + [one.context for one in self.listeners.values()]
        for context in contexts:
            if context is not None:
                context.close()


def build_resources(
    bootstrap: Any, previous: Resources | None, runtime: Runtime, stats: StatsRegistry, errors: ConfigErrors
) -> Resources:
    """Build what `bootstrap` has that `previous` has not. With errors, the result is only good to be discarded."""
    resources = Resources()
    resources.layers = build_layers(bootstrap.layered_runtime, "layered_runtime", errors)
    static = bootstrap.static_resources

    def context() -> BuildContext:
        made = BuildContext(errors, runtime, stats)
        made.service_cluster, made.service_node = bootstrap.node.cluster, bootstrap.node.id
        return made

    path = "static_resources"
    resources.clusters = _build_each(
        static.clusters,
        path,
        "clusters",
        errors,
        context,
        build_cluster,
        previous.clusters if previous else {},
        lambda message: str(message.name),
    )
    resources.listeners = _build_each(
        static.listeners,
        path,
        "listeners",
        errors,
        context,
        build_listener,
        previous.listeners if previous else {},
        _listener_name,
    )
    _check_references(resources, errors)
    return resources


def _listener_name(message: Any) -> str:
    return message.name or listener_addresses(message)[0].text


def _build_each(
    messages: Iterable[Any],
    path: str,
    field: str,
    errors: ConfigErrors,
    context: Callable[[], BuildContext],
    build: Callable[[Any, str, BuildContext], T | None],
    previous: dict[str, Resource[T]],
    name_of: Callable[[Any], str],
) -> dict[str, Resource[T]]:
    built: dict[str, Resource[T]] = {}
    for index, message in enumerate(messages):
        where = item(path, field, index)
        name = name_of(message)
        if name in built:
            errors.add(f"{where}.name", f"the name {name!r} is used twice")
            continue
        serialised = message.SerializeToString(deterministic=True)
        old = previous.get(name)
        if old is not None and old.message == serialised:
            built[name] = Resource(name, where, serialised, None, None, old.references)
            continue
        own = context()
        made = build(message, where, own)
        built[name] = Resource(name, where, serialised, made, own, _references(made, where))
    return built


def _references(built: object, path: str) -> list[tuple[str, str]]:
    if not isinstance(built, ListenerConfig):
        return []
    return [(cluster, where.removeprefix(path)) for cluster, where in built.referenced_clusters()]


def _check_references(resources: Resources, errors: ConfigErrors) -> None:
    for listener in resources.listeners.values():
        for cluster, path in listener.references:
            if cluster not in resources.clusters:
                errors.add(listener.path + path, f"unknown cluster {cluster!r}")
