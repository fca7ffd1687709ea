"""An agent as a process, and the real Envoy and our proxy as the sidecars that it serves: what a TLS client sees."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.agent.client import secret
from tests.agent.fake_authority import ROOT, URI, FakeAuthority, authority
from tests.agent.harness import DEADLINE_S, flags_for, until
from tests.support.mutual_tls import configuration, shown_by
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.tls.certificates import issue, uri

CLIENT = issue("client", ROOT, names=uri("spiffe://mesh.test/ns/shop/sa/client"))


@dataclass
class AgentProcess:
    process: subprocess.Popen[bytes]
    socket: str
    http: str
    output: Path

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


def _start(flags: list[str], output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "meshproxy", "agent", *flags]
    with output.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@asynccontextmanager
async def agent_process(ca: FakeAuthority, folder: Path, *more: str) -> AsyncIterator[AgentProcess]:
    addresses, output = folder / "addresses", folder / "agent.log"
    addresses.unlink(missing_ok=True)
    process = _start([*flags_for(ca, folder, *more), "--address-path", str(addresses), "-l", "trace"], output)
    try:
        await until(lambda: addresses.exists() or process.poll() is not None)
        assert process.poll() is None, output.read_text()
        found = json.loads(addresses.read_text())
        yield AgentProcess(process, found["sds"], found["http"], output)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.long
@pytest.mark.parametrize("start", [start_envoy, start_meshproxy], ids=["envoy", "meshproxy"])
async def test_a_sidecar_s_certificate_is_rotated_and_outlives_its_agent(
    start: Callable[[str], ProxyProcess], tmp_path: Path
) -> None:
    async with authority() as ca:
        ca.lifetime_s = 4.0
        async with agent_process(ca, tmp_path) as agent:
            proxy = await asyncio.to_thread(start, configuration(agent.socket))
            try:
                port = (await asyncio.to_thread(proxy.listener_ports))["in"]
                seen: dict[bytes, None] = {}

                async def look() -> bytes:
                    der = await asyncio.to_thread(shown_by, port, CLIENT, ROOT, tmp_path)
                    seen[der] = None
                    return der

                async with asyncio.timeout(DEADLINE_S):
                    while len(seen) < 2:
                        await look()
                assert len({_public_key(der) for der in seen}) == 2
                ca.lifetime_s = 3600.0
                async with asyncio.timeout(DEADLINE_S):
                    while await look() != ca.certificates[-1].public_bytes(serialization.Encoding.DER):
                        pass
                assert await asyncio.to_thread(agent.stop) == 0
                assert await look() == ca.certificates[-1].public_bytes(serialization.Encoding.DER)
                async with agent_process(ca, tmp_path):  # a new agent has a new key at once
                    known = len(seen)
                    async with asyncio.timeout(DEADLINE_S):
                        while len(seen) == known:
                            await look()
            finally:
                await asyncio.to_thread(proxy.stop)
        assert all(URI in str(_names(der)) for der in seen)


def _public_key(der: bytes) -> bytes:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return x509.load_der_x509_certificate(der).public_key().public_bytes(encoding, form)


def _names(der: bytes) -> list[str]:
    found = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return found.value.get_values_for_type(x509.UniformResourceIdentifier)


async def test_keys_are_in_no_file_and_no_log_and_the_memory_is_nobody_s(tmp_path: Path) -> None:
    """And a signal ends it well."""
    async with authority() as ca, agent_process(ca, tmp_path) as agent:
        found = await secret(agent.socket, "default")
        pem = found.tls_certificate.private_key.inline_bytes
        der = serialization.load_pem_private_key(pem, None).private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        lines = [line for line in pem.splitlines() if not line.startswith(b"-")]
        needles = [*lines, der[-32:], base64.b64encode(der)[:40], ca.token.encode()]
        assert limits(agent, "Max core file size") == "0"
        files = [path for path in files_in(tmp_path) if path.is_file()]
        assert agent.output in files
        assert not [path for path in files for needle in needles if needle in path.read_bytes()]
        assert await asyncio.to_thread(agent.stop) == 0
        assert not [path for path in files_in(tmp_path) if path.parent.name == "run"]


def files_in(folder: Path) -> list[Path]:
    """Sockets too; but for the token's own."""
    return [path for path in folder.rglob("*") if not path.is_dir() and path.name != "token"]


def limits(agent: AgentProcess, name: str) -> str:
    """The soft limit of a process."""
    text = Path(f"/proc/{agent.process.pid}/limits").read_text()
    return next(line[len(name) :].split()[0] for line in text.splitlines() if line.startswith(name))


async def test_an_agent_that_cannot_serve_ends_with_1(tmp_path: Path) -> None:
    async with authority() as ca:
        flags = flags_for(ca, tmp_path, "--sds-socket", f"{tmp_path}/token/sds")
        command = [sys.executable, "-m", "meshproxy", "agent", *flags]
        ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60, check=False)
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1].startswith(b"meshproxy agent: --sds-socket: ")
