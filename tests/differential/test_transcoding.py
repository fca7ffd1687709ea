"""The gRPC-JSON transcoder. The upstream speaks gRPC over HTTP/1.1 with trailers, which the filter cannot tell."""

import base64
import json
from dataclasses import replace

from tests.differential.cases import Case, Differs, Expect, chunked, get, post, request
from tests.differential.pair import Pair
from tests.differential.topic import Topic
from tests.support.library import DESCRIPTOR_SET, SERVICE, encoded
from tests.support.upstream import Answer

HTTP = "type.googleapis.com/envoy.extensions.filters.http."
ROUTER = f"{{ name: router, typed_config: {{ '@type': {HTTP}router.v3.Router }} }}"
GRPC = "/test.library.Library/"
SET = base64.b64encode(DESCRIPTOR_SET).decode()


def config(fields: str = "") -> str:
    """A transcoder's configuration."""
    return (
        f"'@type': {HTTP}grpc_json_transcoder.v3.GrpcJsonTranscoder, proto_descriptor_bin: {SET}, "
        f"services: [{SERVICE}], {fields}"
    )


def listener(fields: str = "", more: str = "") -> str:
    """A listener with a transcoder."""
    return (
        f"http_filters: [{{ name: transcoder, typed_config: {{ {config(fields)} }} }}, {ROUTER}]\n"
        f"http_protocol_options: {{ enable_trailers: true }}\n{more}"
    )


def frame(message: bytes, flags: int = 0) -> bytes:
    """A message with its prefix."""
    return bytes((flags,)) + len(message).to_bytes(4, "big") + message


def head(*headers: tuple[str, str], status: int = 200, content_type: str = "application/grpc") -> bytes:
    """A head of a response with a chunked body."""
    lines = [f"HTTP/1.1 {status} OK", f"content-type: {content_type}", "transfer-encoding: chunked"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(*pieces: bytes, status: str = "0", headers: tuple[tuple[str, str], ...] = (), **trailers: str) -> Answer:
    """A gRPC response: pieces of its body, and trailers."""
    fields = [("grpc-status", status)] if status else []
    fields += [(name.replace("_", "-"), value) for name, value in trailers.items()]
    return Answer((head(*headers), chunked(*pieces, trailers=fields)))


def trailers_only(status: str = "5", *headers: tuple[str, str], code: int = 200) -> Answer:
    """A gRPC response without a body."""
    lines = [f"HTTP/1.1 {code} OK", "content-type: application/grpc", "content-length: 0"]
    lines += [f"grpc-status: {status}"] if status else []
    lines += [f"{name}: {value}" for name, value in headers]
    return Answer((("\r\n".join(lines) + "\r\n\r\n").encode(),))


BOOK = frame(encoded("Book", id="7", title="Emma"))
ANSWER = answer(BOOK)
FULL = encoded(
    "Book", id="7", title="Grün <&> \"x\"", author={"first_name": "J"}, genre="NOVEL", tags=["a", "b"], cover="AP8=",
    lent=True, price=1.5, weight=0.1, edition=3, isbn="18446744073709551615", stock={"b": 2, "a": 1},
    translators=[{"last_name": "x"}, {}], printed="2020-01-02T03:04:05.006Z", length="1.500s", pages=0, signed=False,
    notes={"a": [1, None, "x", {"b": True}]}, extra={"@type": "type.googleapis.com/test.library.Author", "firstName": "A"},
    shelf_mark=0, branch=0,
)  # fmt: skip


def rows(prefix: str, on: str, requests: dict[str, bytes], *answers: Answer) -> list[Case]:
    """Cases of one listener that differ in the request."""
    return [
        Case(f"{prefix}_{name}", sent, answers or (ANSWER,), listener=on, log_bytes=False)
        for name, sent in requests.items()
    ]


def js(value: object) -> bytes:
    """As JSON."""
    return json.dumps(value).encode()


PATHS = rows("path", "main", {
    "variables": get("/v1/shelves/poems/books/7"),
    "additional": get("/v1/books/7"),
    "verb_and_body": post("/v1/books/7:lend", js({"title": "x"})),
    "unknown_verb": post("/v1/books/7:burn", js({"title": "x"})),
    "verb": post("/v1/shelves/poems:merge", js({"bookId": 3})),
    "verb_without_variable_of_another": get("/v1/shelves/a:merge/books/7"),
    "escaped": get("/v1/shelves/a%2Fb%20c%3F/books/7"),
    "plus": get("/v1/shelves/a+b/books/7"),
    "utf8": get("/v1/shelves/gr%C3%BCn/books/7"),
    "not_utf8": get("/v1/shelves/%FF/books/7"),
    "bad_escape": get("/v1/shelves/%zz%4/books/7"),
    "trailing_slash": get("/v1/books/7/"),
    "trailing_slashes": get("/v1/books/7//"),
    "empty_segment": get("/v1/shelves//books/7"),
    "double_slash": get("/v1//books/7"),
    "not_a_number": get("/v1/books/seven"),
    "too_large_a_number": get("/v1/books/9223372036854775808"),
    "negative": get("/v1/books/-7"),
    "float_for_int": get("/v1/books/7.0"),
    "exponent": get("/v1/books/7e2"),
    "spaced_number": get("/v1/books/%207"),
    "hex": get("/v1/books/0x7"),
    "multi": request("PATCH", "/v1/shelves/a/books/b%2Fc%20d", (), js({"id": 1})),
    "multi_wrong_literal": request("PATCH", "/v1/shelfs/a/books/b", (), js({"id": 1})),
    "tree": get("/v1/tree/a/b/c"),
    "tree_escaped": get("/v1/tree/a%2Fb/c%20d%21"),
    "tree_one": get("/v1/tree/a"),
    "tree_none": get("/v1/tree"),
    "tree_slash": get("/v1/tree/"),
    "tree_colon": get("/v1/tree/a:b"),
    "leaf": get("/v1/branch/a/b/c/leaf:pick"),
    "leaf_none": get("/v1/branch/a/leaf:pick"),
    "leaf_without_verb": get("/v1/branch/a/b/leaf"),
    "wrong_method": request("DELETE", "/v1/find"),
    "delete": request("DELETE", "/v1/books/7"),
    "custom": request("SEARCH", "/v1/search/x"),
    "any_method_get": get("/v1/any/x"),
    "any_method_put": request("PUT", "/v1/any/x", (), js({"bookId": 1})),
    "head": request("HEAD", "/v1/books/7"),
    "own_path": post(GRPC + "GetBook", js({"book_id": 1})),
    "no_rule": post(GRPC + "Plain", js({"id": 1})),
    "absolute": get("http://path-absolute.test/v1/books/7"),
    "asterisk": request("OPTIONS", "*"),
})  # fmt: skip

QUERIES = rows("query", "main", {
    "scalars": get("/v1/find?shelf=a&book_id=5&page_size=-3&book.lent=true&book.price=1.5&book.weight=2"),
    "json_names": get("/v1/find?bookId=5&book.author.firstName=x"),
    "repeated": get("/v1/find?ids=1&ids=2&ids=3"),
    "repeated_commas": get("/v1/find?ids=1,2"),
    "twice": get("/v1/find?shelf=a&shelf=b"),
    "nested": get("/v1/find?book.author.mentor.last_name=x&book.author.mentor.first_name=y&book.title=t"),
    "enum_name": get("/v1/find?genre=NOVEL"),
    "enum_number": get("/v1/find?genre=2"),
    "enum_unknown_number": get("/v1/find?genre=9"),
    "enum_lower": get("/v1/find?genre=novel"),
    "enum_unknown": get("/v1/find?genre=COMIC"),
    "enum_dash": get("/v1/find?genre=short-story"),
    "enum_camel": get("/v1/find?genre=ShortStory"),
    "enums": get("/v1/find?genres=NOVEL&genres=1"),
    "bool_words": get("/v1/find?book.lent=True"),
    "bool_one": get("/v1/find?book.lent=1"),
    "bool_false": get("/v1/find?book.lent=false"),
    "bool_empty": get("/v1/find?book.lent="),
    "int_empty": get("/v1/find?book_id="),
    "string_empty": get("/v1/find?shelf="),
    "no_value": get("/v1/find?shelf"),
    "no_name": get("/v1/find?=x"),
    "bytes": get("/v1/find?book.cover=AP8%3D"),
    "bytes_url_safe": get("/v1/find?book.cover=_-8"),
    "bytes_bad": get("/v1/find?book.cover=!"),
    "double_words": get("/v1/find?book.price=NaN&book.weight=-Infinity"),
    "double_bad": get("/v1/find?book.price=x"),
    "double_exponent": get("/v1/find?book.price=1e3"),
    "uint": get("/v1/find?book.edition=4294967295&book.isbn=18446744073709551615"),
    "uint_negative": get("/v1/find?book.edition=-1"),
    "int_too_large": get("/v1/find?page_size=2147483648"),
    "timestamp": get("/v1/find?book.printed=2020-01-02T03:04:05Z"),
    "timestamp_bad": get("/v1/find?book.printed=yesterday"),
    "duration": get("/v1/find?book.length=1.5s"),
    "wrapper": get("/v1/find?book.pages=3&book.signed=true"),
    "mask": get("/v1/find?mask=book.title,book_id"),
    "message": get("/v1/find?book.author=x"),
    "struct": get("/v1/find?book.notes=x"),
    "map": get("/v1/find?book.stock.key=a&book.stock.value=2"),
    "map_key": get("/v1/find?book.stock.a=2"),
    "repeated_message": get("/v1/find?book.translators.first_name=x&book.translators.last_name=y"),
    "oneof": get("/v1/find?book.reader=x&book.branch=2"),
    "plus": get("/v1/find?shelf=a+b%20c"),
    "utf8": get("/v1/find?shelf=gr%C3%BCn"),
    "not_utf8": get("/v1/find?shelf=%FF"),
    "escaped_name": get("/v1/find?book%2Etitle=x&she%6Cf=y"),
    "unknown": get("/v1/find?colour=red"),
    "unknown_nested": get("/v1/find?book.colour=red"),
    "unknown_and_empty": get("/v1/find?colour="),
    "beyond_scalar": get("/v1/find?shelf.x=red"),
    "dots": get("/v1/find?book..title=x"),
    "leading_dot": get("/v1/find?.shelf=x"),
    "trailing_dot": get("/v1/find?shelf.=x"),
    "semicolon": get("/v1/find?shelf=a;book_id=1"),
    "question_marks": get("/v1/find?shelf=a?b"),
    "empty": get("/v1/find?"),
    "with_body": post("/v1/shelves/poems/books?book_id=3", js({"title": "x"})),
    "into_body": post("/v1/shelves/poems/books?book.title=y&book.id=4", js({"title": "x"})),
    "get_with_body": request("GET", "/v1/find?shelf=a", (), js({"bookId": 3, "shelf": "b"})),
})  # fmt: skip

BODIES = rows("body", "main", {
    "whole": request("PUT", "/v1/books/5", (), js({
        "title": "x", "author": {"firstName": "a", "last_name": "b"}, "genre": "NOVEL", "tags": ["a", "b"],
        "cover": "AP8=", "lent": True, "price": 1.5, "weight": 2, "edition": "3", "isbn": 4, "stock": {"a": 1},
        "translators": [{"firstName": "t"}], "printed": "2020-01-02T03:04:05Z", "length": "1.5s", "pages": 3,
        "signed": True, "notes": {"a": [1, None]}, "shelfMark": 0, "branch": 0,
        "extra": {"@type": "type.googleapis.com/test.library.Author", "firstName": "A"},
    })),
    "whole_with_variable": request("PUT", "/v1/books/5", (), js({"id": 6})),
    "whole_with_same": request("PUT", "/v1/books/5", (), js({"id": "5"})),
    "whole_with_null": request("PUT", "/v1/books/5", (), js({"id": None})),
    "field": post("/v1/shelves/poems/books", js({"title": "x"})),
    "nested_field": post("/v1/mentor/Austen", js({"first_name": "x"})),
    "list": post("/v1/tags", js(["a", "b"])),
    "list_of_one": post("/v1/tags", js("a")),
    "empty": post("/v1/shelves/poems/books", b""),
    "empty_list": post("/v1/tags", b""),
    "none": request("POST", "/v1/shelves/poems/books"),
    "spaces": post("/v1/shelves/poems/books", b"  "),
    "chunked": request("POST", "/v1/shelves/poems/books", [("transfer-encoding", "chunked")])
        + chunked(b'{"ti', b'tle":', b'"x"}'),
    "trailers": request("POST", "/v1/shelves/poems/books", [("transfer-encoding", "chunked")])
        + chunked(b'{"title":"x"}', trailers=[("x-t", "1")]),
    "array": post("/v1/shelves/poems/books", b"[]"),
    "scalar": post("/v1/shelves/poems/books", b"3"),
    "null": post("/v1/shelves/poems/books", b"null"),
    "unknown_field": post("/v1/shelves/poems/books", js({"colour": 1, "title": "x", "author": {"x": []}})),
    "cut": post("/v1/shelves/poems/books", b'{"title":"x"'),
    "garbage": post("/v1/shelves/poems/books", b"{title"),
    "behind": post("/v1/shelves/poems/books", b'{"title":"x"} x'),
    "two": post("/v1/shelves/poems/books", b'{"title":"x"}{"title":"y"}'),
    "trailing_comma": post("/v1/shelves/poems/books", b'{"title":"x",}'),
    "single_quotes": post("/v1/shelves/poems/books", b"{'title':'x'}"),
    "bare_keys": post("/v1/shelves/poems/books", b"{title:\"x\"}"),
    "comment": post("/v1/shelves/poems/books", b'{/* */"title":"x"}'),
    "nan": post("/v1/shelves/poems/books", b'{"price":NaN}'),
    "nan_text": post("/v1/shelves/poems/books", b'{"price":"NaN"}'),
    "bom": post("/v1/shelves/poems/books", b'\xef\xbb\xbf{"title":"x"}'),
    "not_utf8": post("/v1/shelves/poems/books", b'{"title":"\xff"}'),
    "surrogates": post("/v1/shelves/poems/books", b'{"title":"\\ud83d\\ude00"}'),
    "half_surrogate": post("/v1/shelves/poems/books", b'{"title":"\\ud83d"}'),
    "duplicate_key": post("/v1/shelves/poems/books", b'{"title":"x","title":"y"}'),
    "control": post("/v1/shelves/poems/books", b'{"title":"a\tb"}'),
    "deep": post("/v1/shelves/poems/books", b'{"notes":' + b'{"a":' * 90 + b"1" + b"}" * 91),
    "too_deep": post("/v1/shelves/poems/books", b'{"notes":' + b'{"a":' * 150 + b"1" + b"}" * 151),
    "string_for_int": post("/v1/shelves/poems/books", js({"id": "5"})),
    "bad_string_for_int": post("/v1/shelves/poems/books", js({"id": "x"})),
    "float_for_int": post("/v1/shelves/poems/books", js({"id": 5.0})),
    "fraction_for_int": post("/v1/shelves/poems/books", js({"id": 5.5})),
    "int_for_string": post("/v1/shelves/poems/books", js({"title": 5})),
    "bool_for_string": post("/v1/shelves/poems/books", js({"title": True})),
    "string_for_bool": post("/v1/shelves/poems/books", js({"lent": "true"})),
    "int_for_bool": post("/v1/shelves/poems/books", js({"lent": 1})),
    "scalar_for_list": post("/v1/shelves/poems/books", js({"tags": "a"})),
    "list_for_scalar": post("/v1/shelves/poems/books", js({"title": ["a"]})),
    "object_for_scalar": post("/v1/shelves/poems/books", js({"title": {}})),
    "scalar_for_object": post("/v1/shelves/poems/books", js({"author": "a"})),
    "enum_unknown": post("/v1/shelves/poems/books", js({"genre": "COMIC"})),
    "enum_lower": post("/v1/shelves/poems/books", js({"genre": "novel"})),
    "enum_number": post("/v1/shelves/poems/books", js({"genre": 9})),
    "enum_number_text": post("/v1/shelves/poems/books", js({"genre": "2"})),
    "bad_bytes": post("/v1/shelves/poems/books", js({"cover": "!"})),
    "null_in_list": post("/v1/shelves/poems/books", js({"tags": ["a", None]})),
    "json_and_proto_name": post("/v1/shelves/poems/books", js({"shelfMark": 1, "shelf_mark": 2})),
    "oneof_twice": post("/v1/shelves/poems/books", js({"reader": "a", "branch": 1})),
    "unknown_any": post("/v1/shelves/poems/books", js({"extra": {"@type": "type.googleapis.com/x.Y"}})),
    "any_without_type": post("/v1/shelves/poems/books", js({"extra": {"a": 1}})),
    "grpc": request("POST", GRPC + "GetBook", [("content-type", "application/grpc")], frame(b"")),
    "grpc_plus": request("POST", GRPC + "GetBook", [("content-type", "application/grpc+proto")], frame(b"")),
    "headers": request("POST", "/v1/shelves/poems/books",
        [("content-type", "text/plain"), ("te", "gzip"), ("x-envoy-original-path", "/x"), ("accept", "a/b")], b"{}"),
})  # fmt: skip

LIMITED = rows("limit", "limited", {
    "at": post("/v1/shelves/poems/books", js({"title": "x" * 86})),
    "over": post("/v1/shelves/poems/books", js({"title": "x" * 87})),
    "in_pieces": request("POST", "/v1/shelves/poems/books", [("transfer-encoding", "chunked")])
        + chunked(b'{"title":"' + b"x" * 60, b"x" * 60 + b'"}'),
    "file": post("/v1/file/x", b"x" * 100),
    "file_over": post("/v1/file/x", b"x" * 101),
    "stream_over": post("/v1/upload", js([{"title": "x" * 60}, {"title": "x" * 60}])),
    "stream_item_over": post("/v1/upload", js([{"title": "x" * 120}])),
    "stream_pieces": request("POST", "/v1/upload", [("transfer-encoding", "chunked")])
        + chunked(b'[{"title":"' + b"x" * 60 + b'"},', b'{"title":"' + b"x" * 60 + b'"}]'),
})  # fmt: skip


def answered(name: str, *answers: Answer, target: str = "/v1/find", on: str = "main", method: str = "GET") -> Case:
    """A request whose answer is the point."""
    return Case(f"answer_{name}", request(method, target), answers, listener=on, log_bytes=False)


# A google.rpc.Status in base64, without and with details.
DETAILS = "CAUSB25vIHN1Y2g"
DETAILS_WITH_ANY = "CAUSAW0aNgondHlwZS5nb29nbGVhcGlzLmNvbS90ZXN0LmxpYnJhcnkuQXV0aG9yEgsKBEphbmUSA0F1cw"
ANSWERS = [
    answered("full", answer(frame(FULL))),
    answered("default", answer(frame(b""))),
    answered("head", answer(BOOK), target="/v1/any/x", method="HEAD"),
    answered("pieces", answer(BOOK[:3], BOOK[3:8], BOOK[8:])),
    answered("two_messages", answer(BOOK, BOOK)),
    answered("two_messages_at_once", answer(BOOK + BOOK)),
    answered("none", answer()),
    answered("cut", answer(BOOK[:8])),
    answered("compressed", answer(frame(b"x", 1))),
    answered("bad_flags", answer(frame(b"", 2))),
    answered("bad_message", answer(frame(b"\xff\xff"))),
    answered("not_utf8", answer(frame(b"\x12\x01\xff"))),
    answered("unknown_fields", answer(frame(b"\xa2\x06\x01x"))),
    answered("unknown_enum", answer(frame(encoded("Book", genre=9)))),
    answered("unknown_any", answer(frame(b"\x9a\x01\x05\x0a\x03x/y"))),
    answered("empty_any", answer(frame(b"\x9a\x01\x00"))),
    answered("nan", answer(frame(encoded("Book", price="NaN", weight="-Infinity")))),
    answered("floats", answer(frame(encoded("Book", price=1e22, weight=3.4e38)))),
    answered("floats_small", answer(frame(encoded("Book", price=1e-7, weight=1e-7)))),
    answered("floats_whole", answer(frame(encoded("Book", price=100000, weight=16777216)))),
    answered("bad_timestamp", answer(frame(b"\x72\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x10\x01"))),
    answered("error", answer(status="5", grpc_message="no%20such")),
    answered("error_after_message", answer(BOOK, status="5", grpc_message="no")),
    answered("no_status", answer(BOOK, status="")),
    answered("no_status_no_message", answer(status="")),
    answered("bad_status", answer(BOOK, status="x")),
    answered("big_status", answer(BOOK, status="99")),
    answered("negative_status", answer(BOOK, status="-1")),
    answered("trailers", answer(BOOK, grpc_message="ok", x_more="1", headers=(("x-h", "1"), ("trailer", "x-more")))),
    answered("status_in_headers", answer(BOOK, headers=(("grpc-status", "0"), ("grpc-message", "h")))),
    answered("trailers_only", trailers_only("5", ("grpc-message", "no%20such"), ("x-h", "1"))),
    answered("trailers_only_ok", trailers_only("0")),
    answered("trailers_only_no_status", trailers_only("")),
    answered("trailers_only_bad_status", trailers_only("x")),
    answered("not_grpc", Answer((b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok",))),
    answered("not_grpc_error", Answer((b"HTTP/1.1 503 No\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nno",))),
    answered("grpc_not_200", Answer((head(status=500), chunked(BOOK, trailers=[("grpc-status", "0")])))),
    answered("content_length", Answer((
        b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc+proto\r\ncontent-length: %d\r\n\r\n%s" % (len(BOOK), BOOK),
    ))),
    answered("no_trailers", Answer((head(), chunked(BOOK)))),
    answered("reset", Answer((head() + b"5\r\n" + BOOK[:5],), then="close")),
    answered("over_limit", answer(frame(encoded("Book", title="x" * 120))), on="limited"),
    answered("over_limit_as_json", answer(frame(encoded("Book", title="\x01" * 60))), on="limited"),
    answered("over_limit_streamed", answer(frame(encoded("Book", title="x" * 120))), target="/v1/list/x", on="limited"),
    answered("limit_of_stream", answer(*[frame(encoded("Book", title="x" * 60))] * 3), target="/v1/list/x", on="limited"),
    answered("file_over_limit", answer(frame(encoded("google.api.HttpBody", data="AAAA" * 50))), target="/v1/file/x", on="limited"),
    *(answered(f"status_{code}", answer(status=str(code))) for code in range(1, 18)),
]  # fmt: skip
STREAMS = [
    Case(f"{name}_{on}", sent, (given,), listener=on, log_bytes=False)
    for on in ("main", "lines", "events")
    for name, sent, given in (
        ("list", get("/v1/list/x"), answer(BOOK, BOOK)),
        ("list_at_once", get("/v1/list/x"), answer(BOOK + BOOK)),
        ("list_in_pieces", get("/v1/list/x"), answer(BOOK[:7], BOOK[7:] + BOOK[:3], BOOK[3:])),
        ("list_of_none", get("/v1/list/x"), answer()),
        ("list_trailers_only", get("/v1/list/x"), trailers_only("5", ("grpc-message", "no"))),
        ("list_trailers_only_ok", get("/v1/list/x"), trailers_only("0")),
        ("list_error", get("/v1/list/x"), answer(BOOK, status="13", grpc_message="oh")),
        ("list_error_at_once", get("/v1/list/x"), answer(status="13", grpc_message="oh")),
        ("list_bad_message", get("/v1/list/x"), answer(BOOK, frame(b"\xff"))),
        ("list_no_trailers", get("/v1/list/x"), Answer((head(), chunked(BOOK)))),
        ("unary", get("/v1/find"), ANSWER),
        ("chat", post("/v1/chat", js([{"id": 1}, {"id": 2}])), answer(BOOK, BOOK)),
    )
]  # fmt: skip
UPLOADS = rows("upload", "main", {
    "two": post("/v1/upload", js([{"id": 1}, {"id": 2}])),
    "none": post("/v1/upload", b"[]"),
    "empty": post("/v1/upload", b""),
    "object": post("/v1/upload", b"{}"),
    "scalar": post("/v1/upload", b"3"),
    "null": post("/v1/upload", b"[null]"),
    "scalars": post("/v1/upload", b"[1]"),
    "lists": post("/v1/upload", b"[[]]"),
    "spaced": post("/v1/upload", b' [ {"id":1} , {"id":2} ] '),
    "strings": post("/v1/upload", js([{"title": "a]}\\\"[{,"}, {"title": "b"}])),
    "cut": post("/v1/upload", b'[{"id":1},{"id":2}'),
    "cut_in_one": post("/v1/upload", b'[{"id":1},{"id":'),
    "trailing_comma": post("/v1/upload", b'[{"id":1},]'),
    "no_comma": post("/v1/upload", b'[{"id":1}{"id":2}]'),
    "behind": post("/v1/upload", b'[{"id":1}] x'),
    "bad_second": post("/v1/upload", b'[{"id":1},{"id":"x"}]'),
    "variable": post("/v1/upload/poems?book_id=3", js([{"id": 1}, {"id": 2}])),
    "chunks": request("POST", "/v1/upload", [("transfer-encoding", "chunked")])
        + chunked(b'[{"id', b'":1', b"},", b'{"id":2}', b"]"),
    "trailers": request("POST", "/v1/upload", [("transfer-encoding", "chunked")])
        + chunked(b'[{"id":1}]', trailers=[("x-t", "1")]),
})  # fmt: skip
HTML = frame(encoded("google.api.HttpBody", content_type="text/html", data="PGI+"))
FILES = [
    *rows("file", "main", {
        "put": request("POST", "/v1/file/x?book_id=3", [("content-type", "image/png")], b"\x00\xff"),
        "put_untyped": post("/v1/file/x", b"abc"),
        "put_empty": post("/v1/file/x", b""),
        "put_none": request("POST", "/v1/file/x"),
        "put_chunked": request("POST", "/v1/file/x", [("transfer-encoding", "chunked")]) + chunked(b"ab", b"cd"),
        "put_trailers": request("POST", "/v1/file/x", [("transfer-encoding", "chunked")])
            + chunked(b"ab", trailers=[("x-t", "1")]),
        "raw": request("POST", "/v1/raw", [("content-type", "text/plain")], b"abc"),
        "raw_query": request("POST", "/v1/raw?content_type=x/y", [("content-type", "text/plain")], b"abc"),
        "query_into_file": request("POST", "/v1/file/x?file.content_type=a/b&colour=red", (), b"abc"),
        "query_into_file_known": request("POST", "/v1/file/x?file.content_type=a/b", (), b"abc"),
        "bad_query": request("POST", "/v1/file/x?book_id=x", (), b"abc"),
        "stream": request("POST", "/v1/stream/x", [("content-type", "a/b")], b"abc"),
        "stream_chunked": request("POST", "/v1/stream/x", [("transfer-encoding", "chunked")]) + chunked(b"ab", b"cd"),
        "stream_empty": post("/v1/stream/x", b""),
        "stream_none": request("POST", "/v1/stream/x"),
        "stream_trailers": request("POST", "/v1/stream/x", [("transfer-encoding", "chunked")])
            + chunked(b"ab", trailers=[("x-t", "1")]),
    }),
    *(
        Case(f"file_{name}", get(target), (given,), listener=on, log_bytes=False)
        for name, target, given, on in (
            ("get", "/v1/file/x", answer(HTML), "main"),
            ("get_in_pieces", "/v1/file/x", answer(HTML[:9], HTML[9:]), "main"),
            ("get_default", "/v1/file/x", answer(frame(b"")), "main"),
            ("get_two", "/v1/file/x", answer(HTML, HTML), "main"),
            ("get_none", "/v1/file/x", answer(), "main"),
            ("get_cut", "/v1/file/x", answer(HTML[:8]), "main"),
            ("get_bad", "/v1/file/x", answer(frame(b"\xff")), "main"),
            ("get_error", "/v1/file/x", answer(status="5", grpc_message="no"), "main"),
            ("get_error_after", "/v1/file/x", answer(HTML, status="5"), "main"),
            ("get_trailers_only", "/v1/file/x", trailers_only("5"), "main"),
            ("get_untyped", "/v1/file/x", answer(frame(encoded("google.api.HttpBody", data="PGI+"))), "main"),
            ("inner", "/v1/inner/x", answer(frame(encoded("File", name="n", inner={"body": {"contentType": "a/b", "data": "YQ=="}}))), "main"),
            ("inner_none", "/v1/inner/x", answer(frame(encoded("File", name="n"))), "main"),
            ("list", "/v1/stream/x", answer(HTML, frame(encoded("google.api.HttpBody", content_type="x/y", data="YQ=="))), "main"),
            ("list_default_first", "/v1/stream/x", answer(frame(b""), HTML), "main"),
            ("list_none", "/v1/stream/x", answer(), "main"),
            ("list_trailers_only", "/v1/stream/x", trailers_only("5"), "main"),
            ("list_error", "/v1/stream/x", answer(HTML, status="5"), "main"),
            ("list_events", "/v1/stream/x", answer(HTML, HTML), "events"),
        )
    ),
]  # fmt: skip
DEAD = "match: { prefix: / }\nroute: { cluster: dead }"
OPTIONS = [
    *(
        answered(f"full_{on}", answer(frame(FULL)), on=on)
        for on in ("spaced", "defaults", "numbers", "proto_names")
    ),
    answered("default_defaults", answer(frame(b"")), on="defaults"),
    answered("list_spaced", answer(BOOK, BOOK), target="/v1/list/x", on="spaced"),
    *(
        answered(f"{name}_converted", given, target=target, on="converted")
        for target in ("/v1/find",)
        for name, given in (
            ("error", answer(status="5", grpc_message="no%20such")),
            ("error_without_text", answer(status="5")),
            ("details", answer(status="5", grpc_message="x", grpc_status_details_bin=DETAILS)),
            ("details_with_any", answer(status="5", grpc_status_details_bin=DETAILS_WITH_ANY)),
            ("bad_details", answer(status="5", grpc_message="x", grpc_status_details_bin="!!!")),
            ("wrong_details", answer(status="5", grpc_message="x", grpc_status_details_bin="/////w")),
            ("after_message", answer(BOOK, status="5", grpc_message="no")),
            ("trailers_only", trailers_only("5", ("grpc-message", "no%20such"), ("x-h", "1"))),
            ("trailers_only_details", trailers_only("5", ("grpc-status-details-bin", DETAILS))),
            ("ok", answer(BOOK)),
            ("no_status", answer(status="")),
            ("bad_status", answer(status="x")),
            ("big_status", answer(status="99")),
        )
    ),
    answered("list_error_converted", answer(status="5", grpc_message="no"), target="/v1/list/x", on="converted"),
    answered("list_trailers_only_converted", trailers_only("5", ("grpc-message", "no")), target="/v1/list/x", on="converted"),
    answered("file_error_converted", answer(status="5", grpc_message="no"), target="/v1/file/x", on="converted"),
    Case("unreachable", get("/v1/find"), listener="main", route=DEAD, log_bytes=False),
    Case("unreachable_stream", get("/v1/list/x"), listener="main", route=DEAD, log_bytes=False),
    Case("unreachable_converted", get("/v1/find"), listener="converted", route=DEAD, log_bytes=False),
    *rows("auto", "auto", {
        "plain": post(GRPC + "Plain", js({"id": 1})),
        "get": get(GRPC + "Plain"),
        "with_rule": post(GRPC + "GetBook", js({"book_id": 1})),
    }),
    *rows("lenient", "lenient", {
        "unknown": get("/v1/find?colour=red&shelf=a"),
        "beyond": get("/v1/find?shelf.x=red"),
    }),
    *rows("ignored", "ignored", {
        "key": get("/v1/find?key=red&shelf=a"),
        "field": get("/v1/find?book_id=1&shelf=a"),
        "other": get("/v1/find?colour=red&shelf=a"),
    }),
    *rows("captured", "captured", {
        "file": request("POST", "/v1/file/x?colour=red&colour=blue", [("content-type", "a/b")], b"abc"),
        "stream": request("POST", "/v1/stream/x?colour=red", [("transfer-encoding", "chunked")]) + chunked(b"ab", b"cd"),
        "message": get("/v1/find?colour=red&shelf=a"),
    }),
    *(replace(case, probe=False) for case in rows("strict", "strict", {
        "unknown_method": get("/v2/x"),
        "wrong_method": request("DELETE", "/v1/find"),
        "unknown_query": get("/v1/find?colour=red"),
        "beyond_scalar": get("/v1/find?shelf.x=red"),
        "same": request("PUT", "/v1/books/5", (), js({"id": 5})),
        "same_text": request("PUT", "/v1/books/5", (), js({"id": "5"})),
        "collision": request("PUT", "/v1/books/5", (), js({"id": 6})),
        "collision_text": post("/v1/shelves/a:merge", js({"shelf": "b"})),
        "collision_query": request("PUT", "/v1/books/5?title=a&lent=true&price=1&tags=x", (), js({"title": "a", "lent": False})),
        "collision_double": request("PUT", "/v1/books/5?price=1.5", (), js({"price": 1.5})),
        "collision_list": request("PUT", "/v1/books/5?tags=x", (), js({"tags": ["y"]})),
        "collision_nested": request("PUT", "/v1/books/5?author.first_name=x", (), js({"author": {"first_name": "y"}})),
        "collision_json_name": request("PUT", "/v1/books/5?author.first_name=x", (), js({"author": {"firstName": "y"}})),
        "grpc": request("POST", GRPC + "GetBook", [("content-type", "application/grpc")], frame(b"")),
    })),
    *rows("unescape_slash", "except_slash", {"tree": get("/v1/tree/a%2Fb/c%20d%21%2fe")}),
    *rows("unescape_all", "all_characters", {"tree": get("/v1/tree/a%2Fb/c%20d%21"), "one": get("/v1/books/%37")}),
    *rows("pluses", "pluses", {"query": get("/v1/find?shelf=a+b%2B"), "path": get("/v1/shelves/a+b/books/1")}),
    *rows("verbs", "verbs", {
        "unknown": get("/v1/books/7:burn"), "known": post("/v1/shelves/x:merge", b"{}"), "tree": get("/v1/tree/a:b"),
    }),
    *rows("any_case", "any_case", {
        "query": get("/v1/find?genre=novel"),
        "body": post("/v1/shelves/poems/books", js({"genre": "Short_Story"})),
        "dash": get("/v1/find?genre=short-story"),
        "unknown": get("/v1/find?genre=comic"),
    }),
]  # fmt: skip
TO_A = "match: { prefix: / }\nroute: { cluster: a }\n"
NOTHING = f"{{ '@type': {HTTP}grpc_json_transcoder.v3.GrpcJsonTranscoder, proto_descriptor_bin: '' }}"
OFF = TO_A + f"typed_per_filter_config: {{ transcoder: {NOTHING} }}"
PROTO_NAMES = "print_options: { preserve_proto_field_names: true }"
NAMED = TO_A + f"typed_per_filter_config: {{ transcoder: {{ {config(PROTO_NAMES)} }} }}"
TEAPOT = "direct_response: { status: 418 }"
BY_OLD_PATH = f"[{{ match: {{ prefix: /v1 }}, route: {{ cluster: a }} }}, {{ match: {{ prefix: {GRPC} }}, {TEAPOT} }}]"
BY_NEW_PATH = f"[{{ match: {{ prefix: /v1 }}, {TEAPOT} }}, {{ match: {{ prefix: {GRPC} }}, route: {{ cluster: a }} }}]"
MARKED = answer(frame(encoded("Book", shelf_mark=1)))
ROUTES = [
    Case("route_off", get("/v1/find"), (ANSWER,), route=OFF, log_bytes=False),
    Case("route_options", get("/v1/find"), (MARKED,), route=NAMED, log_bytes=False),
    Case("route_on", get("/v1/find"), (MARKED,), listener="off", route=NAMED, log_bytes=False),
    Case("route_as_filter", get("/v1/find"), (MARKED,), listener="off", route=TO_A, log_bytes=False),
    Case("route_anew", get("/v1/find"), (ANSWER,), route=BY_NEW_PATH, log_bytes=False),
    Case("route_anew_none", get("/v1/find"), route=f"[{{ match: {{ prefix: /v1 }}, {TEAPOT} }}]", log_bytes=False),
    Case("route_kept", get("/v1/find"), (ANSWER,), listener="kept", route=BY_OLD_PATH, log_bytes=False),
    Case("found_twice", get("/v1/find"), (ANSWER,), listener="twice", log_bytes=False),
]
# The request is refused when its head may have gone upstream already.
LATE = frozenset((
    "body_spaces", "body_array", "body_scalar", "body_cut", "body_garbage", "body_behind", "body_two",
    "body_comment", "body_nan", "body_bom", "body_not_utf8", "body_half_surrogate", "body_too_deep",
    "body_bad_string_for_int", "body_fraction_for_int", "body_int_for_string", "body_bool_for_string",
    "body_int_for_bool", "body_list_for_scalar", "body_object_for_scalar", "body_scalar_for_object",
    "body_enum_unknown", "body_enum_lower", "body_bad_bytes", "body_json_and_proto_name", "body_oneof_twice",
    "body_unknown_any", "body_any_without_type", "limit_in_pieces", "limit_file_over", "limit_stream_over",
    "limit_stream_item_over", "limit_stream_pieces", "upload_object", "upload_scalar", "upload_null",
    "upload_scalars", "upload_lists", "upload_cut", "upload_cut_in_one", "upload_no_comma", "upload_behind",
    "upload_bad_second", "file_bad_query", "strict_collision", "strict_collision_text", "strict_collision_query",
    "strict_collision_nested",
))  # fmt: skip
# What is wrong is said in words of our own.
OWN_WORDS = frozenset((
    "query_timestamp_bad", "body_spaces", "body_cut", "body_garbage", "body_behind", "body_two", "body_comment",
    "body_nan", "body_bom", "body_not_utf8", "body_half_surrogate", "body_any_without_type", "upload_cut",
    "upload_cut_in_one", "upload_no_comma", "upload_behind", "answer_cut", "answer_not_utf8", "answer_unknown_any",
    "answer_bad_timestamp",
))  # fmt: skip


def declared(case: Case) -> Case:
    """With what may differ."""
    if case.name in LATE:
        case = replace(case, compare_upstream="nothing", log=False)
    if case.name in OWN_WORDS:
        case = replace(case, ignore=("body:", "content-length:"))
    if case.name.startswith("limit_"):  # whether the request was whole when it was refused is a matter of pieces
        case = replace(case, ignore=("connection",))
    if case.name == "body_duplicate_key":  # the last counts, whether the first is sent too or not
        case = replace(case, compare_upstream="heads")
    return replace(case, differs=DIFFERENT.get(case.name))


OURS_REFUSED = Expect((400,), connection="closed", contains=("The request is not JSON",))
STRICT_JSON = {
    name: Differs("transcoder-json", OURS_REFUSED, Expect((200,), upstream=None))
    for name in ("body_trailing_comma", "body_single_quotes", "body_bare_keys")
}
BAD_MESSAGES = {
    f"list_bad_message_{on}": Differs(
        "transcoder-bad-message",
        Expect((200,), "closed", None, ("end: closed", "grpc_json_transcode_failure{INVALID_ARGUMENT}")),
        Expect((200,), upstream=None, contains=("{}",)),
    )
    for on in ("main", "lines", "events")
}
LENGTHS = {
    f"list_trailers_only{status}_main": Differs(
        "transcoder-content-length",
        Expect((code,), upstream=None, contains=("'[]'",)),
        Expect((code,), upstream=None, contains=("content-length: 0",)),
    )
    for status, code in (("", 404), ("_ok", 200))
}
DIFFERENT = STRICT_JSON | BAD_MESSAGES | LENGTHS | {
    "upload_trailing_comma": Differs(
        "transcoder-json", Expect((400,), "closed", None, ("The request is not JSON",)), Expect((200,), upstream=None)
    ),
    "body_enum_unknown": Differs(
        "transcoder-late-head",
        Expect((400,), "closed", (), ("attempts=0",)),
        Expect((400,), "closed", None, ("attempts=1",)),
    ),
    "answer_bad_message": Differs(
        "transcoder-bad-message",
        Expect((502,), upstream=None, contains=("grpc_json_transcode_failure{INVALID_ARGUMENT}",)),
        Expect((200,), upstream=None, contains=("'{}'",)),
    ),
    "file_get_bad": Differs(
        "transcoder-bad-message",
        Expect((502,), upstream=None, contains=("grpc_json_transcode_failure{INVALID_ARGUMENT}",)),
        Expect((), "closed", None),
    ),
    "answer_content_length": Differs(
        "transcoder-content-length",
        Expect((200,), upstream=None, contains=("Emma",)),
        Expect((200,), upstream=None, contains=("content-length: 13",)),
    ),
    **{
        name: Differs("transcoder-limit", Expect((200,), upstream=None), Expect((413,), "closed", None))
        for name in ("limit_stream_over", "limit_stream_pieces")
    },
    "answer_limit_of_stream": Differs(
        "transcoder-limit",
        Expect((200,), upstream=None, contains=("grpc-status: 0",)),
        Expect((200,), "closed", None, ("response_buffer_size_limit_reached",)),
    ),
}  # fmt: skip
TOPIC = Topic(
    cases=[declared(case) for case in (
        *PATHS, *QUERIES, *BODIES, *LIMITED, *ANSWERS, *STREAMS, *UPLOADS, *FILES, *OPTIONS, *ROUTES,
    )],
    listeners={
        "main": listener(),
        "limited": listener("max_request_body_size: 100, max_response_body_size: 100"),
        "lines": listener("print_options: { stream_newline_delimited: true }"),
        "events": listener("print_options: { stream_sse_style_delimited: true }"),
        "spaced": listener("print_options: { add_whitespace: true }"),
        "defaults": listener("print_options: { always_print_primitive_fields: true }"),
        "numbers": listener("print_options: { always_print_enums_as_ints: true }"),
        "proto_names": listener("print_options: { preserve_proto_field_names: true }"),
        "converted": listener("convert_grpc_status: true"),
        "auto": listener("auto_mapping: true"),
        "lenient": listener("ignore_unknown_query_parameters: true"),
        "ignored": listener("ignored_query_parameters: [key, book_id]"),
        "captured": listener("capture_unknown_query_parameters: true"),
        "strict": listener("request_validation_options: { reject_unknown_method: true, "
                           "reject_unknown_query_parameters: true, reject_binding_body_field_collisions: true }"),
        "except_slash": listener("url_unescape_spec: ALL_CHARACTERS_EXCEPT_SLASH"),
        "all_characters": listener("url_unescape_spec: ALL_CHARACTERS"),
        "pluses": listener("query_param_unescape_plus: true"),
        "verbs": listener("match_unregistered_custom_verb: true"),
        "kept": listener("match_incoming_request_route: true"),
        "twice": listener().replace(f"[{SERVICE}]", f"[{SERVICE}, {SERVICE}]"),
        "off": listener().replace(f"{{ {config()} }}", NOTHING),
        "any_case": listener("case_insensitive_enum_parsing: true"),
    },
    vhosts="[{ name: any, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: a } }] }]",
    clusters={name: f"hosts: [{name}]\ntyped_extension_protocol_options: {{ "
              "envoy.extensions.upstreams.http.v3.HttpProtocolOptions: { "
              "'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, "
              "explicit_http_config: { http_protocol_options: { enable_trailers: true } } } }" for name in ("a",)},
)  # fmt: skip


def test_case(pair: Pair, case: Case) -> None:
    """Both proxies do the same."""
    pair.check(case)


def test_header_order(pair: Pair) -> None:
    """Fields of a head stand in the same order too."""
    pair.check_order()
