"""Trees of matchers: what there is not is refused where it stands, and what decides does so in its order."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st
from xds.type.matcher.v3.matcher_pb2 import Matcher as MatcherMessage

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.messages import find_message
from meshproxy.matching.build import build_matcher
from meshproxy.matching.facts import Facts
from meshproxy.matching.tree import Matcher
from meshproxy.net.address import Address
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from meshproxy.tls.x509 import DerError
from tests.differential.test_matching import (
    A1,
    ALLOW,
    NETWORK,
    SOURCE,
    SSL,
    A,
    expression,
    extension,
    first,
    header,
    mapped,
    ranges,
    single,
)
from tests.rbac.support import Unreadable

Yaml = dict[str, Any]
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
CEL = "type.googleapis.com/xds.type.matcher.v3.CelMatcher"
find_message("envoy.extensions.filters.http.router.v3.Router")
for _name in ("UriSanInput", "DnsSanInput", "SubjectInput"):
    find_message(f"envoy.extensions.matching.common_inputs.ssl.v3.{_name}")
for _name in ("SourceIPInput", "FilterStateInput", "SourcePortInput", "DirectSourceIPInput"):
    find_message(f"envoy.extensions.matching.common_inputs.network.v3.{_name}")
find_message("xds.type.matcher.v3.IPMatcher")
for _name in ("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", "envoy.config.rbac.v3.Action"):
    find_message(_name)
for _name in ("xds.type.matcher.v3.CelMatcher", "xds.type.matcher.v3.HttpAttributesCelMatchInput"):
    find_message(_name)


def facts(headers: dict[str, str]) -> Facts:
    connection = ConnectionInfo(1, Address("127.0.0.1", 1), Address("127.0.0.1", 2))
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Facts(HeaderMap(fields), StreamInfo(connection, 1.0))


def named(name: str) -> Yaml:
    return {"action": extension("type.googleapis.com/envoy.config.rbac.v3.Action", name=name)}


def compiled(tree: Yaml, *, http: bool = True) -> tuple[Matcher | None, list[str]]:
    """The tree, whose actions are their names, and the paths of errors."""
    errors = ConfigErrors()

    def name_of(config: Any, _path: str) -> object:
        message: AnyMessage = config.typed_config
        made = find_message("envoy.config.rbac.v3.Action")
        assert made is not None
        named: Any = made.FromString(message.value)
        return named.name

    made = build_matcher(json_format.ParseDict(tree, MatcherMessage()), "m", errors, name_of, http=http)
    return made, [error.path for error in errors.items]


CUSTOM_MATCH = "m.matcher_list.matchers[0].predicate.single_predicate.custom_match.typed_config"
CUSTOM = {"input": A, "custom_match": extension(ROUTER)}
REFUSED: dict[str, tuple[Yaml, str]] = {
    "keep_matching": ({"on_no_match": {**ALLOW, "keep_matching": True}}, "m.on_no_match.keep_matching"),
    "empty_on_match": ({"on_no_match": {}}, "m.on_no_match"),
    "empty_predicate": (first(({}, ALLOW)), "m.matcher_list.matchers[0].predicate"),
    "no_match": (
        first(({"single_predicate": {"input": A}}, ALLOW)),
        "m.matcher_list.matchers[0].predicate.single_predicate",
    ),
    "another_input": (
        first((single(extension(NETWORK + "FilterStateInput", key="k"), exact="1"), ALLOW)),
        "m.matcher_list.matchers[0].predicate.single_predicate.input.typed_config",
    ),
    "another_matcher": (
        first(({"single_predicate": CUSTOM}, ALLOW)),
        CUSTOM_MATCH,
    ),
    "an_expression_of_a_header": (
        first(({"single_predicate": {"input": A, "custom_match": extension(CEL)}}, ALLOW)),
        "m.matcher_list.matchers[0].predicate.single_predicate.input.typed_config",
    ),
    "a_part_of_an_expression": (
        first((expression("nope(1)"), ALLOW)),
        f"{CUSTOM_MATCH}.expr_match.parsed_expr.expr.call_expr.function",
    ),
    "a_part_of_several": (
        first(({"and_matcher": {"predicate": [A1, {"not_matcher": {}}]}}, ALLOW)),
        "m.matcher_list.matchers[0].predicate.and_matcher.predicate[1].not_matcher",
    ),
    "an_empty_map": ({"matcher_tree": {"input": A}}, "m.matcher_tree"),
    "another_map": (
        {"matcher_tree": {"input": A, "custom_match": extension(ROUTER)}},
        "m.matcher_tree.custom_match.typed_config",
    ),
    "ranges_of_a_header": (ranges(A, (["127.0.0.0/8"], ALLOW)), "m.matcher_tree.input.typed_config"),
    "no_range": (
        ranges(SOURCE, (["nowhere/8"], ALLOW)),
        "m.matcher_tree.custom_match.typed_config.range_matchers[0].ranges[0]",
    ),
    "a_range_without_an_action": (
        ranges(SOURCE, (["::/0"], {})),
        "m.matcher_tree.custom_match.typed_config.range_matchers[0].on_match",
    ),
    "an_entry": (mapped("exact", A, {"x": {}}), "m.matcher_tree.exact_match_map.map[x]"),
    "an_input_of_a_map": (
        mapped("exact", extension(NETWORK + "FilterStateInput", key="k"), {"x": ALLOW}),
        "m.matcher_tree.input.typed_config",
    ),
}


@pytest.mark.parametrize(("tree", "path"), REFUSED.values(), ids=REFUSED)
def test_what_there_is_not_is_refused_where_it_stands(tree: Yaml, path: str) -> None:
    assert compiled(tree) == (None, [path])


def test_a_connection_has_no_headers() -> None:
    path = "m.matcher_list.matchers[0].predicate.single_predicate.input.typed_config"
    assert compiled(first((A1, ALLOW)), http=False) == (None, [path])


VALUES = st.sampled_from(["", "a", "ab", "abc", "b"])
NAMES = st.sampled_from(["x-a", "x-b"])


@given(
    st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=5),
    st.dictionaries(NAMES, VALUES),
)
def test_the_first_of_a_list_that_holds(rows: list[tuple[str, str, bool]], given_headers: dict[str, str]) -> None:
    entries = []
    expected = "none"
    for number, (name, value, negated) in enumerate(rows):
        predicate = single(header(name), exact=value)
        entries.append(({"not_matcher": predicate} if negated else predicate, named(f"allow{number}")))
        if expected == "none" and (given_headers.get(name) == value) != negated:
            expected = f"allow{number}"
    made, errors = compiled(first(*entries, otherwise=named("none")))
    assert errors == []
    assert made is not None
    assert made.match(facts(given_headers)) == expected


@given(st.sets(st.text("ab", max_size=4), max_size=6), st.text("ab", max_size=6))
def test_the_longest_prefix_of_a_map(keys: set[str], value: str) -> None:
    made, errors = compiled(mapped("prefix", A, {key: named(f"x{key}") for key in keys}, named("none")))
    assert errors == []
    assert made is not None
    longest = max((key for key in keys if value.startswith(key)), key=len, default=None)
    assert made.match(facts({"x-a": value})) == ("none" if longest is None else f"x{longest}")


BYTES = st.sampled_from([0, 1, 127, 128, 255])
ADDRESSES = st.builds(lambda *parts: ".".join(map(str, parts)), BYTES, BYTES, BYTES, BYTES)


@given(st.lists(st.tuples(ADDRESSES, st.integers(0, 32)), max_size=8), ADDRESSES)
def test_the_narrowest_range(networks: list[tuple[str, int]], source: str) -> None:
    rows = [([f"{network}/{length}"], named(f"{number}")) for number, (network, length) in enumerate(networks)]
    made, errors = compiled(ranges(SOURCE, *rows, otherwise=named("none")))
    assert errors == []
    assert made is not None
    asked = facts({})
    asked.info.remote = Address(source, 1)
    having = [
        (-length, number)
        for number, (network, length) in enumerate(networks)
        if ipaddress.ip_address(source) in ipaddress.ip_network(f"{network}/{length}", strict=False)
    ]
    assert made.match(asked) == (f"{min(having)[1]}" if having else "none")


def test_ranges_of_ipv6() -> None:
    made, _ = compiled(
        ranges(SOURCE, (["2001:db8::/32"], named("in")), (["::/0"], named("out")), otherwise=named("none"))
    )
    assert made is not None
    asked = facts({})
    for address, expected in (("2001:db8::1", "in"), ("2001:db9::1", "out"), ("10.0.0.1", "none"), ("", "none")):
        asked.info.remote = Address(address, 1)
        assert made.match(asked) == expected


@pytest.mark.parametrize(
    "predicate",
    [
        single(extension(SSL + "UriSanInput"), exact="x"),
        single(extension(SSL + "DnsSanInput"), exact="x"),
        single(extension(SSL + "SubjectInput"), exact="x"),
        expression("connection.uri_san_peer_certificate == 'x'"),
    ],
    ids=["uri", "dns", "subject", "cel"],
)
def test_nobody_gets_past_by_a_certificate_that_cannot_be_read(predicate: Yaml) -> None:
    made, errors = compiled(first(({"not_matcher": predicate}, ALLOW)))
    assert errors == []
    assert made is not None
    asked = facts({})
    asked.info.connection.transport_socket = TransportSocket()
    asked.info.connection.transport_socket.facts = Unreadable()
    with pytest.raises(DerError):
        made.match(asked)
