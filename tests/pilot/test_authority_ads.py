"""Sidecars without an agent and without certificate files: xDS and their secrets, from a pilot with an authority."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from tests.pilot.authority.test_services import KEY
from tests.pilot.authority_mesh import WEB, Caller, Mesh, own_port, sds_cluster, uris
from tests.pilot.processes import DEADLINE_S, PilotProcess, bootstrap
from tests.pilot.test_mutual_tls import KINDS, RULES, START, SecureEchoServer, ask
from tests.support.polling import wait_for
from tests.tls.certificates import Issued


class KnowingServer(SecureEchoServer):
    """`peers` are the identities of those who came."""

    def __init__(self, folder: Path, authority: Issued, shown: Issued) -> None:
        self.peers: set[str] = set()
        super().__init__(folder, authority, shown, asks=True)

    def get_request(self) -> tuple[Any, Any]:
        secured, address = super().get_request()
        der = secured.getpeercert(binary_form=True)
        names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        self.peers |= set(names.value.get_values_for_type(x509.UniformResourceIdentifier))
        return secured, address


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Mesh:
    return Mesh(tmp_path_factory.mktemp("mesh"))


@pytest.fixture(scope="module")
def running(mesh: Mesh) -> Iterator[PilotProcess]:
    with mesh.pilot() as found:
        yield found


@pytest.fixture(scope="module")
def server(mesh: Mesh, running: PilotProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KnowingServer]:
    """A service of the mesh with a certificate of its authority, which takes nobody without one."""
    token = mesh.signer.token(sub="system:serviceaccount:shop:backend")
    with Caller(own_port(running), mesh.roots, token=token) as agent:
        leaf, roots = agent.certificate()
    assert uris(leaf) == [WEB.replace("/web", "/backend")]
    shown, authority = (Issued(x509.load_pem_x509_certificate(pem), KEY) for pem in (leaf, roots))
    made = KnowingServer(tmp_path_factory.mktemp("server"), authority, shown)
    rule = RULES % {"name": "backend", "port": made.server_port, "labels": "security.istio.io/tlsMode: istio"}
    endpoint = "serviceAccount: backend, address: 127.0.0.1"
    (mesh.folder / "rules" / "all.yaml").write_text(rule.replace("address: 127.0.0.1", endpoint))
    wait_for(lambda: running.rules()["documents"] == 1, "the rule", DEADLINE_S)
    yield made
    made.close()


def configuration(mesh: Mesh, running: PilotProcess, kind: str, token: str) -> str:
    tree = yaml.safe_load(bootstrap(1, api_type=kind))
    tree["static_resources"]["clusters"] = [sds_cluster(mesh, own_port(running)) | {"name": "xds"}]
    tree["node"]["metadata"] |= {"meshproxy.io/ports": {"8000": 0}, "meshproxy.io/sds-cluster": "ads"}
    (service,) = tree["dynamic_resources"]["ads_config"]["grpc_services"]
    service["initial_metadata"] = [{"key": "authorization", "value": f"Bearer {token}"}]
    return yaml.safe_dump(tree)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_mutual_tls_with_secrets_of_the_pilot(
    mesh: Mesh, running: PilotProcess, server: KnowingServer, name: str, kind: str
) -> None:
    account = f"{name}-{kind.lower().replace('_', '-')}"
    token = mesh.signer.token(sub=f"system:serviceaccount:shop:{account}")
    with START[name](configuration(mesh, running, kind, token)) as proxy:
        assert ask(proxy, "backend") == (200, "secure GET / backend")
        assert WEB.replace("/web", f"/{account}") in server.peers
        status, dump = proxy.admin("/config_dump?include_eds")
        assert status == 200
        assert "PRIVATE KEY" not in dump
    text = running.output.read_text()
    assert "PRIVATE KEY" not in text
    assert " is refused" not in text
