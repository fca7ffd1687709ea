"""A configuration file's text -> the Envoy message, with every error at its path.

YAML's plain scalars have the types that Envoy gives them, so that a file means the same here and there: `on`, `yes` and
`y` are booleans, `012` is octal, and all that is no boolean or integer is a string, `1.5`, `1:30` and `2026-01-01` too
(a string is read as a number where the field is one).
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, TypeVar

import yaml
from google.protobuf.message import Message

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.json_message import MAX_DEPTH, MessageParser

M = TypeVar("M", bound=Message)

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_WORDS: Final = {
    spelling: truth
    for truth, words in ((True, ("true", "yes", "on", "y")), (False, ("false", "no", "off", "n")))
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
}
_DECIMAL: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,18})", re.ASCII)
_OCTAL: Final = re.compile(r"[-+]?0[0-7]{1,21}", re.ASCII)
_HEX: Final = re.compile(r"[-+]?0[xX][0-9a-fA-F]{1,16}", re.ASCII)
# A larger integer stays a string, as JSON's numbers do not hold it.
_LARGEST: Final = 2**53


class _Syntax(Exception):
    """The text is not YAML or JSON, or not what we take of it."""


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """Composes nodes only: what a plain scalar means is decided here, not by YAML 1.1's resolvers."""

    yaml_implicit_resolvers: dict[str, Any] = {}


def load_bootstrap(
    text: str | bytes, *, overlay: str = "", allow_unknown_fields: bool = False, errors: ConfigErrors
) -> Any | None:
    """The `envoy.config.bootstrap.v3.Bootstrap` in `text`, YAML or JSON; with errors, what could be read of it.
    None when it is no message at all.

    `overlay` is what `--config-yaml` gives: it is merged over the file as protobuf merges messages (lists are joined).
    """
    from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap

    bootstrap = Bootstrap()
    if not text and not overlay:
        errors.add("", "the configuration is empty")
        return None
    for part in (text, overlay):
        if not part:
            continue
        loaded = load_message(part, Bootstrap, allow_unknown_fields=allow_unknown_fields, errors=errors)
        if loaded is None:
            return None
        bootstrap.MergeFrom(loaded)
    return bootstrap


def load_message(
    text: str | bytes, kind: type[M], *, allow_unknown_fields: bool = False, errors: ConfigErrors
) -> M | None:
    """One message of YAML or JSON text: what could be read of it, and all errors. None when it is no message at all."""
    before = len(errors)
    value = load_value(text, errors)
    if len(errors) != before:
        return None
    if value is None:
        errors.add("", "the configuration is empty")
        return None
    message = kind()
    MessageParser(errors, allow_unknown_fields=allow_unknown_fields).fill(message, value, "")
    return message


def load_value(text: str | bytes, errors: ConfigErrors) -> Any:
    """The plain value of YAML or JSON text; None, with an error, when it is neither."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        return _load_json(text) if text.lstrip().startswith("{") else _load_yaml(text)
    except UnicodeDecodeError as error:
        errors.add("", f"the text is not UTF-8 (byte {error.start})")
    except _Syntax as error:
        errors.add("", str(error))
    except RecursionError:
        errors.add("", "nested too deeply")
    return None


def _load_json(text: str) -> Any:
    """JSON; when it is not, flow-style YAML may begin with a brace as well."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        try:
            return _load_yaml(text)
        except _Syntax:
            raise _Syntax(f"line {error.lineno}, column {error.colno}: {error.msg}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Syntax(f"the key {twice!r} is given twice in one object")
    return members


def _no_constant(name: str) -> Any:
    raise _Syntax(f"{name} is not JSON")


def _load_yaml(text: str) -> Any:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _Syntax(_yaml_reason(error)) from None
    except ValueError as error:  # an escape such as "\UFFFFFFFF" is no character
        raise _Syntax(str(error)) from None
    return None if node is None else _value(node, 0)


def _yaml_reason(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _value(node: yaml.Node, depth: int) -> Any:
    if depth > 2 * MAX_DEPTH:
        raise _Syntax(f"line {node.start_mark.line + 1}: nested too deeply")
    if isinstance(node, yaml.ScalarNode):
        return scalar(node.value) if not node.style else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, depth + 1) for each in node.value]
    return _mapping(node, depth)


def _mapping(node: yaml.Node, depth: int) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.tag == "!ignore":  # Envoy passes over a key with this tag: a place to define anchors
            continue
        if not isinstance(key, yaml.ScalarNode):
            raise _Syntax(f"line {line}: a key must be a string")
        if key.value in members:
            raise _Syntax(f"line {line}: the key {key.value!r} is given twice in one mapping")
        members[key.value] = _value(value, depth + 1)
    return members


def scalar(text: str) -> bool | int | str | None:
    """The value of a plain YAML scalar, typed as Envoy types it: null, boolean, integer, else string."""
    if text in _NULLS:
        return None
    if text in _WORDS:
        return _WORDS[text]
    number: int | None = None
    for pattern, base in ((_DECIMAL, 10), (_OCTAL, 8), (_HEX, 16)):
        if pattern.fullmatch(text):
            number = int(text, base)
    return text if number is None or abs(number) > _LARGEST else number
