"""Trace contexts in headers. W3C by https://www.w3.org/TR/trace-context/, B3 by openzipkin/b3-propagation."""

import re

import pytest

from meshproxy.codec.headers import HeaderMap
from meshproxy.http.tracing.propagation import (
    B3_MULTI,
    B3_NONE,
    B3_SINGLE,
    IDS,
    NO_CONTEXT,
    read_context,
    traceparent,
    write_b3,
)

TRACE = b"0af7651916cd43dd8448eb211c80319c"
SPAN = b"b7ad6b7169203331"
PARENT = b"05e3ac9a4f6e3b90"


def context(*fields: tuple[bytes, bytes]) -> tuple[bytes, bytes, bool, int] | None:
    """(trace, span, sampled, form of B3) as read; None where it could not be."""
    found = read_context(HeaderMap(list(fields)))
    return None if found is None else (found.trace_id, found.span_id, found.sampled, found.b3)


def test_ids_are_random_and_well_formed() -> None:
    made = {IDS.new() for _ in range(200)}
    assert len(made) == 200
    assert len({one[3:35] for one in made}) == len({one[36:52] for one in made}) == 200
    assert all(re.fullmatch(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-00", one) for one in made)
    assert re.fullmatch(rb"[0-9a-f]{16}", IDS.span())


@pytest.mark.parametrize("sampled", [True, False])
def test_a_traceparent_that_is_written_can_be_read(sampled: bool) -> None:
    assert context((b"traceparent", traceparent(TRACE, SPAN, sampled))) == (TRACE, SPAN, sampled, B3_NONE)


def test_the_examples_of_the_standard() -> None:
    value = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    found = read_context(HeaderMap([(b"tracestate", b"rojo=00f067aa0ba902b7"), (b"traceparent", value)]))
    assert found is not None
    assert found.state == b"rojo=00f067aa0ba902b7"
    assert value == traceparent(found.trace_id, found.span_id, found.sampled)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00-" + TRACE + b"-" + SPAN,
        b"00-" + TRACE + b"-" + SPAN + b"-0",
        b"00-" + TRACE + b"-" + SPAN + b"-0g",
        b"0g-" + TRACE + b"-" + SPAN + b"-01",
        b"00-" + TRACE[:-1] + b"g-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + SPAN[:-1] + b"g-01",
        b"00_" + TRACE + b"-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + SPAN + b"_01",
        b"00-" + b"0" * 32 + b"-" + SPAN + b"-01",
        b"00-" + TRACE + b"-" + b"0" * 16 + b"-01",
    ],
)
def test_what_is_no_traceparent(value: bytes) -> None:
    assert context((b"traceparent", value), (b"b3", TRACE + b"-" + SPAN + b"-1")) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (TRACE + b"-" + SPAN, (TRACE, SPAN, True, B3_SINGLE)),
        (TRACE + b"-" + SPAN + b"-1", (TRACE, SPAN, True, B3_SINGLE)),
        (TRACE + b"-" + SPAN + b"-d", (TRACE, SPAN, True, B3_SINGLE)),
        (TRACE + b"-" + SPAN + b"-0", (TRACE, SPAN, False, B3_SINGLE)),
        (TRACE + b"-" + SPAN + b"-1-" + PARENT, (TRACE, SPAN, True, B3_SINGLE)),
        (TRACE[16:].upper() + b"-" + SPAN, (b"0" * 16 + TRACE[16:], SPAN, True, B3_SINGLE)),
        (b"0", (b"", b"", False, B3_SINGLE)),
        (b"1", (b"", b"", True, B3_SINGLE)),
        (b"garbage", (b"", b"", True, B3_NONE)),
        (b"a-b-c-d-e", (b"", b"", True, B3_NONE)),
        (TRACE + b"-" + b"0" * 16, (b"", b"", True, B3_NONE)),
    ],
)
def test_b3_in_one_header(value: bytes, expected: tuple[bytes, bytes, bool, int]) -> None:
    assert context((b"b3", value)) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({b"traceid": TRACE, b"spanid": SPAN}, (TRACE, SPAN, True, B3_MULTI)),
        ({b"traceid": TRACE, b"spanid": SPAN, b"sampled": b"1"}, (TRACE, SPAN, True, B3_MULTI)),
        ({b"traceid": TRACE, b"spanid": SPAN, b"sampled": b"0"}, (TRACE, SPAN, False, B3_MULTI)),
        ({b"traceid": TRACE, b"spanid": SPAN, b"sampled": b"0", b"flags": b"1"}, (TRACE, SPAN, True, B3_MULTI)),
        ({b"traceid": b"x", b"spanid": SPAN}, (b"", b"", True, B3_NONE)),
        ({b"sampled": b"0"}, (b"", b"", False, B3_MULTI)),
        ({b"traceid": TRACE}, (b"", b"", True, B3_NONE)),
    ],
)
def test_b3_in_several_headers(fields: dict[bytes, bytes], expected: tuple[bytes, bytes, bool, int]) -> None:
    assert context(*((b"x-b3-" + name, value) for name, value in fields.items())) == expected


def test_without_any_header_there_is_no_context() -> None:
    assert read_context(HeaderMap([(b"x-client-trace-id", b"1")])) is NO_CONTEXT


def test_b3_is_written_as_it_came() -> None:
    single = HeaderMap([(b"b3", b"old")])
    write_b3(single, B3_SINGLE, TRACE, SPAN, PARENT, True)
    assert single.fields == [(b"b3", TRACE + b"-" + SPAN + b"-1-" + PARENT)]
    write_b3(single, B3_SINGLE, TRACE, SPAN, b"", False)
    assert single.fields == [(b"b3", TRACE + b"-" + SPAN + b"-0")]
    several = HeaderMap([(b"x-b3-flags", b"1"), (b"x-b3-traceid", b"old")])
    write_b3(several, B3_MULTI, TRACE, SPAN, PARENT, True)
    assert dict(several.fields) == {
        b"x-b3-traceid": TRACE,
        b"x-b3-spanid": SPAN,
        b"x-b3-sampled": b"1",
        b"x-b3-parentspanid": PARENT,
    }
