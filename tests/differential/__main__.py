"""`python -m tests.differential TOPIC [TEXT]`: the real Envoy's answers to a topic's cases whose names hold TEXT."""

import importlib
import sys

from tests.differential.pair import Side
from tests.differential.topic import Topic
from tests.support.proxy import start_envoy


def main(name: str, text: str = "") -> None:
    """Run the cases on Envoy alone."""
    topic = importlib.import_module(f"tests.differential.test_{name}").TOPIC
    assert isinstance(topic, Topic)
    side = Side("envoy", topic, start_envoy)
    try:
        for case in topic.cases:
            if text in case.name:
                outcome = side.run(case)
                print(f"== {case.name}", *outcome.lines(ordered=True, log=case.log), sep="\n")
    finally:
        side.close()


main(*sys.argv[1:])
