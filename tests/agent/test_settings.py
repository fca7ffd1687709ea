"""What the flags come to, and what they may not be."""

from __future__ import annotations

import os

import pytest

from meshproxy.cli import main
from meshproxy.errors import ConfigError
from tests.agent.harness import settings

TCP = ("--ca", "ca.test:15012", "--ca-root-file", "root.pem", "--token-file", "token")


def test_what_they_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("POD_NAMESPACE", "shop"), ("SERVICE_ACCOUNT", "web"), ("TRUST_DOMAIN", "mesh.test")):
        monkeypatch.setenv(name, value)
    found = settings(*TCP, "--lifetime", "90m", "--allow-uid", "1337", "--http", "[::1]:15020")
    assert (found.ca.host, found.ca.port, found.ca.name, found.ca.path) == ("ca.test", 15012, "ca.test", "")
    assert found.identity.uri == "spiffe://mesh.test/ns/shop/sa/web"
    assert found.lifetime_s == 5400.0
    assert found.uids == {os.geteuid(), 1337}
    assert str(found.http) == "[::1]:15020"
    assert found.sds_socket == "./var/run/secrets/workload-spiffe-uds/socket"


def test_a_unix_socket_needs_no_more_than_itself() -> None:
    found = settings("--ca", "unix:/run/ca")
    assert (found.ca.path, found.ca.host) == ("/run/ca", "")
    assert found.lifetime_s == 0.0  # the authority's own


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        (("--ca", "ca.test:15012", "--token-file", "t"), "--ca-root-file"),
        (("--ca", "ca.test:15012", "--ca-root-file", "r"), "--token-file"),
        (("--ca", "ca.test", "--ca-root-file", "r", "--token-file", "t"), "--ca"),
        (("--ca", ":1", "--ca-root-file", "r", "--token-file", "t"), "--ca"),
        ((*TCP, "--bootstrap-cert", "c"), "--bootstrap-cert"),
        (("--ca", "unix:x", "--renew-by-certificate"), "--ca"),
        ((*TCP, "--namespace", "a/b"), "--trust-domain, --namespace"),
        ((*TCP, "--trust-domain", "Mesh"), "--trust-domain, --namespace"),
        ((*TCP, "--http", "localhost:1"), "--http"),
    ],
)
def test_what_they_may_not_be(flags: tuple[str, ...], path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as error:
        settings(*flags)
    assert str(error.value).startswith(path)
    assert main(["agent", *flags]) == 2
    assert capsys.readouterr().err.startswith(f"meshproxy agent: {path}")


@pytest.mark.parametrize("flags", [(), (*TCP, "--lifetime", "soon"), (*TCP, "--key-type", "ed25519")])
def test_what_the_command_line_refuses(flags: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["agent", *flags])
    assert ended.value.code == 2
