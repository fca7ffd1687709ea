"""Expressions: each has the value that it has in Envoy, and what it has no words for is refused with its path."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.core.v3.cel_pb2 import CelExpressionConfig
from google.api.expr.v1alpha1.syntax_pb2 import Expr
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.errors import ConfigErrors
from meshproxy.matching.cel.build import Expression, build_expression
from meshproxy.matching.facts import Facts
from meshproxy.net.address import Address
from meshproxy.net.transport_socket import TransportSocket
from meshproxy.observe.stream_info import ConnectionInfo, StreamInfo
from tests.matching.expressions import parse
from tests.matching.rows import HEADERS, HOST, METADATA, TARGET, Row, rows
from tests.rbac.support import CLIENT, Peer


def facts(metadata: dict[str, Any] | None = None, tls: Peer | None = None) -> Facts:
    connection = ConnectionInfo(7, Address("127.0.0.1", 4711), Address("127.0.0.1", 8080))
    if tls is not None:
        connection.transport_socket = TransportSocket()
        connection.transport_socket.facts = tls
    info = StreamInfo(connection, 1.0)
    info.dynamic_metadata = METADATA if metadata is None else metadata
    pseudo = ((":method", "GET"), (":path", TARGET), (":scheme", "http"), (":authority", HOST))
    return Facts(HeaderMap([(name.encode(), value.encode()) for name, value in (*pseudo, *HEADERS)]), info)


def compiled(message: Expr, option: str = "") -> tuple[Expression | None, list[tuple[str, str]]]:
    errors = ConfigErrors()
    options = CelExpressionConfig(**{option: True}) if option else None
    made = build_expression(message, "e", errors, options)
    return made, [(error.path, error.reason) for error in errors.items]


def holds(text: str, option: str = "", asked: Facts | None = None) -> bool:
    made, errors = compiled(parse(text), option)
    assert errors == []
    assert made is not None
    return made.holds(asked or facts())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.expression)
def test_it_has_the_value_that_it_has_in_envoy(row: Row) -> None:
    assert holds(row.expression, row.option) is row.holds
    assert holds(f"!({row.expression})", row.option) is row.negation_holds


REFUSED = {
    "foo == 1": "e.call_expr.args[0].ident_expr",
    "request == null": "e.call_expr.args[0].ident_expr",
    "request.foo == 'a'": "e.call_expr.args[0].select_expr",
    "has(request.foo)": "e.select_expr",
    "response.code == 200": "e.call_expr.args[0].select_expr.operand.ident_expr",
    "upstream.address == ''": "e.call_expr.args[0].select_expr.operand.ident_expr",
    "filter_state['x'] == ''": "e.call_expr.args[0].call_expr.args[0].ident_expr",
    "xds.route_name == ''": "e.call_expr.args[0].select_expr.operand.ident_expr",
    "request['foo'] == ''": "e.call_expr.args[0].call_expr.args[0].ident_expr",
    "nope(1)": "e.call_expr.function",
    "'a'.nope()": "e.call_expr.function",
    "string(1) == '1'": "e.call_expr.args[0].call_expr.function",
    "size(1, 2) == 1": "e.call_expr.args[0].call_expr",
    "'a'.matches('[')": "e.call_expr",
    "'a'.matches(request.path)": "e.call_expr",
    "[1, nope(2)] == [1]": "e.call_expr.args[0].list_expr.elements[1].call_expr.function",
    "{'a': nope(2)} == {'a': 1}": "e.call_expr.args[0].struct_expr.entries[0].call_expr.function",
}


@pytest.mark.parametrize(("text", "path"), REFUSED.items())
def test_what_there_is_not_is_refused_where_it_stands(text: str, path: str) -> None:
    made, errors = compiled(parse(text))
    assert made is None
    assert [where for where, _ in errors] == [path]


def test_what_envoy_cannot_do_either() -> None:
    comprehension = Expr(comprehension_expr=Expr.Comprehension(iter_var="x"))
    assert compiled(comprehension)[1] == [("e", "Comprehension support is disabled, as in Envoy")]
    assert compiled(Expr()) == (None, [("e", "is empty")])
    message = Expr(struct_expr=Expr.CreateStruct(message_name="a.B"))
    assert compiled(message)[1] == [("e.struct_expr", "messages (a.B) cannot be made in expressions")]


def test_a_tree_is_bounded() -> None:
    wide = Expr(list_expr=Expr.CreateList(elements=[parse("1")] * 10_000))
    made, errors = compiled(wide)
    assert made is None
    assert errors[0] == ("e.list_expr.elements[9999]", "the expression is too large")


def test_identities() -> None:
    asked = facts(tls=CLIENT)
    assert holds("connection.mtls", asked=asked)
    assert holds("connection.uri_san_peer_certificate == 'spiffe://mesh/ns/a/sa/b'", asked=asked)
    assert holds("connection.dns_san_peer_certificate == 'b.a.test'", asked=asked)


def test_numbers_of_metadata_are_doubles() -> None:
    asked = facts({"ns": {"int": 3, "double": 1.5, "list": [1], "bool": True}})
    assert holds("type(metadata.filter_metadata.ns.int) == double", asked=asked)
    assert holds("metadata.filter_metadata.ns.int == 3", asked=asked)
    assert holds("metadata.filter_metadata.ns.double > 1", asked=asked)
    assert holds("metadata.filter_metadata.ns.list == [1.0]", asked=asked)
    assert holds("metadata.filter_metadata.ns.bool == true", asked=asked)


def test_a_connection_has_nothing_that_requests_have() -> None:
    asked = facts()
    asked.headers = HeaderMap()
    for name in ("path", "url_path", "query", "host", "scheme", "method", "referer", "useragent", "id", "protocol"):
        assert holds(f"!has(request.{name})", asked=asked)
    assert holds("source.port == 4711 && destination.port == 8080", asked=asked)


ATOMS = (
    "true",
    "false",
    "1",
    "2u",
    "1.5",
    "'a'",
    "b'b'",
    "null",
    "request.path",
    "source.port",
    "[1, 'a']",
    "{'k': 1}",
)
SHAPES = ("({} && {})", "({} || {})", "({} == {})", "({} < {})", "({} + {})", "({} in {})", "({}[{}])", "({} ? {} : 1)")
TEXTS = st.recursive(
    st.sampled_from(ATOMS),
    lambda inner: st.builds(lambda shape, one, two: shape.format(one, two), st.sampled_from(SHAPES), inner, inner),
    max_leaves=8,
)


@given(TEXTS, st.sampled_from(["", "enable_string_concat", "enable_string_conversion"]))
def test_no_expression_raises_and_none_holds_together_with_its_negation(text: str, option: str) -> None:
    assert not (holds(text, option) and holds(f"!{text}", option))
