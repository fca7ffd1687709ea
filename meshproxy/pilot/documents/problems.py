"""What is wrong with a document, each with file, line, field and reason; and the cursor that checks move along."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import yaml

from meshproxy.errors import MeshProxyError

_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
# More than any document needs: aliases of aliases grow without end.
_MAX_VALUES: Final = 500_000


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason not to accept a document, or to warn of it. `line` counts from 1; `path` is "" for the whole."""

    source: str
    line: int
    path: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.source}:{self.line}: "
        return f"{where}{self.path}: {self.reason}" if self.path else where + self.reason


class TooLargeError(MeshProxyError):
    """A document has more values than any needs."""


class Problems:
    """Collects those of one document, whose YAML is `root`."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.root: yaml.Node | None = None
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self._values = 0

    def count(self) -> None:
        """One more value is read. Raises TooLargeError."""
        self._values += 1
        if self._values > _MAX_VALUES:
            raise TooLargeError("the document is too large")

    def error(self, steps: tuple[str | int, ...], reason: str) -> None:
        self.errors.append(self._problem(steps, reason))

    def warning(self, steps: tuple[str | int, ...], reason: str) -> None:
        self.warnings.append(self._problem(steps, reason))

    def line_of(self, steps: tuple[str | int, ...]) -> int:
        """The line of the value there, or of the nearest thing around it."""
        node, line = self.root, 0
        for step in steps:
            found = None if node is None else _inside(node, step)
            if found is None:
                break
            node, line = found
        if not steps and node is not None:
            line = node.start_mark.line
        return line + 1

    def _problem(self, steps: tuple[str | int, ...], reason: str) -> Problem:
        return Problem(self.source, self.line_of(steps), path_text(steps), reason)


class At:
    """A place in a document: what checks say what they find at."""

    __slots__ = ("_parent", "_problems", "_step")

    def __init__(self, problems: Problems, parent: At | None = None, step: str | int = "") -> None:
        self._problems = problems
        self._parent = parent
        self._step = step

    def __truediv__(self, step: str | int) -> At:
        """The field, key or index below it."""
        return At(self._problems, self, step)

    def error(self, reason: str) -> None:
        """The document cannot be accepted."""
        self._problems.error(self.steps(), reason)

    def warn(self, reason: str) -> None:
        """It can, but it may not be what was meant."""
        self._problems.warning(self.steps(), reason)

    def count(self) -> None:
        """One more value is read."""
        self._problems.count()

    def steps(self) -> tuple[str | int, ...]:
        steps: list[str | int] = []
        at = self
        while at._parent is not None:
            steps.append(at._step)
            at = at._parent
        return tuple(reversed(steps))


def path_text(steps: tuple[str | int, ...]) -> str:
    """`spec.http[0].headers["x-user"]`."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            text += f'["{step}"]'
    return text


def _inside(node: Any, step: str | int) -> tuple[Any, int] | None:
    """The node at `step`, and the line it (or its key) begins at."""
    if isinstance(step, int):
        if isinstance(node, yaml.SequenceNode) and step < len(node.value):
            found = node.value[step]
            return found, found.start_mark.line
        return None
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return value, key.start_mark.line
    return None
