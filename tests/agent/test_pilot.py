"""Agents and the authority of our own pilot: every proof, the bundle, and what becomes of one that is revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.agent.client import asked, secret
from tests.agent.harness import agent_of, until
from tests.pilot.authority.fakes import TRUST_DOMAIN
from tests.pilot.authority_mesh import NAME, Mesh, own_port
from tests.pilot.processes import PilotProcess

SHOP = ("--trust-domain", TRUST_DOMAIN, "--namespace", "shop", "--drain-time-s", "0")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(scope="module")
def pilot(mesh: Mesh) -> Iterator[PilotProcess]:
    with mesh.pilot() as found:
        yield found


def by_token(mesh: Mesh, pilot: PilotProcess, folder: Path, account: str = "web") -> tuple[str, ...]:
    """Flags."""
    (folder / "root.pem").write_bytes(mesh.roots)
    (folder / "token").write_text(mesh.signer.token(sub=f"system:serviceaccount:shop:{account}"))
    ca = (*SHOP, "--ca", own_port(pilot), "--ca-name", NAME, "--ca-root-file", f"{folder}/root.pem")
    return (*ca, "--token-file", f"{folder}/token", "--service-account", account, "--sds-socket", f"{folder}/sds")


def names_of(chain: bytes) -> list[str]:
    leaf = x509.load_pem_x509_certificates(chain)[0]
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.get_values_for_type(x509.UniformResourceIdentifier)


async def test_a_token_first_and_the_certificate_from_then_on(mesh: Mesh, pilot: PilotProcess, tmp_path: Path) -> None:
    flags = (*by_token(mesh, pilot, tmp_path), "--renew-by-certificate")
    async with agent_of(*flags, renew_s=0.5) as agent:
        await until(lambda: agent.metrics.certificates)
        (tmp_path / "token").write_text("stolen.and.gone")
        await until(lambda: agent.metrics.certificates >= 3)
        assert agent.secrets.pair is not None
        assert names_of(agent.secrets.pair.chain) == [f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"]
        assert agent.secrets.left_s <= 6 * 3600.0  # --certificate-lifetime: no other was asked for
        await until(lambda: agent.metrics.bundles)


async def test_a_user_of_this_machine(mesh: Mesh, pilot: PilotProcess, tmp_path: Path) -> None:
    flags = (*SHOP, "--ca", f"unix:{mesh.sockets}", "--service-account", "local", "--sds-socket", f"{tmp_path}/sds")
    async with agent_of(*flags) as agent:
        await until(lambda: agent.secrets.ready and agent.metrics.bundles)
        found = await secret(f"{tmp_path}/sds", "default")
        chain = found.tls_certificate.certificate_chain.inline_bytes
        assert names_of(chain) == [f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/local"]


async def test_nobody_is_certified_as_somebody_else(mesh: Mesh, pilot: PilotProcess, tmp_path: Path) -> None:
    flags = (*SHOP, "--ca", f"unix:{mesh.sockets}", "--service-account", "admin", "--sds-socket", f"{tmp_path}/sds")
    async with agent_of(*flags) as agent:
        await until(lambda: agent.metrics.failures >= 2)
        assert not agent.secrets.ready


@pytest.mark.long
async def test_the_next_root_and_a_revocation_reach_the_proxies(
    mesh: Mesh, pilot: PilotProcess, tmp_path: Path
) -> None:
    """By the bundle that the agent follows; who is barred is certified no more."""
    flags = by_token(mesh, pilot, tmp_path, "barred")
    async with agent_of(*flags, renew_s=0.5) as agent:
        await until(lambda: agent.metrics.bundles)
        async with asked(f"{tmp_path}/sds", "ROOTCA") as stream:
            assert (await stream.next()).validation_context.trusted_ca.inline_bytes == mesh.roots
            await asyncio.to_thread(mesh.command, "rotate")
            both = (await stream.next()).validation_context.trusted_ca.inline_bytes
            assert mesh.roots in both
            assert len(x509.load_pem_x509_certificates(both)) == 2
            identity = f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/barred"
            await asyncio.to_thread(mesh.command, "revoke", "--identity", identity)
            await until(lambda: agent.metrics.failures)
            assert agent.secrets.ready  # what it has lives to its end
