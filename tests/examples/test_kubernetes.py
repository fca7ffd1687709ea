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
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import meshproxy.filters.builtin  # noqa: F401  their messages
from meshproxy.config.errors import ConfigErrors
from meshproxy.pilot.mesh.rulebook import RuleBook
from meshproxy.pilot.sources.directory import DirectorySource
from meshproxy.server.bootstrap import read_bootstrap
from meshproxy.server.options import Options
from tests.istio.pods import Pod, ask, needed
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
    "SERVICE_ACCOUNT": "default",
    "APP": "client",
    "VERSION": "v1",
}


def manifests() -> list[Any]:
    """All objects, those of lists one by one."""
    found: list[Any] = []
    for name in ("pilot.yaml", "application.yaml"):
        for document in yaml.safe_load_all((KUBERNETES / name).read_text()):
            found += document["items"] if document["kind"] == "List" else [document]
    return found


def pods() -> dict[str, Any]:
    """The pod of each deployment."""
    return {each["metadata"]["name"]: each["spec"]["template"] for each in manifests() if each["kind"] == "Deployment"}


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
    (proxy,) = [each for each in containers(pods()["client"]) if each["name"] == "meshproxy"]
    assert proxy["securityContext"]["runAsUser"] == proxy["securityContext"]["runAsGroup"] == UID


def test_no_image_is_whatever_is_the_latest() -> None:
    named = [arguments.split()[0] for name, arguments in instructions() if name == "FROM"]
    named += [container["image"] for pod in pods().values() for container in containers(pod)]
    assert len(named) > 8
    assert all(":" in image and not image.endswith(":latest") for image in named)


def test_the_last_stage_has_no_compiler() -> None:
    lines = instructions()
    last = max(index for index, (name, _) in enumerate(lines) if name == "FROM")
    assert not re.search("gcc|apt-get|libc6-dev", str(lines[last:]))


# -- the manifests


@pytest.mark.parametrize("version", VERSIONS)
def test_they_follow_the_schemas(version: str) -> None:
    assert len(manifests()) >= 9
    for manifest in manifests():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_a_schema_refuses_what_is_wrong() -> None:
    wrong = next(each for each in manifests() if each["kind"] == "Deployment")
    wrong["spec"]["template"]["spec"]["initContainer"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_no_container_may_more_than_it_must() -> None:
    for pod in pods().values():
        for container in containers(pod):
            security = pod["spec"].get("securityContext", {}) | container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"]["drop"] == ["ALL"]
            added = security["capabilities"].get("add", [])
            assert security["runAsNonRoot"] is (not added)
            assert added == (["NET_ADMIN", "NET_RAW"] if container["name"] == "intercept" else [])


def test_the_rules_come_before_the_sidecar_which_comes_before_the_application() -> None:
    for name, pod in pods().items():
        if name != "pilot":
            first, second = pod["spec"]["initContainers"]
            assert (first["name"], second["name"]) == ("intercept", "meshproxy")
            assert "restartPolicy" not in first
            assert second["restartPolicy"] == "Always"
            assert "startupProbe" in second


def test_the_example_rules_are_taken() -> None:
    source = DirectorySource(str(KUBERNETES / "rules.yaml"))
    rules = RuleBook()
    rules.update(asyncio.run(source.read()))
    assert rules.rejections == ()
    assert rules.warnings == ()


def test_the_bootstrap_is_taken() -> None:
    errors = ConfigErrors()
    arguments = dict(each.removeprefix("--").split("=", 1) for each in sidecar_arguments()[1:])
    options = Options(
        config_path=str(KUBERNETES / "bootstrap.yaml"),
        config_yaml=arguments["config-yaml"],
        service_node=arguments["service-node"],
    )
    bootstrap = read_bootstrap(options, errors)
    assert bootstrap is not None
    assert str(errors) == ""
    assert errors.warnings == []
    assert bootstrap.node.metadata["LABELS"]["app"] == "client"
    assert bootstrap.node.id == "sidecar~127.0.0.1~client-1.shop~shop.svc.cluster.local"


def sidecar() -> Any:
    return next(each for each in containers(pods()["client"]) if each["name"] == "meshproxy")


def sidecar_arguments() -> list[str]:
    """With what Kubernetes puts in place of variables."""
    assert {each["name"] for each in sidecar()["env"]} == set(FACTS)
    return [re.sub(r"\$\((\w+)\)", lambda found: FACTS[found[1]], each) for each in sidecar()["args"]]


# -- what they start


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    made = Pod(tmp_path / "pod")
    made.do(needed("ip"), "link", "set", "lo", "up")
    yield made
    made.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces are root's")
def test_the_sidecar_is_ready_under_the_pilot_and_drains(pod: Pod, tmp_path: Path) -> None:
    """With the arguments of the manifests; the pilot is in the same namespace, since there is no DNS."""
    (pilot,) = pods()["pilot"]["spec"]["containers"]
    bootstrap = (KUBERNETES / "bootstrap.yaml").read_text()
    (tmp_path / "bootstrap.yaml").write_text(bootstrap.replace("pilot.meshproxy-system.svc.cluster.local", "127.0.0.1"))
    places = {
        "/etc/meshproxy/rules": str(KUBERNETES / "rules.yaml"),
        "/etc/meshproxy/bootstrap.yaml": str(tmp_path / "bootstrap.yaml"),
    }
    started = []
    try:
        for arguments in (pilot["args"], sidecar_arguments()):
            for place, here in places.items():
                arguments = [each.replace(place, here) for each in arguments]
            command = pod.inside(sys.executable, "-m", "meshproxy", *arguments)
            started.append(subprocess.Popen(command, env={"PYTHONPATH": str(ROOT)} | os.environ))
        assert ready(pod, sidecar()["startupProbe"]["httpGet"], {"health": 15021})
        assert serving(pod, pilot["readinessProbe"]["grpc"]["port"])
        status, _, metrics = ask(pod, "http://127.0.0.1:15090/stats/prometheus")
        assert status == 200
        assert re.search(r"envoy_cluster_manager_cds_update_success\S* [1-9]", metrics)
        listeners = json.loads(pod.do(needed("curl"), "-s", "http://127.0.0.1:15000/listeners?format=json"))
        names = {each["name"] for each in listeners["listener_statuses"]}
        assert {"health", "metrics", "virtualInbound", "virtualOutbound"} <= names
        program, *rest = sidecar()["lifecycle"]["preStop"]["exec"]["command"]
        assert program == "python"
        pod.do(sys.executable, *rest)
        started[1].terminate()
        assert started[1].wait(30) == 0
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()


def serving(pod: Pod, port: int) -> bool:
    """As kubelet finds out, by gRPC's health service."""
    check = (
        "import grpc; channel = grpc.insecure_channel('127.0.0.1:%d'); "
        "print(channel.unary_unary('/grpc.health.v1.Health/Check')(b'', timeout=10, wait_for_ready=True).hex())"
    )
    command = shlex.join([sys.executable, "-c", check % port])
    return bool(wait_for(lambda: pod.do("sh", "-c", f"{command} || true").strip() == "0801", "SERVING", 30.0))


def ready(pod: Pod, probe: Any, ports: dict[str, int]) -> bool:
    """As kubelet finds out."""
    url = f"http://127.0.0.1:{ports[probe['port']]}{probe['path']}"
    command = shlex.join([needed("curl"), "-s", "-o", "/dev/null", "-w", "%{http_code}", url])
    return bool(wait_for(lambda: pod.do("sh", "-c", f"{command} || true") == "200", url, 30.0))
