"""Path conditions. They see the path without its query and fragment."""

from __future__ import annotations

from meshproxy.config.regex import Regex
from meshproxy.route.path_template import PathTemplate


class PathMatcher:
    """One condition on the path.

    `is_literal` and `is_exact` say that `literal` is a case-sensitive prefix that a matching path must have, or the
    whole of it: an index may choose candidates by it. `rewrite_length` is how much of the path a `prefix_rewrite`
    replaces; -1: all of it.
    """

    def __init__(self, literal: bytes) -> None:
        self.literal = literal
        self.is_literal: bool = True
        self.is_exact: bool = False
        self.rewrite_length: int = len(literal)
        self.pattern: str | None = None  # of a regular expression

    def match(self, path: bytes) -> bool:
        raise NotImplementedError


class PathPrefix(PathMatcher):
    def match(self, path: bytes) -> bool:
        return path.startswith(self.literal)


class PathExact(PathMatcher):
    def __init__(self, literal: bytes) -> None:
        super().__init__(literal)
        self.is_exact = True

    def match(self, path: bytes) -> bool:
        return path == self.literal


class PathSeparatedPrefix(PathMatcher):
    """The prefix alone, or followed by a slash."""

    def match(self, path: bytes) -> bool:
        length = len(self.literal)
        return path.startswith(self.literal) and (len(path) == length or path[length] == 0x2F)


class ConnectMatcher(PathMatcher):
    """No path: the route is for CONNECT requests, and for nothing else."""

    def __init__(self) -> None:
        super().__init__(b"")
        self.is_literal = False

    def match(self, path: bytes) -> bool:
        return False


class PathIgnoreCase(PathMatcher):
    """One of the above on the lower-case path (`case_sensitive: false`); `inner` holds a lower-case literal."""

    def __init__(self, inner: PathMatcher) -> None:
        super().__init__(inner.literal)
        self.inner = inner
        self.is_literal = False

    def match(self, path: bytes) -> bool:
        return self.inner.match(path.lower())


class PathRegex(PathMatcher):
    """The whole path must match."""

    def __init__(self, regex: Regex) -> None:
        super().__init__(b"")
        self.regex = regex
        self.pattern = regex.pattern
        self.is_literal = False
        self.rewrite_length = -1

    def match(self, path: bytes) -> bool:
        return self.regex.full_match(path)


class PathTemplateMatcher(PathMatcher):
    def __init__(self, template: PathTemplate) -> None:
        super().__init__(b"")
        self.template = template
        self.pattern = template.regex.pattern
        self.is_literal = False
        self.rewrite_length = -1

    def match(self, path: bytes) -> bool:
        return self.template.matches(path)
