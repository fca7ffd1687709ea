"""`meshproxy filter new`: what it writes runs, and passes its own test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from meshproxy.cli import main
from tests.support.proxy import start_meshproxy


def test_what_it_writes_passes_its_own_test(tmp_path: Path) -> None:
    assert main(["filter", "new", "say_hello", "--directory", str(tmp_path)]) == 0
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_what_it_writes_runs(tmp_path: Path) -> None:
    assert main(["filter", "new", "say_hello", "--directory", str(tmp_path)]) == 0
    config = (tmp_path / "say_hello.yaml").read_text().replace("port_value: 10000", "port_value: 0")
    with start_meshproxy(config.replace("port_value: 9901", "port_value: 0")) as proxy:
        url = f"http://127.0.0.1:{proxy.listener_ports()['main']}/"
        done = subprocess.run(["curl", "-si", url], capture_output=True, text=True, check=True)
        assert "x-say-hello: hello\n" in done.stdout
        assert done.stdout.endswith("it works\n")


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.py").write_text("mine")
    assert main(["filter", "new", "one", "--directory", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'one.py'}: there already\n"
    assert [path.name for path in tmp_path.iterdir()] == ["one.py"]


@pytest.mark.parametrize("name", ["One", "1one", "a-b", "../x", ""])
def test_a_name_is_checked(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["filter", "new", name, "--directory", str(tmp_path)]) == 2
    assert "cannot be a filter's name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
