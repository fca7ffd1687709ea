"""What is measured. A scenario is one entry of this table: a configuration, a load, who is compared, and the goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.load import Closed, FixedRate, Load


@dataclass(frozen=True, slots=True)
class Goal:
    """`peer` should cost at most `ratio` × the CPU of the scenario's baseline; None means nothing was promised."""

    peer: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """One comparison; `config` names the files of bench/configs, `baseline` the peer that ratios are taken of."""

    name: str
    title: str
    config: str
    load: Load
    peers: tuple[str, ...]
    baseline: str
    goal: Goal | None = None


SCENARIOS: Final = (
    Scenario(
        name="http1",
        title="HTTP/1.1, one worker each",
        config="http1",
        load=Closed(connections=32),
        peers=("envoy", "nginx", "meshproxy", "meshproxy-source"),
        baseline="envoy",
        goal=Goal("meshproxy", 0.7),
    ),
    Scenario(
        name="http1-rate",
        title="HTTP/1.1 at a fixed rate, one worker each",
        config="http1",
        load=FixedRate(per_second=2000, connections=32),
        peers=("envoy", "nginx", "meshproxy"),
        baseline="envoy",
    ),
    Scenario(
        name="http1-workers",
        title="HTTP/1.1, two workers against one",
        config="http1",
        load=Closed(connections=32),
        peers=("meshproxy", "meshproxy-2"),
        baseline="meshproxy",
    ),
    Scenario(
        name="tcp",
        title="TCP, small requests and answers on connections that stay, one worker each",
        config="tcp",
        load=Closed(connections=32),
        peers=("envoy", "meshproxy"),
        baseline="envoy",
        goal=Goal("meshproxy", 1.0),
    ),
    Scenario(
        name="tcp-bulk",
        title="TCP, 1 MiB downloads, one worker each",
        config="tcp",
        load=Closed(connections=8, path="/1MiB"),
        peers=("envoy", "meshproxy"),
        baseline="envoy",
        goal=Goal("meshproxy", 1.0),
    ),
)
