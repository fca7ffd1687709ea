"""Testing filters without sockets, through the whole proxy: see docs/writing-filters.md.

async with FilterTest(Hello, {"greeting": "hi"}) as t:
    response = await t.request("GET", "/x")
    assert response.headers[b"x-hello"] == b"hi"
"""

from meshproxy.errors import ConfigError
from meshproxy.testing.filter_test import FilterTest, load_file
from meshproxy.testing.other_kinds import AccessLoggerTest, ListenerFilterTest, LoadBalancerTest, NetworkFilterTest
from meshproxy.testing.peers import Answer, Exchange, Peer, Request, Response, Upstream

__all__ = [
    "AccessLoggerTest",
    "Answer",
    "ConfigError",
    "Exchange",
    "FilterTest",
    "ListenerFilterTest",
    "LoadBalancerTest",
    "NetworkFilterTest",
    "Peer",
    "Request",
    "Response",
    "Upstream",
    "load_file",
]
