"""What is told of callers who prove nothing: counted each, written down as long as they are not too many."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from meshproxy.errors import MeshProxyError
from meshproxy.pilot.authority.audit import Audit
from meshproxy.pilot.authority.limits import Bucket
from meshproxy.pilot.authority.metrics import AuthorityMetrics

_LINES_A_SECOND: Final = 10.0  # outsiders do not fill the disk
_BURST: Final = 100.0
_REMEMBERED: Final = 50
_MAX_TEXT: Final = 256
CODE: Final = "unproven"
_log: Final = logging.getLogger("meshproxy.pilot")


class UnprovedLog:
    """An `OnUnproved`. `latest` are the last ones, for a page."""

    def __init__(self, audit: Audit, metrics: AuthorityMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.latest: deque[dict[str, Any]] = deque(maxlen=_REMEMBERED)
        self._audit = audit
        self._count = metrics.refused.labels(CODE)
        self._clock = clock
        self._lines = Bucket(_LINES_A_SECOND, _BURST, clock())
        self._untold = 0

    def __call__(self, reason: str, proof: str, address: str) -> None:
        self._count.inc()
        reason, address = reason[:_MAX_TEXT], address[:_MAX_TEXT]
        self.latest.append({"at": time.time(), "reason": reason, "proof": proof, "address": address})
        if not self._lines.has_one(self._clock()):
            self._untold += 1
            return
        self._lines.take()
        if self._untold:
            reason, self._untold = f"{reason} (and {self._untold} refusals before it that are not told)", 0
        try:
            self._audit.refused(reason, proof=proof, address=address, code=CODE)
        except MeshProxyError as error:
            _log.error("%s; refused: %s", error, reason)
