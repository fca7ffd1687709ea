"""Random exchanges, from every version to every version: a seed makes the same rows each time."""

import random

import pytest

from tests.differential.cases import chunked, request
from tests.differential.http2 import Head, HeldUpstream, Http2Pair, Http2Topic, Over, Reached, Request1, Row, Step, Sync
from tests.support.http2_upstream import Http2Answer
from tests.support.http2_wire import DATA, END_STREAM, PADDED, data, frame, headers, priority, reset, settings
from tests.support.upstream import Answer

SEEDS = range(120)
SESSIONS = range(40)
TO = """
route_config:
  virtual_hosts: [{ name: any, domains: ['*'], routes: [{ match: { prefix: / }, route: { cluster: %s } }] }]
"""
NAMES = ("accept", "x-a", "x-b", "user-agent", "x-very-long-name-of-a-field", "authorization", "cookie", "te")
VALUES = ("", "1", "gzip, deflate", "a=1; b=2", "x" * 70, "\xe4\xf6\xfc", "tab\there", "Mixed Case", '"quoted"', "0")
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD", "PROPFIND")
PATHS = ("/", "/a", "/a?b=c", "/a/b/c?d", "/%41%zz", "//double", "/" + "long/" * 40)
STATUSES = (200, 201, 204, 206, 301, 304, 404, 418, 500, 503)

Fields = list[tuple[str, str]]


def some_fields(dice: random.Random, names: tuple[str, ...] = NAMES) -> Fields:
    """A few fields. Some repeat those that Envoy does not join; `te` has the one value that HTTP/2 allows; cookies come
    last, where Envoy has them."""
    picked = dice.sample(names, dice.randrange(len(names)))
    picked += [dice.choice(("x-a", "x-b")) for _ in range(dice.randrange(3))]
    fields = [(name, "trailers" if name == "te" else some_value(dice, name)) for name in picked]
    return sorted(fields, key=lambda field: field[0] == "cookie")


def some_value(dice: random.Random, name: str) -> str:
    """An empty one only where Envoy keeps it."""
    return dice.choice(VALUES if name.startswith("x-") else VALUES[1:])


def some_body(dice: random.Random) -> list[bytes]:
    """Pieces, none of them empty."""
    sizes = [dice.choice((1, 2, 10, 100, 1000, 16384)) for _ in range(dice.randrange(4))]
    return [bytes([97 + number % 26]) * size for number, size in enumerate(sizes)]


def some_trailers(dice: random.Random) -> Fields:
    """Mostly none."""
    return [("x-trailer", dice.choice(VALUES)), ("x-other", "v")] if dice.random() < 0.3 else []


def data_frame(dice: random.Random, stream: int, piece: bytes, *, end: bool) -> bytes:
    """DATA, sometimes padded."""
    if dice.random() < 0.8 or len(piece) > 1000:
        return data(stream, piece, end=end)
    padding = dice.randrange(20)
    return frame(DATA, PADDED | (END_STREAM if end else 0), stream, bytes([padding]) + piece + bytes(padding))


def message_behind_head(dice: random.Random, stream: int, pieces: list[bytes], trailers: Fields) -> bytes:
    """DATA frames and trailers; nothing where the head has ended the stream."""
    last = len(pieces) - 1
    frames = [
        data_frame(dice, stream, piece, end=number == last and not trailers) for number, piece in enumerate(pieces)
    ]
    return b"".join(frames) + (headers(stream, trailers, end=True) if trailers else b"")


def some_request(dice: random.Random) -> tuple[Step, ...]:
    """One of HTTP/2."""
    method = dice.choice(METHODS)
    pieces, trailers = ([], []) if method in ("GET", "HEAD") else (some_body(dice), some_trailers(dice))
    fields = some_fields(dice)
    if pieces and dice.random() < 0.4:
        fields.insert(0, ("content-length", str(sum(map(len, pieces)))))
    head = Head(fields, method=method, path=dice.choice(PATHS), end=not pieces and not trailers)
    return (Sync(), head, message_behind_head(dice, 1, pieces, trailers), Over())


def some_request_of_http1(dice: random.Random) -> tuple[Step, ...]:
    """One of HTTP/1."""
    method = dice.choice(METHODS)
    pieces = [] if method in ("GET", "HEAD") else some_body(dice)
    fields = some_fields(dice)
    if pieces and dice.random() < 0.5:
        head = request(method, dice.choice(PATHS), [*fields, ("transfer-encoding", "chunked")])
        return (Request1(head + chunked(*pieces)),)
    body = b"".join(pieces) if pieces or method not in ("GET", "HEAD") else None
    return (Request1(request(method, dice.choice(PATHS), fields, body)),)


def some_answer(dice: random.Random) -> Http2Answer:
    """One of HTTP/2."""
    status = dice.choice(STATUSES)
    empty = status in (204, 304)
    pieces, trailers = ([], []) if empty else (some_body(dice), some_trailers(dice))
    fields = [(":status", str(status)), *some_fields(dice, ("x-a", "etag", "set-cookie", "x-b", "content-type"))]
    if pieces and dice.random() < 0.5:
        fields.append(("content-length", str(sum(map(len, pieces)))))
    seed = dice.random()

    def frames(stream: int) -> bytes:
        head = headers(stream, fields, end=not pieces and not trailers)
        return head + message_behind_head(random.Random(seed), stream, pieces, trailers)

    return Http2Answer(frames)


def some_plain_answer(dice: random.Random) -> Answer:
    """One of HTTP/1."""
    status = dice.choice(STATUSES)
    fields = some_fields(dice, ("X-A", "ETag", "Set-Cookie", "x-b", "Content-Type"))
    lines = [f"HTTP/1.1 {status} Reason", *(f"{name}: {value}" for name, value in fields)]
    pieces = some_body(dice)
    if status in (204, 304):
        return Answer((("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"),))
    if dice.random() < 0.5:
        head = "\r\n".join([*lines, "transfer-encoding: chunked"]) + "\r\n\r\n"
        return Answer((head.encode("latin-1") + chunked(*pieces),))
    body = b"".join(pieces)
    head = "\r\n".join([*lines, f"content-length: {len(body)}"]) + "\r\n\r\n"
    return Answer((head.encode("latin-1") + body,))


def some_row(seed: int) -> Row:
    """Every answer is to any method but HEAD, to which there is no body."""
    dice = random.Random(seed)
    http1 = dice.random() < 0.3
    steps = some_request_of_http1(dice) if http1 else some_request(dice)
    plain = not http1 and dice.random() < 0.5
    answer, plain_answer = some_answer(dice), some_plain_answer(dice)
    if is_head(steps):
        answer = Http2Answer(lambda stream: headers(stream, [(":status", "200"), ("content-length", "7")], end=True))
        plain_answer = Answer((b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n",))
    return Row(
        f"random_{seed}",
        steps,
        listener="plain" if plain else "main",
        answers=(answer,),
        plain=(plain_answer,),
        **({"opening": None} if http1 else {}),  # type: ignore[arg-type]
    )


class Session:
    """Several requests at once, and other frames between theirs; each is answered once it is whole."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.steps: list[Step] = [Sync()]
        self.next_stream = 1
        self.open: list[int] = []

    def row(self, name: str) -> Row:
        """Up to eight requests, which are all over in the end."""
        while self.next_stream < 17 or self.open:
            self.dice.choice((self.begin, self.go_on, self.go_on, self.end, self.say_something, self.give_up))()
        return Row(name, tuple(self.steps))

    def begin(self) -> None:
        """A request, which is known upstream before anything else happens, so that their order there is certain."""
        if self.next_stream < 17:
            fields = [("x-number", str(self.next_stream)), *some_fields(self.dice)]
            stream, self.next_stream = self.next_stream, self.next_stream + 2
            self.steps += [Head(fields, stream, end=False, method="POST"), Reached((stream + 1) // 2)]
            self.open.append(stream)

    def go_on(self) -> None:
        if self.open:
            self.steps.append(
                data_frame(self.dice, self.dice.choice(self.open), b"x" * self.dice.randrange(1, 2000), end=False)
            )

    def end(self) -> None:
        if self.open:
            stream = self.open.pop(self.dice.randrange(len(self.open)))
            trailers = some_trailers(self.dice)
            self.steps.append(headers(stream, trailers, end=True) if trailers else data(stream, b"end", end=True))
            self.steps.append(Over((stream,)))  # so that the order of the log's lines is certain

    def say_something(self) -> None:
        self.steps.append(
            self.dice.choice((Sync(), priority(99), frame(99, 0, 0, b"x"), settings((4, 1 << 20)), Sync()))
        )

    def give_up(self) -> None:
        """The upstream has all data of the stream before, so that what it saw of it is certain."""
        if self.open and self.dice.random() < 0.3:
            stream = self.open.pop(self.dice.randrange(len(self.open)))
            self.steps += [Sync(), HeldUpstream(), reset(stream, 8), Sync()]


def is_head(steps: tuple[Step, ...]) -> bool:
    """Whether the request is a HEAD."""
    return any(
        (isinstance(step, Head) and step.method == "HEAD")
        or (isinstance(step, Request1) and step.raw.startswith(b"HEAD"))
        for step in steps
    )


HTTP2 = Http2Topic(
    [*(some_row(seed) for seed in SEEDS), *(Session(seed).row(f"session_{seed}") for seed in SESSIONS)],
    listeners={"main": TO % "h", "plain": TO % "a"},
)


def test_row(http2_pair: Http2Pair, row: Row) -> None:
    http2_pair.check(row)


@pytest.mark.long
def test_many_rows(http2_pair: Http2Pair) -> None:
    for seed in range(1000, 3000):
        http2_pair.check(some_row(seed))


@pytest.mark.long
def test_many_sessions(http2_pair: Http2Pair) -> None:
    for seed in range(1000, 1300):
        http2_pair.check(Session(seed).row(f"session_{seed}"))
