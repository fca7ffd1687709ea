"""The real Envoy takes every resource of every sample rule, and of a mesh that uses nearly every field; so do our own
checks, and our own builders."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToJson

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import check_fields
from meshproxy.config.validate import validate_message
from meshproxy.filters import builtin
from meshproxy.pilot.proxy import EXPLICIT
from meshproxy.pilot.snapshot import Proxy, Snapshot
from tests.pilot.resources import test_upstream_tls as upstream_tls
from tests.pilot.resources.golden import EDGE, SAMPLES, SERVICES, WITH_AGENT
from tests.pilot.resources.static_form import MESSAGES, messages, static_bootstrap, with_secrets
from tests.pilot.resources.support import SHOP_PAGE, mesh_of, sample, snapshot_of
from tests.pilot.resources.test_listeners import EDGES, OVERLAPPING, TCP
from tests.support.proxy import envoy_binary
from tests.tls.certificates import issue, revocation_list

HERE = Path(__file__).parent
EVERYTHING = "\n---\n".join(
    path.read_text()
    for path in [HERE / "everything_services.yaml", *sorted((HERE.parent / "documents/full").iterdir())]
)
WEB = replace(SHOP_PAGE, labels=(("app", "web"),), ips=("10.0.0.8",))
ENVOY = replace(SHOP_PAGE, metadata=(("product", "envoy"),))
SAMPLE_RULES = sample(SERVICES, *SAMPLES)
# Rules that claim one thing, and TLS whose server name is the host of each request.
ORIGINATION = upstream_tls.SERVICE + upstream_tls.RULE % "mode: SIMPLE"
OVERLAPS = "---".join([*TCP.split("---")[:2], OVERLAPPING, EDGES, ORIGINATION])
CASES = [
    ("samples", SAMPLE_RULES, ENVOY),
    ("samples", SAMPLE_RULES, replace(ENVOY, mode=EXPLICIT)),
    ("samples", SAMPLE_RULES, EDGE),
    ("overlaps", OVERLAPS, ENVOY),
    ("overlaps", OVERLAPS, EDGE),
    ("everything", EVERYTHING, replace(WEB, metadata=())),
    ("everything", EVERYTHING, replace(WEB, mode=EXPLICIT, metadata=())),
    ("everything", EVERYTHING, EDGE),
    ("samples with an agent", SAMPLE_RULES, replace(ENVOY, metadata=WITH_AGENT[:1])),
    ("samples with an agent", SAMPLE_RULES, replace(ENVOY, mode=EXPLICIT, metadata=WITH_AGENT[:1])),
    ("everything with an agent", EVERYTHING, replace(WEB, metadata=WITH_AGENT)),
    ("everything with an agent", EVERYTHING, replace(WEB, mode=EXPLICIT, metadata=WITH_AGENT)),
    ("everything without an agent", EVERYTHING, replace(EDGE, metadata=())),
]
NAMES = [f"{name}-{proxy.mode}" for name, _, proxy in CASES]


def static_file(text: str, proxy: Proxy, directory: Path) -> Path:
    """The snapshot as a bootstrap, with certificates where the documents name some."""
    authority = issue("authority", ca=True)
    shop = issue("shop.example", authority)
    files = {"shop.pem": shop.pem, "shop.key": shop.key_pem, "crl.pem": revocation_list(authority)}
    files |= {"c.pem": shop.pem, "k.pem": shop.key_pem, "ca.pem": authority.pem}
    for name, data in files.items():
        (directory / name).write_bytes(data)
        text = text.replace(f"/etc/meshproxy/certs/{name}", f"{directory}/{name}").replace(
            f" /{name}", f" {directory}/{name}"
        )
    path = directory / "bootstrap.json"
    snapshot = snapshot_of(mesh_of(text), proxy)
    bootstrap = with_secrets(static_bootstrap(snapshot), directory / "c.pem", directory / "k.pem", directory / "ca.pem")
    path.write_text(MessageToJson(bootstrap, preserving_proto_field_name=True))
    return path


@pytest.mark.parametrize(("text", "proxy"), [case[1:] for case in CASES], ids=NAMES)
def test_envoy_takes_it(text: str, proxy: Proxy, tmp_path: Path) -> None:
    command = [envoy_binary(), "--mode", "validate", "--log-level", "error"]
    done = subprocess.run(
        [*command, "-c", str(static_file(text, proxy, tmp_path))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("text", "proxy"), [case[1:] for case in CASES], ids=NAMES)
def test_we_take_it(text: str, proxy: Proxy, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "meshproxy", "validate"]
    done = subprocess.run(
        [*command, "-c", str(static_file(text, proxy, tmp_path))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize(("text", "proxy"), [case[1:] for case in CASES], ids=NAMES)
def test_every_resource_follows_the_rules_of_the_api_and_of_our_tables(text: str, proxy: Proxy) -> None:
    assert builtin.__name__  # it has registered the types of filters
    assert problems_of(snapshot_of(mesh_of(text), proxy)) == []


def problems_of(snapshot: Snapshot) -> list[str]:
    errors = ConfigErrors()
    for type_url in MESSAGES:
        for name, message in messages(snapshot, type_url).items():
            validate_message(message, name, errors)
            check_fields(message, name, errors)
    return [str(error) for error in errors.sorted()]
