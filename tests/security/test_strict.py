"""A sidecar that takes mutual TLS alone, and openssl and curl as its clients: who is of the mesh is let in and named,
who is not is refused, counted, and its reason written down. The real Envoy under the same secrets says the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.pilot.test_authority_ends import serial
from tests.security.sidecars import PREFIX, START, Inbound, Secrets
from tests.security.town import CLIENT, Town, of_the_authority
from tests.security.workloads import DEADLINE_S, agents, application, lines
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess

_REQUEST: Final = b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"
# The statistic of the listener, and words of %DOWNSTREAM_TRANSPORT_FAILURE_REASON%.
REFUSED: Final = {
    "no certificate": ("fail_verify_no_cert", "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
    "another trust domain": ("fail_verify_san", "SAN_matcher"),
    "no identity": ("fail_verify_san", "SAN_matcher"),
    "another authority": ("fail_verify_error", "unable_to_get_local_issuer_certificate"),
    "expired": ("fail_verify_error", "certificate_has_expired"),
    "not yet valid": ("fail_verify_error", "certificate_is_not_yet_valid"),
    "revoked": ("fail_verify_error", "certificate_revoked"),
    "of a root after its time": ("fail_verify_error", "unable_to_get_local_issuer_certificate"),
}
PROTOCOL: Final = {"openssl": b"HTTP/1.1", "curl": b"HTTP/2"}  # that is agreed on by ALPN, or by default
VERSIONS: Final = {"TLSv1.2": "-tls1_2", "TLSv1.3": "-tls1_3"}


@dataclass
class World:
    town: Town
    server: ProxyProcess
    inbound: Inbound
    folder: Path

    @property
    def port(self) -> int:
        return self.server.listener_ports()["http"]

    def stat(self, name: str) -> int:
        full = f"listener.http.ssl.{name}"
        return self.server.stats(name.replace(".", "\\.")).get(full, 0)

    def ask(self, tool: str, version: str, caller: str) -> bytes:
        """What the tool prints of the answer."""
        shown = self.town.callers[caller]
        certificate = self.folder / "shown.pem"
        certificate.write_bytes(b"" if shown is None else b"".join(shown))
        flags = _FLAGS[tool](self.port, version, self.town.roots)
        if shown is not None:
            flags += ["-cert" if tool == "openssl" else "--cert", str(certificate)]
        return subprocess.run([tool, *flags], input=_REQUEST, capture_output=True, timeout=60, check=False).stdout


def _openssl(port: int, version: str, roots: Path) -> list[str]:
    flags = ["s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(roots), "-verify_return_error"]
    return [*flags, VERSIONS[version], "-quiet", "-ign_eof"]


def _curl(port: int, version: str, _: Path) -> list[str]:
    """It asks for a DNS name, which workloads have none of: whom it talks to, openssl looks at."""
    number = version.removeprefix("TLSv")
    flags = ["--silent", "--include", "--insecure", "--max-time", "30", f"--tlsv{number}", "--tls-max", number]
    return [*flags, f"https://127.0.0.1:{port}/"]


_FLAGS = {"openssl": _openssl, "curl": _curl}


@pytest.fixture(scope="module", params=START)
def world(request: pytest.FixtureRequest, town: Town, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with ExitStack() as stack:
        (agent,) = stack.enter_context(agents(town.mesh, town.pilot, folder, "web"))
        wait_for(lambda: agent.metric("bundles_total"), "the bundle", DEADLINE_S)
        inbound = Inbound(Secrets(agent.socket), folder, stack.enter_context(application()))
        server = stack.enter_context(START[request.param](inbound.text()))
        yield World(town, server, inbound, folder)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tool", PROTOCOL)
def test_who_is_of_the_mesh_is_let_in_and_named(world: World, tool: str, version: str) -> None:
    inbound = world.inbound
    asked, connected = len(lines(inbound.requests)), len(lines(inbound.connections))
    answer = world.ask(tool, version, "of the mesh")
    assert answer.split(b" ", 2)[:2] == [PROTOCOL[tool], b"200"]
    told = answer.partition(b"\r\n\r\n")[2].decode()
    assert told.startswith(f"By={PREFIX}web;")
    assert told.endswith(f";URI={CLIENT}")
    wait_for(lambda: len(lines(inbound.requests)) > asked, "the log's line", DEADLINE_S)
    (line,) = lines(inbound.requests)[asked:]
    assert (line["peer"], line["version"], line["xfcc"], line["status"]) == (CLIENT, version, told, 200)
    wait_for(lambda: len(lines(inbound.connections)) > connected, "the connection's line", DEADLINE_S)
    (line,) = lines(inbound.connections)[connected:]
    assert (line["peer"], line["failure"]) == (CLIENT, None)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tool", PROTOCOL)
@pytest.mark.parametrize("caller", REFUSED)
def test_who_is_not_is_refused(world: World, tool: str, version: str, caller: str) -> None:
    name, reason = REFUSED[caller]
    with refusal(world, name, reason):
        assert b"HTTP/" not in world.ask(tool, version, caller)


def test_nobody_comes_in_the_clear(world: World) -> None:
    """A downgrade: curl without TLS."""
    flags = ["--silent", "--include", "--max-time", "30", f"http://127.0.0.1:{world.port}/"]
    with refusal(world, "connection_error", "HTTP_REQUEST"):
        ended = subprocess.run(["curl", *flags], capture_output=True, timeout=60, check=False)
        assert (ended.stdout, ended.returncode != 0) == (b"", True)


@contextmanager
def refusal(world: World, name: str, reason: str) -> Iterator[None]:
    """What is tried meanwhile is counted once, written down once, and comes to no request."""
    inbound = world.inbound
    before, asked, told = world.stat(name), len(lines(inbound.requests)), len(lines(inbound.connections))
    yield
    wait_for(lambda: world.stat(name) == before + 1, name, DEADLINE_S)
    wait_for(lambda: len(lines(inbound.connections)) > told, "the log's line", DEADLINE_S)
    (line,) = lines(inbound.connections)[told:]
    assert reason in line["failure"]
    assert len(lines(inbound.requests)) == asked


def test_a_session_does_not_outlive_its_certificate_s_revocation(world: World) -> None:
    """It is resumed as long as the certificate is good; then a thief of both comes no further with it."""
    caller = of_the_authority(world.town.mesh, "resumer")
    (world.folder / "resumer.pem").write_bytes(b"".join(caller))

    def resumes(version: str, *, begins: bool = False) -> bytes:
        session = ("-sess_out" if begins else "-sess_in", str(world.folder / f"{version}.session"))
        flags = [flag for flag in _openssl(world.port, version, world.town.roots) if flag != "-quiet"]
        command = ["openssl", *flags, *session, "-cert", str(world.folder / "resumer.pem")]
        return subprocess.run(command, input=_REQUEST, capture_output=True, timeout=60, check=False).stdout

    for version in VERSIONS:
        assert b"HTTP/1.1 200" in resumes(version, begins=True)
        again = resumes(version)
        assert b"\nReused, TLSv1" in again
        assert b"HTTP/1.1 200" in again
    world.town.callers["resumer"] = caller
    world.town.mesh.command("revoke", serial(caller))
    wait_for(lambda: world.ask("openssl", "TLSv1.3", "resumer") == b"", "the revocation", DEADLINE_S)
    for version in VERSIONS:
        assert b"HTTP/" not in resumes(version)
