"""The command line: what it says, its exit codes, and never a traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.config import address, bootstrap, cluster, direct, forward, listener
from tests.support.downstream import exchange
from tests.support.polling import wait_for
from tests.support.proxy import start_meshproxy

_GOOD = bootstrap([listener("main", [direct("/", "x")])])
_GET = b"GET /x HTTP/1.1\r\nhost: test\r\n\r\n"


def meshproxy(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. None of them may show a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "meshproxy", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(_GOOD)
    return str(path)


def test_version() -> None:
    for arguments in (("version",), ("--version",)):
        done = meshproxy(*arguments)
        assert done.returncode == 0
        assert re.fullmatch(r"meshproxy \S+ \((not )?compiled, Python 3\.\d+\.\d+\S*\)\n", done.stdout)


def test_help() -> None:
    for arguments in (("--help",), ("-h",), ()):
        done = meshproxy(*arguments)
        assert done.returncode == 0
        assert "meshproxy run -c envoy.yaml" in done.stdout
    done = meshproxy("run", "--help")
    assert done.returncode == 0
    for flag in ("--config-path", "--config-yaml", "--concurrency", "--drain-time-s", "--log-level", "--service-node"):
        assert flag in done.stdout


def _completions(shell: str, line: str) -> list[str]:
    """What bash offers after this line."""
    script = meshproxy("completion", shell).stdout
    words = line.split(" ")
    ask = (
        f"{script}\nCOMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; _meshproxy;"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "--norc", "-c", ask], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_completion(tmp_path: Path) -> None:
    commands = ["run", "validate", "explain", "filter", "demo", "pilot", "rules", "agent", "authority"]
    commands += ["version", "completion"]
    assert _completions("bash", "meshproxy ") == commands
    assert _completions("bash", "meshproxy va") == ["validate"]
    assert _completions("bash", "meshproxy run --conc") == ["--concurrency"]
    assert _completions("bash", "meshproxy run --drain-strategy ") == ["gradual", "immediate"]
    assert _completions("bash", "meshproxy completion f") == ["fish"]
    (tmp_path / "envoy.yaml").touch()
    assert _completions("bash", f"meshproxy validate -c {tmp_path}/en") == [f"{tmp_path}/envoy.yaml"]
    assert "--base-id" not in _completions("bash", "meshproxy run --")  # accepted, and without effect
    zsh, fish = (meshproxy("completion", shell) for shell in ("zsh", "fish"))
    assert "bashcompinit" in zsh.stdout
    assert "-n '__fish_seen_subcommand_from run' -l concurrency -x -d 'worker processes (default 1)'" in fish.stdout
    assert meshproxy("completion", "tcsh").returncode == 2


def test_validate_says_ok(good: str) -> None:
    for arguments in (("validate", "-c", good), ("-c", good, "--mode", "validate")):
        done = meshproxy(*arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{good}: OK\n", "")


def test_validate_shows_every_error_with_its_path(tmp_path: Path) -> None:
    bad = json.loads(_GOOD)
    first = bad["static_resources"]["listeners"][0]
    manager = first["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"]["virtual_hosts"][0]["routes"] = [
        {"match": {"safe_regex": {"regex": "("}}, "direct_response": {"status": 200}},
        direct("/b", "x", status=99),
        forward("/c", "nowhere"),
    ]
    first["drain_type"] = "MODIFY_ONLY"
    manager["http_filters"].insert(0, {"name": "x", "typed_config": {"@type": "type.googleapis.com/no.such.Type"}})
    bad["static_resources"]["clusters"] = [cluster("a", 1, no_such_field=1), cluster("a", 2)]
    bad["admin"]["allow_paths"] = [{"safe_regex": {"regex": "["}}]
    bad["stats_config"] = {"stats_tags": [{"tag_name": "x", "regex": "("}]}
    bad["static_resources"]["listeners"].append(listener("name", [direct("/", "x")], at=address(1, "localhost")))
    bad["static_resources"]["listeners"].append(listener("unknown", [forward("/a", "nowhere")], at=address(2)))
    bad["static_resources"]["listeners"].append(listener("twice", [direct("/", "x")], at=address(2)))
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps(bad))
    done = meshproxy("validate", "-c", str(path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"{path}: ")
    chain = "static_resources.listeners[0].filter_chains[0].filters[0].typed_config"
    # What cannot be read, what breaks the API's rules, what is not honoured, what cannot be built and what refers to
    # nothing: all at once, by their paths, each once.
    found = [line.strip().partition(": ")[0] for line in done.stderr.splitlines()[1:]]
    routes = f"{chain}.route_config.virtual_hosts[0].routes"
    assert found == [
        "admin.allow_paths[0].safe_regex.regex",
        "static_resources.clusters[0].no_such_field",
        "static_resources.clusters[1].name",
        "static_resources.listeners[0].drain_type",
        f"{chain}.http_filters[0].typed_config.@type",
        f"{routes}[0].match.safe_regex.regex",
        f"{routes}[1].direct_response.status",
        f"{routes}[2].route.cluster",
        "static_resources.listeners[1].address.socket_address.address",
        f"{chain.replace('listeners[0]', 'listeners[2]')}.route_config.virtual_hosts[0].routes[0].route.cluster",
        "static_resources.listeners[3].address",
        "stats_config.stats_tags[0].regex",
    ]
    assert done.stderr.startswith(f"{path}: {len(found)} errors\n")


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize("kind", ["missing", "directory", "unreadable", "binary", "empty", "a list", "not YAML"])
def test_a_file_that_cannot_be_used(tmp_path: Path, command: str, kind: str) -> None:
    path = tmp_path / "config.yaml"
    contents = {"binary": b"\xff\xfe\x00\x01", "empty": b"", "a list": b"- 1\n- 2\n", "not YAML": b"a: [1\nb: }"}
    if kind == "directory":
        path.mkdir()
    elif kind == "unreadable":
        if os.geteuid() == 0:
            pytest.skip("root reads everything")
        path.write_bytes(b"{}")
        path.chmod(0)
    elif kind != "missing":
        path.write_bytes(contents[kind])
    done = meshproxy(command, "-c", str(path))
    assert done.returncode == 1
    assert str(path) in done.stderr or command == "run"
    reason = {"missing": "No such file", "directory": "Is a directory", "binary": "UTF-8", "empty": "empty"}
    assert reason.get(kind, "") in done.stderr
    assert done.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--no-such-flag",), "--no-such-flag"),
        (("-c", "x", "--concurrency", "many"), "--concurrency"),
        (("-c", "x", "--concurrency", "-1"), "--concurrency"),
        (("-c", "x", "--drain-time-s", "soon"), "--drain-time-s"),
        (("-c", "x", "--shutdown-delay-s", "-1"), "--shutdown-delay-s"),
        (("-c", "x", "-l", "loud"), "unknown log level 'loud'"),
        (("-c", "x", "--component-log-level", "main"), "component log level"),
        (("-c", "x", "--file-flush-interval-msec", "now"), "--file-flush-interval-msec"),
        (("run",), "-c FILE"),
        (("validate",), "-c FILE"),
        (("serve",), "serve"),
    ],
)
def test_flags_that_are_wrong(arguments: tuple[str, ...], reason: str) -> None:
    done = meshproxy(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "_count" not in done.stderr
    assert "_seconds" not in done.stderr


def test_a_port_or_an_admin_address_that_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = address(taken.getsockname()[1])
        text = f"127.0.0.1:{taken.getsockname()[1]}: Address already in use"
        path.write_text(bootstrap([listener("main", [direct("/", "x")], at=place)]))
        for workers in ("1", "2"):
            done = meshproxy("run", "-c", str(path), "--concurrency", workers)
            assert done.returncode == 1
            assert f"static_resources.listeners[0].address: cannot bind {text}" in done.stderr
        path.write_text(bootstrap([listener("main", [direct("/", "x")])], admin={"address": place}))
        done = meshproxy("run", "-c", str(path))
        assert done.returncode == 1
        assert f"admin.address: cannot serve {text}" in done.stderr


def test_an_address_file_that_cannot_be_written(good: str) -> None:
    done = meshproxy("run", "-c", good, "--admin-address-path", "/no/such/directory/admin")
    assert done.returncode == 1
    assert "/no/such/directory/admin" in done.stderr
    assert "No such file" in done.stderr


def test_the_flags_that_istio_s_agent_passes() -> None:
    flags = [
        *("--drain-time-s", "45", "--drain-strategy", "immediate", "--local-address-ip-version", "v4"),
        *("--file-flush-interval-msec", "1000", "--disable-hot-restart", "--allow-unknown-static-fields"),
        *("-l", "warning", "--component-log-level", "misc:error", "--concurrency", "2", "--skip-deprecated-logs"),
        *("--service-cluster", "istio-proxy"),
        *("--service-node", "sidecar~10.0.0.1~app.default~default.svc.cluster.local"),
    ]
    config = json.loads(_GOOD)
    config["no_such_field"] = 1  # --allow-unknown-static-fields
    with start_meshproxy(json.dumps(config), *flags) as proxy:
        assert exchange(proxy.listener_ports()["main"], _GET).body == b"x"
        info = json.loads(proxy.admin("/server_info")[1])
        assert info["node"]["cluster"] == "istio-proxy"
        assert info["node"]["id"].startswith("sidecar~")
        assert info["command_line_options"]["concurrency"] == 2


def test_config_yaml_is_merged_over_the_file(tmp_path: Path, good: str) -> None:
    overlay = 'node: { id: "from the flag" }\nstatic_resources: { clusters: [ { name: extra, connect_timeout: 1s } ] }'
    with start_meshproxy(_GOOD, "--config-yaml", overlay) as proxy:
        assert json.loads(proxy.admin("/server_info")[1])["node"]["id"] == "from the flag"
        assert "extra::" in proxy.admin("/clusters")[1]
        assert exchange(proxy.listener_ports()["main"], _GET).body == b"x"
    done = meshproxy("validate", "-c", good, "--config-yaml", "no_such_field: 1")
    assert done.returncode == 1
    assert "no_such_field" in done.stderr
    assert meshproxy("validate", "--config-yaml", _GOOD).returncode == 0


def test_run_without_a_command_serves_and_logs(tmp_path: Path, good: str) -> None:
    admin = tmp_path / "admin"
    log = tmp_path / "log"
    flags = ["-c", good, "--admin-address-path", str(admin), "--shutdown-delay-s", "0"]
    command = [sys.executable, "-m", "meshproxy", *flags]
    with log.open("w") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output)
    try:
        wait_for(lambda: admin.exists() and admin.read_text(), "the admin's address", 30.0)
        assert re.fullmatch(r"127\.0\.0\.1:\d+", admin.read_text())
        wait_for(lambda: "starting to serve" in log.read_text(), "the log")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    line = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}\]\[(\d+)\]\[(info|warning)\]\[[a-z_]+\] .+")
    lines = log.read_text().splitlines()
    assert lines
    for text in lines:
        found = line.fullmatch(text)
        assert found, text
        assert found[1] == str(process.pid)


def test_a_signal_while_it_starts_ends_it() -> None:
    """Not ready yet, nothing to drain."""
    never = json.loads(_GOOD)
    dns = cluster("dns", 1, type="STRICT_DNS")
    dns["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"] = address(1, "localhost")
    never["static_resources"]["clusters"] = [dns]
    command = [sys.executable, "-X", "importtime", "-m", "meshproxy", "--config-yaml", json.dumps(never)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    with process.stderr as output:
        for text in output:
            if "meshproxy.server.supervisor" in text:
                break
        process.send_signal(signal.SIGTERM)
        rest = output.read()
    assert process.wait(30) in (0, 1, -signal.SIGTERM)
    assert "Traceback" not in rest
