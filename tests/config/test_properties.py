"""Whatever stands in a configuration, it is refused or taken: nothing raises."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshproxy.config.errors import ConfigErrors
from meshproxy.config.fields import check_fields
from meshproxy.config.loader import load_bootstrap, load_value
from meshproxy.config.runtime import Runtime
from meshproxy.config.validate import validate_message
from tests.config.bootstraps import GOOD, good

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["1s", "-1s", "0.5s", "STATIC", "5", "@type", "\ud800", "1e999", "*", "type.googleapis.com/x"]),
    st.just([]),
    st.just({}),
    st.lists(st.just({"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}), max_size=2),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in `value`."""
    if isinstance(value, dict):
        return [(value, key) for key in value] + [place for each in value.values() for place in places(each)]
    if isinstance(value, list):
        return [(value, index) for index in range(len(value))] + [place for each in value for place in places(each)]
    return []


def read(text: str) -> None:
    errors = ConfigErrors()
    bootstrap = load_bootstrap(text, errors=errors)
    assert bootstrap is not None or errors
    if bootstrap is not None:
        validate_message(bootstrap, "", errors)
        check_fields(bootstrap, "", errors)
    assert all(each.reason for each in errors.items)


@given(st.data())
@settings(max_examples=300)
def test_a_mutated_configuration_never_raises(data: st.DataObject) -> None:
    value = good()
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(value) or [(value, "x")]))
        odd = copy.deepcopy(data.draw(ODD))
        if isinstance(container, dict) and data.draw(st.booleans()):
            container[data.draw(st.text(max_size=5))] = odd
        else:
            container[key] = odd
    read(json.dumps(value))


@given(st.integers(0, len(GOOD)), st.integers(0, 40), st.text(max_size=5))
@settings(max_examples=200)
def test_mutated_text_never_raises(start: int, length: int, text: str) -> None:
    read(GOOD[:start] + text + GOOD[start + length :])


@given(st.binary(max_size=60))
def test_any_bytes_are_a_value_or_an_error(text: bytes) -> None:
    errors = ConfigErrors()
    value = load_value(text, errors)
    assert value is None or not errors


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=12), st.sampled_from(["[[[", "NaN", "1e999"]))))
def test_any_runtime_change_is_taken(changes: dict[str, str]) -> None:
    runtime = Runtime()
    follower = runtime.integer("a", 3)
    runtime.modify(changes)
    runtime.entries()
    for key in runtime.snapshot():
        runtime.get_int(key, 1)
        runtime.get_double(key, 1.0)
        runtime.get_fraction(key, 1)
    assert follower.value >= 0
