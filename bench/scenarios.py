"""What is measured. A scenario is one entry of this table: a configuration, a load, who is compared, and the goal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bench.configuration import host_name
from bench.load import Closed, FixedRate, Handshakes, Load
from bench.peers import LISTENER


@dataclass(frozen=True, slots=True)
class Goal:
    """`peer` should cost at most `ratio` × the CPU of the scenario's baseline; None means nothing was promised."""

    peer: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """One comparison; `config` names the files of bench/configs, `listener` one of its listeners, `baseline` the peer
    that ratios are taken of, and `unit` what it is that costs."""

    name: str
    title: str
    config: str
    load: Load
    peers: tuple[str, ...]
    baseline: str
    goal: Goal | None = None
    listener: str = LISTENER
    unit: str = "request"


_PAIR: Final = ("envoy", "meshproxy")
_MORE_HANDSHAKES: Final = Goal("meshproxy", 0.91)  # of the CPU: 1.1 times the handshakes in a second of it
_BODY_SIZES: Final = ((64, "64KiB", 32, None), (1024, "1MiB", 8, Goal("meshproxy", 1.2)))

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
        peers=_PAIR,
        baseline="envoy",
        goal=Goal("meshproxy", 1.0),
    ),
    Scenario(
        name="tcp-bulk",
        title="TCP, 1 MiB downloads, one worker each",
        config="tcp",
        load=Closed(connections=8, path="/1MiB"),
        peers=_PAIR,
        baseline="envoy",
        goal=Goal("meshproxy", 1.0),
    ),
    Scenario(
        name="tls",
        title="HTTP/1.1 over TLS on connections that stay, one worker each",
        config="tls",
        listener="ecdsa",
        load=Closed(connections=32, tls=True),
        peers=_PAIR,
        baseline="envoy",
        goal=Goal("meshproxy", 0.8),
    ),
    Scenario(
        name="mtls",
        title="HTTP/1.1 over mutual TLS on connections that stay, one worker each",
        config="tls",
        listener="mutual",
        load=Closed(connections=32, mutual=True),
        peers=_PAIR,
        baseline="envoy",
        goal=Goal("meshproxy", 0.8),
    ),
    *(
        Scenario(
            name=f"handshake-{name}",
            title=f"TLS connections of one request, {title}, one worker each",
            config="tls",
            listener=listener,
            load=Handshakes(resumes=name == "resumed"),
            peers=_PAIR,
            baseline="envoy",
            goal=_MORE_HANDSHAKES,
            unit="handshake",
        )
        for name, listener, title in (
            ("rsa", "rsa", "full handshakes, RSA-2048"),
            ("ecdsa", "ecdsa", "full handshakes, ECDSA P-256"),
            ("resumed", "ecdsa", "resumed"),
        )
    ),
    *(
        Scenario(
            name=f"{way}-{name.lower()}",
            title=f"HTTP/1.1, {kib} KiB {way}, one worker each",
            config="http1",
            load=Closed(connections, f"/{name}") if way == "down" else Closed(connections, upload_bytes=kib * 1024),
            peers=_PAIR,
            baseline="envoy",
            goal=goal,
        )
        for kib, name, connections, goal in _BODY_SIZES
        for way in ("down", "up")
    ),
    Scenario(
        name="vhosts",
        title="HTTP/1.1, one of 10,000 virtual hosts, one worker each",
        config="vhosts",
        load=Closed(connections=32, host=host_name(5000)),
        peers=_PAIR,
        baseline="envoy",
    ),
)
