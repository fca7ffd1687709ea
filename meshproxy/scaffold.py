"""`meshproxy filter new NAME`: a filter to begin with, its test, and a configuration that runs it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")

_FILTER: Final = '''\
"""{title}: says what it does in one line."""

from dataclasses import dataclass

from meshproxy import CONTINUE, STOP, HeaderMap, HttpFilter, Result, Stream


@dataclass(frozen=True)
class Config:
    """What `config` in the proxy's configuration may say. A field without a default is required."""

    greeting: str = "hello"
    blocked: list[str] | None = None


class {kind}(HttpFilter):
    """One instance for each stream. Override only the hooks that you need; the others cost nothing."""

    config: Config

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        path = headers[b":path"].decode("latin-1")
        if path in (self.config.blocked or ()):
            stream.send_local_reply(403, b"not here\\n", "blocked_by_{name}")
            return STOP
        headers[b"x-{dashed}"] = self.config.greeting.encode()
        return CONTINUE

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        headers[b"x-{dashed}"] = self.config.greeting.encode()
        return CONTINUE
'''

_TEST: Final = '''\
"""Run it with `pytest`. Nothing has to be started: FilterTest is the proxy, without sockets."""

import asyncio
from pathlib import Path

import pytest

from meshproxy.testing import ConfigError, FilterTest

FILE = Path(__file__).with_name("{name}.py")


def test_it_greets():
    async def test():
        async with FilterTest(FILE, {{"greeting": "hi"}}) as t:
            t.upstream.respond(200, {{"content-type": "text/plain"}}, "body")
            response = await t.request("GET", "/x", {{"user-agent": "test"}})
            assert response.status == 200
            assert response.text == "body"
            assert response.header("x-{dashed}") == "hi"
            assert t.upstream.requests[0].header("x-{dashed}") == "hi"

    asyncio.run(test())


def test_it_blocks():
    async def test():
        async with FilterTest(FILE, {{"blocked": ["/secret"]}}) as t:
            response = await t.request("GET", "/secret")
            assert (response.status, response.details) == (403, "blocked_by_{name}")
            assert t.upstream.requests == []

    asyncio.run(test())


def test_a_mistake_in_the_configuration_is_told():
    with pytest.raises(ConfigError, match="did you mean 'greeting'"):
        asyncio.run(FilterTest(FILE, {{"greting": "hi"}}).start())
'''

_CONFIGURATION: Final = """\
# meshproxy run -c {name}.yaml     then: curl -i localhost:10000/     and: curl localhost:9901/stats?filter=python
# Change {name}.py while it runs: the next request has the new one.
admin:
  address: {{socket_address: {{address: 127.0.0.1, port_value: 9901}}}}
static_resources:
  listeners:
  - name: main
    address: {{socket_address: {{address: 127.0.0.1, port_value: 10000}}}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          http_filters:
          - name: {name}
            typed_config:
              "@type": type.googleapis.com/meshproxy.filters.http.python.v1.Python
              file: {file}
              class: {kind}
              config: {{greeting: hello, blocked: [/secret]}}
          - name: router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: /}}
                direct_response: {{status: 200, body: {{inline_string: "it works\\n"}}}}
"""


def new_filter(name: str, directory: str) -> int:
    """Write the three files; an exit code. Nothing is overwritten."""
    if not _NAME.fullmatch(name):
        print(f"{name!r} cannot be a filter's name: small letters, digits and _, a letter first", file=sys.stderr)
        return 2
    folder = Path(directory)
    words = {
        "name": name,
        "dashed": name.replace("_", "-"),
        "kind": "".join(part.capitalize() for part in name.split("_")),
        "title": name.replace("_", " ").capitalize(),
        "file": (folder / f"{name}.py").resolve(),
    }
    files = {f"{name}.py": _FILTER, f"test_{name}.py": _TEST, f"{name}.yaml": _CONFIGURATION}
    taken = [file for file in files if (folder / file).exists()]
    if taken:
        print(f"{', '.join(str(folder / file) for file in taken)}: there already", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).write_text(text.format(**words), encoding="utf-8")
        print(f"wrote {folder / file}")
    print(f"\ntest it:  pytest {folder / f'test_{name}.py'}\nrun it:   meshproxy run -c {folder / f'{name}.yaml'}")
    return 0
