"""The interception rules: what the script says it does. tests/istio sends connections through them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.istio.pods import INTERCEPT, needed

ROOT = Path(__file__).resolve().parents[2]


def dry_run(*arguments: str, **environment: str) -> list[str]:
    """What would be done."""
    command = ["sh", str(INTERCEPT), "--dry-run", *arguments]
    variables = {"PATH": os.defpath, "FAMILIES": "iptables", **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("iptables -w -t nat ") for line in done.stdout.splitlines()]


def test_the_rules_and_their_order() -> None:
    """Those of Istio: the proxy's own connections are spared, what it says to itself comes in as from anybody."""
    assert [line for line in dry_run() if line.startswith("-A")] == [
        "-A MESHPROXY_TO_INBOUND -p tcp -j REDIRECT --to-ports 15006",
        "-A MESHPROXY_TO_OUTBOUND -p tcp -j REDIRECT --to-ports 15001",
        "-A MESHPROXY_INBOUND -p tcp --dport 15020 -j RETURN",
        "-A MESHPROXY_INBOUND -p tcp --dport 15021 -j RETURN",
        "-A MESHPROXY_INBOUND -p tcp --dport 15090 -j RETURN",
        "-A MESHPROXY_INBOUND -p tcp -j MESHPROXY_TO_INBOUND",
        "-A MESHPROXY_OUTBOUND -o lo -s 127.0.0.6/32 -j RETURN",
        "-A MESHPROXY_OUTBOUND -o lo ! -d 127.0.0.1/32 -p tcp -m owner --uid-owner 1337 -j MESHPROXY_TO_INBOUND",
        "-A MESHPROXY_OUTBOUND -o lo ! -d 127.0.0.1/32 -p tcp -m owner --gid-owner 1337 -j MESHPROXY_TO_INBOUND",
        "-A MESHPROXY_OUTBOUND -m owner --uid-owner 1337 -j RETURN",
        "-A MESHPROXY_OUTBOUND -m owner --gid-owner 1337 -j RETURN",
        "-A MESHPROXY_OUTBOUND -o lo -j RETURN",
        "-A MESHPROXY_OUTBOUND -d 127.0.0.1/32 -j RETURN",
        "-A MESHPROXY_OUTBOUND -p tcp -j MESHPROXY_TO_OUTBOUND",
        "-A PREROUTING -p tcp -j MESHPROXY_INBOUND",
        "-A OUTPUT -p tcp -j MESHPROXY_OUTBOUND",
    ]


def test_settings() -> None:
    lines = dry_run(
        OUTBOUND_PORT="1",
        INBOUND_PORT="2",
        PROXY_UID="3 4",
        PROXY_GID="",
        INBOUND_EXCLUDE="",
        OUTBOUND_EXCLUDE="5432,3306",
        OUTBOUND_EXCLUDE_IP="10.0.0.0/8,fd00::/8",
    )
    text = "\n".join(lines)
    assert re.findall(r"--to-ports (\d)", text) == ["2", "1"]
    assert re.findall(r"--(\w+)-owner (\d)", text) == [("uid", "3"), ("uid", "4")] * 2
    assert re.findall(r"--dport (\d+)", text) == ["5432", "3306"]
    assert re.findall(r"-d (10\S+|fd\S+)", text) == ["10.0.0.0/8"]


def test_both_families() -> None:
    lines = dry_run(FAMILIES="iptables,ip6tables", OUTBOUND_EXCLUDE_IP="10.0.0.0/8,fd00::/8")
    six = [line for line in lines if line.startswith("ip6tables")]
    assert len(six) * 2 == len(lines)
    assert any("-s ::6/128" in line for line in six)
    assert [line.split()[-3] for line in lines if "00::/8" in line or "10.0.0.0/8" in line] == [
        "10.0.0.0/8",
        "fd00::/8",
    ]


@pytest.mark.parametrize("arguments", [["--help-me"], ["x"]])
def test_what_it_does_not_know_it_refuses(arguments: list[str]) -> None:
    done = subprocess.run(["sh", str(INTERCEPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage")


def test_a_proxy_that_nobody_knows_would_meet_itself() -> None:
    variables = {"PATH": os.defpath, "PROXY_UID": "", "PROXY_GID": ""}
    done = subprocess.run(["sh", str(INTERCEPT)], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "meet itself" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and iptables are root's")
def test_twice_is_once_and_undone_is_gone() -> None:
    script = f"""
        set -e
        iptables-save -t nat > /dev/null
        sh {INTERCEPT} && iptables -t nat -S && echo ---- && sh {INTERCEPT} && iptables -t nat -S && echo ----
        sh {INTERCEPT} --undo && sh {INTERCEPT} --undo && iptables -t nat -S
    """
    needed("iptables")
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    done = subprocess.run(
        [needed("unshare"), "--net", "sh", "-c", script],
        env={"PATH": path, "FAMILIES": "iptables"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    once, twice, undone = done.stdout.split("----\n")
    assert once.count("\n") == 4 + 4 + 16
    assert twice == once
    assert undone.splitlines() == [f"-P {chain} ACCEPT" for chain in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")]
