"""What the pilot counts, for Prometheus. Every server has a registry of its own."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PUSH_BUCKETS_S: Final = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0)
_BUILD_BUCKETS_S: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_PREFIX: Final = "meshproxy_pilot_"


class Metrics:
    """`type` is the short name of a resource type, `protocol` `sotw` or `delta`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.clients = Gauge(_PREFIX + "clients", "Streams that are open.", ["protocol"], registry=registry)
        self.scopes = Gauge(_PREFIX + "snapshots", "Distinct snapshots that are served.", registry=registry)
        self.rule_errors = Gauge(_PREFIX + "rule_errors", "Documents that are refused.", registry=registry)
        self.meshes = Counter(_PREFIX + "rule_changes", "Versions of the rules that were taken up.", registry=registry)
        self.responses = Counter(_PREFIX + "responses", "Responses sent.", ["type"], registry=registry)
        self.bytes = Counter(_PREFIX + "response_bytes", "Bytes of responses sent.", registry=registry)
        self.rejections = Counter(_PREFIX + "rejections", "Responses that were refused.", ["type"], registry=registry)
        self.refused = Counter(_PREFIX + "refused_streams", "Streams of clients that make no sense.", registry=registry)
        self.slow = Counter(_PREFIX + "slow_clients", "Streams that missed the deadline.", registry=registry)
        self.failed_builds = Counter(_PREFIX + "failed_builds", "Snapshots that were not built.", registry=registry)
        self.build = Histogram(
            _PREFIX + "build_seconds", "Building one snapshot.", buckets=_BUILD_BUCKETS_S, registry=registry
        )
        self.push = Histogram(
            _PREFIX + "push_seconds",
            "From a change of the rules until a client has taken what it means for it.",
            buckets=PUSH_BUCKETS_S,
            registry=registry,
        )

    def text(self) -> str:
        """In Prometheus' text format."""
        return generate_latest(self.registry).decode()
