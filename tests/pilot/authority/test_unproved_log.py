"""What is told of callers who prove nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshproxy.pilot.authority.audit import Audit
from meshproxy.pilot.authority.metrics import AuthorityMetrics
from meshproxy.pilot.authority.unproved_log import UnprovedLog


class World:
    def __init__(self, path: Path) -> None:
        self.now = 0.0
        self.path = path
        self.metrics = AuthorityMetrics()
        self.log = UnprovedLog(Audit(str(path)), self.metrics, lambda: self.now)

    def lines(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def counted(self) -> float:
        return (
            self.metrics.registry.get_sample_value("meshproxy_authority_refused_total", {"reason": "unproven"}) or 0.0
        )


def test_each_is_counted_and_told_with_its_reason(tmp_path: Path) -> None:
    world = World(tmp_path / "audit")
    world.log("expired token", "jwt", "10.0.0.1:1")
    world.log("no\nproof", "", "x" * 5000)
    first, second = world.lines()
    assert {
        "event": "refused",
        "reason": "expired token",
        "proof": "jwt",
        "address": "10.0.0.1:1",
    }.items() <= first.items()
    assert (second["reason"], len(second["address"])) == ("no\nproof", 256)
    assert world.counted() == 2.0
    assert [each["reason"] for each in world.log.latest] == ["expired token", "no\nproof"]


def test_a_flood_does_not_fill_the_disk(tmp_path: Path) -> None:
    world = World(tmp_path / "audit")
    for number in range(10_000):
        world.log(f"number {number}", "", "10.0.0.1:1")
    assert len(world.lines()) == 100
    assert world.counted() == 10_000.0
    assert len(world.log.latest) == 50
    world.now += 0.1
    world.log("later", "", "10.0.0.1:1")
    assert world.lines()[-1]["reason"] == "later (and 9900 refusals before it that are not told)"
    world.now += 3600.0
    for _ in range(200):
        world.log("again", "", "10.0.0.1:1")
    assert len(world.lines()) == 201


def test_an_audit_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = World(tmp_path / "nowhere" / "audit")
    with caplog.at_level("ERROR", "meshproxy.pilot"):
        world.log("expired token", "jwt", "10.0.0.1:1")
    assert "refused: expired token" in caplog.text
    assert world.counted() == 1.0
