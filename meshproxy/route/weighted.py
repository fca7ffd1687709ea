"""Weighted clusters: which of a route's clusters a request takes."""

from __future__ import annotations

import re
from typing import Final

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.runtime import RuntimeInt
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.hash_policy import NO_HASH, HashPolicy
from meshproxy.route.route import Route

_UINT64: Final = re.compile(rb"[ \t\r\n\v\f]*\+?[0-9]{1,20}[ \t\r\n\v\f]*")
_UINT64_MAX: Final = (1 << 64) - 1


class WeightedRoutes:
    """One Route per weighted cluster. A number, from a header, a hash policy or random, modulo the total is in one's
    interval."""

    def __init__(self, routes: list[Route], header_name: bytes) -> None:
        self.routes = routes
        self.header_name = header_name
        self.hash_policy: HashPolicy | None = None  # `use_hash_policy`
        self.weights: list[int] = [route.weight for route in routes]
        self.total: int = sum(self.weights)
        # Weights that the runtime may override (`runtime_key_prefix`), one per route; empty when it may not.
        self.runtime_weights: list[RuntimeInt] = []

    def pick(self, headers: HeaderMap, random: int, info: StreamInfo) -> Route | None:
        """None only when runtime overrides set every weight to 0."""
        if self.hash_policy is not None:
            key = self.hash_policy.hash(headers, info, None)
            if key != NO_HASH:
                random = key
        if self.header_name:
            given = _number_in(headers, self.header_name)
            if given >= 0:
                random = given
        weights, total = self.weights, self.total
        if self.runtime_weights:
            weights = [weight.value for weight in self.runtime_weights]
            total = sum(weights)
        index = weighted_index(weights, total, random)
        return None if index < 0 else self.routes[index]


def weighted_index(weights: list[int], total: int, number: int) -> int:
    """In whose interval `number` modulo the total lies; -1 when every weight is 0."""
    if total == 0:
        return -1
    point = number % total
    for i in range(len(weights)):
        point -= weights[i]
        if point < 0:
            return i
    return -1


def _number_in(headers: HeaderMap, name: bytes) -> int:
    """The number in the only field of that name; -1 when there is not one field, or no unsigned 64-bit number."""
    values = headers.get_all(name)
    if len(values) != 1 or _UINT64.fullmatch(values[0]) is None:
        return -1
    number = int(values[0])
    return number if number <= _UINT64_MAX else -1
