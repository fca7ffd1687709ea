"""Testing filters without sockets, through the whole proxy: see docs/writing-filters.md.

async with FilterTest(Hello, {"greeting": "hi"}) as t:
    response = await t.request("GET", "/x")
    assert response.headers[b"x-hello"] == b"hi"
"""

from meshproxy.errors import ConfigError
from meshproxy.testing.filter_test import FilterTest, load_file
from meshproxy.testing.peers import Answer, Exchange, Request, Response, Upstream

__all__ = ["Answer", "ConfigError", "Exchange", "FilterTest", "Request", "Response", "Upstream", "load_file"]
