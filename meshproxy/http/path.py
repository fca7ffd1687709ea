"""Path normalisation: what a connection manager does to `:path` before anything matches on it (RFC 3986 section 6)."""

from __future__ import annotations

import re
from typing import Final

# core/http_connection_manager.proto, PathWithEscapedSlashesAction
KEEP_UNCHANGED: Final = 1
REJECT_REQUEST: Final = 2
UNESCAPE_AND_REDIRECT: Final = 3
UNESCAPE_AND_FORWARD: Final = 4

_ESCAPED_SLASH: Final = re.compile(rb"%2[fF]|%5[cC]")
_SLASHES: Final = re.compile(rb"//+")
_PERCENT: Final = re.compile(rb"%[0-9A-Fa-f]{2}")
_UNRESERVED: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# A dot segment with parameters (RFC 3986 section 3.3): servers that know them take it for one.
_PARAMETERS: Final = re.compile(rb"(/\.{1,2});[^/]*")
_PLAIN: Final = re.compile(rb"(?:/(?!\.{1,2}(?:[/;]|$))[A-Za-z0-9\-_~!$&'()*+,;=:@.]+)*/?")


def _split(path: bytes) -> tuple[bytes, bytes]:
    """(path, rest): the rest begins with the `?`."""
    cut = path.find(b"?")
    return (path, b"") if cut < 0 else (path[:cut], path[cut:])


def has_escaped_slashes(path: bytes) -> bool:
    return _ESCAPED_SLASH.search(_split(path)[0]) is not None


def unescape_slashes(path: bytes) -> bytes:
    """`%2F` becomes `/`, `%5C` becomes a backslash; the query stays as it is."""
    head, query = _split(path)
    return _ESCAPED_SLASH.sub(_unescape_slash, head) + query


def _unescape_slash(found: re.Match[bytes]) -> bytes:
    return b"/" if found[0].lower() == b"%2f" else b"\\"


def merge_slashes(path: bytes) -> bytes:
    """Runs of slashes become one; the query stays as it is."""
    head, query = _split(path)
    return _SLASHES.sub(b"/", head) + query if b"//" in head else path


def normalize(path: bytes) -> bytes | None:
    """The canonical form of a path as Envoy's `normalize_path` makes it: unreserved characters unescaped, dot segments
    removed, with parameters of theirs (`/..;a`), backslashes turned into slashes. None when the path cannot be one (it
    contains an escaped NUL, or no slash begins it).
    """
    head, query = _split(path)
    if _PLAIN.fullmatch(head):
        return path
    if not head.startswith((b"/", b"\\")):
        return None
    head = _PARAMETERS.sub(rb"\1", head)
    head = _PERCENT.sub(_unescape_unreserved, head.replace(b"\\", b"/"))
    if b"%00" in head:
        return None
    return _remove_dot_segments(_escape_unsafe(head)) + query


def _unescape_unreserved(found: re.Match[bytes]) -> bytes:
    code = int(found[0][1:], 16)
    return bytes((code,)) if code in _UNRESERVED else found[0]


_UNSAFE: Final = re.compile(rb'[\x00-\x20"<>^`{|}\x7f-\xff]')


def _escape_unsafe(path: bytes) -> bytes:
    return _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], path)


def _remove_dot_segments(path: bytes) -> bytes:
    """RFC 3986 section 5.2.4, for a path that begins with a slash."""
    kept: list[bytes] = []
    segments = path.split(b"/")[1:]
    last = len(segments) - 1
    for index, segment in enumerate(segments):
        if segment == b".":
            if index == last:
                kept.append(b"")
        elif segment == b"..":
            if kept:
                kept.pop()
            if index == last:
                kept.append(b"")
        else:
            kept.append(segment)
    return b"/" + b"/".join(kept)
