"""A listener that is built and does not accept yet: it waits for its routes, secrets and extensions."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from meshproxy.config.subscription import InitManager
from meshproxy.server.listener_config import ListenerConfig
from meshproxy.server.resources import Resource

# Kinds of what warms, as `/init_dump` calls their init managers.
LISTENER: Final = "init manager Listener-local-init-manager"
CLUSTER: Final = "init manager Cluster"


class WarmingListener:
    """`sockets` are those that it is to accept on; None: those of the listener whose place it takes."""

    def __init__(
        self, resource: Resource[ListenerConfig], config: ListenerConfig, sockets: list[socket.socket] | None
    ) -> None:
        self.resource = resource
        self.config = config
        self.sockets = sockets
        self.ready = False
        self._targets = InitManager(config.context.init_targets)
        self._on_warm: Callable[[WarmingListener], None] | None = None

    @property
    def name(self) -> str:
        return self.resource.name

    def start(self, on_warm: Callable[[WarmingListener], None]) -> None:
        """Begin to wait. `on_warm` is called later, but not where it was `ready` at once."""
        self._targets.start(self._on_ready)
        self._on_warm = on_warm

    def unready(self) -> list[str]:
        """The names of what it waits for."""
        return [target.name for target in self._targets.unready()]

    def discard(self) -> None:
        """Another version came before this one was ready, or none is wanted."""
        self._on_warm = None
        self.config.context.close()

    def _on_ready(self) -> None:
        self.ready = True
        if self._on_warm is not None:
            self._on_warm(self)
