"""Looks something up for each request (whose is this key? which plan has this user?) and tells it in a header."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Literal
from urllib.parse import quote_from_bytes

from meshproxy import CONTINUE, STOP, CallError, FilterContext, HeaderMap, HttpFilter, Result, Stream


@dataclass(frozen=True)
class Config:
    """`path` is asked of `cluster`, with the value of `key_header` in place of `{key}`; the answer's body, or its field
    `json_field`, goes into `header`."""

    cluster: str
    key_header: str
    header: str
    path: str = "/{key}"
    json_field: str = ""
    timeout: timedelta = timedelta(milliseconds=500)
    ttl: timedelta = timedelta(seconds=60)
    unknown_ttl: timedelta = timedelta(seconds=5)  # of a 404: there is nothing to tell
    max_entries: int = 10_000
    on_failure: Literal["continue", "deny"] = "continue"

    def __post_init__(self) -> None:
        if "{key}" not in self.path:
            raise ValueError("path: must have {key} in it")
        if self.max_entries < 1:
            raise ValueError("max_entries: at least 1")


class Lookups:
    """What was answered, for as long as it counts, and what is being asked: one question for all who wait."""

    def __init__(self, context: FilterContext) -> None:
        self._context = context
        self._config: Config = context.config
        self._known: OrderedDict[bytes, tuple[float, bytes | None]] = OrderedDict()
        self._asked: dict[bytes, asyncio.Future[bytes | CallError | None]] = {}

    def known(self, key: bytes) -> tuple[bool, bytes | None]:
        """(whether it is known, the value; None: there is none)."""
        until, value = self._known.get(key, (0.0, None))
        if until <= monotonic():
            return False, None
        self._known.move_to_end(key)
        return True, value

    async def ask(self, key: bytes) -> bytes | None:
        """Raises CallError, to all who wait."""
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = self._context.spawn(self._look_up(key))
            asked.add_done_callback(lambda _: self._asked.pop(key, None))
        # One who leaves does not take the answer from the others.
        answer: bytes | CallError | None = await asyncio.shield(asked)
        if isinstance(answer, CallError):
            raise answer
        return answer

    async def _look_up(self, key: bytes) -> bytes | CallError | None:
        """A failure is an answer to all who wait, and no error of the task."""
        try:
            return await self._ask(key)
        except CallError as error:
            return error

    async def _ask(self, key: bytes) -> bytes | None:
        config = self._config
        path = config.path.replace("{key}", quote_from_bytes(key, safe="")).encode()
        timeout_ms = config.timeout.total_seconds() * 1000.0
        answer = await self._context.call(config.cluster, path=path, timeout_ms=timeout_ms)
        if answer.status == 404:
            self._remember(key, None, config.unknown_ttl)
            return None
        if answer.status != 200:
            raise CallError("status", str(answer.status))
        value = header_value(answer.body, config.json_field)
        self._remember(key, value, config.ttl)
        return value

    def _remember(self, key: bytes, value: bytes | None, ttl: timedelta) -> None:
        self._known[key] = (monotonic() + ttl.total_seconds(), value)
        self._known.move_to_end(key)
        if len(self._known) > self._config.max_entries:
            self._known.popitem(last=False)


def header_value(body: bytes, json_field: str) -> bytes:
    """What of an answer goes into the header. Raises CallError for what cannot."""
    value = _json_field(body, json_field) if json_field else body.strip()
    if any(byte < 0x20 or byte == 0x7F for byte in value):
        raise CallError("answer", "cannot stand in a header")
    return value


def _json_field(body: bytes, name: str) -> bytes:
    try:
        field = json.loads(body)[name]
    except (ValueError, KeyError, TypeError) as error:
        raise CallError("answer", f"has no field {name!r}") from error
    return field.encode() if isinstance(field, str) else json.dumps(field).encode()


class Enrich(HttpFilter):
    """A request whose answer is known goes on at once; the others wait for theirs."""

    config: Config

    @classmethod
    def on_start(cls, context: FilterContext) -> None:
        context.state = Lookups(context)

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        del headers[self.config.header.encode()]  # nobody but we may say it
        key = headers.get(self.config.key_header.encode())
        if not key:
            return CONTINUE
        lookups: Lookups = self.context.state
        found, value = lookups.known(key)
        if not found:
            return self._wait(stream, headers, key)
        self.context.count("hits")
        self._tell(headers, value)
        return CONTINUE

    async def _wait(self, stream: Stream, headers: HeaderMap, key: bytes) -> int:
        lookups: Lookups = self.context.state
        try:
            self._tell(headers, await lookups.ask(key))
            self.context.count("lookups")
        except CallError as error:
            self.context.count(f"failed.{error.reason}")
            if self.config.on_failure == "deny":
                stream.send_local_reply(503, b"", f"enrich_failed_{error.reason}")
                return STOP
        return CONTINUE

    def _tell(self, headers: HeaderMap, value: bytes | None) -> None:
        if value is not None:
            headers[self.config.header.encode()] = value
