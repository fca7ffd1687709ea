"""examples/mesh: it is fine as it stands, and is rendered in its numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from meshproxy.cli import main
from meshproxy.demo.rules import (
    PLACES,
    ExampleError,
    Sidecar,
    bootstrap,
    read_canary,
    read_security,
    read_services,
    with_canary_share,
    with_ports,
)
from meshproxy.pilot.documents.document import parse_document, split_documents

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "mesh"


def test_the_demonstration_shows_the_example_that_people_read() -> None:
    assert read_canary("") == (EXAMPLE / "canary.yaml").read_text()
    assert read_services() == (EXAMPLE / "services.yaml").read_text()
    assert read_security() == (EXAMPLE / "security.yaml").read_text()


def test_the_documents_are_fine_and_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("services", "security", "canary")
    files = [argument for name in names for argument in ("-f", str(EXAMPLE / f"{name}.yaml"))]
    assert main(["rules", "validate", *files]) == 0
    assert capsys.readouterr().err == ""


def test_the_bootstrap_of_a_sidecar_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "-c", str(EXAMPLE / "sidecar.yaml")]) == 0, capsys.readouterr()


def test_only_ports_and_weights_are_replaced() -> None:
    services, canary = read_services(), read_canary("")
    assert with_ports(services, {place.port: place.port for place in PLACES}) == services
    assert with_canary_share(canary, 5) == canary
    changed = with_canary_share(canary, 50).splitlines()
    assert [line.strip() for line in changed if line not in canary.splitlines()] == ["weight: 50", "weight: 50"]


def test_the_places_are_those_of_the_example() -> None:
    found = {}
    for raw in split_documents("services.yaml", read_services()):
        document = parse_document(raw).document
        assert document is not None
        if document.identity.kind == "WorkloadEntry":
            found[document.name] = (
                document.spec.address,
                dict(document.spec.ports)["http"],
                dict(document.spec.labels),
            )
    assert found == {
        place.name: (
            place.address,
            place.port,
            {"app": "shop", "version": place.version},
        )
        for place in PLACES
    }


def test_a_sidecar_says_who_it_is() -> None:
    sidecar = Sidecar("v1-a", "127.0.0.11", "shop", {"a": "b"}, "/run/pilot.sock", "/run/agent.sock", {8111: 9})
    config = yaml.safe_load(bootstrap(sidecar))
    assert config["node"]["id"] == "sidecar~127.0.0.11~v1-a.demo~demo.svc.cluster.local"
    assert config["node"]["metadata"] == {
        "INTERCEPTION_MODE": "NONE",
        "SERVICE_ACCOUNT": "shop",
        "LABELS": {"a": "b"},
        "meshproxy.io/ports": {"80": 0},
        "meshproxy.io/applications": {"8111": "127.0.0.1:9"},
        "meshproxy.io/sds-cluster": "agent",
    }
    assert {each["name"]: path_of(each) for each in config["static_resources"]["clusters"]} == {
        "pilot": "/run/pilot.sock",
        "agent": "/run/agent.sock",
    }


def path_of(cluster: dict[str, Any]) -> str:
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    return str(endpoint["address"]["pipe"]["path"])


def test_a_file_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="cannot read"):
        read_canary(str(tmp_path / "missing.yaml"))
    with pytest.raises(ExampleError, match="ports"):
        with_ports("ports: {http: 80}", {8111: 0})
    with pytest.raises(ExampleError, match="weight"):
        with_canary_share("subset: v1}\n  weight: 95", 50)
