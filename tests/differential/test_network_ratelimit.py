"""The network filter local_ratelimit: which connections it closes, what the log tells of them, what is counted."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.differential.layer4 import Layer4Listener, Layer4Side, Probe
from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.topic import TYPE, Yaml, mapping
from tests.support.proxy import start_envoy, start_meshproxy


@dataclass(frozen=True)
class Limited(Layer4Listener):
    """A listener whose chain has the filter before the one that says its name."""

    limit: str = ""

    def message(self, name: str, directory: Path) -> Yaml:
        """The Listener."""
        listener = super().message(name, directory)
        config = {"@type": TYPE + "filters.network.local_ratelimit.v3.LocalRateLimit", "stat_prefix": name}
        bucket = {"token_bucket": {"max_tokens": 2, "fill_interval": "100000s"}}
        listener["filter_chains"][0]["filters"].insert(
            0, {"name": "limit", "typed_config": config | bucket | mapping(self.limit)}
        )
        return listener


CHAIN = {"chain": ""}
LISTENERS: dict[str, Layer4Listener] = {
    "two": Limited(CHAIN),
    "off": Limited(CHAIN, limit="runtime_enabled: { default_value: false, runtime_key: no.such }"),
    "on": Limited(CHAIN, limit="runtime_enabled: { default_value: true, runtime_key: no.such }"),
    "shared_a": Limited(CHAIN, limit="share_key: k"),
    "shared_b": Limited(CHAIN, limit="share_key: k"),
    "shared_but_other": Limited(
        CHAIN, limit="share_key: k\ntoken_bucket: { max_tokens: 1, fill_interval: 100000s, tokens_per_fill: 2 }"
    ),
    "alone": Limited(CHAIN),
}
CONNECTIONS: tuple[str, ...] = (
    ("two",) * 4 + ("off",) * 3 + ("on",) * 3 + ("shared_a", "shared_b", "shared_a", "shared_b")
)
CONNECTIONS += ("shared_but_other",) * 2 + ("alone",) * 3


@pytest.fixture(scope="module")
def envoy() -> Iterator[Layer4Side]:
    with Layer4Side(LISTENERS, start_envoy) as side:
        yield side


@pytest.fixture(scope="module")
def ours() -> Iterator[Layer4Side]:
    with Layer4Side(LISTENERS, start_envoy if SUBJECT_IS_ENVOY else start_meshproxy) as side:
        yield side


def run(side: Layer4Side) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What becomes of the connections, one after the other, and the counters."""
    facts = [side.facts(name, Probe()) for name in CONNECTIONS]
    counted = {name: value for name, value in side.proxy.stats().items() if name.startswith("local_rate_limit.")}
    return facts, counted


def test_the_same_connections_are_closed(envoy: Layer4Side, ours: Layer4Side) -> None:
    expected, actual = run(envoy), run(ours)
    answers = [(name, fact["answer"]) for name, fact in zip(CONNECTIONS, expected[0], strict=True)]
    assert answers[:4] == [("two", "chain"), ("two", "chain"), ("two", "closed"), ("two", "closed")]
    assert len(expected[1]) == len(LISTENERS)
    assert actual == expected
