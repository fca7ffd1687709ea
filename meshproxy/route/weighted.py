"""Weighted clusters: which of a route's clusters a request takes.

Envoy's way: the clusters' weights are intervals on a line, and a number modulo the total falls into one of them. The
number is drawn, or the request's own (`header_name`, `use_hash_policy`), so that a user stays on a side. When weights
change the borders move, and users between them, more than need to.

Ours, where a route's metadata asks for it (`filter_metadata: {meshproxy: {weighted_clusters: rendezvous}}`, which an
Envoy leaves alone): weighted rendezvous hashing. Every cluster draws a cost for the user, an exponential variable with
its weight as rate, and the least one wins; a cluster wins with its share of the weight. A cost depends on its own
cluster only, so a user moves only to a cluster that gained against the one that they had, or came.
"""

from __future__ import annotations

import math
import re
from typing import Final

from xxhash import xxh64_intdigest

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.runtime import RuntimeInt
from meshproxy.observe.stream_info import StreamInfo
from meshproxy.route.hash_policy import NO_HASH, HashPolicy
from meshproxy.route.route import Route

_UINT64: Final = re.compile(rb"[ \t\r\n\v\f]*\+?0*([0-9]{1,20})[ \t\r\n\v\f]*")
_UINT64_MAX: Final = (1 << 64) - 1
_RANGE: Final = 2.0**64


class WeightedRoutes:
    """One Route per weighted cluster. A number, from a header, a hash policy or random, decides for one of them."""

    def __init__(self, routes: list[Route], header_name: bytes) -> None:
        self.routes = routes
        self.header_name = header_name
        self.hash_policy: HashPolicy | None = None  # `use_hash_policy`
        self.weights: list[int] = [route.weight for route in routes]
        self.total: int = sum(self.weights)
        # Weights that the runtime may override (`runtime_key_prefix`), one per route; empty when it may not.
        self.runtime_weights: list[RuntimeInt] = []
        self.seeds: list[int] = []  # of the clusters' costs; none: by intervals

    def use_rendezvous(self) -> None:
        """A request with a number of its own takes the cluster with the least cost."""
        self.seeds = [xxh64_intdigest(name) for name in _names(self.routes)]

    def pick(self, headers: HeaderMap, random: int, info: StreamInfo) -> Route | None:
        """None only when runtime overrides set every weight to 0."""
        weights, total = self.weights, self.total
        if self.runtime_weights:
            weights = self.current_weights()
            total = sum(weights)
        number = self.number(headers, info)
        if number == NO_HASH:
            index = weighted_index(weights, total, random)
        elif self.seeds:
            index = least_cost(weights, self.seeds, number)
        else:
            index = weighted_index(weights, total, number)
        return None if index < 0 else self.routes[index]

    def current_weights(self) -> list[int]:
        """The weights, as the runtime has them now."""
        return [weight.value for weight in self.runtime_weights] or self.weights

    def number(self, headers: HeaderMap, info: StreamInfo) -> int:
        """The request's own number, of 64 bits; NO_HASH when one is to be drawn."""
        if self.hash_policy is not None:
            return self.hash_policy.hash(headers, info, None)
        if self.header_name:
            return _number_in(headers, self.header_name)
        return NO_HASH


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


def least_cost(weights: list[int], seeds: list[int], number: int) -> int:
    """Who draws the least cost for `number`; -1 when every weight is 0."""
    data = number.to_bytes(8, "little")
    best = -1
    least = math.inf
    for i in range(len(weights)):
        if weights[i] > 0:
            # The inverse of the exponential distribution, of a number in (0, 1].
            cost = -math.log((xxh64_intdigest(data, seeds[i]) + 0.5) / _RANGE) / weights[i]
            if cost < least:
                best, least = i, cost
    return best


def _number_in(headers: HeaderMap, name: bytes) -> int:
    """The number in the only field of that name; NO_HASH when there is not one field, or no unsigned 64-bit number."""
    values = headers.get_all(name)
    found = _UINT64.fullmatch(values[0]) if len(values) == 1 else None
    if found is None:
        return NO_HASH
    number = int(found[1])
    return number if number <= _UINT64_MAX else NO_HASH


def _names(routes: list[Route]) -> list[bytes]:
    """What tells each cluster from the others wherever it stands; one that occurs again is another one."""
    seen: dict[bytes, int] = {}
    names: list[bytes] = []
    for route in routes:
        name = route.cluster_name.encode() or b":" + route.cluster_header
        again = seen.get(name, 0)
        seen[name] = again + 1
        names.append(b"%s\0%d" % (name, again) if again else name)
    return names
