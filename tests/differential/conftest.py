"""Each file here is a topic: a `TOPIC` with its cases; `pair` is the two proxies that run its configuration."""

from collections.abc import Iterator

import pytest

from tests.differential.http2 import Http2Pair, Http2Topic, start_http2_pair
from tests.differential.pair import SUBJECT_IS_ENVOY, Pair, start_pair
from tests.differential.topic import Topic
from tests.support.proxy import envoy_binary


def runnable(topic: Topic) -> Topic:
    """What the subject can be configured with."""
    return topic if SUBJECT_IS_ENVOY else topic.accepted()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every case of the topic is a test."""
    if "row" in metafunc.fixturenames and isinstance(topic := getattr(metafunc.module, "HTTP2", None), Http2Topic):
        metafunc.parametrize("row", topic.rows, ids=[row.name for row in topic.rows])
    if "case" in metafunc.fixturenames:
        cases = runnable(metafunc.module.TOPIC).cases
        metafunc.parametrize("case", cases, ids=[case.name for case in cases])


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The real Envoy and the subject on the topic's configuration."""
    envoy_binary()
    topic = request.module.TOPIC
    assert isinstance(topic, Topic)
    assert len({case.name for case in topic.cases}) == len(topic.cases), "case names must be unique"
    with start_pair(runnable(topic)) as both:
        yield both


@pytest.fixture(scope="module")
def http2_pair(request: pytest.FixtureRequest) -> Iterator[Http2Pair]:
    """The same on a topic of HTTP/2 rows."""
    envoy_binary()
    topic = request.module.HTTP2
    assert isinstance(topic, Http2Topic)
    assert len({row.name for row in topic.rows}) == len(topic.rows), "names of rows must be unique"
    with start_http2_pair(topic) as both:
        yield both
