"""Connections that iptables redirects, handed to the listener of the destination that they had: in a network namespace
of the test's own, with real rules. It takes root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.integration.config import Json, address, bootstrap

_FILTER = "type.googleapis.com/envoy.extensions.filters."
_RULES = """
ip link set lo up
ip address add 10.1.0.1/24 dev lo
ip -6 address add fd00::1/64 dev lo nodad
{tables} -t nat -A OUTPUT -p tcp -d {destination} ! -s {exempt} --dport {ports} -j REDIRECT --to-ports 15001
"""
_ASK = """
import json, socket, sys
answers = []
for host, port in json.loads(sys.argv[1]):
    with socket.create_connection((host, port), 5) as sock:
        sock.settimeout(5)
        sock.sendall(b"GET / HTTP/1.1\\r\\nhost: a\\r\\nconnection: close\\r\\n\\r\\n")
        answer = b""
        while piece := sock.recv(100):
            answer += piece
        answers.append(answer.decode())
print(json.dumps(answers))
"""
_RUN = """
import json, socket, subprocess, sys, threading
from tests.support.proxy import start_envoy, start_meshproxy
def serve(port):
    listening = socket.create_server(("10.1.0.1", port))
    def answer():
        while True:
            sock, peer = listening.accept()
            with sock:
                sock.recv(1000)
                body = f"upstream {port}, from {peer[0]}".encode()
                sock.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n%s" % (len(body), body))
    threading.Thread(target=answer, daemon=True).start()
for port in (85, 86, 87):
    serve(port)
start = start_envoy if sys.argv[1] == "envoy" else start_meshproxy
with start(sys.argv[2]) as proxy:
    asked = subprocess.run([sys.executable, "-c", sys.argv[4], sys.argv[3]], capture_output=True, text=True)
    found = {"answers": asked.stdout, "errors": asked.stderr + (proxy.output() if asked.stderr else "")}
    stats = proxy.stats("^listener.*downstream_cx_total$|^cluster.original.membership")
    listed = proxy.admin("/listeners")[1]
print(json.dumps(found | {"stats": stats, "listed": listed}))
"""


def listener(name: str, at: Json, *, binds: bool = True, hands_off: bool = False, more: tuple[Json, ...] = ()) -> Json:
    """One that says its name."""
    config = {"@type": f"{_FILTER}network.direct_response.v3.Config", "response": {"inline_string": name}}
    made: Json = {"name": name, "address": at, "filter_chains": [{"filters": [{"name": "d", "typed_config": config}]}]}
    if more:
        made["additional_addresses"] = [{"address": each} for each in more]
    if hands_off:
        made["use_original_dst"] = True  # brings its listener filter with it
    return made if binds else made | {"bind_to_port": False}


def forwarding(name: str, at: Json, network_filter: Json) -> Json:
    """One that sends on what it gets to where that was bound for."""
    return {"name": name, "address": at, "bind_to_port": False, "filter_chains": [{"filters": [network_filter]}]}


def tcp_proxy() -> Json:
    config = {"@type": f"{_FILTER}network.tcp_proxy.v3.TcpProxy", "stat_prefix": "t", "cluster": "original"}
    return {"name": "tcp_proxy", "typed_config": config}


def http_connection_manager() -> Json:
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "original"}}]
    config = {
        "@type": f"{_FILTER}network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "h",
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_FILTER}http.router.v3.Router"}}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    return {"name": "http_connection_manager", "typed_config": config}


# The rules leave connections from this address alone, or they would lead back here.
ORIGINAL: Json = {
    "name": "original",
    "type": "ORIGINAL_DST",
    "lb_policy": "CLUSTER_PROVIDED",
    "connect_timeout": "1s",
    "upstream_bind_config": {"source_address": {"address": "127.0.0.6", "port_value": 0}},
}
CONFIG = bootstrap(
    [
        listener("redirected", address(15001, "::"), hands_off=True)
        | {"address": {"socket_address": {"address": "::", "port_value": 15001, "ipv4_compat": True}}},
        listener("exact", address(80, "10.1.0.1"), binds=False),
        listener("wildcard", address(81, "0.0.0.0"), binds=False),
        listener("several", address(82, "10.1.0.1"), binds=False, more=(address(83, "10.1.0.1"),)),
        listener("six", address(80, "fd00::1"), binds=False),
        listener("other_wildcard", address(80, "0.0.0.0"), binds=False),
        forwarding("tcp", address(85, "10.1.0.1"), tcp_proxy()),
        forwarding("tcp_too", address(86, "10.1.0.1"), tcp_proxy()),
        forwarding("http", address(87, "10.1.0.1"), http_connection_manager()),
    ],
    [ORIGINAL],
)
CASES = {
    ("10.1.0.1", 80): "exact",
    ("10.1.0.2", 80): "other_wildcard",
    ("10.1.0.1", 81): "wildcard",
    ("10.1.0.1", 82): "several",
    ("10.1.0.1", 83): "several",
    ("10.1.0.1", 84): "redirected",
    ("10.1.0.1", 85): "upstream 85, from 127.0.0.6",
    ("10.1.0.1", 86): "upstream 86, from 127.0.0.6",
    ("10.1.0.1", 87): "upstream 87, from 127.0.0.6",
    ("fd00::1", 80): "six",
    ("fd00::1", 81): "redirected",
}


def needed(tool: str) -> str:
    """The set-up installs it: raises FileNotFoundError."""
    found = shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError(f"no {tool}: `make test` installs it (on Debian: iptables, iproute2, util-linux)")
    return found


def in_namespace(who: str) -> Json:
    """Run the proxy and its clients behind redirects, in a namespace that goes with them."""
    script = ["set -e"]
    families = (("iptables", "10.1.0.0/24", "127.0.0.6"), ("ip6tables", "fd00::/64", "fd00::6"))
    for tables, destination, exempt in families:
        rules = _RULES.format(tables=needed(tables), destination=destination, exempt=exempt, ports="80:90")
        for line in rules.strip().splitlines():
            script += [line] if line not in script else []
    script.append('exec "$@"')
    inside = [sys.executable, "-c", _RUN, who, CONFIG, json.dumps(list(CASES)), _ASK]
    command = [needed("unshare"), "--net", "sh", "-c", "\n".join(script), "sh", *inside]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: Json = json.loads(done.stdout.splitlines()[-1])
    assert not found["errors"], found["errors"]
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and iptables are root's")
@pytest.mark.parametrize("who", ["envoy", "meshproxy"])
def test_the_listener_of_the_original_destination(who: str) -> None:
    found = in_namespace(who)
    answers = [answer.rpartition("\r\n\r\n")[2] for answer in json.loads(found["answers"])]
    assert dict(zip(CASES, answers, strict=True)) == CASES
    assert found["stats"]["cluster.original.membership_total"] == 3
    assert "exact::10.1.0.1:80" in found["listed"].splitlines()
    assert found["stats"]["listener.10.1.0.1_80.downstream_cx_total"] == 1
    assert found["stats"]["listener.0.0.0.0_81.downstream_cx_total"] == 1
