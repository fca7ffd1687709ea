"""The users: real HTTP clients of several kinds, each at a bounded rate, each answer checked in full.

No client tries anything twice: what the proxy does not answer well counts as failed.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Final

import httptools

from meshproxy.demo.application import page
from meshproxy.demo.processes import DIRECT
from meshproxy.demo.tally import Ledger

HOST: Final = "shop.example"  # what the mesh calls the shop
_PATIENCE_S: Final = 20.0
_PIPELINED: Final = 4
_IOS: Final = "Mozilla/5.0 (%s; CPU OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of client: how many there are, and how long each waits between the start of two visits."""

    name: str
    user_agent: str
    count: int
    interval_s: float
    is_ios: bool = False
    is_slow_on_request: bool = False  # asks for the fault, with x-chaos


IPHONE: Final = Kind("iPhone, keep-alive", _IOS % "iPhone", 8, 0.025, is_ios=True)
IPAD: Final = Kind(f"iPad, {_PIPELINED} requests pipelined", _IOS % "iPad", 1, 0.05, is_ios=True)
ANDROID: Final = Kind("Android, keep-alive", "Mozilla/5.0 (Linux; Android 14; Pixel 8)", 4, 0.04)
DESKTOP: Final = Kind("desktop, keep-alive", "Mozilla/5.0 (X11; Linux x86_64; rv:126.0)", 4, 0.04)
TESTER: Final = Kind("tester with x-chaos: slow", "shop-tester/1", 2, 0.05, is_slow_on_request=True)
URLLIB: Final = Kind("urllib, a connection each", "Python-urllib/3", 1, 0.05)
CURL: Final = Kind("curl, two URLs a run", "curl", 1, 0.25)

_KEEP_ALIVE: Final = (IPHONE, ANDROID, DESKTOP, TESTER)
STAYING_CONNECTED: Final = (*_KEEP_ALIVE, IPAD)
# What can go wrong with a request; everything else is a mistake of ours and ends the demonstration.
_FAILURES: Final = (OSError, EOFError, HTTPException, httptools.HttpParserError)


def kinds_here() -> list[Kind]:
    """The kinds that this machine can run: curl may be missing."""
    kinds = [IPHONE, IPAD, ANDROID, DESKTOP, TESTER, URLLIB]
    return [*kinds, CURL] if shutil.which("curl") else kinds


class Reply:
    """A response as a client read it."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.instance = ""
        self.body = b""
        self.closes = False


class ReplyReader:
    """Reads any number of responses off one connection; `replies` holds the complete ones."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self._parser = httptools.HttpResponseParser(self)
        self._reply = Reply()

    def feed(self, data: bytes) -> None:
        """Take what came; b"" is the end of the connection. Raises EOFError then, and HttpParserError."""
        if not data:
            raise EOFError("the proxy closed the connection before it had answered")
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._reply = Reply()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-shop-instance":
            self._reply.instance = value.decode("latin-1")
        elif name.lower() == b"connection":
            self._reply.closes = value.lower() == b"close"

    def on_body(self, data: bytes) -> None:
        self._reply.body += data

    def on_message_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()
        self.replies.append(self._reply)


class Visit:
    """One request and what became of it: `judge` or `fail` is called once, and counts it."""

    def __init__(self, kind: Kind, number: int, ledger: Ledger) -> None:
        self.kind = kind
        self.target = f"/items/{number}"
        self.body = b"count=%d" % number if number % 8 == 0 else b""  # one in eight is a POST
        self.method = "POST" if self.body else "GET"
        self._ledger = ledger
        self._act = ledger.act
        self._started = time.monotonic()

    def headers(self) -> dict[str, str]:
        chaos = {"x-chaos": "slow"} if self.kind.is_slow_on_request else {}
        return {"host": HOST, "user-agent": self.kind.user_agent, **chaos}

    def encoded(self) -> bytes:
        """The request as it goes over the wire."""
        fields = self.headers()
        if self.body:
            fields["content-length"] = str(len(self.body))
        lines = [f"{self.method} {self.target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.body

    def judge(self, reply: Reply) -> None:
        """Check every part of the answer."""
        latency_ms = (time.monotonic() - self._started) * 1000
        expected = page(reply.instance, self.method.encode(), self.target.encode(), self.body)
        if reply.status != 200:
            self._fail(f"status {reply.status}: {reply.body[:120]!r}")
        elif not reply.instance or reply.body != expected:
            self._fail(f"the answer of {reply.instance or 'nobody'} was {reply.body[:120]!r}")
        else:
            self._ledger.count_answer(self._act, self.kind.name, reply.instance, latency_ms)

    def fail(self, error: BaseException) -> None:
        """There was no answer."""
        self._fail(str(error) or type(error).__name__)

    def _fail(self, reason: str) -> None:
        self._ledger.count_failure(self._act, self.kind.name, f"{self.method} {self.target}: {reason}")


class KeepAliveConnection:
    """Requests one after the other on one connection; a new one only after the proxy closed the last."""

    def __init__(self, port: int, kind: Kind, ledger: Ledger) -> None:
        self._port = port
        self._kind = kind
        self._ledger = ledger
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, request: bytes) -> Reply:
        """Raises OSError, EOFError or HttpParserError; TimeoutError is an OSError."""
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await self._connect()
            replies = ReplyReader()
            writer.write(request)
            while not replies.replies:
                replies.feed(await reader.read(65536))
        if replies.replies[0].closes:
            self.close()
        return replies.replies[0]

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            self._ledger.count_connection(self._kind.name)
        return self._streams

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class PipeliningConnection:
    """Several requests in one write on a plain, blocking socket; their answers must come in the same order."""

    def __init__(self, port: int, ledger: Ledger) -> None:
        self._port = port
        self._ledger = ledger
        self._sock: socket.socket | None = None

    def exchange(self, visits: list[Visit]) -> None:
        """Send all, then judge each answer as it comes."""
        waiting = list(visits)
        try:
            sock = self._connect()
            sock.sendall(b"".join(visit.encoded() for visit in visits))
            replies = ReplyReader()
            while waiting:
                replies.feed(sock.recv(65536))
                self._judge(waiting, replies)
        except _FAILURES as error:
            self.close()
            for visit in waiting:
                visit.fail(error)

    def _connect(self) -> socket.socket:
        if self._sock is None:
            self._sock = socket.create_connection(("127.0.0.1", self._port), timeout=_PATIENCE_S)
            self._ledger.count_connection(IPAD.name)
        return self._sock

    def _judge(self, waiting: list[Visit], replies: ReplyReader) -> None:
        while replies.replies:
            reply = replies.replies.pop(0)
            waiting.pop(0).judge(reply)
            if reply.closes:
                self.close()

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


def visit_with_urllib(visit: Visit, port: int) -> None:
    """The standard library's client: a connection for each request."""
    url = f"http://127.0.0.1:{port}{visit.target}"
    request = urllib.request.Request(url, visit.body or None, visit.headers(), method=visit.method)
    try:
        with DIRECT.open(request, timeout=_PATIENCE_S) as answer:
            reply = Reply(answer.status)
            reply.instance = answer.headers.get("x-shop-instance", "")
            reply.body = answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        visit.fail(error)
    except _FAILURES as error:
        visit.fail(error)
    else:
        visit.judge(reply)


def visit_with_curl(visits: list[Visit], port: int) -> None:
    """One run of curl, without its own configuration, for URLs that it asks for on one connection."""
    arguments: list[str] = []
    for visit in visits:
        url = f"http://127.0.0.1:{port}{visit.target}"
        body = ["--data-binary", visit.body.decode()] if visit.body else []
        options = ["-q"] if not arguments else ["--next"]
        options += ["-s", "-i", "-H", f"host: {HOST}", "--noproxy", "*", "--max-time", str(_PATIENCE_S)]
        arguments += [*options, *body, url]
    done = subprocess.run(
        ["curl", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0, check=False
    )
    replies = ReplyReader()
    problem: Exception = EOFError(f"curl ended with {done.returncode}")
    try:
        replies.feed(done.stdout)
    except _FAILURES as error:
        problem = error
    for visit, reply in zip(visits, replies.replies, strict=False):
        visit.judge(reply)
    for visit in visits[len(replies.replies) :]:
        visit.fail(problem)


class Traffic:
    """All clients at work on one port, from `start` to `stop`."""

    def __init__(self, port: int, ledger: Ledger) -> None:
        self.kinds = kinds_here()
        self._port = port
        self._ledger = ledger
        self._numbers = itertools.count(1)
        self._ending = threading.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        clients = [self._keep_alive(kind, place) for kind in _KEEP_ALIVE for place in range(kind.count)]
        clients += [asyncio.to_thread(self._pipeline), asyncio.to_thread(self._urllib)]
        if CURL in self.kinds:
            clients.append(asyncio.to_thread(self._curl))
        self._tasks = [asyncio.create_task(client) for client in clients]

    async def stop(self) -> None:
        """Let every client finish what it has begun. Raises what a client of ours did wrong."""
        self._ending.set()
        await asyncio.gather(*self._tasks)

    def check(self) -> None:
        """Raises what a client of ours did wrong, while others go on."""
        for task in self._tasks:
            if task.done():
                task.result()

    def abandon(self) -> None:
        """Stop at once; threads end with the connection that they are waiting on."""
        self._ending.set()
        for task in self._tasks:
            task.cancel()

    def _visit(self, kind: Kind) -> Visit:
        return Visit(kind, next(self._numbers), self._ledger)

    async def _keep_alive(self, kind: Kind, place: int) -> None:
        connection = KeepAliveConnection(self._port, kind, self._ledger)
        due = time.monotonic() + kind.interval_s * place / kind.count
        while not self._ending.is_set():
            due = max(due + kind.interval_s, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            visit = self._visit(kind)
            try:
                visit.judge(await connection.exchange(visit.encoded()))
            except _FAILURES as error:
                connection.close()
                visit.fail(error)
        connection.close()

    def _pipeline(self) -> None:
        connection = PipeliningConnection(self._port, self._ledger)
        while not self._ending.wait(IPAD.interval_s):
            connection.exchange([self._visit(IPAD) for _ in range(_PIPELINED)])
        connection.close()

    def _urllib(self) -> None:
        while not self._ending.wait(URLLIB.interval_s):
            self._ledger.count_connection(URLLIB.name)
            visit_with_urllib(self._visit(URLLIB), self._port)

    def _curl(self) -> None:
        while not self._ending.wait(CURL.interval_s):
            self._ledger.count_connection(CURL.name)
            visit_with_curl([self._visit(CURL), self._visit(CURL)], self._port)
