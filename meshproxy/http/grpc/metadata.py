"""What gRPC calls metadata: fields that a call brings, and how the values of those that hold bytes are written."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from typing import Any, Final

from meshproxy.codec.headers import Field, HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.datasource import FileStamp, file_stamp
from meshproxy.config.errors import child
from meshproxy.observe.formatter import FormatError, Formatter, parse_format
from meshproxy.observe.log import log_once_per
from meshproxy.observe.stream_info import StreamInfo

Metadata = Iterable[Field]  # names in lower case; the value of one that ends in `-bin` is any bytes

_FILE_CONTENT: Final = re.compile(r"(?<!%)%FILE_CONTENT\(([^()%]+)\)%")
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What the client itself says, or HTTP/2 has no room for.
_TAKEN: Final = frozenset({
    "connection", "content-length", "content-type", "grpc-timeout", "host", "keep-alive", "proxy-connection", "te",
    "transfer-encoding", "upgrade",
})  # fmt: skip
_NO_HEADER_HAS: Final = re.compile(rb"[\0\r\n]")
_log: Final = log_once_per(10.0, "grpc")


def wire_metadata(metadata: Metadata) -> list[Field]:
    """Metadata as fields of a header block: values of `-bin` names are in base64, without padding."""
    return [(name, b64encode(value).rstrip(b"=") if name.endswith(b"-bin") else value) for name, value in metadata]


def binary_value(headers: HeaderMap, name: bytes) -> bytes | None:
    """The bytes of the first value of a `-bin` name; None where there is none, or it is not base64."""
    value = headers.get(name)
    if value is None:
        return None
    first = value.partition(b",")[0]
    try:
        return b64decode(first + b"=" * (-len(first) % 4), validate=True)
    except ValueError:
        return None


class FileContent:
    """What a file holds, without the white space at its end; read anew when it has changed."""

    def __init__(self, filename: str) -> None:
        """Raises OSError or ValueError where nothing of use is to be read."""
        self.filename = filename
        self._stamp: FileStamp | None = file_stamp(filename)
        self._value: bytes = _read(filename)

    def value(self) -> bytes:
        """The present content; the last that was of use, when the file has none."""
        stamp = file_stamp(self.filename)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._value = _read(self.filename)
            except (OSError, ValueError) as error:
                _log.warning(f"what {self.filename} held before is still used: {error}")
        return self._value


def _read(filename: str) -> bytes:
    with open(filename, "rb") as file:
        content = file.read().rstrip()
    if _NO_HEADER_HAS.search(content) is not None:
        raise ValueError(f"{filename} has several lines, and a header has one")
    return content


class MetadataValue:
    """One entry of `initial_metadata`: a format, in which contents of files may stand."""

    def __init__(self, name: bytes, formats: list[Formatter], files: list[FileContent]) -> None:
        self.name = name
        self._formats = formats  # one before each file, and one behind the last
        self._files = files

    def value(self, info: StreamInfo | None) -> bytes:
        """For a call on behalf of a stream; without one, what depends on it is empty."""
        pieces = [_formatted(self._formats[0], info)]
        for i, file in enumerate(self._files, 1):
            pieces.append(file.value())
            pieces.append(_formatted(self._formats[i], info))
        return b"".join(pieces)


def _formatted(formatter: Formatter, info: StreamInfo | None) -> bytes:
    if formatter.constant is not None:
        return formatter.constant
    return b"" if info is None else formatter.format(info)


def build_metadata(header: Any, path: str, context: BuildContext, per_stream: bool) -> MetadataValue | None:
    """From a HeaderValue; None with an error. Only `per_stream` may it depend on one."""
    name = header.key.lower()
    if _NAME.fullmatch(name) is None or name in _TAKEN:
        context.errors.add(child(path, "key"), f"{header.key!r} cannot be the name of metadata")
        return None
    where = child(path, "value")
    texts = _FILE_CONTENT.split(header.value)  # formats and names of files take turns
    try:
        formats = [parse_format(text) for text in texts[::2]]
        files = [FileContent(filename) for filename in texts[1::2]]
    except (FormatError, OSError, ValueError) as error:
        context.errors.add(where, str(error))
        return None
    if not per_stream and any(each.constant is None for each in formats):
        context.errors.add(where, "cannot depend on a request: these calls are made for none in particular")
        return None
    return MetadataValue(name.encode(), formats, files)
