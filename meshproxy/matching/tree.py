"""xDS matchers (`xds.type.matcher.v3.Matcher`): trees that lead from what is asked to an action.

What an input has no value for matches nothing. A tree below a match that comes to nothing is as if it had not matched:
what stands behind it is tried.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeAlias

from meshproxy.config.string_matcher import StringMatcher
from meshproxy.matching.cel.build import Expression
from meshproxy.matching.facts import Facts

# The value of an input; None where there is none.
Input: TypeAlias = Callable[[Facts], "bytes | None"]


class Predicate:
    """One condition."""

    def holds(self, facts: Facts) -> bool:
        raise NotImplementedError


class InputPredicate(Predicate):
    def __init__(self, read: Input, matcher: StringMatcher) -> None:
        self.read = read
        self.matcher = matcher

    def holds(self, facts: Facts) -> bool:
        found = self.read(facts)
        return found is not None and self.matcher.match(found)


class HeaderPredicate(Predicate):
    """On a header; of several with its name the values are joined."""

    def __init__(self, name: bytes, matcher: StringMatcher) -> None:
        self.name = name
        self.matcher = matcher

    def holds(self, facts: Facts) -> bool:
        found = facts.headers.joined(self.name)
        return found is not None and self.matcher.match(found)


class ExpressionPredicate(Predicate):
    def __init__(self, expression: Expression) -> None:
        self.expression = expression

    def holds(self, facts: Facts) -> bool:
        return self.expression.holds(facts)


class AllOf(Predicate):
    def __init__(self, predicates: list[Predicate]) -> None:
        self.predicates = predicates

    def holds(self, facts: Facts) -> bool:
        return all(one.holds(facts) for one in self.predicates)


class AnyOf(Predicate):
    def __init__(self, predicates: list[Predicate]) -> None:
        self.predicates = predicates

    def holds(self, facts: Facts) -> bool:
        return any(one.holds(facts) for one in self.predicates)


class Not(Predicate):
    def __init__(self, predicate: Predicate) -> None:
        self.predicate = predicate

    def holds(self, facts: Facts) -> bool:
        return not self.predicate.holds(facts)


class Matcher:
    """A tree."""

    def match(self, facts: Facts) -> object | None:
        """The action; None where nothing matches."""
        raise NotImplementedError


class Leaf(Matcher):
    """An action."""

    def __init__(self, action: object) -> None:
        self.action = action

    def match(self, facts: Facts) -> object | None:
        return self.action


class ListMatcher(Matcher):
    """The first condition that holds, and comes to an action."""

    def __init__(self, predicates: list[Predicate], found: list[Matcher], otherwise: Matcher | None) -> None:
        self.predicates = predicates
        self.found = found
        self.otherwise = otherwise

    def match(self, facts: Facts) -> object | None:
        for index, predicate in enumerate(self.predicates):
            if predicate.holds(facts):
                action = self.found[index].match(facts)
                if action is not None:
                    return action
        otherwise = self.otherwise
        return None if otherwise is None else otherwise.match(facts)


class MapMatcher(Matcher):
    """By the value of an input, or of a header where there is a `name`; with `prefixes`, by the longest beginning of it
    that comes to an action."""

    def __init__(self, read: Input | None, name: bytes, entries: dict[bytes, Matcher], prefixes: bool) -> None:
        self.read = read
        self.name = name
        self.entries = entries
        self.lengths: list[int] = sorted({len(key) for key in entries}, reverse=True) if prefixes else []
        self.prefixes = prefixes
        self.otherwise: Matcher | None = None

    def match(self, facts: Facts) -> object | None:
        read = self.read
        value = facts.headers.joined(self.name) if read is None else read(facts)
        action = None if value is None else self._among(value, facts)
        otherwise = self.otherwise
        return otherwise.match(facts) if action is None and otherwise is not None else action

    def _among(self, value: bytes, facts: Facts) -> object | None:
        if not self.prefixes:
            found = self.entries.get(value)
            return None if found is None else found.match(facts)
        for length in self.lengths:
            if length <= len(value):
                found = self.entries.get(value[:length])
                action = None if found is None else found.match(facts)
                if action is not None:
                    return action
        return None


class IpRange:
    """What an address in a range leads to; `exclusive`: only if no narrower range has it."""

    def __init__(self, found: Matcher, exclusive: bool) -> None:
        self.found = found
        self.exclusive = exclusive


class IpMatcher(Matcher):
    """By an address: the narrowest range that has it, and comes to an action. `ranges`: by length, and then by network,
    each as a number; those of IPv6 apart."""

    def __init__(self, read: Input, otherwise: Matcher | None) -> None:
        self.read = read
        self.otherwise = otherwise
        self.ranges: dict[int, dict[tuple[int, int], list[IpRange]]] = {4: {}, 6: {}}
        self.lengths: dict[int, list[int]] = {4: [], 6: []}

    def add(self, version: int, length: int, network: int, found: IpRange) -> None:
        self.ranges[version].setdefault((length, network), []).append(found)
        if length not in self.lengths[version]:
            self.lengths[version] = sorted([*self.lengths[version], length], reverse=True)

    def match(self, facts: Facts) -> object | None:
        value = self.read(facts)
        action = None if value is None else self._among(value.decode("latin-1"), facts)
        otherwise = self.otherwise
        return otherwise.match(facts) if action is None and otherwise is not None else action

    def _among(self, text: str, facts: Facts) -> object | None:
        version, bits, family = (6, 128, socket.AF_INET6) if ":" in text else (4, 32, socket.AF_INET)
        try:
            address = int.from_bytes(socket.inet_pton(family, text.partition("%")[0]), "big")
        except OSError:
            return None
        ranges = self.ranges[version]
        narrowest = True
        for length in self.lengths[version]:
            network = address >> (bits - length) << (bits - length)
            for one in ranges.get((length, network), ()):
                action = one.found.match(facts) if narrowest or not one.exclusive else None
                if action is not None:
                    return action
                narrowest = False
        return None
