"""What one proxy did with a case, as lines of text that can be compared.

Only what must differ between two runs is normalised: dates, generated request ids, measured milliseconds, ports.
"""

import hashlib
import re
from dataclasses import dataclass, field

from tests.support.upstream import Seen
from tests.support.wire import Headers, Message

DATE = re.compile(rb"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT")
UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
REMAINING_TIME = re.compile(r"(?<=x-envoy-expected-rq-timeout-ms: )\d+$")
LOG_UUID = re.compile(UUID.pattern.decode())
LOG_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")
LOG_DURATIONS = re.compile(r"(\d{3} [A-Z,-]+ \d+ \d+) \d+ (?:\d+|-) ")
SHOWN_BODY_BYTES = 300


@dataclass
class Outcome:
    """Responses in order, how the connection ended, what the upstream saw, and the access log's lines.

    `given` is what the downstream sent: a UUID in it is not a generated one."""

    responses: list[Message] = field(default_factory=list)
    connection: str = ""
    seen: list[Seen] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    ports: dict[int, str] = field(default_factory=dict)
    given: bytes = b""

    def lines(
        self, *, ordered: bool = False, log: bool = True, connections: bool = False, upstream: str = "all"
    ) -> list[str]:
        """The whole outcome; headers are sorted by name (repeated ones keep their order) unless `ordered`."""
        lines: list[str] = []
        for number, message in enumerate(self.responses, 1):
            lines += [f"response {number}: {self._text(message.start_line)}", *self._message(message, ordered)]
        lines.append(f"connection: {self.connection}")
        numbers: dict[tuple[str, int], int] = {}
        for number, seen in enumerate(self.seen if upstream != "nothing" else [], 1):
            connection = numbers.setdefault((seen.server, seen.connection), len(numbers) + 1)
            lines.append(f"upstream {number} at {seen.server}: {self._text(seen.message.start_line)}")
            lines += [f"  on connection: {connection}"] if connections else []
            shown = self._message(seen.message, ordered, upstream == "all")
            lines += shown if number == 1 else [REMAINING_TIME.sub("<remaining>", line) for line in shown]
        if log:
            lines += [f"log: {self._ports(self._log_line(line))}" for line in self.log]
        return lines

    @property
    def statuses(self) -> tuple[int, ...]:
        """Status of every response, interim ones too."""
        return tuple(message.status for message in self.responses)

    @property
    def request_lines(self) -> tuple[str, ...]:
        """Start lines that reached the upstream."""
        return tuple(seen.message.start_line.decode("latin-1") for seen in self.seen)

    def _message(self, message: Message, ordered: bool, body: bool = True) -> list[str]:
        lines = self._headers(message.headers, ordered)
        if body:
            lines += [f"  body: {show_body(message.body)}"] if message.body else []
            lines += [f"  trailer {line.strip()}" for line in self._headers(message.trailers, ordered)]
            lines += [f"  end: {message.end}"] if message.end != "complete" else []
        return lines

    def _headers(self, headers: Headers, ordered: bool) -> list[str]:
        shown = headers if ordered else sorted(headers, key=lambda header: header[0])
        return [f"  {self._text(name)}: {self._text(self._value(name, value))}" for name, value in shown]

    def _value(self, name: bytes, value: bytes) -> bytes:
        if name == b"date" and DATE.fullmatch(value):
            return b"<date>"
        if name == b"x-envoy-upstream-service-time" and value.isdigit():
            return b"<ms>"
        return UUID.sub(lambda match: match[0] if match[0] in self.given else b"<uuid>", value)

    def _log_line(self, line: str) -> str:
        return LOG_DURATIONS.sub(r"\1 <ms> <ms> ", LOG_TIME.sub("<time>", LOG_UUID.sub("<uuid>", line)))

    def _text(self, data: bytes) -> str:
        return self._ports(ascii(data.decode("latin-1"))[1:-1])

    def _ports(self, text: str) -> str:
        return re.sub(r"(?<!\d)\d{4,5}(?!\d)", lambda match: self.ports.get(int(match[0]), match[0]), text)


def show_body(body: bytes) -> str:
    """A body as text, or its length and digest when it is long."""
    if len(body) <= SHOWN_BODY_BYTES:
        return ascii(body.decode("latin-1"))
    return f"{len(body)} bytes, sha1 {hashlib.sha1(body).hexdigest()}"
