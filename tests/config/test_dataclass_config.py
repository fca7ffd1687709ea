"""A Struct as a dataclass: what annotations take, and what is said of the rest."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, Literal, Optional

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from meshproxy.config.dataclass_config import build_dataclass
from meshproxy.config.errors import ConfigErrors


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Inner:
    depth: int
    more: list[Inner] = field(default_factory=list)


@dataclass
class Everything:
    text: str = ""
    raw: bytes = b""
    flag: bool = False
    count: int = 0
    share: float = 0.0
    wait: timedelta = timedelta()
    anything: Any = None
    perhaps: Optional[int] = None  # noqa: UP045  users write it so
    either: int | str | None = None
    mode: Literal["a", "b"] = "a"
    colour: Colour = Colour.RED
    many: list[int] = field(default_factory=list)
    pair: tuple[int, str] = (0, "")
    row: tuple[int, ...] = ()
    names: frozenset[str] = frozenset()
    table: dict[str, list[bool]] = field(default_factory=dict)
    inner: Inner | None = None
    noted: Annotated[int, "a note"] = 0


def build(kind: type[Any], values: dict[str, Any]) -> tuple[Any, list[str]]:
    errors = ConfigErrors()
    made = build_dataclass(kind, json_format.ParseDict(values, Struct()), "config", errors)
    return made, [str(error) for error in errors.sorted()]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Everything()),
        ({"text": "é", "raw": "é", "flag": True}, Everything(text="é", raw="é".encode(), flag=True)),
        ({"count": 3, "share": 3, "noted": 7}, Everything(count=3, share=3.0, noted=7)),
        ({"wait": "1.5s"}, Everything(wait=timedelta(seconds=1.5))),
        ({"anything": {"a": [1, None]}}, Everything(anything={"a": [1, None]})),
        ({"perhaps": None, "either": "x"}, Everything(either="x")),
        ({"perhaps": 1, "either": 2}, Everything(perhaps=1, either=2)),
        ({"mode": "b", "colour": "BLUE"}, Everything(mode="b", colour=Colour.BLUE)),
        ({"colour": 2}, Everything(colour=Colour.BLUE)),
        ({"many": [1, 2], "row": [3], "names": ["x", "x"]}, Everything(many=[1, 2], row=(3,), names=frozenset("x"))),
        ({"pair": [1, "x"]}, Everything(pair=(1, "x"))),
        ({"table": {"k": [True]}}, Everything(table={"k": [True]})),
        ({"inner": {"depth": 1, "more": [{"depth": 2}]}}, Everything(inner=Inner(1, [Inner(2)]))),
    ],
)
def test_values(values: dict[str, Any], expected: Everything) -> None:
    made, errors = build(Everything, values)
    assert errors == []
    assert made == expected
    assert type(made.count) is int
    assert type(made.share) is float


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"text": 1}, "config.text: must be a string, not 1"),
        ({"flag": 1}, "config.flag: must be true or false, not 1"),
        ({"count": True}, "config.count: must be a whole number, not True"),
        ({"count": 1.5}, "config.count: must be a whole number, not 1.5"),
        ({"count": None}, "config.count: must be a whole number, not null"),
        ({"wait": "1m"}, "config.wait: must be a duration, such as \"1.5s\", not '1m'"),
        ({"perhaps": "x"}, "config.perhaps: must be a whole number, not 'x'"),
        ({"either": []}, "config.either: must be a whole number or a string or null, not a list"),
        ({"mode": "c"}, "config.mode: must be one of 'a', 'b', not 'c'"),
        ({"colour": "GREEN"}, "config.colour: must be one of RED, BLUE, not 'GREEN'"),
        ({"many": {}}, "config.many: must be a list, not an object"),
        ({"many": [1, "x"]}, "config.many[1]: must be a whole number, not 'x'"),
        ({"pair": [1]}, "config.pair: must have 2 items, has 1"),
        ({"table": {"k": [1]}}, "config.table.k[0]: must be true or false, not 1"),
        ({"table": []}, "config.table: must be an object, not a list"),
        ({"inner": {}}, "config.inner.depth: is required: a whole number"),
        ({"inner": {"depth": 1, "more": [{}]}}, "config.inner.more[0].depth: is required: a whole number"),
        ({"colr": 1}, "config.colr: there is no such field (did you mean 'colour'?)"),
    ],
)
def test_errors(values: dict[str, Any], error: str) -> None:
    made, errors = build(Everything, values)
    assert made is None
    assert errors == [error]


def test_all_errors_are_told_at_once() -> None:
    _, errors = build(Everything, {"count": "x", "flag": "y", "zzz": 1})
    assert len(errors) == 3


@dataclass
class Checked:
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low: {self.low} exceeds high")


def test_a_check_of_its_own() -> None:
    assert build(Checked, {"low": 1, "high": 2})[0] == Checked(1, 2)
    assert build(Checked, {"low": 3, "high": 2}) == (None, ["config: low: 3 exceeds high"])
    assert build(Checked, {"low": 3}) == (None, ["config.high: is required: a whole number"])
