"""Reading HTTP/1.1 messages off a blocking socket, keeping every byte as it was sent."""

import socket
from dataclasses import dataclass, field

Headers = list[tuple[bytes, bytes]]


class ConnectionEnded(Exception):
    """The peer ended the connection; `reset` says how, `partial` is what had come of the unfinished message."""

    def __init__(self, reset: bool, partial: bytes = b"") -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset
        self.partial = partial


@dataclass
class Message:
    """A request or a response as it stood on the wire; `end` is "complete", "closed" or "reset"."""

    start_line: bytes
    headers: Headers
    body: bytes = b""
    trailers: Headers = field(default_factory=list)
    end: str = "complete"

    @property
    def status(self) -> int:
        """Status code of a response."""
        return int(self.start_line.split(b" ")[1])

    @property
    def method(self) -> bytes:
        """Method of a request."""
        return self.start_line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        """Request target as sent."""
        return self.start_line.split(b" ")[1]

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of a header, in order."""
        return [value for key, value in self.headers if key.lower() == name]

    def get(self, name: bytes) -> bytes | None:
        """The first value of a header."""
        values = self.get_all(name)
        return values[0] if values else None


class WireReader:
    """Buffered reading of one socket, whose timeout bounds every wait."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""

    def fill(self) -> None:
        """Read once more; raises ConnectionEnded, or TimeoutError when nothing comes."""
        try:
            data = self.sock.recv(262144)
        except (ConnectionError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise ConnectionEnded(reset=True, partial=self.buffer) from error
        if not data:
            raise ConnectionEnded(reset=False, partial=self.buffer)
        self.buffer += data

    def read_until(self, mark: bytes) -> bytes:
        """Bytes up to `mark`, which is consumed."""
        start = 0
        while (at := self.buffer.find(mark, start)) < 0:
            start = max(0, len(self.buffer) - len(mark) + 1)
            self.fill()
        head, self.buffer = self.buffer[:at], self.buffer[at + len(mark) :]
        return head

    def read_exactly(self, count: int) -> bytes:
        """`count` bytes; ConnectionEnded carries what came of them."""
        pieces = [self.buffer[:count]]
        missing = count - len(pieces[0])
        self.buffer = self.buffer[count:]
        while missing > 0:
            try:
                self.fill()
            except ConnectionEnded as ended:
                raise ConnectionEnded(ended.reset, b"".join(pieces)) from ended
            pieces.append(self.buffer[:missing])
            self.buffer = self.buffer[missing:]
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def read_to_end(self) -> tuple[bytes, bool]:
        """Everything until the peer ends, and whether it ended by a reset."""
        while True:
            try:
                self.fill()
            except ConnectionEnded as ended:
                data, self.buffer = self.buffer, b""
                return data, ended.reset

    def read_head(self) -> Message:
        """Start line and headers."""
        start_line, *lines = self.read_until(b"\r\n\r\n").split(b"\r\n")
        return Message(start_line, [split_line(line) for line in lines])

    def read_body(self, message: Message, to_end: bool) -> None:
        """Fill in body, trailers and `end` by the message's own framing; `to_end` when EOF delimits it."""
        try:
            if b"chunked" in (message.get(b"transfer-encoding") or b"").lower():
                self._read_chunks(message)
            elif (length := message.get(b"content-length")) is not None:
                message.body = self.read_exactly(int(length))
            elif to_end:
                message.body, reset = self.read_to_end()
                message.end = "reset" if reset else "complete"
        except ConnectionEnded as ended:
            message.body += ended.partial
            message.end = "reset" if ended.reset else "closed"

    def _read_chunks(self, message: Message) -> None:
        while True:
            try:
                size = int(self.read_until(b"\r\n").split(b";")[0], 16)
            except ConnectionEnded as ended:
                raise ConnectionEnded(ended.reset) from ended
            if size == 0:
                break
            message.body += self.read_exactly(size)
            self.read_exactly(2)
        while line := self.read_until(b"\r\n"):
            message.trailers.append(split_line(line))


def split_line(line: bytes) -> tuple[bytes, bytes]:
    """Name and value of a header line, without the optional white space around the value."""
    name, _, value = line.partition(b":")
    return name, value.strip(b" \t")
