"""`/explain`: the same of what a worker runs at this moment, with the health that its hosts have."""

from __future__ import annotations

from typing import Any

from meshproxy.net.slices import in_slices
from meshproxy.server.explain.explanation import Explanation, ListenerView, World
from meshproxy.server.explain.question import QuestionError, build_question
from meshproxy.server.explain.upstream import ClusterView
from meshproxy.server.worker import Worker


async def explain_live(worker: Worker, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """An `Explanation.plain`, or `error` alone for a question that cannot be answered. Traffic goes on meanwhile."""
    try:
        explanation = Explanation(live_world(worker), build_question(pairs))
        await in_slices(explanation.steps())
    except QuestionError as error:
        return {"error": str(error)}
    return explanation.plain


def live_world(worker: Worker) -> World:
    """The listeners and clusters that run: those of the file, with their paths in it, and those of a control plane."""
    resources, dynamic = worker.resources, worker.dynamic

    def find_cluster(name: str) -> ClusterView | None:
        cluster = worker.clusters.get(name)
        if cluster is None:
            return None
        at = resources.clusters.get(name)
        return ClusterView(f"clusters.{name}" if at is None else at.path, cluster.config, list(cluster.hosts))

    listeners = {
        name: ListenerView(resource.path, resource.message, worker.listeners[name].config)
        for name, resource in resources.listeners.items()
        if name in worker.listeners
    }
    for name, resource in dynamic.listeners.items():
        running = worker.listeners.get(name)
        if running is not None and running.config.context is resource.context:  # else a newer version warms
            listeners[name] = ListenerView(f"listeners.{name}", resource.message, running.config)
    return World(listeners, find_cluster)
