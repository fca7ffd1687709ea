"""A spec -> the plain value of its document: what stands at its default is left out."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
import types
import typing
from datetime import timedelta
from typing import Any

import yaml

from meshproxy.config.loader import scalar
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


_known: dict[str, list[tuple[str, Any, Any]]] = {}


def _fields(kind: type[Any]) -> list[tuple[str, Any, Any]]:
    """Attribute, default and type of each field."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name not in _known:
        hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]), {})
        fields = dataclasses.fields(kind)
        _known[name] = [(each.name, each.default, _bare(hints[each.name])) for each in fields]
    return _known[name]


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


def yaml_text(value: Any) -> str:
    """A plain value as YAML, which reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Quotes what would not be read as a string: `y` and `012` too."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if isinstance(scalar(text), str) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)
