"""Elements of a JSON array, in whatever pieces it comes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.http.transcoding.json_array import JsonArray
from meshproxy.http.transcoding.json_request import RequestError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\[]{},: \n') | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('a"\\}'), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(VALUES, max_size=5), st.data(), st.sampled_from([None, 1]))
def test_any_split_gives_the_elements(values: list[Any], data: st.DataObject, indent: int | None) -> None:
    text = json.dumps(values, indent=indent).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    array = JsonArray()
    elements: list[bytes] = []
    for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        elements += array.feed(text[begin:end])
    array.finish()
    assert [json.loads(element) for element in elements] == values
    assert array.size == 0


def test_an_object_is_there_with_its_last_brace() -> None:
    array = JsonArray()
    assert array.feed(b'[ {"a":[1]') == []
    assert array.size == len('{"a":[1]')
    assert array.feed(b"}") == [b'{"a":[1]}']
    assert array.feed(b" , 5") == []
    assert array.feed(b"6]") == [b" 56"]
    assert array.feed(b" \n") == []
    array.finish()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "Expected an array instead of an object"),
        (b" 3", "Expected an array instead of a scalar value."),
        (b'[{"a":1} {"b":2}]', "Expected , or ] after array value."),
        (b"[[1]}", "Expected , or ] after array value."),
        (b"[] x", "Parsing terminated before end of input."),
    ],
)
def test_what_is_no_array(text: bytes, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        JsonArray().feed(text)
    assert str(raised.value) == message


@pytest.mark.parametrize("text", [b"", b"  ", b"[", b"[1", b"[1,", b'["]', b'["\\'])
def test_what_does_not_end(text: bytes) -> None:
    array = JsonArray()
    array.feed(text)
    with pytest.raises(RequestError):
        array.finish()
