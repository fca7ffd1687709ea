"""What the admin asks of the server: one abstract class that the server implements, and the values it answers with.

Methods that may have to ask workers are coroutines; the others answer at once from what the process holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from meshproxy.net.address import Address
from meshproxy.observe.export import StatsExporter

LIVE = "LIVE"
DRAINING = "DRAINING"
PRE_INITIALIZING = "PRE_INITIALIZING"
INITIALIZING = "INITIALIZING"


class ServerDescription:
    """What `/server_info` says.

    `command_line_options` takes the field names of envoy.admin.v3.CommandLineOptions with JSON values (durations as
    "20s"); `node` is a core.v3.Node.
    """

    def __init__(self, version: str, uptime_s: float, command_line_options: Mapping[str, Any], node: Message) -> None:
        self.version = version
        self.uptime_s = uptime_s
        self.command_line_options = command_line_options
        self.node = node


class ListenerStatus:
    """A listener and the addresses that it is bound to."""

    def __init__(self, name: str, addresses: Sequence[Address]) -> None:
        self.name = name
        self.addresses = addresses


class RuntimeStatus:
    """`layers` from the lowest to the topmost; `entries` has for each key its value in every layer ("" where it has
    none) and the value in force."""

    def __init__(self, layers: Sequence[str], entries: Mapping[str, tuple[Sequence[str], str]]) -> None:
        self.layers = layers
        self.entries = entries


class ConfigResource:
    """A named element of a repeated field of a config dump; `build` makes its message when it is written."""

    def __init__(self, field: str, name: str, build: Callable[[], Message]) -> None:
        self.field = field
        self.name = name
        self.build = build


class ConfigSection:
    """One of the messages that `/config_dump` lists: its fields that are not repeated, and the elements of the others,
    those of one field together. `large` has fields of the head, by name, that are too large to be copied into it.

    Nothing of it changes after it was given out, as it is written over many turns.
    """

    def __init__(
        self,
        head: Message,
        resources: Sequence[ConfigResource] = (),
        large: Mapping[str, Message] | None = None,
    ) -> None:
        self.head = head
        self.resources = resources
        self.large: Mapping[str, Message] = large or {}


class AdminBackend(ABC):
    """The server as the admin sees it."""

    # -- what it is

    @abstractmethod
    def state(self) -> str:
        """LIVE, DRAINING (also while health checks are failed by an operator), PRE_INITIALIZING or INITIALIZING."""

    @abstractmethod
    def describe(self) -> ServerDescription:
        """For `/server_info`."""

    @abstractmethod
    def listeners(self) -> Sequence[ListenerStatus]:
        """Every active listener, in the order of the configuration."""

    @abstractmethod
    async def stats(self) -> StatsExporter:
        """The stats of all processes at this moment, summed up."""

    @abstractmethod
    async def clusters(self) -> Sequence[Mapping[str, Any]]:
        """envoy.admin.v3.ClusterStatus in JSON's shape, one per cluster, summed up over the workers.

        Fields may be at their default. `text` holds what only the text form shows: `hosts`, in the order of
        `host_statuses` (address, health_flags, canary, success_rate, local_origin_success_rate), and `outlier`, the
        lines of the outlier detector (None without one).
        """

    @abstractmethod
    async def certificates(self) -> Sequence[Mapping[str, Any]]:
        """envoy.admin.v3.Certificate in JSON's shape, one per TLS context."""

    @abstractmethod
    async def config_sections(self, include_eds: bool) -> Sequence[ConfigSection]:
        """What runs, as sections (`config_dump.py` makes them); endpoints only with `include_eds`."""

    @abstractmethod
    async def unready_targets(self) -> Sequence[tuple[str, Sequence[str]]]:
        """For `/init_dump`: (init manager, targets it waits for)."""

    @abstractmethod
    async def explain(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, Any]:
        """What becomes of a request that is described by parameters (`explain/question.py`): an `Explanation.plain`,
        or `error` alone."""

    @abstractmethod
    def runtime(self) -> RuntimeStatus:
        """The layered runtime."""

    @abstractmethod
    def log_levels(self) -> Mapping[str, str]:
        """Component to level, in Envoy's words."""

    # -- what changes it

    @abstractmethod
    async def set_log_levels(self, levels: Mapping[str, str]) -> None:
        """Change the level of components, by their names; the name "" is all of them."""

    @abstractmethod
    async def modify_runtime(self, changes: Mapping[str, str]) -> None:
        """Set keys of the admin layer; an empty value removes one. Raises ConfigError when there is no admin layer."""

    @abstractmethod
    async def reset_counters(self) -> None:
        """Set every counter to zero."""

    @abstractmethod
    async def fail_health_checks(self, fail: bool) -> None:
        """Let `/ready` and health checks fail, or pass again."""

    @abstractmethod
    async def drain_listeners(self, *, inbound_only: bool, graceful: bool, skip_exit: bool) -> None:
        """Close the listeners: at once, or after the drain time (`graceful`), or never (`skip_exit`: only drain).

        Returns when the drain has begun.
        """

    @abstractmethod
    async def reopen_logs(self) -> None:
        """Open the access logs again (they were rotated)."""

    @abstractmethod
    def quit(self) -> None:
        """End the process soon, once the answer is out."""
