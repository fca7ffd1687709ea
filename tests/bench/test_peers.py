"""What a scenario says that it measures is what happens: headers are added, logs written, spans sent."""

from __future__ import annotations

import http.client
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.comparison import Comparison
from bench.configuration import LAST_HEADER_ROUTE, envoy_config, features
from bench.peers import PEERS, Peer, PeerError, Running, application, build_of, start_peer
from bench.scenarios import SCENARIOS
from meshproxy import is_compiled
from meshproxy.cli import main
from tests.bench.programs import needs
from tests.support.polling import wait_for
from tests.support.upstream import ScriptedUpstream


@contextmanager
def running(peer: str, config: str, port: int) -> Iterator[Running]:
    started = start_peer(peer, config, port)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    server = ScriptedUpstream()
    yield server
    server.close()


def ask(port: int, *headers: str) -> int:
    """The status of a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/", headers=dict(header.split(": ", 1) for header in headers))
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("peer", "config"),
    [
        ("envoy", "http1+lua"),
        ("envoy", "http1+ext-proc"),
        ("meshproxy-source", "http1+python"),
        ("meshproxy-source", "http1+python-async"),
    ],
)
def test_one_more_filter_adds_a_header(upstream: ScriptedUpstream, peer: str, config: str) -> None:
    with running(peer, config, upstream.ports["a"]) as started:
        assert ask(started.port) == 200
        assert len(started.pids) == (2 if config == "http1+ext-proc" else 1)
    (seen,) = upstream.wait_seen(1)
    assert seen.message.get_all(b"x-bench") == [b"1"]


@pytest.mark.parametrize("peer", ["envoy", "meshproxy-source"])
def test_the_sidecar_s_filters_run(upstream: ScriptedUpstream, peer: str) -> None:
    with running(peer, "filters", upstream.ports["a"]) as started:
        assert ask(started.port, LAST_HEADER_ROUTE, "x-internal: 1") == 200
        assert ask(started.port, LAST_HEADER_ROUTE, "x-fault: yes") == 503
        assert ask(started.port, "x-version: v20") == 404
    (seen,) = upstream.wait_seen(1)
    assert seen.message.get_all(b"x-mesh") == [b"bench"]
    assert seen.message.get_all(b"x-internal") == []


@pytest.mark.parametrize("peer", ["envoy", "meshproxy-source"])
def test_a_request_crosses_two_sidecars(upstream: ScriptedUpstream, peer: str) -> None:
    with running(peer, "sidecar-out>sidecar-in", upstream.ports["a"]) as started:
        assert ask(started.port) == 200
        assert len(started.pids) == 2
    (seen,) = upstream.wait_seen(1)
    assert seen.message.get_all(b"x-forwarded-proto") == [b"http"]


@pytest.mark.parametrize("peer", ["envoy", "meshproxy-source"])
def test_spans_are_sent_to_the_collector(upstream: ScriptedUpstream, peer: str) -> None:
    with running(peer, "http1+tracing-sampled", upstream.ports["a"]) as started:
        assert ask(started.port) == 200
        wait_for(lambda: b"/v1/traces" in [seen.message.target for seen in upstream.script.seen], "spans", 20)


@needs("nginx")
def test_the_application_and_the_direct_call_are_the_same() -> None:
    with application() as port, running("direct", "", port) as started:
        assert (started.port, started.ports["any"], started.pids) == (port, port, ())
        assert ask(started.port) == 200


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in ("nginx", "haproxy")])
def test_other_proxies_answer(name: str, upstream: ScriptedUpstream) -> None:
    with running(name, "http1", upstream.ports["a"]) as started:
        assert ask(started.port) == 200
    assert len(upstream.wait_seen(1)) == 1


@pytest.mark.parametrize("name", sorted(features()))
def test_a_feature_can_be_switched_on(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"port": 0, "upstream_port": 1, "collector_port": 1, "folder": tmp_path}
    config = tmp_path / "envoy.yaml"
    config.write_text(envoy_config(f"http1+{name}", places))
    code = main(["validate", "-c", str(config)])
    said = "".join(capsys.readouterr())
    assert (code, "warning" in said) == (0, False), said


def test_a_proxy_that_would_do_less_than_asked_is_not_measured() -> None:
    # Stands for ours, whose warnings name the fields that it does not honour.
    command = ["sh", "-c", "echo '[x][1][warning][main] tracing: requests are not traced'; exec $0 \"$@\""]
    envoy = PEERS["envoy"]
    peer = Peer("some", "some", envoy.file, lambda: [*command, *envoy.command()], build="source")
    with pytest.raises(PeerError, match=r"less than the configuration says.*not traced"):
        peer.start("http1", {"upstream_port": 1})


@needs("nginx")
@pytest.mark.skipif(is_compiled(), reason="this run has a compiled build")
def test_source_is_not_called_compiled() -> None:
    with application() as port, pytest.raises(PeerError, match="should run compiled"):
        start_peer("meshproxy", "http1", port)


def test_a_process_that_has_not_loaded_us_is_not_called_compiled() -> None:
    assert build_of(os.getppid()) == "source"


def test_every_contender_of_ours_has_a_counterpart() -> None:
    for item in SCENARIOS:
        if isinstance(item, Comparison):
            assert any(contender.peer.startswith("meshproxy") for contender in item.contenders)
