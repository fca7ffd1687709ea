"""Compiled expressions: a tree of small objects that are asked for their values."""

from __future__ import annotations

from meshproxy.config.regex import Regex
from meshproxy.matching.cel.attributes import Attribute
from meshproxy.matching.cel.functions import Function
from meshproxy.matching.cel.values import CelError, MapValue, element, key_of
from meshproxy.matching.facts import Facts


class Node:
    """One expression. `evaluate` raises CelError where it has no value."""

    def evaluate(self, facts: Facts) -> object:
        raise NotImplementedError


class Constant(Node):
    def __init__(self, value: object) -> None:
        self.value = value

    def evaluate(self, facts: Facts) -> object:
        return self.value


class Asked(Node):
    """An attribute: `request.path`."""

    def __init__(self, attribute: Attribute) -> None:
        self.attribute = attribute

    def evaluate(self, facts: Facts) -> object:
        return self.attribute(facts)


class Has(Node):
    """`has(request.referer)`: whether an attribute is there."""

    def __init__(self, attribute: Attribute) -> None:
        self.attribute = attribute

    def evaluate(self, facts: Facts) -> object:
        try:
            self.attribute(facts)
        except CelError:
            return False
        return True


def map_of(node: Node, facts: Facts) -> MapValue:
    """The value of `node`, of which a field is asked. Raises CelError."""
    found = node.evaluate(facts)
    if isinstance(found, MapValue):
        return found
    raise CelError("this has no fields")


class HasField(Node):
    """`has(map.name)`."""

    def __init__(self, operand: Node, name: str) -> None:
        self.operand = operand
        self.name = name

    def evaluate(self, facts: Facts) -> object:
        return map_of(self.operand, facts).has(self.name)


class Field(Node):
    """`map.name`."""

    def __init__(self, operand: Node, name: str) -> None:
        self.operand = operand
        self.name = name

    def evaluate(self, facts: Facts) -> object:
        return element(map_of(self.operand, facts), self.name)


class Call(Node):
    def __init__(self, function: Function, arguments: list[Node]) -> None:
        self.function = function
        self.arguments = arguments

    def evaluate(self, facts: Facts) -> object:
        return self.function([argument.evaluate(facts) for argument in self.arguments])


class Logical(Node):
    """`&&` (whose `decisive` value is False) and `||` (True): one side that is decisive decides, whatever the other
    is."""

    def __init__(self, decisive: bool, left: Node, right: Node) -> None:
        self.decisive = decisive
        self.left = left
        self.right = right

    def evaluate(self, facts: Facts) -> object:
        first = self._side(self.left, facts)
        if first is self.decisive:
            return first
        second = self._side(self.right, facts)
        if second is self.decisive:
            return second
        if first is None or second is None:
            raise CelError("one side is neither true nor false")
        return not self.decisive

    def _side(self, node: Node, facts: Facts) -> bool | None:
        """None for what is neither."""
        try:
            found = node.evaluate(facts)
        except CelError:
            return None
        return found if isinstance(found, bool) else None


class Conditional(Node):
    """`a ? b : c`."""

    def __init__(self, condition: Node, then: Node, otherwise: Node) -> None:
        self.condition = condition
        self.then = then
        self.otherwise = otherwise

    def evaluate(self, facts: Facts) -> object:
        found = self.condition.evaluate(facts)
        if not isinstance(found, bool):
            raise CelError("the condition is neither true nor false")
        return self.then.evaluate(facts) if found else self.otherwise.evaluate(facts)


class Matches(Node):
    """`text.matches('pattern')`: some part of the text does."""

    def __init__(self, operand: Node, regex: Regex) -> None:
        self.operand = operand
        self.regex = regex

    def evaluate(self, facts: Facts) -> object:
        found = self.operand.evaluate(facts)
        if isinstance(found, str):
            return self.regex.search(found.encode("utf-8", "surrogateescape"))
        raise CelError("this is for strings")


class ListOf(Node):
    def __init__(self, elements: list[Node]) -> None:
        self.elements = elements

    def evaluate(self, facts: Facts) -> object:
        return [each.evaluate(facts) for each in self.elements]


class MapOf(Node):
    def __init__(self, keys: list[Node], values: list[Node]) -> None:
        self.keys = keys
        self.values = values

    def evaluate(self, facts: Facts) -> object:
        found: dict[object, object] = {}
        for key, value in zip(self.keys, self.values, strict=True):
            name = key_of(key.evaluate(facts))
            if name in found:
                raise CelError("a key is given twice")
            found[name] = value.evaluate(facts)
        return MapValue(found)
