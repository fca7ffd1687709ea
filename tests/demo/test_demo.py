"""The whole demonstration, with short acts: what it shows is so, and when it is not, it says so and fails."""

import os
import pty
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from meshproxy.demo.rules import read_canary, with_canary_share

ROOT = Path(__file__).resolve().parents[2]
DEMO = [sys.executable, "-m", "meshproxy", "demo", "--seconds", "1"]
PROCESSES = 15  # the pilot, and five sidecars, each with its agent, and four instances behind them


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with its output on a pipe."""
    return subprocess.run(
        [*DEMO, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def processes_in(output: str) -> list[int]:
    """The ids of the processes that it says it started."""
    return [int(pid) for pid in re.findall(r"process (\d+)", output)]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def read_until(pipe: int, end: str) -> str:
    """What comes until the text `end` has come, or nothing more does."""
    text = b""
    while end.encode() not in text and (data := os.read(pipe, 65536)):
        text += data
    return text.decode()


def get(url: str, user_agent: str) -> str:
    request = urllib.request.Request(url, headers={"host": "shop.example", "user-agent": user_agent})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return str(answer.read().decode())


def test_it_shows_four_acts_stays_when_asked_to_and_leaves_nothing_behind() -> None:
    command = [*DEMO, "--keep"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as demo:
        try:
            assert demo.stdout is not None
            output = read_until(demo.stdout.fileno(), "$EDITOR")
            assert_all_is_shown(output)
            url = output.split("users   ")[1].split()[0]
            assert {get(f"{url}/x", agent).split(",")[0] for agent in ("curl", "iPhone") for _ in range(16)} == {
                "shop v1"
            }
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(60)
    assert demo.returncode == 0
    assert [pid for pid in processes_in(output) if not is_gone(pid)] == []
    assert not Path(output.split("meshproxy pilot --rules ")[1].split()[0]).exists()


def test_a_signal_stops_it_and_leaves_nothing_behind() -> None:
    with subprocess.Popen(DEMO, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as demo:
        assert demo.stdout is not None
        output = read_until(demo.stdout.fileno(), "Act 1")
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(60) == 130
    assert len(processes_in(output)) == PROCESSES
    assert [pid for pid in processes_in(output) if not is_gone(pid)] == []


def assert_all_is_shown(output: str) -> None:
    """Every act, and a summary without an objection."""
    for title in ("Act 1: 5 % of", "Act 2: now 50 %", "Act 3: v2-b is dead", "Act 4: rolled back", "Summary"):
        assert title in output
    summary = output.split("Summary")[1]
    assert "✘" not in summary, output
    assert re.search(r"✔ 0 of [\d,]+ requests failed", summary)
    encrypted = re.search(r"✔ (\d+) of (\d+) connections between sidecars were mutual TLS", summary)
    assert encrypted is not None
    assert encrypted[1] == encrypted[2]
    assert re.search(r"✔ ([5-9]|\d\d+) certificates gave way to newer ones, in 5 sidecars", summary)
    assert "✔ the authority's root was replaced" in summary
    assert "in the clear, past the users' sidecar: refused by all" in summary
    assert len(processes_in(output)) == PROCESSES + 2  # of the epilogue
    epilogue = output.split("Epilogue")[1].split("Summary")[0]
    spans = re.findall(r"^ +(\w+): (.+?) +\d+\.\d\d ms +━+$", epilogue, re.MULTILINE)
    assert spans == [
        ("front", "shop"),
        ("front", "router sidecar egress"),
        ("sidecar", "ingress"),
        ("sidecar", "router service egress"),
    ]


@pytest.mark.long
def test_on_a_terminal_it_draws_in_place_and_succeeds() -> None:
    terminal, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "LINES": "50", "COLUMNS": "120"}
    with subprocess.Popen(DEMO, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as demo:
        os.close(theirs)
        output = ""
        while data := read_terminal(terminal):
            output += data
        assert demo.wait(60) == 0, output
    os.close(terminal)
    assert re.search(r"\x1b\[\d+F", output)
    assert "✘" not in output


def read_terminal(terminal: int) -> str:
    """What comes next; "" when the last process has closed the terminal, which Linux reports as an error."""
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:
        return ""


def test_it_fails_when_the_weight_is_wrong_and_nothing_is_tried_again(tmp_path: Path) -> None:
    wrong = tmp_path / "canary.yaml"
    wrong.write_text(without_retries(with_canary_share(read_canary(""), 40)))
    done = run_demo("-c", str(wrong))
    assert done.returncode == 1
    refused = [line for line in done.stdout.split("Summary")[1].splitlines() if "✘" in line]
    assert re.search(r"✘ [1-9][\d,]* of [\d,]+ requests failed", refused[0]), done.stdout
    assert "✘ Act 1: " in refused[1]
    assert "503" in done.stdout
    assert [pid for pid in processes_in(done.stdout) if not is_gone(pid)] == []


def without_retries(text: str) -> str:
    """The example with no second try."""
    changed, count = re.subn(r"retries: \{.*\}", "retries: {attempts: 0}", text)
    assert count == 3
    return changed


def test_a_file_that_it_cannot_show_is_one_plain_line(tmp_path: Path) -> None:
    other = tmp_path / "canary.yaml"
    other.write_text("kind: VirtualService\n")
    for path in (other, tmp_path / "missing.yaml"):
        done = run_demo("-c", str(path))
        assert done.returncode == 1
        assert done.stdout.startswith("meshproxy demo: ")
        assert done.stdout.count("\n") == 1
