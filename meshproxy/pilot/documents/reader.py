"""A document's YAML -> its spec: every value checked against its annotation, every error at its line and field."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import difflib
import json
import math
import sys
import types
import typing
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any, Final, TypeAlias

import yaml

from meshproxy.config.loader import scalar
from meshproxy.pilot.documents.duration import parse_duration
from meshproxy.pilot.documents.problems import At
from meshproxy.pilot.documents.spec import Json, field_name

Convert: TypeAlias = Callable[[yaml.Node, At], Any]

# What stands for a value after an error was told.
FAILED: Final[Any] = object()
_MAX_DEPTH: Final = 64


def read_spec(kind: Any, node: yaml.Node, at: At) -> Any:
    """An instance of the spec `kind`; FAILED when errors were told."""
    return _converter(kind)(node, at)


def members(node: yaml.Node, at: At) -> dict[str, yaml.Node] | None:
    """The fields of a mapping; None, with an error, when it is none, or has one twice."""
    if not isinstance(node, yaml.MappingNode):
        at.error(f"must be an object, not {shown(node)}")
        return None
    found: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            at.error("a key must be a string")
            return None
        if key.value in found:
            (at / key.value).error("is given twice")
            return None
        found[key.value] = value
    return found


def is_null(node: yaml.Node) -> bool:
    """Whether it says null, or nothing: a field that is as if it were not there."""
    return isinstance(node, yaml.ScalarNode) and not node.style and scalar(node.value) is None


def shown(node: yaml.Node) -> str:
    """What stands there, in words."""
    if isinstance(node, yaml.MappingNode):
        return "an object"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    value = plain_value(node)
    return "null" if value is None else json.dumps(value, ensure_ascii=False)


def suggestion(name: str, known: typing.Iterable[str]) -> str:
    """` (did you mean "x"?)` where a known name is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f' (did you mean "{near[0]}"?)' if near else ""


@cache
def _converter(annotation: Any) -> Convert:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _with_rules(_converter(arguments[0]), arguments[1:])
    if origin is typing.Union or origin is types.UnionType:
        (real,) = (each for each in arguments if each is not type(None))
        return _converter(real)
    if origin is typing.Literal:
        return _one_of(arguments)
    if origin is tuple:
        pair = typing.get_args(arguments[0])
        if typing.get_origin(arguments[0]) is tuple and pair[0] is str:
            return _map_of(_converter(pair[1]))
        return _list_of(_converter(arguments[0]))
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        return _SpecReader(annotation).read
    return _SCALARS[annotation]


def _with_rules(convert: Convert, rules: tuple[Any, ...]) -> Convert:
    def read(node: yaml.Node, at: At) -> Any:
        value = convert(node, at)
        if value is FAILED:
            return FAILED
        for rule in rules:
            reason = rule(value)
            if reason is not None:
                at.error(reason)
                return FAILED
        return value

    return read


def _one_of(values: tuple[Any, ...]) -> Convert:
    def read(node: yaml.Node, at: At) -> Any:
        if isinstance(node, yaml.ScalarNode) and node.value in values:
            return node.value
        at.error(f"must be one of {', '.join(values)}, not {shown(node)}")
        return FAILED

    return read


def _list_of(convert: Convert) -> Convert:
    def read(node: yaml.Node, at: At) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            at.error(f"must be a list, not {shown(node)}")
            return FAILED
        found = []
        for index, each in enumerate(node.value):
            found.append(_not_null(convert, each, at / index))
        return FAILED if any(each is FAILED for each in found) else tuple(found)

    return read


def _map_of(convert: Convert) -> Convert:
    def read(node: yaml.Node, at: At) -> Any:
        entries = members(node, at)
        if entries is None:
            return FAILED
        found = [(key, _not_null(convert, entries[key], at / key)) for key in sorted(entries)]
        return FAILED if any(value is FAILED for _, value in found) else tuple(found)

    return read


def _not_null(convert: Convert, node: yaml.Node, at: At) -> Any:
    at.count()
    if is_null(node):
        at.error("must not be null")
        return FAILED
    return convert(node, at)


def plain_value(node: yaml.Node) -> Any:
    """The value of a plain scalar; of a quoted one the string; None for anything else."""
    if not isinstance(node, yaml.ScalarNode):
        return None
    return node.value if node.style else scalar(node.value)


def _is_quoted(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and bool(node.style)


def _wrong(node: yaml.Node, at: At, wanted: str) -> Any:
    at.error(f"must be {wanted}, not {shown(node)}")
    return FAILED


def _string(node: yaml.Node, at: At) -> Any:
    value = plain_value(node)
    if isinstance(value, str):
        return value
    if isinstance(value, bool) and len(node.value) == 1:  # `y` and `n`, which nobody means as booleans
        return node.value
    return _wrong(node, at, "a string (in quotes)" if isinstance(node, yaml.ScalarNode) else "a string")


def _bool(node: yaml.Node, at: At) -> Any:
    value = plain_value(node)
    return value if isinstance(value, bool) else _wrong(node, at, "true or false")


def _int(node: yaml.Node, at: At) -> Any:
    value = plain_value(node)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return _wrong(node, at, "a whole number")


def _float(node: yaml.Node, at: At) -> Any:
    value = plain_value(node)
    if isinstance(value, str) and not _is_quoted(node):
        try:
            value = float(value)
        except ValueError:
            return _wrong(node, at, "a number")
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return _wrong(node, at, "a number")


def _duration(node: yaml.Node, at: At) -> Any:
    value = plain_value(node)
    found = parse_duration(value) if isinstance(value, str) else None
    return _wrong(node, at, 'a duration, such as "1.5s"') if found is None else found


def _bytes(node: yaml.Node, at: At) -> Any:
    try:
        return base64.b64decode(plain_value(node), validate=True)
    except (TypeError, ValueError, binascii.Error):
        return _wrong(node, at, "base64")


def _json(node: yaml.Node, at: At) -> Any:
    try:
        return Json(json.dumps(_json_value(node, 0, at), sort_keys=True, ensure_ascii=False))
    except ValueError as error:
        at.error(str(error))
        return FAILED


def _json_value(node: yaml.Node, depth: int, at: At) -> Any:
    at.count()  # of what an alias stands for, each time
    if depth > _MAX_DEPTH:
        raise ValueError("is nested too deeply")
    if isinstance(node, yaml.SequenceNode):
        return [_json_value(each, depth + 1, at) for each in node.value]
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _json_value(value, depth + 1, at) for key, value in node.value}
    value = plain_value(node)
    return value if _is_quoted(node) else _number(value)


def _number(value: Any) -> Any:
    """What YAML leaves a string and means as a number: 1.5."""
    if isinstance(value, str) and value[:1] in "-.0123456789":
        try:
            found = float(value)
        except ValueError:
            return value
        return found if math.isfinite(found) else value
    return value


_SCALARS: Final[dict[Any, Convert]] = {
    str: _string,
    bool: _bool,
    int: _int,
    float: _float,
    timedelta: _duration,
    bytes: _bytes,
    Json: _json,
}


class _SpecReader:
    """Reads one class of specs; its fields' converters are found when the first one is read."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self._refused: dict[str, str] = getattr(kind, "REFUSED", {})
        self._ignored: dict[str, str] = getattr(kind, "IGNORED", {})
        self._one_of: tuple[tuple[str, ...], ...] = getattr(kind, "ONE_OF", ())
        self._check: Any = getattr(kind, "check", None)
        self._fields: dict[str, tuple[str, Convert]] = {}
        self._required: tuple[str, ...] = ()

    def _prepare(self) -> None:
        hints = typing.get_type_hints(self._kind, vars(sys.modules[self._kind.__module__]), {}, include_extras=True)
        fields = dataclasses.fields(self._kind)
        self._fields = {field_name(each.name): (each.name, _converter(hints[each.name])) for each in fields}
        self._required = tuple(field_name(each.name) for each in fields if each.default is dataclasses.MISSING)

    def read(self, node: yaml.Node, at: At) -> Any:
        if not self._fields:
            self._prepare()
        given = members(node, at)
        if given is None:
            return FAILED
        values: dict[str, Any] = {}
        fine = True
        for name, value in given.items():
            at.count()
            field = self._fields.get(name)
            if field is None:
                fine &= self._other(name, value, at / name)
            elif not is_null(value):
                values[field[0]] = read = field[1](value, at / name)
                fine &= read is not FAILED
        fine &= self._is_complete(given, at)
        if not fine:
            return FAILED
        made = self._kind(**values)
        if self._check is not None:
            self._check(made, at)
        return made

    def _is_complete(self, given: dict[str, yaml.Node], at: At) -> bool:
        fine = True
        for name in self._required:
            if name not in given or is_null(given[name]):
                (at / name).error("is required")
                fine = False
        for group in self._one_of:
            several = [name for name in group if name in given and not is_null(given[name])]
            if len(several) > 1:
                at.error(f"only one of {', '.join(several)} may be set")
                fine = False
        return fine

    def _other(self, name: str, value: yaml.Node, at: At) -> bool:
        """Whether a field that the spec has not got may be passed over."""
        if name in self._ignored or is_null(value):
            return True
        if name in self._refused:
            at.error(self._refused[name])
        else:
            at.error(f"there is no such field{suggestion(name, self._fields)}")
        return False
