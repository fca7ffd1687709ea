"""xDS matcher trees in RBAC's place: the real Envoy and we take the same branch."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.differential.tls import load, server_tls, trusts
from tests.differential.topic import ROUTER, TYPE, address
from tests.matching.expressions import as_json
from tests.support.downstream import RawDownstream
from tests.support.proxy import ProxyProcess, start_envoy, start_meshproxy
from tests.support.wire import WireReader
from tests.tls.certificates import world

Yaml = dict[str, Any]
DEADLINE_S = 20.0
NETWORK = TYPE + "matching.common_inputs.network.v3."
SSL = TYPE + "matching.common_inputs.ssl.v3."


def extension(kind: str, **fields: Any) -> Yaml:
    return {"name": "x", "typed_config": {"@type": kind} | fields}


def action(name: str) -> Yaml:
    """`allow`, `deny` or `log`: what it is called and what it does."""
    kind = "type.googleapis.com/envoy.config.rbac.v3.Action"
    return {"action": extension(kind, name=name, action=name.upper())}


def tree(**fields: Any) -> Yaml:
    return {"matcher": fields}


def header(name: str) -> Yaml:
    return extension("type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=name)


def single(given: Yaml, **string: Any) -> Yaml:
    return {"single_predicate": {"input": given, "value_match": string}}


def first(*entries: tuple[Yaml, Yaml], otherwise: Yaml | None = None) -> Yaml:
    """A list of matchers."""
    matchers = [{"predicate": predicate, "on_match": then} for predicate, then in entries]
    found: Yaml = {"matcher_list": {"matchers": matchers}}
    return found | ({"on_no_match": otherwise} if otherwise else {})


def mapped(kind: str, given: Yaml, entries: dict[str, Yaml], otherwise: Yaml | None = None) -> Yaml:
    found: Yaml = {"matcher_tree": {"input": given, f"{kind}_match_map": {"map": entries}}}
    return found | ({"on_no_match": otherwise} if otherwise else {})


def ranges(
    given: Yaml, *entries: tuple[list[str], Yaml], exclusive: bool = False, otherwise: Yaml | None = None
) -> Yaml:
    """By the ranges of an address; the first of them is `exclusive`."""
    made = []
    for number, (networks, then) in enumerate(entries):
        parts = [network.split("/") for network in networks]
        cidrs = [{"address_prefix": address, "prefix_len": int(length)} for address, length in parts]
        made.append({"ranges": cidrs, "on_match": then, "exclusive": exclusive and not number})
    matcher = extension("type.googleapis.com/xds.type.matcher.v3.IPMatcher", range_matchers=made)
    found: Yaml = {"matcher_tree": {"input": given, "custom_match": matcher}}
    return found | ({"on_no_match": otherwise} if otherwise else {})


def expression(text: str) -> Yaml:
    expr = {"parsed_expr": {"expr": as_json(text)}}
    return {
        "single_predicate": {
            "input": extension("type.googleapis.com/xds.type.matcher.v3.HttpAttributesCelMatchInput"),
            "custom_match": extension("type.googleapis.com/xds.type.matcher.v3.CelMatcher", expr_match=expr),
        }
    }


ALLOW, DENY, LOG = (action(name) for name in ("allow", "deny", "log"))
A, B = header("x-a"), header("x-b")
A1, B1 = single(A, exact="1"), single(B, exact="1")
NOTHING = {"matcher": first((B1, ALLOW))}
SOURCE = extension(NETWORK + "SourceIPInput")
URI = extension(SSL + "UriSanInput")
TREES: dict[str, Yaml] = {
    "nothing": {},
    "no_match": {"on_no_match": ALLOW},
    "no_match_denies": {"on_no_match": DENY},
    "no_match_logs": {"on_no_match": LOG},
    "list": first((A1, ALLOW)),
    "list_denies": first((A1, DENY), otherwise=ALLOW),
    "list_logs": first((A1, LOG)),
    "first_of_two": first((A1, DENY), (A1, ALLOW)),
    "second_of_two": first((B1, DENY), (A1, ALLOW)),
    "nested": first((A1, {"matcher": first((single(A, prefix="1"), ALLOW))})),
    "nested_comes_to_nothing": first((A1, NOTHING), (A1, ALLOW)),
    "nested_comes_to_nothing_at_last": first((A1, NOTHING), otherwise=ALLOW),
    "no_match_is_a_tree": first((B1, DENY), otherwise={"matcher": first((A1, ALLOW))}),
    "and": first(({"and_matcher": {"predicate": [A1, single(B, exact="2")]}}, ALLOW)),
    "and_not_all": first(({"and_matcher": {"predicate": [A1, B1]}}, ALLOW)),
    "or": first(({"or_matcher": {"predicate": [B1, A1]}}, ALLOW)),
    "or_none": first(({"or_matcher": {"predicate": [B1, B1]}}, ALLOW)),
    "not": first(({"not_matcher": B1}, ALLOW)),
    "not_of_what_is_missing": first(({"not_matcher": single(header("x-none"), exact="1")}, ALLOW)),
    "missing": first((single(header("x-none"), prefix="1"), ALLOW)),
    "prefix": first((single(A, prefix="1"), ALLOW)),
    "suffix": first((single(header("x-long"), suffix="Ing"), ALLOW)),
    "contains": first((single(header("x-long"), contains="hing"), ALLOW)),
    "ignore_case": first((single(header("x-long"), exact="SOMETHING", ignore_case=True), ALLOW)),
    "regex": first((single(header("x-long"), safe_regex={"google_re2": {}, "regex": "some.*"}), ALLOW)),
    "regex_of_the_whole": first((single(header("x-long"), safe_regex={"google_re2": {}, "regex": "some"}), ALLOW)),
    "joined": first((single(header("x-twice"), exact="1,2"), ALLOW)),
    "header_in_capitals": first((single(header("X-A"), exact="1"), ALLOW)),
    "path": first((single(header(":path"), prefix="/p?"), ALLOW)),
    "exact": mapped("exact", A, {"1": ALLOW, "2": DENY}),
    "exact_other": mapped("exact", header("x-long"), {"some": ALLOW}),
    "exact_no_match": mapped("exact", A, {"3": DENY}, ALLOW),
    "exact_missing": mapped("exact", header("x-none"), {"3": DENY}, ALLOW),
    "exact_comes_to_nothing": mapped("exact", A, {"1": NOTHING}, ALLOW),
    "prefix_map": mapped("prefix", header("x-long"), {"some": ALLOW}),
    "longest_prefix": mapped("prefix", header("x-long"), {"s": DENY, "some": ALLOW, "somewhat": DENY}),
    "longest_prefix_comes_to_nothing": mapped("prefix", header("x-long"), {"s": ALLOW, "some": NOTHING}),
    "prefix_none": mapped("prefix", header("x-long"), {"other": DENY}, ALLOW),
    "source_ip": first((single(extension(NETWORK + "SourceIPInput"), exact="127.0.0.1"), ALLOW)),
    "direct_source_ip": first((single(extension(NETWORK + "DirectSourceIPInput"), exact="127.0.0.1"), ALLOW)),
    "destination_ip": first((single(extension(NETWORK + "DestinationIPInput"), exact="127.0.0.1"), ALLOW)),
    "source_port": first(
        (single(extension(NETWORK + "SourcePortInput"), safe_regex={"google_re2": {}, "regex": "[0-9]+"}), ALLOW)
    ),
    "destination_port": first((single(extension(NETWORK + "DestinationPortInput"), exact="1"), DENY), otherwise=ALLOW),
    "server_name": first((single(extension(NETWORK + "ServerNameInput"), exact="a.test"), ALLOW)),
    "uri": first((single(URI, exact="spiffe://mesh/client"), ALLOW)),
    "uri_map": mapped("prefix", URI, {"spiffe://mesh/": ALLOW}),
    "dns": first((single(extension(SSL + "DnsSanInput"), exact="client.test"), ALLOW)),
    "subject": first((single(extension(SSL + "SubjectInput"), contains="CN=client"), ALLOW)),
    "range": ranges(SOURCE, (["127.0.0.0/8"], ALLOW)),
    "range_of_others": ranges(SOURCE, (["10.0.0.0/8", "::/0"], DENY), otherwise=ALLOW),
    "narrowest_range": ranges(SOURCE, (["0.0.0.0/0"], DENY), (["127.0.0.1/32"], ALLOW), (["127.0.0.0/8"], DENY)),
    "range_with_bits_of_a_host": ranges(SOURCE, (["127.1.2.3/8"], ALLOW)),
    "narrowest_range_comes_to_nothing": ranges(SOURCE, (["127.0.0.1/32"], NOTHING), (["127.0.0.0/8"], ALLOW)),
    "exclusive_range_comes_to_nothing": ranges(
        SOURCE, (["127.0.0.1/32"], NOTHING), (["127.0.0.0/8"], ALLOW), exclusive=True
    ),
    "exclusive_range_behind_a_narrower_one": ranges(
        SOURCE, (["127.0.0.0/8"], ALLOW), (["127.0.0.1/32"], NOTHING), exclusive=True
    ),
    "exclusive_range_alone": ranges(SOURCE, (["127.0.0.0/8"], ALLOW), (["127.0.0.2/32"], DENY), exclusive=True),
    "exclusive_range_then_a_wider_one": ranges(
        SOURCE, (["127.0.0.0/16"], ALLOW), (["127.0.0.1/32"], NOTHING), (["0.0.0.0/0"], DENY), exclusive=True
    ),
    "exclusive_range_then_no_match": ranges(
        SOURCE, (["127.0.0.1/32"], NOTHING), (["127.0.0.0/8"], DENY), exclusive=True, otherwise=ALLOW
    ),
    "range_twice": ranges(SOURCE, (["127.0.0.0/8"], NOTHING), (["127.0.0.0/8"], ALLOW)),
    "cel": first((expression("request.headers['x-a'] == '1' && source.port > 0"), ALLOW)),
    "cel_not": first((expression("request.headers['x-a'] == '2'"), ALLOW)),
    "cel_error": first((expression("request.headers['x-none'] == '2'"), ALLOW)),
    "cel_negated_error": first(({"not_matcher": expression("request.headers['x-none'] == '2'")}, ALLOW)),
}
HEADERS = (("x-a", "1"), ("x-b", "2"), ("x-long", "someThIng".lower()), ("x-twice", "1"), ("x-twice", "2"))


def rbac(name: str, **fields: Any) -> Yaml:
    return {"name": name, "typed_config": {"@type": TYPE + "filters.http.rbac.v3.RBAC"} | fields}


def bootstrap() -> str:
    """A route for each tree, in plaintext and behind TLS."""
    routes = [
        {
            "match": {"prefix": "/", "headers": [{"name": "x-row", "string_match": {"exact": name}}]},
            "direct_response": {"status": 200},
            "typed_per_filter_config": {
                "rbac": {"@type": TYPE + "filters.http.rbac.v3.RBACPerRoute", "rbac": {"matcher": matcher}}
            },
        }
        for name, matcher in TREES.items()
    ]
    manager = {
        "@type": TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [rbac("shadow", shadow_matcher=first((A1, DENY))), rbac("rbac"), ROUTER],
    }
    chain: Yaml = {"filters": [{"name": "http", "typed_config": manager}]}
    inspector = {"name": "tls", "typed_config": {"@type": TYPE + "filters.listener.tls_inspector.v3.TlsInspector"}}
    secured = chain | {
        "name": "secured",
        "filter_chain_match": {"transport_protocol": "tls"},
        "transport_socket": server_tls(world().server, common=trusts(world().ca)),
    }
    connections = rbac_of_connections(first((single(extension(NETWORK + "SourceIPInput"), exact="127.0.0.1"), ALLOW)))
    refused = rbac_of_connections(first((single(extension(NETWORK + "SourceIPInput"), exact="127.0.0.2"), ALLOW)))
    listeners = [
        {"name": "http", "address": address(0), "listener_filters": [inspector], "filter_chains": [chain, secured]},
        {"name": "tcp", "address": address(0), "filter_chains": [connections]},
        {"name": "tcp-refused", "address": address(0), "filter_chains": [refused]},
    ]
    return json.dumps({"admin": {"address": address(0)}, "static_resources": {"listeners": listeners}})


def rbac_of_connections(matcher: Yaml) -> Yaml:
    config = {"@type": TYPE + "filters.network.rbac.v3.RBAC", "stat_prefix": "tcp", "matcher": matcher}
    echo = {"name": "echo", "typed_config": {"@type": TYPE + "filters.network.echo.v3.Echo"}}
    return {"filters": [{"name": "rbac", "typed_config": config}, echo]}


class Sides:
    """Both proxies, and a plain and a secured connection to each."""

    def __init__(self, stack: ExitStack) -> None:
        started = (("envoy", start_envoy), ("meshproxy", start_meshproxy))
        self.proxies: dict[str, ProxyProcess] = {
            name: stack.enter_context(start(bootstrap())) for name, start in started
        }
        self.connections: dict[tuple[str, bool], RawDownstream] = {}
        for name, proxy in self.proxies.items():
            for secured in (False, True):
                made = RawDownstream(proxy.listener_ports()["http"], timeout_s=DEADLINE_S)
                if secured:
                    made.sock = context().wrap_socket(made.sock, server_hostname="a.test")
                    made.reader = WireReader(made.sock)
                self.connections[name, secured] = stack.enter_context(made)

    def ask(self, name: str, secured: bool) -> dict[str, int]:
        fields = "".join(f"{key}: {value}\r\n" for key, value in (*HEADERS, ("x-row", name)))
        found = {}
        for side in self.proxies:
            connection = self.connections[side, secured]
            connection.send(f"GET /p?q HTTP/1.1\r\nhost: a.test\r\n{fields}\r\n".encode())
            found[side] = connection.receive().status
        return found


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.load_verify_locations(cadata=world().ca.pem.decode())
    load(made, world().client)
    return made


@pytest.fixture(scope="module")
def sides() -> Iterator[Sides]:
    with ExitStack() as stack:
        yield Sides(stack)


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("name", TREES)
def test_both_take_the_same_branch(sides: Sides, name: str, secured: bool) -> None:
    found = sides.ask(name, secured)
    assert found["envoy"] in (200, 403)
    assert found["meshproxy"] == found["envoy"], found


def test_rows_of_both_kinds_are_there(sides: Sides) -> None:
    answers = {sides.ask(name, True)["meshproxy"] for name in TREES}
    assert answers == {200, 403}


def test_connections_and_stats(sides: Sides) -> None:
    for proxy in sides.proxies.values():
        for listener, answer in (("tcp", b"x"), ("tcp-refused", b"")):
            with RawDownstream(proxy.listener_ports()[listener], timeout_s=DEADLINE_S) as connection:
                connection.send(b"x")
                try:
                    assert connection.sock.recv(1) == answer
                except ConnectionError:
                    assert answer == b""
    sides.ask("nothing", False)
    found = {side: proxy.stats(r"rbac\.(shadow_)?(allowed|denied)$") for side, proxy in sides.proxies.items()}
    assert found["meshproxy"] == found["envoy"]
    assert found["envoy"]["http.x.rbac.shadow_denied"] > 0
