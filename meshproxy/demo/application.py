"""The application behind the proxy: a tiny shop that says which version and which instance of it answered.

`python -m meshproxy.demo.application --instance v2-a --port 8201`; with port 0 it picks one. It prints its port when it
serves. `--until-eof` ends it with its standard input, so that it never outlives whoever started it.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from typing import cast

import httptools


def page(instance: str, method: bytes, target: bytes, received: bytes) -> bytes:
    """The body of the answer: it depends on all of the request, so that no client takes another's for its own."""
    version = instance.partition("-")[0]
    lines = (b"shop %s, instance %s" % (version.encode(), instance.encode()), b"%s %s" % (method, target), received)
    return b"\n".join(lines) + b"\n"


class Visit(asyncio.Protocol):
    """One connection: answers each request at once, head and body in one write."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._target = self._received = b""

    def on_url(self, target: bytes) -> None:
        self._target += target

    def on_body(self, data: bytes) -> None:
        self._received += data

    def on_message_complete(self) -> None:
        body = page(self._instance, self._parser.get_method(), self._target, self._received)
        head = (
            "HTTP/1.1 200 OK\r\n"
            "content-type: text/plain\r\n"
            f"x-shop-instance: {self._instance}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        if not self._parser.should_keep_alive():
            self._transport.close()


async def serve(instance: str, host: str, port: int, until_eof: bool) -> None:
    """Serve on `host` until SIGINT or SIGTERM, or the end of standard input. Raises OSError when `port` is taken."""
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, end.set)
    if until_eof:
        loop.add_reader(sys.stdin, end.set)  # nobody writes to it: there is something to read at its end only
    server = await loop.create_server(lambda: Visit(instance), host, port)
    print(server.sockets[0].getsockname()[1], flush=True)
    await end.wait()
    server.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one instance; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m meshproxy.demo.application", description=__doc__)
    parser.add_argument("--instance", required=True, help="its name: the version, a dash and a letter, such as v1-a")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one (default)")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    options = parser.parse_args(argv)
    try:
        asyncio.run(serve(options.instance, options.host, options.port, options.until_eof))
    except OSError as error:
        print(f"cannot serve: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
