"""The form of the tables that say what becomes of each field of Envoy's messages.

A field is honoured; or harmlessly ignored; or not done yet, which is told at the start; or refused. What a table does
not name is refused: a field that Envoy adds tomorrow must not be passed over in silence.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Verdict(Enum):
    """What we do with a field that is set. The value is its word in the documentation."""

    HONOURED = "honoured"
    IGNORED = "ignored"
    LATER = "accepted, not done yet"
    REFUSED = "refused"


NOT_SUPPORTED: Final = "is not supported yet"


class FieldEntry:
    """One field's verdict. `only` are the values that are honoured, by name; empty where all are."""

    __slots__ = ("note", "only", "verdict")

    def __init__(self, verdict: Verdict, note: str = "", only: frozenset[str] = frozenset()) -> None:
        self.verdict = verdict
        self.note = note
        self.only = only


_UNLISTED: Final = FieldEntry(Verdict.REFUSED, NOT_SUPPORTED)
_HONOURED: Final = FieldEntry(Verdict.HONOURED)


class MessageTable:
    """The verdicts on one message's fields. Each argument names fields, several in one string, apart by spaces.

    `only` gives for a field the values that are honoured (names of enum values, `true`, `false`, numbers), any other
    being refused; `honoured="*"` stands for all the fields that no other argument names. `required` fields must be set.
    `refused_whole` says why the message as such is refused, empty as it may be; `later_whole` what it is that is not
    done yet, where the message is accepted.

    That holds for files. In a resource of a control plane, what is refused here is left out and told, unless it guards
    access: access.py says which does, and what no list there names does.
    """

    def __init__(
        self,
        honoured: str = "",
        *,
        only: dict[str, str] | None = None,
        ignored: dict[str, str] | None = None,
        later: dict[str, str] | None = None,
        refused: dict[str, str] | None = None,
        required: str = "",
        refused_whole: str = "",
        later_whole: str = "",
    ) -> None:
        self.required = tuple(required.split())
        self.refused_whole = refused_whole
        self.later_whole = later_whole
        self.fields: dict[str, FieldEntry] = {}
        for name in honoured.split():
            self._set(name, _HONOURED)
        for name, values in (only or {}).items():
            self._set(name, FieldEntry(Verdict.HONOURED, only=frozenset(values.split())))
        for verdict, notes in ((Verdict.IGNORED, ignored), (Verdict.LATER, later), (Verdict.REFUSED, refused)):
            for names, note in (notes or {}).items():
                entry = FieldEntry(verdict, note)
                for name in names.split():
                    self._set(name, entry)
        self._default = self.fields.pop("*", _UNLISTED)

    def _set(self, name: str, entry: FieldEntry) -> None:
        if name in self.fields:
            raise ValueError(f"{name} has two verdicts")
        self.fields[name] = entry

    def entry(self, field: str) -> FieldEntry:
        """The verdict on a field; refused when the table does not name it."""
        return self.fields.get(field, self._default)


Tables = dict[str, MessageTable]
