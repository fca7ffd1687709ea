"""The drawing of a trace, and the example cut in two for it."""

import yaml

from meshproxy.demo.trace import Span, one_side, tree
from tests.demo.test_rules import EXAMPLE

TEXT = (EXAMPLE.parent / "tracing" / "envoy.yaml").read_text()


def span(service: str, name: str, own: str, parent: str, start_ms: int, end_ms: int) -> Span:
    return Span(service, name, "t", own, parent, start_ms * 1_000_000, end_ms * 1_000_000)


def test_children_stand_below_their_parents_in_the_order_of_time() -> None:
    spans = [
        span("front", "second try", "3", "1", 60, 100),
        span("service", "work", "4", "3", 70, 90),
        span("front", "shop", "1", "caller", 0, 100),
        span("front", "first try", "2", "1", 0, 50),
    ]
    titles = [line.split("  ━")[0].rstrip(" ━") for line in tree(spans)]
    assert [" ".join(title.split()) for title in titles] == [
        "front: shop 100.00 ms",
        "front: first try 50.00 ms",
        "front: second try 40.00 ms",
        "service: work 20.00 ms",
    ]
    indents = [len(title) - len(title.lstrip()) for title in titles]
    assert indents == [2, 4, 4, 6]
    assert [line.count("━") for line in tree(spans)] == [30, 15, 12, 6]


def test_a_span_of_no_time_is_seen() -> None:
    (line,) = tree([span("a", "b", "1", "", 5, 5)])
    assert line.count("━") == 1


def test_one_side_of_the_example() -> None:
    config = yaml.safe_load(one_side(TEXT, "front", {"sidecar": 1234, "collector": 4321}))
    static = config["static_resources"]
    assert [each["name"] for each in static["listeners"]] == ["front"]
    assert static["listeners"][0]["address"]["socket_address"]["port_value"] == 0
    ports = {
        each["name"]: each["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"][
            "socket_address"
        ]["port_value"]
        for each in static["clusters"]
    }
    assert ports == {"sidecar": 1234, "service": 1, "collector": 4321}
