"""The API's own rules: `validate.rules` (protoc-gen-validate) of every field that is there, through all `Any`s.

The rules stand in the descriptors of xds-protos. They are compiled once for each message type. Envoy stops at the first
violation; here all are told, in protoc-gen-validate's words, which Envoy's users know.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import re2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from validate import validate_pb2

from meshproxy.config.errors import ConfigErrors, child
from meshproxy.config.messages import enum_of, is_map, map_entry
from meshproxy.config.typed_struct import unpack_any

# A check says what is wrong with a value; None when nothing is.
Check = Callable[[Any], str | None]

_NUMBERS: Final = {"float", "double"} | frozenset(
    f"{prefix}{kind}{bits}" for prefix in ("", "u", "s") for kind in ("int", "fixed") for bits in (32, 64)
)
_MOST_ANYS: Final = 20  # within each other
_STRIDE: Final = 20  # elements of lists in a step: about a millisecond
_NANOS: Final = 1_000_000_000
# Whose rules Envoy does not apply: there must be one of these, but not beside `trust_bundles`. Who builds it says so.
_LIFTED: Final = frozenset({"envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.trust_domains"})
_HEADER_NAME: Final = re.compile(r":?[0-9a-zA-Z!#$%&'*+-.^_|~\x60]+")
_HEADER_VALUE: Final = re.compile(r"[^\x00-\x08\x0A-\x1F\x7F]*")
_LOOSE_HEADER: Final = re.compile(r"[^\x00\x0A\x0D]*")


class _FieldPlan:
    """What is to be checked of one field."""

    def __init__(self, field: FieldDescriptor, rules: Any) -> None:
        self.name: str = field.name
        self.always = not field.has_presence  # also when it has its default value
        # A required member of a oneof is required only where it is the one that is chosen: then it is there.
        self.required = field.containing_oneof is None and (
            rules.message.required or rules.duration.required or rules.any.required or rules.timestamp.required
        )
        self.is_map = is_map(field)
        self.is_list = field.is_repeated and not self.is_map
        self.checks = _checks(field, rules)
        self.key_checks: list[Check] = []
        element, element_rules = field, rules.repeated.items if self.is_list else rules
        if self.is_map:
            key, element = map_entry(field)
            element_rules = rules.map.values
            self.key_checks = _checks(key, rules.map.keys)
        self.element_checks = _checks(element, element_rules) if field.is_repeated else []
        self.enters = element.message_type is not None and not element_rules.message.skip

    @property
    def idle(self) -> bool:
        """Nothing to check and nowhere to go."""
        return not (self.required or self.checks or self.element_checks or self.key_checks or self.enters)


class _MessagePlan:
    def __init__(self, fields: list[_FieldPlan], oneofs: list[tuple[str, str]]) -> None:
        self.fields = fields
        self.oneofs = oneofs  # the required ones: name and the names of their fields


def validate_message(message: Message, path: str, errors: ConfigErrors) -> None:
    """Add an error for every rule that `message`, or a message in it, breaks. Unknown types in an Any are passed over:
    whoever builds from it refuses them."""
    for _ in _Validation(errors).enter(message, path):
        pass


def validate_steps(message: Message, path: str, errors: ConfigErrors) -> Iterator[None]:
    """`validate_message` for a large message, in steps of about a millisecond."""
    return _Validation(errors).enter(message, path)


class _Validation:
    """One walk through a message. Its methods that go down are iterators of steps."""

    def __init__(self, errors: ConfigErrors) -> None:
        self._errors = errors
        self._seen = 0
        self._depth = 0  # of Any's

    def enter(self, message: Message, path: str) -> Iterator[None]:
        """Check a message and all in it."""
        if isinstance(message, AnyMessage):
            if message.type_url and self._depth < _MOST_ANYS:
                inner = unpack_any(message, path, ConfigErrors())
                if inner is not None:
                    self._depth += 1
                    yield from self.enter(inner, path)
                    self._depth -= 1
            return
        plan = _plan(message.DESCRIPTOR)
        for name, choices in plan.oneofs:
            if message.WhichOneof(name) is None:
                self._errors.add(child(path, name), f"value is required (one of {choices})")
        for field in plan.fields:
            if field.always or message.HasField(field.name):
                yield from self._field(getattr(message, field.name), field, child(path, field.name))
            elif field.required:
                self._errors.add(child(path, field.name), "value is required")

    def _field(self, value: Any, field: _FieldPlan, path: str) -> Iterator[None]:
        _apply(field.checks, value, path, self._errors)
        if field.is_map:
            for key in value:
                _apply(field.key_checks, key, f"{path}[{key}]", self._errors)
                yield from self._element(field, value[key], f"{path}[{key}]")
        elif field.is_list:
            if field.element_checks or field.enters:
                for index, element in enumerate(value):
                    yield from self._element(field, element, f"{path}[{index}]")
        elif field.enters:
            yield from self.enter(value, path)

    def _element(self, field: _FieldPlan, element: Any, path: str) -> Iterator[None]:
        self._seen += 1
        if self._seen % _STRIDE == 0:
            yield
        _apply(field.element_checks, element, path, self._errors)
        if field.enters:
            yield from self.enter(element, path)


def _apply(checks: list[Check], value: Any, path: str, errors: ConfigErrors) -> None:
    for check in checks:
        reason = check(value)
        if reason is not None:
            errors.add(path, reason)


@functools.cache
def _plan(descriptor: Descriptor) -> _MessagePlan:
    options = descriptor.GetOptions().Extensions
    if options[validate_pb2.disabled] or options[validate_pb2.ignored]:
        return _MessagePlan([], [])
    fields = [
        _FieldPlan(field, field.GetOptions().Extensions[validate_pb2.rules])
        for field in descriptor.fields
        if field.full_name not in _LIFTED
    ]
    oneofs = [
        (oneof.name, ", ".join(field.name for field in oneof.fields))
        for oneof in descriptor.oneofs
        if oneof.GetOptions().Extensions[validate_pb2.required]
    ]
    return _MessagePlan([field for field in fields if not field.idle], oneofs)


def _checks(field: FieldDescriptor, rules: Any) -> list[Check]:
    """The checks of a field's own value (a whole list or map, one element, or a scalar)."""
    kind = rules.WhichOneof("type")
    if kind is None:
        return []
    own = getattr(rules, kind)
    checks = list(_checks_of_kind(kind, own, field))
    if "ignore_empty" in own.DESCRIPTOR.fields_by_name and own.ignore_empty:
        checks = [_unless_empty(check) for check in checks]
    if field.message_type is not None and field.message_type.name.endswith("Value") and kind not in ("repeated", "map"):
        return [_of_wrapper(check) for check in checks]
    return checks


def _checks_of_kind(kind: str, rules: Any, field: FieldDescriptor) -> Iterator[Check]:
    if kind in _NUMBERS:
        yield from _range_checks(rules, lambda value: value, lambda limit: limit, "")
    elif kind == "duration":
        yield from _range_checks(rules, _nanos, _nanos, "s")
    elif kind == "string":
        yield from _string_checks(rules)
    elif kind == "bytes":
        yield from _length_checks(rules, "len", len, "bytes")
        yield from _membership_checks(rules)
    elif kind == "bool":
        yield from _membership_checks(rules)
    elif kind == "enum":
        yield from _membership_checks(rules)
        if rules.defined_only:
            yield _defined_only(enum_of(field))
    elif kind == "repeated":
        yield from _count_checks(rules, "items")
        if rules.unique:
            yield _unique
    elif kind == "map":
        yield from _count_checks(rules, "pairs")
    elif kind == "any":
        yield from _any_checks(rules)


def _range_checks(rules: Any, of: Callable[[Any], Any], limit_of: Callable[[Any], Any], unit: str) -> Iterator[Check]:
    comparisons: list[tuple[str, str, Callable[[Any, Any], bool]]] = [
        ("const", "equal to", lambda value, limit: value == limit),
        ("lt", "less than", lambda value, limit: value < limit),
        ("lte", "less than or equal to", lambda value, limit: value <= limit),
        ("gt", "greater than", lambda value, limit: value > limit),
        ("gte", "greater than or equal to", lambda value, limit: value >= limit),
    ]
    for name, words, holds in comparisons:
        if rules.HasField(name):
            limit = limit_of(getattr(rules, name))
            shown = f"{limit / _NANOS:g}{unit}" if unit else f"{limit:g}" if isinstance(limit, float) else str(limit)
            yield _compare(of, holds, limit, f"value must be {words} {shown}")
    for name, expected in (("in", True), ("not_in", False)):
        members = [limit_of(each) for each in getattr(rules, name)]
        if members:
            yield _member(of, members, expected)


def _compare(of: Callable[[Any], Any], holds: Callable[[Any, Any], bool], limit: Any, reason: str) -> Check:
    return lambda value: None if holds(of(value), limit) else reason


def _member(of: Callable[[Any], Any], members: list[Any], expected: bool) -> Check:
    reason = f"value must {'' if expected else 'not '}be in list {members}"
    return lambda value: None if (of(value) in members) == expected else reason


def _membership_checks(rules: Any) -> Iterator[Check]:
    if rules.HasField("const"):
        yield _member(lambda value: value, [rules.const], True)
    if "in" in rules.DESCRIPTOR.fields_by_name:
        if getattr(rules, "in"):
            yield _member(lambda value: value, list(getattr(rules, "in")), True)
        if rules.not_in:
            yield _member(lambda value: value, list(rules.not_in), False)


def _length_checks(rules: Any, suffix: str, length: Callable[[Any], int], unit: str) -> Iterator[Check]:
    """`len`, `min_len`, `max_len`; of strings also `len_bytes`, `min_bytes`, `max_bytes`."""
    limits: list[tuple[str, str, Callable[[int, int], bool]]] = [
        ("len" if suffix == "len" else "len_bytes", "", lambda have, limit: have == limit),
        (f"min_{suffix}", "at least ", lambda have, limit: have >= limit),
        (f"max_{suffix}", "at most ", lambda have, limit: have <= limit),
    ]
    for name, words, holds in limits:
        if rules.HasField(name):
            limit = getattr(rules, name)
            yield _compare(length, holds, limit, f"value length must be {words}{limit} {unit}")


def _string_checks(rules: Any) -> Iterator[Check]:
    yield from _length_checks(rules, "len", len, "characters")
    yield from _length_checks(rules, "bytes", lambda value: len(value.encode()), "bytes")
    yield from _membership_checks(rules)
    if rules.HasField("pattern"):
        yield _pattern(rules.pattern)
    texts: list[tuple[str, str, Callable[[str, str], bool]]] = [
        ("prefix", "does not have prefix", lambda value, text: value.startswith(text)),
        ("suffix", "does not have suffix", lambda value, text: value.endswith(text)),
        ("contains", "does not contain substring", lambda value, text: text in value),
        ("not_contains", "contains substring", lambda value, text: text not in value),
    ]
    for name, words, holds in texts:
        if rules.HasField(name):
            yield _compare(str, holds, getattr(rules, name), f"value {words} {getattr(rules, name)!r}")
    if rules.HasField("well_known_regex"):
        yield _header(rules.well_known_regex, not rules.HasField("strict") or rules.strict)


def _pattern(pattern: str) -> Check:
    regex = re2.compile(pattern)
    return lambda value: None if regex.fullmatch(value) else f"value does not match regex pattern {pattern!r}"


def _header(kind: int, strict: bool) -> Check:
    is_name = kind == validate_pb2.HTTP_HEADER_NAME
    regex = (_HEADER_NAME if is_name else _HEADER_VALUE) if strict else _LOOSE_HEADER
    reason = f"value is not a valid HTTP header {'name' if is_name else 'value'}"
    return lambda value: None if regex.fullmatch(value) else reason


def _defined_only(enum: EnumDescriptor) -> Check:
    numbers = frozenset(enum.values_by_number)
    return lambda value: None if value in numbers else "value must be one of the defined enum values"


def _count_checks(rules: Any, noun: str) -> Iterator[Check]:
    least, most = getattr(rules, f"min_{noun}"), getattr(rules, f"max_{noun}")
    if rules.HasField(f"min_{noun}"):
        yield _compare(len, lambda have, limit: have >= limit, least, f"value must contain at least {least} item(s)")
    if rules.HasField(f"max_{noun}"):
        yield _compare(len, lambda have, limit: have <= limit, most, f"value must contain no more than {most} item(s)")


def _unique(values: Any) -> str | None:
    keys = [each.SerializeToString(deterministic=True) if isinstance(each, Message) else each for each in values]
    return None if len(set(keys)) == len(keys) else "repeated value must contain unique items"


def _any_checks(rules: Any) -> Iterator[Check]:
    for name, expected in (("in", True), ("not_in", False)):
        members = list(getattr(rules, name))
        if members:
            yield _member(lambda value: value.type_url, members, expected)


def _nanos(duration: Any) -> int:
    return int(duration.seconds) * _NANOS + int(duration.nanos)


def _unless_empty(check: Check) -> Check:
    return lambda value: None if _is_empty(value) else check(value)


def _is_empty(value: Any) -> bool:
    return value.ByteSize() == 0 if isinstance(value, Message) else not value


def _of_wrapper(check: Check) -> Check:
    return lambda wrapper: check(wrapper.value)
