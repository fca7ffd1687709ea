"""What every `build_*` function is handed: where errors go, and what outlives the build."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

from meshproxy.config.datasource import FileStamp, file_stamp
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.runtime import Runtime
from meshproxy.observe.stats import StatsRegistry, StatsScope
from meshproxy.tls.context import TlsContext

S = TypeVar("S", bound=StatsScope)


class Closeable(Protocol):
    def close(self) -> None: ...


class BuildContext:
    """One per top-level resource (a listener, a cluster, a route configuration).

    It remembers what the build acquired (stats scopes, log files): the resource that came of it closes the context when
    it goes, and a build that failed closes it at once. `references` are the clusters that must exist, each with the
    path of the field that names it. `files` are those on whose change the resource is to be built anew, as they were
    before they were read; `tls` are the contexts that it made.
    """

    def __init__(
        self, errors: ConfigErrors, runtime: Runtime, stats: StatsRegistry, *, postpones: bool = False
    ) -> None:
        self.errors = errors
        self.runtime = runtime
        self.stats = stats
        self.stat_prefix: str = ""  # while HTTP filters are built: their connection manager's, `http.ingress.`
        self.listener_stat_prefix: str = ""  # `listener.<address>.`, while a listener is built
        self.service_cluster: str = ""  # node.cluster and node.id of the bootstrap
        self.service_node: str = ""
        self.references: list[tuple[str, str]] = []
        self.files: dict[str, FileStamp | None] = {}
        self.tls: list[TlsContext] = []
        self._postpones = postpones
        self._postponed: list[tuple[str, Iterator[None]]] = []
        self._acquired: list[tuple[str, type[StatsScope]]] = []
        self._closeables: list[Closeable] = []

    def scope(self, prefix: str, kind: type[S]) -> S:
        """The stats scope of `kind` under `prefix`, e.g. `http.ingress.`; shared by all who ask for the same."""
        self._acquired.append((prefix, kind))
        return self.stats.acquire(prefix, kind)

    def keep(self, closeable: Closeable) -> None:
        """Close it when the resource goes (an access log gives back its file)."""
        self._closeables.append(closeable)

    def watch(self, filename: str) -> None:
        """The resource goes by what this file, which is read next, holds."""
        self.files.setdefault(filename, file_stamp(filename))

    def later(self, steps: Iterator[None]) -> None:
        """Work in many steps that nothing else of the build waits for: it is done now, unless the caller wants to do it
        bit by bit (`postponed`)."""
        self._postponed.append((self.stat_prefix, steps))
        if not self._postpones:
            for _ in self.postponed():
                pass

    def postponed(self) -> Iterator[None]:
        """Do what is left, with other work between the steps."""
        while self._postponed:
            self.stat_prefix, steps = self._postponed.pop(0)
            yield from steps

    def close(self) -> None:
        """Give back all that this build acquired; a second call does nothing."""
        acquired, self._acquired = self._acquired, []
        for prefix, kind in acquired:
            self.stats.release(prefix, kind)
        closeables, self._closeables = self._closeables, []
        for closeable in closeables:
            closeable.close()
