"""Why somebody is nobody."""

from __future__ import annotations


class Unproved(Exception):
    """`reason` is for the audit and the log: whoever calls is told only that there is no valid proof. `is_ours`: the
    caller may be right, and cannot be verified now."""

    def __init__(self, reason: str, *, is_ours: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_ours = is_ours
