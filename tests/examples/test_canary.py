"""examples/canary/envoy.yaml: it runs on the real Envoy and here, and does on both what its comments say."""

from __future__ import annotations

import http.client
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from meshproxy.cli import main
from tests.support.proxy import ProxyProcess, envoy_binary, start_envoy, start_meshproxy
from tests.support.upstream import ScriptedUpstream, reply

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "canary" / "envoy.yaml"
LISTENER: Final = "shop"
# The instances behind the proxy, by the port at which the example looks for them.
INSTANCES: Final = {8101: "v1-a", 8102: "v1-b", 8201: "v2-a", 8202: "v2-b"}


def rendered(ports: Mapping[int, int], *, all_on_v2: bool = False) -> str:
    """The example with these ports, all others being free ones."""
    text = re.sub(r"(?<=port_value: )\d+", lambda match: str(ports.get(int(match[0]), 0)), EXAMPLE.read_text())
    return text.replace("weight: 95", "weight: 0").replace("weight: 5 ", "weight: 100 ") if all_on_v2 else text


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
    with start(rendered(ports, all_on_v2=True)) as proxy:
        assert {ask(proxy, user_agent="Mozilla/5.0 (iPhone; CPU OS 17_5)") for _ in range(4)} == {"v2-a", "v2-b"}
        assert {ask(proxy, user_agent="Mozilla/5.0 (Linux; Android 14)") for _ in range(4)} == {"v1-a", "v1-b"}
        assert ask(proxy, x_chaos="slow").startswith("v1-")


@pytest.mark.parametrize("start", [start_envoy, start_meshproxy])
def test_an_instance_that_is_not_there_is_nobodys_problem(
    start: Callable[[str], ProxyProcess], upstream: ScriptedUpstream
) -> None:
    ports = {port: upstream.ports[name] for port, name in INSTANCES.items()}
    ports[8102] = 1  # tcpmux: nobody listens there
    with start(rendered(ports)) as proxy:
        assert [ask(proxy) for _ in range(8)] == ["v1-a"] * 8
        assert proxy.stats("cluster.shop-v1.upstream_rq_retry_success")["cluster.shop-v1.upstream_rq_retry_success"] > 0
