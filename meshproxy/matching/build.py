"""From `xds.type.matcher.v3.Matcher` to a tree at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.string_matcher import build_string_matcher
from meshproxy.config.typed_struct import unpack_any
from meshproxy.config.values import cidr_network
from meshproxy.matching.cel.build import build_expression
from meshproxy.matching.inputs import ADDRESSES, CEL_INPUT, CEL_MATCHER, HEADER_INPUT, INPUTS, IP_MATCHER
from meshproxy.matching.tree import (
    AllOf,
    AnyOf,
    ExpressionPredicate,
    HeaderPredicate,
    InputPredicate,
    IpMatcher,
    IpRange,
    Leaf,
    ListMatcher,
    MapMatcher,
    Matcher,
    Not,
    Predicate,
)

# Makes the action of a typed extension, at a path; None where it added an error.
Actions: TypeAlias = Callable[[Any, str], "object | None"]
_EXPRESSIONS: Final = ("parsed_expr", "cel_expr_parsed")


def build_matcher(message: Any, path: str, errors: ConfigErrors, actions: Actions, *, http: bool) -> Matcher | None:
    """None where there are errors. `http`: what it is asked about has headers."""
    return _Builder(errors, actions, http).matcher(message, path)


class _Builder:
    """In each method None stands for an error that was added."""

    def __init__(self, errors: ConfigErrors, actions: Actions, http: bool) -> None:
        self.errors = errors
        self.actions = actions
        self.http = http

    def matcher(self, message: Any, path: str) -> Matcher | None:
        kind: str | None = message.WhichOneof("matcher_type")
        otherwise: Matcher | None = None
        if message.HasField("on_no_match"):
            otherwise = self.on_match(message.on_no_match, child(path, "on_no_match"))
            if otherwise is None:
                return None
        if kind is None:
            return ListMatcher([], [], otherwise)
        at = child(path, kind)
        if kind == "matcher_list":
            return self.listed(message.matcher_list, at, otherwise)
        return self.tree(message.matcher_tree, at, otherwise)

    def on_match(self, message: Any, path: str) -> Matcher | None:
        if message.keep_matching:
            self.errors.add(child(path, "keep_matching"), "is not supported")
            return None
        kind: str | None = message.WhichOneof("on_match")
        if kind is None:
            self.errors.add(path, "matcher or action is required")
            return None
        if kind == "matcher":
            return self.matcher(message.matcher, child(path, "matcher"))
        action = self.actions(message.action, child(path, "action"))
        return None if action is None else Leaf(action)

    def listed(self, message: Any, path: str, otherwise: Matcher | None) -> Matcher | None:
        predicates: list[Predicate] = []
        found: list[Matcher] = []
        for index, entry in enumerate(message.matchers):
            at = item(path, "matchers", index)
            predicate = self.predicate(entry.predicate, child(at, "predicate"))
            then = self.on_match(entry.on_match, child(at, "on_match"))
            if predicate is not None and then is not None:
                predicates.append(predicate)
                found.append(then)
        return ListMatcher(predicates, found, otherwise) if len(found) == len(message.matchers) else None

    def predicate(self, message: Any, path: str) -> Predicate | None:
        kind: str | None = message.WhichOneof("match_type")
        if kind is None:
            self.errors.add(path, "a predicate is required")
            return None
        at = child(path, kind)
        if kind == "single_predicate":
            return self.single(message.single_predicate, at)
        if kind == "not_matcher":
            inner = self.predicate(message.not_matcher, at)
            return None if inner is None else Not(inner)
        several = getattr(message, kind).predicate
        built = [self.predicate(one, item(at, "predicate", index)) for index, one in enumerate(several)]
        parts = [one for one in built if one is not None]
        if len(parts) != len(built):
            return None
        return AnyOf(parts) if kind == "or_matcher" else AllOf(parts)

    def single(self, message: Any, path: str) -> Predicate | None:
        where = child(path, "input.typed_config")
        config: Any = unpack_any(message.input.typed_config, where, self.errors)
        if config is None:
            return None
        name: str = config.DESCRIPTOR.full_name
        if message.WhichOneof("matcher") == "custom_match":
            return self.expression(message.custom_match, name, child(path, "custom_match.typed_config"), where)
        if message.WhichOneof("matcher") is None:
            self.errors.add(path, "value_match or custom_match is required")
            return None
        string = build_string_matcher(message.value_match, child(path, "value_match"), self.errors)
        if not self.is_input(name, where) or string is None:
            return None
        if name == HEADER_INPUT:
            return HeaderPredicate(config.header_name.lower().encode(), string)
        return InputPredicate(INPUTS[name], string)

    def is_input(self, name: str, path: str) -> bool:
        if name == HEADER_INPUT and not self.http:
            self.errors.add(path, "a connection has no headers")
            return False
        if name != HEADER_INPUT and name not in INPUTS:
            known = ", ".join((HEADER_INPUT, CEL_INPUT, *INPUTS))
            self.errors.add(path, f"{name} is not supported (supported: {known})")
            return False
        return True

    def expression(self, extension: Any, given: str, path: str, input_path: str) -> Predicate | None:
        """An input of attributes, and what CEL says of them."""
        config: Any = unpack_any(extension.typed_config, path, self.errors)
        if config is None:
            return None
        if config.DESCRIPTOR.full_name != CEL_MATCHER:
            self.errors.add(path, f"{config.DESCRIPTOR.full_name} is not supported (supported: {CEL_MATCHER})")
            return None
        if given != CEL_INPUT:
            self.errors.add(input_path, f"{CEL_MATCHER} is for {CEL_INPUT}")
            return None
        kinds = [name for name in _EXPRESSIONS if config.expr_match.HasField(name)]
        if not kinds:
            self.errors.add(child(path, "expr_match"), f"one of {', '.join(_EXPRESSIONS)} is required")
            return None
        tree = getattr(config.expr_match, kinds[0]).expr
        built = build_expression(tree, child(path, f"expr_match.{kinds[0]}.expr"), self.errors)
        return None if built is None else ExpressionPredicate(built)

    def tree(self, message: Any, path: str, otherwise: Matcher | None) -> Matcher | None:
        where = child(path, "input.typed_config")
        config: Any = unpack_any(message.input.typed_config, where, self.errors)
        kind: str | None = message.WhichOneof("tree_type")
        if kind == "custom_match":
            return self.ranges(message.custom_match, config, child(path, "custom_match.typed_config"), where, otherwise)
        if kind not in ("exact_match_map", "prefix_match_map"):
            self.errors.add(path, "one of exact_match_map, prefix_match_map, custom_match is required")
            return None
        entries = self.entries(getattr(message, kind).map, f"{child(path, kind)}.map")
        if config is None or entries is None:
            return None
        name: str = config.DESCRIPTOR.full_name
        if not self.is_input(name, where):
            return None
        header = config.header_name.lower().encode() if name == HEADER_INPUT else b""
        made = MapMatcher(INPUTS.get(name), header, entries, kind == "prefix_match_map")
        made.otherwise = otherwise
        return made

    def ranges(
        self, extension: Any, given: Any, path: str, input_path: str, otherwise: Matcher | None
    ) -> Matcher | None:
        """By an address and the ranges that have it."""
        config: Any = unpack_any(extension.typed_config, path, self.errors)
        if config is None or given is None:
            return None
        if config.DESCRIPTOR.full_name != IP_MATCHER:
            self.errors.add(path, f"{config.DESCRIPTOR.full_name} is not supported (supported: {IP_MATCHER})")
            return None
        name: str = given.DESCRIPTOR.full_name
        if name not in ADDRESSES:
            self.errors.add(input_path, f"{IP_MATCHER} is for {', '.join(ADDRESSES)}")
            return None
        made = IpMatcher(INPUTS[name], otherwise)
        fine = True
        for index, entry in enumerate(config.range_matchers):
            at = item(path, "range_matchers", index)
            then = self.on_match(entry.on_match, child(at, "on_match"))
            for number, one in enumerate(entry.ranges):
                network = cidr_network(one, item(at, "ranges", number), self.errors)
                if then is not None and network is not None:
                    made.add(
                        network.version, network.prefixlen, int(network.network_address), IpRange(then, entry.exclusive)
                    )
                else:
                    fine = False
        return made if fine else None

    def entries(self, messages: Any, path: str) -> dict[bytes, Matcher] | None:
        found: dict[bytes, Matcher] = {}
        for key in sorted(messages):
            then = self.on_match(messages[key], f"{path}[{key}]")
            if then is not None:
                found[key.encode()] = then
        return found if len(found) == len(messages) else None
