"""Role based access control of connections: which end, when, and what the log, metadata and stats tell of it."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.differential.layer4 import listener_filter
from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.test_rbac import ANY, NEVER, NOBODY, TEXT_1, Yaml, cidr, metadata, path, policy, rules, template
from tests.differential.tls import Client, TlsChain, TlsCluster, TlsListener, TlsSide, Upstream, World, client_tls
from tests.differential.topic import TYPE
from tests.support.proxy import start_envoy, start_meshproxy

RELAY = {
    "name": "tcp_proxy",
    "typed_config": {
        "@type": TYPE + "filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "relay",
        "cluster": "echo",
    },
}
ECHO = {"name": "echo", "typed_config": {"@type": TYPE + "filters.network.echo.v3.Echo"}}
HELLO = Client(raw=b"hello", raw_end=True)
SILENT = Client(raw_end=True)
PROXIED = b"PROXY TCP4 10.1.2.3 10.9.9.9 1111 2222\r\n"


def guarded(
    *more: Yaml, proxied: bool = False, prefix: str = "guard", last: Yaml = RELAY, **fields: Any
) -> TlsListener:
    """A listener whose chain has these filters before the `last` one."""
    kind = {"@type": TYPE + "filters.network.rbac.v3.RBAC", "stat_prefix": prefix}
    guards = [{"name": f"rbac{i}", "typed_config": kind | each} for i, each in enumerate((fields, *more))]
    reads = {"listener_filters": [json.loads(listener_filter("proxy_protocol"))]} if proxied else {}
    chain = TlsChain(fields=json.dumps({"filters": [*guards, last]}))
    return TlsListener({"chain": chain}, fields=json.dumps(reads))


def allows(principal: Yaml | None = None, permission: Yaml | None = None) -> TlsListener:
    """A listener that lets in whom these describe."""
    return guarded(rules=rules(p=policy(permission or ANY, principal or ANY)))


def proxied(name: str, principal: Yaml | None = None, permission: Yaml | None = None) -> TlsListener:
    """The same, of connections with a PROXY protocol header; it sends back what comes."""
    described = rules(p=policy(permission or ANY, principal or ANY))
    return guarded(rules=described, proxied=True, prefix=name, last=ECHO)


LISTENERS: dict[str, TlsListener] = {
    **{
        f"{action.lower()}_{name}": guarded(rules=rules(action, **policies))
        for action in ("ALLOW", "DENY", "LOG")
        for name, policies in {
            "matched": {"p": policy()},
            "not_matched": {"p": policy(NEVER)},
            "empty": {},
            "first_by_name": {"b c": policy(), "a": policy(principals=NOBODY), "d": policy()},
        }.items()
    },
    "nothing": guarded(),
    "shadow_only": guarded(shadow_rules=rules(s=policy(NEVER)), shadow_rules_stat_prefix="dry_"),
    "shadow_allows": guarded(shadow_rules=rules(s=policy())),
    "shadow_logs": guarded(shadow_rules=rules("LOG", s=policy())),
    "both": guarded(rules=rules("DENY", p=policy()), shadow_rules=rules(s=policy()), shadow_rules_stat_prefix="dry."),
    "dotted_prefix": guarded(prefix="dotted.", rules=rules(p=policy())),
    "several": guarded({"rules": rules("DENY", q=policy())}, {"rules": rules()}, rules=rules(p=policy())),
    "source": allows(cidr("source_ip", "127.0.0.1", 32)),
    "source_other": allows(cidr("source_ip", "127.0.0.2", 32)),
    "destination": allows(permission=cidr("destination_ip", "127.0.0.0", 8)),
    "port": allows(permission={"destination_port_range": {"start": 2, "end": 65536}}),
    "port_other": allows(permission={"destination_port": 1}),
    "path": allows(permission=path(prefix="/")),
    "not_path": allows(permission={"not_rule": path(prefix="/")}),
    "template": allows(permission=template("/**")),
    "server_name": allows(permission={"requested_server_name": {"exact": ""}}),
    "authenticated": allows({"authenticated": {}}),
    "metadata_inverted": allows(permission={"metadata": metadata("app", "user", TEXT_1, invert=True)}),
    "route_metadata_inverted": allows(
        permission={
            "sourced_metadata": {
                "metadata_matcher": metadata("app", "route", TEXT_1, invert=True),
                "metadata_source": "ROUTE",
            }
        }
    ),
    "filter_state": allows({"not_id": {"filter_state": {"key": "k", "string_match": {"exact": "v"}}}}),
    "delayed": guarded(rules=rules(), delay_deny="0.1s"),
    "delayed_allowed": guarded(rules=rules(p=policy()), delay_deny="0.1s"),
    "continuous_denied": guarded(rules=rules(), enforcement_type="CONTINUOUS"),
}
ECHOES = {
    **{
        f"{kind}_{name}": proxied(f"{kind}_{name}", cidr(kind, network, 8))
        for kind in ("source_ip", "direct_remote_ip", "remote_ip")
        for name, network in {"proxied": "10.0.0.0", "socket": "127.0.0.0"}.items()
    },
    "proxied_destination": proxied("proxied_destination", permission=cidr("destination_ip", "10.9.9.9", 32)),
    "proxied_port": proxied("proxied_port", permission={"destination_port": 2222}),
    "once": proxied("once"),
}
DIFFERENCES = {"rbac-silent-end"}
ECHOES["silent"] = guarded(rules=rules(), prefix="silent", last=ECHO)
ECHOES["continuous"] = guarded(
    rules=rules(p=policy()), enforcement_type="CONTINUOUS", proxied=True, prefix="continuous", last=ECHO
)
WORLD = World(LISTENERS | ECHOES, {"echo": TlsCluster("echo", client_tls())}, {"echo": Upstream("echo")})
PROBES = [(name, HELLO) for name in LISTENERS] + [(name, SILENT) for name in ("deny_matched", "allow_matched", "both")]


@pytest.fixture(scope="module")
def envoy() -> Iterator[TlsSide]:
    with TlsSide(WORLD, start_envoy) as side:
        yield side


@pytest.fixture(scope="module")
def ours() -> Iterator[TlsSide]:
    with TlsSide(WORLD, start_envoy if SUBJECT_IS_ENVOY else start_meshproxy) as side:
        yield side


@pytest.mark.parametrize(
    ("name", "client"), PROBES, ids=[f"{name}-{'hello' if client is HELLO else 'silent'}" for name, client in PROBES]
)
def test_the_same_connections_end(envoy: TlsSide, ours: TlsSide, name: str, client: Client) -> None:
    expected, actual = envoy.run(name, client), ours.run(name, client)
    assert actual == expected


def test_a_denied_peer_hears_nothing(envoy: TlsSide, ours: TlsSide) -> None:
    for side in (envoy, ours):
        found = side.run("deny_matched", HELLO)
        assert found["answer"] in ("closed", "<reset>")
        assert found["connection"]["termination"] == "rbac_access_denied_matched_policy[p]"


def echoed(side: TlsSide, name: str) -> list[bytes]:
    """What comes back of two words; nothing where the connection ends."""
    with socket.create_connection(("127.0.0.1", side.ports[name]), 20) as peer:
        answers: list[bytes] = []
        try:
            peer.sendall(PROXIED)
            for word in (b"one", b"two"):
                peer.sendall(word)
                answers.append(peer.recv(10))
        except ConnectionError:
            pass  # it has ended already, with a word on its way
        return [answer for answer in answers if answer]


@pytest.mark.parametrize("name", ECHOES)
def test_the_same_connections_are_answered(envoy: TlsSide, ours: TlsSide, name: str) -> None:
    """Rules that are asked continuously count each piece."""
    expected, actual = echoed(envoy, name), echoed(ours, name)
    assert expected in ([], [b"one", b"two"])
    assert actual == expected
    pattern = f"^{name}[.]rbac"
    assert ours.proxy.stats(pattern) == envoy.proxy.stats(pattern)


def test_who_ends_without_a_word_is_asked(envoy: TlsSide, ours: TlsSide) -> None:
    """The row `rbac-silent-end` of docs/envoy-differences.md: Envoy asks where half a connection may stay open."""
    denied = []
    for side in (envoy, ours):
        before = side.proxy.stats("^silent[.]rbac")["silent.rbac.denied"]
        found = side.run("silent", SILENT)
        assert found["answer"] in ("closed", "<reset>")
        denied.append(side.proxy.stats("^silent[.]rbac")["silent.rbac.denied"] - before)
    assert denied == [0, 0 if SUBJECT_IS_ENVOY else 1]


def test_stats(envoy: TlsSide, ours: TlsSide) -> None:
    for side in (envoy, ours):
        for name in LISTENERS:
            side.run(name, HELLO)
    expected, actual = (
        {name: count for name, count in side.proxy.stats("rbac").items() if "silent" not in name}
        for side in (envoy, ours)
    )
    assert expected["guard.rbac.denied"] > 0
    assert actual == expected
