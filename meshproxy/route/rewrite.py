"""Rewrites of :path and :authority. A path's query and fragment are left as they are."""

from __future__ import annotations

from typing import Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.regex import Substitution
from meshproxy.observe.formatter import Formatter
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.path_template import PathTemplate, TemplateRewrite

_QUESTION_MARK: Final = 0x3F
_HASH: Final = 0x23


def path_end(path: bytes) -> int:
    """Where the query or fragment of a :path begins; its length when it has none."""
    if _QUESTION_MARK not in path and _HASH not in path:  # `in` with a number is far cheaper than two `find`
        return len(path)
    end = path.find(b"?")
    if end < 0:
        end = len(path)
    hash_at = path.find(b"#", 0, end)
    return end if hash_at < 0 else hash_at


class PathRewrite:
    """Gives the new :path for one that the route matched; an empty one leaves it alone."""

    def rewrite(self, path: bytes, info: StreamInfo) -> bytes:
        raise NotImplementedError


class PrefixRewrite(PathRewrite):
    """`prefix_rewrite`: the matched prefix (or exact path), of `length`, is replaced."""

    def __init__(self, length: int, replacement: bytes) -> None:
        self.length = length
        self.replacement = replacement

    def rewrite(self, path: bytes, info: StreamInfo) -> bytes:
        return self.replacement + path[self.length :]


class WholePathRewrite(PathRewrite):
    """`prefix_rewrite` on a route that matched by regular expression or template: the whole path is replaced."""

    def __init__(self, replacement: bytes) -> None:
        self.replacement = replacement

    def rewrite(self, path: bytes, info: StreamInfo) -> bytes:
        return self.replacement + path[path_end(path) :]


class RegexPathRewrite(PathRewrite):
    """`regex_rewrite`: every match in the path is substituted."""

    def __init__(self, substitution: Substitution) -> None:
        self.substitution = substitution

    def rewrite(self, path: bytes, info: StreamInfo) -> bytes:
        end = path_end(path)
        return self.substitution.apply(path[:end]) + path[end:]


class TemplatePathRewrite(PathRewrite):
    """`path_rewrite_policy`: the variables of the template that matched, put into another."""

    def __init__(self, template: PathTemplate, target: TemplateRewrite) -> None:
        self.template = template
        self.target = target

    def rewrite(self, path: bytes, info: StreamInfo) -> bytes:
        end = path_end(path)
        captured = self.template.capture(path[:end])
        return path if captured is None else self.target.expand(captured) + path[end:]


class FormattedPathRewrite(PathRewrite):
    """`path_rewrite`: a substitution format; an empty result leaves the path alone."""

    def __init__(self, formatter: Formatter) -> None:
        self.formatter = formatter

    def rewrite(self, path: bytes, info: StreamInfo) -> bytes:
        text = self.formatter.format(info)
        return text + path[path_end(path) :] if text else b""


class HostRewrite:
    """Gives the new :authority; None leaves the old one."""

    def host(self, headers: HeaderMap, info: StreamInfo) -> bytes | None:
        raise NotImplementedError


class LiteralHostRewrite(HostRewrite):
    def __init__(self, text: bytes) -> None:
        self.text = text

    def host(self, headers: HeaderMap, info: StreamInfo) -> bytes | None:
        return self.text


class HeaderHostRewrite(HostRewrite):
    """`host_rewrite_header`: the first value of a header, when it is there and not empty."""

    def __init__(self, name: bytes) -> None:
        self.name = name

    def host(self, headers: HeaderMap, info: StreamInfo) -> bytes | None:
        return headers.get(self.name) or None


class PathRegexHostRewrite(HostRewrite):
    """`host_rewrite_path_regex`: the path, substituted."""

    def __init__(self, substitution: Substitution) -> None:
        self.substitution = substitution

    def host(self, headers: HeaderMap, info: StreamInfo) -> bytes | None:
        path = headers.get(b":path") or b""
        return self.substitution.apply(path[: path_end(path)])


class FormattedHostRewrite(HostRewrite):
    """`host_rewrite`: a substitution format; an operator without a value leaves a `-`."""

    def __init__(self, formatter: Formatter) -> None:
        self.formatter = formatter

    def host(self, headers: HeaderMap, info: StreamInfo) -> bytes | None:
        return self.formatter.format(info) or None


def set_authority(headers: HeaderMap, host: bytes, append_forwarded_host: bool, keep_original: bool) -> None:
    """Put `host` into :authority, and the old one into x-envoy-original-host when `keep_original`.

    `append_forwarded_host` appends it to x-forwarded-host too, unless it is the last value there.
    """
    old = headers.get(b":authority")
    if keep_original and old is not None:
        headers.set(b"x-envoy-original-host", old)
    if append_forwarded_host:
        forwarded = headers.joined(b"x-forwarded-host")
        if old and not forwarded:
            headers.set(b"x-forwarded-host", old)
        elif old and forwarded and forwarded.rpartition(b",")[2].strip() != old:
            headers.set(b"x-forwarded-host", forwarded + b"," + old)
    headers.set(b":authority", host)
