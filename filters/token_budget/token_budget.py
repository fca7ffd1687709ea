"""A budget of tokens for each tenant of a language model: what its calls have used is read from the responses."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from meshproxy import CONTINUE, STOP, DataResult, FilterContext, HeaderMap, HttpFilter, Result, Stream

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_BOM: Final = b"\xef\xbb\xbf"
_NAMESPACE: Final = "token_budget"
_OTHERS: Final = "(others)"  # share a budget, when there are too many tenants
_LONGEST_TENANT: Final = 256


@dataclass(frozen=True)
class Config:
    """`budget` is in tokens for each `window`, of a tenant that `budgets` does not name."""

    budget: int
    window: timedelta = timedelta(hours=1)
    budgets: dict[str, int] = field(default_factory=dict)
    tenant_header: str = ""
    default_tenant: str = "default"
    ask_for_usage: list[str] = field(default_factory=list)
    cut_streams: bool = False
    tokens_per_event: int = 1
    max_request_bytes: int = 1 << 20
    max_response_bytes: int = 1 << 20
    max_event_bytes: int = 64 << 10
    max_tenants: int = 10_000

    def __post_init__(self) -> None:
        if min(self.budget, *self.budgets.values(), self.tokens_per_event) < 0:
            raise ValueError("budget, budgets, tokens_per_event: none may be below 0")
        if self.window < timedelta(seconds=1):
            raise ValueError("window: at least 1s")
        for name in ("max_request_bytes", "max_response_bytes", "max_event_bytes", "max_tenants"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: at least 1")


class Ledger:
    """What tenants have spent in this window. Windows begin at multiples of their length since the epoch, for all."""

    def __init__(self, config: Config) -> None:
        self._window_s = config.window.total_seconds()
        self._named = config.budgets.keys()
        self._max_tenants = config.max_tenants
        self._window = 0
        self._spent: dict[str, int] = {}

    def account(self, tenant: str) -> str:
        """Whose budget `tenant` has: its own, as long as there are not too many."""
        self._turn()
        known = tenant in self._spent or tenant in self._named
        return tenant if known or len(self._spent) < self._max_tenants else _OTHERS

    def spent(self, account: str) -> int:
        self._turn()
        return self._spent.get(account, 0)

    def charge(self, account: str, tokens: int) -> None:
        """`tokens` are below 0 where an estimate was too high."""
        self._turn()
        self._spent[account] = max(0, self._spent.get(account, 0) + tokens)

    def window_left_s(self) -> int:
        """How long this window goes on, rounded up."""
        return math.ceil(self._window_s - time.time() % self._window_s)

    def _turn(self) -> None:
        window = int(time.time() // self._window_s)
        if window != self._window:
            self._window = window
            self._spent.clear()


class Events:
    """Server-sent events in, in any pieces (WHATWG HTML, section 9.2): what they are made of, and their data.

    An event of more than `limit` bytes passes in parts, unread. All else is kept until its event is whole.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._raw = bytearray()
        self._line = bytearray()
        self._data: bytearray | None = None
        self._too_long = False
        self._after_cr = False
        self._first_line = True

    def feed(self, piece: bytes) -> list[tuple[bytes, bytes | None]]:
        """Bytes as they came, with the data of the event that ends with them; None: there is none to read."""
        found: list[tuple[bytes, bytes | None]] = []
        begin = 1 if self._after_cr and piece.startswith(b"\n") else 0  # of a CRLF that was cut
        if piece:
            self._raw += piece[:begin]
            self._after_cr = False
        at = begin
        for match in _LINE_END.finditer(piece, begin):
            self._add(piece[at : match.start()])
            self._raw += match[0]
            at = match.end()
            is_blank = not self._line
            data = self._end_line()
            if is_blank:
                found.append((self.rest(), data))
            self._after_cr = at == len(piece) and match[0] == b"\r"
        self._add(piece[at:])
        if len(self._raw) > self._limit:
            self._too_long = True
            found.append((self.rest(), None))
        return found

    def rest(self) -> bytes:
        """What came of an event that is not whole yet; it is not kept any longer."""
        raw = bytes(self._raw)
        self._raw.clear()
        return raw

    def _add(self, part: bytes) -> None:
        """More of a line."""
        self._raw += part
        self._line += part[: self._limit - len(self._line)]

    def _end_line(self) -> bytes | None:
        line = bytes(self._line)
        self._line.clear()
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._end_event()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._add_data(value.removeprefix(b" "), len(line))
        return None

    def _add_data(self, value: bytes, line_bytes: int) -> None:
        if self._data is None:
            self._data = bytearray(value)
        else:
            self._data += b"\n" + value
        if line_bytes >= self._limit or len(self._data) > self._limit:
            self._too_long = True
            self._data.clear()

    def _end_event(self) -> bytes | None:
        data, too_long = self._data, self._too_long
        self._data = None
        self._too_long = False
        return None if data is None or too_long else bytes(data)


class Usage:
    """What a response says of its tokens, and what they are taken to be until it does."""

    def __init__(self, tokens_per_event: int) -> None:
        self.input = 0
        self.output = 0
        self.said = False  # all of it: what is said when a message begins is not the end
        self._total = 0
        self._tokens_per_event = tokens_per_event
        self._events = 0

    @property
    def tokens(self) -> int:
        if self.said:
            return max(self._total, self.input + self.output)
        return self.input + max(self.output, self._events * self._tokens_per_event)

    def read_event(self, text: bytes) -> Any:
        """The data of an event. Returns it as what it is in Python; None for what is no object."""
        message = self.read(text)
        if message is not None:
            kind = message.get("type")
            if kind is None or str(kind).endswith("delta"):  # of OpenAI's kind, or a piece of the text
                self._events += 1
        return message

    def read(self, text: bytes) -> Any:
        """A whole response, as `read_event`."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(message, dict):
            return None
        self._take(message.get("usage"), final=True)
        for inner, final in (("message", False), ("response", True)):
            part = message.get(inner)
            if isinstance(part, dict):
                self._take(part.get("usage"), final)
        return message

    def _take(self, usage: Any, final: bool) -> None:
        """Later numbers stand in place of earlier ones: they count from the beginning."""
        if not isinstance(usage, dict):
            return
        self._total = _number(usage, "total_tokens") or self._total
        self.input = _number(usage, "prompt_tokens") or _number(usage, "input_tokens") or self.input
        if "total_tokens" not in usage and "input_tokens" in usage:  # Anthropic's do not have these in them
            self.input += _number(usage, "cache_creation_input_tokens") + _number(usage, "cache_read_input_tokens")
        self.output = _number(usage, "completion_tokens") or _number(usage, "output_tokens") or self.output
        self.said = self.said or final


def _number(usage: dict[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


class TokenBudget(HttpFilter):
    """Refuses the calls of tenants that have spent their budget, and counts what the others spend."""

    config: Config

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        context.state = Ledger(context.config)

    def __init__(self) -> None:
        self._ledger: Ledger = self.context.state
        self._account = ""
        self._budget = 0
        self._usage = Usage(self.config.tokens_per_event)
        self._charged = 0
        self._asks = False  # the request is looked at, for what it asks for
        self._hides_usage = False  # the client did not ask for it
        self._events: Events | None = None  # in the response
        self._json: bytearray | None = None  # the response
        self._cut = False

    # -- the request

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        tenant = self._tenant(headers)
        self._account = self._ledger.account(tenant)
        self._budget = self.config.budgets.get(tenant, self.config.budget)
        stream.metadata(_NAMESPACE)["tenant"] = tenant
        self.context.count("requests")
        if self._is_spent():
            return self._reject(stream)
        del headers[b"accept-encoding"]  # what is compressed cannot be looked into
        if not end and self._may_ask(headers):
            self._asks = True
            stream.buffer_request(self.config.max_request_bytes)
        return CONTINUE

    def on_request_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        asking = asking_for_usage(data) if self._asks else None
        if asking is None:
            return CONTINUE
        self._hides_usage = True
        return asking

    def _tenant(self, headers: HeaderMap) -> str:
        value = headers.get(self.config.tenant_header.lower().encode()) if self.config.tenant_header else None
        return value.decode("latin-1")[:_LONGEST_TENANT] if value else self.config.default_tenant

    def _may_ask(self, headers: HeaderMap) -> bool:
        path = (headers.get(b":path") or b"").partition(b"?")[0].decode("latin-1")
        wanted = any(path.endswith(suffix) for suffix in self.config.ask_for_usage)
        return wanted and media_type(headers) == b"application/json" and b"content-encoding" not in headers

    def _is_spent(self) -> bool:
        return self._ledger.spent(self._account) >= self._budget

    def _reject(self, stream: Stream) -> int:
        self.context.count("rejected")
        wait = b"%d" % self._ledger.window_left_s()
        stream.send_local_reply(
            429,
            json.dumps(self._error()).encode(),
            "token_budget_exhausted",
            extra=HeaderMap([(b"retry-after", wait)]),
            content_type=b"application/json",
        )
        return STOP

    def _error(self) -> dict[str, Any]:
        """In the form that the clients of both kinds of API know."""
        seconds = self._ledger.window_left_s()
        message = f"The budget of {self._budget} tokens is spent; there is a new one in {seconds} s."
        return {"type": "error", "error": {"type": "token_budget_exhausted", "message": message}}

    # -- the response

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        kind = media_type(headers)
        if end or stream.local_reply or kind not in (b"text/event-stream", b"application/json"):
            return CONTINUE
        if headers.get(b"content-encoding") not in (None, b"identity"):
            self.context.count("unreadable")
        elif kind == b"application/json":
            self._json = bytearray()
        else:
            self._events = Events(self.config.max_event_bytes)
            if self._hides_usage or self.config.cut_streams:
                del headers[b"content-length"]
        return CONTINUE

    def on_response_data(self, stream: Stream, data: bytes, end: bool) -> DataResult:
        if self._cut:
            return CONTINUE
        if self._events is not None:
            return self._on_events(stream, self._events, data, end)
        if self._json is not None:
            self._on_json(self._json, data, end)
        return CONTINUE

    def _on_json(self, body: bytearray, data: bytes, end: bool) -> None:
        body += data
        if len(body) > self.config.max_response_bytes:
            self.context.count("unreadable")
            self._json = None
        elif end:
            self._usage.read(bytes(body))
            self._charge()

    def _on_events(self, stream: Stream, events: Events, data: bytes, end: bool) -> DataResult:
        """What is changed goes on in whole events, all else as it comes."""
        whole: list[bytes] = []
        for raw, text in events.feed(data):
            message = None if text is None else self._usage.read_event(text)
            self._charge()
            if not (self._hides_usage and is_only_usage(message)):
                whole.append(raw)
            if self.config.cut_streams and text is not None and not end and self._is_spent():
                return b"".join(whole) + self._cut_off(stream)
        if not (self._hides_usage or self.config.cut_streams):
            return data
        return b"".join(whole) + (events.rest() if end else b"")

    def _cut_off(self, stream: Stream) -> bytes:
        """The upstream is told to stop, the client why; the response ends as one that is complete."""
        self._cut = True
        self.context.count("cut")
        if stream.router is not None:
            stream.router.cancel()
        stream.info.response_code_details = "token_budget_cut"
        stream.send_response_data(b"", True)  # behind what the hook returns
        return b"event: error\ndata: " + json.dumps(self._error()).encode() + b"\n\n"

    def _charge(self) -> None:
        tokens = self._usage.tokens
        self._ledger.charge(self._account, tokens - self._charged)
        self._charged = tokens

    def on_stream_done(self, stream: Stream) -> None:
        if self._events is None and self._json is None:
            return
        usage = self._usage
        told = {"tokens": usage.tokens, "input": usage.input, "output": usage.output, "estimated": not usage.said}
        stream.metadata(_NAMESPACE).update(told)
        stream.metadata(_NAMESPACE)["left"] = max(0, self._budget - self._ledger.spent(self._account))
        self.context.count("tokens", usage.tokens)
        if self._account in self.config.budgets:
            self.context.count(f"tokens.{self._account}", usage.tokens)
        if not usage.said:
            self.context.count("estimated")


def media_type(headers: HeaderMap) -> bytes:
    return (headers.get(b"content-type") or b"").partition(b";")[0].strip().lower()


def asking_for_usage(body: bytes) -> bytes | None:
    """A call that streams, with `stream_options.include_usage`; None where there is nothing to change."""
    try:
        call = json.loads(body.decode())
        if not isinstance(call, dict) or call.get("stream") is not True:
            return None
        if "stream_options" not in call:  # the rest stays as it was written
            return body.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)
        options = call["stream_options"] if isinstance(call["stream_options"], dict) else {}
        if options.get("include_usage") is True:
            return None
        call["stream_options"] = {**options, "include_usage": True}
        return json.dumps(call, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None  # the upstream will say what is wrong with it


def is_only_usage(message: Any) -> bool:
    """Whether it is the event that `include_usage` adds: clients that did not ask for it may stumble over it."""
    return isinstance(message, dict) and message.get("choices") == [] and isinstance(message.get("usage"), dict)
