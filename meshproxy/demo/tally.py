"""What the clients saw: every request that they sent is counted here once, as answered or as failed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Container
from typing import Final

_FAILURES_KEPT: Final = 5


class Tally:
    """Requests of some clients during some acts."""

    def __init__(self) -> None:
        self.by_instance: Counter[str] = Counter()
        self.failed = 0
        self.latencies_ms: list[float] = []

    @property
    def answered(self) -> int:
        return len(self.latencies_ms)

    @property
    def requests(self) -> int:
        return self.answered + self.failed

    def on(self, version: str) -> int:
        """How many a version answered."""
        return sum(count for instance, count in self.by_instance.items() if instance.startswith(f"{version}-"))

    def share_on(self, version: str) -> float:
        """The share of the answers that came from a version, 0 to 1."""
        return self.on(version) / self.answered if self.answered else 0.0

    def percentile_ms(self, share: float) -> float:
        """The latency that `share` of the answers did not exceed (nearest rank)."""
        ranked = sorted(self.latencies_ms)
        return ranked[min(int(share * len(ranked)), len(ranked) - 1)] if ranked else 0.0

    def add(self, other: Tally) -> None:
        """Count what `other` counted, too."""
        self.by_instance.update(other.by_instance)
        self.failed += other.failed
        self.latencies_ms += other.latencies_ms


class Ledger:
    """All tallies, by act and kind of client. Clients in threads write to it as well."""

    def __init__(self) -> None:
        self.act = ""  # a request belongs to the act in which it was sent
        self.failures: list[str] = []  # the first few, in words
        self.connections: Counter[str] = Counter()  # opened, by kind
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._lock = threading.Lock()

    def count_answer(self, act: str, kind: str, instance: str, latency_ms: float) -> None:
        with self._lock:
            tally = self._tallies.setdefault((act, kind), Tally())
            tally.by_instance[instance] += 1
            tally.latencies_ms.append(latency_ms)

    def count_failure(self, act: str, kind: str, reason: str) -> None:
        with self._lock:
            self._tallies.setdefault((act, kind), Tally()).failed += 1
            if len(self.failures) < _FAILURES_KEPT:
                self.failures.append(f"{act}, {kind}: {reason}")

    def count_connection(self, kind: str) -> None:
        with self._lock:
            self.connections[kind] += 1

    def total(self, acts: Container[str] | None = None, kinds: Container[str] | None = None) -> Tally:
        """The sum over some acts and kinds of clients; None stands for all."""
        total = Tally()
        with self._lock:
            for (act, kind), tally in self._tallies.items():
                if (acts is None or act in acts) and (kinds is None or kind in kinds):
                    total.add(tally)
        return total
