"""A spec -> the plain value of its document: what stands at its default is left out."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
import types
import typing
from datetime import timedelta
from functools import cache
from typing import Any

from meshproxy.pilot.documents.duration import duration_text
from meshproxy.pilot.documents.spec import Json, field_name


def plain_spec(spec: Any) -> dict[str, Any]:
    """The fields of a spec as a document has them."""
    found: dict[str, Any] = {}
    for attribute, default, annotation in _fields(type(spec)):
        value = getattr(spec, attribute)
        if value != default or default is dataclasses.MISSING:
            found[field_name(attribute)] = _plain(annotation, value)
    return found


@cache
def _fields(kind: Any) -> list[tuple[str, Any, Any]]:
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]), {})
    return [(each.name, each.default, _bare(hints[each.name])) for each in dataclasses.fields(kind)]


def _bare(annotation: Any) -> Any:
    """Without `| None`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(each for each in typing.get_args(annotation) if each is not type(None))
    return annotation


def _plain(annotation: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return plain_spec(value)
    if annotation is Json:
        return json.loads(value)
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, tuple):
        inner = typing.get_args(annotation)[0]
        if typing.get_origin(inner) is tuple:
            return {key: _plain(typing.get_args(inner)[1], each) for key, each in value}
        return [_plain(inner, each) for each in value]
    return value
