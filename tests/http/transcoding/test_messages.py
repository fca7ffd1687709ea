"""Messages from JSON and to JSON: what protobuf's own json_format makes of them is the measure."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from hypothesis import given
from hypothesis import strategies as st

from meshproxy.http.transcoding.json_request import Bound, MessageWriter, RequestError, parse_json
from meshproxy.http.transcoding.json_response import MessagePrinter, PrintOptions, ResponseError
from meshproxy.http.transcoding.numbers import text_of_double, text_of_float
from meshproxy.http.transcoding.schema import Schema, SchemaError
from tests.support.library import DESCRIPTOR_SET, decoded, message

SCHEMA = Schema(FileDescriptorSet.FromString(DESCRIPTOR_SET))
WRITER = MessageWriter(SCHEMA, fold_enums=False, reject_collisions=False)
STRICT = MessageWriter(SCHEMA, fold_enums=True, reject_collisions=True)
INT32 = st.integers(-(1 << 31), (1 << 31) - 1)
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
UINT32 = st.integers(0, (1 << 32) - 1)
UINT64 = st.integers(0, (1 << 64) - 1)
NAN = st.just(math.nan)  # there are others, which JSON cannot tell apart
FLOATS = st.floats(width=32, allow_nan=False).map(lambda value: value + 0.0) | NAN  # 0 is -0 too to json
DOUBLES = st.floats(allow_nan=False).map(lambda value: value + 0.0) | NAN
NUMBERS = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | TEXTS | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "a_double": DOUBLES,
    "a_float": FLOATS,
    "an_int64": INT64,
    "a_uint64": UINT64,
    "an_int32": INT32,
    "a_fixed64": UINT64,
    "a_fixed32": UINT32,
    "a_bool": st.booleans(),
    "a_string": TEXTS,
    "some_bytes": st.binary(max_size=6),
    "a_uint32": UINT32,
    "an_enum": st.integers(0, 2),
    "an_sfixed32": INT32,
    "an_sfixed64": INT64,
    "an_sint32": INT32,
    "an_sint64": INT64,
    "doubles": st.lists(DOUBLES, max_size=3),
    "sint64s": st.lists(INT64, max_size=3),
    "many_bytes": st.lists(st.binary(max_size=4), max_size=3),
}


@st.composite
def kinds(draw: st.DrawFn, depth: int = 1) -> Any:
    """A message with some of its fields set."""
    made = message("Kinds")
    for name in draw(st.sets(st.sampled_from(sorted(SCALARS)))):
        value = draw(SCALARS[name])
        getattr(made, name).extend(value) if isinstance(value, list) else setattr(made, name, value)
    for key, text in draw(st.dictionaries(INT64, TEXTS, max_size=2)).items():
        made.by_int64[key] = text
    for flag, genre in draw(st.dictionaries(st.booleans(), st.integers(0, 2), max_size=2)).items():
        made.by_bool[flag] = genre
    if draw(st.booleans()):
        json_format.ParseDict(draw(JSON_VALUES), made.value)  # type: ignore[arg-type]
        json_format.ParseDict(draw(st.lists(JSON_VALUES, max_size=3)), made.list)  # type: ignore[arg-type]
        made.maybe_double.value = draw(DOUBLES)
        made.maybe_string.value = draw(TEXTS)
        made.maybe_bytes.value = draw(st.binary(max_size=3))
        made.mask.paths.extend(draw(st.sampled_from([[], ["a_b", "c.d_e"]])))
    if depth:
        for name in draw(st.sets(TEXTS, max_size=2)):
            made.by_name[name].CopyFrom(draw(kinds(depth - 1)))
    return made


def same(one: Any, other: Any) -> bool:
    """By their bytes: NaN is not itself."""
    return bool(one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True))


def printer(**options: bool) -> MessagePrinter:
    names = ("whitespace", "defaults", "enum_numbers", "proto_names")
    return MessagePrinter(SCHEMA, PrintOptions(*(options.get(name, False) for name in names)))


def write(kind: str, tree: Any, bound: Bound | None = None, writer: MessageWriter = WRITER) -> bytes:
    return writer.write(SCHEMA.message_type(f"test.library.{kind}"), tree, bound)


def refusal(kind: str, tree: Any, bound: Bound | None = None, writer: MessageWriter = WRITER) -> str:
    with pytest.raises(RequestError) as raised:
        write(kind, tree, bound, writer)
    return str(raised.value)


@given(kinds(), st.booleans())
def test_what_json_format_prints_is_read(made: Any, proto_names: bool) -> None:
    tree = json.loads(json_format.MessageToJson(made, preserving_proto_field_name=proto_names))
    read = message("Kinds")
    json_format.ParseDict(tree, read)
    ours = message("Kinds")
    ours.ParseFromString(write("Kinds", tree))
    assert same(ours, read)


@given(kinds(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_what_is_printed_json_format_reads(
    made: Any, whitespace: bool, defaults: bool, enum_numbers: bool, proto_names: bool
) -> None:
    printing = printer(whitespace=whitespace, defaults=defaults, enum_numbers=enum_numbers, proto_names=proto_names)
    text = printing.print(made)
    read = message("Kinds")
    json_format.Parse(text, read)
    assert same(read, made)


@given(kinds())
def test_what_is_printed_is_read(made: Any) -> None:
    text = printer().print(made)
    read = message("Kinds")
    read.ParseFromString(write("Kinds", parse_json(text)))
    assert same(read, made)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_read_back_the_same(value: float) -> None:
    assert float(text_of_double(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.5, "1.5"), (1e22, "1e+22"), (1e15, "1e+15"), (1e-7, "1e-07"), (100000.0, "100000"), (-0.0, "-0"),
     (0.1 + 0.2, "0.30000000000000004")],
)  # fmt: skip
def test_doubles(value: float, text: str) -> None:
    assert text_of_double(value) == text


def test_floats() -> None:
    assert text_of_float(0.10000000149011612) == "0.1"
    assert text_of_float(0.3333333432674408) == "0.333333343"
    assert text_of_float(16777216.0) == "16777216"


def test_strings_are_escaped_for_pages_and_scripts() -> None:
    text = printer().print(message("Book", title='<&>"\\/\x01\x7f\u2028\ufeff\U0001f600'))
    assert text == '{"title":"\\u003c&\\u003e\\"\\\\/\\u0001\\u007f\\u2028\\ufeff\U0001f600"}'.encode()


def test_white_space() -> None:
    made = message("Book", tags=["x"], stock={"b": 1}, author={}, notes={"a": {}})
    lines = ["{", ' "author": {},', ' "tags": [', '  "x"', " ],", ' "stock": {', '  "b": 1', " },", ' "notes": {',
             '  "a": {}', " }", "}", ""]  # fmt: skip
    assert printer(whitespace=True).print(made).decode().split("\n") == lines


def test_fields_without_presence_are_printed_when_asked_for() -> None:
    text = printer(defaults=True).print(message("Book", author={}))
    assert json.loads(text) == {
        "id": "0", "title": "", "author": {"firstName": "", "lastName": ""}, "genre": "GENRE_UNKNOWN", "tags": [],
        "cover": "", "lent": False, "price": 0, "weight": 0, "edition": 0, "isbn": "0", "stock": {}, "translators": [],
    }  # fmt: skip


def test_any() -> None:
    author = {"@type": "type.googleapis.com/test.library.Author", "firstName": "A"}
    delay = {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}
    for extra in (author, delay, {}):
        data = write("Book", {"extra": extra})
        assert json.loads(printer().print_bytes(SCHEMA.message_class("test.library.Book"), data)) == {"extra": extra}


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff", b"\x12\x01\xff", b"\x9a\x01\x05\x0a\x03x/y", b"\x72\x02\x08\x01\x10",
     b"\x72\x0a\x08" + b"\xff" * 8 + b"\x7f"],
)  # fmt: skip
def test_what_cannot_be_printed(data: bytes) -> None:
    with pytest.raises(ResponseError):
        printer().print_bytes(SCHEMA.message_class("test.library.Book"), data)


def test_an_unknown_enum_value_is_its_number() -> None:
    assert printer().print(message("Book", genre=9)) == b'{"genre":9}'


# -- requests


def bound(kind: str, *values: tuple[str, str]) -> Bound:
    """What path and query bind."""
    made = Bound()
    for name, value in values:
        made.bind(SCHEMA.message_type(f"test.library.{kind}").field_path(name.split(".")), value)
    return made


def test_bound_values_come_behind_the_body() -> None:
    data = write("Book", {"title": "x", "tags": ["a"]}, bound("Book", ("tags", "b"), ("id", "7")))
    assert decoded("Book", data) == {"title": "x", "tags": ["a", "b"], "id": "7"}
    assert data == b"\x12\x01x*\x01a*\x01b\x08\x07"


def test_the_body_wins() -> None:
    values = bound("Book", ("id", "1"), ("author.first_name", "z"), ("author.last_name", "w"))
    data = write("Book", {"id": 2, "author": {"first_name": "a"}}, values)
    assert decoded("Book", data) == {"id": "2", "author": {"first_name": "a", "last_name": "w"}}


def test_null_says_nothing() -> None:
    assert decoded("Book", write("Book", {"id": None, "tags": None}, bound("Book", ("id", "1")))) == {"id": "1"}


def test_a_contradiction_is_refused_where_that_is_asked_for() -> None:
    assert write("Book", {"id": "5"}, bound("Book", ("id", "5")), STRICT) == b"\x08\x05"
    text = refusal("Book", {"author": {"first_name": "y"}}, bound("Book", ("author.first_name", "x")), STRICT)
    assert text == 'The binding value "x" of the field first_name is conflicting with the value "y" in the body.'


def test_unknown_fields_are_left_out() -> None:
    assert write("Book", {"colour": {"x": [1]}, "title": "x"}) == b"\x12\x01x"


@pytest.mark.parametrize("name", ["novel", "Novel", "NOVEL", "1"])
def test_enums_in_any_case(name: str) -> None:
    assert write("Book", {"genre": name}, None, STRICT) == b"\x20\x01"
    assert write("Book", {"genre": "short-story"}, None, STRICT) == b"\x20\x02"


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"id": "x"}, 'id: invalid value "x" for type TYPE_INT64'),
        ({"id": 5.5}, "id: invalid value 5.5 for type TYPE_INT64"),
        ({"id": True}, "id: invalid value true for type TYPE_INT64"),
        ({"id": 1 << 63}, "id: invalid value 9223372036854775808 for type TYPE_INT64"),
        ({"edition": -1}, "edition: invalid value -1 for type TYPE_UINT32"),
        ({"title": 5}, "title: invalid value 5 for type TYPE_STRING"),
        ({"title": ["a"]}, ": Proto field is not repeating, cannot start list."),
        ({"title": {}}, ": invalid value Starting an object on a scalar field for type title"),
        ({"author": "a"}, 'author: invalid value "a" for type type.googleapis.com/test.library.Author'),
        ({"author": {"mentor": [1]}}, "author: Proto field is not repeating, cannot start list."),
        ({"tags": ["a", 5]}, "tags[1]: invalid value 5 for type TYPE_STRING"),
        ({"tags": [["a"]]}, 'tags[0]: invalid value ["a"] for type TYPE_STRING'),
        ({"translators": [{}, {"first_name": 3}]}, "translators[1].first_name: invalid value 3 for type TYPE_STRING"),
        ({"stock": {"a": 1, "b": "x"}}, 'stock[1].value: invalid value "x" for type TYPE_INT32'),
        ({"stock": [1]}, ": invalid value Cannot bind a list to map for field 'stock'. for type Map"),
        ({"stock": 1}, "stock: invalid value 1 for type type.googleapis.com/test.library.Book.StockEntry"),
        ({"genre": "novel"}, 'genre: invalid value "novel" for type type.googleapis.com/test.library.Genre'),
        ({"genre": "9"}, 'genre: invalid value "9" for type type.googleapis.com/test.library.Genre'),
        ({"genre": 1 << 31}, "genre: invalid value 2147483648 for type type.googleapis.com/test.library.Genre"),
        ({"cover": "!"}, 'cover: invalid value "!" for type TYPE_BYTES'),
        ({"cover": "AP8=="}, 'cover: invalid value "AP8==" for type TYPE_BYTES'),
        ({"lent": 1}, "lent: invalid value 1 for type TYPE_BOOL"),
        ({"lent": "maybe"}, 'lent: invalid value "maybe" for type TYPE_BOOL'),
        ({"price": "inf"}, 'price: invalid value "inf" for type TYPE_DOUBLE'),
        ({"price": math.inf}, "price: invalid value inf for type TYPE_DOUBLE"),
        ({"weight": 1e300}, "weight: invalid value 1e+300 for type TYPE_FLOAT"),
        ({"signed": 1}, "signed.value: invalid value 1 for type TYPE_BOOL"),
        ({"notes": 3}, "notes: invalid value 3 for type type.googleapis.com/google.protobuf.Struct"),
        ({"extra": {"a": 1}}, "extra: invalid value Missing @type for any field for type Any"),
        ({"extra": {"@type": "t/x.Y"}}, "extra: invalid value Invalid type URL, unknown type: x.Y for type Any"),
        ({"reader": "a", "branch": 1},
         ": invalid value oneof field 'owner' is already set. Cannot set 'branch' for type oneof"),
        ({"title": "\ud83d"}, "Missing low surrogate."),
        ({"genre": "1" * 5000}, f'genre: invalid value "{"1" * 200}…" for type type.googleapis.com/test.library.Genre'),
        ({"title": [[0] * 999]}, ": Proto field is not repeating, cannot start list."),
        ({"tags": [[0] * 999]}, f"tags[0]: invalid value {json.dumps([0] * 999)[:200]}… for type TYPE_STRING"),
        ([], ": Root element must be a message."),
        (None, ": Root element must be a message."),
    ],
)  # fmt: skip
def test_what_a_field_does_not_take(tree: Any, text: str) -> None:
    assert refusal("Book", tree) == text


@pytest.mark.parametrize("tree", [{"printed": "yesterday"}, {"printed": 5}, {"printed": {}}, {"length": "5"}])
def test_what_is_no_time(tree: Any) -> None:
    assert "google.protobuf." in refusal("Book", tree)


def test_times() -> None:
    data = write("Book", {"printed": "1969-12-31T23:59:59.5+01:00", "length": "-1.5s"})
    assert decoded("Book", data) == {"printed": "1969-12-31T22:59:59.500Z", "length": "-1.500s"}


@pytest.mark.parametrize("text", ["AP8=", "AP8", "AP-_", "AP+/"])
def test_base64_of_both_alphabets(text: str) -> None:
    padded = text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4)
    assert write("Book", {"cover": text}) == b"2" + bytes([len(base64.b64decode(padded))]) + base64.b64decode(padded)


def test_depth_is_bounded() -> None:
    notes: Any = 1
    for _ in range(90):
        notes = {"a": notes}
    assert len(write("Book", {"notes": notes})) > 90
    mentors: Any = {}
    for _ in range(150):
        notes = {"a": notes}
        mentors = {"mentor": mentors}
    assert refusal("Book", {"notes": notes}).startswith("Message too deep.")
    assert refusal("Book", {"author": mentors}).startswith("Message too deep.")
    with pytest.raises(RequestError, match="Message too deep"):
        parse_json(b"[" * 100_000)


@pytest.mark.parametrize(
    "text",
    [b"{", b"{a:1}", b"{'a':1}", b'{"a":1,}', b"NaN", b'{"a":1} x', b"\xef\xbb\xbf{}", b'"\xff"', b""],
)
def test_what_is_no_json(text: bytes) -> None:
    with pytest.raises(RequestError):
        parse_json(text)


# -- descriptor sets


def test_paths_of_fields() -> None:
    book = SCHEMA.message_type("test.library.Book")
    assert [field.number for field in book.field_path(["author", "lastName"])] == [3, 2]
    for names, text in (
        (["colour"], 'Could not find field "colour" in the type "test.library.Book".'),
        (["author", "x"], 'Could not find field "x" in the type "test.library.Author".'),
        (["title", "x"], 'Encountered a non-leaf field "title" that is not a message while parsing a field path'),
    ):
        with pytest.raises(SchemaError) as raised:
            book.field_path(names)
        assert str(raised.value) == text


def test_a_set_that_lacks_a_file() -> None:
    files = FileDescriptorSet.FromString(DESCRIPTOR_SET)
    del files.file[0]
    with pytest.raises(SchemaError, match="Unable to build proto descriptor pool"):
        Schema(files)


# -- whatever comes

FIELD_NAMES = sorted(
    {
        name
        for kind in ("Book", "Kinds", "Request", "Author")
        for name in SCHEMA.message_type(f"test.library.{kind}").fields
    }
)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["NOVEL", "1", "-1", "1e3", "NaN", "AP8=", "2020-01-02T03:04:05Z", "1.5s", "a,b"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FIELD_NAMES, "@type", "key", "value", "x"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.sampled_from(["Book", "Kinds", "Request"]), ANYTHING)
def test_anything_is_written_or_refused(kind: str, tree: Any) -> None:
    try:
        data = write(kind, tree, None, STRICT)
    except RequestError:
        return
    message(kind).ParseFromString(data)


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(FIELD_NAMES), min_size=1, max_size=4), st.text(max_size=6)), max_size=4
    ),
    ANYTHING,
)
def test_anything_is_bound_or_refused(values: list[tuple[list[str], str]], tree: Any) -> None:
    kind = SCHEMA.message_type("test.library.Request")
    made = Bound()
    for names, text in values:
        try:
            made.bind(kind.field_path(names), text)
        except SchemaError:
            continue
    try:
        data = WRITER.write(kind, tree, made)
    except RequestError:
        return
    message("Request").ParseFromString(data)


@given(st.sampled_from(["Book", "Kinds"]), st.binary(max_size=40), st.booleans())
def test_anything_is_printed_or_refused(kind: str, data: bytes, defaults: bool) -> None:
    try:
        text = printer(defaults=defaults).print_bytes(SCHEMA.message_class(f"test.library.{kind}"), data)
    except ResponseError:
        return
    json.loads(text)
