"""When to ask for a certificate: the rule alone, without a clock.

It is renewed when between 60 % and 73 % of what was left of its life are over, which is two thirds in the middle: those
who got theirs together do not come back together. Where that fails, the pause doubles from failure to failure, up to a
minute or a tenth of the life, and each is drawn anew from all of its length (but for the first tenth): whom an outage
has brought together, it parts again, and everybody is back within the longest pause.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from meshproxy.pilot.authority.renewed import renewal_delay_s, retry_delay_s

_UNKNOWN_LIFE_S: Final = 600.0  # there was no certificate yet: the pause may become a minute
_HURRY_S: Final = 2.0
_SHORTEST_LIFE_S: Final = 1.0  # an authority that gives less is not asked more often


class RenewalPolicy:
    """Of one agent. `uniform` draws a number between two others."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self.failures = 0  # in a row
        self._uniform = uniform
        self._life_s = _UNKNOWN_LIFE_S

    def issued(self, left_s: float) -> float:
        """There is a certificate that lives for so long yet: seconds until the next one is to be asked for."""
        self.failures = 0
        self._life_s = max(left_s, _SHORTEST_LIFE_S)
        return renewal_delay_s(self._life_s, self._uniform)

    def hurried(self) -> float:
        """The mesh takes our certificate no longer, perhaps with many others: seconds until the next attempt."""
        return self._uniform(0.0, _HURRY_S)

    def failed(self) -> float:
        """There is none: seconds until the next attempt."""
        self.failures += 1
        return retry_delay_s(self.failures, self._life_s, self._uniform)
