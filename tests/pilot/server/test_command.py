"""`meshproxy pilot` as a process: its flags, its rules, its end."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from meshproxy.cli import main
from tests.pilot.processes import DEADLINE_S, bootstrap, free_port, pilot
from tests.support.polling import wait_for
from tests.support.proxy import ProxyProcess, envoy_binary

SERVICE = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: app, namespace: shop}
spec:
  hosts: [app.shop.svc.cluster.local]
  ports: [{number: %(port)d, name: http, protocol: HTTP}]
  resolution: STATIC
  location: MESH_INTERNAL
  endpoints:
    - {address: 127.0.0.1, ports: {http: 1}}
"""
ANSWER = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: app, namespace: shop}
spec:
  hosts: [app]
  http:
    - directResponse: {status: 200, body: {string: %(body)s}}
"""


def asked(port: int) -> str:
    """What the service answers at a port of the sidecar."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"host": "app.shop.svc.cluster.local"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


def test_envoy_follows_rules_from_pilot_to_pilot(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.mkdir()
    port = free_port()
    (rules / "service.yaml").write_text(SERVICE % {"port": port})
    (rules / "answer.yaml").write_text(ANSWER % {"body": "first"})
    argv = [envoy_binary(), "--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]
    with (
        pilot(rules, tmp_path, "one") as one,
        pilot(rules, tmp_path, "two") as two,
        ProxyProcess(argv, bootstrap(one.port, two.port)) as envoy,
    ):
        assert asked(port) == "first"
        # A rule changes.
        (rules / "answer.yaml").write_text(ANSWER % {"body": "second"})
        wait_for(lambda: asked(port) == "second", "the new answer", DEADLINE_S)
        wait_for(lambda: one.rules()["revision"] == two.rules()["revision"], "both pilots", DEADLINE_S)
        # A rule is wrong: the last good one stays, and the reason is told.
        (rules / "answer.yaml").write_text(ANSWER.replace("status: 200", "status: 2000") % {"body": "third"})
        (refused,) = wait_for(lambda: one.rules()["refused"], "the refusal", DEADLINE_S)
        assert refused["an_earlier_version_is_in_force"]
        assert "status" in refused["problems"][0]
        assert asked(port) == "second"
        # The pilot that serves it ends: it goes on with the other, which has the same, and follows that one.
        serving, other = (one, two) if one.json("/debug/clients") else (two, one)
        assert serving.stop() == 0
        (shown,) = wait_for(
            lambda: [each for each in other.json("/debug/clients") if each["id"]], "the client to come", DEADLINE_S
        )
        assert shown["id"] == "sidecar~127.0.0.1~client.shop~shop.svc.cluster.local"
        assert asked(port) == "second"
        (rules / "answer.yaml").write_text(ANSWER % {"body": "fourth"})
        wait_for(lambda: asked(port) == "fourth", "the last answer", DEADLINE_S)
        assert other.rules()["refused"] == other.json("/debug/rejections")["clients"] == []
        assert envoy.stats("control_plane.connected_state") == {"control_plane.connected_state": 1}


def test_it_ends_soon_without_clients(tmp_path: Path) -> None:
    with pilot(tmp_path, tmp_path, "one", "--drain-time-s", "60") as alone:
        began = time.monotonic()
        assert alone.stop() == 0
        assert time.monotonic() - began < 30.0  # it has not waited for anybody


@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        ((), 2, "--rules, --etcd: one of them says where the documents are"),
        (("--rules", "RULES", "--etcd", "127.0.0.1:1"), 2, "--rules, --etcd: one of them"),
        (("--rules", "RULES", "--tls-cert", "x"), 2, "--tls-cert, --tls-key: both are needed for TLS"),
        (("--rules", "RULES", "--tls-ca", "x"), 2, "--tls-cert, --tls-key: both are needed for TLS"),
        (("--rules", "RULES", "--http", "nowhere"), 2, "--http: 'nowhere' is not an IP address and a port"),
        (("--rules", "RULES", "--tls-cert", "no.pem", "--tls-key", "no.pem"), 1, "no.pem: No such file or directory"),
        (("--rules", "RULES", "--listen", "192.0.2.1:1"), 1, "192.0.2.1:1: nobody can listen on this address"),
        (("--rules", "RULES", "--listen", "127.0.0.1:0", "--http", "192.0.2.1:1"), 1, "192.0.2.1:1: "),
        (("--rules", "RULES/nothing", "--listen", "127.0.0.1:0"), 1, "nothing"),
        (("--rules", "RULES", "--log-level", "loud"), 2, "unknown log level 'loud'"),
        (("--rules", "RULES", "--jwks", "x"), 2, "--jwks: is nothing without --authority"),
        (("--rules", "RULES", "--tls-from-authority", "x"), 2, "--tls-from-authority: is nothing without --authority"),
        (("--rules", "RULES", "--authority", "x", "--jwks", "x"), 2, "--jwks: needs --jwt-issuer"),
        (
            ("--rules", "RULES", "--authority", "x", "--authority-listen", "127.0.0.1:0"),
            2,
            "--authority-listen: needs --tls-from-authority, or --tls-cert and --tls-key",
        ),
        (
            ("--rules", "RULES", "--authority", "x", "--authority-listen", "pilot:0", "--tls-from-authority", "x"),
            2,
            "--authority-listen: 'pilot:0' is not an IP address and a port",
        ),
        (
            ("--rules", "RULES", "--authority", "x", "--tls-from-authority", "x", "--tls-cert", "x", "--tls-key", "x"),
            2,
            "--tls-from-authority: stands in the place of --tls-cert, --tls-key and --tls-ca",
        ),
        (
            ("--rules", "RULES", "--authority", "x", "--trust-domain-alias", "a/b"),
            2,
            "--trust-domain-alias: 'a/b' is no trust domain",
        ),
        (
            ("--rules", "RULES", "--authority", "x", "--trust-domain-alias", ""),
            2,
            "--trust-domain-alias: '' is no trust domain",
        ),
    ],
)
def test_what_keeps_it_from_serving_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], code: int, reason: str
) -> None:
    given = [flag.replace("RULES", str(tmp_path)) for flag in flags]
    if "--http" not in given:
        given += ["--http", "127.0.0.1:0"]
    assert main(["pilot", *given]) == code
    assert reason in capsys.readouterr().err


def test_without_an_authority_its_packages_are_not_needed(tmp_path: Path) -> None:
    """`meshproxy[authority]`."""
    code = (
        "import sys; from meshproxy.cli import main; import meshproxy.pilot.command; "
        f"main(['pilot', '--rules', {str(tmp_path / 'none')!r}, '--listen', '127.0.0.1:0', '--http', '127.0.0.1:0']); "
        "print([name for name in ('cryptography', 'jwt') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, timeout=60)
    assert run.stdout == b"[]\n"
