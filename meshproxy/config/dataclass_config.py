"""A Struct of a configuration as an instance of a dataclass: every value checked against its annotation, with its path.

What annotations may be made of: str, bytes (of UTF-8 text), bool, int, float, timedelta ("1.5s"), Any, None, Literal,
enums (by name or value), list, tuple, set, frozenset, dict of str, `X | Y`, and dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import re
import sys
import types
import typing
from datetime import timedelta
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from meshproxy.config.errors import ConfigErrors

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)s")
_NAMES: Final[dict[Any, str]] = {str: "a string", bool: "true or false", int: "a whole number", float: "a number"}
_FAILED: Final = object()


def build_dataclass(kind: type[Any], struct: Struct, path: str, errors: ConfigErrors) -> Any | None:
    """An instance of the dataclass `kind`; None when errors were added, each at the path of its value."""
    before = len(errors)
    made = _Reader(errors).dataclass(kind, json_format.MessageToDict(struct), path)
    return None if len(errors) != before else made


def describe(annotation: Any) -> str:
    """What a value of this annotation looks like, in words."""
    if annotation in _NAMES:
        return _NAMES[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(one) for one in arguments)
    if _is_union(origin):
        return " or ".join(describe(one) for one in arguments)
    if annotation is None or annotation is type(None):
        return "null"
    if annotation is bytes:
        return "a string"
    if annotation is timedelta:
        return 'a duration, such as "1.5s"'
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(one.name for one in annotation)
    if annotation is dict or origin is dict or dataclasses.is_dataclass(annotation):
        return "an object"
    return "a list"


def _is_union(origin: Any) -> bool:
    return origin is typing.Union or origin is types.UnionType


class _Reader:
    def __init__(self, errors: ConfigErrors) -> None:
        self._errors = errors

    def dataclass(self, kind: type[Any], values: Any, path: str) -> Any:
        if not isinstance(values, dict):
            return self._wrong(path, kind, values)
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        annotations = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]))
        arguments: dict[str, Any] = {}
        before = len(self._errors)
        for name, value in values.items():
            where = f"{path}.{name}"
            if name in fields:
                arguments[name] = self.value(annotations[name], value, where)
            else:
                self._errors.add(where, f"there is no such field{_suggest(name, fields)}")
        for name, field in fields.items():
            missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if missing and name not in values:
                self._errors.add(f"{path}.{name}", f"is required: {describe(annotations[name])}")
        if len(self._errors) != before:
            return _FAILED
        try:
            return kind(**arguments)
        except Exception as error:  # noqa: BLE001  what __post_init__ finds is wrong with this configuration
            self._errors.add(path, str(error) or type(error).__name__)
            return _FAILED

    def value(self, annotation: Any, value: Any, path: str) -> Any:
        """`value`, as JSON has it, as the annotation wants it; _FAILED after an error."""
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if annotation is Any:
            return value
        if origin is typing.Annotated:
            return self.value(arguments[0], value, path)
        if _is_union(origin):
            return self._union(arguments, annotation, value, path)
        if origin is typing.Literal:
            return value if value in arguments else self._wrong(path, annotation, value)
        if origin is dict or annotation is dict:
            return self._dict(arguments, value, path)
        if origin in _SEQUENCES or annotation in _SEQUENCES:
            return self._sequence(origin or annotation, arguments, value, path)
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            return self.dataclass(annotation, value, path)
        if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
            return self._enum(annotation, value, path)
        return self._scalar(annotation, value, path)

    def _scalar(self, annotation: Any, value: Any, path: str) -> Any:
        if annotation is str and isinstance(value, str):
            return value
        if annotation is bytes and isinstance(value, str):
            return value.encode()
        if annotation is bool and isinstance(value, bool):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if annotation is float:
                return float(value)
            if annotation is int and value == int(value):  # numbers of a Struct are doubles
                return int(value)
        if annotation is timedelta and isinstance(value, str):
            match = _DURATION.fullmatch(value)
            if match is not None:
                return timedelta(seconds=float(match[1]))
        if annotation in (None, type(None)) and value is None:
            return None
        return self._wrong(path, annotation, value)

    def _union(self, alternatives: tuple[Any, ...], annotation: Any, value: Any, path: str) -> Any:
        """The first alternative that the value fits; where only one is not None, its errors are told."""
        real = [one for one in alternatives if one is not type(None)]
        if value is None and len(real) != len(alternatives):
            return None
        if len(real) == 1:
            return self.value(real[0], value, path)
        for one in real:
            found = _Reader(ConfigErrors()).value(one, value, path)
            if found is not _FAILED:
                return found
        return self._wrong(path, annotation, value)

    def _dict(self, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
        if not isinstance(value, dict):
            return self._wrong(path, dict, value)
        of = arguments[1] if arguments else Any
        found = {key: self.value(of, each, f"{path}.{key}") for key, each in value.items()}
        return _FAILED if _FAILED in found.values() else found

    def _sequence(self, kind: Any, arguments: tuple[Any, ...], value: Any, path: str) -> Any:
        if not isinstance(value, list):
            return self._wrong(path, kind, value)
        fixed = kind is tuple and arguments and arguments[-1] is not Ellipsis
        if fixed and len(value) != len(arguments):
            self._errors.add(path, f"must have {len(arguments)} items, has {len(value)}")
            return _FAILED
        of = arguments if fixed else [arguments[0] if arguments else Any] * len(value)
        found = [self.value(of[index], each, f"{path}[{index}]") for index, each in enumerate(value)]
        return _FAILED if any(one is _FAILED for one in found) else kind(found)

    def _enum(self, kind: type[enum.Enum], value: Any, path: str) -> Any:
        for one in kind:
            if value in (one.name, one.value):
                return one
        return self._wrong(path, kind, value)

    def _wrong(self, path: str, annotation: Any, value: Any) -> Any:
        if isinstance(value, float) and value == int(value):
            value = int(value)  # as it was written, most likely: numbers of a Struct are doubles
        shown = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
        self._errors.add(path, f"must be {describe(annotation)}, not {'null' if value is None else shown}")
        return _FAILED


_SEQUENCES: Final = (list, tuple, set, frozenset)


def _suggest(name: str, fields: dict[str, Any]) -> str:
    near = difflib.get_close_matches(name, fields, 1)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (there are {', '.join(fields)})" if fields else ""
