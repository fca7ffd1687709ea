"""`envoy.filters.http.header_to_metadata`: headers and cookies become dynamic metadata, for logs, matchers and others.

A rule is met when its header is there, and else when it is missing, and says for either case what is set. Values are
text, numbers, or a serialised google.protobuf.Value; one that cannot be read as such is not set. Text that is no UTF-8
stays bytes.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

from envoy.extensions.filters.http.header_to_metadata.v3.header_to_metadata_pb2 import Config
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value

from meshproxy.codec.headers import HeaderMap
from meshproxy.config.context import BuildContext
from meshproxy.config.errors import ConfigErrors, child, item
from meshproxy.config.regex import Substitution, build_substitution
from meshproxy.config.values import struct_value
from meshproxy.http.filter import CONTINUE, HttpFilter, HttpFilterType, Result, register_http_filter
from meshproxy.http.stream import Stream
from meshproxy.observe.stats import StatsScope
from meshproxy.observe.stream_info import StreamInfo, shared_metadata
from meshproxy.route.hash_policy import cookie_value

_NAMESPACE: Final = "envoy.filters.http.header_to_metadata"
_VALUE_BYTES: Final = 8 * 1024  # a value of so many bytes, or more, is not set
_STRING: Final = 0
_NUMBER: Final = 1
_NUMBER_SYNTAX: Final = re.compile(
    rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?:inf|infinity|nan)", re.IGNORECASE
)
_NAN_PAYLOAD: Final = re.compile(rb"([+-]?nan)\([0-9a-z_]*\)", re.IGNORECASE)
_HEX_SYNTAX: Final = re.compile(rb"[+-]?0x(?:[0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)(?:p[+-]?[0-9]+)?", re.IGNORECASE)


class HeaderToMetadataStats(StatsScope):
    """Under `http_filter_name.<stat_prefix>.`, where the configuration has a `stat_prefix` for it."""

    COUNTERS = (
        "request_rules_processed",
        "request_metadata_added",
        "request_header_not_found",
        "response_rules_processed",
        "response_metadata_added",
        "response_header_not_found",
        "base64_decode_failed",
        "header_value_too_long",
        "regex_substitution_failed",
    )

    def __init__(self) -> None:
        super().__init__()
        self.request_rules_processed: int = 0
        self.request_metadata_added: int = 0
        self.request_header_not_found: int = 0
        self.response_rules_processed: int = 0
        self.response_metadata_added: int = 0
        self.response_header_not_found: int = 0
        self.base64_decode_failed: int = 0
        self.header_value_too_long: int = 0
        self.regex_substitution_failed: int = 0


class Target:
    """A KeyValuePair: where a value goes to, and as what. `value`, where there is one, stands for the header's."""

    def __init__(self, namespace: str, key: str, value: bytes, kind: int) -> None:
        self.namespace = namespace
        self.key = key
        self.value = value
        self.kind = kind
        self.base64: bool = False
        self.rewrite: Substitution | None = None

    def convert(self, value: bytes) -> Any:
        """As the target's type. Raises ValueError where that cannot be."""
        if self.kind == _STRING:
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value
        return parse_number(value) if self.kind == _NUMBER else parse_value(value)


class Rule:
    """What becomes of one header, or cookie."""

    def __init__(self, name: bytes, cookie: bool, remove: bool) -> None:
        self.name = name
        self.cookie = cookie
        self.remove = remove
        self.present: Target | None = None
        self.missing: Target | None = None

    def extract(self, headers: HeaderMap) -> bytes | None:
        """The value; None where there is none, as an empty cookie is."""
        if self.cookie:
            return cookie_value(headers, self.name) or None
        value = headers.joined(self.name)
        if value is not None and self.remove:
            headers.remove(self.name)
        return value


class RuleSet:
    """A Config, of the filter or of a route."""

    def __init__(self, request: list[Rule], response: list[Rule], stats: HeaderToMetadataStats) -> None:
        self.request = request
        self.response = response
        self.stats = stats

    def apply_to_request(self, headers: HeaderMap, info: StreamInfo) -> None:
        stats = self.stats
        missing, added = self._apply(self.request, headers, info)
        stats.request_rules_processed += len(self.request)
        stats.request_header_not_found += missing
        stats.request_metadata_added += added

    def apply_to_response(self, headers: HeaderMap, info: StreamInfo) -> None:
        stats = self.stats
        missing, added = self._apply(self.response, headers, info)
        stats.response_rules_processed += len(self.response)
        stats.response_header_not_found += missing
        stats.response_metadata_added += added

    def _apply(self, rules: list[Rule], headers: HeaderMap, info: StreamInfo) -> tuple[int, int]:
        """How many rules set something for want of their header, and how many values were set."""
        missing = added = 0
        for rule in rules:
            value = rule.extract(headers)
            if value is not None:
                target = rule.present
            else:
                target, value = rule.missing, b""
                missing += target is not None
            if target is not None:
                added += self._set(target, value, info)
        return missing, added

    def _set(self, target: Target, value: bytes, info: StreamInfo) -> bool:
        value = target.value or value
        if target.rewrite is not None:
            rewritten = target.rewrite.apply(value)
            if value and not rewritten:
                self.stats.regex_substitution_failed += 1
            value = rewritten
        if not value:
            return False
        if len(value) >= _VALUE_BYTES:
            self.stats.header_value_too_long += 1
            return False
        if target.base64:
            value = decode_base64(value)
            if not value:
                self.stats.base64_decode_failed += 1
                return False
        try:
            converted = target.convert(value)
        except ValueError:
            return False
        shared_metadata(info).setdefault(target.namespace, {})[target.key] = converted
        return True


def decode_base64(text: bytes) -> bytes:
    """RFC 4648 section 4, canonical, up to two `=` too many or too few; b"" for anything else."""
    digits = text[:-2] + text[-2:].rstrip(b"=")
    try:
        decoded = base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error:
        return b""
    return decoded if base64.b64encode(decoded).rstrip(b"=") == digits else b""


def parse_number(text: bytes) -> float:
    """As C's strtod, of the whole text. Raises ValueError."""
    digits = _NAN_PAYLOAD.sub(rb"\1", text.strip())
    if _NUMBER_SYNTAX.fullmatch(digits):
        return float(digits)
    if not _HEX_SYNTAX.fullmatch(digits):
        raise ValueError(text)
    try:
        return float.fromhex(digits.decode())
    except OverflowError:
        return float("-inf" if digits.startswith(b"-") else "inf")


def parse_value(data: bytes) -> Any:
    """A serialised google.protobuf.Value as plain Python. Raises ValueError."""
    value = Value()
    try:
        value.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(data) from error
    return struct_value(value)


class HeaderToMetadataFilter(HttpFilter):
    """A route's rules stand in the place of the filter's, both ways."""

    def __init__(self, rules: RuleSet) -> None:
        self.rules = rules

    def on_request_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        rules = self._rules(stream)
        if rules.request:
            rules.apply_to_request(headers, stream.info)
        return CONTINUE

    def on_response_headers(self, stream: Stream, headers: HeaderMap, end: bool) -> Result:
        rules = self._rules(stream)
        if rules.response:
            rules.apply_to_response(headers, stream.info)
        return CONTINUE

    def _rules(self, stream: Stream) -> RuleSet:
        override = stream.route_config(self)
        return override if isinstance(override, RuleSet) else self.rules


# -- building ----------------------------------------------------------------------------------------------------------


def _build_target(message: Any) -> Target:
    target = Target(message.metadata_namespace or _NAMESPACE, message.key, message.value.encode(), message.type)
    target.base64 = message.encode == Config.BASE64
    return target


def _build_rewrite(message: Any, path: str, errors: ConfigErrors) -> Substitution | None:
    where = child(path, "regex_value_rewrite")
    if message.value:
        errors.add(where, "cannot be specified together with value")
    return build_substitution(message.regex_value_rewrite, where, errors)


def _build_source(message: Any) -> Rule:
    """Where the value comes from. A request has its Host as :authority; a response has neither."""
    if message.cookie:
        return Rule(message.cookie.encode(), True, message.remove)
    name = message.header.lower().encode()
    return Rule(b":authority" if name == b"host" else name, False, message.remove)


def _build_rule(message: Any, path: str, errors: ConfigErrors) -> Rule:
    """Compile a Rule; Envoy's own checks."""
    if bool(message.header) == bool(message.cookie):
        errors.add(path, "exactly one of header and cookie must be specified")
    if message.cookie and message.remove:
        errors.add(child(path, "remove"), "cannot be specified for a cookie")
    rule = _build_source(message)
    if message.HasField("on_header_present"):
        rule.present = _build_target(message.on_header_present)
        if message.on_header_present.HasField("regex_value_rewrite"):
            rule.present.rewrite = _build_rewrite(message.on_header_present, child(path, "on_header_present"), errors)
    if message.HasField("on_header_missing"):
        # It has nothing to rewrite but its own value: Envoy does not look at its regex_value_rewrite either.
        if not message.on_header_missing.value:
            errors.add(child(path, "on_header_missing.value"), "must not be empty")
        rule.missing = _build_target(message.on_header_missing)
    if rule.present is None and rule.missing is None:
        errors.add(path, "one of on_header_present, on_header_missing is required")
    return rule


def _build_rules(message: Any, path: str, context: BuildContext) -> RuleSet:
    rules: list[list[Rule]] = []
    for field in ("request_rules", "response_rules"):
        messages = getattr(message, field)
        rules.append([_build_rule(each, item(path, field, i), context.errors) for i, each in enumerate(messages)])
    stats = HeaderToMetadataStats()  # that nobody sees
    if message.stat_prefix:
        stats = context.scope(f"http_filter_name.{message.stat_prefix}.", HeaderToMetadataStats)
    return RuleSet(rules[0], rules[1], stats)


def build_header_to_metadata(message: Any, path: str, context: BuildContext) -> HeaderToMetadataFilter:
    return HeaderToMetadataFilter(_build_rules(message, path, context))


def build_per_route(message: Any, path: str, context: BuildContext) -> RuleSet:
    if not message.request_rules and not message.response_rules:
        context.errors.add(path, "one of request_rules, response_rules is required")
    return _build_rules(message, path, context)


register_http_filter(Config, HttpFilterType(build_header_to_metadata, Config, build_per_route))
