"""CEL as people write it -> the tree that configurations carry, for tests: conditions are not written by hand there."""

from __future__ import annotations

import re
from typing import Any, Final

from google.api.expr.v1alpha1.syntax_pb2 import Expr
from google.protobuf.json_format import MessageToDict

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>\d+\.\d+(?:e[-+]?\d+)?|\d+e[-+]?\d+|\d+u?)|(?P<bytes>b'[^']*')|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>&&|\|\||==|!=|<=|>=|[-+*/%<>!?:.,()\[\]{}]))"
)
_LEVELS: Final = (("||",), ("&&",), ("<", "<=", ">", ">=", "==", "!=", "in"), ("+", "-"), ("*", "/", "%"))


def parse(text: str) -> Expr:
    """The tree of an expression. Raises AssertionError for what is none."""
    reader = _Reader(text)
    found = reader.whole()
    assert reader.next == "", f"{reader.next!r} is left of {text!r}"
    return found


def as_json(text: str) -> dict[str, Any]:
    """The same in the form that configurations have."""
    found: dict[str, Any] = MessageToDict(parse(text), preserving_proto_field_name=True)
    return found


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens = [(match.lastgroup or "", match[0].strip()) for match in _TOKEN.finditer(text)]
        assert "".join(value for _, value in self._tokens).replace(" ", "") == text.replace(" ", ""), text
        self._at = 0
        self._ids = 0

    @property
    def next(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def take(self, *wanted: str) -> str:
        """The next token if it is one of these, else ""."""
        found = self.next
        if found in wanted and found:
            self._at += 1
            return found
        return ""

    def expect(self, wanted: str) -> None:
        assert self.take(wanted), f"{wanted!r} is missing before {self.next!r}"

    def made(self, **fields: Any) -> Expr:
        self._ids += 1
        return Expr(id=self._ids, **fields)

    def call(self, function: str, *arguments: Expr, target: Expr | None = None) -> Expr:
        return self.made(call_expr=Expr.Call(function=function, args=arguments, target=target))

    def whole(self) -> Expr:
        condition = self.level(0)
        if not self.take("?"):
            return condition
        then = self.level(0)
        self.expect(":")
        return self.call("_?_:_", condition, then, self.whole())

    def level(self, number: int) -> Expr:
        if number == len(_LEVELS):
            return self.unary()
        left = self.level(number + 1)
        while operator := self.take(*_LEVELS[number]):
            right = self.level(number + 1)
            left = self.call("@in" if operator == "in" else f"_{operator}_", left, right)
        return left

    def unary(self) -> Expr:
        operator = self.take("!", "-")
        return self.call(f"{operator}_", self.unary()) if operator else self.member()

    def member(self) -> Expr:
        found = self.primary()
        while mark := self.take(".", "["):
            if mark == "[":
                found = self.call("_[_]", found, self.whole())
                self.expect("]")
                continue
            name = self.name()
            if self.take("("):
                found = self.call(name, *self.several(")"), target=found)
            else:
                found = self.made(select_expr=Expr.Select(operand=found, field=name))
        return found

    def name(self) -> str:
        kind, value = self._tokens[self._at]
        assert kind == "name", value
        self._at += 1
        return value

    def several(self, end: str) -> list[Expr]:
        found: list[Expr] = []
        while not self.take(end):
            found.append(self.whole())
            assert self.next in (",", end), self.next
            self.take(",")
        return found

    def primary(self) -> Expr:
        if self.take("("):
            found = self.whole()
            self.expect(")")
            return found
        if self.take("["):
            return self.made(list_expr=Expr.CreateList(elements=self.several("]")))
        if self.take("{"):
            return self.mapping()
        kind, value = self._tokens[self._at]
        if kind != "name":
            self._at += 1
            return self.made(const_expr=_constant(kind, value))
        if value in ("true", "false", "null"):
            self._at += 1
            constant = {"null_value": 0} if value == "null" else {"bool_value": value == "true"}
            return self.made(const_expr=constant)
        return self.named()

    def named(self) -> Expr:
        name = self.name()
        if not self.take("("):
            return self.made(ident_expr=Expr.Ident(name=name))
        arguments = self.several(")")
        if name != "has":
            return self.call(name, *arguments)
        (argument,) = arguments
        argument.select_expr.test_only = True
        return argument

    def mapping(self) -> Expr:
        entries = []
        while not self.take("}"):
            key = self.whole()
            self.expect(":")
            entries.append(Expr.CreateStruct.Entry(map_key=key, value=self.whole()))
            self.take(",")
        return self.made(struct_expr=Expr.CreateStruct(entries=entries))


def _constant(kind: str, value: str) -> dict[str, Any]:
    if kind == "text":
        return {"string_value": value[1:-1]}
    if kind == "bytes":
        return {"bytes_value": value[2:-1].encode()}
    if value.endswith("u"):
        return {"uint64_value": int(value[:-1])}
    return {"int64_value": int(value)} if value.isdigit() else {"double_value": float(value)}
