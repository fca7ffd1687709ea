"""The benchmark's own arithmetic, and one short run of it: two proxies, one round, a report."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.__main__ import main, measure
from bench.configuration import filled
from bench.cpu import tree_cpu_us, tree_of
from bench.idle import IDLE, Held, idle_verdict, section
from bench.load import Closed, LoadError, Traffic, quantile
from bench.peers import PEERS, PeerError, build_of, upstream
from bench.report import Ratio, Sample, ratio, render, verdict
from bench.scenarios import SCENARIOS, Goal, Scenario
from meshproxy import is_compiled

CONFIGS = Path(__file__).resolve().parents[2] / "bench" / "configs"
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
SCENARIO = Scenario("s", "title", "http1", Closed(), ("envoy", "meshproxy"), "envoy", Goal("meshproxy", 0.7))


def samples(*rounds: tuple[float, float]) -> list[Sample]:
    """Rounds of (Envoy's, meshproxy's) CPU µs per request."""
    traffic = Traffic(requests=100, seconds=1.0, p50_us=500, p90_us=900, p99_us=1500)
    return [
        Sample("s", peer, number, cost * 100, traffic, rss_kib=51_200)
        for number, pair in enumerate(rounds)
        for peer, cost in zip(("envoy", "meshproxy"), pair, strict=True)
    ]


def test_a_ratio_is_taken_within_each_round() -> None:
    assert ratio(samples((40, 20), (100, 80), (50, 30)), "meshproxy", "envoy") == Ratio(0.6, 0.5, 0.8)


@pytest.mark.parametrize(("cost", "word"), [(28, "met"), (29, "missed")])
def test_a_missed_goal_is_called_missed(cost: float, word: str) -> None:
    said = verdict(SCENARIO, samples((40, cost)))
    assert said is not None
    assert said.endswith(f"**{word}**")


def test_there_is_no_verdict_without_the_baseline() -> None:
    assert verdict(SCENARIO, [sample for sample in samples((40, 20)) if sample.peer != "envoy"]) is None


def test_the_report_has_a_row_for_each_peer() -> None:
    text = render({"Machine": "some"}, [SCENARIO], samples((40, 20), (100, 80)), 2)
    assert "| Envoy, `--concurrency 1` | 70.0 | 1 | 100 | 0.50 | 0.90 | 1.50 | 50 |" in text
    assert "| meshproxy, compiled | 50.0 | 0.65 (0.50–0.80) | 100 | 0.50 | 0.90 | 1.50 | 50 |" in text
    assert "- Machine: some" in text


def held(*rounds: tuple[int, int]) -> list[Held]:
    """Rounds of (Envoy's, meshproxy's) MiB with the connections; 10 MiB less before."""
    return [
        Held("idle-http", peer, number, (mebibytes - 10) * 1024, mebibytes * 1024)
        for number, pair in enumerate(rounds)
        for peer, mebibytes in zip(("envoy", "meshproxy"), pair, strict=True)
    ]


def test_idle_connections_are_told_as_a_whole_and_each() -> None:
    text = section(held((100, 60), (100, 80)))
    assert "| HTTP/1.1 | Envoy, `--concurrency 1` | 90.0 | 100.0 | 1 | 10.2 |" in text
    assert "| HTTP/1.1 | meshproxy, compiled | 60.0 | 70.0 | 0.70 (0.60–0.80) | 10.2 |" in text


@pytest.mark.parametrize(("mebibytes", "word"), [(100, "met"), (101, "missed")])
def test_the_goal_of_idle_connections_is_for_the_whole(mebibytes: int, word: str) -> None:
    said = idle_verdict(IDLE[0], held((100, mebibytes)))
    assert said is not None
    assert said.endswith(f"**{word}**")


def test_quantiles_are_of_the_values_given() -> None:
    values = [float(value) for value in range(100)]
    assert [quantile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 99]


def test_cpu_counts_children_that_live_and_those_that_ended() -> None:
    burn = "import os, time\nwhile time.process_time() < 0.2: pass\n"
    script = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {burn!r}])
child = subprocess.Popen([sys.executable, "-c", {burn!r} + "print(flush=True); input()"], stdin=subprocess.PIPE)
sys.stdin.readline()
child.communicate(b"\\n")
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    try:
        parent.stdout.readline()  # the second child's line: both have burnt their share
        assert len(tree_of(parent.pid)) == 2
        assert tree_cpu_us(parent.pid) >= 380_000
    finally:
        parent.communicate(b"\n")
    assert parent.returncode == 0


def test_a_configuration_has_no_place_left() -> None:
    for config in {*(scenario.config for scenario in SCENARIOS), *(kind.config for kind in IDLE)}:
        assert "@UPSTREAM_PORT@" in (CONFIGS / f"{config}.envoy.yaml").read_text()
        text = filled(f"{config}.envoy.yaml", upstream_port=1)
        assert not re.search("@[A-Z_]+@", text)
        assert all(Path(path).is_file() for path in re.findall('filename: "(.*?)"', text))


def test_every_scenario_names_peers_and_configurations_that_exist() -> None:
    for scenario in SCENARIOS:
        assert set(scenario.peers) <= set(PEERS)
        assert scenario.baseline in scenario.peers
        assert scenario.goal is None or scenario.goal.peer in scenario.peers
        assert (CONFIGS / f"{scenario.config}.envoy.yaml").exists()


def test_the_list_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    names = [*(item.name for item in SCENARIOS), *(kind.name for kind in IDLE)]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == names


@pytest.mark.skipif(is_compiled(), reason="this run has a compiled build")
def test_source_is_not_called_compiled() -> None:
    with upstream() as port, pytest.raises(PeerError, match="should run compiled"):
        PEERS["meshproxy"].start("http1", port)


def test_a_process_that_has_not_loaded_us_is_not_called_compiled() -> None:
    assert build_of(os.getppid()) == "source"


@needs_wrk
def test_a_short_run_measures_what_was_asked_for() -> None:
    (sample,) = measure(SCENARIOS[:1], ["meshproxy-source"], rounds=1, seconds=1)
    assert (sample.peer, sample.round) == ("meshproxy-source", 0)
    assert sample.traffic.requests > 0
    assert sample.cost > 0
    assert sample.rss_kib > 10_000
    assert 0 < sample.traffic.p50_us <= sample.traffic.p90_us <= sample.traffic.p99_us


@pytest.mark.parametrize("resumes", [False, True])
def test_handshakes_are_counted(resumes: bool) -> None:
    (scenario,) = (item for item in SCENARIOS if item.name == ("handshake-resumed" if resumes else "handshake-ecdsa"))
    (sample,) = measure([replace(scenario, peers=("meshproxy-source",))], [], rounds=1, seconds=1)
    assert sample.traffic.requests > 0
    assert sample.cost > 0


@needs_wrk
def test_a_client_certificate_is_presented_where_one_is_required() -> None:
    (scenario,) = (item for item in SCENARIOS if item.name == "mtls")
    with upstream() as port:
        running = PEERS["meshproxy-source"].start("tls", port)
        try:
            assert scenario.load.run(running.ports["mutual"], 1).requests > 0
            with pytest.raises(LoadError):
                Closed(connections=1, tls=True).run(running.ports["mutual"], 1)
        finally:
            running.stop()


@needs_wrk
def test_answers_that_are_errors_count_for_nothing() -> None:
    # Port 1 of the loopback is nobody's: the proxy answers 503.
    running = PEERS["meshproxy-source"].start("http1", 1)
    try:
        with pytest.raises(LoadError, match="requests failed"):
            Closed(connections=2).run(running.port, 1)
    finally:
        running.stop()
