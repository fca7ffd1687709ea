"""What both proxies count of the requests of a topic."""

import re

from tests.differential.pair import Pair, Side
from tests.differential.test_stats import values, wait_until_idle

COUNTED = re.compile(r"[._]rq_|internal_redirect|retry_or_shadow")
NOT_COUNTED = re.compile(r"pending|cancelled|http[23]|overload")
"""What depends on the turns of connections, or is not there yet."""


def check_counted_alike(pair: Pair, *scopes: str) -> None:
    """Assert that both counted the same of all requests so far."""
    for side in (pair.reference, pair.subject):
        wait_until_idle(side)
    for scope in scopes:
        expected, actual = (requests(side, scope) for side in (pair.reference, pair.subject))
        names = sorted(expected | actual)
        differing = {name: (expected.get(name, 0), actual.get(name, 0)) for name in names}
        differing = {name: counts for name, counts in differing.items() if counts[0] != counts[1]}
        assert expected
        assert not differing, f"(Envoy, subject): {differing}"


def requests(side: Side, scope: str) -> dict[str, int]:
    """The statistics of requests in a scope."""
    counted = values(side, scope)
    return {name: value for name, value in counted.items() if COUNTED.search(name) and not NOT_COUNTED.search(name)}
