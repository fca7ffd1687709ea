"""Whoever has somebody's token, or is another user of the machine: the authority and the agent give nothing, count it,
and write down who asked and why not."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshproxy.api.istio_ca_pb2 import IstioCertificateRequest
from tests.pilot.authority.fakes import Signer
from tests.pilot.authority_mesh import ADS, CREATE, NOBODY, Caller, Mesh, clusters, own_port, refused
from tests.pilot.processes import PilotProcess
from tests.security.sidecars import PREFIX
from tests.security.workloads import DEADLINE_S, AgentProcess, agent_flags, token
from tests.support.polling import wait_for
from tests.tls.certificates import uri

STOLEN = "stolen"
_NOBODY_UID = 65_534


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    """Whose table of users has somebody else's, and where an operator has shut out whose token was stolen."""
    made = Mesh(tmp_path_factory.mktemp("mesh"))
    (made.folder / "uids.yaml").write_text(f"{os.getuid() + 1}: shop/local\n")
    made.command("revoke", "--identity", PREFIX + STOLEN)
    return made


@pytest.fixture(scope="module")
def pilot(mesh: Mesh) -> Iterator[PilotProcess]:
    with mesh.pilot() as found:
        yield found


def count(pilot: PilotProcess, reason: str) -> float:
    name = f'meshproxy_authority_refused_total{{reason="{reason}"}} '
    rows = pilot.page("/metrics").splitlines()
    return sum(float(row.removeprefix(name)) for row in rows if row.startswith(name))


def audit(mesh: Mesh) -> list[dict[str, Any]]:
    return [json.loads(line) for line in mesh.audit.read_text().splitlines()]


def shown(mesh: Mesh, case: str) -> str:
    tokens = {
        "stolen": token(mesh, STOLEN),
        "forged": Signer("one").token(),
        "of somebody else's": Signer("another").token(),
        "expired": mesh.signer.token(exp=1),
        "for another audience": mesh.signer.token(aud=["somebody"]),
        "none, of another user": "",
        "none": "",
    }
    return tokens[case]


REASONS = {
    "stolen": "the identity is shut out",
    "forged": "bad signature",
    "of somebody else's": "no key fits the token's key id and algorithm",
    "expired": "expired token",
    "for another audience": "the token is for another audience",
    "none": "no proof",
    "none, of another user": f"uid {os.getuid()} is not in the table",
}


@pytest.mark.parametrize("case", REASONS)
def test_a_thief_gets_nothing(mesh: Mesh, pilot: PilotProcess, case: str) -> None:
    before, told = count(pilot, "unproven"), len(audit(mesh))
    text = shown(mesh, case)
    where = (f"unix:{mesh.sockets}", b"") if case == "none, of another user" else (own_port(pilot), mesh.roots)
    with Caller(*where, token=text) as thief:
        for ask in (
            thief.certificate,
            lambda: thief.secret("default"),
            lambda: thief.secret("ROOTCA"),
            lambda: thief.first(ADS + "StreamAggregatedResources", clusters()),
            lambda: thief.first(ADS + "DeltaAggregatedResources", clusters()),
        ):
            assert refused(ask) == NOBODY
    assert count(pilot, "unproven") == before + 5
    lines = audit(mesh)[told:]
    assert [(line["event"], line["code"], line["reason"]) for line in lines] == [
        ("refused", "unproven", REASONS[case])
    ] * 5
    assert all(line["address"] for line in lines)
    if text:
        said = mesh.audit.read_text() + pilot.output.read_text() + pilot.page("/debug/authority")
        assert text.rpartition(".")[2] not in said


def test_a_token_is_good_where_it_was_shown_first(mesh: Mesh, pilot: PilotProcess) -> None:
    """The owner's is used from elsewhere; the owner goes on."""
    good = token(mesh, "web")
    before = count(pilot, "unproven")
    with (
        Caller(own_port(pilot), mesh.roots, token=good) as owner,
        Caller(f"unix:{mesh.sockets}", b"", token=good) as thief,
    ):
        assert owner.certificate()
        told = len(audit(mesh))
        assert refused(thief.certificate) == NOBODY
        assert refused(lambda: thief.secret("default")) == NOBODY
        assert [line["reason"] for line in audit(mesh)[told:]] == [
            "a token that was first shown from another address"
        ] * 2
        assert owner.certificate()
    assert count(pilot, "unproven") == before + 2


def test_a_token_is_of_one_workload(mesh: Mesh, pilot: PilotProcess) -> None:
    """Whoever has stolen a good one is who it says, and nobody else."""
    before, told = count(pilot, "foreign"), len(audit(mesh))
    with Caller(own_port(pilot), mesh.roots, token=token(mesh, "web")) as thief:
        names = x509.SubjectAlternativeName(uri(f"{PREFIX}admin"))
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, False)
        csr = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
        text = csr.public_bytes(serialization.Encoding.PEM).decode()
        request = IstioCertificateRequest(csr=text).SerializeToString()
        code, _ = refused(lambda: thief.unary(CREATE, request))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert count(pilot, "foreign") == before + 1
    (line,) = audit(mesh)[told:]
    assert (line["event"], line["identity"], line["code"]) == ("refused", f"{PREFIX}web", "foreign")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can only be played by root")
def test_another_user_of_the_machine_gets_nothing_of_an_agent(mesh: Mesh, pilot: PilotProcess, tmp_path: Path) -> None:
    name = f"@meshproxy-agent-{os.getpid()}"
    flags = agent_flags(mesh, pilot, tmp_path, "web")
    agent = AgentProcess([*flags, "--sds-socket", name, "--allow-uid", "1337"], tmp_path, "web")
    try:
        agent.wait()
        with connected_as(_NOBODY_UID, "\0" + name[1:]) as sock:
            assert heard(sock) == b""
        wait_for(lambda: agent.metric("sds_peers_refused_total") == 1.0, "the counter", DEADLINE_S)
        assert f"a process of user {_NOBODY_UID} may not have our secrets" in agent.log.read_text()
        with connected_as(1337, "\0" + name[1:]) as sock:
            assert heard(sock) != b""  # settings of HTTP/2
        assert agent.metric("sds_peers_refused_total") == 1.0
    finally:
        agent.stop()


def connected_as(uid: int, path: str) -> socket.socket:
    """The kernel notes who connects when that happens."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE_S)
    os.seteuid(uid)
    try:
        sock.connect(path)
    finally:
        os.seteuid(0)
    return sock


def heard(sock: socket.socket) -> bytes:
    try:
        return sock.recv(9)
    except ConnectionResetError:
        return b""
