from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.testing import ConfigError, FilterTest, load_file

FILE = Path(__file__).with_name("redact_json.py")
JSON = {"content-type": "application/json; charset=utf-8"}


# The oracle: the same on the whole value.
def redacted(value: Any, fields: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: "***" if key in fields else redacted(each, fields) for key, each in value.items()}
    if isinstance(value, list):
        return [redacted(each, fields) for each in value]
    return value


keys = st.sampled_from(["a", "secret", "s\u00e9cret", 'q"uote', "back\\slash", ""]) | st.text(max_size=4)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
REDACTOR = load_file(FILE).Redactor


@given(values, st.frozensets(keys, max_size=3), st.booleans(), st.sampled_from([None, 1]), st.data())
def test_any_json_in_any_pieces(
    value: Any, fields: frozenset[str], ascii_only: bool, indent: int | None, data: st.DataObject
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    redactor = REDACTOR(fields, b'"***"')
    out = b"".join(redactor.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
    assert json.loads(out) == redacted(value, fields)


@given(st.binary(max_size=60), st.integers(0, 60))
def test_what_is_no_json_does_not_raise(text: bytes, cut: int) -> None:
    redactor = REDACTOR(frozenset({"a"}), b'"***"')
    redactor.feed(text[:cut])
    redactor.feed(text[cut:])


async def test_a_response() -> None:
    async with FilterTest(FILE, {"fields": ["token", "card"]}) as t:
        t.upstream.respond(200, {**JSON, "etag": '"x"'}, '{"user": "ann", "token": "t", "n": [{"card": {"no": 1}}]}')
        response = await t.request("GET", "/", {"accept-encoding": "gzip", "range": "bytes=5-"})
        assert response.json() == {"user": "ann", "token": "***", "n": [{"card": "***"}]}
        assert (response.header("content-length"), response.header("etag")) == (None, None)
        assert t.upstream.requests[0].header("accept-encoding") is None
        assert t.upstream.requests[0].header("range") is None


async def test_pieces_go_on_as_they_come() -> None:
    async with FilterTest(FILE, {"fields": ["token"], "replacement": None}) as t:
        t.upstream.respond(200, JSON, ['{"a": 1, "tok', 'en": "se', 'cret", "b": 2}'])
        response = await t.request("GET", "/")
        assert response.chunks == [b'{"a": 1, "tok', b'en": null', b', "b": 2}']


async def test_other_types_pass() -> None:
    async with FilterTest(FILE, {"fields": ["token"]}) as t:
        t.upstream.respond(200, {"content-type": "text/plain"}, '{"token": 1}')
        response = await t.request("GET", "/")
        assert (response.text, response.header("content-length")) == ('{"token": 1}', "12")


async def test_what_cannot_be_read_is_not_let_through() -> None:
    async with FilterTest(FILE, {"fields": ["token"]}) as t:
        t.upstream.respond(200, {**JSON, "content-encoding": "gzip"}, "…")
        response = await t.request("GET", "/")
        assert (response.status, response.details) == (502, "redact_json_cannot_read")


async def test_a_configuration_without_fields() -> None:
    with pytest.raises(ConfigError, match="fields: at least one"):
        await FilterTest(FILE, {"fields": []}).start()
