"""`path_config_source`: a DiscoveryResponse in a file, taken anew whenever the file is another one or was written.

As in Envoy, the file's ending says what it holds: YAML (or JSON, which is YAML), text format, or the binary one. A file
that cannot be read, or is none, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import marshal
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse
from google.protobuf import text_format
from google.protobuf.message import DecodeError

from meshproxy.config.datasource import FileStamp, file_stamp
from meshproxy.config.errors import ConfigErrors
from meshproxy.config.loader import load_message
from meshproxy.config.messages import find_message
from meshproxy.net.dispatcher import Dispatcher
from meshproxy.xds.decode import Decoder
from meshproxy.xds.feed import Feed, SinkOf
from meshproxy.xds.pacing import pause
from meshproxy.xds.resources import WILDCARD
from meshproxy.xds.sotw import SotwState
from meshproxy.xds.source import Source, SourceStatus

_log: Final = logging.getLogger("meshproxy.xds")

_INTERVAL_MS: Final = 500.0
# Text that is read within 5 ms; more than that is read by another process, so that traffic goes on.
_SMALL_BYTES: Final = 4096
# An Any, as text format writes it.
_ANY_IN_TEXT: Final = re.compile(r"\[type\.googleapis\.com/([\w.]+)\]")


class _FileState(SotwState):
    """Of a file one knows at once that it does not have what is asked for."""

    def removed(self, decoder: Decoder, response: Any) -> list[str]:
        gone = super().removed(decoder, response)
        asked = [name for name in self.names if name != WILDCARD and name not in decoder.present]
        return gone if decoder.nameless else list(dict.fromkeys(gone + asked))


class FileSource(Source):
    """`message` is the ConfigSource. Directories that are swapped by a symbolic link count too: what is looked at is
    the file behind all links, so `watched_directory` needs nothing of its own."""

    def __init__(self, dispatcher: Dispatcher, message: Any, sink: SinkOf, type_url: str) -> None:
        self._dispatcher = dispatcher
        self._path: str = message.path_config_source.path or message.path
        self._sink = sink
        self._feed = Feed(dispatcher, _FileState(type_url), sink, _nothing_to_say, _nothing_to_say)
        self._response: Any = None  # the last one that could be read
        self._task: asyncio.Task[Any] | None = None
        self._applies_soon = False
        self._failure = ""

    def start(self) -> None:
        if self._task is None:
            self._task = self._dispatcher.spawn(self._watch(), f"watch of {self._path}")

    def subscribe(self, type_url: str, name: str) -> None:
        self._feed.state.subscribe(name)
        self._apply_soon()

    def unsubscribe(self, type_url: str, name: str) -> None:
        self._feed.state.unsubscribe(name)

    def restore(self, type_url: str, versions: Mapping[str, str]) -> None:
        self._feed.state.restore(versions)

    @property
    def idle(self) -> bool:
        return not self._feed.state.names

    @property
    def status(self) -> SourceStatus:
        return SourceStatus(self._path, self._response is not None, failure=self._failure)

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._feed.close()

    def _apply_soon(self) -> None:
        """To those too who have come later than the file."""
        if self._response is not None and not self._applies_soon:
            self._applies_soon = True
            self._dispatcher.post(self._apply)

    def _apply(self) -> None:
        self._applies_soon = False
        if self._task is not None:
            self._sink.on_attempt()
            self._feed.take(self._response, 0)

    async def _watch(self) -> None:
        """A file that took the place of another is whole; one that is written may not be before it has been quiet for
        an interval."""
        read = seen = None
        while True:
            now = file_stamp(self._path)
            if now is None and read is None:
                self._fail("there is no such file")
            elif now not in (None, read) and (now == seen or _is_another(now, seen)):
                read = now
                await self._read()
            seen = now
            await pause(self._dispatcher, _INTERVAL_MS)

    async def _read(self) -> None:
        response, reason = await read_apart(self._path)
        if response is None:
            self._fail(reason)
            return
        self._response, self._failure = response, ""
        _log.info("read %s", self._path)
        self._apply()

    def _fail(self, reason: str) -> None:
        if reason != self._failure:
            self._failure = reason
            _log.warning("cannot take %s, what it said last stays in force: %s", self._path, reason)
            self._sink.on_failure(reason)


def _is_another(now: FileStamp | None, seen: FileStamp | None) -> bool:
    return now is not None and (seen is None or now[0] != seen[0])


def _nothing_to_say() -> None:
    """A file is not answered."""


# -- reading


async def read_apart(path: str) -> tuple[Any | None, str]:
    """The DiscoveryResponse in a file, or why there is none; the event loop turns meanwhile."""
    stamp = file_stamp(path)
    if stamp is None or stamp[2] <= _SMALL_BYTES or path.endswith(".pb"):
        return read_response(path)
    done = await asyncio.to_thread(_run_reader, path)
    if done.returncode != 0:
        return None, f"the process that was to read it ended with {done.returncode}"
    serialised, reason = marshal.loads(done.stdout)
    return (None if serialised is None else DiscoveryResponse.FromString(serialised)), reason


def read_response(path: str) -> tuple[Any | None, str]:
    """As `read_apart`, here and now."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return None, error.strerror or str(error)
    errors = ConfigErrors()
    if path.endswith(".pb"):
        try:
            return DiscoveryResponse.FromString(data), ""
        except DecodeError:
            return None, "the bytes are not a DiscoveryResponse"
    if path.endswith(".pb_text"):
        for name in _ANY_IN_TEXT.findall(data.decode("utf-8", "replace")):
            find_message(name)  # so that the parser knows it
        try:
            return text_format.Parse(data, DiscoveryResponse(), allow_unknown_field=True), ""
        except text_format.ParseError as error:
            return None, str(error)
    message = load_message(data, DiscoveryResponse, allow_unknown_fields=True, errors=errors)
    return (None, str(errors)) if errors else (message, "")


def _run_reader(path: str) -> subprocess.CompletedProcess[bytes]:
    """In a thread: starting a process from the event loop would copy the memory map of this one while traffic waits."""
    command = [sys.executable, "-m", "meshproxy.xds.files"]
    return subprocess.run(command, input=path.encode(), stdout=subprocess.PIPE, check=False)


def _main() -> None:
    import meshproxy.filters.builtin  # noqa: F401  their messages are known

    response, reason = read_response(sys.stdin.buffer.read().decode())
    serialised = None if response is None else response.SerializeToString()
    sys.stdout.buffer.write(marshal.dumps((serialised, reason)))


if __name__ == "__main__":
    _main()
