"""`google.api.expr` trees -> expressions at work. What Envoy would find out only when it evaluates, an attribute or a
function that there is not, is an error of the configuration here."""

from __future__ import annotations

from typing import Any, Final

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.regex import Regex, RegexError
from meshproxy.matching.cel.attributes import ATTRIBUTES, NOT_HERE, Attribute
from meshproxy.matching.cel.functions import FUNCTIONS, add_or_join, to_string
from meshproxy.matching.cel.nodes import (
    Asked,
    Call,
    Conditional,
    Constant,
    Field,
    Has,
    HasField,
    ListOf,
    Logical,
    MapOf,
    Matches,
    Node,
)
from meshproxy.matching.cel.times import span_of, timestamp_of
from meshproxy.matching.cel.values import NS, CelError, TypeName, UInt
from meshproxy.matching.facts import Facts

_MOST_NODES: Final = 10_000  # how deep a tree may be is protobuf's own to say
_TYPES: Final = ("bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type")


class Expression:
    """A condition. What has no value, or one that is neither true nor false, does not hold."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def holds(self, facts: Facts) -> bool:
        try:
            return self._node.evaluate(facts) is True
        except CelError:
            return False


def build_expression(message: Any, path: str, errors: ConfigErrors, options: Any = None) -> Expression | None:
    """From an Expr. `options` is a CelExpressionConfig, or None. None where there are errors."""
    builder = _Builder(errors, options)
    node = builder.node(message, path)
    return None if node is None else Expression(node)


class _Builder:
    """Builds nodes. In each method None stands for an error that was added."""

    def __init__(self, errors: ConfigErrors, options: Any) -> None:
        self._errors = errors
        self._converts = options is not None and bool(options.enable_string_conversion)
        self._joins = options is not None and bool(options.enable_string_concat)
        self._count = 0

    def _refuse(self, path: str, reason: str) -> None:
        self._errors.add(path, reason)

    def node(self, message: Any, path: str) -> Node | None:
        self._count += 1
        if self._count > _MOST_NODES:
            self._refuse(path, "the expression is too large")
            return None
        kind: str | None = message.WhichOneof("expr_kind")
        if kind is None or kind == "comprehension_expr":
            self._refuse(path, "is empty" if kind is None else "Comprehension support is disabled, as in Envoy")
            return None
        part, at = getattr(message, kind), child(path, kind)
        if kind == "const_expr":
            return self._constant(part, at)
        if kind == "ident_expr":
            return self._identifier(part.name, at)
        if kind == "select_expr":
            return self._select(part, at)
        if kind == "call_expr":
            return self._call(part, at)
        if kind == "list_expr":
            elements = self._nodes(part.elements, at, "elements")
            return None if elements is None else ListOf(elements)
        return self._map(part, at)

    def _nodes(self, messages: Any, path: str, name: str) -> list[Node] | None:
        built = [self.node(one, item(path, name, index)) for index, one in enumerate(messages)]
        found = [one for one in built if one is not None]
        return found if len(found) == len(built) else None

    def _constant(self, message: Any, path: str) -> Node | None:
        kind: str | None = message.WhichOneof("constant_kind")
        if kind is None:
            self._refuse(path, "is empty")
            return None
        if kind == "null_value":
            return Constant(None)
        if kind == "uint64_value":
            return Constant(UInt(message.uint64_value))
        value = getattr(message, kind)
        if kind not in ("duration_value", "timestamp_value"):
            return Constant(value)
        ns = value.seconds * NS + value.nanos
        try:
            return Constant(span_of(ns) if kind == "duration_value" else timestamp_of(ns))
        except CelError as error:
            self._refuse(path, str(error))
            return None

    def _identifier(self, name: str, path: str) -> Node | None:
        if name in _TYPES:
            return Constant(TypeName(name))
        if name in NOT_HERE:
            self._refuse(path, f"{name}: {NOT_HERE[name]}")
        elif name in ATTRIBUTES:
            self._refuse(path, f"{name} has no value of its own: name one of {', '.join(ATTRIBUTES[name])}")
        else:
            self._refuse(path, f"there is no {name}; these are: {', '.join(ATTRIBUTES)}")
        return None

    def _select(self, message: Any, path: str) -> Node | None:
        name: str = message.field
        operand = message.operand
        root = operand.ident_expr.name if operand.WhichOneof("expr_kind") == "ident_expr" else ""
        if root in ATTRIBUTES:
            attribute = self._attribute(root, name, path)
            if attribute is None:
                return None
            return Has(attribute) if message.test_only else Asked(attribute)
        inner = self.node(operand, child(path, "operand"))
        if inner is None:
            return None
        return HasField(inner, name) if message.test_only else Field(inner, name)

    def _attribute(self, root: str, name: str, path: str) -> Attribute | None:
        found = ATTRIBUTES[root].get(name)
        if found is None:
            self._refuse(path, f"there is no {root}.{name} here; these are: {', '.join(ATTRIBUTES[root])}")
        return found

    def _call(self, message: Any, path: str) -> Node | None:
        asked = self._indexed_root(message, path)
        if asked is not None:
            return asked
        name: str = message.function
        messages = [message.target] if message.HasField("target") else []
        given = self._nodes([*messages, *message.args], path, "args")
        if given is None:
            return None
        if name in ("_&&_", "_||_") and len(given) == 2:
            return Logical(name == "_||_", given[0], given[1])
        if name == "_?_:_" and len(given) == 3:
            return Conditional(given[0], given[1], given[2])
        if name == "matches" and len(given) == 2:
            return self._matches(given[0], given[1], path)
        if name == "string" and self._converts and len(given) == 1:
            return Call(to_string, given)
        if name == "_+_" and self._joins and len(given) == 2:
            return Call(add_or_join, given)
        return self._function(name, given, path)

    def _indexed_root(self, message: Any, path: str) -> Node | None:
        """`request['path']`."""
        if message.function != "_[_]" or len(message.args) != 2:
            return None
        root, key = message.args[0].ident_expr.name, message.args[1].const_expr
        if root not in ATTRIBUTES or key.WhichOneof("constant_kind") != "string_value":
            return None
        attribute = ATTRIBUTES[root].get(key.string_value)
        return None if attribute is None else Asked(attribute)

    def _function(self, name: str, given: list[Node], path: str) -> Node | None:
        found = FUNCTIONS.get(name)
        if found is None:
            self._refuse(child(path, "function"), f"there is no function {name}")
            return None
        least, most, function = found
        if not least <= len(given) <= most:
            self._refuse(path, f"{name} takes other than {len(given)} arguments")
            return None
        return Call(function, given)

    def _matches(self, operand: Node, pattern: Node, path: str) -> Node | None:
        value = pattern.value if isinstance(pattern, Constant) else None
        if not isinstance(value, str):
            self._refuse(path, "the pattern of matches must be a constant string")
            return None
        try:
            return Matches(operand, Regex(value))
        except RegexError as error:
            self._refuse(path, str(error))
            return None

    def _map(self, message: Any, path: str) -> Node | None:
        if message.message_name:
            self._refuse(path, f"messages ({message.message_name}) cannot be made in expressions")
            return None
        keys = self._nodes([one.map_key for one in message.entries], path, "entries")
        values = self._nodes([one.value for one in message.entries], path, "entries")
        return None if keys is None or values is None else MapOf(keys, values)
