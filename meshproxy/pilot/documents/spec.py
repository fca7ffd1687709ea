"""How the kinds of documents are declared: frozen dataclasses whose annotations say what a value must be.

An attribute is named as its field, in snake case (`per_try_timeout` is `perTryTimeout`); one without a default is
required. `Annotated[T, rule, …]` adds rules. A class may have
- REFUSED: fields that its API has and that cannot be honoured, with the reason,
- IGNORED: fields that have no effect, which harms nothing, with the reason,
- ONE_OF: groups of fields of which at most one may be set,
- a method `check(at)`, which says what is wrong between its fields.
Everything in a spec is hashable: lists are tuples, maps are sorted tuples of pairs, free JSON is its canonical text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NewType, TypeAlias, TypeVar, dataclass_transform

T = TypeVar("T")

Refused: TypeAlias = dict[str, str]
# Says what is wrong with a value, None for nothing.
Rule: TypeAlias = Callable[[Any], "str | None"]
Map: TypeAlias = tuple[tuple[str, T], ...]
# Any JSON, as its canonical text.
Json = NewType("Json", str)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def spec(cls: type[T]) -> type[T]:
    """A part of a document."""
    return dataclass(frozen=True, slots=True, kw_only=True)(cls)


def field_name(attribute: str) -> str:
    """The field of a document that an attribute stands for: `perTryTimeout` for `per_try_timeout`."""
    first, *others = attribute.rstrip("_").split("_")
    return first + "".join("IP" if word == "ip" and first == "cluster" else word.capitalize() for word in others)
