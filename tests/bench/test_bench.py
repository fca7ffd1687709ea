"""The benchmark's own arithmetic, its report, and one short run of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import results
from bench.__main__ import main, measure
from bench.chart import chart
from bench.comparison import Comparison, Contender
from bench.configuration import CONFIGS, envoy_config, features, filled
from bench.cpu import tree_cpu_us, tree_of
from bench.features import Features, extra
from bench.goals import AddsLatency, AtLeast, AtMost, CostsMore, Goal
from bench.idle import Idle
from bench.load import Closed, LoadError, quantile
from bench.peers import DIRECT, PEERS, application, start_peer
from bench.report import report
from bench.run import Record, Run, Scenario
from bench.samples import Sample, Spread, difference, ratio
from bench.scenarios import SCENARIOS
from tests.bench.programs import needs

needs_wrk = needs("wrk", "nginx")
FACTS = {"Date": "2026-01-02 03:04 UTC", "Machine": "some", "meshproxy": "1.0"}
PAIR = (Contender("envoy", "http1"), Contender("meshproxy", "http1"))
COMPARISON = Comparison("s", "title", PAIR, Closed(), goals=(AtMost("meshproxy", 0.7),))


def sample(who: str, number: int, cpu: float, p50: float = 500) -> Sample:
    return Sample(
        who, number, {"cpu": cpu, "rate": 100, "p50": p50, "p90": 900, "p99": 1500, "p999": 3000, "rss": 51_200}
    )


def samples(*rounds: tuple[float, float]) -> list[Sample]:
    """Rounds of (Envoy's, meshproxy's) CPU µs per request."""
    return [
        sample(who, number, cost)
        for number, pair in enumerate(rounds)
        for who, cost in zip(("envoy", "meshproxy"), pair, strict=True)
    ]


def record(*rounds: tuple[float, float], left_out: str = "") -> Record:
    return Record(FACTS, 2, samples(*rounds), {"nginx": left_out} if left_out else {})


def scenario(name: str) -> Scenario:
    return next(item for item in SCENARIOS if item.name == name)


def comparisons() -> list[Comparison]:
    return [item for item in SCENARIOS if isinstance(item, Comparison)]


# Arithmetic.


def test_ratios_and_differences_are_taken_within_each_round() -> None:
    rounds = samples((40, 20), (100, 80), (50, 30))
    assert ratio(rounds, "meshproxy", "envoy") == Spread(0.6, 0.5, 0.8)
    assert difference(rounds, "envoy", "meshproxy") == Spread(20, 20, 20)


def latencies(direct: float, envoy: float, ours: float) -> list[Sample]:
    return [sample(DIRECT, 0, 0, direct), sample("envoy", 0, 1, envoy), sample("meshproxy", 0, 1, ours)]


@pytest.mark.parametrize(
    ("goal", "measured", "is_met"),
    [
        (AtMost("meshproxy", 0.7), samples((40, 28)), True),
        (AtMost("meshproxy", 0.7), samples((40, 29)), False),
        (AtLeast("meshproxy", 1, value="cpu"), samples((40, 40)), True),
        (AtLeast("meshproxy", 1, value="cpu"), samples((40, 39)), False),
        (CostsMore("meshproxy", 1, "envoy"), samples((40, 41)), True),
        (CostsMore("meshproxy", 1, "envoy"), samples((40, 41.1)), False),
        (AddsLatency("meshproxy", 0.5), latencies(100, 180, 140), True),
        (AddsLatency("meshproxy", 0.5), latencies(100, 180, 141), False),
    ],
)
def test_a_goal_is_met_or_missed(goal: Goal, measured: list[Sample], is_met: bool) -> None:
    verdict = goal.judge(measured)
    assert verdict is not None
    assert verdict.is_met is is_met
    assert str(verdict).endswith("**met**" if is_met else "**missed**")


@pytest.mark.parametrize(
    "goal",
    [AtMost("meshproxy", 1), AtLeast("meshproxy", 1), CostsMore("meshproxy", 1, "envoy"), AddsLatency("meshproxy", 1)],
)
def test_there_is_no_verdict_without_the_baseline(goal: Goal) -> None:
    assert goal.judge([found for found in samples((40, 20)) if found.who != "envoy"]) is None


def test_quantiles_are_of_the_values_given() -> None:
    values = [float(value) for value in range(100)]
    assert [quantile(values, share) for share in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 99]


def test_every_round_begins_with_another() -> None:
    assert list(Run(3, 1).in_turn("ab")) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]


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
        assert tree_cpu_us() == 0
    finally:
        parent.communicate(b"\n")
    assert parent.returncode == 0


# The report.


def test_the_report_has_a_row_for_each_contender_and_every_goal() -> None:
    text = report([COMPARISON], {"s": record((40, 20), (100, 80), left_out="it is gone")}, "chart.svg")
    assert "| Envoy, `--concurrency 1` | 70.0 | 1 | 100 | 0.50 | 0.90 | 1.50 | 3.00 | 50 |" in text
    assert "| meshproxy, compiled | 50.0 | 0.65 (0.50–0.80) | 100 | 0.50 | 0.90 | 1.50 | 3.00 | 50 |" in text
    assert "| `s` | meshproxy ≤ 0.7 × envoy's CPU | 0.65 (0.50–0.80) | met |" in text
    assert "Left out: nginx, since it is gone." in text
    assert "2 rounds of 2 s" in text
    assert "- Machine: some" in text
    assert "(chart.svg)" in text


def test_what_is_added_to_the_direct_call_is_told() -> None:
    contenders = tuple(Contender(peer, "http1") for peer in (DIRECT, "envoy", "meshproxy"))
    text = replace(COMPARISON, contenders=contenders).section(Record(FACTS, 2, latencies(100, 180, 140), {}))
    assert "p50 added | p99 added" in text
    assert "| nobody between: the direct call | – | – | 100 | 0.10 |" in text
    (ours,) = (line for line in text.splitlines() if line.startswith("| meshproxy"))
    assert "| 0.040 | 0.000 | 50 |" in ours


def test_what_a_filter_costs_is_told_beside_the_proxy_without_it() -> None:
    contenders = (Contender("envoy", "http1"), Contender("envoy", "http1+lua", "lua", "Lua", than="envoy"))
    text = replace(COMPARISON, contenders=contenders).section(
        Record(FACTS, 2, [sample("envoy", 0, 40), sample("lua", 0, 43.5)], {})
    )
    assert "| Lua | 43.5 | 1.09 (1.09–1.09) | 3.50 (3.50–3.50) |" in text


def test_a_feature_is_compared_with_the_measurement_beside_it() -> None:
    measured = [
        Sample("fault", number, {"off": off, "on": on}) for number, (off, on) in enumerate([(20, 21), (30, 33)])
    ]
    assert extra(measured, "fault") == Spread(2.0, 1.0, 3.0)
    section = Features("features", "").section(Record(FACTS, 2, measured, {}))
    assert "| fault, for requests with a header that none has | 25.0 | 27.0 | 2.00 (1.00–3.00) |" in section


def test_idle_connections_are_told_as_a_whole_and_each() -> None:
    idle = next(item for item in SCENARIOS if isinstance(item, Idle))
    measured = [
        Sample(who, 0, {"before": before, "held": held, "each": (held - before) / 1000})
        for who, before, held in (("envoy", 92_160, 102_400), ("meshproxy", 51_200, 61_440))
    ]
    section = idle.section(Record(FACTS, 2, measured, {}))
    assert "| Envoy, `--concurrency 1` | 90.0 | 100.0 | 1 | 10.2 |" in section
    assert "| meshproxy, compiled | 50.0 | 60.0 | 0.60 (0.60–0.60) | 10.2 |" in section
    assert [verdict.is_met for verdict in idle.verdicts(measured)] == [True]


def test_a_run_of_one_scenario_keeps_the_others(tmp_path: Path) -> None:
    other = replace(COMPARISON, name="other")
    results.save(tmp_path, [COMPARISON, other], {"s": record((40, 20)), "other": record((90, 60))})
    before = results.load(tmp_path)
    results.save(tmp_path, [COMPARISON, other], before | {"s": record((40, 30))})
    after = results.load(tmp_path)
    assert after["other"].samples == before["other"].samples == samples((90, 60))
    assert after["s"].samples == samples((40, 30))
    text = (tmp_path / "RESULTS.md").read_text()
    assert "0.67 (0.67–0.67)" in text
    assert "0.75 (0.75–0.75)" in text
    assert "0.50 (0.50–0.50)" not in text


def test_a_scenario_that_is_no_more_leaves_the_report(tmp_path: Path) -> None:
    results.save(tmp_path, [COMPARISON], {"s": record((40, 20)), "gone": record((90, 60))})
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"s"}


def test_report_and_chart_are_made_anew_from_the_samples(tmp_path: Path) -> None:
    results.save(tmp_path, SCENARIOS, {"tcp": record((40, 20))})
    expected = {path.name: path.read_text() for path in tmp_path.iterdir()}
    for name in ("RESULTS.md", "RESULTS.svg"):
        (tmp_path / name).unlink()
    assert main(["--render", "--output", str(tmp_path)]) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == expected


def test_the_chart_has_a_bar_for_each_ratio_and_names_what_is_off_the_scale() -> None:
    text = chart([COMPARISON], {"s": record((10, 5), (10, 70))})
    tree = ET.fromstring(text)
    words = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    bars = [element for element in tree.iter("{http://www.w3.org/2000/svg}rect") if element.get("class") == "ours"]
    assert len(bars) == 1
    assert "→ 3.75 × · 37.5 µs" in words
    width = float(tree.get("viewBox", "").split()[2])
    assert all(float(bar.get("x", "")) + float(bar.get("width", "")) < width for bar in bars)
    assert "prefers-color-scheme: dark" in text


def test_the_chart_of_nothing_is_a_picture() -> None:
    assert ET.fromstring(chart(SCENARIOS, {})).tag.endswith("svg")


# The table of scenarios.


def test_every_scenario_names_peers_and_configurations_that_exist() -> None:
    for item in comparisons():
        there = [contender.who for contender in item.contenders]
        assert len(set(there)) == len(there)
        assert item.baseline in there
        for contender in item.contenders:
            assert contender.peer in {*PEERS, DIRECT}
            assert contender.than in {"", *there}
            if contender.peer != DIRECT:
                files = [hop.split("+")[0] + f".{PEERS[contender.peer].file}" for hop in contender.config.split(">")]
                assert all((CONFIGS / file).exists() for file in files)


def test_every_goal_is_of_contenders() -> None:
    for item in comparisons():
        measured = [sample(who, 0, 1 + number) for number, who in enumerate(item.who)]
        assert len(item.verdicts(measured)) == len(item.goals)


def test_a_configuration_has_no_place_left() -> None:
    places = {"upstream_port": 1, "collector_port": 1, "port": 0, "folder": "/tmp", "ext_proc_port": 1}
    configs = {hop for item in comparisons() for contender in item.contenders for hop in contender.config.split(">")}
    configs |= {f"http1+{name}" for name in features()}
    for config in configs - {""}:
        text = envoy_config(config, places)
        assert not re.search("@[A-Z_]+@", text)
        assert all(Path(path).is_file() for path in re.findall('filename"?: "(.*?)"', text))


@pytest.mark.parametrize(
    "file",
    [
        *("http1.nginx.conf", "http1.haproxy.cfg", "http1.mosn.json"),
        *("http1.nghttpx.conf", "http2.nghttpx.conf", "http2-mtls.nghttpx.conf"),
    ],
)
def test_other_proxies_have_the_port_and_the_application(file: str) -> None:
    text = filled(file, {"port": 4321, "upstream_port": 5432})
    assert re.search("127.0.0.1[:,]4321", text)  # nghttpx has a comma
    assert re.search("127.0.0.1[:,]5432", text)
    assert not re.search("@[A-Z_]+@", text)
    if file.endswith(".json"):
        assert json.loads(text)["servers"][0]["listeners"]


def test_a_patch_names_no_place_that_does_not_exist() -> None:
    known = {"words", "request", "chain", "manager", "virtual_host", "route", "cluster", "filters", "clusters"}
    for name, patch in features().items():
        assert set(patch) <= known, name
        assert 0 < len(patch["words"]) <= 50  # the chart has no room for more


def test_the_list_names_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [item.name for item in SCENARIOS]


# Short runs.


def of_source(item: Comparison, config: str = "") -> Comparison:
    """The same, of one contender that needs no compiled build."""
    return replace(item, contenders=(Contender("meshproxy-source", config or item.contenders[-1].config),))


@needs_wrk
def test_a_short_run_measures_what_was_asked_for() -> None:
    (found,) = of_source(comparisons()[0]).measure(Run(1, 1))
    assert (found.who, found.round) == ("meshproxy-source", 0)
    assert found.values["cpu"] > 0
    assert found.values["rss"] > 10_000
    assert 0 < found.values["p50"] <= found.values["p90"] <= found.values["p99"] <= found.values["p999"]


@needs("nginx")
@pytest.mark.parametrize("name", ["handshake-resumed", "handshake-ecdsa"])
def test_handshakes_are_counted(name: str) -> None:
    item = scenario(name)
    assert isinstance(item, Comparison)
    (found,) = of_source(item).measure(Run(1, 1))
    assert found.values["rate"] > 0
    assert found.values["cpu"] > 0


@needs("nginx")
def test_start_up_is_timed_to_the_first_answer() -> None:
    found = scenario("start-up").measure(Run(1, 1, ["meshproxy-source"]))
    assert [item.who for item in found] == ["meshproxy-source"]
    assert found[0].values["ms"] >= found[0].values["cpu"] > 0


@needs("nghttpd", "nghttpx")
def test_idle_connections_of_http2_are_held() -> None:
    item = scenario("idle-http2")
    assert isinstance(item, Idle)
    (found,) = replace(item, who=("nghttpx",)).measure(Run(1, 1))
    assert found.values["held"] > found.values["before"] + 1000  # a KiB each, at least


@needs_wrk
def test_a_client_certificate_is_presented_where_one_is_required() -> None:
    item = scenario("mtls")
    assert isinstance(item, Comparison)
    with application() as port:
        running = start_peer("meshproxy-source", "tls", port)
        try:
            assert item.load.run(running.ports["mutual"], 1).requests > 0
            with pytest.raises(LoadError):
                Closed(connections=1, tls=True).run(running.ports["mutual"], 1)
        finally:
            running.stop()


@needs_wrk
def test_answers_that_are_errors_count_for_nothing() -> None:
    # Port 1 of the loopback is nobody's: the proxy answers 503.
    running = start_peer("meshproxy-source", "http1", 1)
    try:
        with pytest.raises(LoadError, match="requests failed"):
            Closed(connections=2).run(running.port, 1)
    finally:
        running.stop()


@needs_wrk
def test_who_cannot_be_started_is_left_out_and_the_reason_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    binary = tmp_path / "mosn"
    binary.write_text("#!/bin/sh\necho no such option\nexit 3\n")
    binary.chmod(0o755)
    monkeypatch.setenv("MOSN_BINARY", str(binary))
    item = replace(COMPARISON, contenders=(Contender("mosn", "http1"), Contender("nginx", "http1")), goals=())
    found = measure(item, Run(1, 1))
    assert found is not None
    assert [measured.who for measured in found.samples] == ["nginx"]
    assert "no such option" in found.left_out["mosn"]
    assert "mosn is left out" in capsys.readouterr().err


def test_mosn_is_measured_only_when_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOSN_BINARY", raising=False)
    assert not Run(1, 1).wants("mosn")
    monkeypatch.setenv("MOSN_BINARY", sys.executable)
    assert Run(1, 1).wants("mosn")
    assert not Run(1, 1, ["envoy"]).wants("mosn")


def test_a_program_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--mosn", "/no/such/program"])
    assert "/no/such/program is not a program" in capsys.readouterr().err
