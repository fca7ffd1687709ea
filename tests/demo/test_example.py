"""examples/canary/envoy.yaml: it runs on the real Envoy and here, and does on both what its comments say."""

import http.client
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from meshproxy.cli import main
from meshproxy.demo.example import (
    ADMIN_PORT,
    INSTANCES,
    LISTENER,
    LISTENER_PORT,
    ExampleError,
    read_example,
    with_canary_share,
    with_ports,
)
from tests.support.proxy import ProxyProcess, envoy_binary, start_envoy, start_meshproxy
from tests.support.upstream import ScriptedUpstream, reply

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "canary" / "envoy.yaml"


def test_the_demonstration_shows_the_example_that_people_read() -> None:
    assert read_example("") == EXAMPLE.read_text()


def test_it_is_valid_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-c", str(EXAMPLE)]) == 0, capsys.readouterr()


def test_it_is_valid_on_envoy() -> None:
    command = [envoy_binary(), "--mode", "validate", "-c", str(EXAMPLE)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    """Four servers with the names of the instances, each saying its own."""
    server = ScriptedUpstream(tuple(INSTANCES.values()))
    server.play(by_server={name: [reply(body=name.encode())] for name in INSTANCES.values()})
    yield server
    server.close()
    assert server.errors == []


def ask(proxy: ProxyProcess, **headers: str) -> str:
    """The body of the answer to a GET; "" for anything but a 200."""
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.listener_ports()[LISTENER], timeout=30)) as connection:
        connection.request("GET", "/", headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else ""


@pytest.mark.parametrize("start", [start_envoy, start_meshproxy])
def test_its_rules_hold(start: Callable[[str], ProxyProcess], upstream: ScriptedUpstream) -> None:
    ports = {port: upstream.ports[name] for port, name in INSTANCES.items()}
    everything_on_v2 = with_canary_share(read_example(""), 100)
    with start(with_ports(everything_on_v2, {ADMIN_PORT: 0, LISTENER_PORT: 0, **ports})) as proxy:
        assert {ask(proxy, user_agent="Mozilla/5.0 (iPhone; CPU OS 17_5)") for _ in range(4)} == {"v2-a", "v2-b"}
        assert {ask(proxy, user_agent="Mozilla/5.0 (Linux; Android 14)") for _ in range(4)} == {"v1-a", "v1-b"}
        assert ask(proxy, x_chaos="slow").startswith("v1-")


@pytest.mark.parametrize("start", [start_envoy, start_meshproxy])
def test_an_instance_that_is_not_there_is_nobodys_problem(
    start: Callable[[str], ProxyProcess], upstream: ScriptedUpstream
) -> None:
    ports = {port: upstream.ports[name] for port, name in INSTANCES.items()}
    ports[8102] = 1  # tcpmux: nobody listens there
    with start(with_ports(read_example(""), {ADMIN_PORT: 0, LISTENER_PORT: 0, **ports})) as proxy:
        assert [ask(proxy) for _ in range(8)] == ["v1-a"] * 8
        assert proxy.stats("cluster.shop-v1.upstream_rq_retry_success")["cluster.shop-v1.upstream_rq_retry_success"] > 0


def test_only_ports_and_weights_are_replaced() -> None:
    text = read_example("")
    same = {port: port for port in (ADMIN_PORT, LISTENER_PORT, *INSTANCES)}
    assert with_ports(text, same) == text
    assert with_canary_share(text, 5) == text
    changed = with_canary_share(text, 50).splitlines()
    assert [line.strip() for line in changed if line not in text.splitlines()] == [
        "- { name: shop-v1, weight: 50 }",
        "- { name: shop-v2, weight: 50 }",
    ]


def test_a_file_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="cannot read"):
        read_example(str(tmp_path / "missing.yaml"))
    with pytest.raises(ExampleError, match="ports"):
        with_ports("port_value: 80", {LISTENER_PORT: 0})
    with pytest.raises(ExampleError, match="weight"):
        with_canary_share("{ name: shop-v1, weight: 95 }", 50)
