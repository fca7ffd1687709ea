"""`python -m tests.differential TOPIC [TEXT]`: the real Envoy's answers to a topic's cases whose names hold TEXT."""

import importlib
import sys

from tests.differential.http2 import Http2Side, Http2Topic
from tests.differential.pair import Side
from tests.differential.topic import Topic
from tests.support.proxy import start_envoy


def show(topic: Topic, text: str) -> None:
    """The cases of HTTP/1."""
    side = Side("envoy", topic, start_envoy)
    try:
        for case in topic.cases:
            if text in case.name:
                outcome = side.run(case)
                print(f"== {case.name}", *outcome.lines(ordered=True, log=case.log), sep="\n")
    finally:
        side.close()


def show_http2(topic: Http2Topic, text: str) -> None:
    """The rows of HTTP/2."""
    side = Http2Side("envoy", topic, start_envoy)
    try:
        for row in topic.rows:
            if text in row.name:
                print(f"== {row.name}", *side.run(row), sep="\n")
    finally:
        side.close()


def main(name: str, text: str = "") -> None:
    """Run the cases on Envoy alone."""
    module = importlib.import_module(f"tests.differential.test_{name}")
    if hasattr(module, "HTTP2"):
        show_http2(module.HTTP2, text)
    else:
        show(module.TOPIC, text)


main(*sys.argv[1:])
