"""The image and the manifests: judged by hadolint and by Kubernetes' own schemas; and what they start, started."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import meshproxy.filters.builtin  # noqa: F401  their messages
from meshproxy import cli
from meshproxy.agent.settings import AgentSettings, agent_settings
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.subscription import CLUSTER_TYPE, LISTENER_TYPE
from meshproxy.pilot.command import pilot_settings
from meshproxy.pilot.mesh.rulebook import RuleBook
from meshproxy.pilot.server.pilot import PilotSettings
from meshproxy.pilot.sources.directory import DirectorySource
from meshproxy.server.bootstrap import read_bootstrap
from meshproxy.server.options import Options
from tests.istio.pods import Pod, ask, needed
from tests.pilot.authority.fakes import Signer, jwks
from tests.pilot.resources.static_form import messages
from tests.pilot.resources.support import mesh_of, snapshot_of
from tests.pilot.resources.test_inbound import CHAINS, SERVER, chains
from tests.support.polling import wait_for

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "examples" / "kubernetes"
UID = 1337
# The first with native sidecars that are on by default, and the newest that there are schemas of.
VERSIONS = ("1.29", ".".join(kubernetes_validate.latest_version().split(".")[:2]))
FACTS = {
    "POD_IP": "127.0.0.1",
    "POD_NAME": "client-1",
    "POD_NAMESPACE": "shop",
    "SERVICE_ACCOUNT": "client",
    "APP": "client",
    "VERSION": "v1",
}


def manifests() -> list[Any]:
    """All objects, those of lists one by one."""
    found: list[Any] = []
    for name in ("etcd.yaml", "pilot.yaml", "application.yaml"):
        for document in yaml.safe_load_all((KUBERNETES / name).read_text()):
            found += document["items"] if document["kind"] == "List" else [document]
    return found


def pods() -> dict[str, Any]:
    """The pod of each deployment, and etcd's."""
    kinds = ("Deployment", "StatefulSet")
    return {each["metadata"]["name"]: each["spec"]["template"] for each in manifests() if each["kind"] in kinds}


def containers(pod: Any) -> list[Any]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: name and arguments."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


# -- the image


def test_a_linter_has_nothing_to_say_about_the_image() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_image_is_made_of_is_there_and_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [
        source.rstrip("/") for name, arguments in instructions() if name == "COPY" for source in arguments.split()[:-1]
    ]
    assert len(sources) > 4
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in sent, source


def test_the_image_runs_as_the_user_whom_the_rules_spare() -> None:
    last = [arguments for name, arguments in instructions() if name == "USER"]
    assert last == [f"{UID}:{UID}"]
    assert ("ENTRYPOINT", '["meshproxy"]') in instructions()
    intercept = (KUBERNETES / "intercept.sh").read_text()
    assert f"PROXY_UID-{UID}" in intercept
    assert f"PROXY_GID-{UID}" in intercept
    for name in ("agent", "meshproxy"):
        security = container("client", name)["securityContext"]
        assert security["runAsUser"] == security["runAsGroup"] == UID


def test_no_image_is_whatever_is_the_latest() -> None:
    named = [arguments.split()[0] for name, arguments in instructions() if name == "FROM"]
    named += [each["image"] for pod in pods().values() for each in containers(pod)]
    assert len(named) > 8
    assert all(":" in image and not image.endswith(":latest") for image in named)


def test_the_last_stage_has_no_compiler() -> None:
    lines = instructions()
    last = max(index for index, (name, _) in enumerate(lines) if name == "FROM")
    assert not re.search("gcc|apt-get|libc6-dev", str(lines[last:]))


def test_the_image_has_all_that_its_commands_need() -> None:
    """The pilot grpcio, its authority and the agent cryptography and PyJWT; and OpenSSL 3.5, which Debian 13 has."""
    text = (ROOT / "Dockerfile").read_text()
    assert text.count("[grpc,authority]'") == 2
    stages = [arguments.split()[0] for name, arguments in instructions() if name == "FROM"]
    assert all("trixie" in each for each in stages)


# -- the manifests


@pytest.mark.parametrize("version", VERSIONS)
def test_they_follow_the_schemas(version: str) -> None:
    assert len(manifests()) >= 14
    for manifest in manifests():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_schema_refuses_what_is_wrong() -> None:
    wrong = next(each for each in manifests() if each["kind"] == "Deployment")
    wrong["spec"]["template"]["spec"]["initContainer"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_no_container_may_more_than_it_must() -> None:
    for pod in pods().values():
        assert pod["spec"].get("automountServiceAccountToken", False) is False
        for container in containers(pod):
            security = pod["spec"].get("securityContext", {}) | container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"]["drop"] == ["ALL"]
            added = security["capabilities"].get("add", [])
            assert security["runAsNonRoot"] is (not added)
            assert added == (["NET_ADMIN", "NET_RAW"] if container["name"] == "intercept" else [])


def test_the_rules_come_before_the_agent_the_sidecar_and_the_application() -> None:
    for name in ("client", "reviews-v1", "reviews-v2"):
        first, *sidecars = pods()[name]["spec"]["initContainers"]
        assert [each["name"] for each in (first, *sidecars)] == ["intercept", "agent", "meshproxy"]
        assert "restartPolicy" not in first
        for each in sidecars:
            assert each["restartPolicy"] == "Always"
            assert "startupProbe" in each


def test_the_flags_are_flags() -> None:
    """argparse exits where one is unknown, and takes no abbreviations for `run`."""
    asked = [container("pilot", "pilot")["args"], arguments("agent"), arguments("meshproxy")]
    assert [cli._parser().parse_args(each).command for each in asked] == ["pilot", "agent", "run"]


def test_a_token_is_short_and_for_nobody_but_the_pilot() -> None:
    for name, account in (("client", "client"), ("reviews-v1", "reviews"), ("reviews-v2", "reviews")):
        pod = pods()[name]["spec"]
        assert pod["serviceAccountName"] == account
        volumes = {each["name"]: each for each in pod["volumes"]}
        ((source,),) = [each["projected"]["sources"] for each in volumes.values() if "projected" in each]
        assert source["serviceAccountToken"] == {"path": "token", "audience": "istio-ca", "expirationSeconds": 600}
        assert volumes["agent"]["emptyDir"]["medium"] == "Memory"
        holders = {
            each["name"]: {one["name"] for one in each.get("volumeMounts", ())} for each in containers(pods()[name])
        }
        assert {each for each, mounts in holders.items() if "token" in mounts} == {"agent", "meshproxy"}
        assert {each for each, mounts in holders.items() if "agent" in mounts} == {"agent", "meshproxy"}


def test_who_has_which_socket_name_audience_and_trust_domain() -> None:
    """What one manifest says is what the other expects."""
    agent, pilot = agent_flags(), pilot_flags()
    bootstrap = yaml.safe_load((KUBERNETES / "bootstrap.yaml").read_text())
    clusters = {each["name"]: each for each in bootstrap["static_resources"]["clusters"]}
    endpoints = {
        name: each["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        for name, each in clusters.items()
    }
    assert endpoints["agent"] == {"pipe": {"path": agent.sds_socket}}
    place = endpoints["pilot"]["socket_address"]
    assert (agent.ca.host, agent.ca.port) == (place["address"], place["port_value"])
    assert pilot.proof is not None
    assert pilot.proof.names == (place["address"],)
    assert [each.port for each in pilot.proof.listen] == [place["port_value"]]
    assert pilot.listen == ()
    assert clusters["pilot"]["transport_socket"]["typed_config"]["sni"] == place["address"]
    assert agent.identity.uri == "spiffe://cluster.local/ns/shop/sa/client"
    assert pilot.mesh.trust_domain == agent.identity.trust_domain
    assert pilot.proof.audiences == ("istio-ca",)
    metadata = json.loads(
        dict(each.removeprefix("--").split("=", 1) for each in arguments("meshproxy")[1:])["config-yaml"]
    )
    assert metadata["node"]["metadata"]["meshproxy.io/sds-cluster"] in clusters


def agent_flags() -> AgentSettings:
    return agent_settings(cli._parser().parse_args(arguments("agent")))


def pilot_flags() -> PilotSettings:
    return pilot_settings(cli._parser().parse_args(container("pilot", "pilot")["args"]))


def test_the_example_rules_are_taken() -> None:
    source = DirectorySource(str(KUBERNETES / "rules.yaml"))
    rules = RuleBook()
    rules.update(asyncio.run(source.read()))
    assert rules.rejections == ()
    assert rules.warnings == ()


def test_the_rules_have_everybody_prove_who_it_is_and_let_in_the_client_alone() -> None:
    """Pods are found by DNS, which the pilot does not ask: what they take comes in by the chains for all ports."""
    mesh = mesh_of((KUBERNETES / "rules.yaml").read_text())
    reviews = replace(SERVER, namespace="shop", labels=(("app", "reviews"), ("version", "v1")))
    listener = messages(snapshot_of(mesh, reviews), LISTENER_TYPE)["virtualInbound"]
    assert chains(listener, "") == CHAINS["STRICT"][""]
    doors = [each for each in listener.filter_chains if not each.filter_chain_match.HasField("destination_port")]
    http, tcp = (str(each.filters[0]) + str(each.filters[-1]) for each in doors)
    assert "envoy.filters.http.rbac" in http
    assert "cluster.local/ns/shop/sa/client" in http
    assert "envoy.filters.network.rbac" in tcp  # what is no request has no method, and is let in from nobody
    assert "/ns/" not in tcp
    client = replace(reviews, labels=(("app", "client"), ("version", "v1")))
    clusters = messages(snapshot_of(mesh, client), CLUSTER_TYPE)
    for name in ("v1", "v2"):
        asked = str(clusters[f"outbound|9080|{name}|reviews.shop.svc.cluster.local"])
        assert "spiffe://cluster.local/ns/shop/sa/reviews" in asked


def test_the_bootstrap_is_taken(tmp_path: Path) -> None:
    errors = ConfigErrors()
    flags = dict(each.removeprefix("--").split("=", 1) for each in arguments("meshproxy")[1:])
    options = Options(
        config_path=bootstrap_in(tmp_path, {"/var/run/secrets/mesh/token": "one"}),
        config_yaml=flags["config-yaml"],
        service_node=flags["service-node"],
    )
    bootstrap = read_bootstrap(options, errors)
    assert bootstrap is not None
    assert str(errors) == ""
    assert errors.warnings == []
    assert bootstrap.node.metadata["LABELS"]["app"] == "client"
    assert bootstrap.node.id == "sidecar~127.0.0.1~client-1.shop~shop.svc.cluster.local"


def bootstrap_in(folder: Path, files: dict[str, str]) -> str:
    """The example's, with files in the folder in the place of those which it names."""
    text = (KUBERNETES / "bootstrap.yaml").read_text()
    for name, content in files.items():
        assert name in text
        place = folder / Path(name).name
        place.write_text(content)
        text = text.replace(name, str(place))
    (folder / "bootstrap.yaml").write_text(text)
    return str(folder / "bootstrap.yaml")


def container(pod: str, name: str) -> Any:
    return next(each for each in containers(pods()[pod]) if each["name"] == name)


def arguments(name: str) -> list[str]:
    """Of the client's agent or sidecar, with what Kubernetes puts in place of variables."""
    found = container("client", name)
    assert {each["name"] for each in found["env"]} <= set(FACTS)
    environment = {each["name"]: FACTS[each["name"]] for each in found["env"]}
    return [re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], each) for each in found["args"]]


# -- what they start


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = Pod(tmp_path / "pod")
    made.do(needed("ip"), "link", "set", "lo", "up")
    yield made
    made.close()


class Node:
    """What kubelet does of the manifests: it starts containers, in one network namespace, since there is no DNS, with
    files of `folder` in the place of volumes. All hosts are at 127.0.0.1; the pilot's certificate names that too."""

    def __init__(self, pod: Pod, folder: Path) -> None:
        self._pod = pod
        self.folder = folder
        self._places: dict[str, str] = {
            "https://etcd.meshproxy-system.svc:2379": "https://127.0.0.1:2379",
            "--ca=pilot.meshproxy-system.svc.cluster.local:": "--ca=127.0.0.1:",
            "--tls-from-authority=": "--tls-from-authority=127.0.0.1,",
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def put(self, place: str, file: Path | str) -> None:
        """In the place of what arguments name."""
        self._places[place] = str(file)

    def argv(self, container: Any, arguments: list[str]) -> list[str]:
        for place, here in self._places.items():
            arguments = [each.replace(place, here) for each in arguments]
        program = container.get("command", [sys.executable, "-m", "meshproxy"])
        return [needed(program[0]) if program == ["etcd"] else program[0], *program[1:], *arguments]

    def environment(self, container: Any) -> dict[str, str]:
        names = {each["name"]: each.get("value", FACTS.get(each["name"], "")) for each in container.get("env", ())}
        return os.environ | {"PYTHONPATH": str(ROOT)} | {name: self._places.get(v, v) for name, v in names.items()}

    def start(self, container: Any, arguments: list[str]) -> subprocess.Popen[bytes]:
        command = self._pod.inside(*self.argv(container, arguments))
        self._started.append(subprocess.Popen(command, env=self.environment(container)))
        return self._started[-1]

    def close(self) -> None:
        for process in reversed(self._started):
            process.kill()
            process.wait()


@pytest.fixture
def node(pod: Pod, tmp_path: Path) -> Iterator[Node]:
    made = Node(pod, tmp_path)
    yield made
    made.close()


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are root's")
def test_the_sidecar_is_ready_under_the_pilot_and_drains(pod: Pod, node: Node) -> None:
    """With the arguments of the manifests, their order and their probes: etcd, the pilot, the agent, the sidecar."""
    folder = node.folder
    subprocess.run([KUBERNETES / "etcd-tls.sh", folder / "tls"], check=True, capture_output=True)
    etcd, pilot = container("etcd", "etcd"), container("pilot", "pilot")
    node.put("/etc/etcd/tls", folder / "tls" / "etcd")
    node.put("/var/lib/etcd", folder)
    node.start(etcd, etcd["args"])
    assert ready(pod, etcd["startupProbe"]["httpGet"], {"health": 2381})

    signer, passphrase = Signer(), folder / "passphrase"
    passphrase.write_text("of some length, by chance")
    passphrase.chmod(0o440)
    (folder / "jwks.json").write_bytes(jwks(signer))
    node.put("/etc/meshproxy/rules", KUBERNETES / "rules.yaml")
    node.put("/etc/meshproxy/etcd", folder / "tls" / "pilot")
    node.put("/etc/meshproxy/authority/passphrase", passphrase)
    node.put("https://kubernetes.default.svc/openid/v1/jwks", folder / "jwks.json")
    node.start(pilot, pilot["args"])
    program, *rest = pilot["readinessProbe"]["exec"]["command"]
    assert program == "python"
    probe = shlex.join([sys.executable, *rest])
    wait_for(lambda: pod.do("sh", "-c", f"{probe} 2>/dev/null && echo yes || true") == "yes\n", "the pilot", 60.0)

    store = [each for each in pilot["args"] if each.startswith(("--authority=", "--etcd"))]
    roots = pod.inside(*node.argv(pilot, ["authority", "roots", *store]))
    (folder / "root.pem").write_bytes(subprocess.check_output(roots, env=node.environment(pilot)))
    proof = pilot_flags().proof
    assert proof is not None
    shown = signer.token(iss=proof.issuer, aud=["istio-ca"], sub="system:serviceaccount:shop:client")
    token = {"/var/run/secrets/mesh/token": shown}
    bootstrap = bootstrap_in(folder, token)
    text = Path(bootstrap).read_text().replace("/run/mesh/agent.sock", str(folder / "agent.sock"))
    Path(bootstrap).write_text(text.replace("address: pilot.meshproxy-system.svc.cluster.local", "address: 127.0.0.1"))
    node.put("/etc/meshproxy/roots", folder)
    node.put("/var/run/secrets/mesh", folder)
    node.put("/run/mesh", folder)
    node.put("/etc/meshproxy/bootstrap.yaml", bootstrap)
    node.start(container("client", "agent"), arguments("agent"))
    assert ready(pod, container("client", "agent")["startupProbe"]["httpGet"], {"agent": 15020})

    sidecar = container("client", "meshproxy")
    running = node.start(sidecar, arguments("meshproxy"))
    assert ready(pod, sidecar["startupProbe"]["httpGet"], {"health": 15021})
    status, _, metrics = ask(pod, "http://127.0.0.1:15090/stats/prometheus")
    assert status == 200
    assert re.search(r"envoy_cluster_manager_cds_update_success\S* [1-9]", metrics)
    names = {each["name"] for each in admin(pod, "listeners?format=json")["listener_statuses"]}
    assert {"health", "metrics", "virtualInbound", "virtualOutbound"} <= names
    identities = [
        name["uri"]
        for each in admin(pod, "certs")["certificates"]
        for one in each.get("cert_chain", ())
        for name in one["subject_alt_names"]
    ]
    assert "spiffe://cluster.local/ns/shop/sa/client" in identities
    program, *rest = sidecar["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "python"
    pod.do(sys.executable, *rest)
    running.terminate()
    assert running.wait(30) == 0


def admin(pod: Pod, path: str) -> Any:
    return json.loads(pod.do(needed("curl"), "-s", f"http://127.0.0.1:15000/{path}"))


def ready(pod: Pod, probe: Any, ports: dict[str, int]) -> bool:
    """As kubelet finds out."""
    url = f"http://127.0.0.1:{ports[probe['port']]}{probe['path']}"
    command = shlex.join([needed("curl"), "-s", "-o", "/dev/null", "-w", "%{http_code}", url])
    return bool(wait_for(lambda: pod.do("sh", "-c", f"{command} || true") == "200", url, 60.0))
