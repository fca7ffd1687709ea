"""DataSource: bytes from a file, from the configuration itself, or from the environment."""

from __future__ import annotations

import os
from typing import Any

from meshproxy.config.errors import ConfigErrors, child

FileStamp = tuple[int, int, int]  # inode, time of the last change in ns, size
ReadFile = tuple[FileStamp | None, bytes]  # as it was before it was read, and what it held


def file_stamp(filename: str) -> FileStamp | None:
    """What tells that a file is another one, or was written; None where there is none."""
    try:
        status = os.stat(filename)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def load_data_source(message: Any, path: str, errors: ConfigErrors, max_bytes: int | None = None) -> bytes | None:
    """The bytes of an `envoy.config.core.v3.DataSource`.

    None, with an error below `path`, when there are none, more than `max_bytes`, or it cannot be read.
    """
    kind = message.WhichOneof("specifier")
    if kind is None:
        errors.add(path, "one of filename, inline_bytes, inline_string, environment_variable is required")
        return None
    at = child(path, kind)
    data = _read(message, kind, at, errors, max_bytes)
    if data is not None and max_bytes is not None and len(data) > max_bytes:
        errors.add(at, f"longer than the {max_bytes} bytes that are allowed")
        return None
    return data


def _read(message: Any, kind: str, path: str, errors: ConfigErrors, max_bytes: int | None) -> bytes | None:
    if kind == "inline_bytes":
        return bytes(message.inline_bytes)
    if kind == "inline_string":
        return str(message.inline_string).encode()
    if kind == "filename":
        return _read_file(message.filename, path, errors, max_bytes)
    name: str = message.environment_variable
    # Envoy reads an environment variable that is empty, and refuses one that is not set.
    value = os.environb.get(name.encode()) if "\0" not in name else None
    if value is None:
        errors.add(path, f"the environment variable {name!r} is not set")
    return value


def _read_file(filename: str, path: str, errors: ConfigErrors, max_bytes: int | None) -> bytes | None:
    try:
        with open(filename, "rb") as file:
            # one byte more than allowed tells that it is too long, however large it is
            return file.read() if max_bytes is None else file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        errors.add(path, f"cannot read {filename!r}: {getattr(error, 'strerror', None) or error}")
        return None
