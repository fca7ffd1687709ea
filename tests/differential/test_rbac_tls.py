"""What rules make of the peer's certificate, in HTTP and in network filters: each rule is a filter with shadow rules, so
that one connection asks them all."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.differential.pair import SUBJECT_IS_ENVOY
from tests.differential.test_filters import ROUTER
from tests.differential.test_rbac import ANY, EXTENSION, RBAC, Yaml, policy, rules
from tests.differential.tls import (
    Client,
    TlsChain,
    TlsCluster,
    TlsListener,
    TlsSide,
    Upstream,
    World,
    client_tls,
    server_tls,
    trusts,
)
from tests.differential.topic import TYPE, mapping
from tests.support.proxy import start_envoy, start_meshproxy
from tests.tls.certificates import Issued, dns, issue, uri, world

NETWORK_RBAC = TYPE + "filters.network.rbac.v3.RBAC"
TRUSTED = trusts(world().ca)
UNTRUSTED = trusts(world().ca, "trust_chain_verification: ACCEPT_UNTRUSTED")


def named(**match: Any) -> Yaml:
    """A principal by its name."""
    return {"authenticated": {"principal_name": match}}


def mtls(**fields: Any) -> Yaml:
    """A principal by a validated certificate."""
    kind = EXTENSION + "rbac.principals.mtls_authenticated.v3.Config"
    config = {"name": "envoy.rbac.principals.mtls_authenticated", "typed_config": {"@type": kind} | fields}
    return {"custom": config}


def san(kind: str, **match: Any) -> Yaml:
    """The same, with a name."""
    return mtls(san_matcher={"san_type": kind, "matcher": match})


PRINCIPALS: dict[str, Yaml] = {
    "authenticated": {"authenticated": {}},
    "not_authenticated": {"not_id": {"authenticated": {}}},
    "uri": named(exact="spiffe://mesh/client"),
    "second_uri": named(exact="spiffe://c"),
    "uri_prefix": named(prefix="spiffe://mesh/"),
    "uri_regex": named(safe_regex={"regex": "spiffe://mesh/[a-z]+"}),
    "dns": named(exact="client.test"),
    "dns_wildcard": named(exact="x.wild.test"),
    "dns_as_it_stands": named(exact="*.wild.test"),
    "dns_case": named(exact="CLIENT.test", ignore_case=True),
    "subject": named(exact="CN=client,O=Acme\\, Inc"),
    "common_name": named(exact="client"),
    "subject_contains": named(contains="O=Acme"),
    "awkward_subject": named(contains='say \\"hi\\"\\, you'),
    "empty": named(exact=""),
    "whatever": named(safe_regex={"regex": ".*"}),
    "somebody": named(safe_regex={"regex": ".+"}),
    "nobody_of_that_name": {"not_id": named(exact="spiffe://mesh/client")},
    "email": named(exact="ops@a.test"),
    "validated": mtls(any_validated_client_certificate=True),
    "not_validated": {"not_id": mtls(any_validated_client_certificate=True)},
    "san_uri": san("URI", exact="spiffe://mesh/client"),
    "san_uri_prefix": san("URI", prefix="spiffe://"),
    "san_dns": san("DNS", exact="client.test"),
    "san_dns_wildcard": san("DNS", exact="x.wild.test"),
    "san_dns_suffix": san("DNS", suffix=".test"),
    "san_email": san("EMAIL", exact="ops@a.test"),
    "san_ip": san("IP_ADDRESS", exact="127.0.0.1"),
    "san_of_another_kind": san("DNS", exact="spiffe://mesh/client"),
}
PERMISSIONS: dict[str, Yaml] = {
    "server_name": {"requested_server_name": {"exact": "a.test"}},
    "server_name_prefix": {"requested_server_name": {"prefix": "A."}},
    "no_server_name": {"requested_server_name": {"exact": ""}},
}
ALL = {name: rules(p=policy(ANY, principal)) for name, principal in PRINCIPALS.items()}
ALL |= {name: rules(p=policy(permission)) for name, permission in PERMISSIONS.items()}
CLIENTS: dict[str, Issued | None] = {
    "nobody": None,
    "client": world().client,
    "stranger": world().stranger,
    "wild": issue("wild", world().ca, names=dns("*.wild.test", "other.test")),
    "nameless": issue("client", world().ca),
    "several": issue("several", world().ca, names=[*uri("spiffe://b"), *uri("spiffe://c"), *dns("client.test")]),
    "awkward": issue('say "hi", you; \\', world().ca, names=uri("spiffe://mesh/client/more")),
    "server": world().server,
}


def http_chain(transport: Yaml | None) -> TlsChain:
    """A chain of HTTP whose log tells what all the rules say."""
    filters = [
        {"name": name, "typed_config": {"@type": RBAC, "shadow_rules": each, "shadow_rules_stat_prefix": f"{name}_"}}
        for name, each in ALL.items()
    ]
    return TlsChain(transport, manager=json.dumps({"http_filters": [*filters, mapping(ROUTER)]}))


def raw_chain(transport: Yaml | None, enforced: Yaml | None = None) -> TlsChain:
    """The same of bytes, which are sent back."""
    filters = [
        {
            "name": name,
            "typed_config": {
                "@type": NETWORK_RBAC,
                "stat_prefix": "network",
                "shadow_rules": each,
                "shadow_rules_stat_prefix": f"{name}_",
            },
        }
        for name, each in ALL.items()
    ]
    if enforced is not None:
        filters.append(
            {"name": "rbac", "typed_config": {"@type": NETWORK_RBAC, "stat_prefix": "enforced", "rules": enforced}}
        )
    relay = {"@type": TYPE + "filters.network.tcp_proxy.v3.TcpProxy", "stat_prefix": "relay", "cluster": "echo"}
    filters.append({"name": "tcp_proxy", "typed_config": relay})
    return TlsChain(transport, fields=json.dumps({"filters": filters}))


TRANSPORTS: dict[str, Yaml | None] = {
    "plain": None,
    "server_only": server_tls(),
    "optional": server_tls(common=TRUSTED),
    "required": server_tls(common=TRUSTED, fields="require_client_certificate: true"),
    "untrusted": server_tls(common=UNTRUSTED),
}
BY_NAME = rules(p=policy(ANY, named(prefix="spiffe://mesh/")))
LISTENERS = {f"http_{name}": TlsListener({name: http_chain(each)}, inspects=True) for name, each in TRANSPORTS.items()}
LISTENERS |= {
    f"raw_{name}": TlsListener({name: raw_chain(each)}, inspects=name != "plain") for name, each in TRANSPORTS.items()
}
LISTENERS["uninspected"] = TlsListener({"uninspected": http_chain(TRANSPORTS["optional"])})
LISTENERS["enforced"] = TlsListener({"enforced": raw_chain(TRANSPORTS["optional"], BY_NAME)})
WORLD = World(LISTENERS, {"echo": TlsCluster("echo", client_tls(TRUSTED))}, {"echo": Upstream("echo")})


@pytest.fixture(scope="module")
def envoy() -> Iterator[TlsSide]:
    with TlsSide(WORLD, start_envoy) as side:
        yield side


@pytest.fixture(scope="module")
def ours() -> Iterator[TlsSide]:
    with TlsSide(WORLD, start_envoy if SUBJECT_IS_ENVOY else start_meshproxy) as side:
        yield side


def client_of(listener: str, name: str) -> Client:
    """The client for this listener."""
    if listener == "raw_plain":
        return Client(raw=b"hello", raw_end=True)
    raw = listener.startswith("raw") or listener == "enforced"
    return Client(certificate=CLIENTS[name], plain=listener.endswith("plain"), body=b"hello" if raw else b"")


def clients_of(listener: str) -> list[str]:
    """Those whom TLS lets in."""
    if listener.endswith(("plain", "server_only")):
        return ["nobody"]
    if listener.endswith("untrusted"):
        return list(CLIENTS)
    return [name for name in CLIENTS if name != "stranger" and not (name == "nobody" and listener.endswith("required"))]


CASES = [(listener, name) for listener in LISTENERS for name in clients_of(listener)]


@pytest.mark.parametrize(("listener", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_what_rules_say(envoy: TlsSide, ours: TlsSide, listener: str, name: str) -> None:
    client = client_of(listener, name)
    expected, actual = envoy.run(listener, client), ours.run(listener, client)
    assert actual == expected


@pytest.mark.parametrize(("listener", "of_what"), [("http_optional", "request"), ("raw_optional", "connection")])
def test_the_certificate_is_looked_at(envoy: TlsSide, ours: TlsSide, listener: str, of_what: str) -> None:
    """Among all the answers above there are both."""
    for side in (envoy, ours):
        told = side.run(listener, client_of(listener, "client"))[of_what]["rbac"]
        assert [told[f"{name}_shadow_engine_result"] for name in ("uri", "validated", "san_uri")] == ["allowed"] * 3
        assert [told[f"{name}_shadow_engine_result"] for name in ("second_uri", "email")] == ["denied"] * 2


def test_stats(envoy: TlsSide, ours: TlsSide) -> None:
    for name in clients_of("enforced"):
        for side in (envoy, ours):
            side.run("enforced", client_of("enforced", name))
    counted = [
        {name: value for name, value in side.proxy.stats("rbac").items() if not name.startswith("http")}
        for side in (envoy, ours)
    ]
    assert counted[0]["enforced.rbac.denied"] > 0
    assert counted[1] == counted[0]
