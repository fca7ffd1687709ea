"""The header_mutation filter. What is expected was recorded from Envoy 1.40 on the same configuration and requests."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.extensions.filters.http.header_mutation.v3.header_mutation_pb2 import HeaderMutation

from meshproxy.codec.headers import Field, HeaderMap
from meshproxy.filters.http import header_mutation
from tests.http.harness import Harness, ScriptedUpstream, get, head, parse

APPEND = "APPEND_IF_EXISTS_OR_ADD"
OVERWRITE = "OVERWRITE_IF_EXISTS_OR_ADD"
IF_ABSENT = "ADD_IF_ABSENT"
IF_EXISTS = "OVERWRITE_IF_EXISTS"


def field(name: str, value: str, action: str = APPEND, *, keep: bool = False) -> dict[str, Any]:
    option = {"header": {"key": name, "value": value}, "append_action": action, "keep_empty_value": keep}
    return {"append": option}


def parameter(name: str, value: str, action: str = APPEND) -> dict[str, Any]:
    return {"append": {"record": {"key": name, "value": value}, "action": action}}


def harness(
    mutations: dict[str, Any],
    routes: dict[str, Any] | None = None,
    *,
    most_specific_wins: bool = False,
    answer: list[Field] | None = None,
) -> Harness:
    made = Harness(routes, upstream=ScriptedUpstream(answer or [(b":status", b"200")]))
    config = {"mutations": mutations, "most_specific_header_mutations_wins": most_specific_wins}
    built = header_mutation.build_header_mutation(parse(config, HeaderMutation()), "f", made.context)
    assert not made.errors, str(made.errors)
    made.add(built, "hm")
    return made


def upstream_sees(made: Harness, request: bytes) -> list[Field]:
    """The header fields that reach the upstream, without what the connection manager adds and pseudo-headers."""
    made.exchange(request)
    own = (b"x-forwarded-proto", b"x-request-id")
    return [each for each in made.upstream.seen[-1] if not each[0].startswith(b":") and each[0] not in own]


def path_upstream(made: Harness, path: str, *fields: tuple[str, str]) -> bytes:
    made.exchange(get(path, *fields))
    return dict(made.upstream.seen[-1])[b":path"]


REQUEST = [
    {"remove": "x-remove"},
    field("x-app", "1"),
    field("x-over", "2", OVERWRITE),
    field("x-absent", "3", IF_ABSENT),
    field("x-exists", "4", IF_EXISTS),
    field("x-seq", "a"),
    field("x-seq", "%REQ(x-seq)%b", OVERWRITE),
    {"remove": "x-tmp"},
    field("x-tmp", "new"),
    field("x-empty", ""),
    field("x-empty-keep", "", keep=True),
    field("x-empty-fmt", "%REQ(nope)%"),
    field("x-empty-fmt-keep", "%REQ(nope)%", keep=True),
    field("X-Upper", "v"),
    {"remove_on_match": {"key_matcher": {"prefix": "x-pre"}}},
    field("x-empty-over", "", OVERWRITE),
    field("x-empty-over-keep", "", OVERWRITE, keep=True),
    field("x-fmt-over", "%REQ(nope)%", OVERWRITE),
]


def test_mutations_happen_one_after_the_other() -> None:
    made = harness({"request_mutations": REQUEST})
    request = get(
        "/x",
        ("x-remove", "1"),
        ("x-app", "0"),
        ("x-over", "0"),
        ("x-over", "00"),
        ("x-absent", "0"),
        ("x-exists", "0"),
        ("x-tmp", "old"),
        ("x-pre1", "1"),
        ("X-Pre2", "1"),
        ("x-empty-over", "q"),
        ("x-fmt-over", "q"),
        ("x-empty-over-keep", "q"),
    )
    assert upstream_sees(made, request) == [
        (b"x-app", b"0"),
        (b"x-absent", b"0"),
        (b"x-empty-over", b"q"),
        (b"x-fmt-over", b"q"),
        (b"x-app", b"1"),
        (b"x-over", b"2"),
        (b"x-exists", b"4"),
        (b"x-seq", b"ab"),
        (b"x-tmp", b"new"),
        (b"x-empty-keep", b""),
        (b"x-empty-fmt-keep", b""),
        (b"x-upper", b"v"),
        (b"x-empty-over-keep", b""),
    ]


def test_a_request_without_any_of_the_fields() -> None:
    assert upstream_sees(harness({"request_mutations": REQUEST}), get("/x")) == [
        (b"x-app", b"1"),
        (b"x-over", b"2"),
        (b"x-absent", b"3"),
        (b"x-seq", b"ab"),
        (b"x-tmp", b"new"),
        (b"x-empty-keep", b""),
        (b"x-empty-fmt-keep", b""),
        (b"x-upper", b"v"),
        (b"x-empty-over-keep", b""),
    ]


def test_of_some_headers_there_is_one_field_and_values_are_joined() -> None:
    made = harness(
        {"request_mutations": [field("x-app", "1"), field("cookie", "c=2"), field("x-forwarded-for", "9.9.9.9")]}
    )
    request = get("/", ("x-app", "0"), ("cookie", "a=1"), ("x-forwarded-for", "1.1.1.1"), ("x-z", "z"))
    assert upstream_sees(made, request) == [
        (b"x-app", b"0"),
        (b"cookie", b"a=1"),
        (b"x-forwarded-for", b"1.1.1.1,9.9.9.9"),
        (b"x-z", b"z"),
        (b"x-app", b"1"),
        (b"cookie", b"c=2"),
    ]


def test_responses() -> None:
    mutations = [
        field("x-resp", "%REQ(x-in)%"),
        {"remove": "x-up"},
        field("x-resp-seq", "%RESP(x-resp)%!"),
        {"remove_on_match": {"key_matcher": {"suffix": "-gone", "ignore_case": True}}},
    ]
    answer: list[Field] = [(b":status", b"200"), (b"x-up", b"1"), (b"a-gone", b"1")]
    made = harness({"response_mutations": mutations}, answer=answer)
    assert made.exchange(get("/", ("x-in", "IN"))) == head(
        "200 OK", ("x-resp", "IN"), ("x-resp-seq", "IN!"), ("content-length", "0")
    )
    assert made.exchange(get("/")) == head("200 OK", ("x-resp-seq", "!"), ("content-length", "0"))


def test_trailers() -> None:
    made = harness(
        {
            "request_trailers_mutations": [field("x-rt", "t"), {"remove": "rt-remove"}],
            "response_trailers_mutations": [field("x-st", "t"), {"remove": "st-remove"}],
        }
    )
    made.exchange(get("/"))
    stream = made.upstream.streams[0]
    request, response = (
        HeaderMap([(b"rt-remove", b"1"), (b"rt", b"2")]),
        HeaderMap([(b"st-remove", b"1"), (b"st", b"2")]),
    )
    made.filters[0].on_request_trailers(stream, request)
    made.filters[0].on_response_trailers(stream, response)
    assert request.fields == [(b"rt", b"2"), (b"x-rt", b"t")]
    assert response.fields == [(b"st", b"2"), (b"x-st", b"t")]


def test_a_matcher_never_removes_pseudo_headers() -> None:
    """Envoy lets it, and then answers 503 to every request."""
    made = harness({"request_mutations": [{"remove_on_match": {"key_matcher": {"contains": "a"}}}]})
    assert upstream_sees(made, get("/a", ("abc", "1"), ("xyz", "2"))) == [(b"xyz", b"2")]
    assert (b":path", b"/a") in made.upstream.seen[-1]


QUERY = [
    parameter("a", "1"),
    parameter("b", "2", OVERWRITE),
    parameter("c", "3", IF_ABSENT),
    parameter("d", "4", IF_EXISTS),
    {"remove": "r"},
    parameter("f", "%REQ(x-in)%"),
    parameter("e", ""),
    parameter("sp", "x y&z=/ü"),
]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/p", "/p?a=1&b=2&c=3&e=&f=I%26N&sp=x%20y%26z%3D%2F%C3%BC"),
        ("/p?", "/p?a=1&b=2&c=3&e=&f=I%26N&sp=x%20y%26z%3D%2F%C3%BC"),
        ("/p?a=0&b=0&c=0&d=0&r=0&e=0&r=1", "/p?a=0&a=1&b=2&c=0&d=4&e=0&e=&f=I%26N&sp=x%20y%26z%3D%2F%C3%BC"),
        ("/p?b=0&b=1&d=0&d=1&keep&x=&=y", "/p?=y&a=1&b=2&c=3&d=4&e=&f=I%26N&keep=&sp=x%20y%26z%3D%2F%C3%BC&x="),
        ("/p?a=0&&k=1&", "/p?=&a=0&a=1&b=2&c=3&e=&f=I%26N&k=1&sp=x%20y%26z%3D%2F%C3%BC"),
    ],
)
def test_query_parameters(given: str, expected: str) -> None:
    made = harness({"query_parameter_mutations": QUERY})
    assert path_upstream(made, given, ("x-in", "I&N")) == expected.encode()


@pytest.mark.parametrize(
    ("given", "expected"), [("/p?r=1", "/p"), ("/p?", "/p"), ("/p?z=1&r&b=%zz&c", "/p?b=%zz&c=&z=1")]
)
def test_a_removed_query_parameter(given: str, expected: str) -> None:
    assert path_upstream(harness({"query_parameter_mutations": [{"remove": "r"}]}), given) == expected.encode()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/p?k=a%0d%0ax-inj:%201", "/p?k=a%0d%0ax-inj:%201"),
        ("/p?k=%2F%20+", "/p?k=%2F%20+"),
        ("/p?k=1&%6b=2&%72=3", "/p?k=1&%6b=2"),
    ],
)
def test_what_the_client_sent_stays_encoded(given: str, expected: str) -> None:
    """Envoy forwards the decoded bytes, with which a client could write into the request line."""
    assert path_upstream(harness({"query_parameter_mutations": [{"remove": "r"}]}), given) == expected.encode()


def test_only_unreserved_characters_of_a_value_stay_as_they_are() -> None:
    made = harness({"query_parameter_mutations": [parameter("k", "~-._!*'()")]})
    assert path_upstream(made, "/p") == b"/p?k=%7E-._%21*%27%28%29"


def level(name: str) -> dict[str, Any]:
    return {
        "request_mutations": [field("x-lvl", name, OVERWRITE), field("x-all", name)],
        "response_mutations": [field("x-lvl", name, OVERWRITE), field("x-all", name)],
        "query_parameter_mutations": [parameter("lvl", name, OVERWRITE), parameter("all", name)],
    }


def per_filter(name: str) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute"
    return {"typed_per_filter_config": {"hm": {"@type": kind, "mutations": level(name)}}}


ROUTES = {
    "virtual_hosts": [
        {
            "name": "v",
            "domains": ["*"],
            "routes": [
                {
                    "match": {"prefix": "/w"},
                    "route": {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1, **per_filter("wc")}]}},
                    **per_filter("route"),
                },
                {"match": {"prefix": "/"}, "route": {"cluster": "a"}},
            ],
            **per_filter("vh"),
        }
    ]
}


@pytest.mark.parametrize(
    ("wins", "path", "order"),
    [
        (False, "/w", ["filter", "wc", "route", "vh"]),
        (True, "/w", ["filter", "vh", "route", "wc"]),
        (False, "/x", ["filter", "vh"]),
        (True, "/x", ["filter", "vh"]),
    ],
)
def test_the_mutations_of_every_level_happen(wins: bool, path: str, order: list[str]) -> None:
    made = harness(level("filter"), ROUTES, most_specific_wins=wins)
    fields = [("x-all", name) for name in order]
    fields.insert(-1, ("x-lvl", order[-1]))
    expected = [(name.encode(), value.encode()) for name, value in fields]
    assert made.exchange(get(path)) == head("200 OK", *fields, ("content-length", "0"))
    assert [
        each for each in made.upstream.seen[-1] if each[0].startswith(b"x-") and each[0] != b"x-forwarded-proto"
    ] == expected
    every = "&".join(f"all={name}" for name in order)
    assert dict(made.upstream.seen[-1])[b":path"] == f"{path}?{every}&lvl={order[-1]}".encode()


def test_a_local_reply_is_mutated_too() -> None:
    made = harness({"response_mutations": [field("x-a", "1")]})
    made.upstream.answer_fields = None
    downstream = made.connect()
    downstream.send(get("/"))
    made.upstream.streams[0].send_local_reply(503, b"", "why")
    assert downstream.received() == head("503 Service Unavailable", ("x-a", "1"), ("content-length", "0"))


@pytest.mark.parametrize(
    ("mutations", "path"),
    [
        ({"request_mutations": [{"remove": ":path"}]}, "request_mutations[0].remove"),
        ({"request_mutations": [field("host", "x")]}, "request_mutations[0].append.header.key"),
        ({"response_mutations": [field(":status", "200")]}, "response_mutations[0].append.header.key"),
        ({"request_mutations": [{}]}, "request_mutations[0]"),
        ({"request_mutations": [field("a", "100%")]}, "request_mutations[0].append.header.value"),
        (
            {"request_mutations": [{"remove_on_match": {"key_matcher": {}}}]},
            "request_mutations[0].remove_on_match.key_matcher",
        ),
        ({"query_parameter_mutations": [{}]}, "query_parameter_mutations[0]"),
        ({"query_parameter_mutations": [parameter("a", "1") | {"remove": "b"}]}, "query_parameter_mutations[0]"),
        ({"query_parameter_mutations": [{"append": {"action": APPEND}}]}, "query_parameter_mutations[0].append.record"),
        (
            {"query_parameter_mutations": [{"append": {"record": {"key": "a", "value": 5}}}]},
            "query_parameter_mutations[0].append.record.value",
        ),
        ({"query_parameter_mutations": [parameter("a", "%NOPE%")]}, "query_parameter_mutations[0].append.record.value"),
    ],
)
def test_what_envoy_refuses_is_an_error_at_its_path(mutations: dict[str, Any], path: str) -> None:
    made = Harness()
    message = parse({"mutations": mutations}, HeaderMutation())
    header_mutation.build_header_mutation(message, "f", made.context)
    assert [error.path for error in made.errors.items] == [f"f.mutations.{path}"]
