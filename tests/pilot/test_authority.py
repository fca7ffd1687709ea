"""The authority of a pilot, end to end: whoever proves who it is gets certificates, roots and its configuration;
whoever does not gets nothing. Asked by grpcio, openssl and the real Envoy."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3 import discovery_pb2 as discovery

from meshproxy.config.subscription import CLUSTER_TYPE, SECRET_TYPE
from tests.integration.test_secrecy import core_limit
from tests.pilot.authority.fakes import AUDIENCE, ISSUER, TRUST_DOMAIN, Signer
from tests.pilot.authority.test_services import KEY
from tests.pilot.authority_mesh import (
    ADS,
    NAME,
    NOBODY,
    SDS,
    WEB,
    Caller,
    Mesh,
    answered,
    bare_proxy,
    clusters,
    handshake,
    key_pem,
    own_port,
    refused,
    tls_ports,
    uris,
)
from tests.pilot.processes import DEADLINE_S, PilotProcess, pilot
from tests.support.polling import wait_for
from tests.support.proxy import start_envoy, start_meshproxy
from tests.tls.certificates import issue, uri


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(scope="module")
def running(mesh: Mesh) -> Iterator[PilotProcess]:
    with mesh.pilot() as found:
        yield found


def test_a_token_gets_a_certificate_and_that_gets_the_next(mesh: Mesh, running: PilotProcess) -> None:
    with Caller(own_port(running), mesh.roots, token=mesh.signer.token()) as agent:
        leaf, roots = agent.certificate(validity_duration=600)
    assert roots == mesh.roots
    assert uris(leaf) == [WEB]
    lived = x509.load_pem_x509_certificate(leaf).not_valid_after_utc.timestamp() - time.time()
    assert 0.0 < lived <= 600.0
    (mesh.folder / "leaf.pem").write_bytes(leaf)
    (mesh.folder / "roots.pem").write_bytes(roots)
    files = [str(mesh.folder / "roots.pem"), str(mesh.folder / "leaf.pem")]
    verify = ["openssl", "verify", "-x509_strict", "-CAfile", *files]
    assert subprocess.run(verify, check=True, capture_output=True, timeout=60).stdout.endswith(b": OK\n")
    for target in tls_ports(running).values():
        with Caller(target, roots, certificate=(leaf, key_pem(KEY))) as agent:
            assert uris(agent.certificate()[0]) == [WEB]


def test_a_user_of_this_machine(mesh: Mesh, running: PilotProcess) -> None:
    with Caller(f"unix:{mesh.sockets}", b"") as local:
        assert uris(local.certificate()[0]) == [f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/local"]
    with Caller(f"unix:{mesh.sockets}", b"", token=mesh.signer.token()) as local:
        assert uris(local.certificate()[0]) == [WEB]


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": 1}, "expired token"),
        ({"iss": "https://other.test"}, "the token is of another issuer"),
        ({"aud": "somebody"}, "the token is for another audience"),
        ({"sub": "root"}, "the token names no service account"),
    ],
)
def test_a_token_that_is_no_good_gets_nothing(
    mesh: Mesh, running: PilotProcess, claims: dict[str, Any], reason: str
) -> None:
    told = len(mesh.refusals())
    with Caller(own_port(running), mesh.roots, token=mesh.signer.token(**claims)) as agent:
        assert refused(agent.certificate) == NOBODY
        assert refused(lambda: agent.secret("default")) == NOBODY
        assert refused(lambda: agent.secret("ROOTCA")) == NOBODY
        assert refused(lambda: agent.first(ADS + "StreamAggregatedResources", clusters())) == NOBODY
    assert mesh.refusals()[told:] == [reason] * 4


def test_a_stranger_gets_nothing(mesh: Mesh, running: PilotProcess) -> None:
    with Caller(own_port(running), mesh.roots, token=Signer("one").token()) as agent:
        assert refused(agent.certificate) == NOBODY
    with Caller(own_port(running), mesh.roots) as agent:
        assert refused(agent.certificate) == NOBODY
        assert refused(lambda: agent.secret("ROOTCA")) == NOBODY
    assert mesh.refusals()[-3:] == ["bad signature", "no proof", "no proof"]
    # Of another authority, with the name of somebody of ours.
    other = issue("other", ca=True)
    stolen = issue("web", other, names=uri(WEB))
    for target in tls_ports(running).values():
        with Caller(target, mesh.roots, certificate=(stolen.pem, stolen.key_pem)) as agent:
            assert refused(agent.certificate)[0] is grpc.StatusCode.UNAVAILABLE  # no connection
    assert mesh.refusals()[-1].startswith("TLS: a certificate that is not of the mesh")
    # grpcio's ports ask for a certificate: a token alone comes to nothing there.
    with Caller(tls_ports(running)["grpcio"], mesh.roots, token=mesh.signer.token()) as agent:
        assert refused(agent.certificate)[0] is grpc.StatusCode.UNAVAILABLE


def test_a_revoked_certificate_gets_nothing(mesh: Mesh, running: PilotProcess) -> None:
    token = mesh.signer.token(sub="system:serviceaccount:shop:revoked")
    with Caller(own_port(running), mesh.roots, token=token) as agent:
        (leaf, _) = agent.certificate()
    shown = (leaf, key_pem(KEY))
    serial = x509.load_pem_x509_certificate(leaf).serial_number
    with Caller(tls_ports(running)["grpcio"], mesh.roots, certificate=shown) as connected:
        connected.certificate()
        mesh.command("revoke", f"{serial:x}")
        wait_for(lambda: f"{serial:x}" in running.page("/debug/authority"), "the pilot to hear of it", DEADLINE_S)
        assert refused(connected.certificate) == NOBODY  # on a connection that is open
    assert mesh.refusals()[-1] == "the certificate is revoked"
    with Caller(own_port(running), mesh.roots, certificate=shown) as agent:
        assert refused(agent.certificate)[0] is grpc.StatusCode.UNAVAILABLE
    assert mesh.refusals()[-1].startswith("TLS: a certificate that is not of the mesh")


def test_secrets_in_both_variants(mesh: Mesh, running: PilotProcess) -> None:
    with Caller(own_port(running), mesh.roots, token=mesh.signer.token()) as proxy:
        found = proxy.secret("default").tls_certificate
        assert uris(found.certificate_chain.inline_bytes) == [WEB]
        assert b"PRIVATE KEY" in found.private_key.inline_bytes
        assert proxy.secret("ROOTCA").validation_context.trusted_ca.inline_bytes == mesh.roots
        request = discovery.DeltaDiscoveryRequest(type_url=SECRET_TYPE, resource_names_subscribe=["ROOTCA"])
        with proxy.stream(SDS + "DeltaSecrets", request) as call:
            (resource,) = discovery.DeltaDiscoveryResponse.FromString(next(call)).resources
        assert resource.name == "ROOTCA"


def test_a_node_is_who_its_proof_says(mesh: Mesh, running: PilotProcess) -> None:
    path = ADS + "StreamAggregatedResources"
    with Caller(own_port(running), mesh.roots, token=mesh.signer.token()) as proxy:
        with proxy.stream(path, clusters()) as call:
            assert discovery.DiscoveryResponse.FromString(next(call)).type_url == CLUSTER_TYPE
        for liar in (clusters("bank"), clusters(account="db")):
            code, details = refused(lambda liar=liar: proxy.first(path, liar))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "its certificate says shop/web" in details
    with Caller(f"unix:{mesh.sockets}", b"") as proxy:
        assert refused(lambda: proxy.first(path, clusters()))[0] is grpc.StatusCode.INVALID_ARGUMENT
        with proxy.stream(path, clusters(account="local")) as call:
            next(call)


def test_secrets_on_the_aggregated_stream(mesh: Mesh, running: PilotProcess) -> None:
    wish = clusters()
    wish.type_url = SECRET_TYPE
    wish.resource_names.append("default")
    delta = discovery.DeltaDiscoveryRequest(
        node=wish.node, type_url=SECRET_TYPE, resource_names_subscribe=["ROOTCA", "default"]
    )
    with Caller(own_port(running), mesh.roots, token=mesh.signer.token()) as proxy:
        with proxy.stream(ADS + "StreamAggregatedResources", wish, clusters()) as call:
            found = {
                answer.type_url: answer
                for answer in map(discovery.DiscoveryResponse.FromString, (next(call), next(call)))
            }
        (resource,) = found[SECRET_TYPE].resources
        assert uris(Secret.FromString(resource.value).tls_certificate.certificate_chain.inline_bytes) == [WEB]
        assert found[CLUSTER_TYPE].nonce
        with proxy.stream(ADS + "DeltaAggregatedResources", delta) as call:
            names: list[str] = []
            while len(names) < 2:
                answer = discovery.DeltaDiscoveryResponse.FromString(next(call))
                names += [resource.name for resource in answer.resources]
                call.send(discovery.DeltaDiscoveryRequest(type_url=SECRET_TYPE, response_nonce=answer.nonce))
        assert sorted(names) == ["ROOTCA", "default"]
    # A node on a Unix socket of somebody else's uid table entry is somebody else.
    with Caller(f"unix:{mesh.sockets}", b"") as proxy:
        assert (
            refused(lambda: proxy.first(ADS + "StreamAggregatedResources", wish))[0] is grpc.StatusCode.INVALID_ARGUMENT
        )


def test_nothing_comes_in_the_clear(mesh: Mesh, tmp_path: Path) -> None:
    """On a port without TLS, whatever the caller has."""
    other = Mesh(tmp_path)
    flags = ("--jwks", str(tmp_path / "jwks.json"), "--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
    with pilot(tmp_path / "rules", tmp_path, "pilot", *other._authority, *flags) as running:
        target = str(running.addresses["xds"][0])
        with Caller(target, b"", token=other.signer.token()) as agent:
            assert refused(agent.certificate) == NOBODY
        # Who shows nothing is served as without an authority, and that has no secrets.
        wish = clusters()
        wish.type_url = SECRET_TYPE
        wish.resource_names.append("default")
        with Caller(target, b"") as proxy, proxy.stream(ADS + "StreamAggregatedResources", wish) as call:
            answer = discovery.DiscoveryResponse.FromString(next(call))
            assert not answer.resources
            assert [each.resource_name.name for each in answer.resource_errors] == ["default"]
    assert other.refusals() == ["in the clear, over a network"]


def test_what_it_says_of_itself(mesh: Mesh, running: PilotProcess) -> None:
    page = running.json("/debug/authority")
    assert page["trust_domain"] == TRUST_DOMAIN
    assert page["addresses"] == [own_port(running), f"unix:{mesh.sockets}"]
    with Caller(own_port(running), mesh.roots) as nobody:
        assert refused(nobody.certificate) == NOBODY
    with Caller(own_port(running), mesh.roots, token=mesh.signer.token()) as agent:
        assert agent.certificate()
        assert agent.secret("ROOTCA").name == "ROOTCA"
    metrics = running.page("/metrics")
    for name in ("issued_total", 'refused_total{reason="unproven"}', 'calls_total{status="16"}', "secret_pushes_total"):
        lines = [each for each in metrics.splitlines() if each.startswith(f"meshproxy_authority_{name}")]
        assert lines, name
        assert sum(float(line.rpartition(" ")[2]) for line in lines) > 0.0, lines
    for text in (running.page("/debug/authority"), running.output.read_text(), mesh.audit.read_text()):
        assert "PRIVATE KEY" not in text
        assert "eyJ" not in text  # no token
        assert "a passphrase of some length" not in text
    assert core_limit(running.process.pid) == "0"


@pytest.mark.parametrize("start", [start_envoy, start_meshproxy], ids=["envoy", "meshproxy"])
@pytest.mark.parametrize("over", ["tls", "unix"])
def test_a_proxy_without_an_agent(mesh: Mesh, running: PilotProcess, tmp_path: Path, start: Any, over: str) -> None:
    """Its certificate and its roots are the authority's."""
    address = own_port(running) if over == "tls" else f"unix:{mesh.sockets}"
    token = mesh.signer.token() if over == "tls" else ""
    identity = WEB if over == "tls" else f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/local"
    with Caller(own_port(running), mesh.roots, token=mesh.signer.token()) as agent:
        mine = (agent.certificate()[0], key_pem(KEY))
    with start(bare_proxy(mesh, address, token)) as proxy:
        port = proxy.listener_ports()["in"]
        shown = wait_for(lambda: answered(port, mesh.roots, tmp_path, mine), "an answer", DEADLINE_S)
        assert uris(ssl.DER_cert_to_PEM_cert(shown).encode()) == [identity]
        with pytest.raises(OSError):
            handshake(port, mesh.roots, tmp_path, None)
        foreign = issue("web", issue("other", ca=True), names=uri(WEB))
        with pytest.raises(OSError):
            handshake(port, mesh.roots, tmp_path, (foreign.pem, foreign.key_pem))


@pytest.mark.long
@pytest.mark.parametrize("start", [start_envoy, start_meshproxy], ids=["envoy", "meshproxy"])
def test_lives_of_seconds(tmp_path: Path, start: Any) -> None:
    """Leaves, the pilot's own certificate and the root are renewed under a proxy that goes on all the while."""
    mesh = Mesh(tmp_path)
    times = ("--certificate-lifetime", "4s", "--longest-certificate-lifetime", "4s", "--root-overlap", "4s")
    with mesh.pilot(*times) as running, start(bare_proxy(mesh, f"unix:{mesh.sockets}", "")) as proxy:
        port = proxy.listener_ports()["in"]
        shown: dict[str, bytes] = {}
        issuers: set[str] = set()
        mesh.command("rotate")

        def renewed() -> bool:
            with Caller(f"unix:{mesh.sockets}", b"") as agent:
                leaf, roots = agent.certificate()
            der = handshake(port, roots, tmp_path, (leaf, key_pem(KEY)))
            made = x509.load_der_x509_certificate(der)
            shown[f"{made.serial_number:x}"] = der
            issuers.add(repr(made.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier))
            return len(shown) > 3 and len(issuers) == 2

        wait_for(lambda: _happened(lambda: _handshake_of(mesh, port, tmp_path)), "the proxy", DEADLINE_S)
        wait_for(renewed, "four certificates of two roots", 60.0)
        # Its own port: what it shows is of the new root by now, and those who trust both take it.
        roots = mesh.command("roots")
        wait_for(lambda: _happened(lambda: _own_certificate(running, roots)), "the pilot's own", DEADLINE_S)


def _handshake_of(mesh: Mesh, port: int, folder: Path) -> bytes:
    with Caller(f"unix:{mesh.sockets}", b"") as agent:
        leaf, roots = agent.certificate()
    return handshake(port, roots, folder, (leaf, key_pem(KEY)))


def _own_certificate(running: PilotProcess, roots: bytes) -> bytes:
    host, _, port = own_port(running).rpartition(":")
    context = ssl.create_default_context(cadata=roots.decode())
    with (
        socket.create_connection((host, int(port)), DEADLINE_S) as raw,
        context.wrap_socket(raw, server_hostname=NAME) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def _happened(what: Any) -> bool:
    try:
        return bool(what())
    except OSError:
        return False
